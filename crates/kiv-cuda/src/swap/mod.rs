//! Blocks on their way to slots, on streams of their own.
//!
//! ```text
//! ahead    ──fetch l+1──────────fetch l+2──────   cold rows → landing places
//! urgent   ────────swap l────────────swap l+1──   cold rows and landing places → slots
//! compute  ─layer l-1─┘─attention l──…─┘──────
//! ```
//!
//! Whatever orders two streams is an event: attention of a layer comes after the layer's
//! swap, the swap after the last attention that read the slots; a swap comes after the
//! fetch whose landing places it empties, the next fetch of that layer after the swap.

mod landing;
mod meter;
mod route;
mod staging;

pub use meter::{Overlap, Span};

use crate::device::{Device, DeviceError, Stream};
use crate::pool::{LayerShape, PinnedPool, PoolError};
use crate::work::{Side, WorkError};
use kiv_numeric::rope::Turn;
use kiv_policy::RowFormat;
use kiv_pool::Swap;
use landing::Landing;
use meter::Meter;
use route::{Item, Route, Sent};
use staging::Staging;

/// Sizes of a swapper's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapConfig {
    /// Blocks of each layer, of all KV heads together, that may be on the device before
    /// they are wanted.
    pub landing: u32,
    /// Bytes of each half of the staging memory, which pageable rows go through; it holds
    /// a block's rows at least. There are two halves for each of two streams.
    pub staging: usize,
}

impl Default for SwapConfig {
    fn default() -> Self {
        Self {
            landing: 64,
            staging: 4 << 20,
        }
    }
}

/// What a swapper has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Blocks (of one KV head) that came into slots.
    pub blocks: u64,
    /// Those of them that had landed before they were wanted.
    pub landed: u64,
    /// Blocks fetched ahead.
    pub fetched: u64,
    /// Those of them that made way for others, never wanted.
    pub wasted: u64,
    /// Bytes of rows that crossed the bus for slots, wanted already.
    pub bytes: u64,
    /// Bytes of rows that crossed it ahead.
    pub bytes_ahead: u64,
    /// Bytes, of both, that went through staging memory.
    pub staged: u64,
    /// Kernels that filled slots.
    pub launches: u64,
    /// Kernels that fetched ahead.
    pub launches_ahead: u64,
    /// Times that a stream was told to wait for another.
    pub waits: u64,
}

impl Counters {
    /// Share of the blocks that came into slots, 0 to 1, that had landed before they were
    /// wanted; 0 if none came.
    #[must_use]
    pub fn foreseen(&self) -> f64 {
        self.landed as f64 / self.blocks.max(1) as f64
    }

    /// Share of the blocks fetched ahead, 0 to 1, that came into slots so far; 0 if none
    /// were.
    #[must_use]
    pub fn useful(&self) -> f64 {
        self.landed as f64 / self.fetched.max(1) as f64
    }
}

/// The slots of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Slots<'a> {
    /// Cells of every slot, slot after slot.
    pub cells: &'a [u32],
    /// How the keys of a block are turned there, row by row, for positions that are remapped:
    /// the first values of rows of f16.
    pub turn: Option<&'a Turn>,
}

/// A swap that failed, in whole or in part.
#[derive(Debug, thiserror::Error)]
#[error("blocks of layer {layer} could not be swapped in")]
pub struct SwapError {
    /// Why.
    pub source: PoolError,
    /// The layer.
    pub layer: usize,
    /// The swaps that did not happen, with their KV heads: those slots hold what they held.
    pub undone: Vec<(u32, Swap)>,
    /// Those that did, but for turning the keys: those slots are to be filled again before
    /// anybody attends to them.
    pub torn: Vec<(u32, Swap)>,
}

/// What a layer's streams have last done with its slots and landing places.
struct Marks<E> {
    attended: Option<E>,
    swapped: Option<E>,
    landed: Option<E>,
}

/// Moves blocks of all layers into slots.
pub struct Swapper<D: Device> {
    sides: Vec<[Side; 2]>,
    n_rows: u32,
    compute: Stream,
    urgent: Stream,
    ahead: Stream,
    marks: Vec<Marks<D::Event>>,
    staging: [Staging; 2],
    landing: Option<Landing>,
    meter: Meter<D>,
    counters: Counters,
}

