//! How fast the kernels are on this CPU, in one thread:
//! `cargo run --release -p kiv-fastscan --example speed`.
//!
//! Every figure is the fastest and the median of interleaved rounds. With an
//! instruction set's name as argument only that one runs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use kiv_fastscan::{CENTROIDS, Isa, Lut, at_least, pack, scan_many, top_k};

const ROUNDS: usize = 15;

fn noise(state: &mut u64) -> u32 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as u32
}

/// Something to time: its name, what one call works on, and how.
struct Case<'a> {
    name: String,
    /// Key·query·subquantizers for scans, keys for selections.
    items: usize,
    unit: &'static str,
    run: Box<dyn FnMut() + 'a>,
    times: Vec<Duration>,
    repeat: u32,
}

impl<'a> Case<'a> {
    fn new(name: String, items: usize, unit: &'static str, run: impl FnMut() + 'a) -> Self {
        Self {
            name,
            items,
            unit,
            run: Box::new(run),
            times: Vec::new(),
            repeat: 1,
        }
    }

    /// Repeats until a measurement takes a millisecond.
    fn calibrate(&mut self) {
        while self.once() < Duration::from_millis(1) {
            self.repeat *= 2;
        }
    }

    fn once(&mut self) -> Duration {
        let start = Instant::now();
        for _ in 0..self.repeat {
            (self.run)();
        }
        start.elapsed()
    }
}

fn measure(mut cases: Vec<Case<'_>>) {
    cases.iter_mut().for_each(Case::calibrate);
    for _ in 0..ROUNDS {
        for case in &mut cases {
            let time = case.once() / case.repeat;
            case.times.push(time);
        }
    }
    for case in &mut cases {
        case.times.sort_unstable();
        let nanos = |time: Duration| time.as_secs_f64() * 1e9;
        let (best, median) = (nanos(case.times[0]), nanos(case.times[ROUNDS / 2]));
        let per = case.items as f64;
        println!(
            "{:<44} {:>11.2} us  {:>8.4} ns per {} (median {:.4})",
            case.name,
            best / 1e3,
            best / per,
            case.unit,
            median / per
        );
    }
}

fn main() {
    let isas: Vec<Isa> = match std::env::args().nth(1) {
        Some(name) => Isa::available()
            .into_iter()
            .filter(|isa| isa.name() == name)
            .collect(),
        None => Isa::available(),
    };
    let state = &mut 1u64;
    for highest in [255, 127, 63] {
        for m in [16, 32, 64] {
            for n in [10_016] {
                let codes: Vec<u8> = (0..n * m).map(|_| noise(state) as u8 & 15).collect();
                let mut packed = Vec::new();
                pack(&codes, m, &mut packed);
                let luts: Vec<Lut> = (0..8)
                    .map(|_| {
                        let table: Vec<f32> =
                            (0..m * CENTROIDS).map(|_| noise(state) as f32).collect();
                        let mut lut = Lut::with_highest(m, highest);
                        lut.quantize(&table).expect("finite");
                        lut
                    })
                    .collect();
                let mut cases = Vec::new();
                for &isa in &isas {
                    for queries in [1, 2, 4, 8] {
                        let (luts, packed) = (&luts[..queries], &packed);
                        let mut out = vec![0u16; n * queries];
                        cases.push(Case::new(
                            format!("{isa} scan highest={highest} m={m} n={n} queries={queries}"),
                            n * queries * m,
                            "key.query.subquantizer",
                            move || scan_many(isa, luts, black_box(packed), black_box(&mut out)),
                        ));
                    }
                }
                measure(cases);

                let mut sums = vec![0; n];
                scan_many(Isa::Scalar, &luts[..1], &packed, &mut sums);
                let mut cases = Vec::new();
                for &isa in &isas {
                    for k in [16, 128, 1024, 4096] {
                        if k >= n {
                            continue;
                        }
                        let (mut out, sums) = (Vec::new(), &sums);
                        let name = format!("{isa} top_k m={m} n={n} k={k}");
                        cases.push(Case::new(name, n, "key", move || {
                            out.clear();
                            top_k(isa, black_box(sums), k, &mut out);
                            black_box(&out);
                        }));
                    }
                    let mut sorted = sums.clone();
                    sorted.sort_unstable();
                    let (mut out, sums, threshold) = (Vec::new(), &sums, sorted[n - n / 32]);
                    let name = format!("{isa} at_least m={m} n={n} of 32 one");
                    cases.push(Case::new(name, n, "key", move || {
                        out.clear();
                        at_least(isa, black_box(sums), threshold, &mut out);
                        black_box(&out);
                    }));
                }
                measure(cases);
            }
        }
    }
    let mut cases = Vec::new();
    for m in [16, 32, 64] {
        let table: Vec<f32> = (0..m * CENTROIDS).map(|_| noise(state) as f32).collect();
        let mut lut = Lut::new(m);
        cases.push(Case::new(
            format!("quantize m={m}"),
            m,
            "subquantizer",
            move || {
                lut.quantize(black_box(&table)).expect("finite");
                black_box(&lut);
            },
        ));
        let codes: Vec<u8> = (0..4096 * m).map(|_| noise(state) as u8 & 15).collect();
        let mut packed = Vec::new();
        cases.push(Case::new(
            format!("pack m={m} n=4096"),
            4096 * m,
            "code",
            move || {
                packed.clear();
                pack(black_box(&codes), m, &mut packed);
                black_box(&packed);
            },
        ));
    }
    measure(cases);
}
