//! The index of one layer and KV head.

use crate::era::{EXTRA, Era};
use crate::newest::Newest;
use crate::outliers::Outliers;
use crate::packed::PackedCodes;
use crate::space::QueryMoments;
use kiv_fastscan::{GROUP, MAX_M};
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
        Ok(())
    }

    /// Bytes that an index of `n_tokens` takes, about.
    #[must_use]
    pub fn planned_bytes(&self, n_tokens: usize) -> usize {
        let eras = n_tokens / self.era_len();
        let rest = n_tokens % self.era_len();
        let book = self.dim * 16 * size_of::<f32>();
        let space = 2 * self.dim * self.dim * size_of::<f32>() + self.dim * size_of::<f64>();
        // Measured: lists come out shorter than they should; outliers are one in 20 to 200.
        let lists = self.era_len() * 5 / 4 / self.list;
        let outliers = |n: usize| n / 12 * (self.dim + size_of::<u32>());
        let per_era = space
            + 2 * book
            + self.era_len() * (self.fine / 2 + size_of::<u16>())
            + lists * (self.lists_m() / 2 + size_of::<u32>())
            + outliers(self.era_len());
        let newest = if rest + eras * self.era_len() < self.segment {
            rest * self.dim * size_of::<f32>()
        } else {
            space + book + rest * self.fine / 2 + outliers(rest)
        };
        let centres = rest / self.segment * self.dim * size_of::<f32>();
        let moments = self.dim * self.dim * size_of::<f64>();
        eras * per_era + newest + centres + moments
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

/// Keys of one layer and KV head; see the crate's description.
#[derive(Clone, Debug)]
pub struct HeadIndex {
    pub(crate) params: Params,
    pub(crate) moments: QueryMoments,
    pub(crate) eras: Vec<Era>,
    /// Whole segments after the last era, once there was one.
    pub(crate) newest: Option<Newest>,
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
            newest: None,
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
    /// segment; it answers whether it could read them: the index does not keep them.
    ///
    /// # Errors
    /// [`IndexError::BadKey`], [`IndexError::NoMemory`] or
    /// [`IndexError::Unread`]; the index holds what it held then.
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
                let is_read = read(self.tail_first(), &mut room) && {
                    self.seal_segment(&room);
                    self.close_era(&mut room, read)
                };
                if !is_read {
                    self.truncate(before);
                    return Err(IndexError::Unread);
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

    /// First token after the last era.
    fn newest_first(&self) -> usize {
        self.eras.len() * self.params.era_len()
    }

    /// First token of the tail.
    pub(crate) fn tail_first(&self) -> usize {
        let segments = self.newest.as_ref().map_or(0, Newest::n_segments);
        self.newest_first() + segments * self.params.segment
    }

    fn seal_segment(&mut self, keys: &[f32]) {
        let first = self.newest_first();
        match &mut self.newest {
            Some(newest) if newest.n_segments() > 0 => newest.push(keys),
            newest => newest
                .insert(Newest::train(&self.params, &self.moments, keys, first))
                .push(keys),
        }
        self.tail = Tail::new(&self.params);
    }

    /// Makes an era of the newest segments if they are enough; whether all could be
    /// read.
    fn close_era(
        &mut self,
        room: &mut Vec<f32>,
        read: &mut dyn FnMut(usize, &mut Vec<f32>) -> bool,
    ) -> bool {
        let Some(newest) = &self.newest else {
            return true;
        };
        if newest.n_segments() < self.params.era {
            return true;
        }
        let (mut all, first) = (Vec::new(), newest.first);
        for segment in 0..self.params.era {
            room.clear();
            if !read(first + segment * self.params.segment, room) {
                return false;
            }
            all.append(room);
        }
        self.eras
            .push(Era::new(&self.params, &self.moments, &all, first));
        // The next keys are like these: the codebook is good until the next segment is
        // whole.
        let newest = self.newest.take();
        self.newest = newest.map(|newest| newest.emptied(first + self.params.era_len()));
        true
    }

    /// Forgets every key from `n_tokens` on, and some before if that is in the middle of
    /// keys that were coded together: [`HeadIndex::len`] says how many are left.
    pub fn truncate(&mut self, n_tokens: usize) {
        if n_tokens >= self.n_tokens {
            return;
        }
        let Params { dim, segment, .. } = self.params;
        if n_tokens < self.newest_first() {
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
                newest => *newest = None,
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
        let newest = self.newest.as_ref().map_or(0, Newest::bytes);
        eras + newest + self.tail.bytes() + self.moments.bytes()
    }
}
