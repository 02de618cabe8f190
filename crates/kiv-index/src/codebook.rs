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

/// Vectors that are coded side by side.
const LANES: usize = 16;

/// Vectors that are decoded together.
const DECODED: usize = 64;

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
        for axes in split.iter() {
            let values = |axis: &u16| vectors.iter().skip(usize::from(*axis)).step_by(dim);
            let mut sub: Vec<Vec<f32>> =
                axes.iter().map(|a| values(a).copied().collect()).collect();
            for _ in 0..n_outliers {
                for (values, axis) in sub.iter_mut().zip(axes) {
                    values.push(mean[usize::from(*axis)] + spread * normal.next());
                }
            }
            if axes.len() == 1 {
                centroids.extend(sub.pop().map(train_line));
            } else {
                centroids.extend(train_subspace(&sub));
            }
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
        let (dim, m, first) = (self.split.dim(), self.m(), codes.len());
        codes.resize(first + vectors.len() / dim * m, 0);
        let mut columns = vec![[0f32; LANES]; dim];
        let vectors = vectors.chunks(LANES * dim);
        for (vectors, codes) in vectors.zip(codes[first..].chunks_mut(LANES * m)) {
            for (lane, vector) in vectors.chunks_exact(dim).enumerate() {
                for (column, value) in columns.iter_mut().zip(vector) {
                    column[lane] = *value;
                }
            }
            for (number, (axes, book)) in self.books().enumerate() {
                let nearest = if let ([axis], [values]) = (axes, book) {
                    nearest_values(&columns[usize::from(*axis)], values)
                } else {
                    let axes = axes.iter().map(|axis| &columns[usize::from(*axis)]);
                    nearest(axes.zip(book))
                };
                for (codes, nearest) in codes.chunks_exact_mut(m).zip(nearest) {
                    codes[number] = nearest;
                }
            }
        }
    }

    /// Vectors that codes `[n, m]` stand for, appended to `vectors`.
    ///
    /// # Panics
    /// If a code is 16 or more.
    pub fn decode(&self, codes: &[u8], vectors: &mut Vec<f32>) {
        let (dim, m, first) = (self.split.dim(), self.m(), vectors.len());
        vectors.resize(first + codes.len() / m * dim, 0.0);
        // Few enough to stay in the nearest cache.
        let some = vectors[first..].chunks_mut(DECODED * dim);
        for (vectors, codes) in some.zip(codes.chunks(DECODED * m)) {
            for (number, (axes, book)) in self.books().enumerate() {
                let codes = codes.iter().skip(number).step_by(m);
                // Most books are of one axis: no loop in the loop.
                for (axis, column) in axes.iter().zip(book) {
                    let codes = codes.clone();
                    for (vector, code) in vectors.chunks_exact_mut(dim).zip(codes) {
                        vector[usize::from(*axis)] = column[usize::from(*code)];
                    }
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

/// Numbers of the values nearest to each of `v` among ascending ones; of equally near
/// ones the first.
fn nearest_values(v: &[f32; LANES], values: &[f32; CENTROIDS]) -> [u8; LANES] {
    let mut codes = [0u32; LANES];
    for pair in values.windows(2) {
        let middle = middle(pair);
        for (code, v) in codes.iter_mut().zip(v) {
            *code += u32::from(*v > middle);
        }
    }
    codes.map(|code| code as u8)
}

/// What is above the middle of two values is nearer to the second.
fn middle(pair: &[f32]) -> f32 {
    (pair[0] + pair[1]) / 2.0
}

/// Numbers of the centroids nearest to each of some vectors, which are given axis by
/// axis, each with the centroids' values; of equally near ones the first.
fn nearest<'a>(
    axes: impl Iterator<Item = (&'a [f32; LANES], &'a [f32; CENTROIDS])> + Clone,
) -> [u8; LANES] {
    let (mut best, mut codes) = ([f32::INFINITY; LANES], [0u32; LANES]);
    for c in 0..CENTROIDS {
        let mut distances = [0f32; LANES];
        for (values, centroids) in axes.clone() {
            for (distance, value) in distances.iter_mut().zip(values) {
                let error = value - centroids[c];
                *distance += error * error;
            }
        }
        for i in 0..LANES {
            let is_nearer = distances[i] < best[i];
            best[i] = if is_nearer { distances[i] } else { best[i] };
            codes[i] = if is_nearer { c as u32 } else { codes[i] };
        }
    }
    codes.map(|code| code as u8)
}

/// Centroids of values.
fn train_line(mut values: Vec<f32>) -> [f32; CENTROIDS] {
    let n = values.len();
    if n == 0 {
        return [0.0; CENTROIDS];
    }
    values.sort_unstable_by(f32::total_cmp);
    let mut centroids = std::array::from_fn(|c| values[(2 * c + 1) * n / (2 * CENTROIDS)]);
    for _ in 0..ROUNDS {
        // What is nearest to a centroid is a run of the sorted values.
        let mut start = 0;
        let mut next = centroids;
        for (c, next) in next.iter_mut().enumerate() {
            let rest = &values[start..];
            let pair = centroids.get(c..c + 2);
            let length = pair.map_or(rest.len(), |pair| {
                let middle = middle(pair);
                rest.partition_point(|v| *v <= middle)
            });
            // A centroid that nothing is nearest to stays where it is.
            if length > 0 {
                let sum: f64 = rest[..length].iter().copied().map(f64::from).sum();
                *next = (sum / length as f64) as f32;
            }
            start += length;
        }
        centroids = next;
        centroids.sort_by(f32::total_cmp);
    }
    centroids
}

/// Centroids of vectors, which are given axis by axis, `[sub_dim, n]`.
fn train_subspace(axes: &[Vec<f32>]) -> Vec<[f32; CENTROIDS]> {
    let n = axes[0].len();
    let mut book = vec![[0f32; CENTROIDS]; axes.len()];
    if n == 0 {
        return book;
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| axes[0][*a].total_cmp(&axes[0][*b]).then(a.cmp(b)));
    for c in 0..CENTROIDS {
        let at = order[(2 * c + 1) * n / (2 * CENTROIDS)];
        for (column, values) in book.iter_mut().zip(axes) {
            column[c] = values[at];
        }
    }
    // The last of these are fewer than a row of lanes.
    let mut columns = vec![[0f32; LANES]; axes.len()];
    for _ in 0..ROUNDS {
        let mut sums = vec![[0f64; CENTROIDS]; axes.len()];
        let mut counts = [0usize; CENTROIDS];
        for first in (0..n).step_by(LANES) {
            let end = n.min(first + LANES);
            for (column, values) in columns.iter_mut().zip(axes) {
                column[..end - first].copy_from_slice(&values[first..end]);
            }
            let codes = nearest(columns.iter().zip(&book));
            for (i, code) in (first..end).zip(codes) {
                let c = usize::from(code);
                counts[c] += 1;
                for (values, sum) in axes.iter().zip(&mut sums) {
                    sum[c] += f64::from(values[i]);
                }
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

    /// Every code, whatever row of lanes it is made in, is that of the nearest centroid.
    #[test]
    fn codes_are_of_the_nearest_centroids() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let dim = 7;
        for n in [1, 15, 16, 17, 100] {
            let mut vectors: Vec<f32> = (0..n * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
            vectors[n * dim / 2] = 1e30;
            let book = Codebook::train(&vectors, Split::new(&[1.0; 7], 4));
            let mut codes = vec![99];
            book.encode(&vectors, &mut codes);
            assert_eq!(codes.len(), 1 + n * 4);
            let coded = vectors.chunks(dim).zip(codes[1..].chunks(4));
            for (vector, codes) in coded {
                for (code, (axes, columns)) in codes.iter().zip(book.books()) {
                    let distance = |c: usize| {
                        let axes = axes.iter().zip(columns);
                        let errors =
                            axes.map(|(axis, column)| vector[usize::from(*axis)] - column[c]);
                        errors.map(|e| e * e).sum::<f32>()
                    };
                    let least = (0..CENTROIDS).map(distance).fold(f32::MAX, f32::min);
                    // A middle between two values is rounded.
                    assert!(distance(usize::from(*code)) <= least * (1.0 + 1e-4) + 1e-12);
                }
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
