//! AVX2: 32 bytes at a time, which are 32 keys of one subquantizer pair.

use std::arch::x86_64::{
    __m128i, __m256i, _MM_HINT_T0, _mm_add_epi16, _mm_loadl_epi64, _mm_prefetch, _mm_slli_epi16,
    _mm_storeu_si128, _mm_sub_epi16, _mm256_add_epi8, _mm256_add_epi16, _mm256_add_epi32,
    _mm256_and_si256, _mm256_blend_epi16, _mm256_castsi256_si128, _mm256_cmpeq_epi16,
    _mm256_cvtepu8_epi32, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_max_epu16,
    _mm256_movemask_epi8, _mm256_packs_epi16, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi16,
    _mm256_srli_epi32, _mm256_storeu_si256, _mm256_sub_epi16,
};

use super::{Groups, Pair, Table, generic};
use crate::GROUP;

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &Pair) -> __m256i {
    // SAFETY: reads the 32 bytes that are borrowed; no alignment is needed.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(values: __m128i, to: &mut [u16; 8]) {
    // SAFETY: writes the 16 bytes that are borrowed; no alignment is needed.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), values) }
}

#[target_feature(enable = "avx2")]
pub(super) fn scan<const Q: usize>(tables: [&Table; Q], codes: Groups<'_>, outs: [&mut [u16]; Q]) {
    match tables.iter().map(|table| table.summable()).min() {
        Some(4..) => scan_summing::<Q, 4>(tables, codes, outs),
        Some(2..) => scan_summing::<Q, 2>(tables, codes, outs),
        _ => scan_summing::<Q, 1>(tables, codes, outs),
    }
}

/// Adds the bytes of `N` pairs of subquantizers before they are widened.
#[target_feature(enable = "avx2")]
fn scan_summing<const Q: usize, const N: usize>(
    tables: [&Table; Q],
    codes: Groups<'_>,
    mut outs: [&mut [u16]; Q],
) {
    let pairs = tables[0].pairs().len();
    assert!(tables.iter().all(|table| table.pairs().len() == pairs));
    let tables = tables.map(|table| table.pairs().as_ptr());
    for group in 0..codes.len(pairs) {
        let ahead = codes.ahead(group, pairs);
        let codes = (codes.at(group, pairs).as_ptr(), ahead);
        // Registers suffice for one query of both nibbles, or for three queries
        // of one. Loading codes twice is the lesser evil.
        //
        // SAFETY: `codes` and each of the tables are of `pairs` pairs.
        unsafe {
            if Q == 1 {
                let sums = sum::<Q, N, 2, 0>(codes, tables, pairs);
                store_sums::<Q, 2, 0>(sums, group, &mut outs);
            } else {
                let sums = sum::<Q, N, 1, 0>(codes, tables, pairs);
                store_sums::<Q, 1, 0>(sums, group, &mut outs);
                let sums = sum::<Q, N, 1, 1>(codes, tables, pairs);
                store_sums::<Q, 1, 1>(sums, group, &mut outs);
            }
        }
    }
}

/// Sums of bytes in 16 bits: of all as if they were 16-bit numbers, modulo
/// 2^16, and of those at odd places.
#[derive(Clone, Copy)]
struct Sums {
    all: __m256i,
    odd: __m256i,
}

/// Per query the sums of `H` halves of a group, from `FIRST` on: 0 is the keys
/// in low nibbles, 1 those in high ones.
///
/// # Safety
///
/// `codes.0` and each of `tables` must be valid for reads of `pairs` pairs.
/// `codes.1` is prefetched.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn sum<const Q: usize, const N: usize, const H: usize, const FIRST: usize>(
    codes: (*const Pair, *const Pair),
    tables: [*const Pair; Q],
    pairs: usize,
) -> [[Sums; H]; Q] {
    let zero = _mm256_setzero_si256();
    let mut sums = [[Sums {
        all: zero,
        odd: zero,
    }; H]; Q];
    let whole = pairs - pairs % N;
    let mut pair = 0;
    while pair < whole {
        // SAFETY: `pair` and the `N - 1` after it are below `pairs`.
        unsafe { add::<Q, N, H, FIRST>(&mut sums, codes, tables, pair) };
        pair += N;
    }
    while pair < pairs {
        // SAFETY: `pair` is below `pairs`.
        unsafe { add::<Q, 1, H, FIRST>(&mut sums, codes, tables, pair) };
        pair += 1;
    }
    sums
}

