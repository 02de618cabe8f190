//! A long sequence's cache made from a short one's, for benchmarks of stock
//! llama.cpp: reading a million tokens would take it hours.
//!
//! What llama.cpp saves of a sequence (`llama_state_seq_get_data`) is, as of the
//! pinned version: a magic number and the sequence (8 bytes), the number of
//! streams, the number of cells; for every cell its position, 1 and the sequence;
//! whether V is transposed, the number of layers, two numbers of rotations; then
//! for every layer's K, and for every layer's V, the type, the size of a row in 8
//! bytes, and the rows. All numbers are 4 bytes but for the size.

/// Bytes before the cells.
const HEAD: usize = 16;

/// Bytes of a cell.
const CELL: usize = 12;

/// The state of a sequence of `n` tokens that repeats the rows of `state`, with
/// positions from 0. `None` if `state` is not laid out as described.
pub(super) fn repeat(state: &[u8], n: usize) -> Option<Vec<u8>> {
    let number = |at: usize| Some(u32::from_le_bytes(*state.get(at..)?.first_chunk()?));
    let (streams, have) = (number(8)?, number(12)? as usize);
    if streams != 1 || have == 0 {
        return None;
    }
    for i in 0..have {
        let cell = HEAD + i * CELL;
        if [number(cell)?, number(cell + 4)?, number(cell + 8)?] != [i as u32, 1, 0] {
            return None;
        }
    }
    let mut at = HEAD + have * CELL;
    let is_transposed = number(at)?;
    if is_transposed != 0 {
        return None;
    }
    let mut out = Vec::new();
    out.try_reserve_exact(state.len().checked_mul(n.div_ceil(have))?)
        .ok()?;
    out.extend_from_slice(&state[..12]);
    out.extend_from_slice(&u32::try_from(n).ok()?.to_le_bytes());
    for position in 0..i32::try_from(n).ok()? {
        out.extend_from_slice(&position.to_le_bytes());
        out.extend_from_slice(&1u32.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
    }
    out.extend_from_slice(state.get(at..at + 16)?);
    at += 16;
    while at < state.len() {
        let head = state.get(at..at + 12)?;
        let row = usize::try_from(u64::from_le_bytes(*head.last_chunk()?)).ok()?;
        at += 12;
        let rows = state.get(at..at.checked_add(row.checked_mul(have)?)?)?;
        at += rows.len();
        out.extend_from_slice(head);
        let mut left = n * row;
        while left > 0 {
            let part = left.min(rows.len());
            out.extend_from_slice(&rows[..part]);
            left -= part;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state of `n` cells with one layer, K rows of 4 bytes and V rows of 2.
    fn state(n: u32) -> Vec<u8> {
        let mut out = vec![7; 8];
        out.extend([1u32, n].iter().flat_map(|v| v.to_le_bytes()));
        let cells = (0..n).flat_map(|i| [i, 1, 0]);
        out.extend(cells.flat_map(u32::to_le_bytes));
        out.extend([0u32, 1, 0, 0].iter().flat_map(|v| v.to_le_bytes()));
        for size in [4u64, 2] {
            out.extend(1u32.to_le_bytes());
            out.extend(size.to_le_bytes());
            out.extend((0..n).flat_map(|i| vec![i as u8 % 3; size as usize]));
        }
        out
    }

    #[test]
    fn repeats_are_what_would_have_been_saved() {
        assert_eq!(repeat(&state(3), 10), Some(state(10)));
        assert_eq!(repeat(&state(3), 3), Some(state(3)));
    }

    #[test]
    fn other_layouts_are_refused() {
        let good = state(3);
        assert_eq!(repeat(&good[..good.len() - 1], 9), None);
        for at in [8, 12, HEAD, HEAD + 4, HEAD + 3 * CELL] {
            let mut bad = good.clone();
            bad[at] ^= 4;
            assert_eq!(repeat(&bad, 9), None, "byte {at}");
        }
        assert_eq!(repeat(&[], 9), None);
    }
}
