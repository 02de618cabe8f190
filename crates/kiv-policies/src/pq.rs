//! `pq`: the blocks that the product-quantized K-index says hold the most
//! attention mass. The default.
//!
//! What `exact` does by scoring every key, this does by asking the index
//! (`kiv-index`) for the best keys of every query: their approximate logits are
//! turned into shares of the softmax, local keys included, summed by block and
//! over the query group.
//!
//! In prefill the queries of a micro-batch are grouped by k-means, head by
//! head, and the index is asked for each group's mean: every micro-batch sees
//! the whole past, at a cost that does not grow with its length.

use crate::local::LocalKeys;
use crate::top::{next_of, top_of};
use kiv_fastscan::{Isa, prefetch};
use kiv_index::{Effort, HeadIndex, Hits, IndexError, Params, Scratch, groups};
use kiv_numeric::{dot, exp_nonpositive, log_sum_exp};
use kiv_policy::{
    BlockId, ColdRows, FindPart, Geometry, KeepPart, LayerGeometry, Phase, Policy, PolicyError,
    Rest, Rows, SelectRequest, Selection,
};
use kiv_wire::{Put, Take};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Keys looked at for a decoded token's queries, and told.
const DECODE: Effort = Effort {
    probed: 10240,
    kept: 1024,
};

/// The same for one of a micro-batch's groups of queries.
const PREFILL: Effort = Effort {
    probed: 2048,
    kept: 512,
};

/// Groups that a micro-batch's queries of one head are divided into.
const GROUPS: usize = 8;

/// Every so many tokens of a micro-batch are shown to the index.
const OBSERVED: usize = 16;

/// Most queries that are searched for together.
const TOGETHER: usize = 8;

/// Keys outside of the wanted blocks whose values are read, for each query of a decoded
/// token: what they add is known then without their being swapped in.
const RESTING: usize = 512;

/// Share of a query's softmax below which a key is not worth it.
const LEAST: f32 = 1e-5;

/// Share of a query's softmax that a block must have over one that is in a slot already to
/// be copied instead of it: what is left out for so little is in the rest.
const HEAD_START: f32 = 1.5e-4;

/// Cold keys, times queries, from which on a search is worth waking threads.
const PARALLEL: usize = 1 << 18;

/// Longest query: beyond this, logits are not numbers any more.
const LONGEST: f32 = 1e9;

/// The policy; see the module's description.
#[derive(Default)]
pub struct Pq {
    state: Option<State>,
}

struct State {
    geometry: Geometry,
    threads: rayon::ThreadPool,
    isa: Isa,
    /// `[layer][kv_head]`.
    heads: Vec<Vec<Head>>,
}

/// What is kept for one layer and KV head.
struct Head {
    index: HeadIndex,
    local: LocalKeys,
    scratch: Scratch,
    hits: Hits,
    /// Share of the softmax by block, 0 of all but the touched ones.
    shares: Vec<f32>,
    touched: Vec<BlockId>,
    /// The same of one query.
    one: Vec<f32>,
    /// Log of the sum of the softmax of each query that was searched for last, as far as
    /// it is known.
    totals: Vec<f32>,
}

