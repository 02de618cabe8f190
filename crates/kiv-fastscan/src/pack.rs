//! The order of codes in memory.

use crate::{CENTROIDS, GROUP, check_m};

/// Bytes of a packed group: `m` subquantizers, 4 bits each, of 32 keys.
#[must_use]
pub const fn group_bytes(m: usize) -> usize {
    16 * m
}

/// Byte, within a subquantizer's 16, that holds the code of the `key`-th key of
/// a group.
const fn byte_of(key: usize) -> usize {
    2 * (key % 8) + key % 16 / 8
}

/// Packs codes `[n, m]`, each below 16, and appends them to `out`: whole groups
/// of 32 keys, the last one filled up with code 0.
///
/// # Panics
///
/// Panics if `m` is odd or not within `2..=256`, if `codes` is no whole number
/// of rows, or if a code is above 15.
///
/// # Allocates
///
/// `out` grows by `group_bytes(m)` for every 32 keys begun.
pub fn pack(codes: &[u8], m: usize, out: &mut Vec<u8>) {
    check_m(m);
    assert!(
        codes.len().is_multiple_of(m),
        "codes must be whole rows of m"
    );
    let highest = codes.iter().fold(0, |high, &code| high.max(code));
    assert!(usize::from(highest) < CENTROIDS, "codes must be below 16");
    for group in codes.chunks(GROUP * m) {
        let start = out.len();
        out.resize(start + group_bytes(m), 0);
        let packed = &mut out[start..];
        for (key, row) in group.chunks_exact(m).enumerate() {
            let shift = 4 * (key / 16);
            for (run, &code) in packed.as_chunks_mut::<16>().0.iter_mut().zip(row) {
                run[byte_of(key)] |= code << shift;
            }
        }
    }
}

/// Reads the codes of the `key`-th key back from packed groups into `out`, `[m]`.
///
/// # Panics
///
/// Panics if `m` is odd or not within `2..=256`, if `packed` is too short to
/// hold the key, or if `out` is not of length `m`.
pub fn unpack_key(packed: &[u8], m: usize, key: usize, out: &mut [u8]) {
    check_m(m);
    assert_eq!(out.len(), m, "one key has m codes");
    let group = &packed[key / GROUP * group_bytes(m)..][..group_bytes(m)];
    let key = key % GROUP;
    let shift = 4 * (key / 16);
    for (code, run) in out.iter_mut().zip(group.as_chunks::<16>().0) {
        *code = run[byte_of(key)] >> shift & 15;
    }
}

/// One subquantizer's code of the `key`-th key of packed groups.
///
/// # Panics
///
/// Panics if `m` is odd or not within `2..=256`, if `packed` is too short to hold the key,
/// or if there is no such subquantizer.
#[must_use]
pub fn unpack_one(packed: &[u8], m: usize, key: usize, subquantizer: usize) -> u8 {
    check_m(m);
    let group = &packed[key / GROUP * group_bytes(m)..][..group_bytes(m)];
    let key = key % GROUP;
    group[subquantizer * 16 + byte_of(key)] >> (4 * (key / 16)) & 15
}
