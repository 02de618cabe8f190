//! The resident rows outside the slots, as policies see them.

use crate::cells::CellMap;
use crate::llama::CacheTensor;
use crate::remap::Frame;
use crate::slot::read_rows;
use crate::tiers::Batch;
use kiv_policy::{LayerGeometry, LocalRows, RowFormat, Rows};
use kiv_pool::PoolLayout;

/// Sinks, window and micro-batch of one layer, read when a policy asks.
pub(crate) struct Local<'a> {
    cache: &'a CacheTensor,
    format: RowFormat,
    key_dim: usize,
    positions: Vec<i32>,
    cells: Vec<u32>,
    frame: Option<Frame<'a>>,
}

impl<'a> Local<'a> {
    pub fn new(
        cache: &'a CacheTensor,
        layer: &LayerGeometry,
        layout: &PoolLayout,
        cells: &CellMap,
        batch: &Batch,
        frame: Option<Frame<'a>>,
    ) -> Self {
        let (positions, cells) = batch.with_older(cells.local(layout.sinks));
        Self {
            cache,
            format: cache.format(),
            key_dim: layer.key_dim,
            positions,
            cells,
            frame,
        }
    }
}

impl LocalRows for Local<'_> {
    fn positions(&self) -> &[i32] {
        &self.positions
    }

    fn keys(&self, kv_head: usize, out: &mut Vec<f32>) {
        out.clear();
        self.keys_from(kv_head, 0, out);
    }

    fn keys_from(&self, kv_head: usize, first: usize, out: &mut Vec<f32>) {
        let nothing = Rows {
            format: self.format,
            row_len: self.key_dim,
            bytes: &[],
        };
        let bytes = read_rows(self.cache, kv_head, &self.cells[first..], nothing);
        let at = out.len();
        out.resize(at + (self.cells.len() - first) * self.key_dim, 0.0);
        self.format.decode(&bytes, &mut out[at..]);
        if let Some(frame) = &self.frame {
            frame.show_keys(&self.positions[first..], &mut out[at..], self.key_dim);
        }
    }
}
