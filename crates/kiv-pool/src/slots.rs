//! Which block sits in which slot of one layer and KV head.

/// One block to be copied into one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swap {
    /// Slot that receives the block.
    pub slot: u32,
    /// Block that comes in.
    pub block: u32,
    /// Block that it replaces.
    pub leaving: u32,
}

/// What a slot holds that has been given up: no block.
pub const NONE: u32 = u32::MAX;

/// The slots of one layer and KV head.
///
/// Starts with block `i` in slot `i`: the tokens that are there anyway when
/// the pool first overflows.
#[derive(Clone, Debug)]
pub struct SlotTable {
    /// Block of each slot.
    blocks: Vec<u32>,
    /// Step at which each slot's block was last asked for.
    last_wanted: Vec<u64>,
    /// (block, slot), sorted by block.
    resident: Vec<(u32, u32)>,
}

impl SlotTable {
    /// `n_slots` slots at home.
    ///
    /// # Panics
    /// If `n_slots` does not fit 32 bits.
    #[must_use]
    pub fn new(n_slots: usize) -> Self {
        let n = u32::try_from(n_slots).expect("slot count fits 32 bits");
        Self {
            blocks: (0..n).collect(),
            last_wanted: vec![0; n_slots],
            resident: (0..n).map(|i| (i, i)).collect(),
        }
    }

    /// Block of each slot.
    #[must_use]
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Whether a block is in one of the slots.
    #[must_use]
    pub fn holds(&self, block: u32) -> bool {
        let found = self.resident.binary_search_by_key(&block, |r| r.0);
        found.is_ok()
    }

    /// Makes every block of `wanted` resident and says what must be copied.
    ///
    /// Blocks that are already there stay where they are; newcomers replace
    /// the blocks that were asked for longest ago. `step` must not decrease; at the same one
    /// what was wanted before may go.
    ///
    /// # Panics
    /// If `wanted` holds a block twice or more blocks than there are slots;
    /// callers validate what a policy says first.
    pub fn want(&mut self, wanted: &[u32], step: u64, swaps: &mut Vec<Swap>) {
        swaps.clear();
        assert!(wanted.len() <= self.blocks.len(), "more blocks than slots");
        let stamp = step + 1;
        let mut missing = Vec::new();
        let mut is_free = vec![true; self.blocks.len()];
        for &block in wanted {
            match self.resident.binary_search_by_key(&block, |r| r.0) {
                Ok(at) => {
                    let slot = self.resident[at].1 as usize;
                    self.last_wanted[slot] = stamp;
                    is_free[slot] = false;
                }
                Err(_) => missing.push(block),
            }
        }
        if missing.is_empty() {
            return;
        }
        // Also slots of this very step: layers that share a cache want blocks one after
        // another.
        let mut free: Vec<u32> = (0..self.blocks.len() as u32)
            .filter(|&s| is_free[s as usize])
            .collect();
        let given_up = |s: u32| self.blocks[s as usize] == NONE;
        free.sort_by_key(|&s| (given_up(s), self.last_wanted[s as usize], s));
        for (block, slot) in missing.into_iter().zip(free) {
            let leaving = std::mem::replace(&mut self.blocks[slot as usize], block);
            self.last_wanted[slot as usize] = stamp;
            swaps.push(Swap {
                slot,
                block,
                leaving,
            });
        }
        self.index();
    }

    /// Gives up the last slot: from now on it holds [`NONE`], and [`SlotTable::want`]
    /// leaves it alone as long as the others are enough.
    pub fn give_up_last(&mut self) {
        if let Some(last) = self.blocks.last_mut().filter(|last| **last != NONE) {
            *last = NONE;
            self.index();
        }
    }

    /// If the last slot was given up: what fills it again, the oldest block that is in no
    /// other slot.
    pub fn take_back_last(&mut self) -> Option<Swap> {
        let slot = self.blocks.iter().position(|b| *b == NONE)?;
        // More blocks than slots were there when it was given up.
        let block = (0..).zip(&self.resident).find(|(i, r)| *i != r.0);
        let block = block.map_or(self.resident.len() as u32, |(i, _)| i);
        self.blocks[slot] = block;
        self.index();
        Some(Swap {
            slot: slot as u32,
            block,
            leaving: NONE,
        })
    }

    /// Puts `blocks[i]` in slot `i` for every slot, whatever was there: the
    /// permutation check moves everything at every step.
    ///
    /// # Panics
    /// If there is not one block per slot.
    pub fn place_all(&mut self, blocks: &[u32], swaps: &mut Vec<Swap>) {
        assert_eq!(blocks.len(), self.blocks.len(), "one block per slot");
        swaps.clear();
        let slots = (0u32..).zip(blocks).zip(&self.blocks);
        swaps.extend(slots.map(|((slot, &block), &leaving)| Swap {
            slot,
            block,
            leaving,
        }));
        self.blocks.copy_from_slice(blocks);
        self.index();
    }

