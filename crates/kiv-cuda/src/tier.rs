//! Sealed rows where a device reads them, as a tier like others.

use crate::device::{Device, DeviceError};
use crate::pager::Pager;
use crate::pool::{PoolError, Row};
use crate::swap::{Overlap, Slots, Span, SwapError, Swapper};
use kiv_policy::{BlockId, ColdError, ColdRows, ColdRun, Rows, Selection};
use kiv_pool::{SlotTable, Swap};
use kiv_store::{ColdTier, StoreError};

/// A tier for sealed rows in memory that a device reads, and the pager that swaps them in.
pub struct DeviceTier<D: Device> {
    device: D,
    pager: Pager<D>,
    /// `[layer][head]`: blocks that have been appended, published ones included.
    appended: Vec<Vec<usize>>,
    n_blocks: usize,
}

fn told(error: PoolError, stored: usize) -> StoreError {
    match error {
        PoolError::NoMemory { bytes } => StoreError::NoMemory { bytes, stored },
        other => StoreError::Device(other.to_string()),
    }
}

impl<D: Device> DeviceTier<D> {
    /// A tier without rows.
    #[must_use]
    pub fn new(device: D, pager: Pager<D>) -> Self {
        let of_layer = |n_heads: u32| vec![0; n_heads as usize];
        let layers = pager.pool().layers().iter();
        Self {
            appended: layers.map(|layer| of_layer(layer.n_heads)).collect(),
            device,
            pager,
            n_blocks: 0,
        }
    }

    /// The device.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// What swaps blocks in.
    #[must_use]
    pub fn swapper(&self) -> &Swapper<D> {
        self.pager.swapper()
    }

    /// See [`Swapper::overlap`].
    ///
    /// # Errors
    /// As there.
    pub fn overlap(&mut self) -> Result<Overlap, DeviceError> {
        self.pager.swapper_mut().overlap(&mut self.device)
    }

    /// See [`Swapper::list`].
    ///
    /// # Errors
    /// As there.
    pub fn list(&mut self) -> Result<(), DeviceError> {
        self.pager.swapper_mut().list(&mut self.device)
    }

    /// See [`Swapper::listed`].
    ///
    /// # Errors
    /// As there.
    pub fn listed(&mut self) -> Result<Vec<Span>, DeviceError> {
        self.pager.swapper_mut().listed(&mut self.device)
    }

    /// See [`Pager::fetch`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn fetch(&mut self, at: (usize, u64), tables: &[SlotTable]) -> Result<usize, PoolError> {
        self.pager.fetch(&mut self.device, at, tables)
    }

    /// See [`Pager::ensure`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn ensure(
        &mut self,
        at: (usize, u64),
        tables: &mut [SlotTable],
        wanted: &Selection,
        slots: Slots<'_>,
    ) -> Result<(), SwapError> {
        let device = &mut self.device;
        self.pager.ensure(device, at, tables, wanted, slots)
    }

    /// See [`Pager::bring`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn bring(
        &mut self,
        at: (usize, u64),
        wanted: &Selection,
        swaps: &[Vec<Swap>],
        slots: Slots<'_>,
    ) -> Result<(), SwapError> {
        let device = &mut self.device;
        self.pager.bring(device, at, wanted, swaps, slots)
    }

    /// See [`Pager::fill`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn fill(
        &mut self,
        layer: usize,
        swaps: &[Vec<Swap>],
        slots: Slots<'_>,
    ) -> Result<(), SwapError> {
        self.pager.fill(&mut self.device, layer, swaps, slots)
    }

    /// See [`Pager::attended`].
    ///
    /// # Errors
    /// As there.
    pub fn attended(&mut self, layer: usize) -> Result<(), DeviceError> {
        self.pager.attended(&mut self.device, layer)
    }

    /// See [`Swapper::settle`].
    ///
    /// # Errors
    /// As there.
    pub fn settle(&mut self, layer: usize) -> Result<(), DeviceError> {
        self.pager.swapper_mut().settle(&mut self.device, layer)
    }

    /// Gives back all memory but the device itself.
    ///
    /// # Errors
    /// [`PoolError::Device`].
    pub fn release(mut self) -> Result<D, PoolError> {
        self.pager.release(&mut self.device)?;
        Ok(self.device)
    }

    /// Bytes of a block's rows.
    fn block_bytes(&self, layer: usize, side: usize) -> usize {
        let pool = self.pager.pool();
        pool.layers()[layer].bytes(side, pool.n_rows())
    }

    fn rows(&self, row: Row, max: usize) -> Result<ColdRun<'_>, ColdError> {
        let n_blocks = self.n_blocks;
        assert!(
            (row.block as usize) < n_blocks,
            "block {} is not sealed",
            row.block
        );
        assert!(max > 0, "a run has at least one block");
        let max = max.min(n_blocks - row.block as usize);
        let pool = self.pager.pool();
        let shape = pool.layers()[row.layer];
        let bytes = pool.run(&self.device, row, max);
        Ok(ColdRun::Lent(Rows {
            format: shape.stored[row.side],
            row_len: shape.row_len[row.side] as usize,
            bytes: bytes.map_err(|error| ColdError(error.to_string()))?,
        }))
    }
}

