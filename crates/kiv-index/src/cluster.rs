//! Clusters of similar keys: the coarse level of the index.
//!
//! A segment's keys are divided by k-means in two steps, first into about
//! sqrt(n / size) parts, then each part into clusters of about `size` keys:
//! much cheaper than one step, and nearly as tight. Clusters of about 16 keys
//! per segment of some thousand tokens, trained segment by segment, are
//! RetroInfer's (Chen et al., arXiv 2505.02922): keys rotate with their
//! positions (RoPE), so clusters over the whole context would go stale.
//!
//! The mean of a cluster says nothing of a member that is unlike the others,
//! and what a question is about is often unlike everything else. So members far
//! from the mean leave, and are scored one by one.

use kiv_fastscan::GROUP;
use kiv_numeric::{TILE, dot, tile_logits};

/// Rounds of k-means. More gain little.
const ROUNDS: usize = 3;

/// Squared distance from its mean, over the mean one of all vectors, from
/// which on a vector is a cluster of its own.
const FAR: f32 = 1.5;

/// A partition of vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Clusters {
    /// Indices of the vectors, cluster by cluster.
    pub order: Vec<u32>,
    /// Where each cluster ends in `order`. No cluster is empty.
    pub ends: Vec<u32>,
    /// Means, `[n_clusters, dim]`.
    pub means: Vec<f32>,
}

impl Clusters {
    /// Divides vectors `[n, dim]` into clusters of about `size`; those whose
    /// squared distance from the mean is above `far`, or far above the others',
    /// are clusters of their own.
    ///
    /// # Panics
    /// If `size` or `dim` is 0.
    #[must_use]
    pub fn new(vectors: &[f32], dim: usize, size: usize, far: f32) -> Self {
        let all: Vec<u32> = (0..(vectors.len() / dim) as u32).collect();
        Self::of(vectors, dim, &all, size, far)
    }

    /// Divides those of the vectors whose indices `members` holds.
    ///
    /// # Panics
    /// As [`Clusters::new`], or if there is no such vector.
    #[must_use]
    pub fn of(vectors: &[f32], dim: usize, members: &[u32], size: usize, far: f32) -> Self {
        let n = members.len();
        let n_parts = ((n as f64 / size as f64).sqrt().round() as usize).max(1);
        let mut clusters = Self {
            order: Vec::with_capacity(n),
            ends: Vec::new(),
            means: Vec::new(),
        };
        let mut sets = Vec::new();
        for part in k_means(vectors, dim, members, n_parts) {
            sets.extend(k_means(vectors, dim, &part, part.len().div_ceil(size)));
        }
        let far = take_far(vectors, dim, &mut sets, n, far);
        sets.extend(far.into_iter().map(|member| vec![member]));
        let mut means = vec![0f32; sets.len() * dim];
        for (set, out) in sets.iter().zip(means.chunks_exact_mut(dim)) {
            mean(vectors, dim, set, out);
        }
        let mut order: Vec<u32> = (0..sets.len() as u32).collect();
        arrange(&means, dim, &mut order);
        for at in order {
            clusters.push(vectors, dim, &sets[at as usize]);
        }
        clusters
    }

    fn push(&mut self, vectors: &[f32], dim: usize, members: &[u32]) {
        let at = self.means.len();
        self.means.resize(at + dim, 0.0);
        mean(vectors, dim, members, &mut self.means[at..]);
        self.order.extend(members);
        self.ends.push(self.order.len() as u32);
    }

    /// Members of each cluster.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.order[start as usize..*end as usize])
    }
}

/// Puts similar vectors beside each other, so that every [`GROUP`] of them in
/// turn make a part: divides them in two by k-means until no more than that are
/// left, where whole groups are next to where the means divide them.
fn arrange(vectors: &[f32], dim: usize, members: &mut [u32]) {
    if members.len() <= GROUP {
        return;
    }
    let vector = |member: u32| &vectors[member as usize * dim..(member as usize + 1) * dim];
    let (mut from, mut direction) = widest_axis(vectors, dim, members);
    let mut along: Vec<(f32, u32)> = Vec::new();
    let mut n_left = 0;
    for _ in 0..=ROUNDS {
        along.clear();
        let middle = dot(&from, &direction);
        along.extend((members.iter()).map(|m| (dot(vector(*m), &direction) - middle, *m)));
        let (mut left, mut right) = (vec![0f32; dim], vec![0f32; dim]);
        n_left = 0;
        for (at, member) in &along {
            let is_left = *at < 0.0;
            n_left += usize::from(is_left);
            let side = if is_left { &mut left } else { &mut right };
            let pairs = side.iter_mut().zip(vector(*member));
            pairs.for_each(|(sum, v)| *sum += v);
        }
        if n_left == 0 || n_left == members.len() {
            break;
        }
        let (l, r) = (n_left as f32, (members.len() - n_left) as f32);
        for (i, (from, direction)) in from.iter_mut().zip(&mut direction).enumerate() {
            let (left, right) = (left[i] / l, right[i] / r);
            *from = (left + right) / 2.0;
            *direction = right - left;
        }
    }
    let most = (members.len() - 1) / GROUP;
    let half = ((n_left + GROUP / 2) / GROUP).clamp(1, most) * GROUP;
    along.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    for (member, (_, sorted)) in members.iter_mut().zip(&along) {
        *member = *sorted;
    }
    let (left, right) = members.split_at_mut(half);
    arrange(vectors, dim, left);
    arrange(vectors, dim, right);
}

