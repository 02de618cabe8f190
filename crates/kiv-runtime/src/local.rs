//! The resident rows outside the slots, as policies see them.

use crate::cells::CellMap;
use crate::llama::CacheTensor;
use crate::remap::Frame;
use crate::slot::{of_cells, read_cells, read_part};
use crate::tiers::Batch;
use kiv_policy::{LayerGeometry, LocalRows, RowFormat};
use kiv_pool::PoolLayout;
use parking_lot::Mutex;

/// Sinks, window and micro-batch of one layer, read when a policy asks.
pub(crate) struct Local<'a> {
    cache: &'a CacheTensor,
    format: RowFormat,
    key_dim: usize,
    positions: Vec<i32>,
    cells: Vec<u32>,
    frame: Option<Frame<'a>>,
    /// Where cells are in a device's memory, those that were asked for, of all heads: from
    /// which of `cells` on, and their bytes.
    read: Mutex<Option<(usize, Vec<u8>)>>,
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
            read: Mutex::new(None),
        }
    }

    /// Rows of a KV head in `cells[first..]`.
    fn rows(&self, kv_head: usize, first: usize) -> Vec<u8> {
        let (len, cell) = (self.format.row_bytes(self.key_dim), self.cache.cell_bytes());
        let part = (kv_head * len, len);
        let mut rows = Vec::with_capacity((self.cells.len() - first) * len);
        if self.cache.is_host() {
            read_part(self.cache, &self.cells[first..], part, &mut rows);
            return rows;
        }
        let mut read = self.read.lock();
        // Others' heads ask for the same.
        let (from, bytes) = match &mut *read {
            Some(read) if read.0 <= first => read,
            read => read.insert((first, read_cells(self.cache, &self.cells[first..]))),
        };
        let bytes = &bytes[(first - *from) * cell..];
        of_cells(bytes, cell, part, &mut rows);
        rows
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
        let bytes = self.rows(kv_head, first);
        let at = out.len();
        out.resize(at + (self.cells.len() - first) * self.key_dim, 0.0);
        self.format.decode(&bytes, &mut out[at..]);
        if let Some(frame) = &self.frame {
            frame.show_keys(&self.positions[first..], &mut out[at..], self.key_dim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::TestCache;
    use kiv_policy::Phase;
    use kiv_pool::PoolConfig;

    /// Keys are the same where they are in a device's memory, which is asked once for all
    /// heads, and again if somebody wants older ones.
    #[test]
    fn a_device_is_asked_once_for_all_heads() {
        let (n_heads, dim, n_cells) = (4, 2, 64);
        let layer = LayerGeometry {
            il: 0,
            n_head: n_heads,
            n_head_kv: n_heads,
            key_dim: dim,
            value_dim: dim,
            scale: 1.0,
            soft_cap: None,
        };
        let layout = PoolLayout::new(&PoolConfig {
            sinks: 4,
            window: 16,
            budget: 16,
            block: 8,
            ubatch: 4,
        })
        .unwrap();
        let mut map = CellMap::new(&layout);
        map.push(&(0..30).collect::<Vec<u32>>());
        let batch = Batch {
            phase: Phase::Decode,
            step: 0,
            positions: vec![30],
            cells: vec![40],
        };
        let cache = |is_device: bool| {
            let mut cache = TestCache::new(RowFormat::F16, n_heads * dim, n_cells);
            for cell in 0..n_cells {
                let row: Vec<f32> = (0..n_heads * dim).map(|i| (cell * 8 + i) as f32).collect();
                let rows = RowFormat::F16.encode(&row);
                cache.tensor.write(cell, (0, rows.len()), &rows);
            }
            if is_device { cache.of_device() } else { cache }
        };
        let (here, device) = (cache(false), cache(true));
        let local = |cache| Local::new(cache, &layer, &layout, &map, &batch, None);
        let (here, device) = (local(&here.tensor), local(&device.tensor));
        let n = here.positions().len();
        assert_eq!(here.positions().last(), Some(&30));
        // Sinks, the window, and the token itself are apart.
        for (first, questions) in [(n - 1, 1), (n - 3, 2), (n - 2, 0), (0, 3)] {
            let before = TestCache::asked();
            for kv_head in 0..n_heads {
                let (mut wanted, mut got) = (vec![1.0], vec![1.0]);
                here.keys_from(kv_head, first, &mut wanted);
                device.keys_from(kv_head, first, &mut got);
                assert_eq!(wanted.len(), 1 + (n - first) * dim);
                assert_eq!(wanted, got, "head {kv_head} from {first}");
            }
            assert_eq!(TestCache::asked() - before, questions, "from {first}");
        }
    }
}
