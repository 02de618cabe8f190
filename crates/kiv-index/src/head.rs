//! The index of one layer and KV head.

use crate::era::{EXTRA, Era};
use crate::newest::Newest;
use crate::outliers::Outliers;
use crate::packed::PackedCodes;
use crate::pages::Pages;
use crate::space::{QueryMoments, Space};
use crate::work::{Making, Work};
use kiv_fastscan::{GROUP, MAX_M};
use std::ops::Range;
use thiserror::Error;

/// Sizes of an index.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Values in a key.
    pub dim: usize,
    /// Logits are `scale * (q . k)`.
    pub scale: f32,
    /// Subquantizers of a key, 4 bits each: an even number up to `dim` and 256.
    pub fine: usize,
    /// Subquantizers of a list's mean, an even number up to `dim` and 254.
    pub coarse: usize,
    /// Tokens in a segment, a multiple of 32.
    pub segment: usize,
    /// Keys in a list, about.
    pub list: usize,
    /// Segments in an era, of 65,536 tokens at most together.
    pub era: usize,
    /// Segments that come after those of an era before it takes their place, `era` at most:
    /// time to divide them ([`HeadIndex::give_away`]). An index may be saved with another
    /// number than it is loaded with.
    pub late: usize,
}

impl Params {
    /// Sizes for keys of `dim` values and this scale: what was found best (`docs/index.md`).
    #[must_use]
    pub fn new(dim: usize, scale: f32) -> Self {
        // Kernels want an even number.
        let even = |m: usize, most: usize| (m / 2 * 2).clamp(2, most);
        Self {
            dim,
            scale,
            fine: even(dim * 7 / 8, MAX_M),
            coarse: even(dim / 2, MAX_M - EXTRA),
            segment: 4096,
            list: 8,
            era: 16,
            late: 4,
        }
    }

    pub(crate) fn lists_m(&self) -> usize {
        self.coarse + EXTRA
    }

    pub(crate) fn era_len(&self) -> usize {
        self.era * self.segment
    }

    /// Whether the sizes fit together.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        for (m, most) in [(self.fine, MAX_M), (self.coarse, MAX_M - EXTRA)] {
            if m < 2 || m > self.dim.min(most) || !m.is_multiple_of(2) {
                return Err(format!("{m} subquantizers for keys of {} values", self.dim));
            }
        }
        if self.segment == 0 || !self.segment.is_multiple_of(GROUP) {
            return Err(format!("segments of {} tokens", self.segment));
        }
        let n = self.segment.checked_mul(self.era);
        if self.list == 0 || n.is_none_or(|n| n == 0 || n > 1 << 16) {
            return Err(format!(
                "lists of {} keys, eras of {} segments",
                self.list, self.era
            ));
        }
        if self.late > self.era {
            return Err(format!(
                "eras of {} segments, {} segments late",
                self.era, self.late
            ));
        }
        Ok(())
    }

    /// Bytes that an index takes on its way to `n_tokens`, about.
    #[must_use]
    pub fn planned_bytes(&self, n_tokens: usize) -> usize {
        // An era in the making is there beside what it will take the place of.
        let last_before = (self.era_len() * (n_tokens / self.era_len()) + self.late * self.segment)
            .saturating_sub(1);
        let now = self.bytes_at(n_tokens);
        now.max(self.bytes_at(last_before.min(n_tokens)))
    }

    /// Bytes that making an era of that index takes for a time, about: nothing for fewer keys
    /// than an era has.
    #[must_use]
    pub fn planned_work_bytes(&self, n_tokens: usize) -> usize {
        if n_tokens < self.era_len() {
            return 0;
        }
        // Keys as they are mapped, in two orders, and their codes before they are packed and
        // after; then lists, errors and what k-means has for each key.
        let of_key = 2 * self.dim * size_of::<f32>() + 2 * self.fine + 16 * size_of::<u32>();
        self.era_len() * of_key
    }

    fn bytes_at(&self, n_tokens: usize) -> usize {
        let whole = n_tokens / self.era_len();
        let eras = n_tokens.saturating_sub(self.late * self.segment) / self.era_len();
        let rest = n_tokens % self.era_len();
        let book = self.dim * 16 * size_of::<f32>();
        let space = Space::planned_bytes(self.dim);
        let moments = self.dim * self.dim * size_of::<f64>();
        // Measured: lists come out shorter than they should; outliers are one in 20 to 200.
        let lists = self.era_len() * 5 / 4 / self.list;
        let outliers = |n: usize| n / 12 * (self.dim + size_of::<u32>());
        let codes = self.era_len() * self.fine / 2 + lists * self.lists_m() / 2;
        let per_era = space
            + 2 * book
            + Pages::taken(codes)
            + self.era_len() * size_of::<u16>()
            + lists * size_of::<u32>()
            + outliers(self.era_len());
        let newest = |n: usize| {
            let centres = (n / self.segment + 1) * self.dim * size_of::<f32>();
            space + book + n * self.fine / 2 + outliers(n) + centres
        };
        let now = if n_tokens < self.segment {
            rest * self.dim * size_of::<f32>()
        } else {
            newest(rest)
        };
        let dividing = (whole - eras) * (newest(self.era_len()) + moments);
        let training = if whole > 0 {
            newest(self.segment) + moments
        } else {
            0
        };
        whole * per_era + dividing + now + training + moments
    }
}

