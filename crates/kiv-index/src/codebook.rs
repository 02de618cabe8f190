//! Product quantisation (Jégou et al., PAMI 2011): a vector is cut into
//! subvectors, and each is replaced by the nearest of 16 centroids.

use crate::head::Params;
use crate::saved::{Saved, expect};
use crate::space::Split;
use kiv_fastscan::CENTROIDS;
use kiv_wire::{Put, Take, WireError};

/// Rounds of k-means in training. More gain nothing measurable.
const ROUNDS: usize = 8;

/// One imagined outlier is trained on for so many vectors; see
/// [`Codebook::train`].
const VECTORS_PER_OUTLIER: usize = 32;

/// Centroids of every subspace.
#[derive(Clone, Debug)]
pub struct Codebook {
    split: Split,
    /// `[dim, 16]`, axes in the order of the split: centroids last, so that a
    /// loop over them is vector code. Of a subquantizer with one axis they
    /// ascend.
    centroids: Vec<[f32; CENTROIDS]>,
}

impl Codebook {
    /// Trains a codebook on vectors `[n, dim]` by k-means, without
    /// chance: the first centroids are quantiles along the subspace's first
    /// axis. Fewer than 16 vectors, or equal ones, are no obstacle.
    ///
    /// What a model looks for in a long text is rare: a name, a number. Its
    /// keys point where hardly any others do, to directions in which a codebook
    /// of the usual keys has no reach, and their logits would be wrong by many
    /// nats. So a few imagined outliers are trained on too, spread around the
    /// mean alike in all directions. Where the usual keys spread as widely this
    /// changes nothing; where they do not it trades resolution, of which there
    /// is too much, for reach.
    #[must_use]
    pub fn train(vectors: &[f32], split: Split) -> Self {
        let dim = split.dim();
        let mut centroids = Vec::with_capacity(dim);
        let (mean, spread) = mean_and_spread(vectors, dim);
        let n_outliers = vectors.len() / dim / VECTORS_PER_OUTLIER;
        let mut normal = Normal::default();
        let mut sub = Vec::new();
        for axes in split.iter() {
            sub.clear();
            for vector in vectors.chunks_exact(dim) {
                sub.extend(axes.iter().map(|axis| vector[usize::from(*axis)]));
            }
            for _ in 0..n_outliers {
                let at = |axis: &u16| mean[usize::from(*axis)] + spread * normal.next();
                sub.extend(axes.iter().map(at));
            }
            centroids.extend(train_subspace(&sub, axes.len()));
        }
        Self { split, centroids }
    }

    /// Number of subquantizers.
    #[must_use]
    pub fn m(&self) -> usize {
        self.split.m()
    }

    /// Its split, and centroids along each axis of that.
    pub(crate) fn parts(&self) -> (&Split, &[[f32; CENTROIDS]]) {
        (&self.split, &self.centroids)
    }

    /// Each subquantizer's axes and centroids.
    fn books(&self) -> impl Iterator<Item = (&[u16], &[[f32; CENTROIDS]])> {
        let mut rest = &self.centroids[..];
        self.split.iter().map(move |axes| {
            let (book, later) = rest.split_at(axes.len());
            rest = later;
            (axes, book)
        })
    }

    /// Codes of vectors `[n, dim]`, appended to `codes` as `[n, m]`.
    pub fn encode(&self, vectors: &[f32], codes: &mut Vec<u8>) {
        codes.reserve(vectors.len() / self.split.dim() * self.m());
        let mut sub = Vec::new();
        for vector in vectors.chunks_exact(self.split.dim()) {
            for (axes, book) in self.books() {
                if let ([axis], [values]) = (axes, book) {
                    codes.push(nearest_value(vector[usize::from(*axis)], values));
                } else {
                    sub.clear();
                    sub.extend(axes.iter().map(|axis| vector[usize::from(*axis)]));
                    codes.push(nearest(&sub, book));
                }
            }
        }
    }

