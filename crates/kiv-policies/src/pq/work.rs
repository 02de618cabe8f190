//! What takes an index long is done beside everything else, by threads of its own: eras are
//! divided, and codebooks made for the newest keys.

use super::keys_of;
use kiv_index::{HeadIndex, Work};
use kiv_policy::{ColdRows, Geometry, PolicyError, RowFormat};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One of so many of the threads that a policy may use does this: the model computes
/// meanwhile, and has use for all of them.
const SHARE: usize = 4;

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
            .num_threads((n_threads / SHARE).max(1))
            .thread_name(|i| format!("kiv-index-{i}"))
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
        (layer, kv_head): (usize, usize),
    ) -> Result<(), PolicyError> {
        let Some(tokens) = index.undone() else {
            return Ok(());
        };
        let (mut format, mut bytes) = (geometry.key_format, Vec::new());
        keys_of(cold, geometry, (layer, kv_head), tokens, |rows| {
            format = rows.format;
            bytes.extend_from_slice(rows.bytes);
        })?;
        // Only now: what is given away and lost would be an error.
        let Some(work) = index.give_away() else {
            return Ok(());
        };
        let n_values = work.tokens().len() * geometry.layers[layer].key_dim;
        self.at_work.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(&self.at_work));
        let before = self.before_each;
        self.threads.spawn(move || {
            let _place = place;
            before();
            do_it(work, format, bytes, n_values);
        });
        Ok(())
    }
}

fn do_it(work: Work, format: RowFormat, bytes: Vec<u8>, n_values: usize) {
    if work.is_wanted() {
        let mut keys = vec![0.0; n_values];
        format.decode(&bytes, &mut keys);
        drop(bytes);
        work.run(keys);
    }
}

#[cfg(test)]
mod tests;
