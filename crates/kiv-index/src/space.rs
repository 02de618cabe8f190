//! The space that keys are quantised in.
//!
//! What matters of a quantised key `k + e` is the error of its logit, `q . e`,
//! and queries are distributed quite unlike keys (RetrievalAttention, Liu et
//! al., arXiv 2409.10516). Over the queries seen so far the mean squared error
//! is `e' S e`, with `S` their second moment. So keys are mapped by a square
//! root `A` of `S`, after which the squared length of an error *is* the mean
//! squared error of its logit, and plain k-means minimises what it should;
//! queries are mapped by the inverse, which leaves inner products as they are.
//!
//! A rotation to the principal axes of the mapped keys follows: few of them
//! carry nearly all of the variance. Axes are dealt out to subquantizers so that
//! the error to be expected is smallest: the largest get one of their own, the
//! others share ([`Split`]). (OPQ, Ge et al., CVPR 2013, balances subspaces of
//! equal size instead.)

use crate::head::Params;
use crate::saved::{Saved, expect};
use kiv_numeric::{Columns, TILE};
use kiv_wire::{Put, Take, WireError};
use nalgebra::{DMatrix, SymmetricEigen};

/// Share of the mean eigenvalue that is added to every eigenvalue of the
/// queries' second moment: directions that no query has had yet still count.
const RIDGE: f64 = 0.01;

/// Second moment of the queries seen so far.
#[derive(Clone, Debug)]
pub struct QueryMoments {
    dim: usize,
    /// `[dim, dim]`, sum of outer products (lower triangle).
    sum: Vec<f64>,
    count: u64,
}

impl QueryMoments {
    /// Of no queries.
    #[must_use]
    pub fn new(dim: usize) -> Self {
        Self {
            dim,
            sum: vec![0.0; dim * dim],
            count: 0,
        }
    }

    /// Adds queries `[n, dim]`; those with values that are no numbers are left
    /// out.
    pub fn add(&mut self, queries: &[f32]) {
        for query in queries.chunks_exact(self.dim) {
            if !query.iter().all(|v| v.is_finite()) {
                continue;
            }
            for (i, a) in query.iter().enumerate() {
                let a = f64::from(*a);
                let row = &mut self.sum[i * self.dim..=i * self.dim + i];
                for (s, b) in row.iter_mut().zip(query) {
                    *s += a * f64::from(*b);
                }
            }
            self.count += 1;
        }
    }

    /// Mean squared value of a query in every direction of the quantised space
    /// (`S` is scaled to leave it the same in all); 0 of no queries.
    #[must_use]
    pub fn mean_square(&self) -> f32 {
        let trace: f64 = (0..self.dim).map(|i| self.sum[i * self.dim + i]).sum();
        (trace / (self.count.max(1) * self.dim as u64) as f64) as f32
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.sum.len() * size_of::<f64>()
    }

    /// The moment scaled to a mean eigenvalue of 1, plus [`RIDGE`]; the
    /// identity before any query with a length.
    fn matrix(&self) -> DMatrix<f64> {
        let dim = self.dim;
        let trace: f64 = (0..dim).map(|i| self.sum[i * dim + i]).sum();
        if self.count == 0 || trace.is_nan() || trace <= 0.0 || trace.is_infinite() {
            return DMatrix::identity(dim, dim);
        }
        let unit = dim as f64 / trace;
        DMatrix::from_fn(dim, dim, |i, j| {
            let value = self.sum[i.max(j) * dim + i.min(j)] * unit;
            value + if i == j { RIDGE } else { 0.0 }
        })
    }
}

/// Linear maps of keys and queries that keep their inner products.
#[derive(Clone, Debug)]
pub struct Space {
    dim: usize,
    /// Rows of the matrix from keys to the quantised space.
    key_map: Columns,
    /// The same for queries, the inverse transpose.
    query_map: Columns,
    /// Its transpose, which maps keys back: a product with a query is the mapped query's with
    /// the mapped key.
    key_unmap: Columns,
    /// Variance of keys along each axis, largest first.
    variances: Vec<f64>,
}