    /// Vectors that codes `[n, m]` stand for, appended to `vectors`.
    ///
    /// # Panics
    /// If a code is 16 or more.
    pub fn decode(&self, codes: &[u8], vectors: &mut Vec<f32>) {
        let dim = self.split.dim();
        let first = vectors.len();
        vectors.resize(first + codes.len() / self.m() * dim, 0.0);
        let out = vectors[first..].chunks_exact_mut(dim);
        for (codes, vector) in codes.chunks_exact(self.m()).zip(out) {
            for (code, (axes, book)) in codes.iter().zip(self.books()) {
                for (axis, column) in axes.iter().zip(book) {
                    vector[usize::from(*axis)] = column[usize::from(*code)];
                }
            }
        }
    }

    /// Inner products of a query with every centroid, appended to `table` as
    /// `[m, 16]` (the look-up table of asymmetric distance computation).
    pub fn table(&self, query: &[f32], table: &mut Vec<f32>) {
        for (axes, book) in self.books() {
            let mut row = [0f32; CENTROIDS];
            for (axis, column) in axes.iter().zip(book) {
                let q = query[usize::from(*axis)];
                row.iter_mut().zip(column).for_each(|(r, c)| *r += q * c);
            }
            table.extend(row);
        }
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.centroids.len() * size_of::<[f32; CENTROIDS]>()
    }
}

/// Mean of vectors `[n, dim]`, and the root of their mean variance.
fn mean_and_spread(vectors: &[f32], dim: usize) -> (Vec<f32>, f32) {
    let n = (vectors.len() / dim).max(1) as f64;
    let mut sums = vec![(0f64, 0f64); dim];
    for vector in vectors.chunks_exact(dim) {
        for ((sum, squares), v) in sums.iter_mut().zip(vector) {
            *sum += f64::from(*v);
            *squares += f64::from(*v) * f64::from(*v);
        }
    }
    let variance = sums
        .iter()
        .map(|(s, squares)| (squares / n - (s / n) * (s / n)).max(0.0));
    let spread = (variance.sum::<f64>() / dim as f64).sqrt();
    (
        sums.iter().map(|(s, _)| (s / n) as f32).collect(),
        spread as f32,
    )
}

/// The same normally distributed numbers every time: sums of twelve uniform
/// ones from Weyl's sequence of multiples of the golden ratio, hashed.
#[derive(Default)]
struct Normal(u64);

impl Normal {
    fn next(&mut self) -> f32 {
        let uniform = |x: u64| {
            let mut x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            x ^= x >> 32;
            x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
            (x >> 40) as f32 / (1u64 << 24) as f32
        };
        let sum: f32 = (1..=12).map(|i| uniform(self.0 + i)).sum();
        self.0 += 12;
        sum - 6.0
    }
}

/// Number of the value nearest to `v` among ascending ones; of equally near
/// ones the first.
fn nearest_value(v: f32, values: &[f32; CENTROIDS]) -> u8 {
    let mut code = 0;
    for i in 0..CENTROIDS - 1 {
        code += u8::from(v > (values[i] + values[i + 1]) / 2.0);
    }
    code
}

/// Number of the centroid nearest to `v`; of equally near ones the first.
fn nearest(v: &[f32], book: &[[f32; CENTROIDS]]) -> u8 {
    let mut distance = [0f32; CENTROIDS];
    for (v, column) in v.iter().zip(book) {
        for (d, c) in distance.iter_mut().zip(column) {
            *d += (v - c) * (v - c);
        }
    }
    // By halves: a minimum over one chain of comparisons is several times slower.
    let mut best: [(f32, u8); 8] = std::array::from_fn(|i| {
        let (a, b) = (distance[i], distance[i + 8]);
        if b < a {
            (b, i as u8 + 8)
        } else {
            (a, i as u8)
        }
    });
    for half in [4, 2, 1] {
        for i in 0..half {
            let other = best[i + half];
            if other.0 < best[i].0 || (other.0 == best[i].0 && other.1 < best[i].1) {
                best[i] = other;
            }
        }
    }
    best[0].1
}

