//! What every kernel computes, on the CPU: tests compare kernels with these bit
//! by bit, and a simulated device runs them.
//!
//! Sums of packed keys have theirs in `kiv-fastscan`; [`scan`] here is the same
//! from tables of bytes, for the simulated device.

use kiv_numeric::rope::{Pairs, turn_row};
use kiv_policy::RowFormat;

/// Copies rows of one KV head into cells, each `cells[i]` of `cell_bytes`, at
/// `at` within the cell. Rows are converted to f16 if the two types differ.
///
/// # Panics
/// If rows or cells are out of bounds, or types differ and the cache's is not f16.
pub fn scatter(
    rows: &[u8],
    stored: RowFormat,
    cached: RowFormat,
    (cache, cell_bytes, at): (&mut [u8], usize, usize),
    cells: &[u32],
) {
    let row_bytes = rows.len() / cells.len().max(1);
    let mut halves = Vec::new();
    for (row, cell) in rows.chunks_exact(row_bytes.max(1)).zip(cells) {
        let to = &mut cache[*cell as usize * cell_bytes + at..];
        if stored == cached {
            to[..row.len()].copy_from_slice(row);
            continue;
        }
        assert_eq!(cached, RowFormat::F16, "rows are converted to f16 only");
        let mut numbers = vec![0.0; row.len() / stored.group_bytes() * stored.group_len()];
        stored.decode(row, &mut numbers);
        halves.clear();
        RowFormat::F16.encode_into(&numbers, &mut halves);
        to[..halves.len()].copy_from_slice(&halves);
    }
}

/// Turns the first values of a row of halves, in place, by what [`kiv_numeric::rope::Turn`]
/// has for a row; as many values turn as there are angles twice.
///
/// # Panics
/// If the row is shorter than that.
pub fn rerotate(row: &mut [u8], angles: &[[f32; 2]], pairs: Pairs) {
    let row = &mut row[..4 * angles.len()];
    let mut values = vec![0.0; 2 * angles.len()];
    RowFormat::F16.decode(row, &mut values);
    turn_row(&mut values, angles, pairs);
    row.copy_from_slice(&RowFormat::F16.encode(&values));
}

/// Sums of one query's table, `[m, 16]`, for all keys of a packed group, in
/// kiv-fastscan's layout.
///
/// # Panics
/// If the group has not as many bytes as the table.
#[must_use]
pub fn scan(group: &[u8], table: &[u8]) -> [u16; 32] {
    assert_eq!(group.len(), table.len(), "16 bytes per subquantizer");
    std::array::from_fn(|key| {
        let (byte, shift) = (2 * (key % 8) + key % 16 / 8, 4 * (key / 16));
        let runs = group.chunks_exact(16).zip(table.chunks_exact(16));
        runs.map(|(run, row)| u16::from(row[usize::from(run[byte] >> shift & 15)]))
            .sum()
    })
}

