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
/// Scratch of about four values per wanted key, at most one per sum, is kept per
/// thread. `out` may grow by more than `k`.
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

/// Maxima per wanted key, so that their `k`-th highest is close to that of the
/// sums.
const MAXIMA: usize = 4;

fn select(isa: Isa, sums: &[u16], k: usize, scratch: &mut Vec<u16>, out: &mut Vec<u32>) {
    // No more than the k-th highest sum.
    let fold = sums.len() / (MAXIMA * k);
    let threshold = if fold >= 2 && sums.len() > 256 {
        scratch.clear();
        arch::fold_max(isa, sums, fold, scratch);
        kth(isa, scratch, k, k + k / 16)
    } else {
        kth(isa, sums, k, k)
    };

    let start = out.len();
    arch::at_least(isa, sums, threshold, out);
    let found = &mut out[start..];
    if found.len() == k {
        return;
    }
    scratch.clear();
    scratch.extend(found.iter().map(|&i| sums[i as usize]));
    let threshold = kth(isa, scratch, k, k);
    let surplus = arch::count_at_least(isa, scratch, threshold) - k;

    // Of those that equal the threshold the last ones are too many: they begin
    // at `cut`.
    let mut cut = scratch.len();
    let mut ties = 0;
    while ties < surplus {
        cut -= 1;
        ties += usize::from(scratch[cut] == threshold);
    }
    let mut kept = 0;
    for (i, &sum) in scratch[..cut].iter().enumerate() {
        found[kept] = found[i];
        kept += usize::from(sum >= threshold);
    }
    for (i, &sum) in (cut..).zip(&scratch[cut..]) {
        found[kept] = found[i];
        kept += usize::from(sum > threshold);
    }
    out.truncate(start + k);
}

/// The `k`-th highest of `values`: the highest `t` of which at least `k` values
/// are `>= t`. Stops early at a `t` that between `k` and `enough` values reach.
/// There must be at least `k` values, and `k` not 0.
fn kth(isa: Isa, values: &[u16], k: usize, enough: usize) -> u16 {
    let (mut low, mut high) = extent(values);
    // How many values reach `low`, and how many exceed `high`.
    let (mut reach_low, mut exceed_high) = (values.len(), 0);
    let mut guess = true;
    while low < high {
        // Every other time a guess as if values were spread evenly, otherwise
        // the middle, which is never a bad choice.
        let width = usize::from(high - low);
        let step = if guess {
            width * (reach_low - k) / (reach_low - exceed_high)
        } else {
            width / 2
        };
        guess = !guess;
        #[expect(clippy::cast_possible_truncation, reason = "at most `width`")]
        let probe = low + (step as u16).max(1);
        let reach = arch::count_at_least(isa, values, probe);
        if reach >= k {
            (low, reach_low) = (probe, reach);
            if reach <= enough {
                break;
            }
        } else {
            (high, exceed_high) = (probe - 1, reach);
        }
    }
    low
}

/// Lowest and highest.
fn extent(values: &[u16]) -> (u16, u16) {
    values
        .iter()
        .fold((u16::MAX, 0), |(low, high), &x| (low.min(x), high.max(x)))
}