impl<D> ColdRows for DeviceTier<D>
where
    D: Device + Sync,
    D::Event: Sync,
{
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
        let row = Row {
            layer,
            head: kv_head as u32,
            block: first,
            side: 0,
        };
        self.rows(row, max)
    }

    fn values(
        &self,
        layer: usize,
        kv_head: usize,
        first: BlockId,
        max: usize,
    ) -> Result<ColdRun<'_>, ColdError> {
        let row = Row {
            layer,
            head: kv_head as u32,
            block: first,
            side: 1,
        };
        self.rows(row, max)
    }
}

impl<D> ColdTier for DeviceTier<D>
where
    D: Device + Send + Sync,
    D::Event: Send + Sync,
{
    fn append(
        &mut self,
        layer: usize,
        kv_head: usize,
        keys: &[u8],
        values: &[u8],
    ) -> Result<(), StoreError> {
        let stored = self.host_bytes();
        let len = [0, 1].map(|side| self.block_bytes(layer, side));
        let first = self.appended[layer][kv_head];
        let n = keys.len() / len[0];
        assert_eq!(n, values.len() / len[1], "as many V rows as K rows");
        assert!(keys.len().is_multiple_of(len[0]), "whole blocks");
        assert!(values.len().is_multiple_of(len[1]), "whole blocks");
        let (device, pool) = (&mut self.device, self.pager.pool_mut());
        let grown = pool.grow(device, first + n);
        grown.map_err(|error| told(error, stored))?;
        for (side, rows) in [keys, values].into_iter().enumerate() {
            for (block, rows) in (first..).zip(rows.chunks_exact(len[side])) {
                let row = Row {
                    layer,
                    head: kv_head as u32,
                    block: block as BlockId,
                    side,
                };
                let put = pool.put(device, row, rows);
                put.map_err(|error| told(error, stored))?;
            }
        }
        self.appended[layer][kv_head] += n;
        Ok(())
    }

    fn publish(&mut self, count: usize) -> Result<(), StoreError> {
        self.n_blocks += count;
        let in_step = |n: &usize| *n == self.n_blocks;
        assert!(
            self.appended.iter().flatten().all(in_step),
            "streams in step"
        );
        self.pager.publish(self.n_blocks as u32);
        Ok(())
    }

    fn roll_back(&mut self) {
        self.truncate(self.n_blocks);
    }

    fn truncate(&mut self, n_blocks: usize) {
        self.n_blocks = self.n_blocks.min(n_blocks);
        let n_blocks = self.n_blocks;
        self.appended
            .iter_mut()
            .flatten()
            .for_each(|n| *n = n_blocks);
        // A device that fails here fails at the next call, which can say so; rows are cut
        // all the same.
        let _ = self.pager.truncate(&mut self.device, n_blocks as u32);
    }

    fn host_bytes(&self) -> usize {
        let taken = self.pager.pool().taken();
        taken.pinned + taken.pageable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Memory;
    use crate::pool::{LayerShape, PinnedPool};
    use crate::predict::PredictConfig;
    use crate::sim::{SimConfig, SimDevice};
    use crate::swap::SwapConfig;
    use crate::work::{Cache, Side};
    use kiv_policy::{Geometry, RowFormat};

    fn tier(geometry: &Geometry, max_pinned: usize) -> DeviceTier<SimDevice> {
        let mut device = SimDevice::new(SimConfig::default());
        let shapes = LayerShape::all(geometry);
        let n_rows = geometry.block as u32;
        let mut sides = Vec::new();
        for shape in &shapes {
            sides.push([0, 1].map(|side| {
                let mut cache = Cache {
                    at: crate::Buffer(0).at(0),
                    n_cells: geometry.n_slots as u32 * n_rows,
                    n_heads: shape.n_heads,
                    row_len: shape.row_len[side],
                    format: RowFormat::F16,
                };
                let buffer = device.alloc(Memory::Device, cache.bytes());
                cache.at = buffer.unwrap().at(0);
                Side {
                    cache,
                    stored: shape.stored[side],
                }
            }));
        }
        let compute = device.stream(false).unwrap();
        let config = SwapConfig {
            landing: 2,
            staging: 0,
        };
        let swapper = Swapper::new(&mut device, compute, sides, n_rows, config).unwrap();
        let pool = PinnedPool::new(shapes, n_rows, 3, max_pinned);
        let pager = Pager::new(pool, swapper, PredictConfig::default());
        DeviceTier::new(device, pager)
    }

    #[test]
    fn it_conforms_page_locked_or_not() {
        for max_pinned in [usize::MAX, 20_000, 0] {
            kiv_store::conformance::check(|g| Box::new(tier(g, max_pinned)), 8).unwrap();
        }
    }

    /// What was appended reaches the slots, and what replaced it after a cut, too.
    #[test]
    fn what_is_published_can_be_wanted() {
        let geometry = &kiv_store::conformance::geometries()[1];
        let mut tier = tier(geometry, usize::MAX);
        let mut tables = vec![SlotTable::new(geometry.n_slots); 2];
        let cells: Vec<u32> = (0..(geometry.n_slots * geometry.block) as u32).collect();
        let slots = Slots {
            cells: &cells,
            turn: None,
        };
        let mut wanted = Selection::default();
        wanted.reset(2);
        *wanted.head_mut(1) = vec![5];
        for round in 0..2u8 {
            for (layer, shape) in LayerShape::all(geometry).iter().enumerate() {
                for head in 0..shape.n_heads as usize {
                    let n = 6 - tier.appended[layer][head];
                    let rows = [0, 1].map(|s| vec![round + 1; n * tier.block_bytes(layer, s)]);
                    tier.append(layer, head, &rows[0], &rows[1]).unwrap();
                }
            }
            tier.publish(6 - tier.n_blocks()).unwrap();
            let step = u64::from(round);
            tier.fetch((0, step), &tables).unwrap();
            tier.ensure((0, step), &mut tables, &wanted, slots).unwrap();
            tier.settle(0).unwrap();
            let slot = tables[1].blocks().iter().position(|b| *b == 5).unwrap();
            // K of layer 0 was allocated first.
            let cell = slot * geometry.block;
            let mut row = [0; 64];
            let stream = tier.device.stream(false).unwrap();
            let at = crate::Buffer(0).at((2 * cell + 1) * 64);
            tier.device.read(stream, at, &mut row).unwrap();
            assert_eq!(row, [round + 1; 64]);
            tier.attended(0).unwrap();
            tier.truncate(4);
            tables = vec![SlotTable::new(geometry.n_slots); 2];
        }
        assert_eq!(tier.swapper().counters().blocks, 2);
        let device = tier.release().unwrap();
        assert_eq!(device.used(Memory::Pinned), 0);
        assert_eq!(device.races(), []);
    }
}
