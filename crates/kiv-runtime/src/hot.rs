//! What of a sequence is on the compute device: which cell holds what, and the
//! rows themselves.
//!
//! Cells are put back where they were. llama.cpp always gives a new token the
//! lowest free cell (nothing is ever freed below its search position without
//! moving that back), so a sequence goes on in the same cells, and attention
//! adds in the same order, as if it had never been away.

use crate::cells::CellMap;
use crate::dump::DumpForm;
use crate::error::Error;
use crate::llama::{Caches, Context, GraphHook};
use crate::slot::read_cells;
use kiv_policy::Geometry;
use kiv_pool::{NONE, PoolLayout, SlotTable};
use kiv_wire::{Put, Take, WireError};

/// Version of [`Hot::put`].
const VERSION: u32 = 1;

/// Everything on the device, and what belongs to it.
pub(crate) struct Hot {
    /// Micro-batches so far.
    pub step: u64,
    pub cells: CellMap,
    /// `[layer][kv_head]`.
    pub slots: Vec<Vec<SlotTable>>,
    /// `[layer][K, V]`: rows of all cells in use, by cell, all KV heads.
    pub rows: Vec<[Vec<u8>; 2]>,
    /// What layers keep that do not keep every token, as llama.cpp gives it.
    pub partial: Vec<u8>,
    /// Logits after the last token, if they are known.
    pub logits: Vec<f32>,
}

/// (cell, position) of all cells in use, by cell.
pub(crate) fn by_cell(cells: &CellMap) -> Vec<(usize, usize)> {
    let mut used: Vec<(usize, usize)> = cells.resident().map(|(p, c)| (c as usize, p)).collect();
    used.sort_unstable();
    used
}

/// Rows of all cells in use, by cell.
pub(crate) fn read_rows(
    geometry: &Geometry,
    cells: &CellMap,
    caches: &mut Caches,
) -> Result<Vec<[Vec<u8>; 2]>, Error> {
    let used: Vec<u32> = by_cell(cells)
        .iter()
        .map(|(cell, _)| *cell as u32)
        .collect();
    let layers = geometry.layers.iter().map(|layer| {
        let (k, v) = caches.layer(layer.il).ok_or_else(|| Error::Unhookable {
            reason: format!("layer {} has no K and V cache", layer.il),
        })?;
        Ok([&*k, &*v].map(|cache| read_cells(cache, &used)))
    });
    layers.collect()
}

impl Hot {
    /// Puts all cells into the cache of a context, in place of what is there.
    pub(crate) fn place<H: GraphHook>(
        &self,
        context: &mut Context<H>,
        form: &DumpForm,
    ) -> Result<(), String> {
        let used = by_cell(&self.cells);
        let n_cells = used.last().map_or(0, |(cell, _)| cell + 1);
        if n_cells == 0 {
            context.clear();
            return Ok(());
        }
        // A dump has no gaps: they are filled with tokens after the last, which
        // are taken out again.
        let n_past = self.cells.n_past();
        let mut positions = vec![None; n_cells];
        for (cell, position) in &used {
            positions[*cell] = Some(*position);
        }
        let mut beyond = n_past..;
        let positions: Vec<i32> = positions
            .into_iter()
            .map(|p| p.or_else(|| beyond.next()).unwrap_or(0) as i32)
            .collect();
        let sizes = form.cell_bytes();
        let rows: Vec<[Vec<u8>; 2]> = self
            .rows
            .iter()
            .zip(sizes)
            .map(|(rows, lens)| {
                let mut both = lens.map(|len| vec![0; n_cells * len]);
                for ((out, rows), len) in both.iter_mut().zip(rows).zip(lens) {
                    for ((cell, _), row) in used.iter().zip(rows.chunks_exact(len)) {
                        out[cell * len..(cell + 1) * len].copy_from_slice(row);
                    }
                }
                both
            })
            .collect();
        context.undump(&form.write(&positions, &rows, &self.partial))?;
        if n_cells > used.len() && !context.free(n_past, None) {
            return Err("llama.cpp could not free cells".to_owned());
        }
        Ok(())
    }

    /// As bytes.
    pub(crate) fn put(&self) -> Vec<u8> {
        let Self {
            step,
            cells,
            slots,
            rows,
            partial,
            logits,
        } = self;
        let mut out = Vec::new();
        out.put_u32(VERSION);
        out.put_u64(*step);
        let (fixed, window_first, window) = cells.parts();
        out.put_u32s(fixed);
        out.put_u64(window_first as u64);
        out.put_u32s(&window);
        for table in slots.iter().flatten() {
            out.put_u32s(table.blocks());
            out.put_u64s(table.last_wanted());
        }
        for rows in rows.iter().flatten() {
            out.put_u8s(rows);
        }
        out.put_f32s(logits);
        if !partial.is_empty() {
            out.put_u8s(partial);
        }
        out
    }

