//! The cold store: sealed blocks in host memory, in the cache's own type.
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
//! head is sequential, and growing never moves what is already stored. The
//! bytes are those of the cache: what comes back is what left.

use kiv_policy::{BlockId, ColdRows, Geometry, RowFormat, Rows};
use thiserror::Error;

/// Tokens in a segment, rounded down to whole blocks (at least one).
pub const SEGMENT_TOKENS: usize = 4096;

/// Why rows could not be stored. Everything committed before is unharmed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// The system gave no memory.
    #[error("no memory for {bytes} more bytes of the cold store ({stored} bytes are stored)")]
    NoMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes held by the store.
        stored: usize,
    },
}

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

    /// Appends whole blocks of one (layer, KV head). They can be read after
    /// [`HostStore::commit`], once every stream has them.
    ///
    /// # Errors
    /// [`StoreError::NoMemory`]; call [`HostStore::roll_back`] then.
    ///
    /// # Panics
    /// If `keys` and `values` are not the same number of whole blocks, or the
    /// indices are out of range.
    pub fn append(
        &mut self,
        layer: usize,
        kv_head: usize,
        keys: &[u8],
        values: &[u8],
    ) -> Result<(), StoreError> {
        let stored = self.bytes();
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

    /// Makes `count` appended blocks readable.
    ///
    /// # Panics
    /// If a stream lacks some of them.
    pub fn commit(&mut self, count: usize) {
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
    }

    /// Forgets blocks that were appended but not committed.
    pub fn roll_back(&mut self) {
        self.truncate(self.n_blocks);
    }

    /// Forgets every block from `n_blocks` on.
    pub fn truncate(&mut self, n_blocks: usize) {
        self.n_blocks = self.n_blocks.min(n_blocks);
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

    /// Bytes of all stored rows.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let streams = self.streams.iter().flatten().flatten();
        streams.flat_map(|s| &s.segments).map(Vec::len).sum()
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

impl ColdRows for HostStore {
    fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    fn keys(&self, layer: usize, kv_head: usize, first: BlockId, max: usize) -> Rows<'_> {
        self.rows(0, layer, kv_head, first, max)
    }

    fn values(&self, layer: usize, kv_head: usize, first: BlockId, max: usize) -> Rows<'_> {
        self.rows(1, layer, kv_head, first, max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiv_policy::LayerGeometry;
    use proptest::prelude::*;

    fn geometry(block: usize) -> Geometry {
        let layer = |n_head_kv, key_dim, value_dim| LayerGeometry {
            il: 0,
            n_head: 4,
            n_head_kv,
            key_dim,
            value_dim,
            scale: 1.0,
            soft_cap: None,
        };
        Geometry {
            layers: vec![layer(2, 32, 64), layer(1, 64, 32)],
            block,
            n_slots: 4,
            first_position: 0,
            key_format: RowFormat::Q8_0,
            value_format: RowFormat::F16,
            n_threads: 1,
        }
    }

    /// Bytes that say which stream, block and row they are.
    fn pattern(len: usize, seed: usize) -> Vec<u8> {
        (0..len)
            .map(|i| (i.wrapping_mul(31) ^ seed.wrapping_mul(97)) as u8)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Against a plain vector per stream: append, truncate and roll back
        /// in any order; every run reads back what was put in.
        #[test]
        fn reads_what_was_written(
            block in prop::sample::select(vec![1usize, 7, 32, 1500, 5000]),
            ops in prop::collection::vec((0u8..4, 0usize..5), 1..9),
        ) {
            let g = geometry(block);
            let mut store = HostStore::new(&g);
            let mut model = vec![[Vec::new(), Vec::new()]; 3];
            let streams = [(0, 0), (0, 1), (1, 0)];
            let mut n_blocks = 0;
            for (number, (op, n)) in ops.into_iter().enumerate() {
                let bytes = |layer: usize| {
                    let l = &g.layers[layer];
                    [RowFormat::Q8_0.row_bytes(l.key_dim), RowFormat::F16.row_bytes(l.value_dim)]
                        .map(|row| row * block)
                };
                if op < 3 {
                    for (i, &(layer, head)) in streams.iter().enumerate() {
                        let [k, v] = bytes(layer).map(|b| pattern(b * n, number * 3 + i));
                        store.append(layer, head, &k, &v).unwrap();
                        if op < 2 {
                            model[i][0].extend(k);
                            model[i][1].extend(v);
                        }
                    }
                    if op < 2 {
                        store.commit(n);
                        n_blocks += n;
                    } else {
                        store.roll_back();
                    }
                } else {
                    n_blocks = n_blocks.min(n);
                    store.truncate(n);
                    for (i, &(layer, _)) in streams.iter().enumerate() {
                        for (m, b) in model[i].iter_mut().zip(bytes(layer)) {
                            m.truncate(n_blocks * b);
                        }
                    }
                }
                prop_assert_eq!(store.n_blocks(), n_blocks);
                for (i, &(layer, head)) in streams.iter().enumerate() {
                    let mut got = [Vec::new(), Vec::new()];
                    let mut at = 0;
                    while at < n_blocks {
                        let k = store.keys(layer, head, at as u32, usize::MAX);
                        let v = store.values(layer, head, at as u32, usize::MAX);
                        prop_assert_eq!(k.n_rows(), v.n_rows());
                        got[0].extend_from_slice(k.bytes);
                        got[1].extend_from_slice(v.bytes);
                        at += k.n_rows() / block;
                    }
                    prop_assert_eq!(&got, &model[i]);
                }
                let total: usize = model.iter().flatten().map(Vec::len).sum();
                prop_assert_eq!(store.bytes(), total);
            }
        }
    }
}
