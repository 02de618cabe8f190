//! From what a user asks for to a number of cells.

use thiserror::Error;

/// Cells come in steps of this many: llama.cpp rounds a context's size up to
/// it, and sizes its attention graph in the same steps.
const CELL_STEP: usize = 256;

/// What a user asks for, in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// First tokens of the sequence, resident for ever (attention sinks,
    /// Xiao et al., arXiv 2309.17453).
    pub sinks: usize,
    /// Newest tokens, resident without being asked for.
    pub window: usize,
    /// Tokens of retrieved blocks per layer and KV head; a multiple of `block`.
    pub budget: usize,
    /// Tokens of a block, the unit of retrieval.
    pub block: usize,
    /// Most tokens in one micro-batch.
    pub ubatch: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            sinks: 32,
            window: 1024,
            budget: 2048,
            block: 32,
            ubatch: 512,
        }
    }
}

/// A pool that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// `block`, `window` or `ubatch` is zero.
    #[error("{flag} must be at least 1")]
    Zero {
        /// Command-line flag of the value.
        flag: &'static str,
    },
    /// The budget does not fill whole blocks.
    #[error(
        "--kv-budget {budget} is not a multiple of --kv-block {block}: try {}",
        (budget / block).max(1) * block
    )]
    BudgetNotBlocks {
        /// Tokens asked for.
        budget: usize,
        /// Tokens in a block.
        block: usize,
    },
    /// More cells than llama.cpp can number.
    #[error("a resident pool of {cells} tokens is too large: lower {flag}")]
    TooLarge {
        /// Cells asked for.
        cells: usize,
        /// Command-line flag of what takes most of them.
        flag: &'static str,
    },
}

/// Cell counts that follow from a [`PoolConfig`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolLayout {
    /// Cells `0..sinks` hold the attention sinks.
    pub sinks: usize,
    /// Tokens in a block, cells in a slot.
    pub block: usize,
    /// Slots per layer and KV head.
    pub n_slots: usize,
    /// Tokens that always stay in the recent window.
    pub window: usize,
    /// Most tokens in one micro-batch.
    pub ubatch: usize,
    /// All cells: the `n_ctx` of the llama.cpp context.
    pub n_cells: usize,
}

impl PoolLayout {
    /// Lays the pool out.
    ///
    /// The rounding of `n_cells` widens the recent window, so no cell is idle.
    ///
    /// # Errors
    /// [`PoolError`] when a value is zero, the budget is not whole blocks, or
    /// the pool is too large to number.
    pub fn new(config: &PoolConfig) -> Result<Self, PoolError> {
        for (value, flag) in [
            (config.block, "--kv-block"),
            (config.window, "--kv-window"),
            (config.ubatch, "--ubatch-size"),
        ] {
            if value == 0 {
                return Err(PoolError::Zero { flag });
            }
        }
        if !config.budget.is_multiple_of(config.block) {
            return Err(PoolError::BudgetNotBlocks {
                budget: config.budget,
                block: config.block,
            });
        }
        // One block more than window and micro-batch: the oldest block leaves
        // whole, and must not take tokens of the window with it.
        let cells = [config.sinks, config.budget, config.window, config.ubatch]
            .into_iter()
            .try_fold(config.block, usize::checked_add)
            .and_then(|cells| cells.checked_next_multiple_of(CELL_STEP))
            .filter(|cells| i32::try_from(*cells).is_ok());
        let Some(n_cells) = cells else {
            let all = [
                (config.sinks, "--kv-sinks"),
                (config.budget, "--kv-budget"),
                (config.window, "--kv-window"),
                (config.ubatch, "--ubatch-size"),
                (config.block, "--kv-block"),
            ];
            let cells = all.iter().map(|(cells, _)| *cells);
            let (_, flag) = all.into_iter().max().unwrap_or_default();
            return Err(PoolError::TooLarge {
                cells: cells.fold(0, usize::saturating_add),
                flag,
            });
        };
        Ok(Self {
            sinks: config.sinks,
            block: config.block,
            n_slots: config.budget / config.block,
            window: config.window,
            ubatch: config.ubatch,
            n_cells,
        })
    }

    /// The same pool with at least `cells` cells; the window takes what is
    /// over.
    ///
    /// A model with sliding-window layers needs more cells than its sliding
    /// cache has, [`PoolLayout::cells_beside`], so that the two can be told
    /// apart.
    #[must_use]
    pub fn at_least(self, cells: usize) -> Self {
        let cells = cells.next_multiple_of(CELL_STEP);
        Self {
            n_cells: self.n_cells.max(cells),
            ..self
        }
    }

    /// Cells that a pool must have beside llama.cpp's cache for sliding-window
    /// layers of `n_swa` tokens; 0 if there are none.
    #[must_use]
    pub fn cells_beside(&self, n_swa: usize) -> usize {
        if n_swa == 0 {
            0
        } else {
            (n_swa + self.ubatch).next_multiple_of(CELL_STEP) + CELL_STEP
        }
    }

    /// First position that can be sealed away from the recent window: sinks
    /// and the slots' own first tokens come before it.
    #[must_use]
    pub fn window_start(&self) -> usize {
        self.sinks + self.n_slots * self.block
    }

    /// Cells of the recent window, micro-batch room included.
    #[must_use]
    pub fn window_cells(&self) -> usize {
        self.n_cells - self.window_start()
    }

    /// Of `n_tokens` read, how many have left the window (and are in the cold
    /// store) when the next micro-batch is as large as it can be.
    #[must_use]
    pub fn cold_tokens(&self, n_tokens: usize) -> usize {
        if n_tokens <= self.n_cells {
            return 0;
        }
        let overflow = (n_tokens - self.n_cells).next_multiple_of(self.block);
        self.n_slots * self.block + overflow
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_window_always_fits(
            sinks in 0usize..100, window in 1usize..5000, blocks in 0usize..200,
            block in 1usize..200, ubatch in 1usize..2048,
        ) {
            let config = PoolConfig { sinks, window, budget: blocks * block, block, ubatch };
            let layout = PoolLayout::new(&config).unwrap();
            prop_assert_eq!(layout.n_cells % CELL_STEP, 0);
            prop_assert!(layout.window_cells() >= window + ubatch + block);
            prop_assert!(layout.cold_tokens(layout.n_cells) == 0);
        }
    }

    #[test]
    fn odd_budgets_are_refused_with_a_way_out() {
        let error = PoolLayout::new(&PoolConfig {
            budget: 100,
            ..PoolConfig::default()
        });
        assert_eq!(
            error.unwrap_err().to_string(),
            "--kv-budget 100 is not a multiple of --kv-block 32: try 96"
        );
    }

    #[test]
    fn huge_pools_are_refused() {
        let config = PoolConfig {
            window: usize::MAX,
            ..PoolConfig::default()
        };
        assert!(matches!(
            PoolLayout::new(&config),
            Err(PoolError::TooLarge { .. })
        ));
        let config = PoolConfig {
            sinks: usize::MAX,
            ..PoolConfig::default()
        };
        assert_eq!(
            PoolLayout::new(&config).unwrap_err().to_string(),
            format!(
                "a resident pool of {} tokens is too large: lower --kv-sinks",
                usize::MAX
            )
        );
    }
}
