//! `exact`: the blocks that hold the most true attention mass.
//!
//! Every query is scored against every cold key and every local key; a
//! block's share is its part of the softmax over all of them. Shares are
//! summed over the query group (as PQCache, arXiv 2407.12820, and RetroInfer,
//! arXiv 2505.02922, do) and, in prefill, the best token of the micro-batch
//! counts: a block that one token needs outranks one that all tokens glance
//! at. Nothing cheaper can choose better by mass, so this is the oracle that
//! indexes are measured against; its cost grows with the whole context.

use crate::numeric::{TILE, dot, exp_nonpositive, log_sum_exp, tile_logits};
use crate::top::top_k;
use kiv_policy::{
    BlockId, ColdRows, Geometry, LayerGeometry, Policy, PolicyError, SelectRequest, Selection,
};
use rayon::prelude::*;

/// Most (query, block) scores kept at once: 32 MiB.
const SCORES: usize = 8 << 20;

/// Queries from which on keys are turned into columns first.
const COLUMN_QUERIES: usize = 4;

/// The oracle policy; see the module's description.
#[derive(Default)]
pub struct Exact {
    state: Option<State>,
}

struct State {
    geometry: Geometry,
    threads: rayon::ThreadPool,
}

impl Policy for Exact {
    fn name(&self) -> &'static str {
        "exact"
    }

    fn start(&mut self, geometry: &Geometry) -> Result<(), PolicyError> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(geometry.n_threads)
            .build()
            .map_err(|e| PolicyError(format!("cannot start scoring threads: {e}")))?;
        self.state = Some(State {
            geometry: geometry.clone(),
            threads,
        });
        Ok(())
    }

    fn select(
        &mut self,
        request: &SelectRequest<'_>,
        selection: &mut Selection,
    ) -> Result<(), PolicyError> {
        let Some(State { geometry, threads }) = &self.state else {
            return Err(PolicyError("select before start".to_owned()));
        };
        let (n_blocks, n_slots) = (request.cold.n_blocks(), geometry.n_slots);
        for (kv_head, wanted) in selection.heads_mut().iter_mut().enumerate() {
            if n_blocks <= n_slots {
                wanted.extend(0..n_blocks as BlockId);
            } else if n_slots > 0 {
                let shares = block_shares(geometry, request, kv_head, threads);
                top_k(&shares, n_slots, wanted);
            }
        }
        Ok(())
    }
}

/// Largest attention share of each block over the micro-batch's tokens,
/// `[n_blocks]`.
fn block_shares(
    geometry: &Geometry,
    request: &SelectRequest<'_>,
    kv_head: usize,
    threads: &rayon::ThreadPool,
) -> Vec<f32> {
    let layer = &geometry.layers[request.layer];
    let (group, n_blocks) = (layer.group(), request.cold.n_blocks());
    let n_tokens = request.queries.n_tokens();
    let mut local_keys = Vec::new();
    request.local.keys(kv_head, &mut local_keys);
    let mut best = vec![0f32; n_blocks];
    let tokens_at_once = (SCORES / (n_blocks * group)).clamp(1, n_tokens);
    for first in (0..n_tokens).step_by(tokens_at_once) {
        let tokens = first..(first + tokens_at_once).min(n_tokens);
        let queries: Vec<(usize, &[f32])> = tokens
            .flat_map(|t| (0..group).map(move |h| (t, kv_head * group + h)))
            .map(|(t, head)| (t, request.queries.get(t, head)))
            .collect();
        let local = local_log_mass(layer, request, &queries, &local_keys, threads);
        add_shares(
            layer,
            geometry.block,
            request,
            (kv_head, &queries, &local),
            threads,
            &mut best,
        );
    }
    best
}

/// Log-sum-exp of each query over the local keys that it may see.
fn local_log_mass(
    layer: &LayerGeometry,
    request: &SelectRequest<'_>,
    queries: &[(usize, &[f32])],
    keys: &[f32],
    threads: &rayon::ThreadPool,
) -> Vec<f32> {
    let positions = request.local.positions();
    let some = |queries: &[(usize, &[f32])]| -> Vec<f32> {
        let mut logits = vec![0f32; positions.len() * queries.len()];
        all_logits(layer, positions.len(), keys, queries, &mut logits);
        let rows = logits.chunks_exact(positions.len());
        let masses = rows.zip(queries).map(|(row, (token, _))| {
            let now = request.queries.positions[*token];
            log_sum_exp(&row[..positions.partition_point(|p| *p <= now)])
        });
        masses.collect()
    };
    threads.install(|| queries.par_chunks(16).flat_map_iter(some).collect())
}

