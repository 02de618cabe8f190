//! From where blocks are to where they go, in as few launches as can be.

use super::Slots;
use super::landing::Landing;
use super::staging::Staging;
use crate::device::{Device, Stream};
use crate::pool::{PinnedPool, Place, PoolError, Row};
use crate::work::{At, Cache, Move, Rerotate, Scatter, Side, Turn, Work};

/// A block on its way.
pub(super) struct Item {
    pub(super) head: u32,
    pub(super) block: u32,
    /// Its landing place, if it is on the device.
    pub(super) landed: Option<u32>,
    /// Head and cells that it goes to.
    pub(super) to_head: u32,
    pub(super) to_cells: u32,
}

/// What a route has sent.
#[derive(Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) launches: u64,
    /// Over the bus.
    pub(super) bytes: u64,
    pub(super) staged: u64,
}

/// From cold rows, and landing places, to some caches.
pub(super) struct Route<'a> {
    pub(super) pool: &'a PinnedPool,
    pub(super) layer: usize,
    pub(super) stream: Stream,
    pub(super) staging: &'a mut Staging,
    pub(super) landing: Option<&'a Landing>,
    pub(super) sides: [Side; 2],
    pub(super) cells: &'a [u32],
    pub(super) n_rows: u32,
    pub(super) sent: Sent,
}

impl Route<'_> {
    /// Sends blocks on their way, in as few launches as the staging memory allows. `done`
    /// counts those that have been submitted.
    pub(super) fn send<D: Device>(
        &mut self,
        device: &mut D,
        items: &[Item],
        done: &mut usize,
    ) -> Result<(), PoolError> {
        let mut moves = Vec::new();
        self.staging.turn();
        for (i, item) in items.iter().enumerate() {
            if !self.staging.fits(self.staged_bytes(item)?) {
                self.launch(device, &moves)?;
                (*done, moves) = (i, Vec::new());
                self.staging.turn();
            }
            let source = |s: &mut Self, device: &mut D, side| s.source(device, item, side);
            moves.push(Move {
                sources: [source(self, device, 0)?, source(self, device, 1)?],
                cells: item.to_cells,
                head: item.to_head,
            });
        }
        self.launch(device, &moves)?;
        *done = items.len();
        Ok(())
    }

    fn row(&self, item: &Item, side: usize) -> Row {
        Row {
            layer: self.layer,
            head: item.head,
            block: item.block,
            side,
        }
    }

    /// Bytes of the staging memory that a block needs.
    fn staged_bytes(&self, item: &Item) -> Result<usize, PoolError> {
        let mut bytes = 0;
        for side in 0..2 {
            if item.landed.is_none()
                && let Place::Pageable(rows) = self.pool.find(self.row(item, side))?
            {
                bytes += Staging::room(rows.len());
            }
        }
        Ok(bytes)
    }

    /// Where a kernel finds rows of a block.
    fn source<D: Device>(
        &mut self,
        device: &mut D,
        item: &Item,
        side: usize,
    ) -> Result<At, PoolError> {
        if let (Some(place), Some(landing)) = (item.landed, self.landing) {
            let cache: Cache = landing.sides(self.layer)[side].cache;
            return Ok(cache.row(place * self.n_rows, 0));
        }
        let len = (self.sides[side].row_bytes() * self.n_rows as usize) as u64;
        self.sent.bytes += len;
        match self.pool.find(self.row(item, side))? {
            Place::Pinned(at) => Ok(at),
            Place::Pageable(rows) => {
                self.sent.staged += len;
                Ok(self.staging.put(device, self.stream, rows)?)
            }
        }
    }

    fn launch<D: Device>(&mut self, device: &mut D, moves: &[Move]) -> Result<(), PoolError> {
        if moves.is_empty() {
            return Ok(());
        }
        let work = Work::Scatter(Scatter {
            sides: self.sides,
            moves,
            cells: self.cells,
            n_rows: self.n_rows,
        });
        device.submit(self.stream, &work)?;
        self.sent.launches += 1;
        Ok(())
    }

    /// Turns the keys of blocks that have been sent to slots.
    pub(super) fn turn<D: Device>(
        &mut self,
        device: &mut D,
        items: &[Item],
        slots: &Slots<'_>,
    ) -> Result<(), PoolError> {
        let Some(turn) = slots.turn.filter(|_| !items.is_empty()) else {
            return Ok(());
        };
        // Every row by an angle of its own: it is where its cell was rotated from.
        let rows = |item: &Item| {
            let (cells, head) = (item.to_cells, item.to_head);
            (0..self.n_rows).map(move |angle| Turn {
                cells: cells + angle,
                head,
                angle,
            })
        };
        let turns: Vec<Turn> = items.iter().flat_map(rows).collect();
        let work = Work::Rerotate(Rerotate {
            cache: self.sides[0].cache,
            turns: &turns,
            cells: slots.cells,
            table: turn.table(),
            n_rows: 1,
            n_rot: turn.n_dims() as u32,
            pairing: turn.pairs(),
        });
        device.submit(self.stream, &work)?;
        self.sent.launches += 1;
        Ok(())
    }
}
