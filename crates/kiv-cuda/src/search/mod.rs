//! The K-index's search on a device: what it is asked, copies of indices in its memory, and
//! the [`kiv_index::Finder`] that they make.
//!
//! A copy of a part of an index (an era, or newest keys) is one stretch of a buffer, whose
//! sections follow from what there is room for ([`Room`]). A search is one piece of work of
//! several kernels ([`Search`]), which write to one stretch of memory ([`Layout`]).

mod copy;
mod finder;
mod layout;
pub(crate) mod reference;

pub use finder::{DeviceFinder, FinderConfig};
pub use layout::Layout;
#[cfg(any(feature = "cuda", test))]
pub(crate) use layout::{Choice, TILE};

use crate::work::{Access, At, WorkError};
use kiv_fastscan::{CENTROIDS, GROUP, MAX_M};
use kiv_index::Effort;

/// Subquantizers of a list beyond those of its mean: its width, and nothing.
pub(crate) const EXTRA: usize = 2;

/// Longest keys that there are kernels for.
const MAX_DIM: usize = 512;

/// Most queries of a head that are searched for together.
const MAX_GROUP: usize = 64;

/// What a copy of a part has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Values of a key.
    pub dim: usize,
    /// Subquantizers of a key.
    pub fine: usize,
    /// Subquantizers of a list's mean; 0 of newest keys, which have no lists.
    pub coarse: usize,
    /// Lists.
    pub lists: usize,
    /// Keys, whole groups of 32.
    pub keys: usize,
    /// Vectors that were subtracted.
    pub centres: usize,
    /// Outliers on the grid.
    pub on: usize,
    /// Those beyond it.
    pub beyond: usize,
}

/// What a stretch of a part's copy holds, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    QueryMap,
    FineAxes,
    FineEnds,
    FineBook,
    CoarseAxes,
    CoarseEnds,
    CoarseBook,
    Centres,
    Widths,
    Lists,
    WidthCodes,
    ListEnds,
    Keys,
    Marks,
    On,
    Beyond,
    OutlierCodes,
    Vectors,
}

impl Section {
    pub(crate) const ALL: [Self; 18] = [
        Self::QueryMap,
        Self::FineAxes,
        Self::FineEnds,
        Self::FineBook,
        Self::CoarseAxes,
        Self::CoarseEnds,
        Self::CoarseBook,
        Self::Centres,
        Self::Widths,
        Self::Lists,
        Self::WidthCodes,
        Self::ListEnds,
        Self::Keys,
        Self::Marks,
        Self::On,
        Self::Beyond,
        Self::OutlierCodes,
        Self::Vectors,
    ];
}

impl Room {
    fn section_bytes(&self, section: Section) -> usize {
        let Self {
            dim,
            fine,
            coarse,
            lists,
            keys,
            centres,
            on,
            beyond,
        } = *self;
        let of_lists = usize::from(coarse > 0);
        match section {
            Section::QueryMap => 4 * dim * dim.next_multiple_of(kiv_numeric::TILE),
            Section::FineAxes => 2 * dim,
            Section::FineEnds => 2 * fine,
            Section::FineBook => 4 * CENTROIDS * dim,
            Section::CoarseAxes => 2 * dim * of_lists,
            Section::CoarseEnds => 2 * coarse,
            Section::CoarseBook => 4 * CENTROIDS * dim * of_lists,
            Section::Centres => 4 * dim * centres,
            Section::Widths => 4 * CENTROIDS * of_lists,
            Section::Lists => 16 * (coarse + EXTRA) * lists.div_ceil(GROUP) * of_lists,
            Section::WidthCodes => lists,
            Section::ListEnds => 4 * lists,
            Section::Keys => 16 * fine * (keys / GROUP),
            Section::Marks => keys.div_ceil(64) * 8,
            Section::On => 4 * on,
            Section::Beyond => 4 * beyond,
            Section::OutlierCodes => 16 * 2 * dim * on.div_ceil(GROUP),
            Section::Vectors => 4 * dim * beyond,
        }
    }

    /// Where a section begins, in bytes from the first.
    pub(crate) fn offset(&self, section: Section) -> usize {
        let before = Section::ALL.iter().take_while(|s| **s != section);
        before
            .map(|s| self.section_bytes(*s).next_multiple_of(16))
            .sum()
    }

    /// Bytes of all sections.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let all = Section::ALL.iter();
        all.map(|s| self.section_bytes(*s).next_multiple_of(16))
            .sum()
    }

    fn check(&self) -> Result<(), WorkError> {
        let even = |m: usize, most: usize| (2..=most).contains(&m) && m.is_multiple_of(2);
        let books = even(self.fine, MAX_M.min(self.dim))
            && (self.coarse == 0 || even(self.coarse, (MAX_M - EXTRA).min(self.dim)));
        let lists = self.coarse > 0 || self.lists == 0;
        if !books || !lists || !self.keys.is_multiple_of(GROUP) {
            return Err(WorkError::Unsupported("such an index"));
        }
        let most = [self.lists, self.keys, self.centres, self.on, self.beyond];
        if most.into_iter().any(|n| n > 1 << 24) {
            return Err(WorkError::Unsupported("so large an index"));
        }
        Ok(())
    }
}

