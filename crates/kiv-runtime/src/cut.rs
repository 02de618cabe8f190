//! Going back: cuts within the window, and those that reach what has left it.

use crate::cells::CellMap;
use crate::error::Error;
use crate::hot::{self, Hot};
use crate::session::{Session, Token};
use crate::slot::{read_cells, row_bytes};
use std::collections::BTreeMap;

impl Session {
    /// Cuts the sequence back to its first `n` tokens. What has left the recent
    /// window comes back into it from the cold store, bit by bit if that keeps
    /// the cache's own types: it is as long again as was asked for.
    ///
    /// # Errors
    /// [`Error::TruncateTooFar`] if the tokens have left the window and the
    /// policy drops rows, or sliding-window layers lack some; [`Error::CannotTruncate`]
    /// of recurrent layers. [`Session::mark`] helps with both kinds of layers.
    /// [`Error::Policy`] if the policy cannot follow: then the session is lost, and
    /// [`Error::Broken`] until [`Session::clear`] or [`Session::reuse`].
    pub fn truncate(&mut self, n: usize) -> Result<(), Error> {
        // What is left of the window may be next to nothing.
        let whole = self.layout.window;
        self.cut(n, whole)
    }

    /// Cuts the sequence back to its first `n` tokens, and puts into every
    /// slot the block that was there first. What is read next then gives the
    /// same whatever was read and taken back before, bit by bit, as long as
    /// that needed no more room than there was. (For that what has left the
    /// window in favour of what is taken back does not come back into it.)
    ///
    /// # Errors
    /// As [`Session::truncate`].
    pub fn rewind(&mut self, n: usize) -> Result<(), Error> {
        self.cut(n, 0)?;
        let (engine, caches) = self.context.parts();
        match (&mut engine.tiers, &engine.cells) {
            (Some(tiers), Some(cells)) if tiers.selects() => tiers.reset_slots(caches, cells),
            _ => Ok(()),
        }
    }

    /// Cuts back to the first `n` tokens. If less than `whole` tokens of the window would be
    /// left, it is filled from the cold store as far as there is one that can do that.
    fn cut(&mut self, n: usize, whole: usize) -> Result<(), Error> {
        if self.broken {
            return Err(Error::Broken);
        }
        if n >= self.tokens.len() {
            return Ok(());
        }
        let marked = self.mark.as_ref().filter(|mark| mark.n_tokens == n);
        let partial = marked.map(|mark| mark.partial.clone());
        if let Some(first) = self.slid_to(n).filter(|_| partial.is_none()) {
            return Err(Error::TruncateTooFar {
                to: n,
                window_first: first,
            });
        }
        let cells = self.context.hook().cells.as_mut().expect("set when built");
        let window_first = cells.window_first();
        // Before anything was sealed every position is still in its cell.
        let sealed = self
            .context
            .hook_ref()
            .tiers
            .as_ref()
            .is_some_and(|t| t.n_sealed() > 0);
        let short = n < window_first + whole && self.can_refill(partial.is_some());
        if sealed && (n < window_first || short) {
            self.cut_deep(n, partial)?;
            self.forget_later_mark();
            return Ok(());
        }
        if let Some(partial) = &partial {
            self.set_partial(partial)?;
        }
        if !self.take_back(n) {
            return Err(Error::CannotTruncate);
        }
        self.tokens.truncate(n);
        self.last_logits.clear();
        self.committed = None;
        self.forget_later_mark();
        Ok(())
    }

    /// Whether rows can come back into the window from the cold store; what layers held
    /// that do not keep every token is known or not.
    fn can_refill(&self, is_marked: bool) -> bool {
        let tiers = self.context.hook_ref().tiers.as_ref();
        let form = self.form.as_ref();
        self.invented == 0
            && tiers.is_some_and(|tiers| tiers.policy().retrieves())
            && form.is_some_and(|form| is_marked || !form.has_rest())
    }

    /// If sliding-window layers lack tokens that the one after the first `n` sees: the
    /// length that the sequence can be cut back to. Their cells are used again as soon as
    /// they have slid out of the window of what comes last.
    fn slid_to(&mut self, n: usize) -> Option<usize> {
        let n_swa = self.model.raw().n_swa();
        if n_swa == 0 {
            return None;
        }
        let first = usize::try_from(self.context.first_position()).ok()?;
        // A token sees `n_swa` tokens, itself included.
        let seen = (n + 1).saturating_sub(n_swa).saturating_sub(self.invented);
        (first > seen).then_some(first + self.invented + n_swa - 1)
    }

    /// Frees cells of positions from `n` on, if the model can.
    pub(crate) fn take_back(&mut self, n: usize) -> bool {
        let freed = self.context.free(n - self.invented, None);
        if let Some(cells) = self.context.hook().cells.as_mut().filter(|_| freed) {
            cells.truncate(n);
        }
        freed
    }