impl<D: Device> Swapper<D> {
    /// A swapper for these caches, K and V of every layer, and blocks of `n_rows` rows.
    /// `compute` is the stream that attention runs on.
    ///
    /// Without memory for landing places there are none: nothing is fetched ahead.
    ///
    /// # Errors
    /// [`DeviceError`]; memory that was taken by then is given back.
    pub fn new(
        device: &mut D,
        compute: Stream,
        sides: Vec<[Side; 2]>,
        n_rows: u32,
        config: SwapConfig,
    ) -> Result<Self, DeviceError> {
        let shapes: Vec<LayerShape> = sides.iter().map(shape).collect();
        let block = |l: &LayerShape| {
            (0..2)
                .map(|s| l.bytes(s, n_rows).next_multiple_of(16))
                .sum()
        };
        let least = shapes.iter().map(block).max().unwrap_or(0);
        let staging = config.staging.max(least);
        let (urgent, ahead) = (device.stream(true)?, device.stream(false)?);
        let first = Staging::new(device, staging)?;
        let second = match Staging::new(device, staging) {
            Ok(second) => second,
            Err(error) => {
                first.release(device)?;
                return Err(error);
            }
        };
        let staging = [first, second];
        let landing = match Landing::new(device, &sides, n_rows, config.landing) {
            Ok(landing) => landing,
            Err(error) => {
                staging.into_iter().try_for_each(|s| s.release(device))?;
                return Err(error);
            }
        };
        let marks = || Marks {
            attended: None,
            swapped: None,
            landed: None,
        };
        Ok(Self {
            marks: sides.iter().map(|_| marks()).collect(),
            sides,
            n_rows,
            compute,
            urgent,
            ahead,
            staging,
            landing,
            meter: Meter::default(),
            counters: Counters::default(),
        })
    }

