//! Every instruction set that this CPU has against a naive oracle.

use kiv_fastscan::{
    CENTROIDS, GROUP, Isa, Lut, LutError, at_least, group_bytes, pack, scan, scan_groups,
    scan_many, scan_top_k, top_k, unpack_key,
};
use proptest::prelude::*;

/// What to test: all that is there, or what `KIV_ISA` names. If that cannot be
/// had the test fails.
fn isas() -> Vec<Isa> {
    assert_eq!(Isa::rejected(), [], "a kernel failed its self-test");
    match Isa::from_env() {
        Ok(None) => Isa::available(),
        Ok(Some(isa)) => vec![isa],
        Err(error) => panic!("{error}"),
    }
}

/// Seeded noise.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(99);
        (self.0 >> 33) as u32
    }

    fn codes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8 & 15).collect()
    }

    /// A table whose bytes are `byte`'s, cut off at `highest`: every scale is 1.
    fn lut(
        &mut self,
        m: usize,
        highest: u8,
        mut byte: impl FnMut(&mut Self) -> u8,
    ) -> (Lut, Vec<u8>) {
        let mut bytes: Vec<u8> = (0..m * CENTROIDS)
            .map(|_| byte(self).min(highest))
            .collect();
        for row in bytes.chunks_mut(CENTROIDS) {
            row[0] = 0; // so that the lowest of each row is known
        }
        bytes[1] = highest;
        let mut lut = Lut::with_highest(m, highest);
        let table: Vec<f32> = bytes.iter().map(|&b| f32::from(b)).collect();
        lut.quantize(&table).unwrap();
        for (i, &byte) in bytes.iter().enumerate() {
            assert_eq!(lut.entry(i / CENTROIDS, i % CENTROIDS), byte);
        }
        (lut, bytes)
    }
}

fn oracle(bytes: &[u8], codes: &[u8], m: usize) -> Vec<u16> {
    codes
        .chunks(m)
        .map(|row| {
            row.iter()
                .enumerate()
                .map(|(s, &code)| u16::from(bytes[s * CENTROIDS + usize::from(code)]))
                .sum()
        })
        .collect()
}

/// Codes packed at an odd address.
fn packed_unaligned(codes: &[u8], m: usize) -> Vec<u8> {
    let mut packed = vec![0xff];
    pack(codes, m, &mut packed);
    packed
}

fn check(m: usize, n: usize, noise: &mut Noise) {
    check_tables(m, n, |_| 255, noise);
    check_tables(m, n, |_| 127, noise);
    check_tables(m, n, |_| 63, noise);
    check_tables(m, n, |table| [255, 127, 100, 63, 1][table % 5], noise);
}

fn check_tables(m: usize, n: usize, highest: impl Fn(usize) -> u8, noise: &mut Noise) {
    let codes = noise.codes(n * m);
    let packed = packed_unaligned(&codes, m);
    let packed = &packed[1..];
    let keys = n.div_ceil(GROUP) * GROUP;
    assert_eq!(packed.len(), n.div_ceil(GROUP) * group_bytes(m));

    let mut filled = codes.clone();
    filled.resize(keys * m, 0);
    let (luts, bytes): (Vec<_>, Vec<_>) = [0, 1, 2, 3, 4, 5, 6]
        .map(|kind| {
            noise.lut(m, highest(kind), |noise| match kind {
                0 => 0,
                1 => 255,
                2 => 255 * (noise.next() & 1) as u8,
                _ => noise.next() as u8,
            })
        })
        .into_iter()
        .unzip();
    let expected: Vec<Vec<u16>> = bytes.iter().map(|b| oracle(b, &filled, m)).collect();

    for isa in isas() {
        // An odd number of sums before, so that stores are unaligned.
        let mut out = vec![0xaaaa; keys + 1];
        for (lut, expected) in luts.iter().zip(&expected) {
            scan(isa, lut, packed, &mut out[1..]);
            assert_eq!(out[1..], expected[..], "{isa}, m {m}, {n} keys");
            assert_eq!(out[0], 0xaaaa);
        }
        // Groups in any order, some twice, some not at all.
        let listed: Vec<u32> = (0..keys / GROUP)
            .map(|_| noise.next() % (keys / GROUP) as u32)
            .collect();
        for queries in 0..=luts.len() {
            let mut outs = vec![0xaaaa; queries * listed.len() * GROUP + 1];
            scan_groups(isa, &luts[..queries], packed, &listed, &mut outs[1..]);
            let of = |sums: &Vec<u16>| {
                let groups = listed.iter().map(|group| *group as usize * GROUP);
                groups
                    .flat_map(|at| sums[at..at + GROUP].to_vec())
                    .collect::<Vec<_>>()
            };
            let expected: Vec<u16> = expected[..queries].iter().flat_map(of).collect();
            assert_eq!(outs[1..], expected[..], "{isa}, m {m}, {n} keys, listed");
        }
        for queries in 0..=luts.len() {
            let mut outs = vec![0xaaaa; queries * keys + 1];
            scan_many(isa, &luts[..queries], packed, &mut outs[1..]);
            let expected = expected[..queries].concat();
            assert_eq!(
                outs[1..],
                expected[..],
                "{isa}, m {m}, {n} keys, {queries} queries"
            );
        }
    }
}

