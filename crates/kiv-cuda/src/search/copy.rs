//! A head's index in a device's memory, and how it follows the index.

use super::{EXTRA, Part, Room, Section};
use crate::device::{Buffer, Device, DeviceError, Memory, Stream};
use kiv_fastscan::{GROUP, MAX_M};
use kiv_index::{HeadIndex, PartView, Stamp};

/// A device, as far as copies are concerned: how much of its memory they may take.
pub(super) struct Site<D> {
    pub device: D,
    pub stream: Stream,
    /// Bytes taken, of so many.
    pub taken: usize,
    pub max_bytes: usize,
}

impl<D: Device> Site<D> {
    pub(super) fn alloc(&mut self, bytes: usize) -> Result<Buffer, DeviceError> {
        if self.taken.saturating_add(bytes) > self.max_bytes {
            return Err(DeviceError::OutOfMemory {
                memory: Memory::Device,
                bytes,
            });
        }
        let buffer = self.device.alloc(Memory::Device, bytes)?;
        self.taken += bytes;
        Ok(buffer)
    }

    pub(super) fn free(&mut self, buffer: Buffer, bytes: usize) -> Result<(), DeviceError> {
        self.taken -= bytes;
        self.device.free(buffer)
    }
}

/// An era, or newest keys.
struct PartCopy {
    stamp: Stamp,
    segments: Vec<Stamp>,
    buffer: Buffer,
    room: Room,
    keys: usize,
    segment: usize,
    outliers: [usize; 2],
    step: f32,
    id: u32,
}

/// All of a head that is in no tail.
#[derive(Default)]
pub(super) struct HeadCopy {
    parts: Vec<PartCopy>,
}

impl HeadCopy {
    /// What searches read.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        self.parts.iter().map(|part| Part {
            at: part.buffer.at(0),
            room: part.room,
            keys: part.keys,
            segment: part.segment,
            outliers: part.outliers,
            step: part.step,
            id: part.id,
        })
    }

    /// Brings the copy up to date. After an error it may lack parts, and what it has is right.
    pub fn follow<D: Device>(
        &mut self,
        site: &mut Site<D>,
        index: &HeadIndex,
    ) -> Result<(), DeviceError> {
        let segment = index.params().segment;
        let same = |copy: &PartCopy, view: &PartView<'_>| {
            copy.stamp == *view.stamp && copy.room.has(&wanted(view, segment))
        };
        // What is gone makes room first.
        let (kept, gone) = (self.parts.drain(..))
            .partition::<Vec<_>, _>(|copy| index.parts().any(|view| same(copy, &view)));
        let mut kept = kept;
        for copy in gone {
            site.free(copy.buffer, copy.room.bytes())?;
        }
        let mut followed = Ok(());
        for view in index.parts() {
            followed = self.take_up(site, &view, segment, &mut kept);
            if followed.is_err() {
                break;
            }
        }
        // After an error; otherwise there are none left.
        self.parts.append(&mut kept);
        followed
    }

    /// The next part, which may be among those that are known.
    fn take_up<D: Device>(
        &mut self,
        site: &mut Site<D>,
        view: &PartView<'_>,
        segment: usize,
        known: &mut Vec<PartCopy>,
    ) -> Result<(), DeviceError> {
        let at = known.iter().position(|copy| copy.stamp == *view.stamp);
        let mut copy = match at {
            Some(at) => known.swap_remove(at),
            None => PartCopy::new(site, view, segment)?,
        };
        let followed = copy.follow(site, view);
        if followed.is_err() {
            // Nobody knows what it holds.
            copy.segments.clear();
            copy.keys = 0;
        }
        self.parts.push(copy);
        followed
    }

    /// Gives all memory back.
    pub fn release<D: Device>(&mut self, site: &mut Site<D>) -> Result<(), DeviceError> {
        for copy in self.parts.drain(..) {
            site.free(copy.buffer, copy.room.bytes())?;
        }
        Ok(())
    }
}

/// What a part takes.
fn wanted(view: &PartView<'_>, segment: usize) -> Room {
    let lists = view.lists.as_ref();
    Room {
        dim: view.dim,
        fine: view.fine.ends.len(),
        coarse: lists.map_or(0, |lists| lists.coarse.ends.len()),
        lists: lists.map_or(0, |lists| lists.ends.len()),
        keys: view.n_keys,
        centres: if lists.is_some() {
            1
        } else {
            view.n_keys.div_ceil(segment)
        },
        on: view.outliers.on.len(),
        beyond: view.outliers.beyond.len(),
    }
}

impl Room {
    /// Whether it is enough.
    fn has(&self, wanted: &Self) -> bool {
        let kind = |r: &Self| (r.dim, r.fine, r.coarse, r.lists);
        let sizes = |r: &Self| [r.keys, r.centres, r.on, r.beyond];
        let enough = sizes(self)
            .into_iter()
            .zip(sizes(wanted))
            .all(|(has, wants)| has >= wants);
        kind(self) == kind(wanted) && enough
    }