/// Why keys or a query were refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IndexError {
    /// A key with a NaN or an infinity.
    #[error("key {token} holds a value that is not a number")]
    BadKey {
        /// Its token, counted from the first in the index.
        token: usize,
    },
    /// A query with a NaN or an infinity, or too long for its logits to be
    /// numbers.
    #[error("a query's scores are not numbers")]
    BadQuery,
    /// Keys that were given before could not be read again.
    #[error("keys could not be read again")]
    Unread,
    /// The system gave no memory.
    #[error("no memory for {bytes} more bytes of the index")]
    NoMemory {
        /// Bytes asked for.
        bytes: usize,
    },
}

/// The newest keys, too few for a segment yet.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    /// The keys themselves, `[n, dim]`, while there is no codebook for them.
    pub keys: Vec<f32>,
    /// Their codes, once there is a codebook.
    pub codes: PackedCodes,
    pub outliers: Outliers,
}

impl Tail {
    fn new(params: &Params) -> Self {
        Self {
            keys: Vec::new(),
            codes: PackedCodes::new(params.fine),
            outliers: Outliers::new(params.dim),
        }
    }

    fn bytes(&self) -> usize {
        self.keys.len() * size_of::<f32>() + self.codes.bytes() + self.outliers.bytes()
    }
}

/// The newest keys once they are enough for an era, until it takes their place.
#[derive(Clone, Debug)]
pub(crate) struct Dividing {
    pub newest: Newest,
    pub era: Making<Era>,
}

/// Keys of one layer and KV head; see the crate's description.
#[derive(Clone, Debug)]
pub struct HeadIndex {
    pub(crate) params: Params,
    pub(crate) moments: QueryMoments,
    pub(crate) eras: Vec<Era>,
    /// The next era, in the making.
    pub(crate) dividing: Option<Dividing>,
    /// Whole segments after all that, once there was one.
    pub(crate) newest: Option<Newest>,
    /// While that is a single segment under the codebook of those before: its own, in the
    /// making.
    pub(crate) training: Option<Making<Newest>>,
    pub(crate) tail: Tail,
    pub(crate) n_tokens: usize,
}

impl HeadIndex {
    /// An empty index.
    ///
    /// # Panics
    /// If [`Params::check`] finds fault.
    #[must_use]
    pub fn new(params: Params) -> Self {
        params.check().expect("sizes of an index fit together");
        Self {
            moments: QueryMoments::new(params.dim),
            tail: Tail::new(&params),
            params,
            eras: Vec::new(),
            dividing: None,
            newest: None,
            training: None,
            n_tokens: 0,
        }
    }