impl Policy for Pq {
    fn name(&self) -> &'static str {
        "pq"
    }

    fn start(&mut self, geometry: &Geometry) -> Result<(), PolicyError> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(geometry.n_threads)
            .build()
            .map_err(|e| PolicyError(format!("cannot start index threads: {e}")))?;
        let isa = match Isa::from_env() {
            Ok(forced) => forced.unwrap_or_else(Isa::detect),
            Err(error) => return Err(PolicyError(error.to_string())),
        };
        let heads = geometry.layers.iter().map(|layer| {
            let params = Params::new(layer.key_dim, layer.scale);
            params
                .check()
                .map_err(|why| PolicyError(format!("layer {}: {why}", layer.il)))?;
            let head = |_| Head {
                index: HeadIndex::new(params.clone()),
                local: LocalKeys::default(),
                scratch: Scratch::default(),
                hits: Hits::default(),
                shares: Vec::new(),
                touched: Vec::new(),
                one: Vec::new(),
                totals: Vec::new(),
            };
            Ok((0..layer.n_head_kv).map(head).collect())
        });
        self.state = Some(State {
            geometry: geometry.clone(),
            threads,
            isa,
            heads: heads.collect::<Result<_, PolicyError>>()?,
        });
        Ok(())
    }

    fn sealed(&mut self, cold: &dyn ColdRows) -> Result<(), PolicyError> {
        let state = self.state()?;
        let geometry = &state.geometry;
        let heads = state
            .heads
            .iter_mut()
            .enumerate()
            .flat_map(|(layer, heads)| {
                let heads = heads.iter_mut().enumerate();
                heads.map(move |(kv_head, head)| (layer, kv_head, head))
            });
        let heads: Vec<_> = heads.collect();
        state.threads.install(|| {
            heads
                .into_par_iter()
                .with_max_len(1)
                .try_for_each(|(layer, kv_head, head)| {
                    take_up(&mut head.index, cold, geometry, layer, kv_head)
                })
        })
    }

    fn truncate(&mut self, n_blocks: usize) -> Result<(), PolicyError> {
        let state = self.state()?;
        let n_tokens = n_blocks * state.geometry.block;
        for head in state.heads.iter_mut().flatten() {
            head.index.truncate(n_tokens);
        }
        Ok(())
    }

    fn select(
        &mut self,
        request: &SelectRequest<'_>,
        selection: &mut Selection,
    ) -> Result<(), PolicyError> {
        let state = self.state()?;
        let layer = &state.geometry.layers[request.layer];
        let (block, n_slots) = (state.geometry.block, state.geometry.n_slots);
        let n_blocks = request.cold.n_blocks();
        let heads = state.heads[request.layer].iter_mut();
        let (wanted, rests) = selection.parts_mut();
        let answers = wanted.iter_mut().zip(rests);
        let heads: Vec<_> = heads.zip(answers).enumerate().collect();
        let work = n_blocks * block * request.queries.n_tokens() * layer.n_head;
        for_all(
            &state.threads,
            work,
            heads,
            |(kv_head, (head, (wanted, rest)))| {
                let mut ask = Ask {
                    request,
                    layer,
                    kv_head,
                    isa: state.isa,
                    block,
                };
                ask.observe(&mut head.index);
                if n_blocks <= n_slots {
                    wanted.extend(0..n_blocks as BlockId);
                } else if n_slots > 0 {
                    head.forget(n_blocks);
                    head.local.update(request, kv_head, layer.key_dim);
                    match request.phase {
                        Phase::Decode => ask.decode(head),
                        Phase::Prefill => ask.prefill(head),
                    }?;
                    // Nothing is known of blocks without a hit.
                    let gives_rest =
                        request.takes_rest && ask.is_plain() && head.touched.len() > n_slots;
                    if gives_rest {
                        let start = HEAD_START * layer.group() as f32;
                        let resident = request.resident.get(kv_head);
                        head.prefer(resident.copied().unwrap_or_default(), start);
                    }
                    let n = n_slots - usize::from(gives_rest);
                    let touched = head.touched.iter().copied();
                    top_of(&head.shares, touched, n, wanted);
                    if gives_rest {
                        ask.rest(head, wanted, rest)?;
                    }
                }
                Ok(())
            },
        )?;
        // Of what was looked at, where something was.
        if n_blocks > n_slots && n_slots > 0 {
            for (kv_head, head) in state.heads[request.layer].iter().enumerate() {
                let (wanted, runners) = selection.ranked_mut(kv_head);
                let touched = head.touched.iter().copied();
                next_of(&head.shares, touched, wanted, request.runners, runners);
            }
        }
        Ok(())
    }

    fn save(&self, keep: &mut KeepPart<'_>) -> Result<bool, PolicyError> {
        let Some(state) = &self.state else {
            return Err(PolicyError("used before start".to_owned()));
        };
        let heads = || state.heads.iter().flatten().map(|head| &head.index);
        let mut bytes = Vec::new();
        let n_eras = heads().map(HeadIndex::n_eras).max().unwrap_or(0);
        bytes.put_u64(n_eras as u64);
        heads().for_each(|index| index.put_rest(&mut bytes));
        keep("rest", &bytes)?;
        for era in 0..n_eras {
            bytes.clear();
            heads().for_each(|index| index.put_era(era, &mut bytes));
            keep(&format!("era {era}"), &bytes)?;
        }
        Ok(true)
    }

    fn load(&mut self, part: &mut FindPart<'_>) -> Result<bool, PolicyError> {
        let state = self.state()?;
        let Some(rest) = part("rest")? else {
            return Ok(false);
        };
        let mut rest = Take::new(&rest);
        let mut eras = Vec::new();
        // Their number is only believed as far as they are there.
        for era in 0..rest.u64().unwrap_or(0) {
            match part(&format!("era {era}"))? {
                Some(bytes) => eras.push(bytes),
                None => return Ok(false),
            }
        }
        let mut eras: Vec<Take<'_>> = eras.iter().map(|bytes| Take::new(bytes)).collect();
        let mut indices = Vec::new();
        for head in state.heads.iter().flatten() {
            let params = head.index.params().clone();
            match HeadIndex::take(params, &mut rest, &mut eras) {
                Ok(index) => indices.push(index),
                Err(_) => return Ok(false),
            }
        }
        let left = eras
            .into_iter()
            .chain([rest])
            .any(|take| take.end().is_err());
        if left {
            return Ok(false);
        }
        for (head, index) in state.heads.iter_mut().flatten().zip(indices) {
            head.index = index;
        }
        Ok(true)
    }

    fn index_bytes(&self) -> usize {
        let heads = self.state.iter().flat_map(|s| s.heads.iter().flatten());
        heads.map(|head| head.index.bytes()).sum()
    }

    fn planned_index_bytes(&self, geometry: &Geometry, n_tokens: usize) -> usize {
        let of = |l: &LayerGeometry| {
            l.n_head_kv * Params::new(l.key_dim, l.scale).planned_bytes(n_tokens)
        };
        geometry.layers.iter().map(of).sum()
    }
}

