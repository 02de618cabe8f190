//! Positions that stay within the trained length (`--kv-pos remapped`).
//!
//! Tokens keep counting, and window and micro-batch keep their positions: attention
//! only knows differences. What is far is moved near: whatever is in a slot is seen at
//! the one place right before the window, as InfLLM does (arXiv 2402.04617), and the
//! sinks right before that, as StreamingLLM does (arXiv 2309.17453). So no query ever
//! meets a key at a distance beyond the pool's.
//!
//! A block's keys are sealed as those of the positions `0..block`. The place before the
//! window is called the *base*; it moves when the window does, and then sinks and slots
//! are turned anew. Policies see everything as if the base were 0, cold keys as they
//! are sealed.
//!
//! Before anything has been sealed nothing is moved.

use crate::cells::{CellMap, stretches};
use crate::llama::CacheTensor;
use crate::slot::read_cells;
use kiv_numeric::rope::{Rotation, Turn};
use kiv_policy::{LayerGeometry, RowFormat};
use kiv_pool::PoolLayout;

/// Remapping of all tiered layers.
pub(crate) struct Remap {
    layers: Vec<Layer>,
    sinks: usize,
    block: usize,
}

struct Layer {
    /// `None`: keys are not rotated in this layer.
    rotation: Option<Rotation>,
    /// `None`: the sinks are where they were read, slots may be anywhere.
    moved: Option<Moved>,
}

struct Moved {
    base: i32,
    /// Whether all slots are known to be turned to there.
    slots: bool,
    /// K cells of the sinks as they were read.
    sinks: Vec<u8>,
    /// Takes a sealed block to the base.
    block: Turn,
}

/// How one layer's rows are shown to policies.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    rotation: &'a Rotation,
    base: i32,
    sinks: i32,
}

impl Frame<'_> {
    /// Turns resident keys of these tokens, `[n, dim]`.
    pub fn show_keys(&self, positions: &[i32], keys: &mut [f32], dim: usize) {
        let seen_at = |p: i32| {
            if p < self.sinks {
                self.base - self.sinks + p
            } else {
                p
            }
        };
        let turn = positions.iter().map(|p| {
            let at = seen_at(*p);
            (at, at - self.base)
        });
        self.rotation.turn(turn).apply(keys, dim);
    }

    /// Turns queries, `[n_tokens, n_head, dim]`.
    pub fn show_queries(&self, positions: &[i32], queries: &mut [f32], dim: usize) {
        let of_token = queries.len() / positions.len().max(1);
        for (p, queries) in positions.iter().zip(queries.chunks_exact_mut(of_token)) {
            let turn = self.rotation.turn([(*p, *p - self.base)].into_iter());
            turn.apply_first(queries, dim);
        }
    }
}

impl Remap {
    pub fn new(rotations: Vec<Option<Rotation>>, layout: &PoolLayout) -> Self {
        let layer = |rotation| Layer {
            rotation,
            moved: None,
        };
        Self {
            layers: rotations.into_iter().map(layer).collect(),
            sinks: layout.sinks,
            block: layout.block,
        }
    }

    /// Whether it is the first values of keys that turn, in all layers where they do.
    pub fn turns_first_values(&self) -> bool {
        let mut rotations = self.layers.iter().flat_map(|l| &l.rotation);
        rotations.all(|rotation| rotation.first == 0)
    }

    /// Where sealed blocks are seen.
    fn base(&self, cells: &CellMap) -> i32 {
        (cells.window_first() - self.block) as i32
    }

    /// How a layer's rows are shown, if they are turned at all.
    pub fn frame(&self, layer: usize, cells: &CellMap) -> Option<Frame<'_>> {
        Some(Frame {
            rotation: self.layers[layer].rotation.as_ref()?,
            base: self.base(cells),
            sinks: self.sinks as i32,
        })
    }

    /// What makes keys of whole blocks, of which the first begins at `first`, what is
    /// sealed, or the other way round.
    pub fn seal_turn(&self, layer: usize, first: usize, n: usize, back: bool) -> Option<Turn> {
        let rotation = self.layers[layer].rotation.as_ref()?;
        let pairs = (0..n).map(|i| {
            let (at, sealed) = ((first + i) as i32, (i % self.block) as i32);
            if back { (sealed, at) } else { (at, sealed) }
        });
        Some(rotation.turn(pairs))
    }

    /// What takes a sealed block's keys to where a layer's slots are.
    pub fn slot_turn(&self, layer: usize) -> Option<&Turn> {
        self.layers[layer].moved.as_ref().map(|moved| &moved.block)
    }

    /// Moves a layer's sinks to where the window is now. Whether slots must be filled anew.
    /// Until [`Remap::slots_followed`] they must: whatever fails before that, and however,
    /// may leave some as they were.
    pub fn follow(
        &mut self,
        layer: usize,
        k: &mut CacheTensor,
        geometry: &LayerGeometry,
        cells: &CellMap,
    ) -> bool {
        let base = self.base(cells);
        let Layer { rotation, moved } = &mut self.layers[layer];
        let Some(rotation) = rotation else {
            return false;
        };
        if let Some(moved) = moved.as_mut().filter(|moved| moved.base == base) {
            return !std::mem::take(&mut moved.slots);
        }
        let own = cells.cells(0, self.sinks);
        let sinks = match moved.take() {
            Some(moved) => moved.sinks,
            None => read_cells(k, &own),
        };
        let (format, dim) = (k.format(), geometry.key_dim);
        let n = self.sinks as i32;
        let turn = rotation.turn((0..n).map(|i| (i, base - n + i)));
        let row = format.row_bytes(dim);
        let mut rows = Vec::new();
        for kv_head in 0..geometry.n_head_kv {
            rows.clear();
            for cell in sinks.chunks_exact(k.cell_bytes()) {
                rows.extend_from_slice(&cell[kv_head * row..(kv_head + 1) * row]);
            }
            turn_rows(&turn, format, dim, &mut rows);
            stretches(&own, |at, first, n| {
                let rows = &rows[at * row..(at + n) * row];
                k.write(first, (kv_head * row, row), rows);
            });
        }
        let offsets = 0..self.block as i32;
        *moved = Some(Moved {
            base,
            slots: false,
            sinks,
            block: rotation.turn(offsets.map(|o| (o, base + o))),
        });
        true
    }

    /// All slots of a layer are turned to where [`Remap::follow`] has moved its sinks.
    pub fn slots_followed(&mut self, layer: usize) {
        if let Some(moved) = &mut self.layers[layer].moved {
            moved.slots = true;
        }
    }

    /// Puts a layer's sinks back to where they were read.
    pub fn go_home(&mut self, layer: usize, k: &mut CacheTensor, cells: &CellMap) {
        if let Some(moved) = self.layers[layer].moved.take() {
            let len = k.cell_bytes();
            stretches(&cells.cells(0, self.sinks), |at, first, n| {
                k.write(first, (0, len), &moved.sinks[at * len..(at + n) * len]);
            });
        }
    }

    /// Forgets where things are: the cells are about to be others.
    pub fn forget(&mut self) {
        self.layers.iter_mut().for_each(|l| l.moved = None);
    }
}

/// Turns rows in a cache's type.
pub(crate) fn turn_rows(turn: &Turn, format: RowFormat, dim: usize, rows: &mut Vec<u8>) {
    let mut values = vec![0f32; rows.len() / format.row_bytes(dim) * dim];
    format.decode(rows, &mut values);
    turn.apply(&mut values, dim);
    rows.clear();
    format.encode_into(&values, rows);
}
