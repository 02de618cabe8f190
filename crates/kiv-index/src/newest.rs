//! The newest keys, an era's at most: in the order of their tokens, and all scored for
//! every query. Codes are scanned faster than so few keys are worth dividing.

use crate::codebook::Codebook;
use crate::head::Params;
use crate::marks::Marks;
use crate::outliers::{ERROR_RATIO, Grid, Outliers};
use crate::packed::PackedCodes;
use crate::saved::{Saved, expect};
use crate::space::{QueryMoments, Space};
use crate::stamp::Stamp;
use crate::vectors::{mean, squared_errors, subtract};
use kiv_wire::{Put, Take, WireError};

/// Whole segments under one codebook.
#[derive(Clone, Debug)]
pub(crate) struct Newest {
    /// Of all but keys.
    stamp: Stamp,
    /// One of each segment's keys.
    segments: Vec<Stamp>,
    /// Token of the first segment.
    pub first: usize,
    dim: usize,
    segment: usize,
    pub space: Space,
    pub fine: Codebook,
    pub grid: Grid,
    /// Squared error from which on a key is an outlier.
    outlier_error: f32,
    /// What is subtracted from the keys of each segment, its mean, and what from the
    /// keys to come, `[n_segments + 1, dim]`. Keys drift with their positions; without
    /// this, the codebook would be stale within thousands of tokens.
    centres: Vec<f32>,
    keys: PackedCodes,
    /// Counted from the first token.
    pub outliers: Outliers,
    /// Which tokens are theirs.
    pub is_outlier: Marks,
}

impl Newest {
    /// A codebook for keys like `keys`, `[n, dim]`.
    pub fn train(params: &Params, moments: &QueryMoments, keys: &[f32], first: usize) -> Self {
        let dim = params.dim;
        let space = Space::new(moments, keys);
        let mut mapped = Vec::new();
        space.map_keys(keys, &mut mapped);
        let length = mapped.iter().map(|v| v * v).sum::<f32>();
        let centre = mean(&mapped, dim);
        subtract(&mut mapped, &centre);
        let fine = Codebook::train(&mapped, space.split(params.fine));
        let (mut codes, mut decoded) = (Vec::new(), Vec::new());
        fine.encode(&mapped, &mut codes);
        fine.decode(&codes, &mut decoded);
        // Keys that are all alike have no error but rounding.
        let total = squared_errors(&mapped, &decoded, dim).sum::<f32>();
        let usual = total.max(length * 1e-9) * dim as f32 / mapped.len().max(1) as f32;
        Self {
            stamp: Stamp::default(),
            segments: Vec::new(),
            first,
            dim,
            segment: params.segment,
            grid: Grid::new(&mapped),
            space,
            fine,
            outlier_error: usual * ERROR_RATIO,
            centres: centre,
            // Room for the whole era, so that nothing is ever copied to grow; pages
            // that are not written yet take no memory.
            keys: PackedCodes::with_capacity(params.fine, params.era * params.segment),
            outliers: Outliers::new(dim),
            is_outlier: Marks::default(),
        }
    }

    /// Codes of keys `[n, dim]` to come, of which `first` are there already, for as long
    /// as their segment is not whole. Codes are appended to `codes`, outliers to
    /// `outliers`.
    pub fn encode(&self, keys: &[f32], codes: &mut Vec<u8>, first: usize, outliers: &mut Outliers) {
        let mut mapped = Vec::new();
        self.space.map_keys(keys, &mut mapped);
        subtract(&mut mapped, self.centre(self.n_segments()));
        self.encode_mapped(&mapped, codes, first, outliers);
    }

    fn encode_mapped(
        &self,
        mapped: &[f32],
        codes: &mut Vec<u8>,
        first: usize,
        outliers: &mut Outliers,
    ) {
        let (at, mut decoded) = (codes.len(), Vec::new());
        self.fine.encode(mapped, codes);
        self.fine.decode(&codes[at..], &mut decoded);
        let errors = squared_errors(mapped, &decoded, self.dim);
        for (i, (error, vector)) in errors.zip(mapped.chunks_exact(self.dim)).enumerate() {
            if error > self.outlier_error {
                outliers.push(&self.grid, first + i, vector);
            }
        }
    }

