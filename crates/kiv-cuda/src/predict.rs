//! Which blocks a layer will want next.
//!
//! What a layer wanted for the last token is in its slots already; so what is worth fetching
//! is what it nearly wanted, what it wanted some tokens ago, and what another layer has just
//! begun to want.

use kiv_policy::BlockId;
use kiv_pool::{SlotTable, Swap};
use std::collections::VecDeque;

/// What a [`Predictor`] goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PredictConfig {
    /// Most blocks of one layer and KV head that are predicted at a time; 0 for none.
    pub per_head: usize,
    /// Blocks remembered that have left the slots of a KV head.
    pub left: usize,
    /// How many layers back to look at what has come in for the same token; 0 for not at
    /// all. The same KV head of another layer is looked at.
    pub earlier: usize,
}

impl Default for PredictConfig {
    fn default() -> Self {
        Self {
            per_head: 8,
            left: 8,
            earlier: 1,
        }
    }
}

/// What is known of one layer and KV head.
#[derive(Clone, Debug, Default)]
struct Head {
    wanted: Vec<BlockId>,
    runners: Vec<BlockId>,
    /// Newest first.
    left: VecDeque<BlockId>,
    came: Vec<BlockId>,
}

/// Says which blocks will be wanted, from what was.
#[derive(Clone, Debug)]
pub struct Predictor {
    config: PredictConfig,
    /// `[layer][head]`
    heads: Vec<Vec<Head>>,
    /// Step that each layer was last seen at.
    steps: Vec<Option<u64>>,
}

impl Predictor {
    /// A predictor for layers with so many KV heads.
    #[must_use]
    pub fn new(config: PredictConfig, n_heads: &[usize]) -> Self {
        let of_layer = |n: &usize| vec![Head::default(); *n];
        Self {
            config,
            heads: n_heads.iter().map(of_layer).collect(),
            steps: vec![None; n_heads.len()],
        }
    }

    /// What a KV head of a layer wanted, which blocks came next in the policy's opinion
    /// (best first; none if it does not say), and what was swapped for it.
    ///
    /// # Panics
    /// If there is no such layer or KV head.
    pub fn observe(
        &mut self,
        (layer, head): (usize, usize),
        step: u64,
        wanted: &[BlockId],
        runners: &[BlockId],
        swaps: &[Swap],
    ) {
        self.steps[layer] = Some(step);
        let known = &mut self.heads[layer][head];
        known.wanted = wanted.to_vec();
        known.runners = runners.to_vec();
        known.came.clear();
        for swap in swaps {
            known.came.push(swap.block);
            known.left.retain(|b| *b != swap.leaving);
            known.left.push_front(swap.leaving);
        }
        known.left.truncate(self.config.left);
    }

    /// Blocks (KV head, block) that a layer will want at `step` and that are in none of its
    /// slots; every head's most likely first, then every head's second, and so on. Only
    /// blocks below `n_blocks`, of which there are rows.
    ///
    /// # Panics
    /// If there is no such layer, or not a table for each of its KV heads.
    #[must_use]
    pub fn likely(
        &self,
        layer: usize,
        step: u64,
        tables: &[SlotTable],
        n_blocks: u32,
    ) -> Vec<(u32, BlockId)> {
        let mut ranked = Vec::new();
        for (head, table) in tables.iter().enumerate() {
            let known = &self.heads[layer][head];
            let earlier = self.earlier(layer, head, step);
            let all = known.wanted.iter().chain(&known.runners);
            let mut mine: Vec<BlockId> = Vec::new();
            for block in all.chain(earlier).chain(&known.left) {
                let new = *block < n_blocks && !mine.contains(block);
                if mine.len() < self.config.per_head && new && !table.holds(*block) {
                    mine.push(*block);
                }
            }
            let mine = mine.into_iter().enumerate();
            ranked.extend(mine.map(|(rank, block)| (rank, head as u32, block)));
        }
        ranked.sort_by_key(|(rank, head, _)| (*rank, *head));
        ranked
            .into_iter()
            .map(|(_, head, block)| (head, block))
            .collect()
    }

    /// What came in for the same KV head of an earlier layer at this step.
    fn earlier(&self, layer: usize, head: usize, step: u64) -> &[BlockId] {
        let back = self.config.earlier;
        let of_layer = layer.checked_sub(back).filter(|_| back > 0);
        let of_layer = of_layer.filter(|earlier| self.steps[*earlier] == Some(step));
        let of_head = of_layer.and_then(|earlier| self.heads[earlier].get(head));
        of_head.map_or(&[], |head| &head.came)
    }

    /// Forgets blocks from `n_blocks` on.
    pub fn truncate(&mut self, n_blocks: u32) {
        for head in self.heads.iter_mut().flatten() {
            for list in [&mut head.wanted, &mut head.runners, &mut head.came] {
                list.retain(|b| *b < n_blocks);
            }
            head.left.retain(|b| *b < n_blocks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(per_head: usize, earlier: usize) -> PredictConfig {
        PredictConfig {
            per_head,
            left: 2,
            earlier,
        }
    }

    #[test]
    fn what_was_nearly_wanted_comes_first() {
        let mut p = Predictor::new(config(3, 1), &[2, 2]);
        let mut tables = [SlotTable::new(2), SlotTable::new(2)];
        let mut swaps = Vec::new();
        // Head 0 of layer 1: blocks 0 and 1 leave for 7 and 8; 9 and 0 came next.
        tables[0].want(&[7, 8], 1, &mut swaps);
        p.observe((1, 0), 1, &[7, 8], &[9, 0], &swaps);
        p.observe((1, 1), 1, &[0, 1], &[5], &[]);
        let likely = p.likely(1, 2, &tables, 100);
        assert_eq!(likely, [(0, 9), (1, 5), (0, 0), (0, 1)]);
        // What has no rows is not likely.
        assert_eq!(p.likely(1, 2, &tables, 9), [(0, 0), (1, 5), (0, 1)]);
        p.truncate(5);
        assert_eq!(p.likely(1, 2, &tables, 100), [(0, 0), (0, 1)]);
    }

    #[test]
    fn an_earlier_layer_counts_only_for_the_same_token() {
        let mut p = Predictor::new(config(8, 1), &[1, 1]);
        let tables = [SlotTable::new(2)];
        let swap = Swap {
            slot: 0,
            block: 40,
            leaving: 0,
        };
        p.observe((0, 0), 3, &[40], &[], &[swap]);
        assert_eq!(p.likely(1, 3, &tables, 100), [(0, 40)]);
        assert_eq!(p.likely(1, 4, &tables, 100), []);
        let mut none = Predictor::new(config(8, 0), &[1, 1]);
        none.observe((0, 0), 3, &[40], &[], &[swap]);
        assert_eq!(none.likely(1, 3, &tables, 100), []);
    }
}
