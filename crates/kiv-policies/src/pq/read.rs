//! Reading: what the queries of a micro-batch look for, hundreds of each head.
//!
//! Searching for each of them would take longer than the model's own work. So similar ones
//! are searched for by their mean, and each then weighs by itself, with its own local keys,
//! what the mean has found: a mean knows where to look, but not what a single query needs.
//! (`docs/index.md`, "What reading sees", has what other ways lose.)

use super::ask::{Ask, TOGETHER};
use super::head::{Known, Part};
use crate::local::LocalKeys;
use kiv_index::{Effort, HeadIndex, Hits, groups, mean_of};
use kiv_numeric::{Columns, TILE, exp_nonpositive, first_logits};
use kiv_policy::{BlockId, PolicyError};
use std::ops::Range;

/// Queries of a head, on average, whose mean is searched for: as few as that among few keys,
/// as many as that among many.
const ALIKE: [usize; 2] = [16, 64];

/// Keys in the index for each query from which on there are fewer means, so that searching
/// takes as long.
const KEYS: usize = 8192;

/// Means that are worth it, however few queries there are.
const FEWEST: usize = 8;

/// Keys looked at for a mean.
const PROBED: usize = 2048;

/// Keys of them that its queries weigh: fewer where there are more means.
const KEPT: [usize; 2] = [256, 512];

/// Keys that all means of a head keep together, within these bounds.
const KEPT_TOGETHER: usize = 8192;

/// Query heads of a KV head whose keys are decoded together: they have many in common.
const DECODED_FOR: usize = 4;

/// Queries that are multiplied with local keys at once.
const AT_ONCE: usize = 16;

/// The queries of one head.
struct Queries {
    dim: usize,
    /// Scaled, `[n, dim]`.
    values: Vec<f32>,
    /// Log of the sum of each one's softmax over what it attends to in any case.
    locals: Vec<f32>,
}

/// Keys that were told for some means.
#[derive(Default)]
struct Told {
    /// Numbers and tokens, mean by mean.
    all: Vec<(u32, u32)>,
    /// Where each mean's end.
    ends: Vec<usize>,
    /// The same numbers in their order, each once.
    numbers: Vec<u32>,
    dim: usize,
    /// Those keys, decoded, `[n, dim]`.
    rows: Vec<f32>,
}

impl Ask<'_> {
    /// Tells the largest shares that blocks have of the softmax of any query of some heads.
    pub fn read(
        &self,
        known: Known<'_>,
        query_heads: Range<usize>,
        part: &mut Part,
    ) -> Result<(), PolicyError> {
        let read = self.read_some(known, query_heads, part);
        // Also after an error: it is all 0 between searches.
        for (block, share) in &mut part.shares {
            *share = std::mem::take(&mut part.one[*block as usize]);
        }
        read
    }

    fn read_some(
        &self,
        known: Known<'_>,
        query_heads: Range<usize>,
        part: &mut Part,
    ) -> Result<(), PolicyError> {
        let query_heads: Vec<usize> = query_heads.collect();
        for some in query_heads.chunks(DECODED_FOR) {
            let mut told = Told::default();
            let mut sets = Vec::new();
            for query_head in some {
                let queries = self.queries_of(known.local, *query_head, part)?;
                let n = n_means(queries.locals.len(), known.index.len());
                let of_head = groups(&queries.values, queries.dim, n);
                self.search_for(known.index, &queries, &of_head, part, &mut told)?;
                sets.extend(of_head.iter().map(|set| queries.of(set)));
            }
            told.decode(known.index);
            for (i, set) in sets.iter().enumerate() {
                self.weigh(part, set, &told.keys(i));
            }
        }
        Ok(())
    }

    /// One head's queries, and what they attend to in any case.
    fn queries_of(
        &self,
        local: &LocalKeys,
        query_head: usize,
        part: &mut Part,
    ) -> Result<Queries, PolicyError> {
        let (queries, dim) = (&self.request.queries, self.layer.key_dim);
        let mut all = Queries {
            dim,
            values: Vec::with_capacity(queries.n_tokens() * dim),
            locals: Vec::with_capacity(queries.n_tokens()),
        };
        let sink = self.request.sinks.get(query_head).copied();
        let sink = sink.unwrap_or(f32::NEG_INFINITY);
        for first in (0..queries.n_tokens()).step_by(AT_ONCE) {
            let tokens = first..queries.n_tokens().min(first + AT_ONCE);
            for token in tokens.clone() {
                let query = queries.get(token, query_head);
                if query.iter().any(|v| !v.is_finite()) {
                    return Err(PolicyError("a query is not a number".to_owned()));
                }
                self.scale(query, &mut all.values);
            }
            let last = &queries.positions[tokens.clone()];
            local.ask(&all.values[first * dim..], last, &mut part.products);
            let sinks = vec![sink; tokens.len()];
            all.locals
                .extend(self.local_totals(local, &part.products, last, &sinks));
        }
        Ok(all)
    }

    /// Searches for the means of some sets of queries.
    fn search_for(
        &self,
        index: &HeadIndex,
        queries: &Queries,
        sets: &[Vec<u32>],
        part: &mut Part,
        told: &mut Told,
    ) -> Result<(), PolicyError> {
        part.make_room(1);
        let Part { scratch, hits, .. } = part;
        let hits = &mut hits[0];
        let [few, many] = KEPT;
        let effort = Effort {
            probed: PROBED,
            kept: (KEPT_TOGETHER / sets.len().max(1)).clamp(few, many),
        };
        for sets in sets.chunks(TOGETHER) {
            let mut means = vec![0f32; sets.len() * queries.dim];
            for (set, mean) in sets.iter().zip(means.chunks_exact_mut(queries.dim)) {
                mean_of(&queries.values, queries.dim, set, mean);
            }
            let searched = index.search(self.isa, means[..].into(), effort, scratch, hits);
            searched.map_err(|e| PolicyError(e.to_string()))?;
            (0..sets.len()).for_each(|query| told.push(hits, query));
        }
        Ok(())
    }

    /// Raises blocks' shares to those that they have of a set of queries' softmax by some
    /// keys, which come with their tokens and in the order of these.
    fn weigh(&self, part: &mut Part, set: &Queries, keys: &[(u32, &[f32])]) {
        let columns = Columns::new(&set.values, set.dim);
        let tiles = columns.tiles().chunks_exact(set.dim);
        for (tile, locals) in tiles.zip(set.locals.chunks(TILE)) {
            if locals.len() > TILE / 2 {
                self.weigh_tile::<TILE>(part, tile, locals, keys);
            } else {
                self.weigh_tile::<{ TILE / 2 }>(part, tile, locals, keys);
            }
        }
    }

    /// [`Ask::weigh`], of at most `W` queries, given as columns.
    fn weigh_tile<const W: usize>(
        &self,
        part: &mut Part,
        tile: &[[f32; TILE]],
        locals: &[f32],
        keys: &[(u32, &[f32])],
    ) {
        let mut logits: Vec<[f32; W]> = Vec::with_capacity(keys.len());
        let (fours, rest) = keys.as_chunks::<4>();
        for four in fours {
            first_logits(four.map(|(_, key)| key), tile, &mut logits);
        }
        for (_, key) in rest {
            first_logits([*key], tile, &mut logits);
        }
        if self.layer.soft_cap.is_some() {
            let all = logits.as_flattened_mut().iter_mut();
            all.for_each(|logit| *logit = self.capped(*logit));
        }
        let inverses = exponentials(locals, &mut logits);
        let mut rows = &logits[..];
        for block in keys.chunk_by(|a, b| self.block_of(a.0) == self.block_of(b.0)) {
            let (of_block, others) = rows.split_at(block.len());
            rows = others;
            let mut shares = [0f32; W];
            for row in of_block {
                shares.iter_mut().zip(row).for_each(|(s, v)| *s += v);
            }
            let mut most = 0f32;
            for i in 0..W {
                most = most.max(shares[i] * inverses[i]);
            }
            part.raise(self.block_of(block[0].0), most);
        }
    }

    fn block_of(&self, token: u32) -> BlockId {
        (token as usize / self.block) as BlockId
    }
}

