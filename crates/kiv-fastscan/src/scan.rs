//! Sums of all keys of packed groups.

use crate::arch::{self, PAIR};
use crate::{GROUP, Isa, Lut, group_bytes};

/// Sums of one query for all keys of `packed`: `out[key]` is the sum of the
/// table's bytes at the key's codes. Keys that only fill up the last group get
/// the sum of code 0.
///
/// # Panics
///
/// Panics if `isa` is not [available](Isa::available), if `packed` is no whole
/// number of groups of the table's `m`, or if `out` has not 32 places per group.
pub fn scan(isa: Isa, lut: &Lut, packed: &[u8], out: &mut [u16]) {
    scan_many(isa, std::slice::from_ref(lut), packed, out);
}

/// Sums of several queries over the same keys, `outs` is `[n_luts, n_keys]`
/// row-major, `n_keys` 32 per group. Cheaper than as many [`scan`]s: codes are
/// loaded and split once for several queries.
///
/// # Panics
///
/// Panics if `isa` is not [available](Isa::available), if the tables differ in
/// `m`, if `packed` is no whole number of groups of that `m`, or if `outs` has
/// not 32 places per table and group.
pub fn scan_many(isa: Isa, luts: &[Lut], packed: &[u8], outs: &mut [u16]) {
    isa.assert_available();
    scan_any(isa, luts, packed, outs);
}

/// Codes that are scanned for all queries before the next: what leaves room for
/// tables and sums in the smallest L1 caches (32 KiB).
const BLOCK_BYTES: usize = 16 << 10;

/// As [`scan_many`], with a kernel that may not have passed its self-test.
pub(crate) fn scan_any(isa: Isa, luts: &[Lut], packed: &[u8], outs: &mut [u16]) {
    let Some(first) = luts.first() else {
        assert!(outs.is_empty(), "sums of no table were asked for");
        return;
    };
    let m = first.m();
    assert!(
        luts.iter().all(|lut| lut.m() == m),
        "tables must have the same m"
    );
    assert!(
        packed.len().is_multiple_of(group_bytes(m)),
        "packed codes must be whole groups"
    );
    let keys = packed.len() / group_bytes(m) * GROUP;
    assert_eq!(
        outs.len(),
        luts.len() * keys,
        "sums must have 32 places per group and table"
    );
    if keys == 0 {
        return;
    }
    let codes = packed.as_chunks::<PAIR>().0;
    if let [lut] = luts {
        return arch::scan(isa, [lut.table()], codes, [outs]);
    }
    let groups = (BLOCK_BYTES / group_bytes(m)).max(1);
    for (block, codes) in codes.chunks(groups * m / 2).enumerate() {
        let start = block * groups * GROUP;
        let end = start + codes.len() / (m / 2) * GROUP;
        let mut outs = outs.chunks_exact_mut(keys).map(|row| &mut row[start..end]);
        let mut luts = luts.iter().map(Lut::table);
        let mut next = || luts.next().zip(outs.next());
        loop {
            match (next(), next(), next()) {
                (Some(a), Some(b), Some(c)) => {
                    arch::scan(isa, [a.0, b.0, c.0], codes, [a.1, b.1, c.1]);
                }
                (Some(a), Some(b), None) => arch::scan(isa, [a.0, b.0], codes, [a.1, b.1]),
                (Some(a), None, None) => arch::scan(isa, [a.0], codes, [a.1]),
                _ => break,
            }
        }
    }
}