/// A part of a head's index, in a buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Where its copy begins.
    pub at: At,
    /// What that has room for.
    pub room: Room,
    /// Keys that are there, whole groups of 32.
    pub keys: usize,
    /// Keys that the same was subtracted from.
    pub segment: usize,
    /// Outliers that are there, on the grid and beyond it.
    pub outliers: [usize; 2],
    /// Width of the grid's cells.
    pub step: f32,
    /// What its first key is called.
    pub id: u32,
}

impl Part {
    fn is_era(&self) -> bool {
        self.room.coarse > 0
    }

    pub(crate) fn centres(&self) -> usize {
        self.keys.div_ceil(self.segment.max(1))
    }

    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn section(&self, section: Section) -> At {
        self.at.plus(self.room.offset(section))
    }
}

/// A search of all heads of a layer: the best keys of each query, as
/// [`kiv_index::HeadIndex::search`] finds them in all but the tail.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// Parts of all heads, one head after another: eras, then newest keys.
    pub parts: &'a [Part],
    /// Where each head's parts begin in that list, and where the last one's end.
    pub heads: &'a [u32],
    /// `[heads, group, dim]`.
    pub queries: &'a [f32],
    /// Products from which on keys are worth finding, of each query.
    pub floors: &'a [f32],
    /// Values of a query, a multiple of 16.
    pub dim: usize,
    /// Keys in a list, about.
    pub list: usize,
    /// How much is looked at.
    pub effort: Effort,
    /// Memory to work in: [`Layout::bytes`]. What is found comes first.
    pub memory: At,
}

impl Search<'_> {
    /// Heads.
    #[must_use]
    pub fn n_heads(&self) -> usize {
        self.heads.len().saturating_sub(1)
    }

    /// Queries of each head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.queries.len() / (self.dim * self.n_heads()).max(1)
    }

    /// Parts of a head, by their numbers.
    pub(crate) fn parts_of(&self, head: usize) -> std::ops::Range<usize> {
        self.heads[head] as usize..self.heads[head + 1] as usize
    }

    /// Of a sample of newest keys: how many of them are the best, how many newest keys there
    /// must be for a sample to be taken, and which of a segment are in it.
    pub(crate) fn sample(&self, segment: usize) -> (usize, usize, std::ops::Range<usize>) {
        const SAMPLED: usize = 16;
        let half = (segment / SAMPLED / 2).next_multiple_of(GROUP);
        let from = (segment / 2 - half.min(segment / 2)) / GROUP * GROUP;
        let to = (segment / 2 + half).min(segment);
        let kept = self.effort.kept;
        (kept * 3 / 2 / SAMPLED + GROUP, 4 * kept, from..to)
    }

    pub(crate) fn list(&self, accesses: &mut Vec<Access>) -> Result<(), WorkError> {
        self.check_shape()?;
        for part in self.parts {
            part.room.check()?;
            let [on, beyond] = part.outliers;
            let fits = part.keys <= part.room.keys
                && part.keys.is_multiple_of(GROUP)
                && part.segment > 0
                && part.segment.is_multiple_of(GROUP)
                && part.centres() <= part.room.centres
                && on <= part.room.on
                && beyond <= part.room.beyond;
            if !fits || part.room.dim != self.dim {
                return Err(WorkError::Unsupported("a part that is not as its room"));
            }
            if !part.at.offset.is_multiple_of(16) {
                return Err(WorkError::Unsupported("an index at such odd places"));
            }
            accesses.push(Access {
                at: part.at,
                bytes: part.room.bytes(),
                writes: false,
            });
        }
        let layout = Layout::new(self);
        // Numbers of 32 bits count scores, in steps of all threads.
        if layout.cleared().len() / 4 > 1 << 31 {
            return Err(WorkError::Unsupported("so many scores"));
        }
        accesses.push(Access {
            at: self.memory,
            bytes: layout.bytes(),
            writes: true,
        });
        Ok(())
    }

    fn check_shape(&self) -> Result<(), WorkError> {
        let bounds = self.heads;
        let n_parts = self.parts.len();
        let whole = bounds.len() > 1
            && bounds[0] == 0
            && bounds.is_sorted()
            && bounds.last().is_some_and(|end| *end as usize == n_parts)
            && (1..=u16::MAX as usize).contains(&n_parts);
        if !whole {
            return Err(WorkError::Unsupported("heads without their parts"));
        }
        if self.dim == 0 || !self.dim.is_multiple_of(16) || self.dim > MAX_DIM {
            return Err(WorkError::Unsupported("keys of so many values"));
        }
        let group = self.group();
        let queries = group * self.dim * self.n_heads();
        let is_whole = queries == self.queries.len() && group * self.n_heads() == self.floors.len();
        if !(1..=MAX_GROUP).contains(&group) || !is_whole {
            return Err(WorkError::Unsupported("so many queries"));
        }
        let Effort { probed, kept } = self.effort;
        if self.list == 0 || !(1..=1 << 20).contains(&probed) || !(1..=1 << 20).contains(&kept) {
            return Err(WorkError::Unsupported("such an effort"));
        }
        // A sample is of segments of one length.
        let mut newest = self.parts.iter().filter(|part| !part.is_era());
        let first = newest.next().map(|part| part.segment);
        if newest.any(|part| Some(part.segment) != first) {
            return Err(WorkError::Unsupported("segments that differ"));
        }
        if !self.memory.offset.is_multiple_of(16) {
            return Err(WorkError::Unsupported("memory at such odd places"));
        }
        Ok(())
    }
}