#[test]
fn every_length() {
    let noise = &mut Noise(1);
    for n in 0..=200 {
        for m in [2, 4, 16, 18, 32] {
            check(m, n, noise);
        }
    }
}

#[test]
fn every_number_of_subquantizers() {
    let noise = &mut Noise(2);
    for m in (2..=64).step_by(2).chain([128, 254, 256]) {
        for n in [1, 31, 32, 33, 200] {
            check(m, n, noise);
        }
    }
}

/// More codes than are scanned at once for all queries.
#[test]
fn many_blocks() {
    let noise = &mut Noise(3);
    check(16, 5000, noise);
    check(256, 1000, noise);
}

#[test]
fn codes_round_trip() {
    let noise = &mut Noise(4);
    for m in (2..=256).step_by(2) {
        let n = m % 100 + 1;
        let codes = noise.codes(n * m);
        let packed = packed_unaligned(&codes, m);
        let mut row = vec![0; m];
        for (key, expected) in codes.chunks(m).enumerate() {
            unpack_key(&packed[1..], m, key, &mut row);
            assert_eq!(row, expected);
        }
        for key in n..n.div_ceil(GROUP) * GROUP {
            unpack_key(&packed[1..], m, key, &mut row);
            assert_eq!(row, vec![0; m]);
        }
    }
}

fn sorted_top_k(sums: &[u16], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..sums.len() as u32).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(sums[i as usize]));
    order.truncate(k);
    order.sort_unstable();
    order
}

fn check_selection(sums: &[u16], k: usize, threshold: u16) -> Result<(), TestCaseError> {
    for isa in isas() {
        let mut out = vec![7];
        top_k(isa, sums, k, &mut out);
        prop_assert_eq!(out[0], 7);
        prop_assert_eq!(&out[1..], sorted_top_k(sums, k), "{}", isa);

        let mut out = vec![7];
        at_least(isa, sums, threshold, &mut out);
        prop_assert_eq!(out[0], 7);
        let expected: Vec<u32> = (0..)
            .zip(sums)
            .filter_map(|(i, &sum)| (sum >= threshold).then_some(i))
            .collect();
        prop_assert_eq!(&out[1..], expected, "{}", isa);
    }
    Ok(())
}

