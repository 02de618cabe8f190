//! `kiv`: the retrieval rule of KIV, as its published source has it.
//!
//! Source: github.com/Babyhamsta/KIV, `kiv/cold_store.py`. Cold tokens are
//! cut into pages of 128; a page is represented by the mean of its keys. Each
//! query head takes its 32 best pages by inner product with the mean; the
//! union of these pages over all heads and queries, and the tokens of the last
//! incomplete page, are the candidates. Each candidate token is scored by its
//! largest inner product over all heads; the 256 best tokens are resident, the
//! *same* tokens for every KV head. In prefill nothing is retrieved: text that
//! has left the window is invisible to later chunks.
//!
//! Where this differs, because budgets must be comparable and pools constant:
//! - The number of tokens is the budget. Pages grow with it beyond 256 tokens,
//!   so that KIV's own ratio of 16 candidates a token holds.
//! - Slots are never empty: before the first decoded token they show the first
//!   tokens of the text.

use crate::top::top_k;
use kiv_numeric::dot;
use kiv_policy::{
    BlockId, ColdRows, Geometry, Phase, Policy, PolicyError, SelectRequest, Selection,
};

/// Tokens in a page.
const PAGE: usize = 128;

/// Pages that each query takes at a budget of 256 tokens or less.
const TOP_PAGES: usize = 32;

/// Candidate tokens per retrieved token (4096 for 256).
const CANDIDATES: usize = 16;

/// KIV's own rule; see the module's description.
#[derive(Default)]
pub struct Kiv {
    geometry: Option<Geometry>,
    /// `[layer][kv_head]`: page means, `[n_pages, key_dim]`.
    means: Vec<Vec<Vec<f32>>>,
}

impl Policy for Kiv {
    fn name(&self) -> &'static str {
        "kiv"
    }

    /// KIV retrieves single tokens.
    fn block(&self) -> Option<usize> {
        Some(1)
    }

    fn start(&mut self, geometry: &Geometry) -> Result<(), PolicyError> {
        if geometry.block != 1 {
            return Err(PolicyError(format!(
                "kiv retrieves single tokens: --kv-block must be 1, not {}",
                geometry.block
            )));
        }
        self.means = geometry
            .layers
            .iter()
            .map(|layer| vec![Vec::new(); layer.n_head_kv])
            .collect();
        self.geometry = Some(geometry.clone());
        Ok(())
    }

    fn truncate(&mut self, n_blocks: usize) -> Result<(), PolicyError> {
        let Some(geometry) = &self.geometry else {
            return Ok(());
        };
        for (layer, heads) in geometry.layers.iter().zip(&mut self.means) {
            for means in heads {
                means.truncate(n_blocks / PAGE * layer.key_dim);
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
        if request.phase == Phase::Prefill {
            return Ok(());
        }
        let layer = &geometry.layers[request.layer];
        let n_slots = geometry.n_slots;
        if n_slots == 0 {
            return Ok(());
        }
        let heads = &mut self.means[request.layer];
        for (kv_head, means) in heads.iter_mut().enumerate() {
            add_means(request.cold, (request.layer, kv_head), layer.key_dim, means)?;
        }
        let candidates = candidates(request, heads, n_slots, layer.group());
        let mut scores = vec![f32::NEG_INFINITY; candidates.len()];
        let mut keys = Vec::new();
        for kv_head in 0..layer.n_head_kv {
            let mut at = 0;
            while at < candidates.len() {
                // Candidates come in whole pages, so runs are long.
                let first = candidates[at];
                let page_left = PAGE - first as usize % PAGE;
                let run = request
                    .cold
                    .keys(request.layer, kv_head, first, page_left)?;
                let rows = run.rows();
                rows.decode_into(&mut keys);
                for (key, score) in keys.chunks_exact(layer.key_dim).zip(&mut scores[at..]) {
                    for query in group_queries(request, kv_head, layer.group()) {
                        *score = score.max(dot(query, key));
                    }
                }
                at += rows.n_rows();
            }
        }
        let mut best = Vec::new();
        top_k(&scores, n_slots, &mut best);
        for head in selection.heads_mut() {
            head.extend(best.iter().map(|i| candidates[*i as usize]));
        }
        Ok(())
    }

    fn index_bytes(&self) -> usize {
        self.means
            .iter()
            .flatten()
            .map(|m| m.len() * size_of::<f32>())
            .sum()
    }

    fn planned_index_bytes(&self, geometry: &Geometry, n_tokens: usize) -> usize {
        let means = |l: &kiv_policy::LayerGeometry| l.n_head_kv * l.key_dim * size_of::<f32>();
        let page: usize = geometry.layers.iter().map(means).sum();
        page.saturating_mul(n_tokens / PAGE)
    }
}

/// All queries of the heads that share `kv_head`.
fn group_queries<'a>(
    request: &'a SelectRequest<'_>,
    kv_head: usize,
    group: usize,
) -> impl Iterator<Item = &'a [f32]> {
    let heads = kv_head * group..(kv_head + 1) * group;
    (0..request.queries.n_tokens())
        .flat_map(move |t| heads.clone().map(move |h| request.queries.get(t, h)))
}

