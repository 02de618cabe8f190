//! The keys outside the slots, kept from step to step.

use kiv_policy::SelectRequest;

/// Keys of one layer and KV head that are resident in any case, as numbers.
///
/// Decoding steps share nearly all of them: only new rows are read.
#[derive(Default)]
pub(crate) struct LocalKeys {
    /// Step of the last update.
    step: Option<u64>,
    positions: Vec<i32>,
    /// `[positions, dim]`.
    keys: Vec<f32>,
}

impl LocalKeys {
    /// Reads what has changed.
    pub fn update(&mut self, request: &SelectRequest<'_>, kv_head: usize, dim: usize) {
        let positions = request.local.positions();
        // Rows from the micro-batch's first position on are new, also where a
        // question was taken back and another one is asked at its positions.
        // If steps were missed there may have been other changes.
        let follows = self.step.is_some_and(|step| step + 1 == request.step);
        let first_new = request.queries.positions.first().copied().unwrap_or(0);
        let mut kept = 0;
        if follows {
            let mut old = 0;
            for position in positions.iter().take_while(|p| **p < first_new) {
                let rest = &self.positions[old..];
                old += rest.partition_point(|p| p < position);
                if self.positions.get(old) != Some(position) {
                    break;
                }
                if old != kept {
                    let row = old * dim..(old + 1) * dim;
                    self.keys.copy_within(row, kept * dim);
                    self.positions[kept] = *position;
                }
                kept += 1;
                old += 1;
            }
        }
        self.positions.truncate(kept);
        self.positions.extend_from_slice(&positions[kept..]);
        self.keys.truncate(kept * dim);
        request.local.keys_from(kv_head, kept, &mut self.keys);
        self.step = Some(request.step);
    }

    /// Keys at positions up to `last`, `[n, dim]`.
    pub fn until(&self, last: i32, dim: usize) -> &[f32] {
        let n = self.positions.partition_point(|p| *p <= last);
        &self.keys[..n * dim]
    }
}

/// For tests: nothing is resident outside the slots.
#[cfg(test)]
pub(crate) struct NoLocal;

#[cfg(test)]
impl kiv_policy::LocalRows for NoLocal {
    fn positions(&self) -> &[i32] {
        &[]
    }
    fn keys(&self, _: usize, out: &mut Vec<f32>) {
        out.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiv_policy::{ColdError, ColdRows, ColdRun, LocalRows, Phase, Queries};
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct NoCold;
    impl ColdRows for NoCold {
        fn n_blocks(&self) -> usize {
            0
        }
        fn keys(&self, _: usize, _: usize, _: u32, _: usize) -> Result<ColdRun<'_>, ColdError> {
            unreachable!("nothing is sealed")
        }
        fn values(&self, _: usize, _: usize, _: u32, _: usize) -> Result<ColdRun<'_>, ColdError> {
            unreachable!("nothing is sealed")
        }
    }

    /// Rows that say their position and a version.
    struct Numbered {
        positions: Vec<i32>,
        version: f32,
        read: AtomicUsize,
    }
    impl LocalRows for Numbered {
        fn positions(&self) -> &[i32] {
            &self.positions
        }
        fn keys(&self, _: usize, out: &mut Vec<f32>) {
            out.clear();
            self.keys_from(0, 0, out);
        }
        fn keys_from(&self, _: usize, first: usize, out: &mut Vec<f32>) {
            let rows = &self.positions[first..];
            self.read.store(rows.len(), Ordering::Relaxed);
            out.extend(rows.iter().flat_map(|p| [*p as f32, self.version]));
        }
    }

    /// Updates from rows at `positions`, of which the micro-batch's begin at
    /// `first`; says how many were read.
    fn update(
        local: &mut LocalKeys,
        positions: Vec<i32>,
        first: i32,
        version: f32,
        step: u64,
    ) -> usize {
        let rows = Numbered {
            positions,
            version,
            read: AtomicUsize::new(0),
        };
        let asked: Vec<i32> = rows
            .positions
            .iter()
            .copied()
            .filter(|p| *p >= first)
            .collect();
        let request = SelectRequest {
            layer: 0,
            phase: Phase::Decode,
            step,
            runners: 0,
            queries: Queries {
                values: &[],
                n_head: 1,
                dim: 2,
                positions: &asked,
            },
            cold: &NoCold,
            local: &rows,
            takes_rest: false,
            resident: &[],
            sinks: &[],
        };
        local.update(&request, 0, 2);
        assert_eq!(local.positions, rows.positions);
        assert_eq!(local.keys.len(), rows.positions.len() * 2);
        for (row, position) in local.keys.chunks(2).zip(&rows.positions) {
            assert_eq!(row[0], *position as f32);
        }
        rows.read.into_inner()
    }

    #[test]
    fn only_new_rows_are_read() {
        let mut local = LocalKeys::default();
        let list =
            |parts: &[std::ops::Range<i32>]| parts.iter().cloned().flatten().collect::<Vec<_>>();
        assert_eq!(update(&mut local, list(&[0..4, 50..60]), 59, 1.0, 7), 14);
        assert_eq!(update(&mut local, list(&[0..4, 50..61]), 60, 1.0, 8), 1);
        // The window slides.
        assert_eq!(update(&mut local, list(&[0..4, 54..62]), 61, 1.0, 9), 1);
        // A question is taken back, another one asked.
        assert_eq!(update(&mut local, list(&[0..4, 54..60]), 59, 2.0, 10), 1);
        assert_eq!(local.keys.last(), Some(&2.0));
        assert_eq!(local.until(55, 2).len(), 6 * 2);
        // A step was missed: nothing is taken for granted.
        assert_eq!(update(&mut local, list(&[0..4, 54..61]), 60, 3.0, 12), 11);
        assert!(local.keys.chunks(2).all(|row| row[1] == 3.0));
    }
}
