//! The product-quantized K-index: which of a million keys score highest for a
//! query, without looking at most of them.
//!
//! One [`HeadIndex`] holds the keys of one layer and KV head, in the order in
//! which they were read. Four levels, each cheaper per key than the next:
//!
//! 1. *Parts* of 32 similar clusters. All of them are scored.
//! 2. *Clusters* of about 8 similar keys per segment of some thousand tokens
//!    ([`Clusters`]); those of the best parts are scored. Means of both are
//!    themselves product-quantized, so that byte shuffles score them
//!    (`kiv-fastscan`).
//! 3. *Codes* of the keys in the best clusters: 4 bits for every dimension or
//!    two, in a space in which the error is that of the logit ([`Space`]).
//! 4. The best keys' approximate logits go to the caller ([`Hits`]), who knows
//!    how to turn them into blocks.
//!
//! Keys come as they are cached, rotated by their positions. Codebooks are
//! trained again after every [`Params::era`] segments, on the keys at hand, so
//! that none is used far from where it was trained.
//!
//! Nothing here knows of policies, stores or llama.cpp; nothing is random.

mod best;
mod cluster;
mod codebook;
mod era;
mod head;
mod outliers;
mod packed;
mod saved;
mod search;
mod space;

pub use cluster::{Clusters, groups};
pub use codebook::Codebook;
pub use head::{HeadIndex, IndexError, Params};
pub use search::{Effort, Hits, Scratch};
pub use space::{QueryMoments, Space, Split};
