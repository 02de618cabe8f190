//! An era in the making: its keys are divided elsewhere, and until that era's turn comes
//! they are found as they were before.
//!
//! When an era takes the place of its keys is a matter of how many tokens there are
//! ([`Params::late`]), never of how fast it was made: the same tokens give the same
//! index. Whoever comes to that place before the work is done waits for it.

use crate::era::Era;
use crate::head::{IndexError, Params};
use crate::newest::Newest;
use crate::space::QueryMoments;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

/// The newest keys once they are enough for an era, until it takes their place.
#[derive(Debug)]
pub(crate) struct Dividing {
    pub newest: Newest,
    /// As they were when the keys were whole, whenever the work is done.
    pub moments: QueryMoments,
    /// What comes of the work if it was given away.
    outcome: Option<Arc<Outcome>>,
}

/// Whose work is given away is not known to a copy: it does the work itself if it must.
impl Clone for Dividing {
    fn clone(&self) -> Self {
        Self::new(self.newest.clone(), self.moments.clone())
    }
}

impl Dividing {
    pub fn new(newest: Newest, moments: QueryMoments) -> Self {
        Self {
            newest,
            moments,
            outcome: None,
        }
    }

    pub fn is_given_away(&self) -> bool {
        self.outcome.is_some()
    }

    pub fn give_away(&mut self, params: &Params) -> Division {
        let outcome = Arc::new(Outcome::default());
        let division = Division {
            params: params.clone(),
            moments: self.moments.clone(),
            first: self.newest.first,
            outcome: Arc::downgrade(&outcome),
        };
        self.outcome = Some(outcome);
        division
    }

    /// The era: what others made, or made here of what `read` gives.
    ///
    /// # Errors
    /// [`IndexError::Undivided`] and [`IndexError::Unread`]; the next try makes it here.
    pub fn finish(
        &mut self,
        params: &Params,
        read: &mut dyn FnMut(usize, &mut Vec<f32>) -> bool,
    ) -> Result<Era, IndexError> {
        let first = self.newest.first;
        if let Some(outcome) = self.outcome.take() {
            return outcome.wait().ok_or(IndexError::Undivided { token: first });
        }
        let (mut all, mut room) = (Vec::new(), Vec::new());
        for segment in 0..params.era {
            room.clear();
            if !read(first + segment * params.segment, &mut room) {
                return Err(IndexError::Unread);
            }
            all.append(&mut room);
        }
        Ok(Era::new(params, &self.moments, all, first))
    }

    /// Bytes that it holds, those of the era included once that is there.
    pub fn bytes(&self) -> usize {
        let outcome = self.outcome.as_ref();
        self.newest.bytes() + self.moments.bytes() + outcome.map_or(0, |o| o.bytes())
    }
}

/// Where an era is put when it is done.
#[derive(Debug, Default)]
struct Outcome {
    work: Mutex<Work>,
    is_over: Condvar,
}

#[derive(Debug, Default)]
enum Work {
    #[default]
    GoesOn,
    Done(Box<Era>),
    /// By a thread that has panicked, or that has never begun.
    Lost,
}

impl Outcome {
    /// Ends the work, if it has not ended before.
    fn tell(&self, end: Work) {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*work, Work::GoesOn) {
            *work = end;
            self.is_over.notify_all();
        }
    }

    /// The era, unless whoever made it gave up.
    fn wait(&self) -> Option<Era> {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |work: &mut Work| matches!(work, Work::GoesOn);
        let work = self.is_over.wait_while(work, goes_on);
        let mut work = work.unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *work, Work::Lost) {
            Work::Done(era) => Some(*era),
            Work::GoesOn | Work::Lost => None,
        }
    }

    fn bytes(&self) -> usize {
        match &*self.work.lock().unwrap_or_else(PoisonError::into_inner) {
            Work::Done(era) => era.bytes(),
            Work::GoesOn | Work::Lost => 0,
        }
    }
}

/// Work on an era that any thread may do while its index is used: divides keys into
/// lists, and codes them. [`HeadIndex::divide`](crate::HeadIndex::divide) gives it away.
///
/// One that is dropped, in a panic too, tells its index so: that does not wait for ever.
#[derive(Debug)]
pub struct Division {
    params: Params,
    moments: QueryMoments,
    first: usize,
    /// Nobody's any more if the index has forgotten the keys.
    outcome: Weak<Outcome>,
}

impl Division {
    /// Tokens whose keys are wanted.
    #[must_use]
    pub fn tokens(&self) -> Range<usize> {
        self.first..self.first + self.params.era_len()
    }

    /// Whether the index still wants it done.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.outcome.strong_count() > 0
    }

    /// Does the work, with the keys of [`Division::tokens`], `[n, dim]`.
    pub fn run(self, keys: Vec<f32>) {
        if self.is_wanted() {
            let era = Era::new(&self.params, &self.moments, keys, self.first);
            self.tell(Work::Done(Box::new(era)));
        }
    }

    fn tell(&self, work: Work) {
        if let Some(outcome) = self.outcome.upgrade() {
            outcome.tell(work);
        }
    }
}

impl Drop for Division {
    fn drop(&mut self) {
        // A panic comes here, too, before anything was told.
        self.tell(Work::Lost);
    }
}
