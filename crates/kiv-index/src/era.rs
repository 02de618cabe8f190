//! Segments that share their codebooks.

use crate::cluster::Clusters;
use crate::codebook::Codebook;
use crate::head::Params;
use crate::outliers::{ERROR_RATIO, Grid, Outliers};
use crate::packed::PackedCodes;
use crate::saved::{Saved, expect};
use crate::space::{QueryMoments, Space};
use kiv_fastscan::{CENTROIDS, GROUP};
use kiv_wire::{Put, Take, WireError};
use std::ops::Range;

/// Subquantizers of the coarse codes beyond those of the means: one for the
/// spread of a cluster, one for its size.
pub(crate) const EXTRA: usize = 2;

/// Standard deviation of a key's logit from that of its cluster, in nats, from
/// which on it is scored by itself. Where a head tells all keys apart, that is
/// most of them.
const FAR: f32 = 1.5;

/// Consecutive segments under one set of codebooks.
///
/// Keys lie segment after segment, within a segment cluster by cluster and the
/// outliers last: a key has a *place*, counted from the beginning of the era.
#[derive(Clone, Debug)]
pub(crate) struct Era {
    /// Token of place 0's segment.
    pub first: usize,
    dim: usize,
    segment: usize,
    pub space: Space,
    pub fine: Codebook,
    coarse: Codebook,
    pub grid: Grid,
    /// Squared error from which on a key is an outlier.
    outlier_error: f32,
    /// Squared distance of keys from their cluster's mean from which on they are
    /// clusters of their own.
    far: f32,
    /// Mean squared distances from the mean that coarse codes tell apart.
    spreads: [f32; CENTROIDS],
    /// Logarithms of sizes that coarse codes tell apart.
    log_sizes: [f32; CENTROIDS],
    /// Root mean squared distances of a part's clusters from its mean that its
    /// code tells apart.
    widths: [f32; CENTROIDS],
    /// What is subtracted from the keys of each segment, its mean, and what
    /// from the keys to come, `[n_segments + 1, dim]`. Keys drift with their
    /// positions; without this, codebooks would be stale within thousands of
    /// tokens.
    centres: Vec<f32>,
    /// Token of each place, from its segment's first.
    order: Vec<u16>,
    /// Places of each segment that are in clusters.
    clustered: Vec<u32>,
    /// Where each cluster ends, in places; segments are filled up with empty
    /// clusters to whole groups.
    ends: Vec<u32>,
    /// Where each segment's clusters end, in `ends`.
    segment_ends: Vec<u32>,
    /// One for each group of `clusters`: its mean, its width, its largest size.
    parts: PackedCodes,
    clusters: PackedCodes,
    keys: PackedCodes,
    pub outliers: Outliers,
}

