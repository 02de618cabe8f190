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
//! ```
//!
//! The form is not promised by llama.cpp. So it is learnt from a dump of the
//! model at hand, and a model whose dump is not of this form - with several
//! caches, or cells that hold more - is one whose cells cannot be put back.

use kiv_wire::{Put, Take, WireError};

/// The form of a model's dumps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DumpForm {
    magic: u32,
    rotations: [u32; 2],
    /// K, then V: type and bytes of a cell of each layer, in model order.
    layers: [Vec<(i32, usize)>; 2],
}

impl DumpForm {
    /// Learns it from a dump of at least one cell.
    ///
    /// # Errors
    /// How it differs.
    pub(crate) fn learn(dump: &[u8]) -> Result<Self, WireError> {
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
        for _ in 0..n {
            take.i32()?;
            expect(take.u32()?, 1)?;
            expect(take.u32()?, 0)?;
        }
        expect(take.u32()?, 0)?;
        let n_layers = take.u32()?;
        let rotations = [take.u32()?, take.u32()?];
        let mut layers = [Vec::new(), Vec::new()];
        for list in &mut layers {
            for _ in 0..n_layers {
                let (kind, len) = (take.i32()?, take.u64()?);
                let len = usize::try_from(len).map_err(|_| WireError::Short)?;
                take.bytes(len.checked_mul(n).ok_or(WireError::Short)?)?;
                list.push((kind, len));
            }
        }
        take.end()?;
        Ok(Self {
            magic,
            rotations,
            layers,
        })
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
    /// If rows are missing or too many.
    pub(crate) fn write(&self, positions: &[i32], rows: &[[Vec<u8>; 2]]) -> Vec<u8> {
        let mut out = Vec::new();
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
        assert_eq!(rows.len(), self.layers[0].len(), "rows of every layer");
        for (which, layers) in self.layers.iter().enumerate() {
            for ((kind, len), rows) in layers.iter().zip(rows) {
                assert_eq!(rows[which].len(), len * positions.len(), "every cell");
                out.put_i32(*kind);
                out.put_u64(*len as u64);
                out.extend_from_slice(&rows[which]);
            }
        }
        out
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
        };
        let rows = [[vec![1; 12], vec![2; 6]], [vec![3; 24], vec![4; 18]]];
        let dump = form.write(&[0, 9, 4], &rows);
        assert_eq!(DumpForm::learn(&dump).unwrap(), form);
        assert_eq!(form.cell_bytes().collect::<Vec<_>>(), [[4, 2], [8, 6]]);
        for n in 0..dump.len() {
            assert!(DumpForm::learn(&dump[..n]).is_err());
        }
        // A second cache follows: sliding windows.
        let two = [&dump[..], &dump[..]].concat();
        assert!(DumpForm::learn(&two).is_err());
    }
}