/// Adds the means of pages that have become complete.
fn add_means(
    cold: &dyn ColdRows,
    (layer, kv_head): (usize, usize),
    dim: usize,
    means: &mut Vec<f32>,
) -> Result<(), PolicyError> {
    let mut keys = Vec::new();
    for page in means.len() / dim..cold.n_blocks() / PAGE {
        let mut sum = vec![0f64; dim];
        let mut at = 0;
        while at < PAGE {
            let run = cold.keys(layer, kv_head, (page * PAGE + at) as BlockId, PAGE - at)?;
            let rows = run.rows();
            rows.decode_into(&mut keys);
            for key in keys.chunks_exact(dim) {
                sum.iter_mut()
                    .zip(key)
                    .for_each(|(s, v)| *s += f64::from(*v));
            }
            at += rows.n_rows();
        }
        means.extend(sum.iter().map(|s| (s / PAGE as f64) as f32));
    }
    Ok(())
}

/// Tokens of the pages that any head wants, and of the last incomplete page.
fn candidates(
    request: &SelectRequest<'_>,
    means: &[Vec<f32>],
    n_slots: usize,
    group: usize,
) -> Vec<BlockId> {
    let dim = request.queries.dim;
    let n_tokens = request.cold.n_blocks();
    let n_pages = n_tokens / PAGE;
    let per_query = TOP_PAGES.max((n_slots * CANDIDATES).div_ceil(PAGE));
    let mut wanted = vec![false; n_pages];
    let mut best = Vec::new();
    for (kv_head, means) in means.iter().enumerate() {
        for query in group_queries(request, kv_head, group) {
            let scores: Vec<f32> = means.chunks_exact(dim).map(|m| dot(query, m)).collect();
            best.clear();
            top_k(&scores, per_query, &mut best);
            best.iter().for_each(|page| wanted[*page as usize] = true);
        }
    }
    let pages = (0..n_pages).filter(|page| wanted[*page]);
    pages
        .flat_map(|page| page * PAGE..(page + 1) * PAGE)
        .chain(n_pages * PAGE..n_tokens)
        .map(|token| token as BlockId)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::NoLocal;
    use kiv_policy::{Alone, LayerGeometry, Queries, RowFormat};
    use kiv_store::{ColdTier, HostStore};

    /// KIV's known weakness, reproduced: a needle in a page whose other keys
    /// point away has a poor mean and is never a candidate.
    #[test]
    fn a_mean_hides_a_needle_and_a_good_page_does_not() {
        let layer = LayerGeometry {
            il: 0,
            n_head: 1,
            n_head_kv: 1,
            key_dim: 2,
            value_dim: 1,
            scale: 1.0,
            soft_cap: None,
        };
        let g = Geometry {
            layers: vec![layer],
            block: 1,
            n_slots: 1,
            first_position: 0,
            key_format: RowFormat::F32,
            value_format: RowFormat::F32,
            n_threads: 1,
        };
        for (others, found) in [(-1.0, false), (0.5, true)] {
            let n = 40 * PAGE;
            let needle = 5 * PAGE + 17;
            let key = |t: usize| match t {
                _ if t == needle => [3.0, 0.0],
                _ if t / PAGE == 5 => [others, 0.0],
                _ => [0.0, 1.0],
            };
            let keys: Vec<f32> = (0..n).flat_map(key).collect();
            let mut store = HostStore::new(&g);
            store
                .append(0, 0, &RowFormat::F32.encode(&keys), &vec![0; n * 4])
                .unwrap();
            store.publish(n).unwrap();
            let mut policy = Kiv::default();
            policy.start(&g).unwrap();
            let mut selection = Selection::default();
            selection.reset(1);
            let request = SelectRequest {
                layer: 0,
                phase: Phase::Decode,
                step: 0,
                runners: 0,
                queries: Queries {
                    values: &[1.0, 0.0],
                    n_head: 1,
                    dim: 2,
                    positions: &[n as i32],
                },
                cold: &store,
                local: &NoLocal,
                takes_rest: false,
                resident: &[],
                sinks: &[],
                helpers: &Alone,
            };
            policy.select(&request, &mut selection).unwrap();
            assert_eq!(selection.head(0).contains(&(needle as u32)), found);
            assert_eq!(policy.index_bytes(), policy.planned_index_bytes(&g, n));
        }
    }
}