impl Space {
    /// The space for keys like `keys` (`[n, dim]`) under queries like those of
    /// `moments`.
    #[must_use]
    pub fn new(moments: &QueryMoments, keys: &[f32]) -> Self {
        let dim = moments.dim;
        let queries = SymmetricEigen::new(moments.matrix());
        let root = |power: f64| {
            let values = queries.eigenvalues.map(|v| v.max(RIDGE / 2.0).powf(power));
            &queries.eigenvectors
                * DMatrix::from_diagonal(&values)
                * queries.eigenvectors.transpose()
        };
        let (root, inverse) = (root(0.5), root(-0.5));
        let spread = SymmetricEigen::new(&root * covariance(keys, dim) * &root);
        let mut axes: Vec<usize> = (0..dim).collect();
        let variance = |axis: usize| spread.eigenvalues[axis];
        axes.sort_by(|a, b| variance(*b).total_cmp(&variance(*a)).then(a.cmp(b)));
        let rows = |map: &DMatrix<f64>| -> Vec<f32> {
            let rotated = spread.eigenvectors.transpose() * map;
            let rows = axes.iter().flat_map(|axis| {
                let row = rotated.row(*axis);
                row.iter().map(|v| *v as f32).collect::<Vec<_>>()
            });
            rows.collect()
        };
        let query_map = Columns::new(&rows(&inverse), dim);
        Self {
            dim,
            key_map: Columns::new(&rows(&root), dim),
            key_unmap: query_map.transposed(),
            query_map,
            variances: axes.iter().map(|axis| variance(*axis).max(0.0)).collect(),
        }
    }

    /// The best split of the axes among `m` subquantizers.
    #[must_use]
    pub fn split(&self, m: usize) -> Split {
        Split::new(&self.variances, m)
    }

    /// What maps queries.
    pub(crate) fn query_map(&self) -> &Columns {
        &self.query_map
    }

    /// Maps keys `[n, dim]`, appending to `out`.
    pub fn map_keys(&self, keys: &[f32], out: &mut Vec<f32>) {
        self.map(&self.key_map, keys, out);
    }

    /// Keys that are mapped to vectors `[n, dim]`, appending to `out`.
    pub(crate) fn unmap(&self, mapped: &[f32], out: &mut Vec<f32>) {
        self.map(&self.key_unmap, mapped, out);
    }

    /// Maps queries `[n, dim]`, appending to `out`.
    pub fn map_queries(&self, queries: &[f32], out: &mut Vec<f32>) {
        self.map(&self.query_map, queries, out);
    }

    fn map(&self, map: &Columns, vectors: &[f32], out: &mut Vec<f32>) {
        let dim = self.dim;
        let (first, whole) = (out.len(), vectors.len() / dim * dim);
        out.resize(first + whole, 0.0);
        let out = &mut out[first..];
        let fours = vectors.chunks_exact(4 * dim);
        let rest = fours.remainder().chunks_exact(dim);
        let (out_fours, out_rest) = out.split_at_mut(whole / (4 * dim) * (4 * dim));
        for (four, out) in fours.zip(out_fours.chunks_exact_mut(4 * dim)) {
            let four: [&[f32]; 4] = std::array::from_fn(|i| &four[i * dim..(i + 1) * dim]);
            put_products(map, four, out);
        }
        for (one, out) in rest.zip(out_rest.chunks_exact_mut(dim)) {
            put_products(map, [one], out);
        }
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let maps = [&self.key_map, &self.query_map, &self.key_unmap].map(Columns::bytes);
        maps.iter().sum::<usize>() + self.variances.len() * size_of::<f64>()
    }

    /// Bytes on the heap of a space of `dim` dimensions.
    #[must_use]
    pub fn planned_bytes(dim: usize) -> usize {
        3 * Columns::planned_bytes(dim, dim) + dim * size_of::<f64>()
    }
}

/// Products of some vectors with all rows of a map, vector by vector.
fn put_products<const R: usize>(map: &Columns, vectors: [&[f32]; R], out: &mut [f32]) {
    let dim = out.len() / R;
    for (t, products) in map.products(vectors).enumerate() {
        for (out, products) in out.chunks_exact_mut(dim).zip(&products) {
            let out = &mut out[t * TILE..dim.min((t + 1) * TILE)];
            out.copy_from_slice(&products[..out.len()]);
        }
    }
}

/// Covariance of the rows of `keys`, `[n, dim]`.
fn covariance(keys: &[f32], dim: usize) -> DMatrix<f64> {
    let n = (keys.len() / dim).max(1) as f64;
    let mut mean = vec![0f64; dim];
    for key in keys.chunks_exact(dim) {
        mean.iter_mut()
            .zip(key)
            .for_each(|(m, v)| *m += f64::from(*v));
    }
    mean.iter_mut().for_each(|m| *m /= n);
    let mut sum = vec![0f64; dim * dim];
    let mut centred = vec![0f64; dim];
    for key in keys.chunks_exact(dim) {
        for ((c, v), m) in centred.iter_mut().zip(key).zip(&mean) {
            *c = f64::from(*v) - m;
        }
        for (i, a) in centred.iter().enumerate() {
            let row = &mut sum[i * dim..=i * dim + i];
            row.iter_mut().zip(&centred).for_each(|(s, b)| *s += a * b);
        }
    }
    DMatrix::from_fn(dim, dim, |i, j| sum[i.max(j) * dim + i.min(j)] / n)
}

