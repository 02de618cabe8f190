//! Eras are divided beside everything else, by threads of their own.

use super::keys_of;
use kiv_index::{Division, HeadIndex};
use kiv_policy::{ColdRows, Geometry, PolicyError, RowFormat};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One of so many of the threads that a policy may use divides eras: the model computes
/// meanwhile, and has use for all of them.
const SHARE: usize = 4;

/// Threads that divide eras.
///
/// They are given a copy of an era's keys, of one KV head each: rows may move, and be cut
/// off, while they work. Those of very many heads would take as much memory as their rows,
/// so there are only as many as there are threads, and the next are given when one is done.
pub(super) struct Divider {
    threads: rayon::ThreadPool,
    at_work: Arc<AtomicUsize>,
    /// Tests make haste or waste time here.
    before_each: fn(),
}

/// Counts one era less when it goes, however that comes.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Divider {
    pub fn new(n_threads: usize, before_each: fn()) -> Result<Self, PolicyError> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads((n_threads / SHARE).max(1))
            .thread_name(|i| format!("kiv-eras-{i}"))
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

    /// Eras that are being divided.
    pub fn at_work(&self) -> usize {
        self.at_work.load(Ordering::Acquire)
    }

    /// Has an index's newest keys divided, if they want to be.
    pub fn give(
        &self,
        index: &mut HeadIndex,
        cold: &dyn ColdRows,
        geometry: &Geometry,
        (layer, kv_head): (usize, usize),
    ) -> Result<(), PolicyError> {
        let Some(tokens) = index.undivided() else {
            return Ok(());
        };
        let (mut format, mut bytes) = (geometry.key_format, Vec::new());
        keys_of(cold, geometry, (layer, kv_head), tokens, |rows| {
            format = rows.format;
            bytes.extend_from_slice(rows.bytes);
        })?;
        // Only now: what is given away and lost would be an error.
        let Some(division) = index.divide() else {
            return Ok(());
        };
        let n_values = division.tokens().len() * geometry.layers[layer].key_dim;
        self.at_work.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(&self.at_work));
        let before = self.before_each;
        self.threads.spawn(move || {
            let _place = place;
            before();
            divide(division, format, bytes, n_values);
        });
        Ok(())
    }
}

fn divide(division: Division, format: RowFormat, bytes: Vec<u8>, n_values: usize) {
    if division.is_wanted() {
        let mut keys = vec![0.0; n_values];
        format.decode(&bytes, &mut keys);
        drop(bytes);
        division.run(keys);
    }
}

#[cfg(test)]
mod tests;
