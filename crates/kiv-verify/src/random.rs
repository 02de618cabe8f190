//! A policy that wants other blocks every time.

use kiv_policy::{BlockId, Geometry, Policy, PolicyError, SelectRequest, Selection};
use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;

/// Wants random blocks, as many as there are slots, so that everything moves.
pub(crate) struct RandomBlocks {
    rng: ChaCha8Rng,
    n_slots: usize,
}

impl RandomBlocks {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            n_slots: 0,
        }
    }
}

impl Policy for RandomBlocks {
    fn name(&self) -> &'static str {
        "random"
    }

    fn start(&mut self, geometry: &Geometry) -> Result<(), PolicyError> {
        self.n_slots = geometry.n_slots;
        Ok(())
    }

    fn select(
        &mut self,
        r: &SelectRequest<'_>,
        selection: &mut Selection,
    ) -> Result<(), PolicyError> {
        let n_blocks = r.cold.n_blocks();
        for head in selection.heads_mut() {
            let blocks = sample(&mut self.rng, n_blocks, self.n_slots.min(n_blocks));
            head.extend(blocks.into_iter().map(|b| b as BlockId));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn conforms() {
        kiv_policy::conformance::check(|| Box::new(super::RandomBlocks::new(7))).unwrap();
    }
}
