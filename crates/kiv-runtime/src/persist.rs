//! Sequences that outlive their process.

use crate::dump::DumpForm;
use crate::error::Error;
use crate::hot::{self, Hot};
use crate::session::{Session, Token};
use crate::tiers::Tiers;
use kiv_pool::SlotTable;
use kiv_wire::{Put, Take};
use std::path::Path;

/// Tokens that are read between two commits, at least.
pub(crate) const COMMIT_EVERY: usize = 16 * 1024;

impl Session {
    /// Makes everything read so far durable in the folder of
    /// [`crate::SessionBuilder::context_dir`], all at once. While a long text is
    /// read this happens by itself, at ever longer intervals. Without a folder, or with one
    /// that is borrowed or goes with the session, nothing is done.
    ///
    /// # Errors
    /// [`Error::Disk`]; the last commit stays what it was, and the session is
    /// whole. [`Error::Broken`] if it is not.
    pub fn commit(&mut self) -> Result<(), Error> {
        if self.committed == Some(self.tokens.len()) || self.tokens.is_empty() {
            return Ok(());
        }
        if self.broken {
            return Err(Error::Broken);
        }
        if self.invented > 0 || self.scratch.is_some() {
            // Rows that no text has, or that nobody will come back to.
            return Ok(());
        }
        let n_tokens = self.tokens.len();
        let (engine, caches) = self.context.parts();
        let (Some(tiers), Some(cells)) = (&mut engine.tiers, &engine.cells) else {
            return Ok(());
        };
        if tiers.disk().is_none_or(|disk| disk.is_borrowed()) {
            return Ok(());
        }
        tiers.sinks_go_home(caches, cells)?;
        let rows = hot::read_rows(tiers.geometry(), cells, caches)?;
        let cells = cells.clone();
        let slots = tiers.all_slots().to_vec();
        let partial = if self.form.as_ref().is_some_and(DumpForm::has_rest) {
            self.settled_partial()?
        } else {
            Vec::new()
        };
        let hot = Hot {
            step: self.step,
            cells,
            slots,
            rows,
            partial,
            logits: self.last_logits.clone(),
        };
        let mut tokens = Vec::new();
        tokens.put_i32s(&self.tokens);
        let Some(tiers) = &mut self.context.hook().tiers else {
            unreachable!("there were some above");
        };
        tiers.commit(&[("tokens", &tokens), ("hot", &hot.put())], n_tokens)?;
        self.committed = Some(n_tokens);
        Ok(())
    }

    /// Commits if enough has been read since the last time: at least
    /// `commit_every` tokens and an eighth of all, so that a million tokens take
    /// some thirty commits.
    pub(crate) fn commit_if_due(&mut self) -> Result<(), Error> {
        let n = self.tokens.len();
        let since = n - self.committed.unwrap_or(0).min(n);
        let due = since >= self.commit_every.max(n / 8);
        if due { self.commit() } else { Ok(()) }
    }

    /// Commits, and makes a copy of the context in another folder. The two share
    /// the blocks they have in common.
    ///
    /// # Errors
    /// [`Error::Disk`]; [`Error::NoContext`] without a folder of its own.
    pub fn fork(&mut self, to: impl AsRef<Path>) -> Result<(), Error> {
        self.commit()?;
        let is_kept = self.scratch.is_none();
        let tiers = self.context.hook().tiers.as_mut();
        let disk = tiers.and_then(Tiers::disk);
        let disk = disk.filter(|disk| is_kept && !disk.is_borrowed());
        let disk = disk.ok_or(Error::NoContext)?;
        Ok(disk.fork(to.as_ref())?)
    }

    /// Whether a session built as this one was could take up the context in `folder`.
    ///
    /// # Errors
    /// [`Error::Disk`] with what is different; [`Error::NoContext`] if this session has
    /// no folder.
    pub fn could_resume(&mut self, folder: &Path) -> Result<(), Error> {
        let tiers = self.context.hook().tiers.as_mut();
        let disk = tiers.and_then(Tiers::disk).ok_or(Error::NoContext)?;
        let identity = kiv_context::info(folder)?.manifest.identity;
        Ok(identity.check(&disk.manifest().identity, folder)?)
    }

    /// Takes up what the folder holds, if it holds anything.
    pub(crate) fn resume(&mut self) -> Result<(), Error> {
        let Some(form) = self.form.clone() else {
            return Ok(());
        };
        let engine = self.context.hook();
        let Some(tiers) = &mut engine.tiers else {
            return Ok(());
        };
        let Some(disk) = tiers.disk().filter(|disk| !disk.is_new()) else {
            return Ok(());
        };
        let n_tokens = usize::try_from(disk.manifest().n_tokens).unwrap_or(usize::MAX);
        let (tokens, hot) = (disk.part("tokens")?, disk.part("hot")?);
        let tokens = taken(tokens)?;
        let hot = hot.ok_or_else(|| damaged("hot window", &"it is missing"))?;
        let n_vocab = self.model.n_vocab();
        let known = |token: &Token| self.model.has(*token);
        if tokens.len() != n_tokens || !tokens.iter().all(known) {
            return Err(damaged("tokens", &"they are not this model's"));
        }
        if n_tokens > self.n_ctx {
            return Err(Error::ContextLonger {
                stored: n_tokens,
                n_ctx: self.n_ctx,
            });
        }
        let n_blocks = tiers.store().n_blocks();
        let shape = (tiers.geometry(), &self.layout, &form);
        let hot = Hot::take(&hot, shape, n_tokens, n_blocks);
        let hot = hot.map_err(|e| damaged("hot window", &e))?;
        if !hot.logits.is_empty() && hot.logits.len() != n_vocab {
            return Err(damaged("hot window", &"its logits are another model's"));
        }
        tiers.resume(hot.slots.clone())?;
        self.install(&hot, &form)?;
        self.step = hot.step;
        self.tokens = tokens;
        self.last_logits = hot.logits;
        self.committed = Some(n_tokens);
        Ok(())
    }

    /// Puts a hot window in place of what is there.
    pub(crate) fn install(&mut self, hot: &Hot, form: &DumpForm) -> Result<(), Error> {
        if let Err(reason) = hot.place(&mut self.context, form) {
            self.broken = true;
            return Err(Error::Decode {
                position: self.tokens.len(),
                reason,
            });
        }
        self.context.hook().cells = Some(hot.cells.clone());
        Ok(())
    }
}

/// What the context in a folder has read, as of its last commit.
///
/// # Errors
/// [`Error::Disk`] and [`Error::Resume`] if that cannot be told.
pub fn stored_tokens(folder: &Path) -> Result<Vec<Token>, Error> {
    taken(kiv_context::part(folder, "tokens")?)
}

fn taken(tokens: Option<Vec<u8>>) -> Result<Vec<Token>, Error> {
    let tokens = tokens.ok_or_else(|| damaged("tokens", &"it is missing"))?;
    let mut take = Take::new(&tokens);
    let tokens = take.i32s().and_then(|tokens| take.end().map(|()| tokens));
    tokens.map_err(|e| damaged("tokens", &e))
}

fn damaged(what: &str, why: &dyn std::fmt::Display) -> Error {
    Error::Resume {
        what: what.to_owned(),
        why: why.to_string(),
    }
}

/// Slot tables of all layers and heads as they are at first.
pub(crate) fn slots_at_home(geometry: &kiv_policy::Geometry) -> Vec<Vec<SlotTable>> {
    let tables =
        |l: &kiv_policy::LayerGeometry| vec![SlotTable::new(geometry.n_slots); l.n_head_kv];
    geometry.layers.iter().map(tables).collect()
}