fn train_subspace(vectors: &[f32], sub_dim: usize) -> Vec<[f32; CENTROIDS]> {
    let n = vectors.len() / sub_dim;
    let mut book = vec![[0f32; CENTROIDS]; sub_dim];
    if n == 0 {
        return book;
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| {
        vectors[a * sub_dim]
            .total_cmp(&vectors[b * sub_dim])
            .then(a.cmp(b))
    });
    for c in 0..CENTROIDS {
        let at = order[(2 * c + 1) * n / (2 * CENTROIDS)] * sub_dim;
        for (d, column) in book.iter_mut().enumerate() {
            column[c] = vectors[at + d];
        }
    }
    for _ in 0..ROUNDS {
        let mut sums = vec![[0f64; CENTROIDS]; sub_dim];
        let mut counts = [0usize; CENTROIDS];
        for vector in vectors.chunks_exact(sub_dim) {
            let c = usize::from(match (vector, &book[..]) {
                ([value], [values]) => nearest_value(*value, values),
                _ => nearest(vector, &book),
            });
            counts[c] += 1;
            for (v, sum) in vector.iter().zip(&mut sums) {
                sum[c] += f64::from(*v);
            }
        }
        for (column, sum) in book.iter_mut().zip(&sums) {
            for c in 0..CENTROIDS {
                // A centroid that nothing is nearest to stays where it is.
                if counts[c] > 0 {
                    column[c] = (sum[c] / counts[c] as f64) as f32;
                }
            }
        }
        if let [values] = &mut book[..] {
            values.sort_by(f32::total_cmp);
        }
    }
    book
}

impl Codebook {
    pub(crate) fn is_of(&self, m: usize, dim: usize) -> bool {
        (self.split.m(), self.split.dim()) == (m, dim)
    }
}

impl Saved for Codebook {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { split, centroids } = self;
        split.put(out);
        out.put_f32s(centroids.as_flattened());
    }

    fn take(params: &Params, take: &mut Take<'_>) -> Result<Self, WireError> {
        let split = Split::take(params, take)?;
        let values = take.f32s()?;
        let (centroids, rest) = values.as_chunks::<CENTROIDS>();
        let whole = rest.is_empty() && centroids.len() == split.dim();
        expect(whole, "a codebook of an impossible size")?;
        Ok(Self {
            split,
            centroids: centroids.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiv_numeric::dot;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn tables_score_what_codes_stand_for() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let dim = 24;
        let vectors: Vec<f32> = (0..300 * dim)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        for m in [24, 12, 7] {
            let book = Codebook::train(&vectors, Split::new(&vec![1.0; dim], m));
            let (mut codes, mut decoded) = (Vec::new(), Vec::new());
            book.encode(&vectors, &mut codes);
            book.decode(&codes, &mut decoded);
            let mut again = Vec::new();
            book.encode(&decoded, &mut again);
            assert_eq!(codes, again, "a centroid is nearest to itself");
            let query = &vectors[..dim];
            let mut table = Vec::new();
            book.table(query, &mut table);
            for (codes, decoded) in codes.chunks(m).zip(decoded.chunks(dim)) {
                let sum: f32 = codes
                    .iter()
                    .enumerate()
                    .map(|(i, c)| table[i * 16 + usize::from(*c)])
                    .sum();
                assert!((sum - dot(query, decoded)).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn error_is_near_the_theoretical_one() {
        // 16 levels on a uniform interval of 2: variance of an error uniform
        // on 2/16 is (2/16)^2 / 12.
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let vectors: Vec<f32> = (0..20_000).map(|_| rng.random_range(-1.0..1.0)).collect();
        let book = Codebook::train(&vectors, Split::new(&[1.0; 4], 4));
        let (mut codes, mut decoded) = (Vec::new(), Vec::new());
        book.encode(&vectors, &mut codes);
        book.decode(&codes, &mut decoded);
        let squares = vectors.iter().zip(&decoded).map(|(a, b)| (a - b) * (a - b));
        let mean = squares.sum::<f32>() / vectors.len() as f32;
        let best = (2.0f32 / 16.0).powi(2) / 12.0;
        assert!(mean < 1.1 * best, "{mean} where {best} is possible");
    }

    #[test]
    fn few_and_equal_vectors() {
        for n in [0, 1, 5, 40] {
            let vectors = vec![0.25f32; n * 8];
            let book = Codebook::train(&vectors, Split::new(&[1.0; 8], 4));
            let (mut codes, mut decoded) = (Vec::new(), Vec::new());
            book.encode(&vectors, &mut codes);
            book.decode(&codes, &mut decoded);
            assert_eq!(decoded, vectors);
        }
    }
}
