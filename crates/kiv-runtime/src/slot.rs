//! Rows of blocks in the cells of slots.

use crate::cells::{CellMap, stretches};
use crate::error::Error;
use crate::llama::{CacheTensor, CellPart};
use crate::remap::turn_rows;
use kiv_numeric::rope::Turn;
use kiv_policy::{BlockId, Rows};
use kiv_pool::PoolLayout;
use kiv_store::{ColdTier, Transcoder};
use std::borrow::Cow;

/// The cells of a slot.
pub(crate) struct Slot {
    pub cells: Vec<u32>,
}

impl Slot {
    pub(crate) fn new(layout: &PoolLayout, cells: &CellMap, slot: usize) -> Self {
        let first = layout.sinks + slot * layout.block;
        Self {
            cells: cells.cells(first, first + layout.block),
        }
    }

    /// Copies a block of a (layer, KV head) in, its keys turned if need be.
    pub(crate) fn fill(
        &self,
        store: &dyn ColdTier,
        transcoder: &mut Transcoder,
        (layer, kv_head, block): (usize, usize, BlockId),
        [k, v]: &mut [CellPart<'_>; 2],
        turn: Option<&Turn>,
    ) -> Result<(), Error> {
        let keys = store.keys(layer, kv_head, block, 1)?;
        let values = store.values(layer, kv_head, block, 1)?;
        let keys = transcoder.decode(keys.rows(), k.format());
        write_keys(k, &self.cells, keys, turn);
        let values = transcoder.decode(values.rows(), v.format());
        write_rows(v, &self.cells, values);
        Ok(())
    }
}

/// Copies a block's keys into cells, turned if need be.
pub(crate) fn write_keys(k: &mut CellPart<'_>, cells: &[u32], rows: Rows<'_>, turn: Option<&Turn>) {
    let bytes = &turned(rows, turn);
    write_rows(k, cells, Rows { bytes, ..rows });
}

/// Bytes of rows, turned if need be.
pub(crate) fn turned<'a>(rows: Rows<'a>, turn: Option<&Turn>) -> Cow<'a, [u8]> {
    let mut bytes = Cow::Borrowed(rows.bytes);
    if let Some(turn) = turn {
        turn_rows(turn, rows.format, rows.row_len, bytes.to_mut());
    }
    bytes
}

/// Bytes of a row of one KV head.
pub(crate) fn row_bytes(cache: &CacheTensor, dim: usize) -> usize {
    cache.format().row_bytes(dim)
}

/// Copies rows of one KV head into cells.
pub(crate) fn write_rows(part: &mut CellPart<'_>, cells: &[u32], rows: Rows<'_>) {
    let len = rows.format.row_bytes(rows.row_len);
    stretches(cells, |at, first, n| {
        part.write(first, &rows.bytes[at * len..(at + n) * len]);
    });
}

/// Appends bytes `offset..offset + len` of each of these cells.
pub(crate) fn read_part(
    cache: &CacheTensor,
    cells: &[u32],
    part: (usize, usize),
    out: &mut Vec<u8>,
) {
    stretches(cells, |_, first, n| cache.read(first, n, part, out));
}

/// Whole cells, all KV heads', one after another.
pub(crate) fn read_cells(cache: &CacheTensor, cells: &[u32]) -> Vec<u8> {
    let cell_bytes = cache.cell_bytes();
    let first = cells.iter().copied().min().unwrap_or(0);
    let end = cells.iter().copied().max().map_or(0, |last| last + 1);
    let span = (end - first) as usize;
    let mut out = Vec::with_capacity(cells.len() * cell_bytes);
    if cache.is_host() || span > 2 * cells.len() {
        read_part(cache, cells, (0, cell_bytes), &mut out);
        return out;
    }
    // A device is asked once, also for some between them that nobody wants.
    let mut all = Vec::new();
    cache.read(first as usize, span, (0, cell_bytes), &mut all);
    for cell in cells {
        let at = (cell - first) as usize * cell_bytes;
        out.extend_from_slice(&all[at..at + cell_bytes]);
    }
    out
}

