//! Indices searched on a device.

use super::copy::{HeadCopy, Site};
use super::{Layout, Search};
use crate::device::{Buffer, Device, DeviceError};
use crate::reference::unordered;
use kiv_index::{Asked, Effort, Finder, Found, HeadIndex};

/// How a device may be used.
#[derive(Clone, Copy, Debug)]
pub struct FinderConfig {
    /// Most bytes of its memory that copies of indices and searches take.
    pub max_bytes: usize,
    /// Is told in one line when something is left to the CPU from then on.
    pub warn: fn(&str),
}

/// Searches copies of indices in a device's memory, which follow them.
///
/// A layer whose copy finds no room is left to the CPU, and so is everything after the device
/// has failed: what is found is the same.
pub struct DeviceFinder<D: Device> {
    site: Site<D>,
    layers: Vec<LayerCopy>,
    /// Where searches work.
    memory: Option<(Buffer, usize)>,
    warn: fn(&str),
    /// Whether the device has failed.
    is_broken: bool,
    has_warned: bool,
    searches: u64,
    answer: Vec<u8>,
}

#[derive(Default)]
struct LayerCopy {
    heads: Vec<HeadCopy>,
    /// Keys from which on there is no room for it.
    too_many: Option<usize>,
}

impl<D: Device> DeviceFinder<D> {
    /// Nothing is copied yet.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn new(mut device: D, config: FinderConfig) -> Result<Self, DeviceError> {
        Ok(Self {
            site: Site {
                stream: device.stream(true)?,
                device,
                taken: 0,
                max_bytes: config.max_bytes,
            },
            layers: Vec::new(),
            memory: None,
            warn: config.warn,
            is_broken: false,
            has_warned: false,
            searches: 0,
            answer: Vec::new(),
        })
    }

    /// The device.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.site.device
    }

    fn try_find(
        &mut self,
        layer: usize,
        heads: &[&HeadIndex],
        asked: Asked<'_>,
        effort: Effort,
        found: &mut [Option<Found>],
    ) -> Result<(), DeviceError> {
        let copies = &mut self.layers[layer].heads;
        copies.resize_with(heads.len(), HeadCopy::default);
        let site = &mut self.site;
        for (copy, index) in copies.iter_mut().zip(heads) {
            copy.follow(site, index)?;
        }
        let mut parts = Vec::new();
        let mut bounds = vec![0];
        for copy in copies {
            parts.extend(copy.parts());
            bounds.push(parts.len() as u32);
        }
        let params = heads[0].params();
        let n_queries = asked.queries.len() / params.dim;
        let floors: Vec<f32> = (0..n_queries).map(|query| asked.floor(query)).collect();
        // First without a place, to see how large it is.
        let mut search = Search {
            parts: &parts,
            heads: &bounds,
            queries: asked.queries,
            floors: &floors,
            dim: params.dim,
            list: params.list,
            effort,
            memory: Buffer(0).at(0),
        };
        let layout = Layout::new(&search);
        let bytes = layout.bytes();
        if let Some((buffer, has)) = self.memory.take_if(|(_, has)| *has < bytes) {
            site.free(buffer, has)?;
        }
        let (buffer, _) = match self.memory {
            Some(memory) => memory,
            None => {
                // It grows with every segment.
                let more = bytes + bytes / 4;
                *self.memory.insert((site.alloc(more)?, more))
            }
        };
        search.memory = buffer.at(0);
        site.device.submit(site.stream, &search.into())?;
        self.answer.resize(layout.found_bytes(), 0);
        site.device
            .read(site.stream, buffer.at(0), &mut self.answer)?;
        let group = search.group();
        for (head, found) in found.iter_mut().enumerate() {
            *found = told(&layout, &self.answer, head * group..(head + 1) * group);
            self.searches += u64::from(found.is_some());
        }
        Ok(())
    }

    /// Gives back all memory but the device itself.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn into_device(mut self) -> Result<D, DeviceError> {
        for layer in 0..self.layers.len() {
            self.release(layer)?;
        }
        if let Some((buffer, _)) = self.memory.take() {
            self.site.device.free(buffer)?;
        }
        Ok(self.site.device)
    }

    /// Leaves a layer to the CPU.
    fn release(&mut self, layer: usize) -> Result<(), DeviceError> {
        for mut copy in self.layers[layer].heads.drain(..) {
            copy.release(&mut self.site)?;
        }
        Ok(())
    }

    fn warn(&mut self, what: &str) {
        if !self.has_warned {
            self.has_warned = true;
            (self.warn)(what);
        }
    }

    fn fail(&mut self, error: &DeviceError) {
        self.is_broken = true;
        self.has_warned = false;
        self.warn(&format!(
            "the index is searched on the CPU from here on: {error}"
        ));
    }
}

/// Whether there are kernels for keys of so many values.
fn has_kernels(dim: usize) -> bool {
    dim.is_multiple_of(16) && dim <= super::MAX_DIM
}

/// What is told of a head's rows; `None` if the CPU has to search it.
fn told(layout: &Layout, answer: &[u8], rows: std::ops::Range<usize>) -> Option<Found> {
    let word = |at: usize, i: usize| {
        let bytes = &answer[at + 4 * i..][..4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    };
    let n = layout.told.out();
    let mut found = Found::default();
    for row in rows {
        if word(layout.status, 2 * row) != 0 {
            return None;
        }
        let places = row * n..(row + 1) * n;
        let keys = places.map(|i| (word(layout.found_scores, i), word(layout.found_ids, i)));
        let keys: Vec<(u32, u32)> = keys.filter(|(score, _)| *score != 0).collect();
        if layout.is_cut_in_a_tie(&keys) {
            return None;
        }
        let keys = keys.into_iter();
        let least = f32::from_bits(word(layout.status, 2 * row + 1));
        found.push(keys.map(|(score, id)| (unordered(score), id)), least);
    }
    Some(found)
}

impl<D: Device + Send> Finder for DeviceFinder<D> {
    fn find(
        &mut self,
        layer: usize,
        heads: &[&HeadIndex],
        asked: Asked<'_>,
        effort: Effort,
        found: &mut [Option<Found>],
    ) {
        let Some(first) = heads.first() else {
            return;
        };
        let n_keys = first.len();
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, LayerCopy::default);
        }
        let is_too_large = self.layers[layer].too_many.is_some_and(|n| n_keys >= n);
        let has_none = heads.iter().any(|index| index.parts().next().is_none());
        let fits = heads.iter().all(|index| index.params() == first.params())
            && has_kernels(first.params().dim);
        if self.is_broken || is_too_large || has_none || !fits {
            return;
        }
        match self.try_find(layer, heads, asked, effort, found) {
            Ok(()) => self.layers[layer].too_many = None,
            Err(DeviceError::OutOfMemory { .. }) => {
                self.layers[layer].too_many = Some(n_keys);
                self.warn(
                    "the device has no room for all of the index: layers that find none are \
                     searched on the CPU",
                );
                if let Err(error) = self.release(layer) {
                    self.fail(&error);
                }
            }
            // What no kernel does, is not asked again.
            Err(error) => self.fail(&error),
        }
    }

    fn bytes(&self) -> usize {
        self.site.taken
    }

    fn searches(&self) -> u64 {
        self.searches
    }
}
