//! What is kept of one layer and KV head from step to step.

use super::ask::{Ask, TOGETHER};
use crate::local::{LocalKeys, Products};
use kiv_index::{Found, HeadIndex, Hits, Scratch};
use kiv_policy::{BlockId, Phase, PolicyError};
use std::ops::Range;

/// One layer and KV head.
pub(super) struct Head {
    pub index: HeadIndex,
    pub local: LocalKeys,
    /// By thread that serves it, at least one.
    pub parts: Vec<Part>,
    /// Share of the softmax by block, 0 of all but the touched ones.
    pub shares: Vec<f32>,
    pub touched: Vec<BlockId>,
    /// Log of the sum of the softmax of each query that was searched for last, as far as
    /// it is known.
    pub totals: Vec<f32>,
    /// Whether what is found is added up in the order of keys.
    in_order: bool,
}

/// What those who serve a head look at together.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub index: &'a HeadIndex,
    pub local: &'a LocalKeys,
}

/// What a thread works with that serves a head, or some of its query heads, and what it finds.
#[derive(Default)]
pub(super) struct Part {
    pub scratch: Scratch,
    /// What the last searches told, one after another, of [`TOGETHER`] queries each.
    pub hits: Vec<Hits>,
    pub products: Products,
    /// Share of one softmax by block, all 0 between searches.
    pub one: Vec<f32>,
    /// Shares of blocks, for those who add them up or take the largest.
    pub shares: Vec<(BlockId, f32)>,
    /// [`Head::totals`] of its queries.
    pub totals: Vec<f32>,
    /// Whether what is found is added up in the order of keys.
    in_order: bool,
}

impl Head {
    /// With an index, and nothing else so far.
    pub fn new(index: HeadIndex, in_order: bool) -> Self {
        Self {
            local: LocalKeys::new(index.params().dim),
            index,
            parts: vec![Part::new(in_order)],
            shares: Vec::new(),
            touched: Vec::new(),
            totals: Vec::new(),
            in_order,
        }
    }

    /// So many parts, and what they look at.
    pub fn parts(&mut self, n: usize) -> (Known<'_>, &mut [Part]) {
        let Self {
            index,
            local,
            parts,
            in_order,
            ..
        } = self;
        parts.resize_with(n, || Part::new(*in_order));
        (Known { index, local }, parts)
    }

    /// Puts together what parts have found of `n_blocks` blocks.
    pub fn conclude(&mut self, phase: Phase, n_blocks: usize) {
        for block in self.touched.drain(..) {
            if let Some(share) = self.shares.get_mut(block as usize) {
                *share = 0.0;
            }
        }
        self.shares.resize(n_blocks, 0.0);
        self.totals.clear();
        for part in &self.parts {
            self.totals.extend(&part.totals);
            for (block, share) in &part.shares {
                let sum = &mut self.shares[*block as usize];
                if *sum == 0.0 {
                    self.touched.push(*block);
                }
                *sum = match phase {
                    Phase::Decode => *sum + share,
                    Phase::Prefill => sum.max(*share),
                };
            }
        }
    }

    /// Adds to the shares of these blocks, as far as they are any.
    pub fn prefer(&mut self, blocks: &[BlockId], start: f32) {
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

impl Part {
    fn new(in_order: bool) -> Self {
        Self {
            in_order,
            ..Self::default()
        }
    }

    /// Makes room for what so many searches tell.
    pub fn make_room(&mut self, n_searches: usize) {
        let new = if self.in_order {
            Hits::in_order
        } else {
            Hits::default
        };
        self.hits.resize_with(n_searches, new);
    }

    /// What was told of one of the queries of the token that was searched for last.
    pub fn told(&self, query: usize) -> (&[u32], &[f32]) {
        self.hits[query / TOGETHER].of(query % TOGETHER)
    }

    /// Finds the blocks that some query heads want of `n_blocks`; a device may have found the
    /// most of it.
    pub fn look(
        &mut self,
        ask: &Ask<'_>,
        known: Known<'_>,
        query_heads: Range<usize>,
        found: Option<&Found>,
        n_blocks: usize,
    ) -> Result<(), PolicyError> {
        self.shares.clear();
        self.totals.clear();
        self.one.resize(n_blocks, 0.0);
        match ask.request.phase {
            Phase::Decode => ask.decode(known, query_heads, found, self),
            Phase::Prefill => ask.read(known, query_heads, self),
        }
    }

    /// Raises a block's share; [`Part::shares`] have its number.
    pub fn raise(&mut self, block: BlockId, share: f32) {
        let before = &mut self.one[block as usize];
        if share > *before {
            if *before == 0.0 {
                self.shares.push((block, 0.0));
            }
            *before = share;
        }
    }
}
