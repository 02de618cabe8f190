//! A search whose greater part is done elsewhere, on a device that has a copy of the index.

use super::{Asked, Hits, NewestScratch, Scratch, begin_again, put_back};
use crate::best::Best;
use crate::head::{HeadIndex, IndexError};
use crate::search::Effort;
use kiv_fastscan::Isa;

/// Searches copies of indices on a device.
///
/// What it finds is what [`HeadIndex::search`] would, bit by bit. It makes its copies itself,
/// from [`HeadIndex::parts`], whenever it is asked: stamps tell it what has changed.
pub trait Finder: Send {
    /// Finds the best keys of all eras and whole segments, for as many queries of each of a
    /// layer's heads, one head after another.
    ///
    /// May tell keys below a query's floor, but opens no list because of them.
    ///
    /// Leaves `None` for heads that it cannot serve, for whatever reason: they are searched
    /// on the CPU.
    fn find(
        &mut self,
        layer: usize,
        heads: &[&HeadIndex],
        asked: Asked<'_>,
        effort: Effort,
        found: &mut [Option<Found>],
    );

    /// Bytes of the device's memory that its copies take.
    fn bytes(&self) -> usize;

    /// Searches of a head that it has done.
    fn searches(&self) -> u64;
}

/// The best keys of one head that are in no tail: for each query its keys' scores and
/// numbers, at most as many as are to be kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    ends: Vec<usize>,
    keys: Vec<(f32, u32)>,
    /// What the search was not to go below at first.
    least: Vec<f32>,
}

impl Found {
    /// Adds the next query's. Scores below `least`, which was learnt from a sample, do not
    /// count, unless there are too few others.
    pub fn push(&mut self, keys: impl Iterator<Item = (f32, u32)>, least: f32) {
        self.keys.extend(keys);
        self.ends.push(self.keys.len());
        self.least.push(least);
    }

    fn queries(&self) -> impl Iterator<Item = (&[(f32, u32)], f32)> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let keys = starts
            .zip(&self.ends)
            .map(|(from, to)| &self.keys[from..*to]);
        keys.zip(self.least.iter().copied())
    }
}

impl HeadIndex {
    /// What [`HeadIndex::search`] finds, from what a [`Finder`] has found of all but the
    /// tail.
    ///
    /// # Errors
    /// [`IndexError::BadQuery`].
    pub fn search_rest(
        &self,
        isa: Isa,
        asked: Asked<'_>,
        effort: Effort,
        found: &Found,
        scratch: &mut Scratch,
        hits: &mut Hits,
    ) -> Result<(), IndexError> {
        hits.clear();
        asked.check()?;
        let queries = asked.queries;
        let mut best = std::mem::take(&mut scratch.best);
        best.resize_with(queries.len() / self.params().dim, Best::default);
        for (query, (keys, least)) in found.queries().enumerate().take(best.len()) {
            let least = least.max(asked.floor(query));
            best[query].resume(effort.kept, least, keys.iter().copied());
        }
        let has_tail = self.tail_first() < self.len();
        if has_tail {
            let Scratch {
                mapped,
                table,
                newest: parts,
                ..
            } = scratch;
            parts.resize_with(1, NewestScratch::default);
            if let Some(newest) = &self.newest {
                let made = parts[0].fill(newest, queries, mapped, table);
                made.map_err(|_| IndexError::BadQuery)?;
            }
        }
        let mut score_rest = |best: &mut [Best]| {
            if has_tail {
                self.score_tail(isa, queries, best, scratch);
            }
        };
        score_rest(&mut best);
        if let Some(mut again) = begin_again(asked, &best) {
            for (again, (keys, _)) in again.iter_mut().zip(found.queries()) {
                keys.iter().for_each(|(score, id)| again.push(*score, *id));
            }
            score_rest(&mut again);
            put_back(&mut best, again);
        }
        self.tell(&mut best, hits);
        scratch.best = best;
        Ok(())
    }
}
