//! Cold rows, what is in slots and what is on its way.

use crate::device::{Device, DeviceError};
use crate::pool::{PinnedPool, PoolError};
use crate::predict::{PredictConfig, Predictor};
use crate::swap::{Slots, SwapError, Swapper};
use kiv_policy::Selection;
use kiv_pool::{SlotTable, Swap};

/// Brings what is wanted into the slots of every layer, and fetches ahead what may be.
///
/// For every token: [`Pager::fetch`] for a layer some time before its turn, then
/// [`Pager::ensure`] with what its queries want, then attention on the compute stream, then
/// [`Pager::attended`]. Slots hold the same blocks whatever was fetched ahead. Slot tables,
/// by KV head, are the caller's.
pub struct Pager<D: Device> {
    pool: PinnedPool,
    swapper: Swapper<D>,
    predictor: Predictor,
    /// Blocks that there are rows of.
    n_blocks: u32,
    swaps: Vec<Vec<Swap>>,
}

impl<D: Device> Pager<D> {
    /// A pager for the rows of `pool`.
    #[must_use]
    pub fn new(pool: PinnedPool, swapper: Swapper<D>, predict: PredictConfig) -> Self {
        let n_heads = pool.layers().iter().map(|layer| layer.n_heads as usize);
        let n_heads: Vec<usize> = n_heads.collect();
        Self {
            predictor: Predictor::new(predict, &n_heads),
            pool,
            swapper,
            n_blocks: 0,
            swaps: Vec::new(),
        }
    }

    /// The cold rows, to add some. They count once [`Pager::publish`] says so.
    pub fn pool_mut(&mut self) -> &mut PinnedPool {
        &mut self.pool
    }

    /// The cold rows.
    #[must_use]
    pub fn pool(&self) -> &PinnedPool {
        &self.pool
    }

    /// Says that rows of the first `n_blocks` blocks are in the pool.
    pub fn publish(&mut self, n_blocks: u32) {
        self.n_blocks = n_blocks;
    }

    /// What moves blocks: how much was hidden.
    pub fn swapper_mut(&mut self) -> &mut Swapper<D> {
        &mut self.swapper
    }

    /// What moves blocks: counters.
    #[must_use]
    pub fn swapper(&self) -> &Swapper<D> {
        &self.swapper
    }

    /// Fetches what a layer will probably want at `step` and has in none of its slots;
    /// returns how many blocks. To be called while something else is computed.
    ///
    /// # Errors
    /// [`PoolError`]; nothing is lost but time.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn fetch(
        &mut self,
        device: &mut D,
        (layer, step): (usize, u64),
        tables: &[SlotTable],
    ) -> Result<usize, PoolError> {
        let likely = self.predictor.likely(layer, step, tables, self.n_blocks);
        self.swapper.fetch(device, &self.pool, layer, &likely)
    }

    /// Brings what a layer wants into its slots, before whatever the compute stream is given
    /// next. `wanted` has been validated; what came next in the policy's opinion, if it
    /// says, is fetched ahead later on.
    ///
    /// # Errors
    /// [`SwapError`]. Tables say what slots hold then, so this may be called again, after
    /// [`Pager::fill`] if some are torn.
    ///
    /// # Panics
    /// If `wanted` is for another number of KV heads, or [`SlotTable::want`] does.
    pub fn ensure(
        &mut self,
        device: &mut D,
        (layer, step): (usize, u64),
        tables: &mut [SlotTable],
        wanted: &Selection,
        slots: Slots<'_>,
    ) -> Result<(), SwapError> {
        let n_heads = tables.len();
        assert_eq!(wanted.n_heads(), n_heads, "a selection for every KV head");
        let mut swaps = std::mem::take(&mut self.swaps);
        swaps.resize_with(n_heads, Vec::new);
        for (head, table) in tables.iter_mut().enumerate() {
            table.want(wanted.head(head), step, &mut swaps[head]);
        }
        let at = (layer, step);
        let result = self.bring(device, at, wanted, &swaps, slots);
        self.swaps = swaps;
        if let Err(error) = &result {
            for (head, swap) in &error.undone {
                tables[*head as usize].put(swap.slot, swap.leaving);
            }
        }
        result
    }

    /// As [`Pager::ensure`], for a caller that has asked its slot tables itself: `swaps`, by
    /// KV head, are what they said, and those that did not happen are the caller's to put
    /// back.
    ///
    /// # Errors
    /// [`SwapError`].
    ///
    /// # Panics
    /// If `wanted` or `swaps` are for another number of KV heads.
    pub fn bring(
        &mut self,
        device: &mut D,
        (layer, step): (usize, u64),
        wanted: &Selection,
        swaps: &[Vec<Swap>],
        slots: Slots<'_>,
    ) -> Result<(), SwapError> {
        assert_eq!(wanted.n_heads(), swaps.len(), "swaps of every KV head");
        for (head, swaps) in swaps.iter().enumerate() {
            let (at, runners) = ((layer, head), wanted.runners(head));
            let wanted = wanted.head(head);
            self.predictor.observe(at, step, wanted, runners, swaps);
        }
        self.swapper.swap(device, &self.pool, layer, swaps, slots)
    }

    /// Brings given blocks into given slots, such as those that have to be filled again.
    /// Tables are not asked.
    ///
    /// # Errors
    /// [`SwapError`].
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn fill(
        &mut self,
        device: &mut D,
        layer: usize,
        swaps: &[Vec<Swap>],
        slots: Slots<'_>,
    ) -> Result<(), SwapError> {
        self.swapper.swap(device, &self.pool, layer, swaps, slots)
    }

    /// Says that a layer's attention has been submitted.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn attended(&mut self, device: &mut D, layer: usize) -> Result<(), DeviceError> {
        self.swapper.attended(device, layer)
    }

    /// Forgets blocks from `n_blocks` on. Slots that held some hold nothing that counts:
    /// the caller's tables must not name those blocks any more.
    ///
    /// # Errors
    /// [`PoolError::Device`].
    pub fn truncate(&mut self, device: &mut D, n_blocks: u32) -> Result<(), PoolError> {
        self.n_blocks = self.n_blocks.min(n_blocks);
        self.swapper.forget(n_blocks);
        self.predictor.truncate(n_blocks);
        self.pool.truncate(device, n_blocks as usize)
    }

    /// Gives back all memory, once nothing uses it any more.
    ///
    /// # Errors
    /// [`PoolError::Device`].
    pub fn release(mut self, device: &mut D) -> Result<(), PoolError> {
        self.swapper.release(device)?;
        self.pool.truncate(device, 0)
    }
}