/// Adds what `N` pairs of subquantizers give, from the `first` on.
///
/// # Safety
///
/// `codes` and each of `tables` must be valid for reads of `first + N` pairs.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add<const Q: usize, const N: usize, const H: usize, const FIRST: usize>(
    sums: &mut [[Sums; H]; Q],
    (codes, ahead): (*const Pair, *const Pair),
    tables: [*const Pair; Q],
    first: usize,
) {
    let nibble = _mm256_set1_epi8(15);
    if FIRST == 0 {
        // A line of codes is 64 bytes: two pairs. It may be behind their end.
        for i in (0..N).step_by(2) {
            let ahead = ahead.wrapping_add(first + i);
            // SAFETY: prefetching never faults, wherever it points to. It is safe to
            // call in later versions of Rust only.
            #[allow(unused_unsafe)]
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            }
        }
    }
    let mut bytes = [[_mm256_setzero_si256(); H]; Q];
    for i in 0..N {
        // SAFETY: the caller vouches for this pair.
        let codes = load(unsafe { &*codes.add(first + i) });
        let mut halves = [codes; H];
        for (half, nibbles) in (FIRST..).zip(&mut halves) {
            if half == 1 {
                *nibbles = _mm256_srli_epi16(codes, 4);
            }
            *nibbles = _mm256_and_si256(*nibbles, nibble);
        }
        for q in 0..Q {
            // SAFETY: as above.
            let table = load(unsafe { &*tables[q].add(first + i) });
            for half in 0..H {
                let found = _mm256_shuffle_epi8(table, halves[half]);
                bytes[q][half] = _mm256_add_epi8(bytes[q][half], found);
            }
        }
    }
    for q in 0..Q {
        for half in 0..H {
            let (sums, bytes) = (&mut sums[q][half], bytes[q][half]);
            sums.all = _mm256_add_epi16(sums.all, bytes);
            sums.odd = _mm256_add_epi16(sums.odd, _mm256_srli_epi16(bytes, 8));
        }
    }
}

