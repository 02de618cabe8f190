//! The answer of a policy, and what makes an answer valid.

use crate::BlockId;
use thiserror::Error;

/// Blocks wanted per KV head of one layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    heads: Vec<Vec<BlockId>>,
    rests: Vec<Rest>,
    runners: Vec<Vec<BlockId>>,
}

/// What blocks that are not wanted would add to one token's attention, as far as a policy
/// knows: for every query head of a group one logit and one value, as if they were a
/// single token's. Softmax parts add up in this form: a set of tokens with logits `l`
/// and values `v` is the same to a query as one token with the logit `log sum exp l` and
/// the value `sum exp(l) v / sum exp(l)`. (RetroInfer, arXiv 2505.02922, estimates what it
/// does not fetch, and `RetrievalAttention`, arXiv 2409.10516, adds a part that another
/// processor has computed.)
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rest {
    /// `[group]`, as the softmax sees them (scaled, after a soft cap); empty if nothing is
    /// known. `-inf`: nothing for this query head.
    pub logits: Vec<f32>,
    /// `[group, value_dim]`.
    pub values: Vec<f32>,
    /// `[group]`: log of the sum of each query's softmax over all that it attends to, as far
    /// as is known. What stands for the rest of one query head is seen by all of the group,
    /// and must weigh nothing to the others.
    pub totals: Vec<f32>,
}

impl Rest {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.logits.is_empty()
    }

    fn clear(&mut self) {
        self.logits.clear();
        self.values.clear();
        self.totals.clear();
    }
}

/// A selection that breaks the contract of [`crate::Policy::select`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidSelection {
    /// More blocks than slots.
    #[error("KV head {kv_head}: {count} blocks for {n_slots} slots")]
    TooMany {
        /// KV head.
        kv_head: usize,
        /// Blocks named.
        count: usize,
        /// Slots there are.
        n_slots: usize,
    },
    /// A block that has not been sealed.
    #[error("KV head {kv_head}: unknown block {block}, only {n_blocks} are sealed")]
    Unknown {
        /// KV head.
        kv_head: usize,
        /// Block named.
        block: BlockId,
        /// Blocks there are.
        n_blocks: usize,
    },
    /// A block that is said to come next, but is not sealed, is wanted, or is said to twice.
    #[error("KV head {kv_head}: block {block} cannot come next")]
    Runner {
        /// KV head.
        kv_head: usize,
        /// Block named.
        block: BlockId,
    },
    /// A rest, and a block in every slot.
    #[error(
        "KV head {kv_head}: a rest takes one of {n_slots} slots, and {n_slots} blocks are wanted"
    )]
    NoRoomForRest {
        /// KV head.
        kv_head: usize,
        /// Slots there are.
        n_slots: usize,
    },
    /// A rest with a NaN or an infinity where none can be.
    #[error("KV head {kv_head}: the rest is not a number")]
    BadRest {
        /// KV head.
        kv_head: usize,
    },
    /// The same block twice.
    #[error("KV head {kv_head}: block {block} twice")]
    Duplicate {
        /// KV head.
        kv_head: usize,
        /// Block named twice.
        block: BlockId,
    },
}

impl Selection {
    /// Empties the selection for a layer of `n_head_kv` heads.
    pub fn reset(&mut self, n_head_kv: usize) {
        self.heads.resize_with(n_head_kv, Vec::new);
        self.heads.iter_mut().for_each(Vec::clear);
        self.rests.resize_with(n_head_kv, Rest::default);
        self.rests.iter_mut().for_each(Rest::clear);
        self.runners.resize_with(n_head_kv, Vec::new);
        self.runners.iter_mut().for_each(Vec::clear);
    }

    /// Number of KV heads.
    #[must_use]
    pub fn n_heads(&self) -> usize {
        self.heads.len()
    }

    /// Blocks wanted by one KV head.
    ///
    /// # Panics
    /// If `kv_head` is out of range.
    #[must_use]
    pub fn head(&self, kv_head: usize) -> &[BlockId] {
        &self.heads[kv_head]
    }

    /// Blocks wanted by one KV head, to be filled in.
    ///
    /// # Panics
    /// If `kv_head` is out of range.
    pub fn head_mut(&mut self, kv_head: usize) -> &mut Vec<BlockId> {
        &mut self.heads[kv_head]
    }

    /// All heads at once, for policies that score heads in parallel.
    pub fn heads_mut(&mut self) -> &mut [Vec<BlockId>] {
        &mut self.heads
    }

    /// The rest of one KV head.
    ///
    /// # Panics
    /// If `kv_head` is out of range.
    #[must_use]
    pub fn rest(&self, kv_head: usize) -> &Rest {
        &self.rests[kv_head]
    }

    /// Blocks and rests of all heads at once.
    pub fn parts_mut(&mut self) -> (&mut [Vec<BlockId>], &mut [Rest]) {
        (&mut self.heads, &mut self.rests)
    }

