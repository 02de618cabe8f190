//! Sums of all keys of packed groups.

use crate::arch::{self, Groups, PAIR};
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

/// As [`scan_many`], of the listed groups of `packed` only, in their order:
/// `outs` is `[n_luts, 32 * groups.len()]`. The next ones are prefetched while one
/// is scanned, so that they may lie anywhere.
///
/// # Panics
///
/// As [`scan_many`], or if there is no such group.
pub fn scan_groups(isa: Isa, luts: &[Lut], packed: &[u8], groups: &[u32], outs: &mut [u16]) {
    isa.assert_available();
    scan_these(isa, luts, packed, Some(groups), outs);
}

/// Asks for memory that will be read soon, where the architecture can. Rows that are far
/// apart arrive together then, and not one after another.
pub fn prefetch(bytes: &[u8]) {
    arch::prefetch(bytes);
}

/// Codes that are scanned for all queries before the next: what leaves room for
/// tables and sums in the smallest L1 caches (32 KiB).
const BLOCK_BYTES: usize = 16 << 10;

/// As [`scan_many`], with a kernel that may not have passed its self-test.
pub(crate) fn scan_any(isa: Isa, luts: &[Lut], packed: &[u8], outs: &mut [u16]) {
    scan_these(isa, luts, packed, None, outs);
}

fn scan_these(isa: Isa, luts: &[Lut], packed: &[u8], listed: Option<&[u32]>, outs: &mut [u16]) {
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
    let groups = Groups {
        codes: packed.as_chunks::<PAIR>().0,
        listed,
    };
    let pairs = m / 2;
    let n = groups.len(pairs);
    assert_eq!(
        outs.len(),
        luts.len() * n * GROUP,
        "sums must have 32 places per group and table"
    );
    if n == 0 {
        return;
    }
    if let [lut] = luts {
        return arch::scan(isa, [lut.table()], groups, [outs]);
    }
    let at_once = (BLOCK_BYTES / group_bytes(m)).max(1);
    for start in (0..n).step_by(at_once) {
        let end = (start + at_once).min(n);
        let codes = groups.part(pairs, start..end);
        let mut outs = outs
            .chunks_exact_mut(n * GROUP)
            .map(|row| &mut row[start * GROUP..end * GROUP]);
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