/// Which axes each subquantizer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Axes, subquantizer by subquantizer.
    axes: Vec<u16>,
    /// Where each subquantizer's end in `axes`.
    ends: Vec<u16>,
}

impl Split {
    /// Deals axes with these variances (largest first) to `m` subquantizers.
    ///
    /// # Panics
    /// If there are fewer axes than subquantizers.
    #[must_use]
    pub fn new(variances: &[f64], m: usize) -> Self {
        assert!(
            m > 0 && m <= variances.len(),
            "an axis for every subquantizer"
        );
        let candidates =
            (0..=8).map(|eighths| Self::with_singles(variances.len(), m, m * eighths / 8));
        let error = |split: &Self| {
            split
                .iter()
                .map(|axes| quantisation_error(variances, axes))
                .sum::<f64>()
        };
        candidates
            .min_by(|a, b| error(a).total_cmp(&error(b)))
            .expect("there are candidates")
    }

    /// The first axes have a subquantizer of their own; the others are dealt
    /// out to and fro.
    fn with_singles(dim: usize, m: usize, singles: usize) -> Self {
        let singles = if singles == m && m < dim {
            m - 1
        } else {
            singles
        };
        let shared = m - singles;
        let mut sets: Vec<Vec<u16>> = (0..singles as u16).map(|axis| vec![axis]).collect();
        sets.resize(m, Vec::new());
        for axis in singles..dim {
            let (round, at) = ((axis - singles) / shared, (axis - singles) % shared);
            let at = if round.is_multiple_of(2) {
                at
            } else {
                shared - 1 - at
            };
            sets[singles + at].push(axis as u16);
        }
        let ends = sets.iter().scan(0, |end, set| {
            *end += set.len() as u16;
            Some(*end)
        });
        Self {
            ends: ends.collect(),
            axes: sets.concat(),
        }
    }

    /// Number of subquantizers.
    #[must_use]
    pub fn m(&self) -> usize {
        self.ends.len()
    }

    /// Number of axes.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.axes.len()
    }

    /// All axes, subquantizer by subquantizer, and where each one's end.
    pub(crate) fn parts(&self) -> (&[u16], &[u16]) {
        (&self.axes, &self.ends)
    }

    /// Axes of each subquantizer.
    pub fn iter(&self) -> impl Iterator<Item = &[u16]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.axes[usize::from(start)..usize::from(*end)])
    }
}

/// Mean squared error of 4 bits on normally distributed values of these axes,
/// by their rate-distortion function: bits go where the variance is above a
/// level, and what is below is lost.
fn quantisation_error(variances: &[f64], axes: &[u16]) -> f64 {
    let of = |axis: &u16| variances[usize::from(*axis)].max(1e-12);
    // Axes come largest first: how many of them get bits?
    let mut log_product = 0.0;
    let mut best = f64::MAX;
    for n in 1..=axes.len() {
        log_product += of(&axes[n - 1]).ln();
        let level = ((log_product - 8.0 * std::f64::consts::LN_2) / n as f64).exp();
        let lost: f64 = axes[n..].iter().map(of).sum();
        if level <= of(&axes[n - 1]) {
            best = best.min(n as f64 * level + lost);
        }
    }
    best
}

impl Saved for QueryMoments {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { dim: _, sum, count } = self;
        out.put_f64s(sum);
        out.put_u64(*count);
    }

    fn take(params: &Params, take: &mut Take<'_>) -> Result<Self, WireError> {
        let (dim, sum, count) = (params.dim, take.f64s()?, take.u64()?);
        expect(sum.len() == dim * dim, "moments of an impossible size")?;
        Ok(Self { dim, sum, count })
    }
}

impl Saved for Space {
    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            dim: _,
            key_map,
            query_map,
            key_unmap: _,
            variances,
        } = self;
        for map in [key_map, query_map] {
            out.put_f32s(&map.vectors().collect::<Vec<_>>());
        }
        out.put_f64s(variances);
    }

    fn take(params: &Params, take: &mut Take<'_>) -> Result<Self, WireError> {
        let dim = params.dim;
        let (key_map, query_map, variances) = (take.f32s()?, take.f32s()?, take.f64s()?);
        let lengths = [key_map.len(), query_map.len()];
        let whole = lengths == [dim * dim; 2] && variances.len() == dim;
        expect(whole, "a space of an impossible size")?;
        let query_map = Columns::new(&query_map, dim);
        Ok(Self {
            dim,
            key_map: Columns::new(&key_map, dim),
            key_unmap: query_map.transposed(),
            query_map,
            variances,
        })
    }
}

