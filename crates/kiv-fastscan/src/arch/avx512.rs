//! AVX-512: 64 bytes at a time, which are 32 keys of two pairs of
//! subquantizers.

use std::arch::x86_64::{
    __m128i, __m512i, _MM_HINT_T0, _mm_add_epi16, _mm_prefetch, _mm_slli_epi16, _mm_storeu_si128,
    _mm_sub_epi16, _mm256_add_epi16, _mm256_castsi256_si128, _mm256_extracti128_si256,
    _mm512_add_epi8, _mm512_add_epi16, _mm512_add_epi32, _mm512_and_si512, _mm512_castsi512_si256,
    _mm512_cmpge_epu16_mask, _mm512_extracti64x4_epi64, _mm512_loadu_si512,
    _mm512_maskz_compress_epi32, _mm512_maskz_loadu_epi64, _mm512_max_epu16, _mm512_set1_epi8,
    _mm512_set1_epi16, _mm512_set1_epi32, _mm512_setr_epi32, _mm512_setzero_si512,
    _mm512_shuffle_epi8, _mm512_srli_epi16, _mm512_storeu_si512,
};

use super::{Groups, Pair, Quad, Table, generic};
use crate::GROUP;

#[target_feature(enable = "avx512f,avx512bw,avx2")]
pub(super) fn scan<const Q: usize>(tables: [&Table; Q], codes: Groups<'_>, outs: [&mut [u16]; Q]) {
    match tables.iter().map(|table| table.summable()).min() {
        Some(4..) => scan_summing::<Q, 4>(tables, codes, outs),
        Some(2..) => scan_summing::<Q, 2>(tables, codes, outs),
        _ => scan_summing::<Q, 1>(tables, codes, outs),
    }
}

/// Sums of bytes in 16 bits: of all as if they were 16-bit numbers, modulo
/// 2^16, and of those at odd places.
#[derive(Clone, Copy)]
struct Sums {
    all: __m512i,
    odd: __m512i,
}

/// Adds the bytes of `N` quads of subquantizers before they are widened.
#[target_feature(enable = "avx512f,avx512bw,avx2")]
fn scan_summing<const Q: usize, const N: usize>(
    tables: [&Table; Q],
    codes: Groups<'_>,
    mut outs: [&mut [u16]; Q],
) {
    let pairs = tables[0].pairs().len();
    assert!(tables.iter().all(|table| table.pairs().len() == pairs));
    let tables = tables.map(|table| table.quads().as_ptr());
    let zero = _mm512_setzero_si512();
    let quads = pairs / 2;
    let whole = quads - quads % N;
    for group in 0..codes.len(pairs) {
        let ahead = codes.ahead(group, pairs);
        let codes = codes.at(group, pairs).as_ptr();
        // Per query, of low and of high nibbles.
        let mut sums = [[Sums {
            all: zero,
            odd: zero,
        }; 2]; Q];
        let mut quad = 0;
        while quad < whole {
            // SAFETY: `codes` has `pairs` pairs, each table half as many quads,
            // rounded up. `quad` and the `N - 1` after it are whole ones.
            unsafe { add::<Q, N, 0xff>(&mut sums, (codes, ahead), tables, quad) };
            quad += N;
        }
        while quad < quads {
            // SAFETY: as above, of one quad.
            unsafe { add::<Q, 1, 0xff>(&mut sums, (codes, ahead), tables, quad) };
            quad += 1;
        }
        if pairs % 2 == 1 {
            // SAFETY: only the half of the last quad that is there is read of
            // the codes; tables are filled up to whole quads.
            unsafe { add::<Q, 1, 0x0f>(&mut sums, (codes, ahead), tables, quads) };
        }
        for (sums, out) in sums.into_iter().zip(&mut outs) {
            let (out, _) = out[group * GROUP..][..GROUP].as_chunks_mut::<8>();
            for (half, sums) in sums.into_iter().enumerate() {
                let all = add_lanes(sums.all);
                let odd = add_lanes(sums.odd);
                let even = _mm_sub_epi16(all, _mm_slli_epi16(odd, 8));
                store(even, &mut out[2 * half]);
                store(odd, &mut out[2 * half + 1]);
            }
        }
    }
}

