//! Cold rows where a kernel can read them: in page-locked host memory, as far as there is
//! any.

use crate::device::{Buffer, Device, DeviceError, Memory};
use crate::work::At;
use kiv_policy::{Geometry, LayerGeometry, RowFormat};

/// What a layer's blocks are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// KV heads.
    pub n_heads: u32,
    /// Values in a row of K, and of V.
    pub row_len: [u32; 2],
    /// Types of the rows, as they are kept.
    pub stored: [RowFormat; 2],
}

impl LayerShape {
    /// Of all layers of a model.
    #[must_use]
    pub fn all(geometry: &Geometry) -> Vec<Self> {
        let stored = [geometry.key_format, geometry.value_format];
        let of_layer = |layer: &LayerGeometry| Self {
            n_heads: layer.n_head_kv as u32,
            row_len: [layer.key_dim, layer.value_dim].map(|len| len as u32),
            stored,
        };
        geometry.layers.iter().map(of_layer).collect()
    }

    /// Bytes of `n_rows` rows of K (`side` 0) or V.
    ///
    /// # Panics
    /// If `side` is neither 0 nor 1.
    #[must_use]
    pub fn bytes(&self, side: usize, n_rows: u32) -> usize {
        self.stored[side].row_bytes(self.row_len[side] as usize) * n_rows as usize
    }
}

/// Names the K or V rows of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Layer.
    pub layer: usize,
    /// KV head.
    pub head: u32,
    /// Block.
    pub block: u32,
    /// 0 for K, 1 for V.
    pub side: usize,
}

/// Where rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// Where kernels read them.
    Pinned(At),
    /// Where only the host does.
    Pageable(&'a [u8]),
}

/// Bytes that a [`PinnedPool`] has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Page-locked.
    pub pinned: usize,
    /// Pageable.
    pub pageable: usize,
}

