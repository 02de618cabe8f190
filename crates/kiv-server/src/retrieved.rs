//! Where in a text an answer came from.
//!
//! While a question is read and answered token by token, the attention of every tiered
//! layer is looked at: how much of its softmax, over the rows that are resident, falls on
//! each block of the text. That is what was looked up; that it made the answer, it does
//! not prove.

use kiv_policy::{ColdError, Phase};
use kiv_runtime::{Attended, AttentionTap, Session};
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;

/// Parts that a text is divided into.
const BINS: usize = 160;

/// Passages that are told.
const PASSAGES: usize = 8;

/// What of a text was attended to while a question was read and answered.
#[derive(Clone, Debug, Serialize)]
pub struct Retrieved {
    /// Tokens of the text.
    pub tokens: usize,
    /// Share of the attention that went to each part of it, first to last; all together
    /// are 1.
    pub bins: Vec<f32>,
    /// Blocks with the most, most first.
    pub passages: Vec<Passage>,
}

/// A block of the text.
#[derive(Clone, Debug, Serialize)]
pub struct Passage {
    /// Its first token.
    pub from: usize,
    /// The token after its last.
    pub to: usize,
    /// Its share of the attention.
    pub share: f32,
    /// Its text, and half a block of what is around.
    pub text: String,
}

/// Attention mass by block, summed over layers, heads and tokens.
#[derive(Clone, Default)]
pub(crate) struct Heat(Arc<Mutex<Vec<f32>>>);

impl Heat {
    /// Begins to look at a session's attention, to the tokens before `until`.
    pub fn watch(session: &mut Session, until: usize) -> Self {
        let heat = Self::default();
        let tap = Tap {
            heat: heat.clone(),
            sinks: session.pool().sinks,
            until,
        };
        session.set_tap(Some(Box::new(tap)));
        heat
    }

    /// What was seen of the session's first `until` tokens.
    pub fn told(&self, session: &Session, until: usize) -> Retrieved {
        let (pool, all) = (session.pool(), session.tokens());
        let mut shares = self.0.lock().clone();
        let total = shares.iter().sum::<f32>().max(f32::MIN_POSITIVE);
        shares.iter_mut().for_each(|share| *share /= total);
        let start = |block: usize| pool.sinks + block * pool.block;
        let mut bins = vec![0.0; BINS];
        for (block, share) in shares.iter().enumerate() {
            bins[(start(block) * BINS / until.max(1)).min(BINS - 1)] += share;
        }
        let mut order: Vec<usize> = (0..shares.len()).filter(|b| shares[*b] > 0.0).collect();
        order.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]).then(a.cmp(b)));
        order.truncate(PASSAGES);
        let passage = |block: usize| {
            let (from, to) = (start(block), start(block + 1).min(until));
            let around = from.saturating_sub(pool.block / 2)..(to + pool.block / 2).min(until);
            Passage {
                from,
                to,
                share: shares[block],
                text: session.model().detokenize(&all[around]),
            }
        };
        Retrieved {
            tokens: until,
            bins,
            passages: order.into_iter().map(passage).collect(),
        }
    }
}

struct Tap {
    heat: Heat,
    sinks: usize,
    until: usize,
}

impl AttentionTap for Tap {
    fn attended(&mut self, view: &mut Attended<'_>) -> Result<(), ColdError> {
        if view.phase != Phase::Decode {
            return Ok(());
        }
        let (g, block) = (view.geometry, view.block());
        let mut heat = self.heat.0.lock();
        heat.resize(self.until.saturating_sub(self.sinks).div_ceil(block), 0.0);
        for kv_head in 0..g.n_head_kv {
            let (keys, slots) = (view.keys(kv_head), view.slots(kv_head));
            // Which block each row is of; none of sinks and of what comes later.
            let mut in_slots = 0;
            let blocks: Vec<Option<usize>> = (view.positions().iter())
                .map(|position| {
                    if !slots.is_empty() && view.is_slot(*position) {
                        in_slots += 1;
                        (slots.get((in_slots - 1) / block)?).map(|b| b as usize)
                    } else {
                        let past = usize::try_from(*position).ok()?.checked_sub(self.sinks)?;
                        Some(past / block)
                    }
                })
                .collect();
            for token in 0..view.queries.n_tokens() {
                for head in kv_head * g.group()..(kv_head + 1) * g.group() {
                    let query = view.queries.get(token, head);
                    let logits: Vec<f32> = (keys.chunks_exact(g.key_dim))
                        .map(|key| {
                            let product: f32 = key.iter().zip(query).map(|(k, q)| k * q).sum();
                            let logit = product * g.scale;
                            g.soft_cap.map_or(logit, |cap| cap * (logit / cap).tanh())
                        })
                        .collect();
                    let most = logits.iter().copied().fold(f32::MIN, f32::max);
                    let weights: Vec<f32> = logits.iter().map(|l| (l - most).exp()).collect();
                    let total: f32 = weights.iter().sum();
                    for (weight, block) in weights.iter().zip(&blocks) {
                        if let Some(heat) = block.and_then(|block| heat.get_mut(block)) {
                            *heat += weight / total;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
