//! Contexts that are filled without being read, for benchmarks.

use crate::dump::repeat;
use crate::error::Error;
use crate::session::{Session, Token};
use kiv_pool::PoolLayout;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::atomic::Ordering;

/// Tokens that a stock context reads before it is filled.
const REPEATED: usize = 1024;

impl Session {
    /// Pretends to have read `text` by filling the cold store with copies of
    /// real rows: for benchmarks of decoding, where reading would take hours.
    /// The beginning that fits the slots and the end that fits the window are
    /// read; answers mean nothing.
    ///
    /// # Errors
    /// Any [`Error`]; [`Error::NotEmpty`] unless the session is new.
    pub fn fill_synthetic(&mut self, text: &[Token], seed: u64) -> Result<(), Error> {
        self.check(text)?;
        let start = self.layout.window_start();
        let end = text.len().saturating_sub(self.layout.window);
        if !self.tokens.is_empty() {
            return Err(Error::NotEmpty);
        }
        if self.context.hook().tiers.is_none() {
            return self.fill_stock(text);
        }
        let invented = end.saturating_sub(start) / self.layout.block * self.layout.block;
        let slots = self.layout.n_slots;
        if invented == 0 || slots == 0 {
            return self.read(text);
        }
        self.read(&text[..start])?;
        let PoolLayout { sinks, block, .. } = self.layout;
        let (engine, caches) = self.context.parts();
        let (Some(tiers), Some(cells)) = (&mut engine.tiers, &mut engine.cells) else {
            unreachable!("checked above");
        };
        tiers.seal(&cells.cells(sinks, start), caches)?;
        // A few thousand tokens at a time: whole calls cost less.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Until all are there some are sealed that no text knows of.
        self.broken = true;
        let mut left = invented / block;
        while left > 0 {
            if self.interrupt.load(Ordering::Relaxed) {
                return Err(Error::Interrupted {
                    read: start,
                    total: text.len(),
                });
            }
            let count = left.min((4096 / block).max(1));
            let blocks: Vec<usize> = (0..count).map(|_| rng.random_range(0..slots)).collect();
            let like: Vec<u32> = blocks
                .iter()
                .flat_map(|b| cells.cells(sinks + b * block, sinks + (b + 1) * block))
                .collect();
            tiers.seal(&like, caches)?;
            left -= count;
        }
        self.broken = false;
        cells.skip(invented);
        self.invented = invented;
        self.tokens
            .extend_from_slice(&text[start..start + invented]);
        self.read(&text[start + invented..])
    }

    /// The same for a stock context: rows of the beginning are repeated.
    fn fill_stock(&mut self, text: &[Token]) -> Result<(), Error> {
        let read = text.len().min(REPEATED);
        self.read(&text[..read])?;
        if let Some(last) = text.len().checked_sub(1).filter(|last| *last > read) {
            let failed = |reason| Error::Decode {
                position: read,
                reason,
            };
            let long = repeat(&self.context.dump(), last).ok_or_else(|| {
                failed(
                    "this model's cache cannot be filled synthetically: its saved form is unknown"
                        .to_owned(),
                )
            })?;
            self.context.undump(&long).map_err(failed)?;
            self.tokens.extend_from_slice(&text[read..last]);
            self.read(&text[last..])?;
        }
        Ok(())
    }
}
