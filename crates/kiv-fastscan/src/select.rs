//! The best keys from their sums.

use std::cell::Cell;

use crate::scan::scan_any;
use crate::{GROUP, Isa, Lut, arch, group_bytes};

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
    isa.assert_available();
    assert!(u32::try_from(sums.len()).is_ok(), "indices are 32-bit");
    let mut scratch = Scratch::take();
    select(isa, sums, k, &mut scratch.values, out);
    scratch.put_back();
}

/// [`scan_many`](crate::scan_many) and [`top_k`] in one: appends to `outs[i]` the
/// indices of the `k` highest sums of `luts[i]` among the first `n_keys` keys,
/// as `top_k` does.
///
/// Sums do not leave the cache: keys are scanned in blocks, each for all queries,
/// and what a block has to offer that exceeds the `k`-th best so far is noted.
///
/// # Panics
///
/// Panics if `isa` is not [available](Isa::available), if the tables differ in
/// `m`, if `packed` is no whole number of groups of that `m` or holds less than
/// `n_keys` keys, if `outs` are not as many as `luts`, or if there are more than
/// `u32::MAX` keys.
///
/// # Allocates
///
/// Scratch of 4096 sums and at most 4096 and two values per wanted key, both per
/// query, is kept per thread. `outs` may grow by more than `k`.
pub fn scan_top_k(
    isa: Isa,
    luts: &[Lut],
    packed: &[u8],
    n_keys: usize,
    k: usize,
    outs: &mut [Vec<u32>],
) {
    isa.assert_available();
    assert_eq!(luts.len(), outs.len(), "every query has its place");
    let Some(m) = luts.first().map(Lut::m) else {
        return;
    };
    assert!(
        n_keys <= packed.len() / group_bytes(m) * GROUP,
        "fewer keys are packed"
    );
    assert!(u32::try_from(n_keys).is_ok(), "indices are 32-bit");
    let packed = &packed[..n_keys.div_ceil(GROUP) * group_bytes(m)];

    let mut scratch = Scratch::take();
    let Scratch { values, sums, best } = &mut scratch;
    best.resize_with(luts.len(), Best::default);
    for (best, out) in best.iter_mut().zip(&*outs) {
        best.begin(out.len());
    }
    for (block, codes) in packed.chunks(BLOCK / GROUP * group_bytes(m)).enumerate() {
        let base = block * BLOCK;
        let whole = codes.len() / group_bytes(m) * GROUP;
        sums.resize(luts.len() * whole, 0);
        scan_any(isa, luts, codes, sums);
        for ((best, out), sums) in best
            .iter_mut()
            .zip(&mut *outs)
            .zip(sums.chunks_exact(whole))
        {
            #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
            best.offer(
                isa,
                base as u32,
                &sums[..whole.min(n_keys - base)],
                k,
                values,
                out,
            );
        }
    }
    for (best, out) in best.iter_mut().zip(outs) {
        if best.values.len() > k {
            best.shrink(isa, k, out);
        }
    }
    scratch.put_back();
}

/// Keys per block of [`scan_top_k`].
const BLOCK: usize = 4096;

/// Buffers of a thread.
#[derive(Default)]
struct Scratch {
    values: Vec<u16>,
    sums: Vec<u16>,
    best: Vec<Best>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

impl Scratch {
    fn take() -> Self {
        SCRATCH.take()
    }

    fn put_back(self) {
        SCRATCH.set(self);
    }
}

/// The best keys so far of one query, or some more than wanted.
#[derive(Default)]
struct Best {
    /// Where they begin in the query's output, which has their indices.
    start: usize,
    /// Their sums.
    values: Vec<u16>,
    /// What a sum must reach to be of interest: none does if this is `None`.
    threshold: Option<u16>,
}

impl Best {
    fn begin(&mut self, start: usize) {
        self.start = start;
        self.values.clear();
        self.threshold = Some(0);
    }

    /// Takes what is good enough from the sums of keys `base` and on, all of
    /// them after those that were seen.
    fn offer(
        &mut self,
        isa: Isa,
        base: u32,
        sums: &[u16],
        k: usize,
        scratch: &mut Vec<u16>,
        out: &mut Vec<u32>,
    ) {
        let Some(threshold) = self.threshold else {
            return;
        };
        let seen = out.len();
        if self.values.len() < k {
            select(isa, sums, k, scratch, out);
        } else {
            arch::at_least(isa, sums, threshold, out);
        }
        let new = &mut out[seen..];
        self.values.extend(new.iter().map(|&i| sums[i as usize]));
        for i in new {
            *i += base;
        }
        let found = self.values.len();
        if found > k + k / 2 + 64 || (found >= k && seen - self.start < k) {
            self.shrink(isa, k, out);
        }
    }

    /// Keeps the best `k`, of which there are at least so many.
    fn shrink(&mut self, isa: Isa, k: usize, out: &mut Vec<u32>) {
        let reached = keep_best(isa, &mut out[self.start..], &mut self.values, k);
        out.truncate(self.start + k);
        // Of equal sums the earlier ones are better.
        self.threshold = reached.checked_add(1);
    }
}

/// Maxima per wanted key, so that their `k`-th highest is close to that of the
/// sums.
const MAXIMA: usize = 4;

/// Appends the best `k` or all, whatever is less.
fn select(isa: Isa, sums: &[u16], k: usize, scratch: &mut Vec<u16>, out: &mut Vec<u32>) {
    if k == 0 {
        return;
    }
    if k >= sums.len() {
        #[expect(clippy::cast_possible_truncation, reason = "asserted by callers")]
        out.extend(0..sums.len() as u32);
        return;
    }

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
    if found.len() > k {
        scratch.clear();
        scratch.extend(found.iter().map(|&i| sums[i as usize]));
        keep_best(isa, found, scratch, k);
        out.truncate(start + k);
    }
}

/// Moves the best `k` to the front of `found`, whose sums are `values`, and
/// leaves their `values` only. Returns a sum that all of them reach. `k` must be
/// neither 0 nor more than there are.
fn keep_best(isa: Isa, found: &mut [u32], values: &mut Vec<u16>, k: usize) -> u16 {
    let threshold = kth(isa, values, k, k);
    let surplus = arch::count_at_least(isa, values, threshold) - k;
    // Of those that equal the threshold the last ones are too many: they begin
    // at `cut`.
    let mut cut = values.len();
    let mut ties = 0;
    while ties < surplus {
        cut -= 1;
        ties += usize::from(values[cut] == threshold);
    }
    let end = values.len();
    let mut kept = 0;
    let mut keep = |places: std::ops::Range<usize>, least: u32| {
        for i in places {
            let value = values[i];
            found[kept] = found[i];
            values[kept] = value;
            kept += usize::from(u32::from(value) >= least);
        }
    };
    keep(0..cut, threshold.into());
    keep(cut..end, u32::from(threshold) + 1);
    values.truncate(k);
    threshold
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