/// Sums of several shapes: wide, narrow (many equal), few values, sorted.
fn sums() -> impl Strategy<Value = Vec<u16>> {
    let len = prop_oneof![0..=200usize, 200..=3000usize];
    (len, 0..6u32, any::<u64>()).prop_map(|(len, shape, seed)| {
        let mut noise = Noise(seed);
        let mut sums: Vec<u16> = (0..len)
            .map(|_| {
                let x = noise.next();
                match shape {
                    0 => x as u16,
                    1 => 2000 + (x % 20) as u16,
                    2 => [0, 65_535][x as usize & 1],
                    3 => (0..8).map(|i| (x >> (4 * i) & 15) as u16).sum(),
                    4 => u16::from(x.is_multiple_of(100)) * (x as u16 | 1),
                    _ => x as u16 & 0x3fff,
                }
            })
            .collect();
        if shape == 5 {
            sums.sort_unstable();
        }
        sums
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn selections(sums in sums(), skip in 0..3usize, k in 0.0..1.1f64, t in any::<u16>(), at in any::<prop::sample::Index>()) {
        let sums = &sums[skip.min(sums.len())..];
        let k = (k * k * k * sums.len() as f64) as usize;
        check_selection(sums, k, t)?;
        if !sums.is_empty() {
            check_selection(sums, 1, sums[at.index(sums.len())])?;
        }
    }

    #[test]
    fn random_scans(m in 1..=32usize, n in 0..=400usize, seed in any::<u64>()) {
        check(2 * m, n, &mut Noise(seed));
    }

    #[test]
    fn quantization_error_is_bounded(
        m in 1..=128usize,
        exponent in -30..30i32,
        offset in prop_oneof![Just(0.0f32), -1e4..1e4f32],
        seed in any::<u64>(),
    ) {
        let m = 2 * m;
        let mut noise = Noise(seed);
        let unit = 2f32.powi(exponent);
        let table: Vec<f32> = (0..m * CENTROIDS)
            .map(|i| unit * ((noise.next() as f32 / 2f32.powi(30) - 1.0) * (i / CENTROIDS % 3) as f32 + offset))
            .collect();
        let mut lut = Lut::new(m);
        lut.quantize(&table).unwrap();
        prop_assert!(lut.error_bound() >= m as f32 * lut.scale() / 2.0);
        for _ in 0..20 {
            let codes = noise.codes(m);
            let float: f64 = codes.iter().enumerate()
                .map(|(s, &code)| f64::from(table[s * CENTROIDS + usize::from(code)]))
                .sum();
            let sum = codes.iter().enumerate()
                .map(|(s, &code)| u16::from(lut.entry(s, usize::from(code))))
                .sum();
            let error = (f64::from(lut.score(sum)) - float).abs();
            prop_assert!(error <= f64::from(lut.error_bound()), "{error} > {}", lut.error_bound());
        }
    }

    #[test]
    fn sum_for_is_the_smallest(seed in any::<u64>(), offset in -1e3..1e3f32, score in any::<f32>(), sum in any::<u16>()) {
        let mut noise = Noise(seed);
        let table: Vec<f32> = (0..4 * CENTROIDS).map(|_| noise.next() as f32 / 2f32.powi(31) + offset).collect();
        let mut lut = Lut::new(4);
        lut.quantize(&table).unwrap();
        for score in [score, lut.score(sum), offset * 4.0 + 1.0] {
            let found = lut.sum_for(score);
            prop_assert!(found == u16::MAX || lut.score(found) >= score);
            prop_assert!(found == 0 || lut.score(found - 1) < score || score.is_nan());
        }
    }
}

/// Best keys straight from codes, of random ones, of few distinct ones (ties),
/// and of rising and falling ones.
#[test]
fn best_of_scans() {
    let noise = &mut Noise(6);
    let m = 4;
    let lut = |noise: &mut Noise| {
        let (lut, _) = noise.lut(m, 255, |noise| noise.next() as u8);
        lut
    };
    let luts: Vec<Lut> = (0..4).map(|_| lut(noise)).collect();
    for n in [0, 1, 31, 32, 100, 4095, 4096, 4097, 8192, 30_000] {
        let codes: [Vec<u8>; 3] = [
            noise.codes(n * m),
            noise.codes(n * m).iter().map(|&code| code & 1).collect(),
            (0..n * m).map(|i| (i / m * 16 / n) as u8).collect(),
        ];
        for codes in codes {
            let packed = packed_unaligned(&codes, m);
            let packed = &packed[1..];
            let keys = n.div_ceil(GROUP) * GROUP;
            let mut sums = vec![0; luts.len() * keys];
            scan_many(Isa::Scalar, &luts, packed, &mut sums);
            for isa in isas() {
                for k in [0, 1, 2, 16, 100, 1000, 5000, 40_000] {
                    let mut outs = vec![vec![7]; luts.len()];
                    scan_top_k(isa, &luts, packed, n, k, &mut outs);
                    for (i, out) in outs.iter().enumerate() {
                        let expected = sorted_top_k(&sums[i * keys..][..n], k);
                        assert_eq!(out[0], 7);
                        assert_eq!(&out[1..], expected, "{isa}, {n} keys, k {k}");
                    }
                }
            }
        }
    }
    scan_top_k(Isa::Scalar, &[], &[], 0, 3, &mut []);
}

#[test]
fn large_selections() {
    let noise = &mut Noise(5);
    let sums: Vec<u16> = (0..100_003)
        .map(|_| (0..8).map(|i| (noise.next() >> i & 255) as u16).sum())
        .collect();
    for k in [1, 10, 100, 1000, 5000, 20_000, 50_000, 70_000, 100_002] {
        check_selection(&sums, k, 1000).unwrap();
    }
    check_selection(&vec![9; 3_000_000], 12, 9).unwrap();
}

#[test]
fn tables_that_are_flat_or_not_finite() {
    let mut lut = Lut::new(2);
    lut.quantize(&[1.5; 32]).unwrap();
    assert_eq!(lut.scale(), 0.0);
    assert_eq!(lut.score(123), 3.0);
    assert_eq!(lut.sum_for(3.0), 0);
    assert_eq!(lut.sum_for(3.1), u16::MAX);

    let mut table = [0.0; 32];
    table[20] = f32::NAN;
    let error = LutError::NotFinite {
        subquantizer: 1,
        entry: 4,
    };
    assert_eq!(lut.quantize(&table), Err(error));
    table[20] = f32::NEG_INFINITY;
    assert_eq!(lut.quantize(&table), Err(error));
    table[20] = f32::MAX;
    table[21] = f32::MIN;
    assert_eq!(lut.quantize(&table), Err(LutError::Overflow));
    assert_eq!(lut.score(0), 3.0, "a refused table changes nothing");

    table[20] = 1e-40;
    table[21] = 0.0;
    lut.quantize(&table).unwrap();
    assert!(lut.error_bound() >= 1e-40);
}

#[test]
fn tables_in_order_are_tables() {
    let noise = &mut Noise(6);
    for m in [2, 18, 256] {
        let (mut any, mut sorted) = (Lut::new(m), Lut::new(m));
        for flat in [false, true] {
            let rows = (0..m).flat_map(|i| {
                let mut number = || (noise.next() % 2001) as f32 / 1000.0 - 1.0;
                let (zero, step) = (number(), if flat || i == 1 { 0.0 } else { number() });
                (0..CENTROIDS).map(move |level| zero + step * level as f32)
            });
            let mut table: Vec<f32> = rows.collect();
            any.quantize(&table).unwrap();
            sorted.quantize_sorted(&table).unwrap();
            for lut in [&any, &sorted] {
                assert_eq!((lut.scale(), lut.bias()), (any.scale(), any.bias()));
                assert_eq!(lut.error_bound(), any.error_bound());
            }
            for i in 0..m * CENTROIDS {
                let entry = |lut: &Lut| lut.entry(i / CENTROIDS, i % CENTROIDS);
                assert_eq!(entry(&any), entry(&sorted));
            }
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                table[CENTROIDS + 3] = bad;
                assert_eq!(any.quantize(&table), sorted.quantize_sorted(&table));
            }
        }
    }
}

#[test]
fn names_are_read_back() {
    for isa in Isa::ALL {
        assert_eq!(isa.to_string(), isa.name());
    }
    assert!(Isa::available().contains(&Isa::Scalar));
    assert!(isas().contains(&Isa::detect()));
}