    /// Blocks that came next in the policy's opinion, best first: one KV head may want them
    /// soon.
    ///
    /// # Panics
    /// If `kv_head` is out of range.
    #[must_use]
    pub fn runners(&self, kv_head: usize) -> &[BlockId] {
        &self.runners[kv_head]
    }

    /// Blocks wanted by one KV head, and those that came next, to be filled in.
    ///
    /// # Panics
    /// If `kv_head` is out of range.
    pub fn ranked_mut(&mut self, kv_head: usize) -> (&mut Vec<BlockId>, &mut Vec<BlockId>) {
        (&mut self.heads[kv_head], &mut self.runners[kv_head])
    }

    /// Checks the contract of [`crate::Policy::select`]. Blocks of each head
    /// are left in ascending order.
    ///
    /// # Errors
    /// The first breach found.
    pub fn validate(&mut self, n_slots: usize, n_blocks: usize) -> Result<(), InvalidSelection> {
        for (kv_head, blocks) in self.heads.iter_mut().enumerate() {
            if blocks.len() > n_slots {
                return Err(InvalidSelection::TooMany {
                    kv_head,
                    count: blocks.len(),
                    n_slots,
                });
            }
            let rest = &self.rests[kv_head];
            if !rest.is_empty() && blocks.len() == n_slots {
                return Err(InvalidSelection::NoRoomForRest { kv_head, n_slots });
            }
            let is_logit = |l: &f32| l.is_finite() || *l == f32::NEG_INFINITY;
            let mut numbers = rest.values.iter().chain(&rest.totals);
            if !rest.logits.iter().all(is_logit) || !numbers.all(|v| v.is_finite()) {
                return Err(InvalidSelection::BadRest { kv_head });
            }
            blocks.sort_unstable();
            if let Some(pair) = blocks.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(InvalidSelection::Duplicate {
                    kv_head,
                    block: pair[0],
                });
            }
            if let Some(&block) = blocks.last().filter(|b| **b as usize >= n_blocks) {
                return Err(InvalidSelection::Unknown {
                    kv_head,
                    block,
                    n_blocks,
                });
            }
            let runners = &self.runners[kv_head];
            for (i, &block) in runners.iter().enumerate() {
                let known = (block as usize) < n_blocks;
                let wanted = blocks.binary_search(&block).is_ok();
                if !known || wanted || runners[..i].contains(&block) {
                    return Err(InvalidSelection::Runner { kv_head, block });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_named() {
        let of = |blocks: &[BlockId]| {
            let mut s = Selection::default();
            s.reset(2);
            s.head_mut(1).extend(blocks);
            s.validate(3, 10)
        };
        assert_eq!(of(&[9, 0, 4]), Ok(()));
        assert_eq!(
            of(&[3, 4, 3]),
            Err(InvalidSelection::Duplicate {
                kv_head: 1,
                block: 3
            })
        );
        assert_eq!(
            of(&[1, 10]),
            Err(InvalidSelection::Unknown {
                kv_head: 1,
                block: 10,
                n_blocks: 10
            })
        );
        let next = |runners: &[BlockId]| {
            let mut s = Selection::default();
            s.reset(1);
            s.head_mut(0).extend([5, 2]);
            s.ranked_mut(0).1.extend(runners);
            let valid = s.validate(3, 10);
            assert_eq!(s.runners(0), runners, "best first");
            valid
        };
        assert_eq!(next(&[9, 0, 4, 1]), Ok(()));
        for (bad, block) in [(&[9, 10], 10), (&[0, 2], 2), (&[4, 4], 4)] {
            let wanted = InvalidSelection::Runner { kv_head: 0, block };
            assert_eq!(next(bad), Err(wanted));
        }
        let rest = |n: BlockId, logit: f32, value: f32, total: f32| {
            let mut s = Selection::default();
            s.reset(2);
            s.head_mut(0).extend(0..n);
            s.parts_mut().1[0] = Rest {
                logits: vec![logit],
                values: vec![value],
                totals: vec![total],
            };
            s.validate(3, 10)
        };
        assert_eq!(rest(2, 1.0, 1.0, 2.0), Ok(()));
        assert_eq!(rest(2, f32::NEG_INFINITY, 0.0, 2.0), Ok(()));
        let full = InvalidSelection::NoRoomForRest {
            kv_head: 0,
            n_slots: 3,
        };
        assert_eq!(rest(3, 1.0, 1.0, 2.0), Err(full));
        let bad = Err(InvalidSelection::BadRest { kv_head: 0 });
        assert_eq!(rest(2, f32::NAN, 1.0, 2.0), bad);
        assert_eq!(rest(2, 1.0, f32::INFINITY, 2.0), bad);
        assert_eq!(rest(2, 1.0, 1.0, f32::NEG_INFINITY), bad);
        assert_eq!(
            of(&[0, 1, 2, 3]),
            Err(InvalidSelection::TooMany {
                kv_head: 1,
                count: 4,
                n_slots: 3
            })
        );
    }
}