/// Why rows were not stored or not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The system has no memory left. Nothing has changed.
    #[error("no memory for {bytes} more bytes of cold rows")]
    NoMemory {
        /// What was asked for.
        bytes: usize,
    },
    /// There is no room for such rows: [`PinnedPool::grow`] comes first.
    #[error("no room for these rows: {0:?}")]
    NoRoom(Row),
    /// So many bytes are not a block's rows.
    #[error("{got} bytes for rows that have {wanted}")]
    Length {
        /// Bytes given.
        got: usize,
        /// Bytes of the rows.
        wanted: usize,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Rows of so many blocks of all layers.
#[derive(Debug)]
enum Chunk {
    Pinned(Buffer),
    Pageable(Vec<u8>),
}

/// Cold rows of blocks of all layers and KV heads, K and V, in chunks of blocks.
///
/// Chunks are page-locked until a limit is reached or the driver refuses; the rest is
/// pageable. A block's rows begin at a multiple of 16 bytes, and those of one layer and KV
/// head follow each other within a chunk.
#[derive(Debug)]
pub struct PinnedPool {
    layers: Vec<LayerShape>,
    /// Where in a chunk each layer's rows begin.
    starts: Vec<usize>,
    n_rows: u32,
    chunk_blocks: u32,
    chunk_bytes: usize,
    max_pinned: usize,
    /// Whether the driver has refused: asking again and again is slow.
    refused: bool,
    chunks: Vec<Chunk>,
}

impl PinnedPool {
    /// An empty pool for blocks of `n_rows` rows that takes memory for `chunk_blocks` of
    /// them at a time, and page-locks `max_pinned` bytes at most.
    #[must_use]
    pub fn new(layers: Vec<LayerShape>, n_rows: u32, chunk_blocks: u32, max_pinned: usize) -> Self {
        let chunk_blocks = chunk_blocks.max(1);
        let mut chunk_bytes = 0;
        let mut starts = Vec::new();
        for layer in &layers {
            starts.push(chunk_bytes);
            let rows = stride(layer, 0, n_rows) + stride(layer, 1, n_rows);
            chunk_bytes += rows * layer.n_heads as usize * chunk_blocks as usize;
        }
        Self {
            layers,
            starts,
            n_rows,
            chunk_blocks,
            chunk_bytes,
            max_pinned,
            refused: false,
            chunks: Vec::new(),
        }
    }

    /// Layers' shapes.
    #[must_use]
    pub fn layers(&self) -> &[LayerShape] {
        &self.layers
    }

    /// Rows of a block.
    #[must_use]
    pub fn n_rows(&self) -> u32 {
        self.n_rows
    }

    /// Blocks that there is room for.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.chunks.len() * self.chunk_blocks as usize
    }

    /// What has been taken.
    #[must_use]
    pub fn taken(&self) -> PoolUse {
        let pinned = |c: &&Chunk| matches!(c, Chunk::Pinned(_));
        let pinned = self.chunks.iter().filter(pinned).count();
        PoolUse {
            pinned: pinned * self.chunk_bytes,
            pageable: (self.chunks.len() - pinned) * self.chunk_bytes,
        }
    }

    /// Makes room for the first `n_blocks` blocks.
    ///
    /// # Errors
    /// [`PoolError::NoMemory`] if not even pageable memory is left, and
    /// [`PoolError::Device`].
    pub fn grow<D: Device>(&mut self, device: &mut D, n_blocks: usize) -> Result<(), PoolError> {
        while self.n_blocks() < n_blocks {
            let chunk = match self.pin(device)? {
                Some(buffer) => Chunk::Pinned(buffer),
                None => {
                    let (mut rows, bytes) = (Vec::new(), self.chunk_bytes);
                    let taken = rows.try_reserve_exact(bytes);
                    taken.map_err(|_| PoolError::NoMemory { bytes })?;
                    rows.resize(bytes, 0);
                    Chunk::Pageable(rows)
                }
            };
            self.chunks.push(chunk);
        }
        Ok(())
    }

    /// A page-locked chunk, if there may be one more.
    fn pin<D: Device>(&mut self, device: &mut D) -> Result<Option<Buffer>, PoolError> {
        if self.refused || self.taken().pinned + self.chunk_bytes > self.max_pinned {
            return Ok(None);
        }
        match device.alloc(Memory::Pinned, self.chunk_bytes) {
            Ok(buffer) => Ok(Some(buffer)),
            Err(DeviceError::OutOfMemory { .. }) => {
                self.refused = true;
                Ok(None)
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Which chunk has these rows, where in it, and how many bytes they are.
    fn locate(&self, row: Row) -> Result<(usize, usize, usize), PoolError> {
        let layer = self.layers.get(row.layer).ok_or(PoolError::NoRoom(row))?;
        let chunk = (row.block / self.chunk_blocks) as usize;
        if row.head >= layer.n_heads || row.side > 1 || chunk >= self.chunks.len() {
            return Err(PoolError::NoRoom(row));
        }
        let strides = [0, 1].map(|side| stride(layer, side, self.n_rows));
        // [layer][head][side][block]
        let streams = row.head as usize * (strides[0] + strides[1]) + row.side * strides[0];
        let at = self.starts[row.layer]
            + streams * self.chunk_blocks as usize
            + (row.block % self.chunk_blocks) as usize * strides[row.side];
        Ok((chunk, at, layer.bytes(row.side, self.n_rows)))
    }

    /// Stores rows, where there is room for them.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn put<D: Device>(
        &mut self,
        device: &mut D,
        row: Row,
        rows: &[u8],
    ) -> Result<(), PoolError> {
        let (chunk, at, wanted) = self.locate(row)?;
        if rows.len() != wanted {
            let got = rows.len();
            return Err(PoolError::Length { got, wanted });
        }
        match &mut self.chunks[chunk] {
            Chunk::Pinned(buffer) => device.write(buffer.at(at), rows)?,
            Chunk::Pageable(all) => all[at..at + wanted].copy_from_slice(rows),
        }
        Ok(())
    }

    /// Where rows are.
    ///
    /// # Errors
    /// [`PoolError::NoRoom`].
    pub fn find(&self, row: Row) -> Result<Place<'_>, PoolError> {
        let (chunk, at, len) = self.locate(row)?;
        Ok(match &self.chunks[chunk] {
            Chunk::Pinned(buffer) => Place::Pinned(buffer.at(at)),
            Chunk::Pageable(all) => Place::Pageable(&all[at..at + len]),
        })
    }

    /// Rows of a run of blocks that lie together: from `row` on, at least that one and at
    /// most `max`.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn run<'a, D: Device>(
        &'a self,
        device: &'a D,
        row: Row,
        max: usize,
    ) -> Result<&'a [u8], PoolError> {
        let (chunk, at, len) = self.locate(row)?;
        let rest = self.chunk_blocks - row.block % self.chunk_blocks;
        // There are gaps between rows that are not multiples of 16 bytes.
        let most = if len.is_multiple_of(16) { rest } else { 1 };
        let len = len * max.clamp(1, most as usize);
        Ok(match &self.chunks[chunk] {
            Chunk::Pinned(buffer) => device.pinned(buffer.at(at), len)?,
            Chunk::Pageable(all) => &all[at..at + len],
        })
    }

    /// Gives back the chunks that hold nothing of the first `n_blocks` blocks.
    ///
    /// # Errors
    /// [`PoolError::Device`].
    pub fn truncate<D: Device>(
        &mut self,
        device: &mut D,
        n_blocks: usize,
    ) -> Result<(), PoolError> {
        let keep = n_blocks.div_ceil(self.chunk_blocks as usize);
        while self.chunks.len() > keep {
            if let Some(Chunk::Pinned(buffer)) = self.chunks.pop() {
                device.free(buffer)?;
                self.refused = false;
            }
        }
        Ok(())
    }
}

