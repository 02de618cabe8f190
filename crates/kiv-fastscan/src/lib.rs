//! 4-bit product-quantization fast-scan: approximate inner products of a query
//! with very many keys, from tables held in SIMD registers.
//!
//! A key of `d` dimensions is cut into `m` pieces, and every piece is replaced
//! by the nearest of 16 centroids: 4 bits. A query meets every centroid once,
//! which makes a table `[m, 16]` of floats, and [`Lut`] rounds them to bytes. A
//! key's score is then the sum of `m` table entries. Sixteen bytes are one SIMD
//! register, so a byte shuffle looks up 16 keys (or 32, or 64) at a time.
//!
//! ```
//! use kiv_fastscan::{Isa, Lut, pack, scan, top_k};
//!
//! let m = 4; // subquantizers
//! let codes: Vec<u8> = (0..100 * m).map(|i| (i * 7 % 16) as u8).collect(); // [100, m]
//! let mut packed = Vec::new();
//! pack(&codes, m, &mut packed);
//!
//! let table: Vec<f32> = (0..m * 16).map(|i| (i as f32).sin()).collect(); // [m, 16]
//! let mut lut = Lut::new(m);
//! lut.quantize(&table)?;
//!
//! let isa = Isa::detect();
//! let mut sums = vec![0; 128]; // whole groups of 32
//! scan(isa, &lut, &packed, &mut sums);
//! let mut best = Vec::new();
//! top_k(isa, &sums[..100], 10, &mut best);
//! assert_eq!(best.len(), 10);
//!
//! // The integer sum stands for a float that is known within a bound.
//! let key = best[0] as usize;
//! let float: f32 = (0..m).map(|s| table[s * 16 + codes[key * m + s] as usize]).sum();
//! assert!((lut.score(sums[key]) - float).abs() <= lut.error_bound() + 1e-5);
//! # Ok::<(), kiv_fastscan::LutError>(())
//! ```
//!
//! # Layout of packed codes
//!
//! Keys are packed in groups of [`GROUP`]. A group is `m` runs of 16 bytes, one
//! per subquantizer: key `k` of the group is the low nibble (`k < 16`) or the
//! high one of byte `2 * (k % 8) + k % 16 / 8` of each run. That order lets
//! kernels add bytes as if they were 16-bit numbers: the bytes at odd places are
//! summed apart as well, and their share is taken out of the even ones at the
//! end, which leaves two registers of eight sums in order.
//!
//! # Instruction sets
//!
//! Every [`Isa`] gives the same sums, bit by bit, and the same selections.
//! [`Isa::detect`] checks vector kernels against the portable ones when it is
//! first asked for, and does without those that are wrong ([`Isa::rejected`]).
//! Unsafe code is in `src/arch` only.
//!
//! AVX2 is what kernels have been tuned on. Those for NEON and AVX-512 have
//! passed their tests in emulators (QEMU, Bochs), where nothing can be timed.
//!
//! # Choosing bytes
//!
//! Tables have 8 bits as in Faiss. [`Lut::with_highest`] makes coarser ones, of
//! which 2 or 4 entries are added before they are widened: a quarter less work
//! at 63, while codes of 4 bits err far more than steps of 1/63 do.
//!
//! # Sources
//!
//! The idea is of Fabien André, Anne-Marie Kermarrec and Nicolas Le Scouarnec:
//! "Cache locality is not enough: high-performance nearest neighbor search with
//! product quantization fast scan" (VLDB 2015) and "Quicker ADC: unlocking the
//! hidden potential of product quantization with SIMD" (IEEE TPAMI 2021). Codes
//! of 32 keys in nibbles, and sums of even and odd bytes in 16 bits, are as the
//! documentation of Faiss describes for its `PQFastScan` indexes (Douze et al.,
//! "The Faiss library", 2024). The code is written from those descriptions.

mod arch;
mod isa;
mod lut;
mod pack;
mod scan;
mod select;

pub use isa::{Isa, IsaError};
pub use lut::{Lut, LutError};
pub use pack::{group_bytes, pack, unpack_key, unpack_one};
pub use scan::{prefetch, scan, scan_groups, scan_many};
pub use select::{at_least, scan_top_k, top_k};

/// Keys per packed group.
pub const GROUP: usize = 32;

/// Centroids per subquantizer: as many as 4 bits tell apart.
pub const CENTROIDS: usize = 16;

/// The most subquantizers for which sums of bytes fit 16 bits (even number).
pub const MAX_M: usize = 256;

/// Panics unless `m` is a number of subquantizers that kernels handle.
#[track_caller]
const fn check_m(m: usize) {
    assert!(
        m >= 2 && m <= MAX_M && m.is_multiple_of(2),
        "the number of subquantizers must be even, 2 to 256"
    );
}
