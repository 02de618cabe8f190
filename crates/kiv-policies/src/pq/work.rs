//! What takes an index long is done beside everything else, by threads of its own: eras are
//! divided, and codebooks made for the newest keys.
//!
//! These threads take what others leave of the processors. Where that is too little, as where
//! all of them read a text, all threads divide some heads' keys from time to time
//! ([`behind`]): a little after every few micro-batches instead of everything in the end.

use super::keys_of;
use kiv_index::{HeadIndex, Work};
use kiv_policy::{ColdRows, Geometry, PolicyError, RowFormat};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One of so many of the threads that a policy may use does this: each has a copy of keys.
const SHARE: usize = 2;

/// These threads.
///
/// They are given a copy of keys, of one KV head each: rows may move, and be cut off, while
/// they work. Those of very many heads would take as much memory as their rows, so there are
/// only as many as there are threads, and the next are given when one is done.
pub(super) struct Workers {
    threads: rayon::ThreadPool,
    at_work: Arc<AtomicUsize>,
    /// Tests make haste or waste time here.
    before_each: fn(),
}

/// How many there are, where a policy may use `n` threads.
pub(super) fn n_threads(n: usize) -> usize {
    (n / SHARE).max(1)
}

/// Counts one at work less when it goes, however that comes.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Workers {
    pub fn new(n_threads: usize, before_each: fn()) -> Result<Self, PolicyError> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(self::n_threads(n_threads))
            .thread_name(|i| format!("kiv-index-{i}"))
            .start_handler(|_| take_what_is_left())
            // The index is told; nobody else need be.
            .panic_handler(|_| ())
            .build();
        Ok(Self {
            threads: threads
                .map_err(|e| PolicyError(format!("cannot start index threads: {e}")))?,
            at_work: Arc::default(),
            before_each,
        })
    }

    /// Whether a thread has nothing to do.
    pub fn is_free(&self) -> bool {
        self.at_work() < self.threads.current_num_threads()
    }

    /// Heads whose keys are worked on.
    pub fn at_work(&self) -> usize {
        self.at_work.load(Ordering::Acquire)
    }

    /// Has that done which an index leaves to others, if there is anything.
    pub fn give(
        &self,
        index: &mut HeadIndex,
        cold: &dyn ColdRows,
        geometry: &Geometry,
        at: (usize, usize),
    ) -> Result<(), PolicyError> {
        let Some(job) = Job::of(index, cold, geometry, at)? else {
            return Ok(());
        };
        self.at_work.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(&self.at_work));
        let before = self.before_each;
        self.threads.spawn(move || {
            let _place = place;
            before();
            job.run();
        });
        Ok(())
    }
}

/// Heads that somebody should work on now, of all whose era is in the making, of which so many
/// nobody has begun with: such that in the end nothing is left, and all threads have
/// something to do.
pub(super) fn behind(time_over: f32, n_heads: usize, n_undone: usize, n_threads: usize) -> usize {
    let in_time = ((1.0 - time_over).max(0.0) * n_heads as f32) as usize;
    n_undone.saturating_sub(in_time) / n_threads * n_threads
}

/// Lets a thread run where no other of the program would.
fn take_what_is_left() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{getpriority_process, setpriority_process};
        const LOWEST: i32 = 19;
        let thread = Some(rustix::thread::gettid());
        // It works on with the priority that it has if this fails.
        if let Ok(own) = getpriority_process(thread) {
            let _ = setpriority_process(thread, (own + LOWEST).min(LOWEST));
        }
    }
}

/// What an index leaves to others, with the keys for it as they are in the store.
pub(super) struct Job {
    work: Work,
    format: RowFormat,
    bytes: Vec<u8>,
    n_values: usize,
}

impl Job {
    /// What this index has to do, if anything.
    pub fn of(
        index: &mut HeadIndex,
        cold: &dyn ColdRows,
        geometry: &Geometry,
        (layer, kv_head): (usize, usize),
    ) -> Result<Option<Self>, PolicyError> {
        let Some(tokens) = index.undone() else {
            return Ok(None);
        };
        let n_values = tokens.len() * geometry.layers[layer].key_dim;
        let (mut format, mut bytes) = (geometry.key_format, Vec::new());
        keys_of(cold, geometry, (layer, kv_head), tokens, |rows| {
            format = rows.format;
            bytes.extend_from_slice(rows.bytes);
        })?;
        // Only now: what is given away and not done has to be done again.
        Ok(index.give_away().map(|work| Self {
            work,
            format,
            bytes,
            n_values,
        }))
    }

    pub fn run(self) {
        if self.work.is_wanted() {
            let mut keys = vec![0.0; self.n_values];
            self.format.decode(&self.bytes, &mut keys);
            drop(self.bytes);
            self.work.run(keys);
        }
    }
}

#[cfg(test)]
mod tests;