impl Saved for Split {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { axes, ends } = self;
        out.put_u16s(axes);
        out.put_u16s(ends);
    }

    fn take(params: &Params, take: &mut Take<'_>) -> Result<Self, WireError> {
        let (axes, ends) = (take.u16s()?, take.u16s()?);
        let mut seen = axes.clone();
        seen.sort_unstable();
        let all = seen.iter().copied().eq(0..params.dim as u16);
        let ascend = ends.windows(2).all(|pair| pair[0] < pair[1])
            && ends.first().is_some_and(|end| *end > 0)
            && ends
                .last()
                .is_some_and(|end| usize::from(*end) == axes.len());
        expect(all && ascend, "an impossible split of the axes")?;
        Ok(Self { axes, ends })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiv_numeric::dot;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn random(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    #[test]
    fn products_survive() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for dim in [32, 64] {
            let mut moments = QueryMoments::new(dim);
            for i in 0..200 {
                // Queries of very different spread by direction.
                let mut q = random(&mut rng, dim);
                q.iter_mut()
                    .enumerate()
                    .for_each(|(d, v)| *v *= 10f32.powi(d as i32 % 4 - 2));
                q[0] = i as f32 * 0.01;
                moments.add(&q);
            }
            let keys = random(&mut rng, 100 * dim);
            let space = Space::new(&moments, &keys);
            let queries = random(&mut rng, 10 * dim);
            let (mut mapped_keys, mut mapped_queries) = (Vec::new(), Vec::new());
            space.map_keys(&keys, &mut mapped_keys);
            space.map_queries(&queries, &mut mapped_queries);
            for (q, mq) in queries.chunks(dim).zip(mapped_queries.chunks(dim)) {
                for (k, mk) in keys.chunks(dim).zip(mapped_keys.chunks(dim)) {
                    let (want, got) = (dot(q, k), dot(mq, mk));
                    let size = dot(mq, mq).sqrt() * dot(mk, mk).sqrt();
                    assert!(
                        (want - got).abs() <= 1e-5 * size.max(1.0),
                        "{got} for {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn no_spread_and_no_queries_are_no_obstacle() {
        let mut moments = QueryMoments::new(32);
        moments.add(&[f32::NAN; 32]);
        moments.add(&[0.0; 32]);
        let keys = [0.5f32; 32 * 40];
        let space = Space::new(&moments, &keys);
        let mut mapped = Vec::new();
        space.map_keys(&keys[..32], &mut mapped);
        let mut query = Vec::new();
        space.map_queries(&[1.0; 32], &mut query);
        assert!((dot(&mapped, &query) - 16.0).abs() < 1e-4);
    }

    #[test]
    fn every_axis_is_in_one_subquantizer() {
        for (dim, m) in [(64, 64), (64, 32), (64, 16), (80, 20), (6, 5), (2, 2)] {
            for falls in [1.0, 0.8, 0.3f64] {
                let variances: Vec<f64> = (0..dim).map(|i| falls.powi(i)).collect();
                let split = Split::new(&variances, m);
                assert_eq!((split.m(), split.dim()), (m, dim as usize));
                let mut axes: Vec<u16> = split.iter().flatten().copied().collect();
                axes.sort_unstable();
                assert_eq!(axes, (0..dim as u16).collect::<Vec<_>>());
                assert!(split.iter().all(|axes| !axes.is_empty()));
            }
        }
    }

    #[test]
    fn large_axes_are_alone_and_equal_ones_share_alike() {
        let few: Vec<f64> = (0..64).map(|i| if i < 16 { 40.0 } else { 1e-3 }).collect();
        let split = Split::new(&few, 32);
        assert!(split.iter().take(16).all(|axes| axes.len() == 1));
        let split = Split::new(&[1.0; 64], 32);
        assert!(split.iter().all(|axes| axes.len() == 2));
    }

    #[test]
    fn error_of_one_axis_is_that_of_four_bits() {
        let error = quantisation_error(&[3.0], &[0]);
        assert!((error - 3.0 / 256.0).abs() < 1e-9);
        // A second axis below the level takes no bits, and is lost.
        let error = quantisation_error(&[3.0, 0.001], &[0, 1]);
        assert!((error - 3.0 / 256.0 - 0.001).abs() < 1e-9);
    }
}
