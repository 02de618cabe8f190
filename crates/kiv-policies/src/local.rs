//! The keys outside the slots, kept from step to step.

use kiv_numeric::Columns;
use kiv_policy::SelectRequest;

/// Keys of one layer and KV head that are resident in any case, as numbers.
///
/// Decoding steps share nearly all of them: only new rows are read.
pub(crate) struct LocalKeys {
    /// Step of the last update.
    step: Option<u64>,
    positions: Vec<i32>,
    keys: Columns,
    /// Rows that are being read.
    rows: Vec<f32>,
}

/// Products of some queries with the local keys, with as many as any of them sees.
#[derive(Default)]
pub(crate) struct Products {
    /// `[n_queries, n_seen]`.
    all: Vec<f32>,
    n_seen: usize,
}

impl LocalKeys {
    /// None so far, of `dim` values each.
    pub fn new(dim: usize) -> Self {
        Self {
            step: None,
            positions: Vec::new(),
            keys: Columns::new(&[], dim),
            rows: Vec::new(),
        }
    }

    /// Reads what has changed.
    pub fn update(&mut self, request: &SelectRequest<'_>, kv_head: usize) {
        let positions = request.local.positions();
        // Rows from the micro-batch's first position on are new, also where a
        // question was taken back and another one is asked at its positions.
        // If steps were missed there may have been other changes.
        // Layers that share a cache ask again at the same step.
        let follows = self
            .step
            .is_some_and(|step| step == request.step || step + 1 == request.step);
        let first_new = request.queries.positions.first().copied().unwrap_or(0);
        let mut kept = 0;
        if follows {
            let old = positions.partition_point(|p| *p < first_new);
            kept = self.keep(&positions[..old]);
        }
        self.positions.truncate(kept);
        self.positions.extend_from_slice(&positions[kept..]);
        self.keys.truncate(kept);
        self.rows.clear();
        request.local.keys_from(kv_head, kept, &mut self.rows);
        self.keys.extend(&self.rows);
        self.step = Some(request.step);
    }

    /// Moves the keys at these positions to the front, as far as they are all there; says how
    /// many are.
    fn keep(&mut self, positions: &[i32]) -> usize {
        // Mostly nothing has gone.
        let same = self.positions.iter().zip(positions);
        let mut kept = same.take_while(|(a, b)| a == b).count();
        let mut old = kept;
        for position in &positions[kept..] {
            let rest = &self.positions[old..];
            old += rest.partition_point(|p| p < position);
            if self.positions.get(old) != Some(position) {
                break;
            }
            self.keys.copy_within(old, kept);
            self.positions[kept] = *position;
            kept += 1;
            old += 1;
        }
        kept
    }

    /// Multiplies queries, `[n_queries, dim]`, with all keys up to the last position that any
    /// of them sees; `last` has that of each.
    pub fn ask(&self, queries: &[f32], last: &[i32], products: &mut Products) {
        let queries: Vec<&[f32]> = queries.chunks_exact(self.keys.dim()).collect();
        let n_seen = last.iter().map(|last| self.seen(*last)).max().unwrap_or(0);
        products.n_seen = n_seen;
        products.all.resize(queries.len() * n_seen, 0.0);
        self.keys
            .first_products_into(n_seen, &queries, &mut products.all);
    }

    /// Those of one of the queries asked with the keys at positions up to `last`.
    ///
    /// # Panics
    /// If none of them was asked up to there.
    pub fn of<'a>(&self, products: &'a Products, query: usize, last: i32) -> &'a [f32] {
        let products = &products.all[query * products.n_seen..][..products.n_seen];
        &products[..self.seen(last)]
    }

    /// Keys at positions up to `last`.
    fn seen(&self, last: i32) -> usize {
        self.positions.partition_point(|p| *p <= last)
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
    use kiv_policy::{Alone, ColdError, ColdRows, ColdRun, LocalRows, Phase, Queries};
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

    /// The first value of each key, and the second.
    fn products_of(local: &LocalKeys) -> Products {
        let mut products = Products::default();
        local.ask(&[1.0, 0.0, 0.0, 1.0], &[i32::MAX; 2], &mut products);
        products
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
            helpers: &Alone,
        };
        local.update(&request, 0);
        assert_eq!(local.positions, rows.positions);
        assert_eq!(local.keys.n(), rows.positions.len());
        let products = products_of(local);
        let is_its_own = |(p, row): (&i32, &f32)| *row == *p as f32;
        assert!(
            rows.positions
                .iter()
                .zip(local.of(&products, 0, i32::MAX))
                .all(is_its_own)
        );
        rows.read.into_inner()
    }

    #[test]
    fn only_new_rows_are_read() {
        let mut local = LocalKeys::new(2);
        let list =
            |parts: &[std::ops::Range<i32>]| parts.iter().cloned().flatten().collect::<Vec<_>>();
        assert_eq!(update(&mut local, list(&[0..4, 50..60]), 59, 1.0, 7), 14);
        assert_eq!(update(&mut local, list(&[0..4, 50..61]), 60, 1.0, 8), 1);
        // The window slides.
        assert_eq!(update(&mut local, list(&[0..4, 54..62]), 61, 1.0, 9), 1);
        // Another layer with the same cache.
        assert_eq!(update(&mut local, list(&[0..4, 54..62]), 61, 1.0, 9), 1);
        // A question is taken back, another one asked.
        assert_eq!(update(&mut local, list(&[0..4, 54..60]), 59, 2.0, 10), 1);
        let products = products_of(&local);
        assert_eq!(local.of(&products, 1, 59).last(), Some(&2.0));
        assert_eq!(local.of(&products, 1, 55).len(), 6);
        // A step was missed: nothing is taken for granted.
        assert_eq!(update(&mut local, list(&[0..4, 54..61]), 60, 3.0, 12), 11);
        let products = products_of(&local);
        assert!(
            local
                .of(&products, 1, 60)
                .iter()
                .all(|version| *version == 3.0)
        );
    }
}