/// Stores what `sum` found of a group.
#[inline]
#[target_feature(enable = "avx2")]
fn store_sums<const Q: usize, const H: usize, const FIRST: usize>(
    sums: [[Sums; H]; Q],
    group: usize,
    outs: &mut [&mut [u16]; Q],
) {
    for (sums, out) in sums.into_iter().zip(outs) {
        let (out, _) = out[group * GROUP + FIRST * 16..][..H * 16].as_chunks_mut::<8>();
        for half in 0..H {
            let all = add_lanes(sums[half].all);
            let odd = add_lanes(sums[half].odd);
            let even = _mm_sub_epi16(all, _mm_slli_epi16(odd, 8));
            store(even, &mut out[2 * half]);
            store(odd, &mut out[2 * half + 1]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_lanes(sums: __m256i) -> __m128i {
    _mm_add_epi16(
        _mm256_castsi256_si128(sums),
        _mm256_extracti128_si256(sums, 1),
    )
}

/// Of every byte the places of its bits that are set, then zeros.
static PLACES: [[u8; 8]; 256] = {
    let mut places = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut bit, mut n) = (0, 0);
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                places[byte][n] = bit;
                n += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    places
};

/// All bits of the lanes whose values are `>= limit`.
#[inline]
#[target_feature(enable = "avx2")]
fn reach(values: __m256i, limit: __m256i) -> __m256i {
    _mm256_cmpeq_epi16(_mm256_max_epu16(values, limit), values)
}

#[inline]
#[target_feature(enable = "avx2")]
fn halves(values: &[u16; 32]) -> [__m256i; 2] {
    // SAFETY: reads the 64 bytes that are borrowed; no alignment is needed.
    unsafe {
        let from = values.as_ptr().cast::<__m256i>();
        [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))]
    }
}

/// A bit per value that is `>= limit`.
#[inline]
#[target_feature(enable = "avx2")]
fn mask(values: &[u16; 32], limit: __m256i) -> u32 {
    let [a, b] = halves(values);
    let bytes = _mm256_packs_epi16(reach(a, limit), reach(b, limit));
    _mm256_movemask_epi8(bytes).cast_unsigned()
}

/// Puts the bits of a `mask` in order: packing works within lanes, so that bytes
/// come as a, b, a, b.
#[inline]
fn in_order(mask: u32) -> u32 {
    mask & 0xff00_00ff | (mask & 0xff00) << 8 | mask >> 8 & 0xff00
}

#[target_feature(enable = "avx2,popcnt")]
pub(super) fn at_least(values: &[u16], threshold: u16, out: &mut Vec<u32>) {
    let limit = _mm256_set1_epi16(threshold.cast_signed());
    let mut base = 0u32;
    let (chunks, rest) = values.as_chunks::<32>();
    for chunk in chunks {
        let mask = mask(chunk, limit);
        if mask != 0 {
            push_bits(in_order(mask), base, out);
        }
        base += 32;
    }
    for (i, &value) in (base..).zip(rest) {
        if value >= threshold {
            out.push(i);
        }
    }
}

/// Appends the places of the bits of `mask` that are set, added to `base`.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
fn push_bits(mut mask: u32, base: u32, out: &mut Vec<u32>) {
    // A store writes 8 places, of which the last may be the 32nd.
    if out.capacity() - out.len() < 32 + 8 {
        out.reserve(32 + 8);
    }
    let mut len = out.len();
    let to = out.as_mut_ptr();
    let count = mask.count_ones();
    if count <= FEW {
        // Without branches, which would be guessed wrong.
        for i in 0..FEW as usize {
            // SAFETY: there is room for 40 places.
            unsafe {
                to.add(len + i)
                    .write(base.wrapping_add(mask.trailing_zeros()))
            };
            mask &= mask.wrapping_sub(1);
        }
        len += count as usize;
    } else {
        for (i, byte) in (0..).zip(mask.to_le_bytes()) {
            // SAFETY: reads 8 bytes of the table's row.
            let places = unsafe { _mm_loadl_epi64(PLACES[usize::from(byte)].as_ptr().cast()) };
            let places = _mm256_cvtepu8_epi32(places);
            let first = _mm256_set1_epi32((base + 8 * i).cast_signed());
            let places = _mm256_add_epi32(places, first);
            // SAFETY: at most 24 places were taken before, so that 8 more are
            // within the 40 that there is room for.
            unsafe { _mm256_storeu_si256(to.add(len).cast(), places) };
            len += byte.count_ones() as usize;
        }
    }
    // SAFETY: all places up to `len` have been written, within the capacity.
    unsafe { out.set_len(len) };
}

/// So many places are written one by one.
const FEW: u32 = 3;

#[target_feature(enable = "avx2,popcnt")]
pub(super) fn count_at_least(values: &[u16], threshold: u16) -> usize {
    let limit = _mm256_set1_epi16(threshold.cast_signed());
    let mut count = 0;
    // So many that no lane of a count overflows.
    for values in values.chunks(32 * 65_535) {
        let (chunks, rest) = values.as_chunks::<32>();
        let mut counts = [_mm256_setzero_si256(); 2];
        for chunk in chunks {
            let [a, b] = halves(chunk);
            counts[0] = _mm256_sub_epi16(counts[0], reach(a, limit));
            counts[1] = _mm256_sub_epi16(counts[1], reach(b, limit));
        }
        for counts in counts {
            // Lanes are unsigned: added as halves to 32 bits.
            let even = _mm256_blend_epi16(counts, _mm256_setzero_si256(), 0xaa);
            let sums = _mm256_add_epi32(even, _mm256_srli_epi32(counts, 16));
            let mut lanes = [0u32; 8];
            // SAFETY: writes 32 bytes that are borrowed; no alignment is needed.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
            count += lanes.iter().map(|&n| n as usize).sum::<usize>();
        }
        count += generic::count_at_least(rest, threshold);
    }
    count
}

#[target_feature(enable = "avx2")]
pub(super) fn fold_max(values: &[u16], fold: usize, out: &mut Vec<u16>) {
    let (blocks, rest) = values.split_at(values.len() / (32 * fold) * (32 * fold));
    for block in blocks.chunks_exact(32 * fold) {
        let mut highest = [_mm256_setzero_si256(); 2];
        for chunk in block.as_chunks::<32>().0 {
            let [a, b] = halves(chunk);
            highest[0] = _mm256_max_epu16(highest[0], a);
            highest[1] = _mm256_max_epu16(highest[1], b);
        }
        let mut lanes = [0u16; 32];
        let to = lanes.as_mut_ptr().cast::<__m256i>();
        // SAFETY: writes the 64 bytes of `lanes`; no alignment is needed.
        unsafe {
            _mm256_storeu_si256(to, highest[0]);
            _mm256_storeu_si256(to.add(1), highest[1]);
        }
        out.extend_from_slice(&lanes);
    }
    generic::fold_max(rest, fold, out);
}
