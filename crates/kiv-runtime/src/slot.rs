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

/// Bytes of one KV head in cells, of the same kind as `like`.
pub(crate) fn read_rows(
    cache: &CacheTensor,
    kv_head: usize,
    cells: &[u32],
    like: Rows<'_>,
) -> Vec<u8> {
    let len = like.format.row_bytes(like.row_len);
    let mut out = Vec::new();
    stretches(cells, |_, first, n| {
        cache.read(first, n, (kv_head * len, len), &mut out)
    });
    out
}
