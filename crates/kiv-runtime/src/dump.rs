//! How llama.cpp writes the cells of a sequence (`llama_state_seq_get_data`), so
//! that cells can be put where they are wanted.
//!
//! ```text
//! u32 magic, i32 sequence (0)
//! u32 streams (1), u32 cells
//! per cell: i32 position, u32 sequences (1), i32 sequence (0)
//! u32 V transposed (0), u32 layers, u32 rotation of K, u32 rotation of V
//! K of every layer: i32 type, u64 bytes of a cell, its cells
//! V of every layer: the same
//! what other layers keep: windows that slide, recurrent states
//! ```
//!
//! The form is not promised by llama.cpp. So it is learnt from a dump of the
//! model at hand, and a model whose dump is not of this form - with cells that hold
//! more, say - is one whose cells cannot be put back. What other layers keep is
//! taken as it is; it is what llama.cpp gives when asked for that alone, after the
//! same first two numbers.

use kiv_wire::{Put, Take, WireError};

/// The form of a model's dumps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DumpForm {
    magic: u32,
    rotations: [u32; 2],
    /// K, then V: type and bytes of a cell of each layer, in model order.
    layers: [Vec<(i32, usize)>; 2],
    /// Whether other layers keep something.
    has_rest: bool,
}

/// Bytes before the cells and before what other layers keep.
const START: usize = 8;

/// A dump taken apart.
struct Parsed<'a> {
    form: DumpForm,
    positions: Vec<i32>,
    /// Rows of all cells, as `form.layers`.
    rows: [Vec<&'a [u8]>; 2],
    /// What other layers keep.
    rest: &'a [u8],
}

/// Takes a dump apart. V may be missing in the last layers or in all (MLA).
fn parse(dump: &[u8]) -> Result<Parsed<'_>, WireError> {
    let mut take = Take::new(dump);
    let expect = |got: u32, want: u32| {
        if got == want {
            Ok(())
        } else {
            Err(WireError::invalid("its cache is of another kind"))
        }
    };
    let magic = take.u32()?;
    expect(take.u32()?, 0)?;
    expect(take.u32()?, 1)?;
    let n = take.u32()? as usize;
    let mut positions = Vec::new();
    for _ in 0..n {
        positions.push(take.i32()?);
        expect(take.u32()?, 1)?;
        expect(take.u32()?, 0)?;
    }
    expect(take.u32()?, 0)?;
    let n_layers = take.u32()?;
    let rotations = [take.u32()?, take.u32()?];
    let (mut layers, mut rows) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for (which, (layers, rows)) in layers.iter_mut().zip(&mut rows).enumerate() {
        for _ in 0..n_layers {
            if which == 1 && take.is_empty() {
                break;
            }
            let (kind, len) = (take.i32()?, take.u64()?);
            let len = usize::try_from(len).map_err(|_| WireError::Short)?;
            rows.push(take.bytes(len.checked_mul(n).ok_or(WireError::Short)?)?);
            layers.push((kind, len));
        }
    }
    let rest = take.rest();
    let form = DumpForm {
        magic,
        rotations,
        layers,
        has_rest: !rest.is_empty(),
    };
    Ok(Parsed {
        form,
        positions,
        rows,
        rest,
    })
}

/// A dump of `n` cells, at positions from 0 on, that repeats the rows of `dump`: a
/// long sequence made from a short one, for benchmarks of stock llama.cpp, which
/// would take hours to read a million tokens. `None` if `dump` is not of this form,
/// or there is no memory for it.
pub(crate) fn repeat(dump: &[u8], n: usize) -> Option<Vec<u8>> {
    let Parsed {
        form,
        positions,
        rows,
        rest,
    } = parse(dump).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let have = positions.len();
    if have == 0 || !(0..).zip(&positions).all(|(i, position)| *position == i) {
        return None;
    }
    let mut out = Vec::new();
    out.try_reserve_exact(dump.len().checked_mul(n.div_ceil(have))?)
        .ok()?;
    let positions: Vec<i32> = (0..i32::try_from(n).ok()?).collect();
    form.write_with(&positions, &mut out, |layer, which, out| {
        let rows = rows[which][layer];
        let mut left = rows.len() / have * n;
        while left > 0 {
            let part = left.min(rows.len());
            out.extend_from_slice(&rows[..part]);
            left -= part;
        }
    });
    Some(out)
}