/// Logits of every query with every key: `out[q][k]`, `n_keys` keys.
fn all_logits(
    layer: &LayerGeometry,
    n_keys: usize,
    keys: &[f32],
    queries: &[(usize, &[f32])],
    out: &mut [f32],
) {
    if queries.len() < COLUMN_QUERIES {
        for ((_, query), row) in queries.iter().zip(out.chunks_exact_mut(n_keys)) {
            for (key, logit) in keys.chunks_exact(layer.key_dim).zip(row) {
                *logit = dot(query, key);
            }
        }
    } else {
        column_logits(layer.key_dim, n_keys, keys, queries, out);
    }
    if let Some(cap) = layer.soft_cap {
        out.iter_mut()
            .for_each(|l| *l = cap * (*l * layer.scale / cap).tanh());
    } else {
        out.iter_mut().for_each(|l| *l *= layer.scale);
    }
}

/// Raises `best` by these queries' shares.
fn add_shares(
    layer: &LayerGeometry,
    block: usize,
    request: &SelectRequest<'_>,
    (kv_head, queries, local): (usize, &[(usize, &[f32])], &[f32]),
    threads: &rayon::ThreadPool,
    best: &mut [f32],
) {
    let n_queries = queries.len();
    // log_mass[b][q]: log-sum-exp of query q over block b.
    let mut log_mass = vec![0f32; best.len() * n_queries];
    let blocks_at_once = (2048 / block).max(1);
    threads.install(|| {
        log_mass
            .par_chunks_mut(blocks_at_once * n_queries)
            .enumerate()
            .for_each(|(chunk, out)| {
                let first = chunk * blocks_at_once;
                score_blocks(
                    layer,
                    block,
                    request.cold,
                    (request.layer, kv_head, first),
                    queries,
                    out,
                );
            });
    });
    // Softmax denominators over cold and local keys together.
    let total: Vec<f32> = threads.install(|| {
        (0..n_queries)
            .into_par_iter()
            .map(|q| {
                let rows = log_mass.chunks_exact(n_queries).map(|row| row[q]);
                let all: Vec<f32> = rows.chain([local[q]]).collect();
                log_sum_exp(&all)
            })
            .collect()
    });
    let group = layer.group();
    threads.install(|| {
        best.par_iter_mut()
            .zip(log_mass.par_chunks_exact(n_queries))
            .for_each(|(best, row)| {
                for (row, total) in row.chunks_exact(group).zip(total.chunks_exact(group)) {
                    let share = |(m, t): (&f32, &f32)| exp_nonpositive((m - t).min(0.0));
                    *best = best.max(row.iter().zip(total).map(share).sum());
                }
            });
    });
}

/// Log-sum-exp of every query over every block from `first` on:
/// `out[b][q]`, as many blocks as `out` holds.
fn score_blocks(
    layer: &LayerGeometry,
    block: usize,
    cold: &dyn ColdRows,
    (layer_index, kv_head, first): (usize, usize, usize),
    queries: &[(usize, &[f32])],
    out: &mut [f32],
) {
    let n_queries = queries.len();
    let n_blocks = out.len() / n_queries;
    let (mut keys, mut logits) = (Vec::new(), vec![0f32; block * n_queries]);
    let mut at = 0;
    while at < n_blocks {
        let run = cold.keys(layer_index, kv_head, (first + at) as BlockId, n_blocks - at);
        run.decode_into(&mut keys);
        for block_keys in keys.chunks_exact(block * layer.key_dim) {
            all_logits(layer, block, block_keys, queries, &mut logits);
            let out = &mut out[at * n_queries..(at + 1) * n_queries];
            for (mass, logits) in out.iter_mut().zip(logits.chunks_exact(block)) {
                *mass = log_sum_exp(logits);
            }
            at += 1;
        }
    }
}

/// Inner products of many queries with one block's keys, by tiles of keys
/// turned into columns.
fn column_logits(
    dim: usize,
    block: usize,
    keys: &[f32],
    queries: &[(usize, &[f32])],
    logits: &mut [f32],
) {
    let mut columns = vec![[0f32; TILE]; dim];
    for (tile, tile_keys) in keys.chunks(TILE * dim).enumerate() {
        let n = tile_keys.len() / dim;
        for (i, key) in tile_keys.chunks_exact(dim).enumerate() {
            for (column, value) in columns.iter_mut().zip(key) {
                column[i] = *value;
            }
        }
        let at = tile * TILE;
        let (fours, rest) = queries.as_chunks::<4>();
        for (four, queries) in fours.iter().enumerate() {
            let rows = tile_logits(queries.map(|(_, q)| q), &columns);
            for (r, row) in rows.iter().enumerate() {
                let q = four * 4 + r;
                logits[q * block + at..q * block + at + n].copy_from_slice(&row[..n]);
            }
        }
        for (r, (_, query)) in rest.iter().enumerate() {
            let [row] = tile_logits([query], &columns);
            let q = fours.len() * 4 + r;
            logits[q * block + at..q * block + at + n].copy_from_slice(&row[..n]);
        }
    }
}

#[cfg(test)]
mod tests;
