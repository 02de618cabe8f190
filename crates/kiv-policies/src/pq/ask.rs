//! One question: the queries of a step, and the blocks' shares of their softmax.

use super::head::{Known, Part};
use super::rest::LEAST;
use crate::local::{LocalKeys, Products};
use kiv_fastscan::Isa;
use kiv_index::{Asked, Effort, Found, HeadIndex};
use kiv_numeric::{exp_nonpositive, log_sum_exp};
use kiv_policy::{BlockId, LayerGeometry, PolicyError, SelectRequest};
use std::ops::Range;

/// Keys looked at for a decoded token's queries, and told.
pub(super) const DECODE: Effort = Effort {
    probed: 10240,
    kept: 1024,
};

/// Every so many tokens are shown to the index.
const OBSERVED: i32 = 16;

/// Most queries that are searched for together.
pub(super) const TOGETHER: usize = 8;

/// Longest query: beyond this, logits are not numbers any more.
const LONGEST: f32 = 1e9;

/// One question, of one KV head.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub request: &'a SelectRequest<'a>,
    pub layer: &'a LayerGeometry,
    pub kv_head: usize,
    pub isa: Isa,
    pub block: usize,
}

/// Queries that are searched for together, and the last local position that
/// each may see.
#[derive(Default)]
pub(super) struct Batch {
    /// Scaled, `[n, dim]`.
    pub queries: Vec<f32>,
    last: Vec<i32>,
    /// Learned sinks of their heads, `-inf` if there are none.
    sinks: Vec<f32>,
}