/// Adds what `N` quads of subquantizers give, from the `first` on; of their
/// codes only the 8-byte words in `MASK`. `ahead` is prefetched.
///
/// # Safety
///
/// `codes` must be valid for reads of these words, and each of `tables` for
/// reads of `first + N` quads.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx2")]
unsafe fn add<const Q: usize, const N: usize, const MASK: u8>(
    sums: &mut [[Sums; 2]; Q],
    (codes, ahead): (*const Pair, *const Pair),
    tables: [*const Quad; Q],
    first: usize,
) {
    let nibble = _mm512_set1_epi8(15);
    let mut bytes = [[_mm512_setzero_si512(); 2]; Q];
    for i in 0..N {
        let ahead = ahead.wrapping_add(2 * (first + i));
        // SAFETY: prefetching never faults, wherever it points to. It is safe to
        // call in later versions of Rust only.
        #[allow(unused_unsafe)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        }
        // SAFETY: the caller vouches for the words of this quad.
        let codes = unsafe { _mm512_maskz_loadu_epi64(MASK, codes.add(2 * (first + i)).cast()) };
        let low = _mm512_and_si512(codes, nibble);
        let high = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
        for (bytes, table) in bytes.iter_mut().zip(tables) {
            // SAFETY: the caller vouches for this quad.
            let table = unsafe { _mm512_loadu_si512(table.add(first + i).cast()) };
            bytes[0] = _mm512_add_epi8(bytes[0], _mm512_shuffle_epi8(table, low));
            bytes[1] = _mm512_add_epi8(bytes[1], _mm512_shuffle_epi8(table, high));
        }
    }
    for (sums, bytes) in sums.iter_mut().zip(bytes) {
        for (sums, bytes) in sums.iter_mut().zip(bytes) {
            sums.all = _mm512_add_epi16(sums.all, bytes);
            sums.odd = _mm512_add_epi16(sums.odd, _mm512_srli_epi16(bytes, 8));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx2")]
fn add_lanes(sums: __m512i) -> __m128i {
    let (low, high) = (
        _mm512_castsi512_si256(sums),
        _mm512_extracti64x4_epi64(sums, 1),
    );
    let sums = _mm256_add_epi16(low, high);
    _mm_add_epi16(
        _mm256_castsi256_si128(sums),
        _mm256_extracti128_si256(sums, 1),
    )
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(values: __m128i, to: &mut [u16; 8]) {
    // SAFETY: writes the 16 bytes that are borrowed; no alignment is needed.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), values) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(values: &[u16; 32]) -> __m512i {
    // SAFETY: reads the 64 bytes that are borrowed; no alignment is needed.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,popcnt")]
pub(super) fn at_least(values: &[u16], threshold: u16, out: &mut Vec<u32>) {
    let (chunks, rest) = values.as_chunks::<32>();
    let limit = _mm512_set1_epi16(threshold.cast_signed());
    let places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let mut base = 0u32;
    for chunk in chunks {
        let mask = _mm512_cmpge_epu16_mask(load(chunk), limit);
        if mask != 0 {
            // Stores are of 16 places, of which the last may be the 32nd.
            if out.capacity() - out.len() < 32 + 16 {
                out.reserve(32 + 16);
            }
            let mut len = out.len();
            #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
            for (half, mask) in [(0, mask as u16), (16, (mask >> 16) as u16)] {
                let first = _mm512_set1_epi32((base + half).cast_signed());
                let found = _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(places, first));
                // SAFETY: at most 16 places were taken before, so that 16 more
                // are within the 48 that there is room for.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(len).cast(), found) };
                len += mask.count_ones() as usize;
            }
            // SAFETY: all places up to `len` have been written, within the
            // capacity.
            unsafe { out.set_len(len) };
        }
        base += 32;
    }
    for (i, &value) in (base..).zip(rest) {
        if value >= threshold {
            out.push(i);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,popcnt")]
pub(super) fn count_at_least(values: &[u16], threshold: u16) -> usize {
    let limit = _mm512_set1_epi16(threshold.cast_signed());
    let (chunks, rest) = values.as_chunks::<32>();
    let mut count = 0;
    for chunk in chunks {
        count += _mm512_cmpge_epu16_mask(load(chunk), limit).count_ones() as usize;
    }
    count + generic::count_at_least(rest, threshold)
}

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn fold_max(values: &[u16], fold: usize, out: &mut Vec<u16>) {
    let (blocks, rest) = values.split_at(values.len() / (32 * fold) * (32 * fold));
    for block in blocks.chunks_exact(32 * fold) {
        let mut highest = _mm512_setzero_si512();
        for chunk in block.as_chunks::<32>().0 {
            highest = _mm512_max_epu16(highest, load(chunk));
        }
        let mut lanes = [0u16; 32];
        // SAFETY: writes the 64 bytes of `lanes`; no alignment is needed.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), highest) };
        out.extend_from_slice(&lanes);
    }
    generic::fold_max(rest, fold, out);
}
