//! How blocks lie in a file of rows.

use crate::manifest::Identity;
use kiv_policy::RowFormat;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// First bytes of a file of rows.
pub(crate) const MAGIC: [u8; 8] = *b"KIVROWS\n";

/// Bytes before the first block.
pub(crate) const HEADER: usize = 64;

/// Bytes of a checksum.
pub(crate) const SUM: usize = 8;

/// K or V rows of one (layer, KV head) within a block's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub layer: usize,
    pub kv_head: usize,
    /// 0 keys, 1 values.
    pub which: usize,
    /// Bytes of the rows; their checksum follows.
    pub len: usize,
    /// Where they begin in the record.
    pub offset: usize,
    pub format: RowFormat,
    pub row_len: usize,
}

/// Where the rows of every (layer, KV head) lie in a block's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordLayout {
    pub(crate) parts: Vec<Part>,
    /// Number of the first part of each layer.
    first_part: Vec<usize>,
    record: usize,
}

impl RecordLayout {
    /// The layout of a context's blocks.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let (mut parts, mut first_part, mut offset) = (Vec::new(), Vec::new(), 0);
        let formats = [identity.key_format, identity.value_format];
        for (layer, l) in identity.layers.iter().enumerate() {
            first_part.push(parts.len());
            for kv_head in 0..l.n_head_kv {
                for (which, row_len) in [l.key_dim, l.value_dim].into_iter().enumerate() {
                    let format = formats[which];
                    let len = identity.block * format.row_bytes(row_len);
                    parts.push(Part {
                        layer,
                        kv_head,
                        which,
                        len,
                        offset,
                        format,
                        row_len,
                    });
                    offset += len + SUM;
                }
            }
        }
        Self {
            parts,
            first_part,
            record: offset,
        }
    }

    /// Bytes of a block with its checksums.
    #[must_use]
    pub fn record_bytes(&self) -> usize {
        self.record
    }

    /// Number of a part.
    pub(crate) fn part(&self, layer: usize, kv_head: usize, which: usize) -> usize {
        let part = self.first_part[layer] + 2 * kv_head + which;
        let found = &self.parts[part];
        assert_eq!((found.layer, found.kv_head), (layer, kv_head), "KV head");
        part
    }
}

/// Checksum of a block's part: equal bytes in another place have another one.
pub(crate) fn sum(bytes: &[u8], block: usize, part: usize) -> u64 {
    xxh3_64_with_seed(bytes, (block as u64) << 32 | part as u64)
}

/// The rows of a part that its checksum follows, if it is right.
pub(crate) fn checked(bytes: &[u8], block: usize, part: usize) -> Option<&[u8]> {
    let (rows, stored) = bytes.split_at_checked(bytes.len().checked_sub(SUM)?)?;
    (stored == sum(rows, block, part).to_le_bytes()).then_some(rows)
}

/// The header of a file of rows: magic, version, number of the file, first
/// block, bytes of a record, and a checksum over all that.
pub(crate) fn header(id: u32, first: usize, layout: &RecordLayout) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&crate::VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&id.to_le_bytes());
    bytes[16..24].copy_from_slice(&(first as u64).to_le_bytes());
    bytes[24..32].copy_from_slice(&(layout.record as u64).to_le_bytes());
    let sum = xxh3_64_with_seed(&bytes[..HEADER - SUM], 0);
    bytes[HEADER - SUM..].copy_from_slice(&sum.to_le_bytes());
    bytes
}
