//! Where blocks go that leave the resident pool.
//!
//! [`ColdTier`] is what every place for them promises, [`conformance::check`]
//! the suite that each is put through. [`HostStore`] is host memory; the tier
//! on disk is `kiv-context`'s. [`Transcoder`] stores rows in a smaller type than
//! the cache's.

pub mod conformance;
mod host;
mod transcode;

pub use host::{HostStore, SEGMENT_TOKENS};
pub use transcode::{Transcoder, convert};

use kiv_policy::ColdRows;
use std::path::PathBuf;
use thiserror::Error;

/// Why rows could not be stored. Everything published before is unharmed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system gave no memory.
    #[error("no memory for {bytes} more bytes of the cold store ({stored} bytes are stored)")]
    NoMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes held by the store.
        stored: usize,
    },
    /// The device whose memory holds the rows failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// What reading has come to, since the tier was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// Reads that memory served.
    pub hits: u64,
    /// Reads that had to go to disk, ahead of time or not.
    pub misses: u64,
    /// Bytes read from disk.
    pub bytes: u64,
    /// Time for which somebody waited for the disk.
    pub waited: std::time::Duration,
}

/// A place for sealed blocks of all layers and KV heads.
///
/// Rows of a stretch of blocks are appended stream by stream, a stream being
/// one (layer, KV head); then they are published, all at once. What has been
/// published reads back bit by bit until it is cut off.
pub trait ColdTier: ColdRows + Send {
    /// Appends whole blocks of one (layer, KV head). They can be read after
    /// [`ColdTier::publish`], once every stream has them.
    ///
    /// # Errors
    /// [`StoreError`]; call [`ColdTier::roll_back`] then.
    ///
    /// # Panics
    /// If `keys` and `values` are not the same number of whole blocks, or the
    /// indices are out of range.
    fn append(
        &mut self,
        layer: usize,
        kv_head: usize,
        keys: &[u8],
        values: &[u8],
    ) -> Result<(), StoreError>;

    /// Makes `count` appended blocks readable.
    ///
    /// # Errors
    /// [`StoreError`]: none of them is readable, as after
    /// [`ColdTier::roll_back`].
    ///
    /// # Panics
    /// If a stream lacks some of them.
    fn publish(&mut self, count: usize) -> Result<(), StoreError>;

    /// Forgets blocks that were appended but not published.
    fn roll_back(&mut self);

    /// Forgets every block from `n_blocks` on, and what was not published.
    fn truncate(&mut self, n_blocks: usize);

    /// Bytes of rows in host memory.
    fn host_bytes(&self) -> usize;

    /// Bytes on disk.
    fn disk_bytes(&self) -> usize {
        0
    }

    /// What reading has come to.
    fn read_stats(&self) -> ReadStats {
        ReadStats::default()
    }
}
