//! The index of one layer and KV head.

use crate::era::{EXTRA, Era};
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
    /// Subquantizers of a key, 4 bits each: an even number up to `dim` and 254.
    pub fine: usize,
    /// Subquantizers of a cluster's mean, an even number up to `dim` and 254.
    pub coarse: usize,
    /// Tokens in a segment, a multiple of 32 up to 65,536.
    pub segment: usize,
    /// Keys in a cluster, about.
    pub cluster: usize,
    /// Segments that share their codebooks.
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
            fine: even(dim * 3 / 4, MAX_M - EXTRA),
            coarse: even(dim / 4, 64),
            segment: 4096,
            cluster: 8,
            era: 16,
        }
    }

    pub(crate) fn coarse_m(&self) -> usize {
        self.coarse + EXTRA
    }

    pub(crate) fn parts_m(&self) -> usize {
        self.fine + EXTRA
    }

    /// Whether the sizes fit together.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        for m in [self.fine, self.coarse] {
            if m < 2 || m > self.dim.min(MAX_M - EXTRA) || !m.is_multiple_of(2) {
                return Err(format!("{m} subquantizers for keys of {} values", self.dim));
            }
        }
        if self.segment == 0 || self.segment > 1 << 16 || !self.segment.is_multiple_of(GROUP) {
            return Err(format!("segments of {} tokens", self.segment));
        }
        if self.cluster == 0 || self.era == 0 {
            return Err("clusters and eras of nothing".to_owned());
        }
        Ok(())
    }

    /// Bytes that an index of `n_tokens` takes, about.
    #[must_use]
    pub fn planned_bytes(&self, n_tokens: usize) -> usize {
        let segments = n_tokens / self.segment;
        let rest = n_tokens % self.segment;
        let book = self.dim * 16 * size_of::<f32>();
        let per_era = 2 * self.dim * self.dim * size_of::<f32>() + 2 * book;
        // Measured: some half of the keys are clusters of their own, and parts are
        // rounded up; outliers are few.
        let clusters = self.segment * 5 / 8 + self.segment / (self.cluster * 2);
        let outliers = self.segment / 200 * (self.dim + size_of::<u32>());
        let per_segment = self.segment * (self.fine / 2 + size_of::<u16>())
            + clusters * (self.coarse_m() / 2 + size_of::<u32>())
            + clusters / GROUP * self.parts_m() / 2
            + self.dim * size_of::<f32>()
            + outliers;
        let tail = if segments == 0 {
            rest * self.dim * size_of::<f32>()
        } else {
            rest * self.fine / 2
        };
        let moments = self.dim * self.dim * size_of::<f64>();
        segments.div_ceil(self.era) * per_era + segments * per_segment + tail + moments
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

    /// Appends keys `[n, dim]`. Whenever a segment is whole, `read` is asked for
    /// its keys, `[segment, dim]`, from this token on, and answers whether it
    /// could read them: the index does not keep them.
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
                if !read(self.tail_first(), &mut room) {
                    self.truncate(before);
                    return Err(IndexError::Unread);
                }
                self.seal_segment(&room);
            }
            keys = later;
        }
        Ok(())
    }

    fn append_to_tail(&mut self, keys: &[f32]) {
        if let Some(era) = self.eras.last() {
            let (mut codes, n) = (Vec::new(), self.tail.codes.len());
            era.encode(keys, &mut codes, n, &mut self.tail.outliers);
            self.tail.codes.push(&codes);
        } else {
            self.tail.keys.extend_from_slice(keys);
        }
    }

    /// Tokens in no segment yet.
    fn tail_len(&self) -> usize {
        self.n_tokens - self.tail_first()
    }

    /// First token of the tail.
    pub(crate) fn tail_first(&self) -> usize {
        self.eras
            .last()
            .map_or(0, |era| era.first + era.n_segments() * self.params.segment)
    }

    fn seal_segment(&mut self, keys: &[f32]) {
        let first = self.tail_first();
        self.tail = Tail::new(&self.params);
        let full = |era: &Era| era.n_segments() >= self.params.era;
        if self.eras.last().is_none_or(full) {
            let era = Era::train(&self.params, &self.moments, keys, first);
            self.eras.push(era);
        }
        if let Some(era) = self.eras.last_mut() {
            era.push(&self.params, keys);
        }
    }

    /// Forgets every key from `n_tokens` on.
    pub fn truncate(&mut self, n_tokens: usize) {
        if n_tokens >= self.n_tokens {
            return;
        }
        let Params { dim, segment, .. } = self.params;
        while self.eras.last().is_some_and(|era| era.first >= n_tokens) {
            self.eras.pop();
            self.tail = Tail::new(&self.params);
        }
        if n_tokens < self.tail_first() {
            // The cut goes through a segment: its tokens are the tail again.
            if let Some(era) = self.eras.last_mut() {
                let (codes, outliers) = era.take_from((n_tokens - era.first) / segment);
                self.tail = Tail::new(&self.params);
                self.tail.codes.push(&codes);
                self.tail.outliers = outliers;
            }
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
        eras + self.tail.bytes() + self.moments.bytes()
    }
}