    /// Reads what [`Hot::put`] wrote, for a sequence of `n_tokens` of which
    /// `n_blocks` are sealed.
    pub(crate) fn take(
        bytes: &[u8],
        (geometry, layout, form): (&Geometry, &PoolLayout, &DumpForm),
        n_tokens: usize,
        n_blocks: usize,
    ) -> Result<Self, WireError> {
        let wrong = |what: &str| Err(WireError::invalid(what));
        let mut take = Take::new(bytes);
        if take.u32()? != VERSION {
            return wrong("a hot window of another version");
        }
        let step = take.u64()?;
        let fixed = take.u32s()?;
        let window_first = usize::try_from(take.u64()?).map_err(|_| WireError::Short)?;
        let window = take.u32s()?;
        let mut seen = [&fixed[..], &window[..]].concat();
        let n_used = seen.len();
        seen.sort_unstable();
        seen.dedup();
        let sealed_to = if n_blocks == 0 {
            layout.window_start()
        } else {
            layout.sinks + n_blocks * layout.block
        };
        let full = fixed.len() == layout.window_start();
        let n_past = if full {
            window_first.saturating_add(window.len())
        } else {
            fixed.len()
        };
        if seen.len() != n_used
            || seen
                .last()
                .is_some_and(|cell| *cell as usize >= layout.n_cells)
            || fixed.len() > layout.window_start()
            || (!full && !window.is_empty())
            || window_first != sealed_to
            || n_past != n_tokens
        {
            return wrong("cells that cannot be");
        }
        let cells = CellMap::restore(layout, fixed, window_first, window);
        let mut slots = Vec::new();
        for layer in &geometry.layers {
            let mut heads = Vec::new();
            for _ in 0..layer.n_head_kv {
                let (blocks, last_wanted) = (take.u32s()?, take.u64s()?);
                let n_known = n_blocks.max(layout.n_slots);
                let mut seen = blocks.clone();
                seen.sort_unstable();
                seen.dedup();
                let distinct = seen.len();
                // The last slot may stand for what is in none.
                if blocks.last() == Some(&NONE) {
                    seen.pop();
                }
                if distinct != layout.n_slots
                    || blocks.len() != layout.n_slots
                    || last_wanted.len() != layout.n_slots
                    || last_wanted.iter().any(|at| *at > step)
                    || seen.last().is_some_and(|b| *b as usize >= n_known)
                {
                    return wrong("slots that cannot be");
                }
                heads.push(SlotTable::restore(blocks, last_wanted));
            }
            slots.push(heads);
        }
        let mut rows = Vec::new();
        for lens in form.cell_bytes() {
            let mut both = [Vec::new(), Vec::new()];
            for (rows, len) in both.iter_mut().zip(lens) {
                *rows = take.byte_list()?.to_vec();
                if rows.len() != n_used * len {
                    return wrong("rows of another length");
                }
            }
            rows.push(both);
        }
        let logits = take.f32s()?;
        let partial = if form.has_rest() {
            take.byte_list()?.to_vec()
        } else {
            Vec::new()
        };
        take.end()?;
        Ok(Self {
            step,
            cells,
            slots,
            rows,
            partial,
            logits,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persist::slots_at_home;
    use kiv_policy::{LayerGeometry, RowFormat};
    use kiv_pool::PoolConfig;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn shape() -> (Geometry, PoolLayout, DumpForm) {
        let layout = PoolLayout::new(&PoolConfig {
            sinks: 2,
            window: 40,
            budget: 8,
            block: 4,
            ubatch: 16,
        });
        let layout = layout.unwrap();
        let layer = |il| LayerGeometry {
            il,
            n_head: 2,
            n_head_kv: 2,
            key_dim: 2,
            value_dim: 1,
            scale: 1.0,
            soft_cap: None,
        };
        let geometry = Geometry {
            layers: vec![layer(0), layer(1)],
            block: layout.block,
            n_slots: layout.n_slots,
            first_position: layout.sinks,
            key_format: RowFormat::F16,
            value_format: RowFormat::F16,
            n_threads: 1,
        };
        // A dump of one cell: 8 bytes of K, 4 of V.
        let mut dump = Vec::new();
        for word in [7u32, 0, 1, 1, 0, 1, 0, 0, 2, 0, 0] {
            dump.put_u32(word);
        }
        for len in [8, 8, 4, 4] {
            dump.put_i32(1);
            dump.put_u64(len);
            dump.resize(dump.len() + len as usize, 9);
        }
        (geometry, layout, DumpForm::learn(&dump, &[]).unwrap())
    }

    #[test]
    fn what_was_put_is_taken_and_damage_is_refused() {
        let (geometry, layout, form) = shape();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for n in [0, 1, 9, 10, 200, 256, 300, 1001] {
            let cells = CellMap::replay(&layout, n);
            let used = by_cell(&cells).len();
            let n_blocks = if n > layout.n_cells {
                (cells.window_first() - layout.sinks) / layout.block
            } else {
                0
            };
            let hot = Hot {
                step: 9,
                slots: slots_at_home(&geometry),
                cells,
                rows: vec![[vec![1; 8 * used], vec![2; 4 * used]]; 2],
                partial: Vec::new(),
                logits: vec![0.5; 3],
            };
            let bytes = hot.put();
            let take = |bytes: &[u8]| {
                let hot = Hot::take(bytes, (&geometry, &layout, &form), n, n_blocks);
                hot.map(|hot| hot.put())
            };
            assert_eq!(take(&bytes).unwrap(), bytes, "{n} tokens");
            for cut in [0, 3, 11, bytes.len() / 2, bytes.len() - 1] {
                assert!(take(&bytes[..cut]).is_err());
            }
            assert!(Hot::take(&bytes, (&geometry, &layout, &form), n + 1, n_blocks).is_err());
            for _ in 0..300 {
                let mut bad = bytes.clone();
                let at = rng.random_range(0..bad.len());
                bad[at] ^= 1 << rng.random_range(0..8);
                // Refused, or other numbers of the same form.
                if let Ok(put) = take(&bad) {
                    assert_eq!(put, bad);
                }
            }
        }
    }
}
