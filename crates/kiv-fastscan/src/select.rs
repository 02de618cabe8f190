//! The best keys from their sums.

use std::cell::Cell;

use crate::{Isa, arch};

/// Appends to `out` the indices whose sums are at least `threshold`, ascending.
///
/// # Panics
///
/// Panics if `isa` is not [available](Isa::available), or if there are more
/// than `u32::MAX` sums.
pub fn at_least(isa: Isa, sums: &[u16], threshold: u16, out: &mut Vec<u32>) {
    isa.assert_available();
    assert!(u32::try_from(sums.len()).is_ok(), "indices are 32-bit");
    arch::at_least(isa, sums, threshold, out);
}

/// Appends to `out` the indices of the `k` highest sums in ascending order of
/// index; all of them if there are no more than `k`. Of equal sums the lower
/// index is taken.
///
/// Takes time in proportion to the number of sums: no sorting. Sums are first
/// folded to maxima of a few each. The `k`-th highest maximum is no more than
/// the `k`-th highest sum, and not much less while `k` is a small part, so that
/// few more than `k` candidates remain, among which the exact threshold is
/// bisected.
///
/// # Panics
///
/// Panics if `isa` is not [available](Isa::available), or if there are more
/// than `u32::MAX` sums.
///
/// # Allocates
///
/// Scratch of at most one value per four sums is kept per thread. `out` may
/// grow by more than `k`.
pub fn top_k(isa: Isa, sums: &[u16], k: usize, out: &mut Vec<u32>) {
    thread_local! {
        static SCRATCH: Cell<Vec<u16>> = const { Cell::new(Vec::new()) };
    }
    isa.assert_available();
    assert!(u32::try_from(sums.len()).is_ok(), "indices are 32-bit");
    if k == 0 {
        return;
    }
    if k >= sums.len() {
        #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
        out.extend(0..sums.len() as u32);
        return;
    }
    let mut scratch = SCRATCH.take();
    select(isa, sums, k, &mut scratch, out);
    SCRATCH.set(scratch);
}

/// The most values that are folded into one maximum.
const MAX_FOLD: usize = 32;

fn select(isa: Isa, sums: &[u16], k: usize, scratch: &mut Vec<u16>, out: &mut Vec<u32>) {
    // No more than the k-th highest sum. At least twice as many maxima as wanted
    // keys bring it close.
    let fold = (sums.len() / (2 * k)).min(MAX_FOLD);
    let (threshold, highest) = if fold >= 2 && sums.len() > 256 {
        scratch.clear();
        arch::fold_max(isa, sums, fold, scratch);
        let highest = highest_of(scratch);
        (kth(isa, scratch, k, k + k / 16, 0, highest), highest)
    } else {
        let highest = highest_of(sums);
        (kth(isa, sums, k, k, 0, highest), highest)
    };

    let start = out.len();
    arch::at_least(isa, sums, threshold, out);
    let candidates = out.len() - start;
    if candidates == k {
        return;
    }
    scratch.clear();
    scratch.extend(out[start..].iter().map(|&i| sums[i as usize]));
    let threshold = kth(isa, scratch, k, k, threshold, highest);
    let above = threshold
        .checked_add(1)
        .map_or(0, |next| arch::count_at_least(isa, scratch, next));
    let mut equal = k - above;

    let mut kept = start;
    for (i, &sum) in scratch.iter().enumerate() {
        let tie = sum == threshold && equal > 0;
        equal -= usize::from(tie);
        out[kept] = out[start + i];
        kept += usize::from(tie || sum > threshold);
    }
    out.truncate(kept);
}

fn highest_of(values: &[u16]) -> u16 {
    values.iter().fold(0, |high, &value| high.max(value))
}

/// Bisects for the `k`-th highest of `values`, known to be within `low..=high`:
/// the highest `t` of which at least `k` values are `>= t`. Stops early at a `t`
/// that between `k` and `enough` values reach.
fn kth(isa: Isa, values: &[u16], k: usize, enough: usize, mut low: u16, mut high: u16) -> u16 {
    while low < high {
        let middle = high - (high - low) / 2;
        let count = arch::count_at_least(isa, values, middle);
        if count >= k {
            low = middle;
            if count <= enough {
                break;
            }
        } else {
            high = middle - 1;
        }
    }
    low
}
