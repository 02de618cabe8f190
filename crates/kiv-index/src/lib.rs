//! The product-quantized K-index: which of a million keys score highest for a
//! query, without looking at most of them.
//!
//! One [`HeadIndex`] holds the keys of one layer and KV head, in the order in which they
//! were read. Every 65,536 of them make an *era*, divided into *lists* of about 8
//! similar keys ([`lists`]):
//!
//! 1. The means of all lists are scored. They are product-quantized, so that byte
//!    shuffles score them (`kiv-fastscan`).
//! 2. The keys of the best lists are scored by codes of their difference from the mean:
//!    4 bits for every dimension or two, in a space in which the error is that of the
//!    logit ([`Space`]). So are the newest keys, those in no era yet, all of them.
//! 3. The best keys' approximate logits go to the caller ([`Hits`]), who knows how to
//!    turn them into blocks, or multiplies them, decoded, with more queries than are worth
//!    searching for ([`HeadIndex::decode`]).
//!
//! Keys come as they are cached, rotated by their positions. Each era has codebooks of its
//! own, so that none is used far from where it was trained.
//!
//! Nothing here knows of policies, stores or llama.cpp; nothing is random.

mod best;
mod cluster;
mod codebook;
mod decode;
mod era;
mod head;
mod marks;
mod newest;
mod outliers;
mod packed;
mod pages;
mod saved;
mod search;
mod space;
mod stamp;
mod vectors;
mod view;
mod work;

pub use cluster::{groups, lists, mean_of};
pub use codebook::Codebook;
pub use head::{HeadIndex, IndexError, Params};
pub use search::{Asked, Effort, Finder, Found, Hits, Scratch};
pub use space::{QueryMoments, Space, Split};
pub use stamp::Stamp;
pub use view::{BookView, ListsView, OutliersView, PartView};
pub use work::Work;