    /// Says that `slot` holds `block` after all: what was to come did not. Nobody has asked
    /// for it, so that the same blocks can be wanted again at once.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn put(&mut self, slot: u32, block: u32) {
        self.blocks[slot as usize] = block;
        self.last_wanted[slot as usize] = 0;
        self.index();
    }

    /// Step, plus one, at which each slot's block was last asked for; 0 never.
    #[must_use]
    pub fn last_wanted(&self) -> &[u64] {
        &self.last_wanted
    }

    /// Slots as [`SlotTable::blocks`] and [`SlotTable::last_wanted`] told them.
    ///
    /// # Panics
    /// If the lists differ in length.
    #[must_use]
    pub fn restore(blocks: Vec<u32>, last_wanted: Vec<u64>) -> Self {
        assert_eq!(blocks.len(), last_wanted.len(), "one step per slot");
        let mut table = Self {
            blocks,
            last_wanted,
            resident: Vec::new(),
        };
        table.index();
        table
    }

    fn index(&mut self) {
        self.resident.clear();
        self.resident.extend(
            self.blocks
                .iter()
                .zip(0u32..)
                .map(|(&block, slot)| (block, slot)),
        );
        self.resident.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        /// Against a model: after each step all wanted blocks are resident,
        /// none twice, and only what was missing moved.
        #[test]
        fn wanted_blocks_are_resident(
            n_slots in 1usize..20,
            steps in prop::collection::vec(prop::collection::hash_set(0u32..60, 0..20), 1..40),
        ) {
            let mut table = SlotTable::new(n_slots);
            let mut swaps = Vec::new();
            for (step, wanted) in steps.into_iter().enumerate() {
                let wanted: Vec<u32> = wanted.into_iter().take(n_slots).collect();
                let before: HashSet<u32> = table.blocks().iter().copied().collect();
                // Three times at each step.
                table.want(&wanted, step as u64 / 3, &mut swaps);
                let after: HashSet<u32> = table.blocks().iter().copied().collect();
                prop_assert_eq!(after.len(), n_slots);
                prop_assert!(wanted.iter().all(|b| after.contains(b)));
                prop_assert!((0..60).all(|b| table.holds(b) == after.contains(&b)));
                let moved = wanted.iter().filter(|b| !before.contains(b)).count();
                prop_assert_eq!(swaps.len(), moved);
                for s in &swaps {
                    prop_assert_eq!(table.blocks()[s.slot as usize], s.block);
                }
            }
        }
    }

    #[test]
    fn what_did_not_come_can_be_wanted_again_at_once() {
        let mut table = SlotTable::new(2);
        let (mut first, mut again) = (Vec::new(), Vec::new());
        table.want(&[7, 8], 1, &mut first);
        for swap in &first {
            table.put(swap.slot, swap.leaving);
        }
        assert_eq!(table.blocks(), [0, 1]);
        table.want(&[7, 8], 1, &mut again);
        assert_eq!(first, again);
    }

    proptest! {
        /// With the last slot given up at some steps: the others serve, and it comes back
        /// with a block that was in none.
        #[test]
        fn the_last_slot_goes_and_comes(
            n_slots in 2usize..12,
            steps in prop::collection::vec(
                (prop::bool::ANY, prop::collection::hash_set(0u32..40, 0..12)),
                1..40,
            ),
        ) {
            let mut table = SlotTable::new(n_slots);
            let mut swaps = Vec::new();
            for (step, (without, wanted)) in steps.into_iter().enumerate() {
                let n = n_slots - usize::from(without);
                let wanted: Vec<u32> = wanted.into_iter().take(n).collect();
                let mut held = table.blocks().to_vec();
                if without {
                    table.give_up_last();
                }
                table.want(&wanted, step as u64 / 3, &mut swaps);
                if !without {
                    swaps.extend(table.take_back_last());
                }
                for swap in &swaps {
                    held[swap.slot as usize] = swap.block;
                }
                let last = *table.blocks().last().unwrap();
                prop_assert_eq!(last == NONE, without);
                if without {
                    held[n_slots - 1] = NONE;
                }
                prop_assert_eq!(table.blocks(), &held);
                let holds: HashSet<u32> = table.blocks().iter().copied().collect();
                prop_assert_eq!(holds.len(), n_slots);
                prop_assert!(wanted.iter().all(|b| holds.contains(b)));
                let again = SlotTable::restore(held, table.last_wanted().to_vec());
                prop_assert_eq!(again.blocks(), table.blocks());
            }
        }
    }

    #[test]
    fn the_longest_unwanted_block_goes_first() {
        let mut table = SlotTable::new(3);
        let mut swaps = Vec::new();
        table.want(&[0, 1, 2], 1, &mut swaps);
        table.want(&[0, 2], 2, &mut swaps);
        table.want(&[9], 3, &mut swaps);
        let swap = Swap {
            slot: 1,
            block: 9,
            leaving: 1,
        };
        assert_eq!(swaps, [swap]);
        let mut other = SlotTable::restore(table.blocks().to_vec(), table.last_wanted().to_vec());
        for (block, leaving) in [(5, 0), (6, 0)] {
            table.want(&[2, block], 4, &mut swaps);
            let swap = swaps.clone();
            other.want(&[2, block], 4, &mut swaps);
            assert_eq!((swaps.as_slice(), swaps[0].leaving), (&swap[..], leaving));
            table.put(swap[0].slot, leaving);
            other.put(swap[0].slot, leaving);
            assert!(table.blocks().contains(&leaving));
        }
    }
}
