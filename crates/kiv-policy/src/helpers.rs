//! Threads that wait for a policy's answer, and may as well help to find it.

/// Threads that have just computed and will go on as soon as the policy has answered. They
/// are awake: work for them begins within microseconds, where a thread that sleeps needs a
/// hundred and more to wake.
pub trait Helpers: Sync {
    /// How many threads there are, the caller's among them.
    fn n(&self) -> usize;

    /// Does `work` on each of them at once, on the caller's too, and returns when all are
    /// done. Where others are not to be had, for a call within another one, it is done by
    /// the caller's alone.
    ///
    /// # Panics
    /// If `work` does.
    fn run(&self, work: &(dyn Fn() + Sync));
}

/// Nobody helps: the caller's thread is the only one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Helpers for Alone {
    fn n(&self) -> usize {
        1
    }

    fn run(&self, work: &(dyn Fn() + Sync)) {
        work();
    }
}

/// So many threads, made for each piece of work: to test what several do together.
#[derive(Clone, Copy, Debug)]
pub struct Spawned(pub usize);

impl Helpers for Spawned {
    fn n(&self) -> usize {
        self.0
    }

    fn run(&self, work: &(dyn Fn() + Sync)) {
        std::thread::scope(|scope| {
            for _ in 1..self.0 {
                scope.spawn(work);
            }
            work();
        });
    }
}
