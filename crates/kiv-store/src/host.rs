//! Sealed blocks in host memory.
//!
//! Rows of one (layer, KV head) lie together, K apart from V, in segments of
//! [`SEGMENT_TOKENS`] tokens:
//!
//! ```text
//! stream (layer, KV head) -> [segment 0: K rows][segment 1: K rows] …
//!                            [segment 0: V rows][segment 1: V rows] …
//! ```
//!
//! A block is then one contiguous copy per K and V, a scan over all keys of a
//! head is sequential, and growing never moves what is already stored.

use crate::{ColdTier, StoreError};
use kiv_policy::{BlockId, ColdError, ColdRows, ColdRun, Geometry, RowFormat, Rows};

/// Tokens in a segment, rounded down to whole blocks (at least one).
pub const SEGMENT_TOKENS: usize = 4096;

/// K or V rows of one (layer, KV head).
#[derive(Debug)]
struct Stream {
    format: RowFormat,
    row_len: usize,
    segments: Vec<Vec<u8>>,
}

impl Stream {
    fn block_bytes(&self, block: usize) -> usize {
        self.format.row_bytes(self.row_len) * block
    }

    fn run(&self, block: usize, per_segment: usize, first: usize, n: usize) -> Rows<'_> {
        let at = first % per_segment;
        let bytes = self.block_bytes(block);
        Rows {
            format: self.format,
            row_len: self.row_len,
            bytes: &self.segments[first / per_segment][at * bytes..(at + n) * bytes],
        }
    }
}

/// Sealed blocks of all layers and KV heads in host RAM.
#[derive(Debug)]
pub struct HostStore {
    block: usize,
    /// Blocks in a full segment.
    per_segment: usize,
    /// `[layer][kv_head]`: K and V.
    streams: Vec<Vec<[Stream; 2]>>,
    n_blocks: usize,
}

impl HostStore {
    /// An empty store for this geometry.
    #[must_use]
    pub fn new(geometry: &Geometry) -> Self {
        let stream = |format, row_len| Stream {
            format,
            row_len,
            segments: Vec::new(),
        };
        let streams = geometry.layers.iter().map(|layer| {
            let head = |_| {
                [
                    stream(geometry.key_format, layer.key_dim),
                    stream(geometry.value_format, layer.value_dim),
                ]
            };
            (0..layer.n_head_kv).map(head).collect()
        });
        Self {
            block: geometry.block,
            per_segment: (SEGMENT_TOKENS / geometry.block).max(1),
            streams: streams.collect(),
            n_blocks: 0,
        }
    }

    fn rows(
        &self,
        which: usize,
        layer: usize,
        kv_head: usize,
        first: BlockId,
        max: usize,
    ) -> Rows<'_> {
        let first = first as usize;
        assert!(first < self.n_blocks, "block {first} is not sealed");
        assert!(max > 0, "a run has at least one block");
        let n = max
            .min(self.n_blocks - first)
            .min(self.per_segment - first % self.per_segment);
        self.streams[layer][kv_head][which].run(self.block, self.per_segment, first, n)
    }
}

impl ColdTier for HostStore {
    fn append(
        &mut self,
        layer: usize,
        kv_head: usize,
        keys: &[u8],
        values: &[u8],
    ) -> Result<(), StoreError> {
        let stored = self.host_bytes();
        let (block, per_segment) = (self.block, self.per_segment);
        let [k, v] = &mut self.streams[layer][kv_head];
        assert_eq!(
            keys.len() / k.block_bytes(block),
            values.len() / v.block_bytes(block),
            "as many V rows as K rows"
        );
        for (stream, mut bytes) in [(k, keys), (v, values)] {
            let block_bytes = stream.block_bytes(block);
            assert!(bytes.len().is_multiple_of(block_bytes), "whole blocks");
            let segment_bytes = block_bytes * per_segment;
            while !bytes.is_empty() {
                if stream
                    .segments
                    .last()
                    .is_none_or(|s| s.len() == segment_bytes)
                {
                    let no_memory = |_| StoreError::NoMemory {
                        bytes: segment_bytes,
                        stored,
                    };
                    let mut segment = Vec::new();
                    segment
                        .try_reserve_exact(segment_bytes)
                        .map_err(no_memory)?;
                    stream.segments.push(segment);
                }
                let Some(segment) = stream.segments.last_mut() else {
                    unreachable!("a segment was just pushed");
                };
                let n = bytes.len().min(segment_bytes - segment.len());
                segment.extend_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
            }
        }
        Ok(())
    }

    fn publish(&mut self, count: usize) -> Result<(), StoreError> {
        self.n_blocks += count;
        let (block, n_blocks) = (self.block, self.n_blocks);
        for stream in self.streams.iter().flatten().flatten() {
            let stored: usize = stream.segments.iter().map(Vec::len).sum();
            assert_eq!(
                stored,
                n_blocks * stream.block_bytes(block),
                "streams in step"
            );
        }
        Ok(())
    }

    fn roll_back(&mut self) {
        self.truncate(self.n_blocks);
    }

    fn truncate(&mut self, n_blocks: usize) {
        self.n_blocks = self.n_blocks.min(n_blocks);
        let n_blocks = self.n_blocks;
        let (full, rest) = (n_blocks / self.per_segment, n_blocks % self.per_segment);
        let block = self.block;
        for stream in self.streams.iter_mut().flatten().flatten() {
            let keep = rest * stream.block_bytes(block);
            stream.segments.truncate(full + usize::from(rest > 0));
            if let Some(partial) = stream.segments.get_mut(full) {
                partial.truncate(keep);
            }
        }
    }

    fn host_bytes(&self) -> usize {
        let streams = self.streams.iter().flatten().flatten();
        streams.flat_map(|s| &s.segments).map(Vec::len).sum()
    }
}

impl ColdRows for HostStore {
    fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    fn keys(
        &self,
        layer: usize,
        kv_head: usize,
        first: BlockId,
        max: usize,
    ) -> Result<ColdRun<'_>, ColdError> {
        Ok(ColdRun::Lent(self.rows(0, layer, kv_head, first, max)))
    }

    fn values(
        &self,
        layer: usize,
        kv_head: usize,
        first: BlockId,
        max: usize,
    ) -> Result<ColdRun<'_>, ColdError> {
        Ok(ColdRun::Lent(self.rows(1, layer, kv_head, first, max)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_memory_conforms() {
        crate::conformance::check(|g| Box::new(HostStore::new(g)), 24).unwrap();
    }
}