impl Ask<'_> {
    /// Query heads that share the KV head.
    pub fn query_heads(&self) -> Range<usize> {
        let group = self.layer.group();
        self.kv_head * group..(self.kv_head + 1) * group
    }

    /// Shows some queries to the index: of one token in [`OBSERVED`].
    pub fn observe(&self, index: &mut HeadIndex) {
        let positions = &self.request.queries.positions;
        let is_seen = |position: &i32| position.rem_euclid(OBSERVED) == 0;
        let seen = positions.iter().enumerate().filter(|(_, p)| is_seen(p));
        for (token, _) in seen {
            for head in self.query_heads() {
                index.observe(self.request.queries.get(token, head));
            }
        }
    }

    /// Adds a query to a batch.
    fn push(&self, batch: &mut Batch, query_head: usize, query: &[f32], last: i32) {
        self.scale(query, &mut batch.queries);
        batch.last.push(last);
        let sink = self.request.sinks.get(query_head).copied();
        batch.sinks.push(sink.unwrap_or(f32::NEG_INFINITY));
    }

    /// Appends a query as it is multiplied with keys.
    pub fn scale(&self, query: &[f32], out: &mut Vec<f32>) {
        // A longer one has the same favourites.
        let scale = self.layer.scale * self.shrink(query);
        out.extend(query.iter().map(|v| v * scale));
    }

    /// The queries of some heads of one token.
    pub fn of_token(&self, token: usize, query_heads: Range<usize>) -> Batch {
        let mut batch = Batch::default();
        let position = self.request.queries.positions[token];
        for query_head in query_heads {
            let query = self.request.queries.get(token, query_head);
            self.push(&mut batch, query_head, query, position);
        }
        batch
    }

    /// Asks for some heads' queries, for every token by itself; a device may have found the
    /// most of it, of the only one.
    pub fn decode(
        &self,
        known: Known<'_>,
        query_heads: Range<usize>,
        found: Option<&Found>,
        part: &mut Part,
    ) -> Result<(), PolicyError> {
        for token in 0..self.request.queries.n_tokens() {
            let batch = self.of_token(token, query_heads.clone());
            self.search(known, &batch, found, part)?;
        }
        Ok(())
    }

    /// What a query is multiplied by so that its products are numbers.
    pub fn shrink(&self, query: &[f32]) -> f32 {
        let longest = query.iter().fold(0f32, |m, v| m.max(v.abs())) * self.layer.scale.abs();
        if longest > LONGEST {
            LONGEST / longest
        } else {
            1.0
        }
    }

    /// A logit as the softmax sees it.
    pub fn capped(&self, logit: f32) -> f32 {
        let cap = self.layer.soft_cap;
        cap.map_or(logit, |cap| cap * (logit / cap).tanh())
    }

    /// A logit as it was before [`Self::capped`].
    fn uncapped(&self, logit: f32) -> f32 {
        let Some(cap) = self.layer.soft_cap else {
            return logit;
        };
        // Beyond the cap are none.
        match logit / cap {
            share if share >= 1.0 => f32::INFINITY,
            share if share <= -1.0 => f32::NEG_INFINITY,
            share => cap * share.atanh(),
        }
    }

    /// Log of the sum of a query's softmax over what it attends to in any case: the local keys
    /// that it has been multiplied with, up to a position, and its sink.
    fn local_total(&self, products: &[f32], sink: f32) -> f32 {
        let local = match self.layer.soft_cap {
            Some(_) => {
                let capped: Vec<f32> = products.iter().map(|l| self.capped(*l)).collect();
                log_sum_exp(&capped)
            }
            None => log_sum_exp(products),
        };
        log_sum_exp(&[local, sink])
    }

    /// [`Self::local_total`] of some queries that have been multiplied together.
    pub fn local_totals<'a>(
        &'a self,
        local: &'a LocalKeys,
        products: &'a Products,
        last: &'a [i32],
        sinks: &'a [f32],
    ) -> impl Iterator<Item = f32> + 'a {
        let asked = last.iter().zip(sinks).enumerate();
        asked.map(|(i, (last, sink))| self.local_total(local.of(products, i, *last), *sink))
    }

    /// From which product on a key has a share of at least `share` of what is attended to in
    /// any case.
    fn floor(&self, local_total: f32, share: f32) -> f32 {
        let floor = self.uncapped(local_total + share.ln());
        // No number, where there is none: every key is worth finding.
        floor.max(f32::NEG_INFINITY)
    }

    /// Multiplies a decoded token's queries with the local keys, for a device: the floors of
    /// what it is to find.
    pub fn floors(&self, local: &LocalKeys, products: &mut Products, batch: &Batch) -> Vec<f32> {
        local.ask(&batch.queries, &batch.last, products);
        let totals = self.local_totals(local, products, &batch.last, &batch.sinks);
        totals.map(|total| self.floor(total, LEAST)).collect()
    }

    /// Appends the blocks' shares of these queries' softmax, query by query. Where a device
    /// has found keys, local ones have been asked.
    fn search(
        &self,
        Known { index, local }: Known<'_>,
        batch: &Batch,
        found: Option<&Found>,
        part: &mut Part,
    ) -> Result<(), PolicyError> {
        let dim = self.layer.key_dim;
        // What each search tells is wanted again for the rest.
        part.make_room(batch.last.len().div_ceil(TOGETHER));
        let Part {
            scratch,
            hits,
            products,
            one,
            shares,
            totals,
            ..
        } = part;
        totals.clear();
        let (mut logits, mut floors) = (Vec::new(), Vec::new());
        let together = batch.queries.chunks(TOGETHER * dim);
        let others = batch
            .last
            .chunks(TOGETHER)
            .zip(batch.sinks.chunks(TOGETHER));
        for ((queries, (last, sinks)), hits) in together.zip(others).zip(hits) {
            if found.is_none() {
                local.ask(queries, last, products);
            }
            let first = totals.len();
            totals.extend(self.local_totals(local, products, last, sinks));
            let new = totals[first..].iter();
            floors.clear();
            floors.extend(new.map(|total| self.floor(*total, LEAST)));
            let (isa, floors) = (self.isa, &floors[..]);
            let asked = Asked { queries, floors };
            let searched = match found {
                Some(found) => index.search_rest(isa, asked, DECODE, found, scratch, hits),
                None => index.search(isa, asked, DECODE, scratch, hits),
            };
            searched.map_err(|e| PolicyError(e.to_string()))?;
            for (i, total) in totals[first..].iter_mut().enumerate() {
                let (tokens, products) = hits.of(i);
                logits.clear();
                logits.extend(products.iter().map(|l| self.capped(*l)));
                *total = log_sum_exp(&[*total, log_sum_exp(&logits)]);
                let total = *total;
                for (token, logit) in tokens.iter().zip(&logits) {
                    // The total is rounded.
                    one[*token as usize / self.block] += exp_nonpositive((logit - total).min(0.0));
                }
                for token in tokens {
                    let block = *token as usize / self.block;
                    let share = std::mem::take(&mut one[block]);
                    if share > 0.0 {
                        shares.push((block as BlockId, share));
                    }
                }
            }
        }
        Ok(())
    }
}