impl Pq {
    fn state(&mut self) -> Result<&mut State, PolicyError> {
        let missing = || PolicyError("used before start".to_owned());
        self.state.as_mut().ok_or_else(missing)
    }
}

impl Head {
    /// Makes room for the shares of so many blocks, all 0.
    fn forget(&mut self, n_blocks: usize) {
        for block in self.touched.drain(..) {
            if let Some(share) = self.shares.get_mut(block as usize) {
                *share = 0.0;
            }
        }
        self.shares.resize(n_blocks, 0.0);
        self.one.resize(n_blocks, 0.0);
    }

    /// Adds to the shares of these blocks, as far as they are any.
    fn prefer(&mut self, blocks: &[BlockId], start: f32) {
        for block in blocks {
            if let Some(share) = self.shares.get_mut(*block as usize) {
                if *share == 0.0 {
                    self.touched.push(*block);
                }
                *share += start;
            }
        }
    }
}

/// Serves all heads, on several threads if there is much to do. This one is among them: it
/// need not sleep until another one wakes.
fn for_all<T: Send>(
    threads: &rayon::ThreadPool,
    work: usize,
    heads: Vec<T>,
    serve: impl Fn(T) -> Result<(), PolicyError> + Send + Sync,
) -> Result<(), PolicyError> {
    let n = threads.current_num_threads().min(heads.len());
    if n < 2 || work <= PARALLEL {
        return heads.into_iter().try_for_each(serve);
    }
    let queue = Mutex::new(heads.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let serve_some = || std::iter::from_fn(next).try_for_each(&serve);
    let mut results = Vec::new();
    results.resize_with(n, || Ok(()));
    threads.in_place_scope(|scope| {
        let (own, others) = results.split_at_mut(1);
        for result in others {
            scope.spawn(|_| *result = serve_some());
        }
        own[0] = serve_some();
    });
    results.into_iter().collect()
}

/// Brings one index up to date with the cold store.
fn take_up(
    index: &mut HeadIndex,
    cold: &dyn ColdRows,
    geometry: &Geometry,
    layer: usize,
    kv_head: usize,
) -> Result<(), PolicyError> {
    let block = geometry.block;
    let end = cold.n_blocks() * block;
    let segment = index.params().segment;
    let read = |first: usize, end: usize, out: &mut Vec<f32>| -> Result<(), PolicyError> {
        out.clear();
        let dim = geometry.layers[layer].key_dim;
        let mut at = first;
        while at < end {
            let (from, skip) = (at / block, at % block);
            let blocks = (end - from * block).div_ceil(block);
            let run = cold.keys(layer, kv_head, from as BlockId, blocks)?;
            let rows = run.rows();
            let n = (rows.n_rows() - skip).min(end - at);
            let rows = rows.slice(skip, n);
            let start = out.len();
            out.resize(start + n * dim, 0.0);
            rows.format.decode(rows.bytes, &mut out[start..]);
            at += n;
        }
        Ok(())
    };
    let mut keys = Vec::new();
    read(index.len(), end, &mut keys)?;
    let mut unread = None;
    let mut read_back = |first: usize, out: &mut Vec<f32>| {
        let result = read(first, first + segment, out);
        let is_read = result.is_ok();
        unread = unread.take().or(result.err());
        is_read
    };
    index.append(&keys, &mut read_back).map_err(|error| {
        let il = geometry.layers[layer].il;
        if let Some(unread) = unread {
            return unread;
        }
        PolicyError(match error {
            IndexError::BadKey { token } => format!(
                "the key at position {} of layer {il}, KV head {kv_head} is not a number: the \
                 model's computation has gone wrong before",
                geometry.first_position + token
            ),
            other => format!("layer {il}, KV head {kv_head}: {other}"),
        })
    })
}

/// One question, of one KV head.
struct Ask<'a> {
    request: &'a SelectRequest<'a>,
    layer: &'a LayerGeometry,
    kv_head: usize,
    isa: Isa,
    block: usize,
}

