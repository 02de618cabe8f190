//! `exact`: the blocks that hold the most true attention mass.
//!
//! Every query is scored against every cold key and every local key; a
//! block's share is its part of the softmax over all of them. Shares are
//! summed over the query group (as PQCache, arXiv 2407.12820, and RetroInfer,
//! arXiv 2505.02922, do) and, in prefill, the best token of the micro-batch
//! counts: a block that one token needs outranks one that all tokens glance
//! at. Nothing cheaper can choose better by mass, so this is the oracle that
//! indexes are measured against; its cost grows with the whole context.

use crate::top::{next_of, top_k};
use kiv_numeric::{Columns, column_log_sum_exp, dot, exp_nonpositive, log_sum_exp};
use kiv_policy::{
    BlockId, ColdError, Geometry, LayerGeometry, Policy, PolicyError, SelectRequest, Selection,
};
use rayon::prelude::*;

/// Most (query, block) scores kept at once: 32 MiB.
const SCORES: usize = 8 << 20;

/// Inner products that are not worth waking threads for: about a millisecond.
const SERIAL_PRODUCTS: usize = 1 << 17;

/// Queries from which on keys are turned into columns first.
const COLUMN_QUERIES: usize = 4;

/// Blocks that a thread takes at a time, in keys.
const KEYS_AT_ONCE: usize = 2048;

/// The oracle policy; see the module's description.
#[derive(Default)]
pub struct Exact {
    state: Option<State>,
}

struct State {
    geometry: Geometry,
    threads: rayon::ThreadPool,
    /// Scratch: `[n_blocks][n_queries]`, log-sum-exp of a query over a block.
    log_mass: Vec<f32>,
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
            log_mass: Vec::new(),
        });
        Ok(())
    }

    fn select(
        &mut self,
        request: &SelectRequest<'_>,
        selection: &mut Selection,
    ) -> Result<(), PolicyError> {
        let Some(State {
            geometry,
            threads,
            log_mass,
        }) = &mut self.state
        else {
            return Err(PolicyError("select before start".to_owned()));
        };
        let (n_blocks, n_slots) = (request.cold.n_blocks(), geometry.n_slots);
        for kv_head in 0..selection.n_heads() {
            let (wanted, runners) = selection.ranked_mut(kv_head);
            if n_blocks <= n_slots {
                wanted.extend(0..n_blocks as BlockId);
            } else if n_slots > 0 {
                let head = Head {
                    layer: &geometry.layers[request.layer],
                    block: geometry.block,
                    kv_head,
                    request,
                };
                let products =
                    n_blocks * head.block * request.queries.n_tokens() * head.layer.group();
                let shares = if products < SERIAL_PRODUCTS {
                    head.block_shares::<false>(log_mass)?
                } else {
                    threads.install(|| head.block_shares::<true>(log_mass))?
                };
                top_k(&shares, n_slots, wanted);
                let all = 0..n_blocks as BlockId;
                next_of(&shares, all, wanted, request.runners, runners);
            }
        }
        Ok(())
    }
}

/// A query and the index of its token in the micro-batch.
type Query<'a> = (usize, &'a [f32]);

/// What one KV head is asked.
struct Head<'a> {
    layer: &'a LayerGeometry,
    block: usize,
    kv_head: usize,
    request: &'a SelectRequest<'a>,
}