    /// What has been done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How much of the time of transfers was hidden, after waiting for all of them.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn overlap(&mut self, device: &mut D) -> Result<Overlap, DeviceError> {
        self.meter.read(device)
    }

    /// Begins a list of the transfers from now on, for [`Swapper::listed`].
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn list(&mut self, device: &mut D) -> Result<(), DeviceError> {
        let now = device.record(self.compute)?;
        self.meter.list(device, now)
    }

    /// Ends the list: when each transfer has begun and ended, after waiting for all of them.
    /// Empty unless there is one.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn listed(&mut self, device: &mut D) -> Result<Vec<Span>, DeviceError> {
        self.meter.listed(device)
    }

    /// Says that everything submitted to the compute stream so far, attention of this
    /// layer included, comes before the layer's slots may change again.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn attended(&mut self, device: &mut D, layer: usize) -> Result<(), DeviceError> {
        self.marks[layer].attended = Some(device.record(self.compute)?);
        Ok(())
    }

    /// Brings blocks into slots of a layer; what the compute stream is given from now on
    /// sees them. Swaps are listed by KV head.
    ///
    /// All of them are one launch, K and V of all KV heads, unless more are pageable than
    /// fit the staging memory, and one more if keys are turned.
    ///
    /// # Errors
    /// [`SwapError`], which says what did not happen.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn swap(
        &mut self,
        device: &mut D,
        pool: &PinnedPool,
        layer: usize,
        swaps: &[Vec<Swap>],
        slots: Slots<'_>,
    ) -> Result<(), SwapError> {
        let mut items = Vec::new();
        for (head, swaps) in (0u32..).zip(swaps) {
            for swap in swaps {
                let landing = self.landing.as_ref();
                items.push(Item {
                    head,
                    block: swap.block,
                    landed: landing.and_then(|l| l.find(layer, (head, swap.block))),
                    to_head: head,
                    to_cells: swap.slot * self.n_rows,
                });
            }
        }
        if items.is_empty() {
            return Ok(());
        }
        let mut sent = 0;
        let mut turned = 0;
        let progress = (&mut sent, &mut turned);
        let result = self.bring(device, pool, layer, &items, slots, progress);
        for item in &items[..sent] {
            self.counters.blocks += 1;
            if let (Some(place), Some(landing)) = (item.landed, &mut self.landing) {
                landing.empty(layer, place);
                self.counters.landed += 1;
            }
        }
        result.map_err(|source| {
            let each = (0u32..).zip(swaps);
            let all = each.flat_map(|(head, swaps)| swaps.iter().map(move |s| (head, *s)));
            let all: Vec<(u32, Swap)> = all.collect();
            SwapError {
                source,
                layer,
                undone: all[sent..].to_vec(),
                torn: all[turned..sent].to_vec(),
            }
        })
    }

    fn bring(
        &mut self,
        device: &mut D,
        pool: &PinnedPool,
        layer: usize,
        items: &[Item],
        slots: Slots<'_>,
        (sent, turned): (&mut usize, &mut usize),
    ) -> Result<(), PoolError> {
        let sides = self.sides[layer];
        if let Some(turn) = slots.turn {
            // Before anything has moved.
            let reason = if sides[0].cache.format != RowFormat::F16 {
                Some("only f16 rows turn")
            } else if turn.first() != 0 || turn.n_rows() != self.n_rows as usize {
                Some("only the first values turn, of all rows of a block")
            } else {
                None
            };
            if let Some(reason) = reason {
                return Err(DeviceError::from(WorkError::Unsupported(reason)).into());
            }
        }
        let reached = device.record(self.compute)?;
        let marks = &self.marks[layer];
        let landed = marks.landed.as_ref();
        let landed = landed.filter(|_| items.iter().any(|item| item.landed.is_some()));
        for event in marks.attended.iter().chain(landed) {
            device.wait(self.urgent, event)?;
            self.counters.waits += 1;
        }
        let begin = device.record(self.urgent)?;
        let mut route = Route {
            pool,
            layer,
            stream: self.urgent,
            staging: &mut self.staging[0],
            landing: self.landing.as_ref(),
            sides,
            cells: slots.cells,
            n_rows: self.n_rows,
            sent: Sent::default(),
        };
        let mut result = route.send(device, items, sent);
        // Also after a failure: what did go out is turned and waited for.
        let turning = route.turn(device, &items[..*sent], &slots);
        if turning.is_ok() {
            *turned = *sent;
        }
        result = result.and(turning);
        let total = route.sent;
        self.counters.launches += total.launches;
        self.counters.bytes += total.bytes;
        self.counters.staged += total.staged;
        if *sent > 0 {
            let end = device.record(self.urgent)?;
            device.wait(self.compute, &end)?;
            self.counters.waits += 1;
            self.marks[layer].swapped = Some(end.clone());
            self.meter.add(device, [begin, end], Some(reached))?;
        }
        result
    }

    /// Fetches blocks (KV head, block) that may be wanted soon to landing places, the first
    /// ones if there are more than places. Returns how many are new.
    ///
    /// Places hold what they held if it is among these; else what has been there longest
    /// makes way.
    ///
    /// # Errors
    /// [`PoolError`]; places that were to be filled are empty then.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn fetch(
        &mut self,
        device: &mut D,
        pool: &PinnedPool,
        layer: usize,
        likely: &[(u32, u32)],
    ) -> Result<usize, PoolError> {
        let Some(landing) = &mut self.landing else {
            return Ok(0);
        };
        let (places, wasted) = landing.claim(layer, likely);
        self.counters.wasted += wasted;
        if places.is_empty() {
            return Ok(0);
        }
        let item = |(place, head, block): &(u32, u32, u32)| Item {
            head: *head,
            block: *block,
            landed: None,
            to_head: 0,
            to_cells: place * self.n_rows,
        };
        let items: Vec<Item> = places.iter().map(item).collect();
        let result = self.fetch_items(device, pool, layer, &items);
        if let (Err(_), Some(landing)) = (&result, &mut self.landing) {
            for (place, _, _) in &places {
                landing.empty(layer, *place);
            }
        }
        result.map(|()| places.len())
    }

    fn fetch_items(
        &mut self,
        device: &mut D,
        pool: &PinnedPool,
        layer: usize,
        items: &[Item],
    ) -> Result<(), PoolError> {
        let Some(landing) = &self.landing else {
            return Ok(());
        };
        if let Some(event) = &self.marks[layer].swapped {
            device.wait(self.ahead, event)?;
            self.counters.waits += 1;
        }
        let begin = device.record(self.ahead)?;
        let mut route = Route {
            pool,
            layer,
            stream: self.ahead,
            staging: &mut self.staging[1],
            landing: None,
            sides: landing.sides(layer),
            cells: landing.cells(),
            n_rows: self.n_rows,
            sent: Sent::default(),
        };
        let result = route.send(device, items, &mut 0);
        let sent = route.sent;
        self.counters.launches_ahead += sent.launches;
        self.counters.bytes_ahead += sent.bytes;
        self.counters.staged += sent.staged;
        self.counters.fetched += items.len() as u64;
        let end = device.record(self.ahead)?;
        self.marks[layer].landed = Some(end.clone());
        self.meter.add(device, [begin, end], None)?;
        result
    }

    /// Waits on the host until a layer's last swap is complete: for a compute stream that
    /// cannot be told to wait.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn settle(&mut self, device: &mut D, layer: usize) -> Result<(), DeviceError> {
        match &self.marks[layer].swapped {
            Some(event) => device.sync(event),
            None => Ok(()),
        }
    }

    /// Forgets what has landed of blocks from `n_blocks` on: other rows will have their
    /// numbers.
    pub fn forget(&mut self, n_blocks: u32) {
        if let Some(landing) = &mut self.landing {
            landing.forget(n_blocks);
        }
    }

    /// Gives back all memory, once nothing uses it any more.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn release(self, device: &mut D) -> Result<(), DeviceError> {
        let mut staging = self.staging.into_iter();
        staging.try_for_each(|s| s.release(device))?;
        self.landing.map_or(Ok(()), |l| l.release(device))
    }
}

/// What the blocks of a layer's caches look like in the cold store.
fn shape(sides: &[Side; 2]) -> LayerShape {
    LayerShape {
        n_heads: sides[0].cache.n_heads,
        row_len: sides.map(|s| s.cache.row_len),
        stored: sides.map(|s| s.stored),
    }
}
