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
//! A rotation to the principal axes of the mapped keys follows, with the axes
//! dealt out so that the variances of all subspaces have about one product
//! (the eigenvalue allocation of OPQ, Ge et al., CVPR 2013).

use kiv_numeric::dot;
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
    /// `[dim, dim]`: key -> quantised space.
    key_map: Vec<f32>,
    /// `[dim, dim]`: query -> quantised space, the inverse transpose.
    query_map: Vec<f32>,
}

impl Space {
    /// The space for keys like `keys` (`[n, dim]`) under queries like those of
    /// `moments`, cut into `m` subspaces.
    ///
    /// # Panics
    /// If `m` does not divide the dimension of `moments`.
    #[must_use]
    pub fn new(moments: &QueryMoments, keys: &[f32], m: usize) -> Self {
        let dim = moments.dim;
        assert!(m > 0 && dim.is_multiple_of(m), "subspaces of equal size");
        let queries = SymmetricEigen::new(moments.matrix());
        let root = |power: f64| {
            let values = queries.eigenvalues.map(|v| v.max(RIDGE / 2.0).powf(power));
            &queries.eigenvectors * DMatrix::from_diagonal(&values) * queries.eigenvectors.transpose()
        };
        let (root, inverse) = (root(0.5), root(-0.5));
        let spread = SymmetricEigen::new(&root * covariance(keys, dim) * &root);
        let axes = deal(spread.eigenvalues.as_slice(), m);
        let rows = |map: &DMatrix<f64>| -> Vec<f32> {
            let rotated = spread.eigenvectors.transpose() * map;
            let rows = axes.iter().flat_map(|axis| {
                let row = rotated.row(*axis);
                row.iter().map(|v| *v as f32).collect::<Vec<_>>()
            });
            rows.collect()
        };
        Self {
            dim,
            key_map: rows(&root),
            query_map: rows(&inverse),
        }
    }

    /// Maps keys `[n, dim]`, appending to `out`.
    pub fn map_keys(&self, keys: &[f32], out: &mut Vec<f32>) {
        self.map(&self.key_map, keys, out);
    }

    /// Maps queries `[n, dim]`, appending to `out`.
    pub fn map_queries(&self, queries: &[f32], out: &mut Vec<f32>) {
        self.map(&self.query_map, queries, out);
    }

    fn map(&self, map: &[f32], vectors: &[f32], out: &mut Vec<f32>) {
        out.reserve(vectors.len());
        for vector in vectors.chunks_exact(self.dim) {
            out.extend(map.chunks_exact(self.dim).map(|row| dot(row, vector)));
        }
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.key_map.len() + self.query_map.len()) * size_of::<f32>()
    }
}

/// Covariance of the rows of `keys`, `[n, dim]`.
fn covariance(keys: &[f32], dim: usize) -> DMatrix<f64> {
    let n = (keys.len() / dim).max(1) as f64;
    let mut mean = vec![0f64; dim];
    for key in keys.chunks_exact(dim) {
        mean.iter_mut().zip(key).for_each(|(m, v)| *m += f64::from(*v));
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

/// Orders axes so that cutting them into `m` equal runs gives subspaces whose
/// variances have about one product: the largest first, each to the subspace
/// with room whose product is the smallest.
fn deal(variances: &[f64], m: usize) -> Vec<usize> {
    let room = variances.len() / m;
    let mut axes: Vec<usize> = (0..variances.len()).collect();
    axes.sort_by(|a, b| variances[*b].total_cmp(&variances[*a]).then(a.cmp(b)));
    let mut subspaces = vec![(0f64, Vec::with_capacity(room)); m];
    // Relative to the smallest, so that every axis adds to a product.
    let least = variances.iter().copied().fold(f64::MAX, f64::min).max(1e-12);
    for axis in axes {
        let with_room = subspaces.iter_mut().filter(|(_, axes)| axes.len() < room);
        if let Some((product, axes)) = with_room.min_by(|a, b| a.0.total_cmp(&b.0)) {
            *product += (variances[axis].max(least) / least).ln() + 1e-9;
            axes.push(axis);
        }
    }
    subspaces.into_iter().flat_map(|(_, axes)| axes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn random(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    #[test]
    fn products_survive() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (dim, m) in [(32, 16), (64, 64), (64, 32)] {
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
            let space = Space::new(&moments, &keys, m);
            let queries = random(&mut rng, 10 * dim);
            let (mut mapped_keys, mut mapped_queries) = (Vec::new(), Vec::new());
            space.map_keys(&keys, &mut mapped_keys);
            space.map_queries(&queries, &mut mapped_queries);
            for (q, mq) in queries.chunks(dim).zip(mapped_queries.chunks(dim)) {
                for (k, mk) in keys.chunks(dim).zip(mapped_keys.chunks(dim)) {
                    let (want, got) = (dot(q, k), dot(mq, mk));
                    let size = dot(mq, mq).sqrt() * dot(mk, mk).sqrt();
                    assert!((want - got).abs() <= 1e-5 * size.max(1.0), "{got} for {want}");
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
        let space = Space::new(&moments, &keys, 16);
        let mut mapped = Vec::new();
        space.map_keys(&keys[..32], &mut mapped);
        let mut query = Vec::new();
        space.map_queries(&[1.0; 32], &mut query);
        assert!((dot(&mapped, &query) - 16.0).abs() < 1e-4);
    }

    #[test]
    fn axes_are_dealt_evenly() {
        let order = deal(&[8.0, 1.0, 2.0, 4.0], 2);
        let product = |axes: &[usize]| axes.iter().map(|a| [8.0, 1.0, 2.0, 4.0][*a]).product::<f64>();
        assert_eq!(product(&order[..2]), product(&order[2..]));
    }
}
