//! Going back in models some of whose layers forget.
//!
//! Sliding-window layers keep the newest tokens only, recurrent ones a state that
//! cannot be undone. What they hold after some token is small; kept aside, it is what
//! it takes to cut the sequence back to that token later.

use crate::error::Error;
use crate::session::Session;

/// What layers held that do not keep every token.
pub(crate) struct Mark {
    /// After so many tokens.
    pub n_tokens: usize,
    /// As llama.cpp gives it.
    pub partial: Vec<u8>,
}

impl Session {
    /// Remembers this place, so that [`Session::truncate`] can come back to it however
    /// much is read next: models with sliding-window or recurrent layers cannot go back
    /// far, or at all, to any other. One place is remembered, the last. Nothing is done in
    /// models without such layers, nor in those of which llama.cpp does not tell what these
    /// layers hold apart from all else (both kinds in one model, recurrent layers only).
    ///
    /// # Errors
    /// [`Error::Decode`] with llama.cpp's reason; the session is lost then.
    pub fn mark(&mut self) -> Result<(), Error> {
        if !self.has_partial || self.tokens.is_empty() || self.broken {
            return Ok(());
        }
        let partial = self.settled_partial()?;
        self.mark = Some(Mark {
            n_tokens: self.tokens.len(),
            partial,
        });
        Ok(())
    }

    /// The place that is remembered.
    #[must_use]
    pub fn marked(&self) -> Option<usize> {
        self.mark.as_ref().map(|mark| mark.n_tokens)
    }

    /// What layers hold that do not keep every token, and puts it back in the order in
    /// which it will come back: who goes on from here and who comes back later add in
    /// the same order.
    pub(crate) fn settled_partial(&mut self) -> Result<Vec<u8>, Error> {
        let partial = self.context.partial();
        self.set_partial(&partial)?;
        Ok(partial)
    }

    pub(crate) fn set_partial(&mut self, partial: &[u8]) -> Result<(), Error> {
        self.context.set_partial(partial).map_err(|reason| {
            self.broken = true;
            Error::Decode {
                position: self.tokens.len(),
                reason,
            }
        })
    }

    /// A place that has been cut off is none to come back to.
    pub(crate) fn forget_later_mark(&mut self) {
        let n = self.tokens.len();
        self.mark.take_if(|mark| mark.n_tokens > n);
    }
}