impl Era {
    /// Codebooks for keys like `keys`, `[params.segment, dim]`.
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
        let errors = squared_errors(&mapped, &decoded, dim);
        // Keys that are all alike have no error but rounding.
        let total = errors.sum::<f32>().max(length * 1e-9);
        let usual = total * dim as f32 / mapped.len().max(1) as f32;
        let variance = moments.mean_square() * params.scale * params.scale;
        let far = FAR * FAR / variance;
        let clusters = Clusters::new(&decoded, dim, params.cluster, far);
        let (spreads, log_sizes): (Vec<f32>, Vec<f32>) = shapes(&clusters, &decoded, dim).unzip();
        let widths = parts(&clusters.means, dim).map(|(_, width)| width);
        Self {
            first,
            dim,
            segment: params.segment,
            grid: Grid::new(&mapped),
            coarse: Codebook::train(&clusters.means, space.split(params.coarse)),
            space,
            fine,
            outlier_error: usual * ERROR_RATIO,
            far,
            spreads: quantiles(spreads),
            log_sizes: quantiles(log_sizes),
            widths: quantiles(widths.collect()),
            centres: centre,
            // Room for the whole era, so that nothing is ever copied to grow;
            // pages that are not written yet take no memory.
            order: Vec::with_capacity(params.era * params.segment),
            clustered: Vec::new(),
            ends: Vec::new(),
            segment_ends: Vec::new(),
            parts: PackedCodes::new(params.parts_m()),
            clusters: PackedCodes::new(params.coarse_m()),
            keys: PackedCodes::with_capacity(params.fine, params.era * params.segment),
            outliers: Outliers::new(dim),
        }
    }

    /// Codes of keys `[n, dim]` to come, of which `first` are there already,
    /// for as long as their segment is not whole. Codes are appended to
    /// `codes`, outliers to `outliers`.
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
    pub fn push(&mut self, params: &Params, keys: &[f32]) {
        let (m, dim) = (params.fine, params.dim);
        let mut mapped = Vec::new();
        self.space.map_keys(keys, &mut mapped);
        let centre = mean(&mapped, dim);
        subtract(&mut mapped, &centre);
        let provisional = self.n_segments() * dim;
        self.centres.truncate(provisional);
        self.centres.extend(centre);
        let (mut codes, mut outliers) = (Vec::new(), Outliers::new(dim));
        self.encode_mapped(&mapped, &mut codes, 0, &mut outliers);

        let usual: Vec<u32> = (0..params.segment)
            .filter(|token| !outliers.contains(*token))
            .map(|token| token as u32)
            .collect();
        let clusters = Clusters::of(&mapped, dim, &usual, params.cluster, self.far);
        let place = self.order.len() as u32;
        let order = clusters.order.iter().copied().chain(outliers.tokens());
        let mut sorted = Vec::with_capacity(codes.len());
        for token in order.clone() {
            let at = token as usize * m;
            sorted.extend_from_slice(&codes[at..at + m]);
        }
        self.keys.push(&sorted);
        self.order.extend(order.map(|t| t as u16));
        self.clustered.push(clusters.order.len() as u32);
        self.outliers.append(&outliers, place as usize);
        self.ends
            .extend(clusters.ends.iter().map(|end| place + end));
        let n_slots = clusters.ends.len().next_multiple_of(GROUP);
        let filled = self.ends.len() - clusters.ends.len() + n_slots;
        self.ends
            .resize(filled, place + clusters.order.len() as u32);
        self.segment_ends.push(filled as u32);

        let mut means = Vec::new();
        self.coarse.encode(&clusters.means, &mut means);
        let mut slots = Vec::with_capacity(n_slots * params.coarse_m());
        let mut largest = vec![0u8; n_slots / GROUP];
        let shapes = shapes(&clusters, &mapped, dim);
        let coded = means.chunks_exact(params.coarse).zip(shapes);
        for (i, (mean, (spread, log_size))) in coded.enumerate() {
            let size = nearest(&self.log_sizes, log_size);
            largest[i / GROUP] = largest[i / GROUP].max(size);
            slots.extend_from_slice(mean);
            slots.push(nearest(&self.spreads, spread));
            slots.push(size);
        }
        slots.resize(n_slots * params.coarse_m(), 0);
        self.clusters.push(&slots);
        let (means, widths): (Vec<_>, Vec<_>) = parts(&clusters.means, dim).unzip();
        let (mut codes, mut parts) = (Vec::new(), Vec::new());
        self.fine.encode(&means.concat(), &mut codes);
        let shapes = widths.iter().zip(largest);
        for (mean, (width, size)) in codes.chunks_exact(m).zip(shapes) {
            parts.extend_from_slice(mean);
            parts.push(nearest(&self.widths, *width));
            parts.push(size);
        }
        self.parts.push(&parts);
        // Keys drift with their positions: what comes next is nearest to this.
        let next = self.centre(self.n_segments() - 1).to_vec();
        self.centres.extend(next);
    }

    /// Gives back the codes `[n, m]` and outliers of all tokens from its
    /// segment `from` on, in the order of tokens, and forgets them.
    pub fn take_from(&mut self, from: usize) -> (Vec<u8>, Outliers) {
        let (m, start) = (self.fine.m(), from * self.segment);
        let sorted = self.keys.unpack(start..self.order.len());
        let mut codes = vec![0; sorted.len()];
        for (place, key) in (start..).zip(sorted.chunks_exact(m)) {
            let token = place / self.segment * self.segment + usize::from(self.order[place]);
            codes[(token - start) * m..(token - start + 1) * m].copy_from_slice(key);
        }
        let outliers = self.outliers.from(start);
        self.outliers.truncate(start);
        self.order.truncate(start);
        self.keys.truncate(start);
        self.clustered.truncate(from);
        self.segment_ends.truncate(from);
        let n_clusters = self.segment_ends.last().map_or(0, |end| *end as usize);
        self.ends.truncate(n_clusters);
        self.clusters.truncate(n_clusters);
        self.parts.truncate(n_clusters / GROUP);
        self.centres.truncate((from + 1) * self.dim);
        (codes, outliers)
    }

    pub fn n_segments(&self) -> usize {
        self.clustered.len()
    }

    /// What is subtracted from the keys of a segment, before which or in which
    /// there are keys.
    pub fn centre(&self, segment: usize) -> &[f32] {
        &self.centres[segment * self.dim..(segment + 1) * self.dim]
    }

    pub fn parts(&self) -> &PackedCodes {
        &self.parts
    }

    pub fn clusters(&self) -> &PackedCodes {
        &self.clusters
    }

    pub fn keys(&self) -> &PackedCodes {
        &self.keys
    }

    /// Clusters of a segment, empty ones included.
    pub fn clusters_of(&self, segment: usize) -> Range<usize> {
        let start = if segment == 0 {
            0
        } else {
            self.segment_ends[segment - 1]
        };
        start as usize..self.segment_ends[segment] as usize
    }

    /// Places of a cluster.
    pub fn places(&self, cluster: usize) -> Range<usize> {
        let segment = self
            .segment_ends
            .partition_point(|end| *end as usize <= cluster);
        let start = if cluster == self.clusters_of(segment).start {
            segment * self.segment
        } else {
            self.ends[cluster - 1] as usize
        };
        start..self.ends[cluster] as usize
    }

    /// Where a segment's places that are in clusters end.
    pub fn clustered_end(&self, segment: usize) -> usize {
        segment * self.segment + self.clustered[segment] as usize
    }

    /// The token at a place, both counted through all eras.
    pub fn token_at(&self, place: u32) -> u32 {
        let own = place as usize - self.first;
        let segment = own / self.segment * self.segment;
        (self.first + segment) as u32 + u32::from(self.order[own])
    }

    /// Table of the logarithm of what a cluster's keys weigh together in the
    /// softmax, to second order: for keys spread around a mean `c`,
    /// `ln sum e^(q.k) = q.c + ln n + var(q.k) / 2`, with the variance from the
    /// cluster's mean squared distance and the query's mean squared value
    /// (the space is such that directions count alike).
    pub fn coarse_table(&self, query: &[f32], table: &mut Vec<f32>) {
        self.coarse.table(query, table);
        let square = query.iter().map(|v| v * v).sum::<f32>() / query.len() as f32;
        table.extend(self.spreads.map(|spread| spread * square / 2.0));
        table.extend(self.log_sizes);
    }

    /// Table of how high a part's clusters score, about: one standard deviation
    /// above its mean, with the largest size.
    pub fn parts_table(&self, query: &[f32], table: &mut Vec<f32>) {
        self.fine.table(query, table);
        let square = query.iter().map(|v| v * v).sum::<f32>() / query.len() as f32;
        table.extend(self.widths.map(|width| width * square.sqrt()));
        table.extend(self.log_sizes);
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        let words = self.clustered.len() + self.ends.len() + self.segment_ends.len();
        self.space.bytes()
            + self.fine.bytes()
            + self.coarse.bytes()
            + self.centres.len() * size_of::<f32>()
            + self.order.len() * size_of::<u16>()
            + words * size_of::<u32>()
            + self.parts.bytes()
            + self.clusters.bytes()
            + self.keys.bytes()
            + self.outliers.bytes()
    }
}

