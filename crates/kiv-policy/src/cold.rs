//! Sealed rows, wherever they are.

use crate::{BlockId, PolicyError, Rows};
use std::sync::Arc;
use thiserror::Error;

/// Why sealed rows could not be read. The message names the file or block.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ColdError(pub String);

impl From<ColdError> for PolicyError {
    fn from(error: ColdError) -> Self {
        Self(error.0)
    }
}

/// A run of rows that a cold store gave: lent from its memory, or a copy that
/// it shares with a cache.
#[derive(Clone, Debug)]
pub enum ColdRun<'a> {
    /// Rows in the store's own memory.
    Lent(Rows<'a>),
    /// Rows that were read from somewhere.
    Shared {
        /// Their format and row length; its bytes are none.
        kind: Rows<'static>,
        /// Their bytes.
        bytes: Arc<[u8]>,
    },
}

impl ColdRun<'_> {
    /// The rows.
    #[must_use]
    pub fn rows(&self) -> Rows<'_> {
        match self {
            Self::Lent(rows) => *rows,
            Self::Shared { kind, bytes } => Rows { bytes, ..*kind },
        }
    }
}

/// Read access to every sealed row, wherever it is stored.
pub trait ColdRows: Sync {
    /// Sealed blocks per layer and KV head.
    fn n_blocks(&self) -> usize;

    /// K rows of a run of blocks from `first` on that lie together: at least
    /// one block, at most `max`.
    ///
    /// # Errors
    /// [`ColdError`] if they cannot be read, or are not what was written.
    ///
    /// # Panics
    /// If `layer`, `kv_head` or `first` is out of range, or `max` is 0.
    fn keys(
        &self,
        layer: usize,
        kv_head: usize,
        first: BlockId,
        max: usize,
    ) -> Result<ColdRun<'_>, ColdError>;

    /// V rows of a run of blocks, as [`ColdRows::keys`].
    ///
    /// # Errors
    /// As [`ColdRows::keys`].
    ///
    /// # Panics
    /// As [`ColdRows::keys`].
    fn values(
        &self,
        layer: usize,
        kv_head: usize,
        first: BlockId,
        max: usize,
    ) -> Result<ColdRun<'_>, ColdError>;

    /// Says which rows of these blocks will be read next. A store that has to get them from
    /// somewhere gets them side by side from now on; others do nothing.
    ///
    /// # Panics
    /// As [`ColdRows::keys`].
    fn expect(&self, _layer: usize, _kv_head: usize, _rows: RowsOf, _blocks: &[BlockId]) {}
}

/// Which rows of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsOf {
    /// K.
    Keys,
    /// V.
    Values,
    /// K and V.
    Both,
}
