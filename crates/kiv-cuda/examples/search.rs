//! The index's search on this GPU: whether it finds what the CPU finds, and how long both
//! take, for a layer's heads and one token.
//!
//! ```sh
//! cargo run --release -p kiv-cuda --features cuda --example search             # or --small
//! cargo run --release -p kiv-cuda --example search -- --simulated   # compares; times nothing
//! ```

use kiv_cuda::search::{DeviceFinder, FinderConfig};
use kiv_cuda::sim::{SimConfig, SimDevice};
use kiv_cuda::{Device, DeviceError, open_or_say};
use kiv_fastscan::Isa;
use kiv_index::{Effort, Finder, Found, HeadIndex, Hits, Params, Scratch};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Of a decoded token, as `pq` asks.
const EFFORT: Effort = Effort {
    probed: 10_240,
    kept: 1024,
};

/// KV heads, which have the same keys here, and queries of each.
const HEADS: usize = 8;
const GROUP: usize = 4;

const ROUNDS: usize = 12;

/// How often the device is asked in a round, and how long before the first: an idle one's clocks
/// are low, and rise while it works.
const TIMES: usize = 5;
const BUSY: Duration = Duration::from_millis(300);

/// Keys of a layer's heads, and values of each.
const REAL: [(usize, usize); 4] = [
    (1 << 17, 64),
    (1 << 17, 128),
    ((1 << 20) + 30_000, 64),
    ((1 << 20) + 30_000, 128),
];

const SMALL: [(usize, usize); 2] = [(9000, 64), (86_000, 64)];

fn main() -> ExitCode {
    let word = std::env::args().nth(1);
    let passed = match word.as_deref() {
        Some("--simulated") => {
            println!("simulated: what is found is compared, and nothing is measured");
            let device = SimDevice::new(SimConfig::default());
            run(device, &SMALL, false)
        }
        None | Some("--small") => match open_or_say(0) {
            Ok(device) if word.is_some() => run(device, &SMALL, true),
            Ok(device) => run(device, &REAL, true),
            Err(absent) => {
                println!("{absent}");
                return ExitCode::from(3);
            }
        },
        Some(other) => {
            eprintln!("error: unknown option {other}");
            return ExitCode::from(2);
        }
    };
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run<D: Device + Send>(
    device: D,
    sizes: &[(usize, usize)],
    is_timed: bool,
) -> Result<bool, DeviceError> {
    println!("{}", device.name());
    let config = FinderConfig {
        max_bytes: usize::MAX,
        warn: |what| println!("{what}"),
    };
    let mut finder = DeviceFinder::new(device, config)?;
    let mut all_same = true;
    for (n_keys, dim) in sizes {
        all_same &= layer(&mut finder, *n_keys, *dim, is_timed);
    }
    Ok(all_same)
}

/// Whether all that is found is the same.
fn layer<D: Device + Send>(
    finder: &mut DeviceFinder<D>,
    n_keys: usize,
    dim: usize,
    is_timed: bool,
) -> bool {
    let mut rng = ChaCha8Rng::seed_from_u64(n_keys as u64);
    let index = index(&mut rng, n_keys, dim);
    let heads = vec![&index; HEADS];
    let (mut same, mut served) = (0, 0);
    let (mut device, mut host) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let queries: Vec<f32> = (0..HEADS * GROUP * dim)
            .map(|_| rng.random_range(-1.5..1.5))
            .collect();
        let mut found = vec![None; HEADS];
        let mut find = || {
            let started = Instant::now();
            finder.find(0, &heads, queries[..].into(), EFFORT, &mut found);
            started.elapsed()
        };
        if round == 0 {
            // Copies, and warms caches.
            let mut busy = find();
            while is_timed && busy < BUSY {
                busy += find();
            }
        } else {
            let times = if is_timed { TIMES } else { 1 };
            device.extend((0..times).map(|_| find()));
        }
        let (time, n) = search(&index, &queries, &found);
        if round > 0 {
            host.push(time);
        }
        same += n;
        served += found.iter().flatten().count();
    }
    let all = (ROUNDS + 1) * HEADS;
    println!(
        "{n_keys} keys of {dim}: {same} of {served} heads found the same, {} left to the CPU, {} MB \
         for {HEADS} heads",
        all - served,
        finder.bytes() / 1_000_000,
    );
    if is_timed {
        println!(
            "{n_keys} keys of {dim}: {HEADS} heads, {GROUP} queries each: {} on the device, {} on \
             one core (medians of {} and {ROUNDS})",
            us(&mut device),
            us(&mut host),
            device.len()
        );
    }
    same == served && served > 0
}

/// Searches all heads on the CPU: the time, and how many found what the device found.
fn search(index: &HeadIndex, queries: &[f32], found: &[Option<Found>]) -> (Duration, usize) {
    let (mut scratch, mut hits, mut again) =
        (Scratch::default(), Hits::in_order(), Hits::in_order());
    let (mut time, mut same) = (Duration::ZERO, 0);
    let isa = Isa::detect();
    let of_heads = queries.chunks(queries.len() / HEADS);
    for (queries, found) in of_heads.zip(found) {
        let started = Instant::now();
        let searched = index.search(isa, queries.into(), EFFORT, &mut scratch, &mut hits);
        searched.expect("queries are numbers");
        time += started.elapsed();
        if let Some(found) = found {
            let searched =
                index.search_rest(isa, queries.into(), EFFORT, found, &mut scratch, &mut again);
            searched.expect("queries are numbers");
            let bits = |hits: &Hits, query| {
                let (tokens, logits) = hits.of(query);
                let logits: Vec<u32> = logits.iter().map(|l| l.to_bits()).collect();
                (tokens.to_vec(), logits)
            };
            same += usize::from((0..GROUP).all(|q| bits(&hits, q) == bits(&again, q)));
        }
    }
    (time, same)
}

/// An index of keys like a model's: some kinds that recur, a few far from all others.
fn index(rng: &mut ChaCha8Rng, n_keys: usize, dim: usize) -> HeadIndex {
    let mut index = HeadIndex::new(Params::new(dim, 1.0 / (dim as f32).sqrt()));
    let kinds: Vec<f32> = (0..300 * dim)
        .map(|_| rng.random_range(-2.0..2.0))
        .collect();
    let mut keys = Vec::with_capacity(n_keys * dim);
    for _ in 0..n_keys {
        let kind = rng.random_range(0..300) * dim;
        let size = if rng.random_bool(0.01) { 6.0 } else { 0.7 };
        let of_kind = &kinds[kind..kind + dim];
        keys.extend(
            of_kind
                .iter()
                .map(|k| k + size * rng.random_range(-1.0..1.0)),
        );
    }
    let segment = index.params().segment;
    let mut read = |first: usize, out: &mut Vec<f32>| {
        out.extend_from_slice(&keys[first * dim..(first + segment) * dim]);
        true
    };
    let appended = index.append(&keys, &mut read);
    appended.expect("keys are numbers");
    index
}

fn us(times: &mut [Duration]) -> String {
    times.sort_unstable();
    format!("{:.1} µs", times[times.len() / 2].as_secs_f64() * 1e6)
}
