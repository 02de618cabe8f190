//! Portable kernels: the reference for all others.

use super::{Groups, Table};
use crate::GROUP;

pub(super) fn scan<const Q: usize>(tables: [&Table; Q], codes: Groups<'_>, outs: [&mut [u16]; Q]) {
    for (table, out) in tables.into_iter().zip(outs) {
        let pairs = table.pairs();
        let out = out.as_chunks_mut::<GROUP>().0;
        let groups = (0..codes.len(pairs.len())).map(|group| codes.at(group, pairs.len()));
        for (codes, out) in groups.zip(out) {
            // Sums of bytes of either subquantizer of the pairs, in their order
            // in memory.
            let (mut low, mut high) = ([0; 16], [0; 16]);
            for (codes, table) in codes.iter().zip(pairs) {
                for (i, code) in codes.iter().enumerate() {
                    let table = &table[i & 16..][..16];
                    low[i % 16] += u16::from(table[usize::from(code & 15)]);
                    high[i % 16] += u16::from(table[usize::from(code >> 4)]);
                }
            }
            for i in 0..8 {
                out[i] = low[2 * i];
                out[i + 8] = low[2 * i + 1];
                out[i + 16] = high[2 * i];
                out[i + 24] = high[2 * i + 1];
            }
        }
    }
}

pub(super) fn at_least(values: &[u16], threshold: u16, out: &mut Vec<u32>) {
    for (i, &value) in (0..).zip(values) {
        if value >= threshold {
            out.push(i);
        }
    }
}

pub(super) fn count_at_least(values: &[u16], threshold: u16) -> usize {
    values.iter().filter(|&&value| value >= threshold).count()
}

pub(super) fn fold_max(values: &[u16], fold: usize, out: &mut Vec<u16>) {
    for values in values.chunks(32 * fold) {
        let mut lanes = [0u16; 32];
        for values in values.chunks(32) {
            for (lane, &value) in lanes.iter_mut().zip(values) {
                *lane = value.max(*lane);
            }
        }
        out.extend_from_slice(&lanes);
    }
}
