//! Which cell holds which position.

use kiv_pool::PoolLayout;
use std::collections::{BTreeSet, VecDeque};

/// Cells of the positions that are resident, as llama.cpp assigned them.
#[derive(Clone, Debug)]
pub(crate) struct CellMap {
    /// Cells of sinks and of the slots' own first tokens: positions `0..fixed`.
    fixed: Vec<u32>,
    fixed_len: usize,
    /// Cells of positions `window_first..`.
    window: VecDeque<u32>,
    window_first: usize,
}

impl CellMap {
    pub(crate) fn new(layout: &PoolLayout) -> Self {
        Self {
            fixed: Vec::new(),
            fixed_len: layout.window_start(),
            window: VecDeque::new(),
            window_first: layout.window_start(),
        }
    }

    /// Cells as [`CellMap::parts`] told them.
    pub(crate) fn restore(
        layout: &PoolLayout,
        fixed: Vec<u32>,
        window_first: usize,
        window: Vec<u32>,
    ) -> Self {
        Self {
            fixed,
            fixed_len: layout.window_start(),
            window: window.into(),
            window_first,
        }
    }

    /// Cells before the window, the window's first position, and its cells.
    pub(crate) fn parts(&self) -> (&[u32], usize, Vec<u32>) {
        let window = self.window.iter().copied().collect();
        (&self.fixed, self.window_first, window)
    }

    /// The cells that llama.cpp would have assigned had `n` tokens been read in
    /// whole micro-batches: a token gets the lowest free cell, and the oldest
    /// blocks of the window leave when there is no room.
    pub(crate) fn replay(layout: &PoolLayout, n: usize) -> Self {
        let mut map = Self::new(layout);
        let mut free: BTreeSet<u32> = (0..layout.n_cells as u32).collect();
        let mut read = 0;
        while read < n {
            let count = layout.ubatch.min(n - read);
            let missing = (map.used() + count).saturating_sub(layout.n_cells);
            if missing > 0 {
                let leaving = missing.next_multiple_of(layout.block);
                free.extend(map.window.range(..leaving));
                map.evict(leaving);
            }
            let cells: Vec<u32> = free.iter().copied().take(count).collect();
            cells.iter().for_each(|cell| {
                free.remove(cell);
            });
            map.push(&cells);
            read += count;
        }
        map
    }

    /// Positions read so far.
    pub(crate) fn n_past(&self) -> usize {
        if self.fixed.len() < self.fixed_len {
            self.fixed.len()
        } else {
            self.window_first + self.window.len()
        }
    }

    /// Cells in use.
    pub(crate) fn used(&self) -> usize {
        self.fixed.len() + self.window.len()
    }

    /// Whether these cells are different ones, and hold no token.
    pub(crate) fn are_free(&self, cells: &[u32]) -> bool {
        let mut sorted = cells.to_vec();
        sorted.sort_unstable();
        let mut used = self.fixed.iter().chain(&self.window);
        sorted.is_sorted_by(|a, b| a < b) && used.all(|cell| sorted.binary_search(cell).is_err())
    }

    /// Position of the oldest token in the recent window.
    pub(crate) fn window_first(&self) -> usize {
        self.window_first
    }

    /// Adds the cells of the next positions.
    pub(crate) fn push(&mut self, cells: &[u32]) {
        let n = cells.len().min(self.fixed_len - self.fixed.len());
        self.fixed.extend_from_slice(&cells[..n]);
        self.window.extend(&cells[n..]);
    }

    /// Forgets the `n` oldest tokens of the window; their cells are free.
    pub(crate) fn evict(&mut self, n: usize) {
        self.window.drain(..n);
        self.window_first += n;
    }

    /// Leaves `n` positions out: the window begins after them.
    ///
    /// # Panics
    /// If the window is not empty.
    pub(crate) fn skip(&mut self, n: usize) {
        assert!(
            self.window.is_empty(),
            "positions of the window are consecutive"
        );
        self.window_first += n;
    }

