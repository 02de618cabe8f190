//! Makes sure that kiv rotates keys as llama.cpp does.
//!
//! The hidden states of a single token do not depend on its position: it attends to
//! itself alone. So its cached keys at two positions differ by their rotation only, in
//! every layer, and what the graph says of the rotation can be put to the test.

use crate::error::Error;
use crate::hook::{Engine, SeenLayer};
use crate::llama::Context;
use kiv_numeric::rope::Rotation;
use kiv_policy::RowFormat;

/// Positions that are tried: near, and as far as f32 angles are still good.
const POSITIONS: [i32; 3] = [1, 1009, 65_537];

/// Largest difference of a value that rounding explains, to the largest value of its row.
const TOLERANCE: f32 = 0.03;

/// The rotation of each layer's keys, none where they are not rotated. The context
/// is empty before and after.
///
/// # Errors
/// [`Error::CannotRemap`] if a layer's keys are not what these rotations make of them.
pub(crate) fn rotations(
    context: &mut Context<Engine>,
    layers: &[SeenLayer],
    type_k: RowFormat,
) -> Result<Vec<Option<Rotation>>, Error> {
    let refused = |why: String| Error::CannotRemap { why };
    if type_k.group_len() > 1 {
        return Err(refused(format!(
            "keys in {type_k} cannot be turned; use --cache-type-k f16 (--kv-store may be smaller)"
        )));
    }
    let at_first = first_cells(context, layers, 0)?;
    for position in POSITIONS {
        let cells = first_cells(context, layers, position)?;
        for ((layer, first), is) in layers.iter().zip(&at_first).zip(&cells) {
            let dim = layer.geometry.key_dim;
            let mut turned = first.clone();
            if let Some(rotation) = &layer.rotation {
                let turn = rotation.turn([(0, position)].into_iter());
                turn.apply_first(&mut turned, dim);
            }
            for (turned, is) in turned.chunks_exact(dim).zip(is.chunks_exact(dim)) {
                let largest = is.iter().fold(0f32, |m, v| m.max(v.abs()));
                let wrong = turned.iter().zip(is).find(|(t, i)| {
                    let off = (*t - *i).abs();
                    off.is_nan() || off > TOLERANCE * largest
                });
                if let Some((t, i)) = wrong {
                    return Err(refused(format!(
                        "keys of layer {} are rotated in a way that kiv does not know (at \
                         position {position} a value is {i}, not {t})",
                        layer.geometry.il
                    )));
                }
            }
        }
    }
    Ok(layers.iter().map(|l| l.rotation.clone()).collect())
}

/// Keys of one token at a position, `[n_head_kv, dim]` for each layer.
fn first_cells(
    context: &mut Context<Engine>,
    layers: &[SeenLayer],
    position: i32,
) -> Result<Vec<Vec<f32>>, Error> {
    context.clear();
    let decoded = context.decode(&[0], position, &[true]);
    decoded.map_err(|reason| Error::Decode {
        position: position as usize,
        reason,
    })?;
    let (_, caches) = context.parts();
    let rows = layers.iter().map(|layer| {
        let il = layer.geometry.il;
        let (k, _) = caches.layer(il).ok_or_else(|| Error::Unhookable {
            reason: format!("layer {il} has no K and V cache"),
        })?;
        let mut bytes = Vec::new();
        // An empty cache is filled from its first cell.
        k.read(0, 1, (0, k.cell_bytes()), &mut bytes);
        let mut rows = vec![0f32; layer.geometry.key_dim * layer.geometry.n_head_kv];
        k.format().decode(&bytes, &mut rows);
        Ok(rows)
    });
    let rows = rows.collect();
    context.clear();
    rows
}