    /// Takes up a whole segment's keys, `[segment, dim]`.
    pub fn push(&mut self, keys: &[f32]) {
        let mut mapped = Vec::new();
        self.space.map_keys(keys, &mut mapped);
        let centre = mean(&mapped, self.dim);
        subtract(&mut mapped, &centre);
        self.centres.truncate(self.n_segments() * self.dim);
        self.centres.extend(&centre);
        let (mut codes, mut outliers) = (Vec::new(), Outliers::new(self.dim));
        self.encode_mapped(&mapped, &mut codes, 0, &mut outliers);
        self.outliers.append(&outliers, self.keys.len());
        self.keys.push(&codes);
        self.is_outlier = self.outliers.marks(self.keys.len());
        self.segments.push(Stamp::default());
        // What comes next is nearest to this.
        self.centres.extend(centre);
    }

    /// The same codebook without keys, for those after the last segment.
    pub fn successor(&self) -> Self {
        let Self {
            stamp: _,
            segments: _,
            first,
            dim,
            segment,
            space,
            fine,
            grid,
            outlier_error,
            centres: _,
            keys,
            outliers: _,
            is_outlier: _,
        } = self;
        Self {
            stamp: Stamp::default(),
            segments: Vec::new(),
            first: first + keys.len(),
            dim: *dim,
            segment: *segment,
            space: space.clone(),
            fine: fine.clone(),
            grid: grid.clone(),
            outlier_error: *outlier_error,
            centres: self.centre(self.n_segments()).to_vec(),
            keys: PackedCodes::with_capacity(keys.m(), keys.len()),
            outliers: Outliers::new(*dim),
            is_outlier: Marks::default(),
        }
    }

    /// Keeps the first `n` segments, one at least, as if there had never been others.
    pub fn truncate(&mut self, n: usize) {
        self.keys.truncate(n * self.segment);
        self.segments.truncate(n);
        self.outliers.truncate(n * self.segment);
        self.is_outlier = self.outliers.marks(self.keys.len());
        // What comes next is nearest to the last that is left, as it was then.
        self.centres.truncate(n * self.dim);
        self.centres.extend_from_within((n - 1) * self.dim..);
    }

    pub fn n_segments(&self) -> usize {
        self.keys.len() / self.segment
    }

    /// Keys of a segment.
    pub fn segment_len(&self) -> usize {
        self.segment
    }

    /// What is subtracted from the keys of a segment, the one to come included.
    pub fn centre(&self, segment: usize) -> &[f32] {
        &self.centres[segment * self.dim..(segment + 1) * self.dim]
    }

    /// What is subtracted from the keys of all whole segments.
    pub fn centres_of_segments(&self) -> &[f32] {
        &self.centres[..self.n_segments() * self.dim]
    }

    /// Stamps of all but keys, and of each segment's.
    pub fn stamps(&self) -> (&Stamp, &[Stamp]) {
        (&self.stamp, &self.segments)
    }

    pub fn keys(&self) -> &PackedCodes {
        &self.keys
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.space.bytes()
            + self.fine.bytes()
            + self.centres.len() * size_of::<f32>()
            + self.keys.bytes()
            + self.outliers.bytes()
            + self.is_outlier.bytes()
    }
}

impl Saved for Newest {
    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            stamp: _,
            segments: _,
            first,
            dim: _,
            segment: _,
            space,
            fine,
            grid,
            outlier_error,
            centres,
            keys,
            outliers,
            is_outlier: _,
        } = self;
        out.put_u64(*first as u64);
        space.put(out);
        fine.put(out);
        grid.put(out);
        out.put_f32(*outlier_error);
        out.put_f32s(centres);
        keys.put(out);
        outliers.put(out);
    }

    fn take(params: &Params, take: &mut Take<'_>) -> Result<Self, WireError> {
        let mut newest = Self {
            stamp: Stamp::default(),
            segments: Vec::new(),
            first: usize::try_from(take.u64()?).map_err(|_| WireError::Short)?,
            dim: params.dim,
            segment: params.segment,
            space: Saved::take(params, take)?,
            fine: Saved::take(params, take)?,
            grid: Saved::take(params, take)?,
            outlier_error: take.f32()?,
            centres: take.f32s()?,
            keys: Saved::take(params, take)?,
            outliers: Saved::take(params, take)?,
            is_outlier: Marks::default(),
        };
        let n = newest.n_segments();
        let whole = newest.fine.is_of(params.fine, params.dim)
            && newest.keys.is_of(params.fine)
            && newest.keys.len() == n * params.segment
            && n <= params.era
            && newest.centres.len() == (n + 1) * params.dim
            && newest.outliers.are_below(newest.keys.len());
        expect(whole, "newest keys that do not fit together")?;
        newest.is_outlier = newest.outliers.marks(newest.keys.len());
        newest.segments.resize_with(n, Stamp::default);
        Ok(newest)
    }
}