/// Bytes from one block's rows to the next one's.
fn stride(layer: &LayerShape, side: usize, n_rows: u32) -> usize {
    layer.bytes(side, n_rows).next_multiple_of(16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Call, SimConfig, SimDevice};

    fn shapes() -> Vec<LayerShape> {
        let layer = |n_heads, row_len, stored| LayerShape {
            n_heads,
            row_len,
            stored,
        };
        vec![
            layer(2, [32, 64], [RowFormat::Q8_0, RowFormat::F16]),
            layer(3, [20, 12], [RowFormat::F16; 2]),
        ]
    }

    /// All rows of the blocks, with bytes that say what they are.
    fn rows(pool: &PinnedPool, blocks: std::ops::Range<u32>) -> Vec<(Row, Vec<u8>)> {
        let mut all = Vec::new();
        for block in blocks {
            for (layer, shape) in pool.layers().iter().enumerate() {
                for (head, side) in (0..shape.n_heads).flat_map(|h| [(h, 0), (h, 1)]) {
                    let len = shape.bytes(side, pool.n_rows());
                    let tag = block as usize * 31 + layer * 7 + head as usize * 2 + side;
                    let bytes = (0..len).map(|i| (tag * 13 + i) as u8).collect();
                    let row = Row {
                        layer,
                        head,
                        block,
                        side,
                    };
                    all.push((row, bytes));
                }
            }
        }
        all
    }

    fn check(pool: &PinnedPool, device: &SimDevice, rows: &[(Row, Vec<u8>)]) {
        for (row, bytes) in rows {
            assert_eq!(pool.run(device, *row, 1).unwrap(), bytes, "{row:?}");
        }
    }

    #[test]
    fn what_is_not_page_locked_is_pageable_and_all_is_given_back() {
        let chunk = PinnedPool::new(shapes(), 5, 3, 0).chunk_bytes;
        for (max_pinned, pinned_bytes, n_pinned) in [
            (usize::MAX, usize::MAX, 5),
            (2 * chunk + 1, usize::MAX, 2),
            (usize::MAX, 3 * chunk, 3),
            (0, usize::MAX, 0),
        ] {
            let mut d = SimDevice::new(SimConfig {
                pinned_bytes,
                ..SimConfig::default()
            });
            let mut pool = PinnedPool::new(shapes(), 5, 3, max_pinned);
            pool.grow(&mut d, 13).unwrap();
            let taken = PoolUse {
                pinned: n_pinned * chunk,
                pageable: (5 - n_pinned) * chunk,
            };
            assert_eq!((pool.n_blocks(), pool.taken()), (15, taken));
            assert_eq!(d.used(Memory::Pinned), taken.pinned);
            let all = rows(&pool, 0..13);
            for (row, bytes) in &all {
                pool.put(&mut d, *row, bytes).unwrap();
            }
            check(&pool, &d, &all);
            // Block 6 is the last of its chunk that stays.
            pool.truncate(&mut d, 7).unwrap();
            assert_eq!(pool.n_blocks(), 9);
            assert_eq!(d.used(Memory::Pinned), n_pinned.min(3) * chunk);
            check(&pool, &d, &rows(&pool, 0..9));
            let gone = all.last().unwrap().0;
            assert_eq!(pool.find(gone), Err(PoolError::NoRoom(gone)));
            pool.truncate(&mut d, 0).unwrap();
            assert_eq!(pool.taken(), PoolUse::default());
            assert_eq!(d.used(Memory::Pinned), 0);
        }
    }

    #[test]
    fn a_driver_that_refused_is_asked_again_once_memory_came_back() {
        let mut d = SimDevice::new(SimConfig::default());
        let mut pool = PinnedPool::new(shapes(), 4, 1, usize::MAX);
        d.breaks(Call::Pinned, 1);
        pool.grow(&mut d, 3).unwrap();
        d.repair();
        pool.grow(&mut d, 4).unwrap();
        let chunk = pool.chunk_bytes;
        assert_eq!(pool.taken().pageable, 3 * chunk, "it is not asked");
        pool.truncate(&mut d, 0).unwrap();
        pool.grow(&mut d, 2).unwrap();
        assert_eq!(pool.taken().pinned, 2 * chunk);
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let mut d = SimDevice::new(SimConfig::default());
        let mut pool = PinnedPool::new(shapes(), 4, 2, usize::MAX);
        pool.grow(&mut d, 1).unwrap();
        let good = Row {
            layer: 1,
            head: 2,
            block: 1,
            side: 1,
        };
        pool.put(&mut d, good, &[1; 96]).unwrap();
        let length = PoolError::Length {
            got: 95,
            wanted: 96,
        };
        assert_eq!(pool.put(&mut d, good, &[1; 95]), Err(length));
        for bad in [
            Row { layer: 2, ..good },
            Row { head: 3, ..good },
            Row { block: 2, ..good },
            Row { side: 2, ..good },
        ] {
            assert_eq!(pool.put(&mut d, bad, &[]), Err(PoolError::NoRoom(bad)));
        }
    }

    #[test]
    fn rows_begin_where_wide_reads_can() {
        let mut d = SimDevice::new(SimConfig::default());
        let mut pool = PinnedPool::new(shapes(), 5, 3, usize::MAX);
        pool.grow(&mut d, 4).unwrap();
        for (row, _) in rows(&pool, 0..4) {
            let Place::Pinned(at) = pool.find(row).unwrap() else {
                panic!("there is page-locked memory");
            };
            assert_eq!(at.offset % 16, 0);
        }
    }
}