/// Mean of some vectors, and the axis on which they differ most, as a direction.
fn widest_axis(vectors: &[f32], dim: usize, members: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let mut centre = vec![0f32; dim];
    mean(vectors, dim, members, &mut centre);
    let mut variances = vec![0f32; dim];
    for member in members {
        let at = *member as usize * dim;
        let pairs = vectors[at..at + dim].iter().zip(&centre);
        for (variance, (v, c)) in variances.iter_mut().zip(pairs) {
            *variance += (v - c) * (v - c);
        }
    }
    let axis = (0..dim).max_by(|a, b| variances[*a].total_cmp(&variances[*b]));
    let mut direction = vec![0f32; dim];
    direction[axis.unwrap_or(0)] = 1.0;
    (centre, direction)
}

fn mean(vectors: &[f32], dim: usize, members: &[u32], out: &mut [f32]) {
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

/// Takes the members out whose squared distance from their set's mean is more
/// than `most`, or than [`FAR`] times the mean one.
fn take_far(
    vectors: &[f32],
    dim: usize,
    sets: &mut Vec<Vec<u32>>,
    n: usize,
    most: f32,
) -> Vec<u32> {
    let vector = |member: u32| &vectors[member as usize * dim..(member as usize + 1) * dim];
    let mut centre = vec![0f32; dim];
    let mut distances = Vec::with_capacity(n);
    for set in &*sets {
        mean(vectors, dim, set, &mut centre);
        distances.extend(set.iter().map(|member| {
            let pairs = vector(*member).iter().zip(&centre);
            pairs.map(|(v, c)| (v - c) * (v - c)).sum::<f32>()
        }));
    }
    let limit = most.min(FAR * distances.iter().sum::<f32>() / n.max(1) as f32);
    let (mut far, mut distances) = (Vec::new(), distances.into_iter());
    for set in &mut *sets {
        set.retain(|member| {
            let stays = distances.next().is_none_or(|d| d <= limit);
            if !stays {
                far.push(*member);
            }
            stays
        });
    }
    sets.retain(|set| !set.is_empty());
    far
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
        let columns = Columns::new(&means, dim);
        let (fours, rest) = members.as_chunks::<4>();
        for four in fours {
            for (member, nearest) in four.iter().zip(columns.nearest(four.map(vector))) {
                sets[nearest].push(*member);
            }
        }
        for member in rest {
            let [nearest] = columns.nearest([vector(*member)]);
            sets[nearest].push(*member);
        }
        if round < ROUNDS {
            for (set, out) in sets.iter().zip(means.chunks_exact_mut(dim)) {
                if !set.is_empty() {
                    mean(vectors, dim, set, out);
                }
            }
        }
    }
    sets.retain(|set| !set.is_empty());
    sets
}

/// Means turned into columns, by tiles.
struct Columns {
    n: usize,
    dim: usize,
    /// `[n_tiles, dim]`.
    tiles: Vec<[f32; TILE]>,
    /// Half the squared length of each mean.
    half_squares: Vec<f32>,
}

impl Columns {
    fn new(means: &[f32], dim: usize) -> Self {
        let n = means.len() / dim;
        let mut tiles = vec![[0f32; TILE]; n.div_ceil(TILE) * dim];
        for (i, mean) in means.chunks_exact(dim).enumerate() {
            let tile = &mut tiles[i / TILE * dim..(i / TILE + 1) * dim];
            for (column, value) in tile.iter_mut().zip(mean) {
                column[i % TILE] = *value;
            }
        }
        Self {
            n,
            dim,
            tiles,
            half_squares: means.chunks_exact(dim).map(|m| dot(m, m) / 2.0).collect(),
        }
    }

    /// The nearest mean of each vector; of equally near ones the first.
    fn nearest<const R: usize>(&self, vectors: [&[f32]; R]) -> [usize; R] {
        // |v - c|^2 is smallest where v . c - |c|^2 / 2 is largest.
        let mut best = [(f32::NEG_INFINITY, 0); R];
        for (t, tile) in self.tiles.chunks_exact(self.dim).enumerate() {
            let products = tile_logits(vectors, tile);
            let halves = &self.half_squares[t * TILE..self.n.min((t + 1) * TILE)];
            for (best, products) in best.iter_mut().zip(&products) {
                for (i, (p, h)) in products.iter().zip(halves).enumerate() {
                    if p - h > best.0 {
                        *best = (p - h, t * TILE + i);
                    }
                }
            }
        }
        best.map(|(_, nearest)| nearest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn every_vector_is_in_one_cluster() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for (n, dim, size) in [
            (0, 8, 16),
            (1, 8, 16),
            (15, 8, 16),
            (1000, 8, 16),
            (500, 4, 1),
        ] {
            let vectors: Vec<f32> = (0..n * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
            let clusters = Clusters::new(&vectors, dim, size, f32::INFINITY);
            let mut order = clusters.order.clone();
            order.sort_unstable();
            assert_eq!(order, (0..n as u32).collect::<Vec<_>>());
            assert_eq!(clusters.means.len(), clusters.ends.len() * dim);
            assert!(clusters.iter().all(|members| !members.is_empty()));
            let members: usize = clusters.iter().map(<[u32]>::len).sum();
            assert_eq!(members, n);
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
        let clusters = Clusters::new(&vectors, 2, 16, f32::INFINITY);
        for members in clusters.iter() {
            let first = members[0] as usize % groups;
            assert!(members.iter().all(|m| *m as usize % groups == first));
        }
    }

    #[test]
    fn equal_vectors_make_one_cluster() {
        let clusters = Clusters::new(&vec![1.5; 8 * 300], 8, 16, 0.0);
        assert_eq!(clusters.ends, [300]);
        assert_eq!(clusters.means, [1.5; 8]);
    }
}
