//! Counters of a session.

use kiv_store::ReadStats;
use std::time::Duration;

/// What retrieval has done and what it took.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Selections made: one per layer and micro-batch.
    pub selections: u64,
    /// Blocks that selections named, over all layers and KV heads.
    pub blocks_wanted: u64,
    /// Of these, blocks that had to be copied in.
    pub blocks_swapped: u64,
    /// Time in policies.
    pub select: Duration,
    /// Time copying blocks into slots.
    pub swap: Duration,
    /// Time copying blocks out to the cold store.
    pub seal: Duration,
    /// Time taking them up into the policy's index.
    pub index: Duration,
    /// Reads of cold rows, if they are on disk.
    pub reads: ReadStats,
}

impl Stats {
    /// What has been added since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            selections: self.selections - earlier.selections,
            blocks_wanted: self.blocks_wanted - earlier.blocks_wanted,
            blocks_swapped: self.blocks_swapped - earlier.blocks_swapped,
            select: self.select.saturating_sub(earlier.select),
            swap: self.swap.saturating_sub(earlier.swap),
            seal: self.seal.saturating_sub(earlier.seal),
            index: self.index.saturating_sub(earlier.index),
            reads: ReadStats {
                hits: self.reads.hits - earlier.reads.hits,
                misses: self.reads.misses - earlier.reads.misses,
                bytes: self.reads.bytes - earlier.reads.bytes,
                waited: self.reads.waited.saturating_sub(earlier.reads.waited),
            },
        }
    }
}
