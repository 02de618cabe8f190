//! Lists of similar vectors.

use kiv_numeric::{Columns, TILE, dot};

/// Rounds of k-means. More gain little.
const ROUNDS: usize = 3;

/// Divides vectors `[n, dim]` into lists of about `size` similar ones, none empty, by
/// k-means in two steps: first into about sqrt(n / size) parts, then each part. That is
/// much cheaper than one step, and nearly as tight. Similar lists are near each other.
///
/// # Panics
/// If `size` or `dim` is 0.
#[must_use]
pub fn lists(vectors: &[f32], dim: usize, size: usize) -> Vec<Vec<u32>> {
    let all: Vec<u32> = (0..(vectors.len() / dim) as u32).collect();
    let n_parts = ((all.len() as f64 / size as f64).sqrt().round() as usize).max(1);
    let parts = k_means(vectors, dim, &all, n_parts).into_iter();
    parts
        .flat_map(|part| k_means(vectors, dim, &part, part.len().div_ceil(size)))
        .collect()
}

/// The mean of some of vectors `[n, dim]`, into `out`, `[dim]`; 0 of none.
///
/// # Panics
/// If there is no such vector.
pub fn mean_of(vectors: &[f32], dim: usize, members: &[u32], out: &mut [f32]) {
    out.fill(0.0);
    for member in members {
        let at = *member as usize * dim;
        for (o, v) in out.iter_mut().zip(&vectors[at..at + dim]) {
            *o += v;
        }
    }
    let n = members.len().max(1) as f32;
    out.iter_mut().for_each(|o| *o /= n);
}

/// Divides vectors `[n, dim]` into at most `k` sets of similar ones by k-means,
/// none empty, whatever is far from the others.
#[must_use]
pub fn groups(vectors: &[f32], dim: usize, k: usize) -> Vec<Vec<u32>> {
    let all: Vec<u32> = (0..(vectors.len() / dim) as u32).collect();
    k_means(vectors, dim, &all, k)
}

/// Divides `members` into at most `k` sets, none empty. The first means are
/// members spaced evenly in time, so there is no chance in it.
fn k_means(vectors: &[f32], dim: usize, members: &[u32], k: usize) -> Vec<Vec<u32>> {
    if k <= 1 || members.len() <= 1 {
        return if members.is_empty() {
            Vec::new()
        } else {
            vec![members.to_vec()]
        };
    }
    let k = k.min(members.len());
    let vector = |member: u32| &vectors[member as usize * dim..(member as usize + 1) * dim];
    let mut means: Vec<f32> = (0..k)
        .flat_map(|i| vector(members[(2 * i + 1) * members.len() / (2 * k)]).to_vec())
        .collect();
    let mut sets = vec![Vec::new(); k];
    for round in 0..=ROUNDS {
        sets.iter_mut().for_each(Vec::clear);
        let near = Means::new(&means, dim);
        let (fours, rest) = members.as_chunks::<4>();
        for four in fours {
            for (member, nearest) in four.iter().zip(near.nearest(four.map(vector))) {
                sets[nearest].push(*member);
            }
        }
        for member in rest {
            let [nearest] = near.nearest([vector(*member)]);
            sets[nearest].push(*member);
        }
        if round < ROUNDS {
            for (set, out) in sets.iter().zip(means.chunks_exact_mut(dim)) {
                if !set.is_empty() {
                    mean_of(vectors, dim, set, out);
                }
            }
        }
    }
    sets.retain(|set| !set.is_empty());
    sets
}

/// Means that vectors are compared with.
struct Means {
    columns: Columns,
    /// Half the squared length of each, by tiles; infinite where there is none.
    half_squares: Vec<[f32; TILE]>,
}

impl Means {
    fn new(means: &[f32], dim: usize) -> Self {
        let n_tiles = (means.len() / dim).div_ceil(TILE);
        let mut half_squares = vec![[f32::INFINITY; TILE]; n_tiles];
        let lanes = half_squares.as_flattened_mut().iter_mut();
        for (half, mean) in lanes.zip(means.chunks_exact(dim)) {
            *half = dot(mean, mean) / 2.0;
        }
        Self {
            columns: Columns::new(means, dim),
            half_squares,
        }
    }

    /// The nearest mean of each vector; of equally near ones the first.
    fn nearest<const R: usize>(&self, vectors: [&[f32]; R]) -> [usize; R] {
        // |v - c|^2 is smallest where v . c - |c|^2 / 2 is largest. Each lane keeps its own
        // best: one maximum for all would be a chain of comparisons, and take as long as
        // the products.
        let mut best = [[f32::NEG_INFINITY; TILE]; R];
        let mut tile_of_best = [[0u32; TILE]; R];
        let tiles = self.columns.products(vectors).zip(&self.half_squares);
        for (t, (products, halves)) in tiles.enumerate() {
            for r in 0..R {
                for i in 0..TILE {
                    let near = products[r][i] - halves[i];
                    let is_nearer = near > best[r][i];
                    best[r][i] = if is_nearer { near } else { best[r][i] };
                    tile_of_best[r][i] = if is_nearer {
                        t as u32
                    } else {
                        tile_of_best[r][i]
                    };
                }
            }
        }
        std::array::from_fn(|r| {
            let mut near = best[r];
            let mut number: [u32; TILE] =
                std::array::from_fn(|i| tile_of_best[r][i] * TILE as u32 + i as u32);
            let mut width = TILE / 2;
            while width > 0 {
                for i in 0..width {
                    let (other, later) = (near[i + width], number[i + width]);
                    let is_better = (other > near[i]) | ((other == near[i]) & (later < number[i]));
                    near[i] = if is_better { other } else { near[i] };
                    number[i] = if is_better { later } else { number[i] };
                }
                width /= 2;
            }
            number[0] as usize
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn every_vector_is_in_one_list() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for (n, dim, size) in [
            (0, 8, 16),
            (1, 8, 16),
            (15, 8, 16),
            (1000, 8, 16),
            (500, 4, 1),
        ] {
            let vectors: Vec<f32> = (0..n * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
            let lists = lists(&vectors, dim, size);
            assert!(lists.iter().all(|members| !members.is_empty()));
            let mut all: Vec<u32> = lists.into_iter().flatten().collect();
            all.sort_unstable();
            assert_eq!(all, (0..n as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn far_groups_are_told_apart() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let groups = 16;
        let vectors: Vec<f32> = (0..groups * 16)
            .flat_map(|i| {
                let group = i % groups;
                [(group % 4) as f32 * 10.0, (group / 4) as f32 * 10.0]
                    .map(|c| c + rng.random_range(-0.1..0.1))
            })
            .collect();
        for members in lists(&vectors, 2, 16) {
            let first = members[0] as usize % groups;
            assert!(members.iter().all(|m| *m as usize % groups == first));
        }
    }

    #[test]
    fn equal_vectors_make_one_list() {
        assert_eq!(lists(&vec![1.5; 8 * 300], 8, 16).len(), 1);
    }
}