/// Means that are searched for, of so many queries among so many keys.
fn n_means(n_queries: usize, n_keys: usize) -> usize {
    let [few, many] = ALIKE.map(|alike| n_queries.div_ceil(alike));
    (n_queries * KEYS / n_keys.max(1))
        .clamp(many, few)
        .max(FEWEST)
}

/// Turns logits of at most `W` queries, key by key, into parts of each query's softmax, but
/// for a factor for each, which is told.
fn exponentials<const W: usize>(locals: &[f32], logits: &mut [[f32; W]]) -> [f32; W] {
    // Where there is no query nothing has a share.
    let mut local = [f32::MAX; W];
    local[..locals.len()].copy_from_slice(locals);
    let mut most = local;
    for row in &*logits {
        for i in 0..W {
            most[i] = if row[i] > most[i] { row[i] } else { most[i] };
        }
    }
    let mut sums = [0f32; W];
    for i in 0..W {
        sums[i] = exp_nonpositive(local[i] - most[i]);
    }
    for row in logits {
        for i in 0..W {
            row[i] = exp_nonpositive(row[i] - most[i]);
            sums[i] += row[i];
        }
    }
    sums.map(|sum| 1.0 / sum)
}

impl Queries {
    /// Some of them.
    fn of(&self, set: &[u32]) -> Self {
        let values = set.iter().flat_map(|i| self.get(*i));
        Self {
            dim: self.dim,
            values: values.copied().collect(),
            locals: set.iter().map(|i| self.locals[*i as usize]).collect(),
        }
    }

    fn get(&self, i: u32) -> &[f32] {
        &self.values[i as usize * self.dim..][..self.dim]
    }
}

impl Told {
    /// Adds what one of the queries of the last search was told.
    fn push(&mut self, hits: &Hits, query: usize) {
        let (tokens, _) = hits.of(query);
        let keys = hits.keys(query).iter().copied().zip(tokens.iter().copied());
        self.all.extend(keys);
        self.ends.push(self.all.len());
    }

    /// Decodes all of them, each once: sets have many in common.
    fn decode(&mut self, index: &HeadIndex) {
        self.numbers
            .extend(self.all.iter().map(|(number, _)| number));
        // In the order of memory.
        self.numbers.sort_unstable();
        self.numbers.dedup();
        self.dim = index.params().dim;
        self.rows.reserve(self.numbers.len() * self.dim);
        index.decode(&self.numbers, &mut self.rows);
    }

    /// Tokens and keys of one of the queries, in the order of tokens, so that those of a block
    /// follow each other.
    fn keys(&self, query: usize) -> Vec<(u32, &[f32])> {
        let start = if query == 0 { 0 } else { self.ends[query - 1] };
        let mut keys = self.all[start..self.ends[query]].to_vec();
        keys.sort_unstable_by_key(|(_, token)| *token);
        let place = |number: u32| self.numbers.partition_point(|n| *n < number);
        let row = |number| &self.rows[place(number) * self.dim..][..self.dim];
        keys.iter()
            .map(|(number, token)| (*token, row(*number)))
            .collect()
    }
}