    /// Cuts the sequence back to its first `n` tokens, which have left the
    /// window: rows come back from the cold store into the cells that they would
    /// be in had nothing else ever been read, in whole micro-batches. What layers kept
    /// that do not keep every token must be given.
    pub(crate) fn cut_deep(&mut self, n: usize, partial: Option<Vec<u8>>) -> Result<(), Error> {
        let layout = self.layout.clone();
        let can_refill = self.can_refill(partial.is_some());
        let form = self.form.clone().filter(|_| can_refill);
        let (engine, caches) = self.context.parts();
        let (Some(tiers), Some(cells)) = (&mut engine.tiers, &engine.cells) else {
            return Err(Error::CannotTruncate);
        };
        let Some(form) = form else {
            return Err(Error::TruncateTooFar {
                to: n,
                window_first: cells.window_first(),
            });
        };
        let new = CellMap::replay(&layout, n);
        let used = hot::by_cell(&new);
        tiers.sinks_go_home(caches, cells)?;
        // Sinks have never been in other cells; what is in the window is in no block yet.
        let local: BTreeMap<usize, u32> = cells.local(layout.sinks).collect();
        let kept = used.iter().filter_map(|(_, position)| local.get(position));
        let kept: Vec<u32> = kept.copied().collect();
        let geometry = tiers.geometry().clone();
        let mut rows = Vec::new();
        for (layer, l) in geometry.layers.iter().enumerate() {
            let (k, v) = caches.layer(l.il).ok_or(Error::CannotTruncate)?;
            let mut both = [Vec::new(), Vec::new()];
            for (which, (cache, out)) in [&*k, &*v].into_iter().zip(&mut both).enumerate() {
                let here = read_cells(cache, &kept);
                let mut here = here.chunks_exact(cache.cell_bytes());
                for (_, position) in &used {
                    if local.contains_key(position) {
                        out.extend_from_slice(here.next().expect("one for each of these"));
                    } else {
                        out.resize(out.len() + cache.cell_bytes(), 0);
                    }
                }
                let dim = [l.key_dim, l.value_dim][which];
                let row = row_bytes(cache, dim);
                let mut block_rows = Vec::new();
                for kv_head in 0..l.n_head_kv {
                    let mut last = None;
                    let mut order: Vec<(usize, usize)> = (0..)
                        .zip(&used)
                        .map(|(at, (_, position))| (*position, at))
                        .collect();
                    order.sort_unstable();
                    order.retain(|(position, _)| !local.contains_key(position));
                    for (position, at) in order {
                        let past = position - layout.sinks;
                        let block = past / layout.block;
                        if last != Some(block) {
                            let place = (layer, kv_head, block as u32);
                            tiers.read_block(place, which, cache.format(), &mut block_rows)?;
                            last = Some(block);
                        }
                        let from = past % layout.block * row;
                        let to = at * cache.cell_bytes() + kv_head * row;
                        out[to..to + row].copy_from_slice(&block_rows[from..from + row]);
                    }
                }
            }
            rows.push(both);
        }
        let sealed = new.window_first() - layout.sinks;
        let n_blocks = if n <= layout.n_cells {
            0
        } else {
            sealed / layout.block
        };
        let hot = Hot {
            step: self.step,
            slots: Vec::new(),
            cells: new,
            rows,
            partial: partial.unwrap_or_default(),
            logits: Vec::new(),
        };
        // Half of this is no sequence to go on with.
        self.broken = true;
        tiers.cut(n_blocks)?;
        self.install(&hot, &form)?;
        self.broken = false;
        self.tokens.truncate(n);
        self.last_logits.clear();
        self.committed = None;
        Ok(())
    }

    /// Forgets everything that was read.
    ///
    /// # Errors
    /// [`Error::Policy`] if the policy cannot; nothing can be read before it could.
    pub fn clear(&mut self) -> Result<(), Error> {
        // Until all of it is forgotten.
        self.broken = true;
        self.context.clear();
        let layout = self.layout.clone();
        let engine = self.context.hook();
        engine.cells = Some(CellMap::new(&layout));
        if let Some(tiers) = &mut engine.tiers {
            tiers.cut(0)?;
        }
        self.tokens.clear();
        self.mark = None;
        self.invented = 0;
        self.broken = false;
        self.last_logits.clear();
        self.committed = None;
        Ok(())
    }

    /// Keeps as much of what was read as `prompt` begins with, forgets the rest,
    /// and says how many tokens of the prompt need not be read any more. One is
    /// left to read unless the logits after the last are known.
    ///
    /// # Errors
    /// Any [`Error`] of [`Session::truncate`], except that what cannot be cut is
    /// forgotten as a whole.
    pub fn reuse(&mut self, prompt: &[Token]) -> Result<usize, Error> {
        if self.broken {
            // What is left of it is nothing to go on with.
            self.clear()?;
        }
        let pairs = self.tokens.iter().zip(prompt);
        let mut same = pairs.take_while(|(a, b)| a == b).count();
        let all_known = same == self.tokens.len() && !self.last_logits.is_empty();
        if same == prompt.len() && !all_known {
            same = same.saturating_sub(1);
        }
        let marked = self.marked().filter(|marked| *marked < same);
        for n in [same, marked.unwrap_or(0)] {
            if n > 0 && self.cut_if_possible(n)? {
                return Ok(n);
            }
        }
        if !self.tokens.is_empty() {
            self.clear()?;
        }
        Ok(0)
    }

    /// Cuts the sequence back to its first `n` tokens, and says whether that can be done.
    fn cut_if_possible(&mut self, n: usize) -> Result<bool, Error> {
        match self.truncate(n) {
            Ok(()) => Ok(true),
            Err(Error::TruncateTooFar { .. } | Error::CannotTruncate) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