impl Head<'_> {
    /// Largest attention share of each block over the micro-batch's tokens,
    /// `[n_blocks]`.
    fn block_shares<const PARALLEL: bool>(
        &self,
        log_mass: &mut Vec<f32>,
    ) -> Result<Vec<f32>, ColdError> {
        let (group, n_blocks) = (self.layer.group(), self.request.cold.n_blocks());
        let n_tokens = self.request.queries.n_tokens();
        let mut local_keys = Vec::new();
        self.request.local.keys(self.kv_head, &mut local_keys);
        let mut best = vec![0f32; n_blocks];
        let tokens_at_once = (SCORES / (n_blocks * group)).clamp(1, n_tokens);
        for first in (0..n_tokens).step_by(tokens_at_once) {
            let tokens = first..(first + tokens_at_once).min(n_tokens);
            let queries: Vec<Query<'_>> = tokens
                .flat_map(|t| (0..group).map(move |h| (t, self.kv_head * group + h)))
                .map(|(t, head)| (t, self.request.queries.get(t, head)))
                .collect();
            self.raise_shares::<PARALLEL>(&queries, &local_keys, log_mass, &mut best)?;
        }
        Ok(best)
    }

    /// Raises `best` by these queries' shares.
    fn raise_shares<const PARALLEL: bool>(
        &self,
        queries: &[Query<'_>],
        local_keys: &[f32],
        log_mass: &mut Vec<f32>,
        best: &mut [f32],
    ) -> Result<(), ColdError> {
        let n_queries = queries.len();
        // Every element is written before it is read.
        log_mass.resize(best.len() * n_queries, 0.0);
        let blocks_at_once = (KEYS_AT_ONCE / self.block).max(1);
        let chunk_len = blocks_at_once * n_queries;
        let score = |(chunk, out): (usize, &mut [f32])| {
            self.score_blocks(chunk * blocks_at_once, queries, out)?;
            Ok(column_log_sum_exp(out, n_queries))
        };
        let mut totals: Vec<Vec<f32>> = if PARALLEL {
            log_mass
                .par_chunks_mut(chunk_len)
                .enumerate()
                .map(score)
                .collect::<Result<_, ColdError>>()?
        } else {
            log_mass
                .chunks_mut(chunk_len)
                .enumerate()
                .map(score)
                .collect::<Result<_, ColdError>>()?
        };
        totals.push(self.local_log_mass::<PARALLEL>(queries, local_keys));
        let group = self.layer.group();
        let heads = self.kv_head * group..(self.kv_head + 1) * group;
        if let Some(sinks) = self.request.sinks.get(heads) {
            totals.push(sinks.iter().copied().cycle().take(n_queries).collect());
        }
        // Softmax denominators over cold and local keys together.
        let total = column_log_sum_exp(&totals.concat(), n_queries);
        let raise = |(best, row): (&mut f32, &[f32])| {
            for (row, total) in row.chunks_exact(group).zip(total.chunks_exact(group)) {
                let share = |(m, t): (&f32, &f32)| exp_nonpositive((m - t).min(0.0));
                *best = best.max(row.iter().zip(total).map(share).sum());
            }
        };
        if PARALLEL {
            let rows = log_mass.par_chunks_exact(n_queries);
            best.par_iter_mut().zip(rows).for_each(raise);
        } else {
            best.iter_mut()
                .zip(log_mass.chunks_exact(n_queries))
                .for_each(raise);
        }
        Ok(())
    }

    /// Log-sum-exp of every query over every block from `first` on:
    /// `out[b][q]`, as many blocks as `out` holds.
    fn score_blocks(
        &self,
        first: usize,
        queries: &[Query<'_>],
        out: &mut [f32],
    ) -> Result<(), ColdError> {
        let (n_queries, block) = (queries.len(), self.block);
        let n_blocks = out.len() / n_queries;
        let (mut keys, mut logits) = (Vec::new(), vec![0f32; block * n_queries]);
        let mut at = 0;
        while at < n_blocks {
            let (layer, first) = (self.request.layer, (first + at) as BlockId);
            let run = self
                .request
                .cold
                .keys(layer, self.kv_head, first, n_blocks - at)?;
            run.rows().decode_into(&mut keys);
            for block_keys in keys.chunks_exact(block * self.layer.key_dim) {
                self.logits(block_keys, queries, &mut logits);
                let out = &mut out[at * n_queries..(at + 1) * n_queries];
                for (mass, logits) in out.iter_mut().zip(logits.chunks_exact(block)) {
                    *mass = log_sum_exp(logits);
                }
                at += 1;
            }
        }
        Ok(())
    }

    /// Log-sum-exp of each query over the local keys that it may see.
    fn local_log_mass<const PARALLEL: bool>(
        &self,
        queries: &[Query<'_>],
        keys: &[f32],
    ) -> Vec<f32> {
        let positions = self.request.local.positions();
        if positions.is_empty() {
            return vec![f32::NEG_INFINITY; queries.len()];
        }
        let some = |queries: &[Query<'_>]| -> Vec<f32> {
            let mut logits = vec![0f32; positions.len() * queries.len()];
            self.logits(keys, queries, &mut logits);
            let rows = logits.chunks_exact(positions.len());
            let masses = rows.zip(queries).map(|(row, (token, _))| {
                let now = self.request.queries.positions[*token];
                log_sum_exp(&row[..positions.partition_point(|p| *p <= now)])
            });
            masses.collect()
        };
        if PARALLEL {
            queries.par_chunks(16).flat_map_iter(some).collect()
        } else {
            queries.chunks(16).flat_map(some).collect()
        }
    }

    /// Logits of every query with every key: `out[q][k]`.
    fn logits(&self, keys: &[f32], queries: &[Query<'_>], out: &mut [f32]) {
        let dim = self.layer.key_dim;
        let n_keys = keys.len() / dim;
        if queries.len() < COLUMN_QUERIES {
            for ((_, query), row) in queries.iter().zip(out.chunks_exact_mut(n_keys)) {
                for (key, logit) in keys.chunks_exact(dim).zip(row) {
                    *logit = dot(query, key);
                }
            }
        } else {
            let queries: Vec<&[f32]> = queries.iter().map(|(_, query)| *query).collect();
            Columns::new(keys, dim).products_into(&queries, out);
        }
        let scale = self.layer.scale;
        if let Some(cap) = self.layer.soft_cap {
            out.iter_mut()
                .for_each(|l| *l = cap * (*l * scale / cap).tanh());
        } else {
            out.iter_mut().for_each(|l| *l *= scale);
        }
    }
}

#[cfg(test)]
mod tests;