    /// Its sizes.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Keys held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n_tokens
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n_tokens == 0
    }

    /// Shows queries `[n, dim]`, so that codebooks trained from now on are good
    /// for such.
    pub fn observe(&mut self, queries: &[f32]) {
        self.moments.add(queries);
    }

    /// Appends keys `[n, dim]`. Whenever a segment is whole, `read` is asked for its keys,
    /// `[segment, dim]`, from this token on, and for those of a whole era segment by
    /// segment if nobody divides them ([`HeadIndex::give_away`]); it answers whether it
    /// could read them: the index does not keep them.
    ///
    /// Where something takes its place that was given away and is not there yet, this makes
    /// it.
    ///
    /// # Errors
    /// [`IndexError::BadKey`], [`IndexError::NoMemory`] or [`IndexError::Unread`]. None of these
    /// keys is in the index then. It holds what it held before or, if they had made a segment
    /// whole, less, as after [`HeadIndex::truncate`]: [`HeadIndex::len`] says how many.
    pub fn append(
        &mut self,
        keys: &[f32],
        read: &mut dyn FnMut(usize, &mut Vec<f32>) -> bool,
    ) -> Result<(), IndexError> {
        let Params { dim, segment, .. } = self.params;
        let before = self.n_tokens;
        if let Some(bad) = keys.iter().position(|v| !v.is_finite()) {
            return Err(IndexError::BadKey {
                token: self.n_tokens + bad / dim,
            });
        }
        // Codes and codebooks together are never more than the keys.
        let mut room: Vec<f32> = Vec::new();
        room.try_reserve(keys.len())
            .map_err(|_| IndexError::NoMemory {
                bytes: size_of_val(keys),
            })?;
        let mut keys = keys;
        while !keys.is_empty() {
            let n = (keys.len() / dim).min(segment - self.tail_len());
            let (now, later) = keys.split_at(n * dim);
            self.append_to_tail(now);
            self.n_tokens += n;
            if self.tail_len() == segment {
                room.clear();
                let sealed = if read(self.tail_first(), &mut room) {
                    self.seal_segment(&room, read)
                        .and_then(|()| self.turn_eras(read))
                } else {
                    Err(IndexError::Unread)
                };
                if sealed.is_err() {
                    self.truncate(before);
                    return sealed;
                }
            }
            keys = later;
        }
        Ok(())
    }

    fn append_to_tail(&mut self, keys: &[f32]) {
        if let Some(newest) = &self.newest {
            let (mut codes, n) = (Vec::new(), self.tail.codes.len());
            newest.encode(keys, &mut codes, n, &mut self.tail.outliers);
            self.tail.codes.push(&codes);
        } else {
            self.tail.keys.extend_from_slice(keys);
        }
    }

    /// Tokens in no segment yet.
    fn tail_len(&self) -> usize {
        self.n_tokens - self.tail_first()
    }

    /// First token after all keys that are in an era or will be in the next.
    pub(crate) fn newest_first(&self) -> usize {
        (self.eras.len() + usize::from(self.dividing.is_some())) * self.params.era_len()
    }

    fn n_newest_segments(&self) -> usize {
        self.newest.as_ref().map_or(0, Newest::n_segments)
    }

    /// First token of the tail.
    pub(crate) fn tail_first(&self) -> usize {
        self.newest_first() + self.n_newest_segments() * self.params.segment
    }

    fn seal_segment(
        &mut self,
        keys: &[f32],
        read: &mut dyn FnMut(usize, &mut Vec<f32>) -> bool,
    ) -> Result<(), IndexError> {
        let first = self.newest_first();
        let trained = || Newest::train(&self.params, &self.moments, keys, first);
        match &mut self.newest {
            Some(newest) if newest.n_segments() > 0 => {
                if let Some(training) = &mut self.training {
                    let tokens = first..first + self.params.segment;
                    *newest = training.finish(&self.params, tokens, read)?;
                    self.training = None;
                }
                newest.push(keys);
            }
            // The codebook of those before is good for one segment more: time to make
            // another.
            Some(newest) if self.params.era > 1 => {
                newest.push(keys);
                self.training = Some(Making::new(self.moments.clone()));
            }
            newest => newest.insert(trained()).push(keys),
        }
        self.tail = Tail::new(&self.params);
        Ok(())
    }

    /// Puts an era in its place if its turn has come, and begins another if the newest
    /// segments are enough.
    fn turn_eras(
        &mut self,
        read: &mut dyn FnMut(usize, &mut Vec<f32>) -> bool,
    ) -> Result<(), IndexError> {
        self.install_era(read)?;
        if let Some(newest) = &self.newest
            && newest.n_segments() == self.params.era
        {
            // The next keys are like these.
            let next = newest.successor();
            let whole = self.newest.replace(next);
            let era = Making::new(self.moments.clone());
            self.dividing = whole.map(|newest| Dividing { newest, era });
            // With no time given it is its turn at once.
            self.install_era(read)?;
        }
        Ok(())
    }

    fn install_era(
        &mut self,
        read: &mut dyn FnMut(usize, &mut Vec<f32>) -> bool,
    ) -> Result<(), IndexError> {
        let segments = self.n_newest_segments();
        if let Some(dividing) = &mut self.dividing
            && segments >= self.params.late
        {
            let first = dividing.newest.first;
            let tokens = first..first + self.params.era_len();
            let era = dividing.era.finish(&self.params, tokens, read)?;
            self.eras.push(era);
            self.dividing = None;
        }
        Ok(())
    }

    /// How much is over of the time that there is to divide an era's keys, from 0 to 1:
    /// nothing if there are none to divide.
    #[must_use]
    pub fn time_over(&self) -> Option<f32> {
        self.dividing.as_ref()?;
        let tokens = self.n_tokens - self.newest_first();
        Some(tokens as f32 / (self.params.late * self.params.segment).max(1) as f32)
    }

    /// Tokens whose keys are to be worked on, if nobody does it yet.
    #[must_use]
    pub fn undone(&self) -> Option<Range<usize>> {
        let first = self.newest_first();
        let training = self.training.as_ref().filter(|t| !t.is_given_away());
        // It is soon done, and wanted sooner.
        if training.is_some() {
            return Some(first..first + self.params.segment);
        }
        let dividing = self.dividing.as_ref();
        dividing.filter(|d| !d.era.is_given_away())?;
        Some(first - self.params.era_len()..first)
    }

    /// Gives away the work that [`HeadIndex::undone`] tells of: another thread can do it
    /// while keys are searched and appended. If nobody takes it, [`HeadIndex::append`] does
    /// it itself in the end; the index is the same.
    pub fn give_away(&mut self) -> Option<Work> {
        let tokens = self.undone()?;
        if let Some(training) = self.training.as_mut().filter(|t| !t.is_given_away()) {
            return Some(training.give_newest_away(&self.params, tokens));
        }
        let dividing = self.dividing.as_mut()?;
        Some(dividing.era.give_era_away(&self.params, tokens))
    }

    /// Forgets every key from `n_tokens` on, and some before if that is in the middle of
    /// keys that were coded together: [`HeadIndex::len`] says how many are left.
    ///
    /// Keys that come then are coded as if those had never been there, but under other
    /// codebooks where one has been made too early for that, or has gone with its keys. Queries
    /// that were shown are not forgotten.
    pub fn truncate(&mut self, n_tokens: usize) {
        if n_tokens >= self.n_tokens {
            return;
        }
        let Params { dim, segment, .. } = self.params;
        if let Some(dividing) = &self.dividing
            && (dividing.newest.first..self.newest_first()).contains(&n_tokens)
        {
            // They are the newest ones again. Whoever divides them does it in vain.
            let newest = self.dividing.take().map(|dividing| dividing.newest);
            self.newest = newest;
            self.training = None;
            self.tail = Tail::new(&self.params);
            self.n_tokens = self.tail_first();
        }
        if n_tokens < self.newest_first() {
            self.dividing = None;
            self.training = None;
            self.eras.truncate(n_tokens / self.params.era_len());
            self.newest = None;
            self.tail = Tail::new(&self.params);
            self.n_tokens = self.newest_first();
            return;
        }
        if n_tokens < self.tail_first() {
            let kept = (n_tokens - self.newest_first()) / segment;
            self.tail = Tail::new(&self.params);
            match &mut self.newest {
                Some(newest) if kept > 0 => newest.truncate(kept),
                newest => {
                    *newest = None;
                    self.training = None;
                }
            }
            self.n_tokens = self.tail_first();
            return;
        }
        let kept = n_tokens - self.tail_first();
        self.tail.keys.truncate(kept * dim);
        self.tail.codes.truncate(kept);
        self.tail.outliers.truncate(kept);
        self.n_tokens = n_tokens;
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let eras: usize = self.eras.iter().map(Era::bytes).sum();
        let dividing = self.dividing.as_ref();
        let dividing = dividing.map_or(0, |d| d.newest.bytes() + d.era.bytes());
        let newest = self.newest.as_ref().map_or(0, Newest::bytes);
        let training = self.training.as_ref().map_or(0, Making::bytes);
        eras + dividing + newest + training + self.tail.bytes() + self.moments.bytes()
    }
}
