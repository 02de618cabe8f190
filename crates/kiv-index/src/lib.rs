//! The product-quantized K-index: which of a million keys score highest for a
//! query, without looking at most of them.
//!
//! One [`HeadIndex`] holds the keys of one layer and KV head, in the order in
//! which they were read. Three levels, each cheaper per key than the next:
//!
//! 1. *Clusters* of about 16 similar keys per segment of some thousand tokens
//!    ([`Clusters`]). Their means are themselves product-quantized, so that all
//!    of them are scored by byte shuffles (`kiv-fastscan`).
//! 2. *Codes* of the keys in the best clusters: 4 bits for every dimension or
//!    two, in a space in which the error is that of the logit ([`Space`]).
//! 3. The best keys' approximate logits go to the caller ([`Hits`]), who knows
//!    how to turn them into blocks.
//!
//! Keys come as they are cached, rotated by their positions. Codebooks are
//! trained again after every [`Params::era`] segments, on the keys at hand, so
//! that none is used far from where it was trained.
//!
//! Nothing here knows of policies, stores or llama.cpp; nothing is random.

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
