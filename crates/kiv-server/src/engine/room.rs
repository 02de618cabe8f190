//! Memory for contexts: what does not fit is refused before it is read, and what is not in use
//! makes room.

use super::{Choice, Slot, Worker};
use kiv_runtime::{Error, Session, Token};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Memory that sessions may take, and what they take of it.
#[derive(Clone)]
pub struct Room {
    /// Bytes that all sessions may take together.
    pub bytes: u64,
    /// Bytes that a session takes that holds so many tokens.
    pub of_session: Arc<dyn Fn(usize) -> u64 + Send + Sync>,
}

impl Room {
    /// Bytes that a context of so many tokens takes, if that is more than there are for all.
    #[must_use]
    pub fn lacks(&self, n_tokens: usize) -> Option<u64> {
        let wanted = (self.of_session)(n_tokens);
        (wanted > self.bytes).then_some(wanted)
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl<F: Fn(Option<&Path>) -> Result<Session, Error>> Worker<F> {
    /// Where a prompt goes, once sessions that are not in use have made room for it: those
    /// unused for longest go first. Nothing while those in use must end before.
    pub(super) fn choose_with_room(&mut self, prompt: &[Token]) -> Option<Choice> {
        loop {
            let choice = self.choose(prompt)?;
            let goes_on = self.goes_on_as(choice);
            if self.fits(prompt, goes_on) {
                return Some(choice);
            }
            let slots = self.slots.iter().enumerate();
            let idle = slots.filter(|(i, slot)| Some(*i) != goes_on && slot.job.is_none());
            // What is to be copied is on disk once it is given up, and is copied from there.
            let unused = idle.min_by_key(|(_, slot)| slot.used).map(|(i, _)| i);
            match unused {
                Some(i) => self.give_up(i),
                None if self.slots.iter().any(|slot| slot.job.is_some()) => return None,
                // By itself it fits: that was looked at when it was sent.
                None => return Some(choice),
            }
        }
    }

    /// The session that a choice ends, or goes on with.
    fn goes_on_as(&self, choice: Choice) -> Option<usize> {
        match choice {
            Choice::Slot(i) => Some(i),
            _ if self.slots.len() >= self.limit => self.least(),
            _ => None,
        }
    }

    /// Whether a prompt's context fits beside those of all sessions but one.
    fn fits(&self, prompt: &[Token], but: Option<usize>) -> bool {
        let Some(room) = &self.room else {
            return true;
        };
        let others = self.slots.iter().enumerate();
        let others = others.filter(|(i, _)| Some(*i) != but);
        let all = others
            .map(|(_, slot)| will_hold(slot))
            .chain([prompt.len()]);
        let bytes = all.map(|n_tokens| (room.of_session)(n_tokens));
        bytes.fold(0, u64::saturating_add) <= room.bytes
    }
}

/// Tokens of a session once its request's prompt has been read.
fn will_hold(slot: &Slot) -> usize {
    let asked = slot.job.as_ref().map_or(0, |job| job.request.prompt.len());
    asked.max(slot.session.tokens().len())
}