/// Queries that are searched for together, and the last local position that
/// each may see.
#[derive(Default)]
struct Batch {
    /// Scaled, `[n, dim]`.
    queries: Vec<f32>,
    last: Vec<i32>,
    /// Learned sinks of their heads, `-inf` if there are none.
    sinks: Vec<f32>,
}

impl Ask<'_> {
    /// Query heads that share the KV head.
    fn query_heads(&self) -> std::ops::Range<usize> {
        let group = self.layer.group();
        self.kv_head * group..(self.kv_head + 1) * group
    }

    fn observe(&self, index: &mut HeadIndex) {
        for token in (0..self.request.queries.n_tokens()).step_by(OBSERVED) {
            for head in self.query_heads() {
                index.observe(self.request.queries.get(token, head));
            }
        }
    }

    /// Adds a query to a batch.
    fn push(&self, batch: &mut Batch, query_head: usize, query: &[f32], last: i32) {
        // A longer one has the same favourites.
        let scale = self.layer.scale * self.shrink(query);
        batch.queries.extend(query.iter().map(|v| v * scale));
        batch.last.push(last);
        let sink = self.request.sinks.get(query_head).copied();
        batch.sinks.push(sink.unwrap_or(f32::NEG_INFINITY));
    }

    /// The queries of every head of one token.
    fn decode(&mut self, head: &mut Head) -> Result<(), PolicyError> {
        let positions = self.request.queries.positions;
        for (token, position) in positions.iter().enumerate() {
            let mut batch = Batch::default();
            for query_head in self.query_heads() {
                let query = self.request.queries.get(token, query_head);
                self.push(&mut batch, query_head, query, *position);
            }
            self.search(head, &batch, DECODE, |share, more| *share += more)?;
        }
        Ok(())
    }

    /// Means of similar queries, head by head.
    fn prefill(&mut self, head: &mut Head) -> Result<(), PolicyError> {
        let (queries, dim) = (&self.request.queries, self.layer.key_dim);
        for query_head in self.query_heads() {
            let all: Vec<f32> = (0..queries.n_tokens())
                .flat_map(|token| queries.get(token, query_head).iter().copied())
                .collect();
            if all.iter().any(|v| !v.is_finite()) {
                return Err(PolicyError("a query is not a number".to_owned()));
            }
            let mut batch = Batch::default();
            for members in groups(&all, dim, GROUPS) {
                let mut mean = vec![0f32; dim];
                let mut position = 0f64;
                for member in &members {
                    let at = *member as usize;
                    let query = &all[at * dim..(at + 1) * dim];
                    let n = members.len() as f32;
                    mean.iter_mut().zip(query).for_each(|(m, q)| *m += q / n);
                    position += f64::from(queries.positions[at]) / f64::from(n);
                }
                self.push(&mut batch, query_head, &mean, position as i32);
            }
            // The neediest group of each head counts: a block that one of them
            // needs outranks one that all glance at.
            self.search(head, &batch, PREFILL, |share, more| {
                *share = share.max(more)
            })?;
        }
        Ok(())
    }

    /// What the best keys outside of the wanted blocks add to the attention of the token
    /// that has just been searched for.
    fn rest(
        &self,
        head: &mut Head,
        wanted: &[BlockId],
        rest: &mut Rest,
    ) -> Result<(), PolicyError> {
        let (group, dim) = (self.layer.group(), self.layer.value_dim);
        let Head {
            hits, one, totals, ..
        } = head;
        wanted.iter().for_each(|b| one[*b as usize] = 1.0);
        rest.values.resize(group * dim, 0.0);
        // Of every query the best, as (token, query, logit).
        let (mut left, mut logits) = (Vec::new(), Vec::new());
        for (query, all) in totals.iter().enumerate() {
            let (tokens, products) = hits.of(query);
            let least = all + LEAST.ln();
            let first = left.len();
            for (token, product) in tokens.iter().zip(products) {
                let logit = self.capped(*product);
                if logit >= least && one[*token as usize / self.block] == 0.0 {
                    left.push((*token, query, logit));
                }
            }
            let best = &mut left[first..];
            if best.len() > RESTING {
                best.select_nth_unstable_by(RESTING, |a, b| {
                    b.2.total_cmp(&a.2).then(a.0.cmp(&b.0))
                });
                left.truncate(first + RESTING);
            }
            logits.clear();
            logits.extend(left[first..].iter().map(|(_, _, logit)| *logit));
            rest.logits.push(log_sum_exp(&logits));
        }
        // Before anything can fail: it is all 0 between searches.
        wanted.iter().for_each(|b| one[*b as usize] = 0.0);
        // Together, so that every row is read once.
        left.sort_unstable_by_key(|(token, query, _)| (*token, *query));
        let blocks = left.chunk_by(|a, b| a.0 as usize / self.block == b.0 as usize / self.block);
        let mut runs = Vec::new();
        for of_block in blocks {
            let block = of_block[0].0 as usize / self.block;
            let cold = self.request.cold;
            let run = cold.values(self.request.layer, self.kv_head, block as BlockId, 1)?;
            let of_tokens = of_block.chunk_by(|a, b| a.0 == b.0);
            // Rows are everywhere: all of them are on their way before the first is used.
            of_tokens.for_each(|of_token| prefetch(self.row(run.rows(), of_token[0].0)));
            runs.push((of_block, run));
        }
        let mut row = vec![0f32; dim];
        for (of_block, run) in runs {
            let rows = run.rows();
            for of_token in of_block.chunk_by(|a, b| a.0 == b.0) {
                rows.format.decode(self.row(rows, of_token[0].0), &mut row);
                for (_, query, logit) in of_token {
                    let share = exp_nonpositive((logit - rest.logits[*query]).min(0.0));
                    let value = &mut rest.values[query * dim..(query + 1) * dim];
                    value
                        .iter_mut()
                        .zip(&row)
                        .for_each(|(v, r)| *v += share * r);
                }
            }
        }
        if !rest.values.iter().all(|v| v.is_finite()) {
            // Values that the model cannot attend to either; they are left out.
            *rest = Rest::default();
        }
        Ok(())
    }

    /// A token's row among those of its block.
    fn row<'a>(&self, rows: Rows<'a>, token: u32) -> &'a [u8] {
        rows.slice(token as usize % self.block, 1).bytes
    }

    /// Whether what a search has told are the queries' own products.
    fn is_plain(&self) -> bool {
        let queries = &self.request.queries;
        let heads = self.query_heads();
        heads.len() <= TOGETHER
            && queries.n_tokens() == 1
            && heads
                .into_iter()
                .all(|h| self.shrink(queries.get(0, h)) == 1.0)
    }

    /// What a query is multiplied by so that its products are numbers.
    fn shrink(&self, query: &[f32]) -> f32 {
        let longest = query.iter().fold(0f32, |m, v| m.max(v.abs())) * self.layer.scale.abs();
        if longest > LONGEST {
            LONGEST / longest
        } else {
            1.0
        }
    }

    /// A logit as the softmax sees it.
    fn capped(&self, logit: f32) -> f32 {
        let cap = self.layer.soft_cap;
        cap.map_or(logit, |cap| cap * (logit / cap).tanh())
    }

    /// Adds the blocks' shares of these queries' softmax to the head's shares.
    fn search(
        &self,
        head: &mut Head,
        batch: &Batch,
        effort: Effort,
        add: impl Fn(&mut f32, f32),
    ) -> Result<(), PolicyError> {
        let dim = self.layer.key_dim;
        let Head {
            index,
            local,
            scratch,
            hits,
            shares,
            touched,
            one,
            totals,
        } = head;
        totals.clear();
        let mut logits = Vec::new();
        let together = batch.queries.chunks(TOGETHER * dim);
        let others = batch
            .last
            .chunks(TOGETHER)
            .zip(batch.sinks.chunks(TOGETHER));
        for (queries, (last, sinks)) in together.zip(others) {
            index
                .search(self.isa, queries, effort, scratch, hits)
                .map_err(|e| PolicyError(e.to_string()))?;
            let asked = queries.chunks_exact(dim).zip(last).zip(sinks);
            for (i, ((query, last), sink)) in asked.enumerate() {
                logits.clear();
                let keys = local.until(*last, dim).chunks_exact(dim);
                logits.extend(keys.map(|key| dot(query, key)));
                let n_local = logits.len();
                let (tokens, products) = hits.of(i);
                logits.extend_from_slice(products);
                if self.layer.soft_cap.is_some() {
                    logits.iter_mut().for_each(|l| *l = self.capped(*l));
                }
                let total = log_sum_exp(&[log_sum_exp(&logits), *sink]);
                totals.push(total);
                for (token, logit) in tokens.iter().zip(&logits[n_local..]) {
                    // The total is rounded.
                    one[*token as usize / self.block] += exp_nonpositive((logit - total).min(0.0));
                }
                for token in tokens {
                    let block = *token as usize / self.block;
                    let more = std::mem::take(&mut one[block]);
                    if more > 0.0 {
                        if shares[block] == 0.0 {
                            touched.push(block as BlockId);
                        }
                        add(&mut shares[block], more);
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::NoLocal;
    use kiv_policy::{ColdError, ColdRun, Queries, RowFormat};
    use kiv_store::{ColdTier, HostStore};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const DIM: usize = 32;
    const BLOCK: usize = 16;
    const N_BLOCKS: usize = 40;

    /// Rows whose values cannot be read any more after so many times.
    struct Failing {
        rows: HostStore,
        reads_left: Mutex<usize>,
    }

    impl ColdRows for Failing {
        fn n_blocks(&self) -> usize {
            self.rows.n_blocks()
        }

        fn keys(&self, l: usize, h: usize, b: BlockId, n: usize) -> Result<ColdRun<'_>, ColdError> {
            self.rows.keys(l, h, b, n)
        }

        fn values(
            &self,
            l: usize,
            h: usize,
            b: BlockId,
            n: usize,
        ) -> Result<ColdRun<'_>, ColdError> {
            let mut left = self.reads_left.lock().unwrap();
            *left = left
                .checked_sub(1)
                .ok_or_else(|| ColdError("no such row".to_owned()))?;
            self.rows.values(l, h, b, n)
        }
    }

    /// A policy that knows all blocks of a store, and the store.
    fn prepared() -> (Pq, Failing) {
        let geometry = Geometry {
            layers: vec![LayerGeometry {
                il: 0,
                n_head: 2,
                n_head_kv: 1,
                key_dim: DIM,
                value_dim: DIM,
                scale: 0.3,
                soft_cap: None,
            }],
            block: BLOCK,
            n_slots: 6,
            first_position: 0,
            key_format: RowFormat::F32,
            value_format: RowFormat::F32,
            n_threads: 1,
        };
        let rows = RowFormat::F32.encode(&random(1, N_BLOCKS * BLOCK * DIM));
        let mut store = HostStore::new(&geometry);
        store.append(0, 0, &rows, &rows).unwrap();
        store.publish(N_BLOCKS).unwrap();
        let mut policy = Pq::default();
        policy.start(&geometry).unwrap();
        policy.sealed(&store).unwrap();
        let reads_left = Mutex::new(usize::MAX);
        let store = Failing {
            rows: store,
            reads_left,
        };
        (policy, store)
    }

    fn random(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.5..1.5)).collect()
    }

    /// What is wanted for a token's queries, and what the rest adds.
    fn ask(
        policy: &mut Pq,
        cold: &Failing,
        queries: &[f32],
    ) -> Result<(Vec<BlockId>, Rest), PolicyError> {
        let mut selection = Selection::default();
        selection.reset(1);
        let request = SelectRequest {
            layer: 0,
            phase: Phase::Decode,
            step: 0,
            runners: 0,
            queries: Queries {
                values: queries,
                n_head: 2,
                dim: DIM,
                positions: &[1000],
            },
            cold,
            local: &NoLocal,
            takes_rest: true,
            resident: &[],
            sinks: &[],
        };
        policy.select(&request, &mut selection)?;
        Ok((selection.head(0).to_vec(), selection.rest(0).clone()))
    }

    #[test]
    fn a_row_that_cannot_be_read_leaves_no_trace() {
        let (before, after) = (random(2, 2 * DIM), random(3, 2 * DIM));
        let (mut policy, store) = prepared();
        let (undisturbed, _) = ask(&mut policy, &store, &before).unwrap();
        let wanted = ask(&mut policy, &store, &after).unwrap();
        assert!(undisturbed.iter().any(|block| !wanted.0.contains(block)));
        for reads in [0, 1, 7] {
            let (mut policy, store) = prepared();
            *store.reads_left.lock().unwrap() = reads;
            let failed = ask(&mut policy, &store, &before).unwrap_err();
            assert_eq!(failed.to_string(), "no such row");
            *store.reads_left.lock().unwrap() = usize::MAX;
            assert_eq!(ask(&mut policy, &store, &after).unwrap(), wanted);
        }
    }

    #[test]
    fn all_heads_are_served_by_several_threads() {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(3);
        let threads = threads.build().unwrap();
        for work in [0, PARALLEL + 1] {
            let served = Mutex::new(Vec::new());
            let serve = |head: usize| {
                served.lock().unwrap().push(head);
                Ok(())
            };
            for_all(&threads, work, (0..17).collect(), serve).unwrap();
            let mut served = served.into_inner().unwrap();
            served.sort_unstable();
            assert_eq!(served, (0..17).collect::<Vec<_>>());
            let fails = |head: usize| match head {
                11 => Err(PolicyError("eleven".to_owned())),
                _ => Ok(()),
            };
            let failed = for_all(&threads, work, (0..17).collect(), fails);
            assert_eq!(failed.unwrap_err().to_string(), "eleven");
        }
    }
}