/// Mean of vectors `[n, dim]`.
fn mean(vectors: &[f32], dim: usize) -> Vec<f32> {
    let mut sums = vec![0f64; dim];
    for vector in vectors.chunks_exact(dim) {
        sums.iter_mut()
            .zip(vector)
            .for_each(|(s, v)| *s += f64::from(*v));
    }
    let n = (vectors.len() / dim).max(1) as f64;
    sums.iter().map(|s| (s / n) as f32).collect()
}

fn subtract(vectors: &mut [f32], centre: &[f32]) {
    for vector in vectors.chunks_exact_mut(centre.len()) {
        vector.iter_mut().zip(centre).for_each(|(v, c)| *v -= c);
    }
}

/// Means of each [`GROUP`] of vectors in turn, and the root mean squared distance
/// from them.
fn parts(vectors: &[f32], dim: usize) -> impl Iterator<Item = (Vec<f32>, f32)> {
    vectors.chunks(GROUP * dim).map(move |members| {
        let centre = mean(members, dim);
        let pairs = members
            .chunks_exact(dim)
            .flat_map(|v| v.iter().zip(&centre));
        let squares = pairs.map(|(v, c)| (v - c) * (v - c)).sum::<f32>();
        let n = (members.len() / dim) as f32;
        (centre, (squares / n).sqrt())
    })
}

/// Squared distance of each vector from what what its code stands for.
fn squared_errors(vectors: &[f32], decoded: &[f32], dim: usize) -> impl Iterator<Item = f32> {
    let pairs = vectors.chunks_exact(dim).zip(decoded.chunks_exact(dim));
    pairs.map(|(v, d)| v.iter().zip(d).map(|(v, d)| (v - d) * (v - d)).sum())
}

