//! Kernels: one algorithm, a thin layer per instruction set. The only place of
//! this crate with unsafe code: raw loads and stores, and the calls of functions
//! that need CPU features, which are checked for right there.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod generic;
#[cfg(target_arch = "aarch64")]
mod neon;

use crate::Isa;

/// Bytes of two subquantizers: their codes of a group, or their tables.
pub(crate) const PAIR: usize = 32;

/// How many bytes ahead codes are prefetched. The index of a sequence is read once
/// per token, so that it comes from far away.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 2048;

/// How many groups ahead, where they are scattered.
#[cfg(target_arch = "x86_64")]
const LISTED_AHEAD: usize = 4;

/// Codes or tables of two subquantizers, of 16 bytes each.
pub(crate) type Pair = [u8; PAIR];

/// A table `[m / 2]` of pairs, aligned and zero-padded to 64 bytes.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pairs: usize,
    /// The highest byte.
    highest: u8,
    quads: Vec<Quad>,
}

/// Tables of four subquantizers: a cache line, an AVX-512 register.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Quad([Pair; 2]);

impl Table {
    pub(crate) fn new(pairs: usize) -> Self {
        let quads = vec![Quad([[0; PAIR]; 2]); pairs.div_ceil(2)];
        Self {
            pairs,
            highest: 0,
            quads,
        }
    }

    pub(crate) fn pairs(&self) -> &[Pair] {
        // SAFETY: a `Quad` is two `Pair`s without padding (`repr(C)`, and 64
        // bytes is a multiple of the alignment), and `pairs` is at most twice
        // the number of quads: `new` makes it so and nothing changes it.
        unsafe { std::slice::from_raw_parts(self.quads.as_ptr().cast(), self.pairs) }
    }

    /// The same with a last pair of zeros if that makes whole quads.
    #[cfg(target_arch = "x86_64")]
    fn quads(&self) -> &[Quad] {
        &self.quads
    }

    /// How many entries can be added in a byte.
    pub(crate) fn summable(&self) -> u8 {
        255 / self.highest.max(1)
    }

    /// The bytes, to be written; none will be above `highest`.
    pub(crate) fn pairs_mut(&mut self, highest: u8) -> &mut [Pair] {
        self.highest = highest;
        // SAFETY: as in `pairs`; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.quads.as_mut_ptr().cast(), self.pairs) }
    }
}

/// Whether this CPU has the instructions.
pub(crate) fn cpu_has(isa: Isa) -> bool {
    match isa {
        Isa::Scalar => true,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt"),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("popcnt")
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
        #[allow(unreachable_patterns, reason = "depends on the architecture")]
        _ => false,
    }
}

/// Asks for memory that will be read soon, where the architecture can.
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching never faults, and what it points to is borrowed. It is safe
        // to call in later versions of Rust only.
        #[allow(unused_unsafe)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Calls the function of that name of an instruction set's module.
macro_rules! dispatch {
    ($isa:expr, $function:ident($($argument:expr),*)) => {{
        let isa = $isa;
        assert!(cpu_has(isa), "{isa} kernels need instructions that this CPU lacks");
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the instructions, as was just asserted.
            Isa::Avx2 => unsafe { avx2::$function($($argument),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { avx512::$function($($argument),*) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::Neon => unsafe { neon::$function($($argument),*) },
            _ => generic::$function($($argument),*),
        }
    }};
}

/// Groups that are scanned, of `codes` `[n, m / 2]`: all, or those listed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Groups<'a> {
    pub codes: &'a [Pair],
    pub listed: Option<&'a [u32]>,
}

impl<'a> Groups<'a> {
    /// How many, of so many pairs each.
    pub fn len(&self, pairs: usize) -> usize {
        self.listed.map_or(self.codes.len() / pairs, <[u32]>::len)
    }

    /// Some of them.
    pub fn part(&self, pairs: usize, range: std::ops::Range<usize>) -> Self {
        match self.listed {
            Some(listed) => Self {
                listed: Some(&listed[range]),
                ..*self
            },
            None => Self {
                codes: &self.codes[range.start * pairs..range.end * pairs],
                listed: None,
            },
        }
    }

    /// The codes of one.
    #[inline(always)]
    fn at(&self, group: usize, pairs: usize) -> &'a [Pair] {
        let group = match self.listed {
            Some(listed) => listed[group] as usize,
            None => group,
        };
        &self.codes[group * pairs..(group + 1) * pairs]
    }

    /// What will be read when this one is done and some more: an address, no
    /// promise that something is there.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn ahead(&self, group: usize, pairs: usize) -> *const Pair {
        let first = self.codes.as_ptr();
        match self.listed {
            Some(listed) => {
                let next = listed.get(group + LISTED_AHEAD).or(listed.last());
                first.wrapping_add(next.map_or(0, |next| *next as usize) * pairs)
            }
            None => first.wrapping_add(group * pairs).wrapping_byte_add(AHEAD),
        }
    }
}

/// Sums of `Q` queries, `outs` `[Q][32 * groups]`.
pub(crate) fn scan<const Q: usize>(
    isa: Isa,
    tables: [&Table; Q],
    codes: Groups<'_>,
    outs: [&mut [u16]; Q],
) {
    dispatch!(isa, scan(tables, codes, outs));
}

/// Appends the indices of the values that are `>= threshold`.
pub(crate) fn at_least(isa: Isa, values: &[u16], threshold: u16, out: &mut Vec<u32>) {
    dispatch!(isa, at_least(values, threshold, out));
}

/// How many values are `>= threshold`.
pub(crate) fn count_at_least(isa: Isa, values: &[u16], threshold: u16) -> usize {
    dispatch!(isa, count_at_least(values, threshold))
}

/// Appends maxima of `fold` values each: of every `32 * fold` the 32 maxima of
/// those whose indices are equal modulo 32. Where the last ones are missing 0
/// takes their place.
pub(crate) fn fold_max(isa: Isa, values: &[u16], fold: usize, out: &mut Vec<u16>) {
    dispatch!(isa, fold_max(values, fold, out));
}
