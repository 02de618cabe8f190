//! `quest` and `arkvale`: a block is represented by a box around its keys.
//!
//! Both keep two vectors per block, a centre `c` and a half-width `r`, and score
//! a block by the largest inner product that a key inside the box could have,
//! `q . c + |q| . r` (`|q|` by channel). They differ in the box:
//!
//! - Quest (Tang et al., ICML 2024, arXiv 2406.10774): the box that holds all
//!   keys, from the minimum to the maximum of every channel; pages of 16. The
//!   score is a true upper bound.
//! - ArkVale (Chen et al., NeurIPS 2024), its best digest, "cuboid-mean": the
//!   mean of the keys, and their mean absolute deviation from it; pages of 32.
//!
//! Where this differs from the papers, because the pool is constant: both read
//! prompts with full attention and leave the first two layers dense. Here
//! prefill retrieves like decode, and all layers have the same budget. Scores
//! of the queries that share a KV head are combined by their maximum.

use crate::top::top_k;
use kiv_numeric::dot;
use kiv_policy::{
    Geometry, LayerGeometry, Policy, PolicyError, SealedBlocks, SelectRequest, Selection,
};

/// Which box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    MinMax,
    MeanDeviation,
}

/// A policy that ranks blocks by a box around their keys; see the module's
/// description.
pub struct Digest {
    kind: Kind,
    geometry: Option<Geometry>,
    /// `[layer][kv_head]`: centres and half-widths in turn,
    /// `[n_blocks, 2, key_dim]`.
    boxes: Vec<Vec<Vec<f32>>>,
}

impl Digest {
    /// Quest: the box of minima and maxima.
    #[must_use]
    pub fn quest() -> Self {
        Self::new(Kind::MinMax)
    }

    /// ArkVale: the box of mean and mean absolute deviation.
    #[must_use]
    pub fn arkvale() -> Self {
        Self::new(Kind::MeanDeviation)
    }

    fn new(kind: Kind) -> Self {
        Self {
            kind,
            geometry: None,
            boxes: Vec::new(),
        }
    }
}

impl Kind {
    /// Appends centre and half-width of `keys`, `[n, dim]`.
    fn digest(self, keys: &[f32], dim: usize, out: &mut Vec<f32>) {
        let n = (keys.len() / dim) as f32;
        let channel = |d: usize| keys.iter().copied().skip(d).step_by(dim);
        let centre = |d: usize| match self {
            Self::MinMax => {
                let low = channel(d).fold(f32::INFINITY, f32::min);
                let high = channel(d).fold(f32::NEG_INFINITY, f32::max);
                (low / 2.0 + high / 2.0, high / 2.0 - low / 2.0)
            }
            Self::MeanDeviation => {
                let mean = channel(d).sum::<f32>() / n;
                (mean, channel(d).map(|v| (v - mean).abs()).sum::<f32>() / n)
            }
        };
        let (centres, widths): (Vec<f32>, Vec<f32>) = (0..dim).map(centre).unzip();
        out.extend(centres);
        out.extend(widths);
    }
}

impl Policy for Digest {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::MinMax => "quest",
            Kind::MeanDeviation => "arkvale",
        }
    }

    fn block(&self) -> Option<usize> {
        Some(match self.kind {
            Kind::MinMax => 16,
            Kind::MeanDeviation => 32,
        })
    }

    fn start(&mut self, geometry: &Geometry) -> Result<(), PolicyError> {
        let heads = |layer: &LayerGeometry| vec![Vec::new(); layer.n_head_kv];
        self.boxes = geometry.layers.iter().map(heads).collect();
        self.geometry = Some(geometry.clone());
        Ok(())
    }

    fn seal(&mut self, blocks: &SealedBlocks<'_>) -> Result<(), PolicyError> {
        let mut keys = Vec::new();
        blocks.keys.decode_into(&mut keys);
        let boxes = &mut self.boxes[blocks.layer][blocks.kv_head];
        let added = 2 * blocks.keys.row_len * blocks.count;
        boxes
            .try_reserve(added)
            .map_err(|e| PolicyError(format!("no memory for the index: {e}")))?;
        for block in keys.chunks_exact(keys.len() / blocks.count) {
            self.kind.digest(block, blocks.keys.row_len, boxes);
        }
        Ok(())
    }

    fn truncate(&mut self, n_blocks: usize) -> Result<(), PolicyError> {
        if let Some(geometry) = &self.geometry {
            for (layer, heads) in geometry.layers.iter().zip(&mut self.boxes) {
                for boxes in heads {
                    boxes.truncate(n_blocks * 2 * layer.key_dim);
                }
            }
        }
        Ok(())
    }

    fn select(
        &mut self,
        request: &SelectRequest<'_>,
        selection: &mut Selection,
    ) -> Result<(), PolicyError> {
        let Some(geometry) = &self.geometry else {
            return Err(PolicyError("select before start".to_owned()));
        };
        let layer = &geometry.layers[request.layer];
        let (group, dim) = (layer.group(), layer.key_dim);
        for (kv_head, wanted) in selection.heads_mut().iter_mut().enumerate() {
            let boxes = &self.boxes[request.layer][kv_head];
            let mut scores = vec![f32::NEG_INFINITY; boxes.len() / (2 * dim)];
            for token in 0..request.queries.n_tokens() {
                for head in kv_head * group..(kv_head + 1) * group {
                    let query = request.queries.get(token, head);
                    // One product over both halves of a box.
                    let both: Vec<f32> = query
                        .iter()
                        .copied()
                        .chain(query.iter().map(|v| v.abs()))
                        .collect();
                    for (score, digest) in scores.iter_mut().zip(boxes.chunks_exact(2 * dim)) {
                        *score = score.max(dot(&both, digest));
                    }
                }
            }
            top_k(&scores, geometry.n_slots, wanted);
        }
        Ok(())
    }

    fn index_bytes(&self) -> usize {
        let values: usize = self.boxes.iter().flatten().map(Vec::len).sum();
        values * size_of::<f32>()
    }

    fn planned_index_bytes(&self, geometry: &Geometry, n_tokens: usize) -> usize {
        let a_box = |l: &LayerGeometry| l.n_head_kv * 2 * l.key_dim * size_of::<f32>();
        let boxes: usize = geometry.layers.iter().map(a_box).sum();
        boxes.saturating_mul(n_tokens / geometry.block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn quest_bounds_every_key_and_is_reached_by_a_corner() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut random =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        for _ in 0..50 {
            let (keys, query) = (random(16 * 8), random(8));
            let mut digest = Vec::new();
            Kind::MinMax.digest(&keys, 8, &mut digest);
            let both: Vec<f32> = query
                .iter()
                .copied()
                .chain(query.iter().map(|v| v.abs()))
                .collect();
            let bound = dot(&both, &digest);
            let best = keys
                .chunks_exact(8)
                .map(|k| dot(&query, k))
                .fold(f32::MIN, f32::max);
            assert!(best <= bound + 1e-5);
            // The corner that the query points to.
            let corner: Vec<f32> = (0..8)
                .map(|d| digest[d] + digest[8 + d] * query[d].signum())
                .collect();
            assert!((dot(&query, &corner) - bound).abs() < 1e-5);
        }
    }

    #[test]
    fn arkvale_is_mean_and_mean_deviation() {
        let mut digest = Vec::new();
        Kind::MeanDeviation.digest(&[0.0, 1.0, 4.0, 1.0, 2.0, 1.0, 2.0, 5.0], 2, &mut digest);
        assert_eq!(digest, [2.0, 2.0, 1.0, 1.5]);
    }
}