    /// Forgets positions from `n_past` on. The caller knows that they are
    /// resident.
    pub(crate) fn truncate(&mut self, n_past: usize) {
        if n_past < self.fixed_len {
            self.fixed.truncate(n_past);
            self.window.clear();
        } else {
            self.window
                .truncate(n_past.saturating_sub(self.window_first));
        }
    }

    /// Cells of resident positions `from..to`, which lie either before the
    /// window or in it.
    pub(crate) fn cells(&self, from: usize, to: usize) -> Vec<u32> {
        if to <= self.fixed_len {
            self.fixed[from..to].to_vec()
        } else {
            let offset = |p: usize| p - self.window_first;
            self.window
                .range(offset(from)..offset(to))
                .copied()
                .collect()
        }
    }

    /// (position, cell) of everything resident, ascending. Slots count as the
    /// tokens that were in them first.
    pub(crate) fn resident(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.local(self.fixed_len)
    }

    /// (position, cell) of everything resident outside the slots, ascending.
    pub(crate) fn local(&self, sinks: usize) -> impl Iterator<Item = (usize, u32)> + '_ {
        let fixed = self.fixed.iter().take(sinks).copied();
        let window = (self.window_first..).zip(self.window.iter().copied());
        (0..).zip(fixed).chain(window)
    }
}

/// Calls `each` with (index into `cells`, first cell, length) for every
/// stretch of consecutive cells: one copy each.
pub(crate) fn stretches(cells: &[u32], mut each: impl FnMut(usize, usize, usize)) {
    let mut at = 0;
    while at < cells.len() {
        let first = cells[at];
        let n = (first..)
            .zip(&cells[at..])
            .take_while(|(want, cell)| want == *cell)
            .count();
        each(at, first as usize, n);
        at += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiv_pool::PoolConfig;

    fn layout() -> PoolLayout {
        PoolLayout::new(&PoolConfig {
            sinks: 2,
            window: 8,
            budget: 4,
            block: 2,
            ubatch: 4,
        })
        .unwrap()
    }

    #[test]
    fn positions_keep_their_cells() {
        let mut map = CellMap::new(&layout());
        map.push(&[0, 1, 2, 3]);
        assert_eq!(map.n_past(), 4);
        map.push(&[4, 5, 6, 7, 8, 9]);
        assert_eq!((map.n_past(), map.window_first()), (10, 6));
        assert_eq!(map.cells(2, 4), [2, 3]);
        map.evict(2);
        map.push(&[6, 7]);
        assert_eq!((map.n_past(), map.window_first()), (12, 8));
        assert_eq!(map.cells(8, 12), [8, 9, 6, 7]);
        let local: Vec<_> = map.local(2).collect();
        assert_eq!(local, [(0, 0), (1, 1), (8, 8), (9, 9), (10, 6), (11, 7)]);
        map.truncate(9);
        assert_eq!(map.n_past(), 9);
    }

    #[test]
    fn cells_in_use_are_not_free() {
        let mut map = CellMap::new(&layout());
        assert!(map.are_free(&[0, 1, 2]));
        map.push(&[0, 1, 2, 3, 4, 5, 9, 7]);
        assert!(map.are_free(&[6, 10, 8, u32::MAX]) && map.are_free(&[]));
        for cells in [&[6, 9][..], &[3], &[6, 8, 6]] {
            assert!(!map.are_free(cells), "{cells:?}");
        }
        map.evict(2);
        assert!(map.are_free(&[9, 7]));
    }

    #[test]
    fn stretches_cover_everything_once() {
        let mut got = Vec::new();
        stretches(&[4, 5, 6, 2, 9, 10], |at, cell, n| got.push((at, cell, n)));
        assert_eq!(got, [(0, 4, 3), (3, 2, 1), (4, 9, 2)]);
    }
}