/// Mean squared distance from the mean, and logarithm of the size, by cluster.
fn shapes(clusters: &Clusters, vectors: &[f32], dim: usize) -> impl Iterator<Item = (f32, f32)> {
    let means = clusters.means.chunks_exact(dim);
    clusters.iter().zip(means).map(move |(members, mean)| {
        let squares = members.iter().map(|member| {
            let at = *member as usize * dim;
            let pairs = vectors[at..at + dim].iter().zip(mean);
            pairs.map(|(v, m)| (v - m) * (v - m)).sum::<f32>()
        });
        let n = members.len() as f32;
        (squares.sum::<f32>() / n, n.ln())
    })
}

/// 16 values that stand for `values`.
fn quantiles(mut values: Vec<f32>) -> [f32; CENTROIDS] {
    values.sort_by(f32::total_cmp);
    std::array::from_fn(|i| {
        let at = (2 * i + 1) * values.len() / (2 * CENTROIDS);
        values.get(at).copied().unwrap_or(0.0)
    })
}

fn nearest(values: &[f32; CENTROIDS], value: f32) -> u8 {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if (v - value).abs() < (values[best] - value).abs() {
            best = i;
        }
    }
    best as u8
}
impl Saved for Era {
    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            first,
            dim: _,
            segment: _,
            space,
            fine,
            coarse,
            grid,
            outlier_error,
            far,
            spreads,
            log_sizes,
            widths,
            centres,
            order,
            clustered,
            ends,
            segment_ends,
            parts,
            clusters,
            keys,
            outliers,
        } = self;
        out.put_u64(*first as u64);
        space.put(out);
        fine.put(out);
        coarse.put(out);
        grid.put(out);
        out.put_f32s(&[*outlier_error, *far]);
        for values in [spreads, log_sizes, widths] {
            out.put_f32s(values);
        }
        out.put_f32s(centres);
        out.put_u16s(order);
        out.put_u32s(clustered);
        out.put_u32s(ends);
        out.put_u32s(segment_ends);
        for codes in [parts, clusters, keys] {
            codes.put(out);
        }
        outliers.put(out);
    }

    fn take(params: &Params, take: &mut Take<'_>) -> Result<Self, WireError> {
        let first = usize::try_from(take.u64()?).map_err(|_| WireError::Short)?;
        let (space, fine, coarse, grid) = (
            Saved::take(params, take)?,
            Saved::take(params, take)?,
            Saved::take(params, take)?,
            Saved::take(params, take)?,
        );
        let [outlier_error, far] = values(take)?;
        let era = Self {
            first,
            dim: params.dim,
            segment: params.segment,
            space,
            fine,
            coarse,
            grid,
            outlier_error,
            far,
            spreads: values(take)?,
            log_sizes: values(take)?,
            widths: values(take)?,
            centres: take.f32s()?,
            order: take.u16s()?,
            clustered: take.u32s()?,
            ends: take.u32s()?,
            segment_ends: take.u32s()?,
            parts: Saved::take(params, take)?,
            clusters: Saved::take(params, take)?,
            keys: Saved::take(params, take)?,
            outliers: Saved::take(params, take)?,
        };
        expect(era.is_whole(params), "an era that does not fit together")?;
        Ok(era)
    }
}

/// So many values after their number.
fn values<const N: usize>(take: &mut Take<'_>) -> Result<[f32; N], WireError> {
    let values = take.f32s()?;
    let wrong = |_| WireError::invalid("another number of values");
    values.try_into().map_err(wrong)
}

impl Era {
    /// Whether everything that points somewhere points into the era.
    fn is_whole(&self, params: &Params) -> bool {
        let (n, dim, segment) = (self.n_segments(), self.dim, self.segment);
        let sizes = self.fine.is_of(params.fine, dim)
            && self.coarse.is_of(params.coarse, dim)
            && self.parts.is_of(params.parts_m())
            && self.clusters.is_of(params.coarse_m())
            && self.keys.is_of(params.fine)
            && n <= params.era
            && self.centres.len() == (n + 1) * dim
            && self.order.len() == n * segment
            && self.keys.len() == self.order.len()
            && self.segment_ends.len() == n
            && self.clusters.len() == self.ends.len()
            && self.parts.len() * GROUP == self.ends.len()
            && self.segment_ends.last().map_or(0, |end| *end as usize) == self.ends.len();
        sizes
            && self.order.iter().all(|t| usize::from(*t) < segment)
            && self.outliers.are_below(self.order.len())
            && self.segment_ends.is_sorted()
            && (0..n).all(|i| {
                let ends = self.clusters_of(i);
                let places = i * segment..=i * segment + self.clustered[i] as usize;
                self.clustered[i] as usize <= segment
                    && ends.start.is_multiple_of(GROUP)
                    && self.ends[ends.clone()].is_sorted()
                    && self.ends[ends]
                        .iter()
                        .all(|end| places.contains(&(*end as usize)))
            })
    }
}
