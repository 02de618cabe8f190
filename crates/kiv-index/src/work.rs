//! What takes long is made elsewhere: an era of keys that are enough for one, and a codebook
//! for the newest ones. Until their turn comes keys are found as they were before.
//!
//! When something takes its place is a matter of how many tokens there are
//! ([`Params::late`]), never of how fast it was made: the same tokens give the same
//! index. Whoever comes to that place before the work is done does it, even if others have
//! begun: they may have been left without a processor, and nobody waits for those.

use crate::era::Era;
use crate::head::{IndexError, Params};
use crate::newest::Newest;
use crate::space::QueryMoments;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Something that is made of keys.
pub(crate) trait Made: Sized {
    /// Makes it of keys `[n, dim]`, whose first token is `first`.
    fn make(params: &Params, moments: &QueryMoments, keys: Vec<f32>, first: usize) -> Self;
    /// Bytes that it holds.
    fn bytes(&self) -> usize;
}

impl Made for Era {
    fn make(params: &Params, moments: &QueryMoments, keys: Vec<f32>, first: usize) -> Self {
        Self::new(params, moments, keys, first)
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }
}

impl Made for Newest {
    fn make(params: &Params, moments: &QueryMoments, keys: Vec<f32>, first: usize) -> Self {
        let mut newest = Self::train(params, moments, &keys, first);
        newest.push(&keys);
        newest
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }
}

/// Something in the making.
#[derive(Debug)]
pub(crate) struct Making<T> {
    /// As they were when the keys were whole, whenever the work is done.
    pub moments: QueryMoments,
    /// What comes of the work if it was given away.
    outcome: Option<Arc<Outcome<T>>>,
}

/// Whose work is given away is not known to a copy: it does the work itself if it must.
impl<T> Clone for Making<T> {
    fn clone(&self) -> Self {
        Self::new(self.moments.clone())
    }
}

impl<T> Making<T> {
    pub fn new(moments: QueryMoments) -> Self {
        Self {
            moments,
            outcome: None,
        }
    }

    pub fn is_given_away(&self) -> bool {
        self.outcome.is_some()
    }

    fn give_away(
        &mut self,
        params: &Params,
        tokens: Range<usize>,
        to: fn(Weak<Outcome<T>>) -> To,
    ) -> Work {
        let outcome = self.outcome.insert(Arc::default());
        Work {
            params: params.clone(),
            moments: self.moments.clone(),
            tokens,
            to: to(Arc::downgrade(outcome)),
        }
    }
}

impl Making<Era> {
    pub fn give_era_away(&mut self, params: &Params, tokens: Range<usize>) -> Work {
        self.give_away(params, tokens, To::Era)
    }
}

impl Making<Newest> {
    pub fn give_newest_away(&mut self, params: &Params, tokens: Range<usize>) -> Work {
        self.give_away(params, tokens, To::Newest)
    }
}

impl<T: Made> Making<T> {
    /// What others made of the keys of some segments, or what is made of them here if it is
    /// not there yet: `read` gives them.
    ///
    /// # Errors
    /// [`IndexError::Unread`].
    pub fn finish(
        &mut self,
        params: &Params,
        tokens: Range<usize>,
        read: &mut dyn FnMut(usize, &mut Vec<f32>) -> bool,
    ) -> Result<T, IndexError> {
        if let Some(made) = self.outcome.take().and_then(|outcome| outcome.take()) {
            return Ok(made);
        }
        let first = tokens.start;
        let (mut all, mut room) = (Vec::new(), Vec::new());
        for token in tokens.step_by(params.segment) {
            room.clear();
            if !read(token, &mut room) {
                return Err(IndexError::Unread);
            }
            all.append(&mut room);
        }
        Ok(T::make(params, &self.moments, all, first))
    }

    /// Bytes that it holds, those of what is made once that is there.
    pub fn bytes(&self) -> usize {
        let outcome = self.outcome.as_ref();
        self.moments.bytes() + outcome.map_or(0, |outcome| outcome.bytes())
    }
}

/// Where something is put when it is made.
#[derive(Debug)]
struct Outcome<T>(Mutex<Option<Box<T>>>);

impl<T> Default for Outcome<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Outcome<T> {
    fn lock(&self) -> MutexGuard<'_, Option<Box<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was made, if it is there.
    fn take(&self) -> Option<T> {
        self.lock().take().map(|made| *made)
    }
}

impl<T: Made> Outcome<T> {
    fn bytes(&self) -> usize {
        self.lock().as_ref().map_or(0, |made| made.bytes())
    }
}

/// Work on keys that any thread may do while their index is used: dividing those of an era,
/// or making a codebook for the newest ones. [`HeadIndex::give_away`] gives it away. Work that
/// is dropped, in a panic too, is done by its index when its turn comes.
///
/// [`HeadIndex::give_away`]: crate::HeadIndex::give_away
#[derive(Debug)]
pub struct Work {
    params: Params,
    moments: QueryMoments,
    tokens: Range<usize>,
    to: To,
}

/// What is wanted, and by whom: nobody any more if the index has forgotten the keys.
#[derive(Debug)]
enum To {
    Era(Weak<Outcome<Era>>),
    Newest(Weak<Outcome<Newest>>),
}

impl Work {
    /// Tokens whose keys are wanted.
    #[must_use]
    pub fn tokens(&self) -> Range<usize> {
        self.tokens.clone()
    }

    /// Whether the index still wants it done.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        match &self.to {
            To::Era(outcome) => outcome.strong_count() > 0,
            To::Newest(outcome) => outcome.strong_count() > 0,
        }
    }

    /// Does the work, with the keys of [`Work::tokens`], `[n, dim]`.
    pub fn run(self, keys: Vec<f32>) {
        match &self.to {
            To::Era(outcome) => self.make(outcome, keys),
            To::Newest(outcome) => self.make(outcome, keys),
        }
    }

    fn make<T: Made>(&self, outcome: &Weak<Outcome<T>>, keys: Vec<f32>) {
        if self.is_wanted() {
            let made = T::make(&self.params, &self.moments, keys, self.tokens.start);
            // Nobody may want it any more.
            if let Some(outcome) = outcome.upgrade() {
                *outcome.lock() = Some(Box::new(made));
            }
        }
    }
}
