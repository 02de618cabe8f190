//! AVX-512: 64 bytes at a time, which are 32 keys of two subquantizer pairs.

use super::{Pair, Table, avx2};

#[target_feature(enable = "avx2,popcnt")]
pub(super) fn scan<const Q: usize>(tables: [&Table; Q], codes: &[Pair], outs: [&mut [u16]; Q]) {
    avx2::scan(tables, codes, outs);
}
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn at_least(values: &[u16], threshold: u16, out: &mut Vec<u32>) {
    avx2::at_least(values, threshold, out);
}
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn count_at_least(values: &[u16], threshold: u16) -> usize {
    avx2::count_at_least(values, threshold)
}
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn fold_max(values: &[u16], fold: usize, out: &mut Vec<u16>) {
    avx2::fold_max(values, fold, out);
}
