//! Places on the device for blocks that may be wanted soon.
//!
//! They are not slots: what is there is not attended, and takes nothing's place that
//! is. So it does not matter to results what was fetched.

use crate::device::{Buffer, Device, DeviceError, Memory};
use crate::work::{Cache, Side};

/// KV head and block, and when it came.
#[derive(Clone, Copy, Debug)]
struct Landed {
    what: (u32, u32),
    since: u64,
}

#[derive(Debug)]
pub(super) struct Landing {
    buffers: Vec<Buffer>,
    /// `[layer]`: K and V of all places, a row to a cell, as they are stored.
    sides: Vec<[Side; 2]>,
    /// All cells, in order.
    cells: Vec<u32>,
    /// `[layer][place]`
    places: Vec<Vec<Option<Landed>>>,
    n_places: u32,
    clock: u64,
}

impl Landing {
    /// Places for `n_places` blocks of every layer; none if there is no memory for them.
    pub(super) fn new<D: Device>(
        device: &mut D,
        caches: &[[Side; 2]],
        n_rows: u32,
        n_places: u32,
    ) -> Result<Option<Self>, DeviceError> {
        if n_places == 0 {
            return Ok(None);
        }
        let n_cells = n_places * n_rows;
        let mut landing = Self {
            buffers: Vec::new(),
            sides: caches.to_vec(),
            cells: (0..n_cells).collect(),
            places: vec![vec![None; n_places as usize]; caches.len()],
            n_places,
            clock: 0,
        };
        for i in 0..2 * caches.len() {
            let side = &mut landing.sides[i / 2][i % 2];
            match device.alloc(Memory::Device, side.row_bytes() * n_cells as usize) {
                Ok(buffer) => {
                    landing.buffers.push(buffer);
                    side.cache = Cache {
                        at: buffer.at(0),
                        n_cells,
                        n_heads: 1,
                        row_len: side.cache.row_len,
                        format: side.stored,
                    };
                }
                Err(error) => {
                    landing.release(device)?;
                    return match error {
                        DeviceError::OutOfMemory { .. } => Ok(None),
                        other => Err(other),
                    };
                }
            }
        }
        Ok(Some(landing))
    }

    pub(super) fn sides(&self, layer: usize) -> [Side; 2] {
        self.sides[layer]
    }

    pub(super) fn cells(&self) -> &[u32] {
        &self.cells
    }

    /// Where a block is.
    pub(super) fn find(&self, layer: usize, what: (u32, u32)) -> Option<u32> {
        let places = &self.places[layer];
        let at = places
            .iter()
            .position(|p| p.is_some_and(|p| p.what == what));
        at.map(|place| place as u32)
    }

    pub(super) fn empty(&mut self, layer: usize, place: u32) {
        self.places[layer][place as usize] = None;
    }

    pub(super) fn forget(&mut self, n_blocks: u32) {
        for place in self.places.iter_mut().flatten() {
            *place = place.filter(|p| p.what.1 < n_blocks);
        }
    }

    /// Gives places to those of `likely` that have none, the first if there are too many:
    /// (place, head, block) of each, and how many blocks made way.
    pub(super) fn claim(
        &mut self,
        layer: usize,
        likely: &[(u32, u32)],
    ) -> (Vec<(u32, u32, u32)>, u64) {
        self.clock += 1;
        let likely = &likely[..likely.len().min(self.n_places as usize)];
        let mut new: Vec<(u32, u32)> = Vec::new();
        for what in likely {
            if self.find(layer, *what).is_none() && !new.contains(what) {
                new.push(*what);
            }
        }
        let places = &mut self.places[layer];
        let stays = |p: &Option<Landed>| p.is_some_and(|p| likely.contains(&p.what));
        let mut free: Vec<usize> = (0..places.len()).filter(|i| !stays(&places[*i])).collect();
        free.sort_by_key(|i| places[*i].map_or(0, |p| p.since));
        let (mut claimed, mut wasted) = (Vec::new(), 0);
        for (what, place) in new.into_iter().zip(free) {
            wasted += u64::from(places[place].is_some());
            places[place] = Some(Landed {
                what,
                since: self.clock,
            });
            claimed.push((place as u32, what.0, what.1));
        }
        (claimed, wasted)
    }

    pub(super) fn release<D: Device>(self, device: &mut D) -> Result<(), DeviceError> {
        for buffer in self.buffers {
            device.free(buffer)?;
        }
        Ok(())
    }
}
