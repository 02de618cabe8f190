//! NEON: 16 bytes at a time, which are 32 keys of one subquantizer.

use std::arch::aarch64::{
    uint8x16_t, uint16x8_t, vaddlvq_u16, vaddq_u8, vaddw_high_u8, vaddw_u8, vandq_u8, vcgeq_u16,
    vdupq_n_u8, vdupq_n_u16, vget_low_u8, vld1q_u8, vld1q_u16, vmaxq_u16, vmaxvq_u16, vqtbl1q_u8,
    vshrq_n_u8, vst1q_u16, vsubq_u16, vuzp1q_u16, vuzp2q_u16,
};

use super::{Groups, Table, generic};
use crate::GROUP;

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: reads the 16 bytes that are borrowed; no alignment is needed.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(values: uint16x8_t, to: &mut [u16; 8]) {
    // SAFETY: writes the 16 bytes that are borrowed; no alignment is needed.
    unsafe { vst1q_u16(to.as_mut_ptr(), values) }
}

#[target_feature(enable = "neon")]
pub(super) fn scan<const Q: usize>(tables: [&Table; Q], codes: Groups<'_>, outs: [&mut [u16]; Q]) {
    match tables.iter().map(|table| table.summable()).min() {
        Some(4..) => scan_summing::<Q, 4>(tables, codes, outs),
        Some(2..) => scan_summing::<Q, 2>(tables, codes, outs),
        _ => scan_summing::<Q, 1>(tables, codes, outs),
    }
}

/// Adds the bytes of `N` subquantizers before they are widened.
#[target_feature(enable = "neon")]
fn scan_summing<const Q: usize, const N: usize>(
    tables: [&Table; Q],
    codes: Groups<'_>,
    mut outs: [&mut [u16]; Q],
) {
    let pairs = tables[0].pairs().len();
    assert!(tables.iter().all(|table| table.pairs().len() == pairs));
    let tables = tables.map(|table| table.pairs().as_flattened().as_ptr().cast::<[u8; 16]>());
    let m = 2 * pairs;
    let whole = m - m % N;
    for group in 0..codes.len(pairs) {
        let codes = codes.at(group, pairs).as_ptr().cast::<[u8; 16]>();
        // Per query, of low and of high nibbles, the first and last 8 bytes.
        let mut sums = [[[vdupq_n_u16(0); 2]; 2]; Q];
        let mut i = 0;
        while i < whole {
            // SAFETY: `codes` and each of the tables are `m` times 16 bytes.
            unsafe { add::<Q, N>(&mut sums, codes, tables, i) };
            i += N;
        }
        while i < m {
            // SAFETY: as above.
            unsafe { add::<Q, 1>(&mut sums, codes, tables, i) };
            i += 1;
        }
        for (sums, out) in sums.into_iter().zip(&mut outs) {
            let (out, _) = out[group * GROUP..][..GROUP].as_chunks_mut::<8>();
            for (half, [first, last]) in sums.into_iter().enumerate() {
                store(vuzp1q_u16(first, last), &mut out[2 * half]);
                store(vuzp2q_u16(first, last), &mut out[2 * half + 1]);
            }
        }
    }
}

/// Adds what `N` subquantizers give, from the `first` on.
///
/// # Safety
///
/// `codes` and each of `tables` must be valid for reads of `first + N` elements.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add<const Q: usize, const N: usize>(
    sums: &mut [[[uint16x8_t; 2]; 2]; Q],
    codes: *const [u8; 16],
    tables: [*const [u8; 16]; Q],
    first: usize,
) {
    let nibble = vdupq_n_u8(15);
    let mut bytes = [[vdupq_n_u8(0); 2]; Q];
    for i in 0..N {
        // SAFETY: the caller vouches for this element.
        let codes = load(unsafe { &*codes.add(first + i) });
        let low = vandq_u8(codes, nibble);
        let high = vshrq_n_u8(codes, 4);
        for (bytes, table) in bytes.iter_mut().zip(tables) {
            // SAFETY: as above.
            let table = load(unsafe { &*table.add(first + i) });
            bytes[0] = vaddq_u8(bytes[0], vqtbl1q_u8(table, low));
            bytes[1] = vaddq_u8(bytes[1], vqtbl1q_u8(table, high));
        }
    }
    for (sums, bytes) in sums.iter_mut().zip(bytes) {
        for (sums, bytes) in sums.iter_mut().zip(bytes) {
            sums[0] = vaddw_u8(sums[0], vget_low_u8(bytes));
            sums[1] = vaddw_high_u8(sums[1], bytes);
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn quarters(values: &[u16; 32]) -> [uint16x8_t; 4] {
    let from = values.as_ptr();
    // SAFETY: reads the 64 bytes that are borrowed; no alignment is needed.
    unsafe {
        [
            vld1q_u16(from),
            vld1q_u16(from.add(8)),
            vld1q_u16(from.add(16)),
            vld1q_u16(from.add(24)),
        ]
    }
}

#[target_feature(enable = "neon")]
pub(super) fn at_least(values: &[u16], threshold: u16, out: &mut Vec<u32>) {
    // Few values pass where this matters: most chunks are done with after their
    // maximum.
    let (chunks, rest) = values.as_chunks::<32>();
    let mut base = 0;
    for chunk in chunks {
        let [a, b, c, d] = quarters(chunk);
        if vmaxvq_u16(vmaxq_u16(vmaxq_u16(a, b), vmaxq_u16(c, d))) >= threshold {
            push(chunk, base, threshold, out);
        }
        base += 32;
    }
    push(rest, base, threshold, out);
}

/// Appends the places of up to 32 values that are `>= threshold`, added to
/// `base`.
fn push(values: &[u16], base: u32, threshold: u16, out: &mut Vec<u32>) {
    let mut places = [0; 32];
    let mut n = 0;
    for (i, &value) in (base..).zip(values) {
        places[n % 32] = i;
        n += usize::from(value >= threshold);
    }
    out.extend_from_slice(&places[..n]);
}

#[target_feature(enable = "neon")]
pub(super) fn count_at_least(values: &[u16], threshold: u16) -> usize {
    let limit = vdupq_n_u16(threshold);
    let mut count = 0;
    // So many that no lane of a count overflows.
    for values in values.chunks(32 * 65_535) {
        let (chunks, rest) = values.as_chunks::<32>();
        let mut counts = [vdupq_n_u16(0); 4];
        for chunk in chunks {
            for (counts, values) in counts.iter_mut().zip(quarters(chunk)) {
                *counts = vsubq_u16(*counts, vcgeq_u16(values, limit));
            }
        }
        count += counts
            .map(|lanes| vaddlvq_u16(lanes) as usize)
            .iter()
            .sum::<usize>();
        count += generic::count_at_least(rest, threshold);
    }
    count
}

#[target_feature(enable = "neon")]
pub(super) fn fold_max(values: &[u16], fold: usize, out: &mut Vec<u16>) {
    let (blocks, rest) = values.split_at(values.len() / (32 * fold) * (32 * fold));
    for block in blocks.chunks_exact(32 * fold) {
        let mut highest = [vdupq_n_u16(0); 4];
        for chunk in block.as_chunks::<32>().0 {
            for (highest, values) in highest.iter_mut().zip(quarters(chunk)) {
                *highest = vmaxq_u16(*highest, values);
            }
        }
        let mut lanes = [[0; 8]; 4];
        for (lanes, highest) in lanes.iter_mut().zip(highest) {
            store(highest, lanes);
        }
        out.extend_from_slice(lanes.as_flattened());
    }
    generic::fold_max(rest, fold, out);
}