impl DumpForm {
    /// Learns it from a dump of at least one cell, and from the part of it that
    /// llama.cpp gives for layers that do not keep every token.
    ///
    /// # Errors
    /// How it differs.
    pub(crate) fn learn(dump: &[u8], partial: &[u8]) -> Result<Self, WireError> {
        let Parsed { form, rest, .. } = parse(dump)?;
        if form.layers[0].len() != form.layers[1].len() {
            return Err(WireError::Short);
        }
        let same = partial.get(..START) == dump.get(..START) && partial.get(START..) == Some(rest);
        if form.has_rest && !same {
            return Err(WireError::invalid("its other layers are of another kind"));
        }
        Ok(form)
    }

    /// Whether a dump goes on with what other layers keep.
    pub(crate) fn has_rest(&self) -> bool {
        self.has_rest
    }

    /// Number of layers, and bytes of a cell of K and of V in each.
    pub(crate) fn cell_bytes(&self) -> impl Iterator<Item = [usize; 2]> + '_ {
        let [k, v] = &self.layers;
        k.iter().zip(v).map(|(k, v)| [k.1, v.1])
    }

    /// A dump of cells `0..positions.len()` with these positions, and rows
    /// `[layer][K, V]` of all of them.
    ///
    /// # Panics
    /// If rows are missing or too many, or `partial`, what llama.cpp gave for the other
    /// layers, is missing.
    pub(crate) fn write(
        &self,
        positions: &[i32],
        rows: &[[Vec<u8>; 2]],
        partial: &[u8],
    ) -> Vec<u8> {
        assert_eq!(rows.len(), self.layers[0].len(), "rows of every layer");
        let mut out = Vec::new();
        self.write_with(positions, &mut out, |layer, which, out| {
            let rows = &rows[layer][which];
            let len = self.layers[which][layer].1;
            assert_eq!(rows.len(), len * positions.len(), "every cell");
            out.extend_from_slice(rows);
        });
        if self.has_rest {
            out.extend_from_slice(&partial[START..]);
        }
        out
    }

    /// The same with rows that `put` appends: of a layer, K (0) or V (1).
    fn write_with(
        &self,
        positions: &[i32],
        out: &mut Vec<u8>,
        mut put: impl FnMut(usize, usize, &mut Vec<u8>),
    ) {
        out.put_u32(self.magic);
        out.put_i32(0);
        out.put_u32(1);
        out.put_u32(positions.len() as u32);
        for position in positions {
            out.put_i32(*position);
            out.put_u32(1);
            out.put_i32(0);
        }
        out.put_u32(0);
        out.put_u32(self.layers[0].len() as u32);
        self.rotations.iter().for_each(|r| out.put_u32(*r));
        for (which, layers) in self.layers.iter().enumerate() {
            for (layer, (kind, len)) in layers.iter().enumerate() {
                out.put_i32(*kind);
                out.put_u64(*len as u64);
                put(layer, which, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_learnt_again() {
        let form = DumpForm {
            magic: 7,
            rotations: [0, 64],
            layers: [vec![(1, 4), (1, 8)], vec![(8, 2), (8, 6)]],
            has_rest: false,
        };
        let rows = [[vec![1; 12], vec![2; 6]], [vec![3; 24], vec![4; 18]]];
        let dump = form.write(&[0, 9, 4], &rows, &[]);
        assert_eq!(DumpForm::learn(&dump, &[]).unwrap(), form);
        assert_eq!(form.cell_bytes().collect::<Vec<_>>(), [[4, 2], [8, 6]]);
        for n in 0..dump.len() {
            assert!(DumpForm::learn(&dump[..n], &[]).is_err());
        }
        // A second cache follows: sliding windows.
        let two = [&dump[..], &[1, 2, 3]].concat();
        let second = [&dump[..START], &[1, 2, 3]].concat();
        let form = DumpForm::learn(&two, &second).unwrap();
        assert_eq!(form.write(&[0, 9, 4], &rows, &second), two);
        assert!(DumpForm::learn(&two, &[]).is_err());
        assert!(DumpForm::learn(&two, &second[..second.len() - 1]).is_err());
    }

    /// A state of `n` cells with one layer, K rows of 4 bytes and V rows of 2.
    fn state(n: u32) -> Vec<u8> {
        let mut out = vec![7, 7, 7, 7, 0, 0, 0, 0];
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

    /// Bytes before the cells, and of a cell.
    const HEAD: usize = 16;
    const CELL: usize = 12;

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
