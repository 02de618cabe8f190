//! The threads that serve a layer's heads while the model waits.

use kiv_policy::{Helpers, PolicyError};
use std::sync::{Mutex, PoisonError};

/// Values of keys that queries are multiplied with, from which on it is worth waking threads.
pub(super) const WAKING: usize = 24 << 20;

/// Threads for some work: those that the model has waiting, or others where these are not to
/// be had and there is enough to do.
#[derive(Clone, Copy)]
pub(super) struct Crew<'a> {
    pub own: &'a rayon::ThreadPool,
    pub helpers: &'a dyn Helpers,
    /// Values of keys that queries are multiplied with, about.
    pub work: usize,
}

impl Crew<'_> {
    /// How many they are.
    pub fn n(&self) -> usize {
        if self.work == 0 {
            1
        } else if self.helpers.n() > 1 {
            self.helpers.n()
        } else if self.work > WAKING {
            self.own.current_num_threads()
        } else {
            1
        }
    }

    /// Does all of `work`. This thread is among those who do it: it need not sleep until
    /// another one wakes. Each finishes what it has done, when nothing else is left.
    ///
    /// # Errors
    /// One of those that are met.
    pub fn all<T: Send, S>(
        &self,
        work: Vec<T>,
        serve: impl Fn(T) -> Result<S, PolicyError> + Send + Sync,
        finish: impl Fn(S) -> Result<(), PolicyError> + Send + Sync,
    ) -> Result<(), PolicyError> {
        let n = self.n().min(work.len());
        let queue = Mutex::new(work.into_iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let serve_some = || {
            let served: Vec<S> = std::iter::from_fn(next)
                .map(&serve)
                .collect::<Result<_, _>>()?;
            served.into_iter().try_for_each(&finish)
        };
        if n < 2 {
            return serve_some();
        }
        if self.helpers.n() > 1 {
            let result = Mutex::new(Ok(()));
            self.helpers.run(&|| {
                if let Err(error) = serve_some() {
                    *result.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
                }
            });
            return result.into_inner().unwrap_or_else(PoisonError::into_inner);
        }
        let mut results = Vec::new();
        results.resize_with(n, || Ok(()));
        self.own.in_place_scope(|scope| {
            let (own, others) = results.split_at_mut(1);
            for result in others {
                scope.spawn(|_| *result = serve_some());
            }
            own[0] = serve_some();
        });
        results.into_iter().collect()
    }
}