/// Bytes `offset..offset + len` of whole cells that have been read, appended to `out`.
pub(crate) fn of_cells(
    cells: &[u8],
    cell_bytes: usize,
    (offset, len): (usize, usize),
    out: &mut Vec<u8>,
) {
    for cell in cells.chunks_exact(cell_bytes) {
        out.extend_from_slice(&cell[offset..offset + len]);
    }
}

/// Rows of some cells, of any KV head.
///
/// Where they are in a device's memory, all heads' are read together: each question waits for
/// the device, for longer than the bytes take.
pub(crate) enum CellRows<'a> {
    Here(&'a CacheTensor, &'a [u32]),
    Read { bytes: Vec<u8>, cell_bytes: usize },
}

impl<'a> CellRows<'a> {
    pub(crate) fn new(cache: &'a CacheTensor, cells: &'a [u32]) -> Self {
        if cache.is_host() {
            return Self::Here(cache, cells);
        }
        Self::Read {
            bytes: read_cells(cache, cells),
            cell_bytes: cache.cell_bytes(),
        }
    }

    /// Appends bytes `offset..offset + len` of each cell.
    pub(crate) fn part(&self, part: (usize, usize), out: &mut Vec<u8>) {
        match self {
            Self::Here(cache, cells) => read_part(cache, cells, part, out),
            Self::Read { bytes, cell_bytes } => of_cells(bytes, *cell_bytes, part, out),
        }
    }
}

/// Copies rows of several KV heads, `[n_heads][cells][len]` bytes, the first of which is
/// `kv_head`, into cells: a device is told of all of them at once.
pub(crate) fn write_heads(
    cache: &mut CacheTensor,
    cells: &[u32],
    (kv_head, len): (usize, usize),
    rows: &[Vec<u8>],
) {
    let mut bytes = Vec::with_capacity(rows.iter().map(Vec::len).sum());
    for cell in 0..cells.len() {
        for rows in rows {
            bytes.extend_from_slice(&rows[cell * len..(cell + 1) * len]);
        }
    }
    let all = rows.len() * len;
    stretches(cells, |at, first, n| {
        let bytes = &bytes[at * all..(at + n) * all];
        cache.write(first, (kv_head * len, all), bytes);
    });
}

/// Bytes of one KV head in cells, of the same kind as `like`.
pub(crate) fn read_rows(
    cache: &CacheTensor,
    kv_head: usize,
    cells: &[u32],
    like: Rows<'_>,
) -> Vec<u8> {
    let len = like.format.row_bytes(like.row_len);
    let mut out = Vec::new();
    read_part(cache, cells, (kv_head * len, len), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::TestCache;
    use kiv_policy::RowFormat;

    /// What is written for some heads is what is read, here and on a device, which is asked
    /// once, or, where cells are far apart, as often as they are.
    #[test]
    fn heads_are_written_and_read_together() {
        let (n_heads, dim) = (3, 2);
        let row = |head: usize, cell: usize| [head as f32, cell as f32];
        let rows = |head: usize, cells: &[u32]| {
            let values = cells.iter().flat_map(|cell| row(head, *cell as usize));
            values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()
        };
        for (is_device, far) in [(false, false), (true, false), (true, true)] {
            let mut cache = TestCache::new(RowFormat::F32, n_heads * dim, 40);
            if is_device {
                cache = cache.of_device();
            }
            let len = row_bytes(&cache.tensor, dim);
            let cells = if far { [39, 2, 3, 4] } else { [7, 2, 3, 4] };
            let given: Vec<Vec<u8>> = (1..3).map(|head| rows(head, &cells)).collect();
            write_heads(&mut cache.tensor, &cells, (1, len), &given);
            let before = TestCache::asked();
            let read = CellRows::new(&cache.tensor, &cells);
            for head in 0..n_heads {
                let mut got = Vec::new();
                read.part((head * len, len), &mut got);
                let wanted = match head {
                    0 => vec![0; given[0].len()],
                    _ => given[head - 1].clone(),
                };
                assert_eq!(got, wanted, "head {head}");
            }
            let asked = usize::from(is_device) * (1 + usize::from(far));
            assert_eq!(TestCache::asked() - before, asked);
            // And nothing else has changed.
            let others: Vec<u32> = (0..40).filter(|cell| !cells.contains(cell)).collect();
            assert!(read_cells(&cache.tensor, &others).iter().all(|b| *b == 0));
        }
    }
}