/// Inner product of vectors whose length is a multiple of 16: 16 sums side by
/// side, each product and sum rounded once, added by halves. That is
/// `kiv_numeric::dot` where the CPU fuses.
///
/// # Panics
/// If lengths differ or are no multiple of 16.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of one length");
    assert!(a.len().is_multiple_of(16), "vectors are of 16s");
    let mut lanes = [0f32; 16];
    for (a, b) in a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0) {
        for i in 0..16 {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// A float as an unsigned number in the order of [`f32::total_cmp`].
#[must_use]
pub fn ordered(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 1 {
        !bits
    } else {
        bits | 0x8000_0000
    }
}

/// A score as it is compared: [`ordered`], and 0, below all others, of what is no number.
#[must_use]
pub fn entered(score: f32) -> u32 {
    if score.is_nan() { 0 } else { ordered(score) }
}

/// What [`ordered`] made of a float, back.
#[must_use]
pub fn unordered(number: u32) -> f32 {
    f32::from_bits(if number >> 31 == 1 {
        number & 0x7fff_ffff
    } else {
        !number
    })
}

/// Places of the `k` highest scores, ascending; of equal ones the first.
#[must_use]
pub fn top<T: Ord>(scores: &[T], k: usize) -> Vec<u32> {
    let mut places: Vec<u32> = (0..scores.len() as u32).collect();
    places.sort_by(|a, b| scores[*b as usize].cmp(&scores[*a as usize]));
    places.truncate(k);
    places.sort_unstable();
    places
}

/// [`top`] of each tile: places in `scores`.
#[must_use]
pub fn top_of_tiles<T: Ord>(scores: &[T], tile: usize, k: usize) -> Vec<u32> {
    let tiles = scores.chunks(tile).enumerate();
    tiles
        .flat_map(|(i, scores)| {
            top(scores, k)
                .into_iter()
                .map(move |p| p + (i * tile) as u32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiv_numeric::rope::Rotation;

    /// A row of halves at another position.
    fn turned(rotation: &Rotation, row: &[u8], from: i32, to: i32) -> Vec<u8> {
        let (mut row, turn) = (row.to_vec(), rotation.turn([(from, to)].into_iter()));
        rerotate(&mut row, turn.table(), rotation.pairs);
        row
    }

    #[test]
    fn turning_there_and_back_changes_roundings_only() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        for pairs in [Pairs::Neighbours, Pairs::Halves] {
            let rotation = Rotation::plain(pairs, 32, 1e4);
            let mut row = RowFormat::F16.encode(&values);
            for (from, to) in [(987_654, 0), (0, 987_654)] {
                row = turned(&rotation, &row, from, to);
            }
            let mut back = vec![0.0; 64];
            RowFormat::F16.decode(&row, &mut back);
            for (i, (a, b)) in values.iter().zip(&back).enumerate() {
                assert!((a - b).abs() < 3e-3, "{pairs:?} {i}: {a} became {b}");
            }
            // What does not turn is as it was.
            assert_eq!(row[64..], RowFormat::F16.encode(&values)[64..]);
        }
    }

    #[test]
    fn turning_is_what_another_position_would_have_given() {
        let base: Vec<f32> = (0..32).map(|i| (i as f32 * 1.3).cos()).collect();
        let base = RowFormat::F16.encode(&base);
        let rotation = Rotation {
            freq_scale: 0.25,
            factors: (0..16).map(|i| 1.0 + i as f32 / 4.0).collect(),
            ..Rotation::plain(Pairs::Halves, 32, 5e5)
        };
        let far = turned(&rotation, &base, 0, 120_000);
        let near = turned(&rotation, &far, 120_000, 1000);
        let (mut got, mut want) = (vec![0.0; 32], vec![0.0; 32]);
        RowFormat::F16.decode(&near, &mut got);
        RowFormat::F16.decode(&turned(&rotation, &base, 0, 1000), &mut want);
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() < 2e-3, "{got} for {want}");
        }
    }

    #[test]
    fn numbers_are_in_the_order_of_floats() {
        let mut floats = [1.5, -0.0, 0.0, f32::NEG_INFINITY, -3.0, 1e-40, f32::MAX];
        floats.sort_by(f32::total_cmp);
        let numbers = floats.map(ordered);
        assert!(numbers.is_sorted());
        for (float, number) in floats.iter().zip(numbers) {
            assert_eq!(unordered(number).to_bits(), float.to_bits());
        }
    }

    #[test]
    fn the_best_of_the_best_are_the_best() {
        let scores: Vec<u16> = (0..1000u32).map(|i| (i * 7919 % 97) as u16).collect();
        let of_tiles = top_of_tiles(&scores, 128, 40);
        let few: Vec<u16> = of_tiles.iter().map(|p| scores[*p as usize]).collect();
        let best: Vec<u32> = top(&few, 40)
            .iter()
            .map(|p| of_tiles[*p as usize])
            .collect();
        assert_eq!(best, top(&scores, 40));
    }
}
