//! Where kernels of a search write.

use super::{EXTRA, Part, Search};
use kiv_fastscan::{CENTROIDS, GROUP, MAX_M};
use std::ops::Range;

/// Scores of a tile that a block chooses among.
pub(crate) const TILE: usize = 8192;

/// More keys than are wanted are told: of equal scores the host takes those with the lowest
/// numbers, and outliers of eras are not in the order of theirs.
const MORE: usize = 64;

/// What is asked of a choice among a row's scores, in one or two rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Scores of a row.
    pub n: usize,
    /// How many are wanted.
    pub k: usize,
}

impl Choice {
    /// How many come of one round.
    pub(crate) fn first_out(self) -> usize {
        let whole = (self.n.div_ceil(TILE)).saturating_sub(1);
        whole * self.k.min(TILE) + self.k.min(self.n - whole * TILE)
    }

    /// How many are chosen.
    pub(crate) fn out(self) -> usize {
        self.k.min(self.n)
    }

    pub(crate) fn is_one_round(self) -> bool {
        self.n <= TILE
    }
}

/// A search's memory: what is found, then what is of no use afterwards. All of it in bytes
/// from its beginning.
#[derive(Clone, Debug)]
#[cfg_attr(
    not(any(feature = "cuda", test)),
    expect(
        dead_code,
        reason = "only those who call kernels tell them where to write"
    )
)]
pub struct Layout {
    pub(crate) n_rows: usize,
    pub(crate) table_bytes: usize,
    pub(crate) max_centres: usize,
    /// Lists' scores, and how many are ranked.
    pub(crate) ranked: Choice,
    /// Keys' scores, and how many are told.
    pub(crate) told: Choice,
    /// Keys of opened lists that there is room for.
    pub(crate) room: usize,
    /// Where in its head's rows each part's lists and keys begin.
    pub(crate) places: Vec<[usize; 2]>,
    pub(crate) found_scores: usize,
    pub(crate) found_ids: usize,
    pub(crate) status: usize,
    pub(crate) list_scores: usize,
    pub(crate) key_scores: usize,
    pub(crate) key_ids: usize,
    pub(crate) least: usize,
    pub(crate) tables: usize,
    pub(crate) ranked_scores: usize,
    pub(crate) ranked_names: usize,
    pub(crate) opened: usize,
    pub(crate) first_from: usize,
    pub(crate) first_scores: usize,
    pub(crate) first_names: usize,
    pub(crate) tile_scores: usize,
    pub(crate) tile_names: usize,
    bytes: usize,
}

impl Layout {
    /// Of a search.
    #[must_use]
    pub fn new(search: &Search<'_>) -> Self {
        let n_rows = search.n_heads() * search.group();
        let effort = search.effort;
        let has_eras = search.parts.iter().any(Part::is_era);
        let room = if has_eras {
            effort.probed + effort.probed / 2
        } else {
            0
        };
        let mut places = Vec::new();
        let (mut most_lists, mut most_keys) = (0, 0);
        for head in 0..search.n_heads() {
            let (mut lists, mut keys) = (0, room);
            for part in &search.parts[search.parts_of(head)] {
                places.push([lists, keys]);
                let [on, beyond] = part.outliers;
                lists += part.room.lists.next_multiple_of(GROUP);
                // Outliers among the newest keys have their own keys' places.
                keys += if part.is_era() {
                    on.next_multiple_of(GROUP) + beyond
                } else {
                    part.keys
                };
            }
            most_lists = most_lists.max(lists);
            most_keys = most_keys.max(keys);
        }
        let ranked = Choice {
            n: most_lists,
            k: (effort.probed / search.list).max(1),
        };
        let told = Choice {
            n: most_keys,
            k: effort.kept + MORE,
        };
        let rooms = || search.parts.iter().map(|part| &part.room);
        let max_centres = search.parts.iter().map(Part::centres).max().unwrap_or(0);
        let max = |of: fn(&super::Room) -> usize| rooms().map(of).max().unwrap_or(0);
        let coarse = max(|room| room.coarse) + EXTRA;
        let runs = 2 + (2 * super::MAX_DIM).div_ceil(MAX_M);
        let floats = search.dim + max_centres.next_multiple_of(4) + CENTROIDS + 2 * runs;
        let subquantizers = coarse + max(|room| room.fine) + 2 * search.dim;
        let table_bytes = 4 * floats + CENTROIDS * subquantizers;
        let pairs = search.parts.len() * search.group();
        let mut end = 0;
        let mut words = |n: usize| {
            let at = end;
            end += (4 * n).next_multiple_of(16);
            at
        };
        let ranked_out = ranked.out();
        let tile = [ranked, told].map(|c| if c.is_one_round() { 0 } else { c.first_out() });
        let tile = tile[0].max(tile[1]);
        let of_all = |n: usize| n_rows * n;
        Self {
            n_rows,
            table_bytes,
            max_centres: max_centres.next_multiple_of(4),
            ranked,
            told,
            room,
            places,
            found_scores: words(of_all(told.out())),
            found_ids: words(of_all(told.out())),
            status: words(of_all(2)),
            list_scores: words(of_all(ranked.n)),
            key_scores: words(of_all(told.n)),
            key_ids: words(of_all(told.n)),
            least: words(n_rows),
            tables: words(pairs * table_bytes / 4),
            ranked_scores: words(of_all(ranked_out)),
            ranked_names: words(of_all(ranked_out)),
            opened: words(of_all(4 * ranked_out)),
            first_from: words(of_all(ranked_out)),
            first_scores: words(of_all(ranked_out)),
            first_names: words(of_all(ranked_out)),
            tile_scores: words(of_all(tile)),
            tile_names: words(of_all(tile)),
            bytes: end,
        }
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of what is found, the first ones.
    #[must_use]
    pub fn found_bytes(&self) -> usize {
        self.list_scores
    }

    /// Whether keys that are told may lack some with the same score as those that count: which
    /// of them does is a matter of their numbers.
    pub(crate) fn is_cut_in_a_tie(&self, keys: &[(u32, u32)]) -> bool {
        if self.room == 0 || keys.len() < self.told.k {
            return false;
        }
        let mut scores: Vec<u32> = keys.iter().map(|(score, _)| *score).collect();
        let (worse, worst, _) = scores.select_nth_unstable(MORE);
        worse.iter().min() == Some(worst)
    }

    /// What is nothing before a search.
    pub(crate) fn cleared(&self) -> Range<usize> {
        self.status..self.key_ids
    }
}