    /// With room for newest keys to come: twice as many at most, so that a key is copied
    /// twice at most.
    fn to_grow(self, segment: usize) -> Self {
        let now = self.centres.max(1);
        let segments = now.next_power_of_two();
        let more = |n: usize| (n.div_ceil(now) * segments * 5 / 4).next_multiple_of(GROUP);
        Self {
            keys: segments * segment,
            centres: segments,
            on: more(self.on),
            beyond: more(self.beyond),
            ..self
        }
    }
}

impl PartCopy {
    /// A copy with all that never changes.
    fn new<D: Device>(
        site: &mut Site<D>,
        view: &PartView<'_>,
        segment: usize,
    ) -> Result<Self, DeviceError> {
        let exact = wanted(view, segment);
        let is_era = view.lists.is_some();
        let room = if is_era {
            exact
        } else {
            exact.to_grow(segment)
        };
        let copy = Self {
            stamp: view.stamp.clone(),
            segments: Vec::new(),
            buffer: site.alloc(room.bytes())?,
            room,
            keys: 0,
            segment: if is_era { view.n_keys } else { segment },
            outliers: [0; 2],
            step: view.outliers.step,
            id: view.id,
        };
        let put = copy.put_fixed(site, view);
        if put.is_err() {
            site.free(copy.buffer, room.bytes())?;
        }
        put.map(|()| copy)
    }

    fn put<D: Device, T: bytemuck::NoUninit>(
        &self,
        site: &mut Site<D>,
        section: Section,
        (first, values): (usize, &[T]),
    ) -> Result<(), DeviceError> {
        if values.is_empty() {
            return Ok(());
        }
        let at = self.buffer.at(self.room.offset(section) + first);
        let bytes = bytemuck::cast_slice(values);
        site.device.upload(site.stream, at, bytes)
    }

    fn put_fixed<D: Device>(
        &self,
        site: &mut Site<D>,
        view: &PartView<'_>,
    ) -> Result<(), DeviceError> {
        self.put(site, Section::QueryMap, (0, view.query_map))?;
        self.put(site, Section::FineAxes, (0, view.fine.axes))?;
        self.put(site, Section::FineEnds, (0, view.fine.ends))?;
        self.put(site, Section::FineBook, (0, view.fine.centroids))?;
        if let Some(lists) = &view.lists {
            debug_assert!(
                lists.codes.len()
                    == 16 * (self.room.coarse + EXTRA) * self.room.lists.div_ceil(GROUP)
            );
            self.put(site, Section::CoarseAxes, (0, lists.coarse.axes))?;
            self.put(site, Section::CoarseEnds, (0, lists.coarse.ends))?;
            self.put(site, Section::CoarseBook, (0, lists.coarse.centroids))?;
            self.put(site, Section::Widths, (0, lists.widths))?;
            self.put(site, Section::Lists, (0, lists.codes))?;
            self.put(site, Section::WidthCodes, (0, lists.width_codes))?;
            self.put(site, Section::ListEnds, (0, lists.ends))?;
        }
        Ok(())
    }

    /// Copies keys that have come, and forgets those that were cut off.
    fn follow<D: Device>(
        &mut self,
        site: &mut Site<D>,
        view: &PartView<'_>,
    ) -> Result<(), DeviceError> {
        let pairs = self.segments.iter().zip(view.segments);
        let same = pairs.take_while(|(a, b)| a == b).count();
        let is_whole = self.keys == view.n_keys && same == view.segments.len();
        if is_whole {
            return Ok(());
        }
        let known = if view.lists.is_some() {
            0
        } else {
            same * self.segment
        };
        if known < view.n_keys {
            let code_bytes = 16 * self.room.fine * known / GROUP;
            self.put(site, Section::Keys, (code_bytes, &view.keys[code_bytes..]))?;
            let values = same * self.room.dim;
            let centres = &view.centres[values.min(view.centres.len())..];
            self.put(site, Section::Centres, (4 * values, centres))?;
            self.put(site, Section::Marks, (0, view.marks))?;
            self.put_outliers(site, view)?;
        }
        self.segments = view.segments.to_vec();
        self.keys = view.n_keys;
        self.outliers = [view.outliers.on.len(), view.outliers.beyond.len()];
        Ok(())
    }

    /// All of them: they are few, and the last group of codes changes.
    fn put_outliers<D: Device>(
        &self,
        site: &mut Site<D>,
        view: &PartView<'_>,
    ) -> Result<(), DeviceError> {
        let outliers = &view.outliers;
        self.put(site, Section::On, (0, outliers.on))?;
        self.put(site, Section::Beyond, (0, outliers.beyond))?;
        self.put(site, Section::Vectors, (0, outliers.vectors))?;
        let runs = outliers.codes.iter().enumerate();
        for (run, codes) in runs {
            let at = run * 16 * MAX_M * self.room.on.div_ceil(GROUP);
            self.put(site, Section::OutlierCodes, (at, codes))?;
        }
        Ok(())
    }
}
