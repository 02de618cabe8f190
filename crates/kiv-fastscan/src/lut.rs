//! The table of a query, in bytes.

use crate::arch::Table;
use crate::{CENTROIDS, MAX_M, check_m};

/// Why a table of floats cannot be rounded to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LutError {
    /// A NaN or an infinity.
    #[error("table entry {entry} of subquantizer {subquantizer} is not a finite number")]
    NotFinite {
        /// Which subquantizer.
        subquantizer: usize,
        /// Which of its 16 entries.
        entry: usize,
    },
    /// Entries so far apart that their difference, or the sum of the
    /// subquantizers' lowest, is no finite `f32`.
    #[error("the table's entries span more than 32-bit floats can express")]
    Overflow,
}

/// The table of one query in bytes: `score(key) ≈ bias + scale * sum`, where
/// `sum` adds one byte per subquantizer.
///
/// All subquantizers share one scale, which is what makes their bytes
/// summable; each one's lowest entry goes into the bias.
#[derive(Debug, Clone)]
pub struct Lut {
    m: usize,
    /// The highest byte.
    highest: u8,
    table: Table,
    scale: f32,
    bias: f32,
    error: f32,
}

impl Lut {
    /// A table of zeros, `[m, 16]`: every score is 0 until
    /// [`quantize`](Self::quantize).
    ///
    /// # Panics
    ///
    /// Panics if `m` is odd or not within `2..=256`.
    #[must_use]
    #[track_caller]
    pub fn new(m: usize) -> Self {
        Self::with_highest(m, 255)
    }

    /// As [`new`](Self::new), of coarser steps: no byte is above `highest`.
    ///
    /// Kernels are faster where bytes can be added without overflow: from
    /// `highest` 127 on downwards two at a time, from 63 on four at a time. The
    /// [error bound](Self::error_bound) grows as steps do, and still is far
    /// below the error of 4-bit codes.
    ///
    /// # Panics
    ///
    /// Panics if `m` is odd or not within `2..=256`, or if `highest` is 0.
    #[must_use]
    #[track_caller]
    pub fn with_highest(m: usize, highest: u8) -> Self {
        check_m(m);
        assert!(highest > 0, "a table of bytes needs more than one value");
        Self {
            m,
            highest,
            table: Table::new(m / 2),
            scale: 0.0,
            bias: 0.0,
            error: 0.0,
        }
    }

    /// Rounds `table`, `[m, 16]` row-major, to bytes. Allocates nothing.
    ///
    /// # Errors
    ///
    /// [`LutError::NotFinite`] if an entry is a NaN or infinite,
    /// [`LutError::Overflow`] if entries are too far apart. The `Lut` then
    /// stays as it was.
    ///
    /// # Panics
    ///
    /// Panics if `table` has not `16 * m` entries.
    pub fn quantize(&mut self, table: &[f32]) -> Result<(), LutError> {
        self.quantize_by(table, extent)
    }

    /// [`Self::quantize`] of a table each of whose rows ascends or descends: a row's lowest and
    /// highest entry are its first and last, and need not be sought.
    ///
    /// # Errors
    ///
    /// As [`Self::quantize`].
    ///
    /// # Panics
    ///
    /// As [`Self::quantize`].
    pub fn quantize_sorted(&mut self, table: &[f32]) -> Result<(), LutError> {
        let ends = |row: &[f32; CENTROIDS]| {
            // With what is no number anything may be; it is refused.
            let is_known = row.iter().all(|x| x.is_finite());
            debug_assert!(!is_known || row.is_sorted() || row.iter().rev().is_sorted());
            let (first, last) = (row[0], row[CENTROIDS - 1]);
            if first < last {
                (first, last)
            } else {
                (last, first)
            }
        };
        self.quantize_by(table, ends)
    }

    fn quantize_by(
        &mut self,
        table: &[f32],
        extent: impl Fn(&[f32; CENTROIDS]) -> (f32, f32),
    ) -> Result<(), LutError> {
        assert_eq!(table.len(), CENTROIDS * self.m, "a table is [m, 16]");
        let rows = table.as_chunks::<CENTROIDS>().0;
        let mut lows = [0.0f32; MAX_M];
        let mut bias = 0.0f64;
        let mut range = 0.0f32;
        let mut magnitudes = [0u32; CENTROIDS];
        for (low, row) in lows.iter_mut().zip(rows) {
            for (magnitude, x) in magnitudes.iter_mut().zip(row) {
                *magnitude = x.abs().to_bits().max(*magnitude);
            }
            let high;
            (*low, high) = extent(row);
            bias += f64::from(*low);
            range = range.max(high - *low);
        }
        // Bits of floats without sign are in their order, infinity and NaNs last.
        if magnitudes
            .iter()
            .any(|&bits| bits >= f32::INFINITY.to_bits())
        {
            let at = table.iter().position(|x| !x.is_finite());
            let at = at.expect("an entry that is not finite was seen");
            return Err(LutError::NotFinite {
                subquantizer: at / CENTROIDS,
                entry: at % CENTROIDS,
            });
        }
        #[expect(clippy::cast_possible_truncation, reason = "checked right below")]
        let bias = bias as f32;
        if !bias.is_finite() || !(range * self.m as f32).is_finite() {
            return Err(LutError::Overflow);
        }

        // Differences too small for a normal scale are taken for none.
        let scale = range / f32::from(self.highest);
        let scale = if scale < f32::MIN_POSITIVE {
            0.0
        } else {
            scale
        };
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let bytes = self.table.pairs_mut(self.highest).as_flattened_mut();
        let bytes = bytes.as_chunks_mut::<CENTROIDS>().0;
        for ((bytes, row), low) in bytes.iter_mut().zip(rows).zip(lows) {
            *bytes = round(row, low, inverse);
        }

        // Half a step per subquantizer. On top come roundings of f32, of unit
        // u = 2^-24: of an entry less the lowest, of the inverse, of their
        // product (3 * 255 u of a step), and in `score` of the product, the sum
        // and the bias (2 * 255 m u steps, 2 u of the bias): below 1/1000 of a
        // step per subquantizer, and 2^-23 of the bias.
        let m = self.m as f32;
        let flat = if scale > 0.0 { 0.0 } else { m * range };
        self.error = 0.501 * m * scale + flat + f32::EPSILON * bias.abs();
        self.scale = scale;
        self.bias = bias;
        Ok(())
    }

    /// Subquantizers.
    #[must_use]
    pub fn m(&self) -> usize {
        self.m
    }

    /// What one unit of a sum is worth.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The score of sum 0.
    #[must_use]
    pub fn bias(&self) -> f32 {
        self.bias
    }

    /// The byte of a centroid.
    ///
    /// # Panics
    ///
    /// Panics if there is no such subquantizer or centroid.
    #[must_use]
    pub fn entry(&self, subquantizer: usize, centroid: usize) -> u8 {
        assert!(centroid < CENTROIDS, "a subquantizer has 16 centroids");
        self.table.pairs()[subquantizer / 2][subquantizer % 2 * CENTROIDS + centroid]
    }

    /// The score that a sum stands for.
    #[must_use]
    pub fn score(&self, sum: u16) -> f32 {
        self.bias + self.scale * f32::from(sum)
    }

    /// The smallest sum whose score is at least `score`; `u16::MAX`, which no
    /// key reaches, if there is none.
    #[must_use]
    pub fn sum_for(&self, score: f32) -> u16 {
        // Right but for rounding, which is nothing unless the bias is huge.
        let near = ((score - self.bias) / self.scale).ceil();
        let near = near.clamp(0.0, f32::from(u16::MAX)) as u16;
        let reaches = |sum: u16| self.score(sum) >= score;
        if reaches(near) && (near == 0 || !reaches(near - 1)) {
            return near;
        }
        let (mut low, mut high) = (0u16, u16::MAX);
        while low < high {
            let middle = low + (high - low) / 2;
            if reaches(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    /// How far [`score`](Self::score) may be from the sum of the floats that
    /// were given: `m * scale / 2`, and next to it the rounding errors of `f32`.
    #[must_use]
    pub fn error_bound(&self) -> f32 {
        self.error
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }
}

/// Lowest and highest of 16 floats, as a tree that vectorizes.
fn extent(row: &[f32; CENTROIDS]) -> (f32, f32) {
    let lower = |a: f32, b: f32| if a < b { a } else { b };
    let higher = |a: f32, b: f32| if a > b { a } else { b };
    let (mut low, mut high) = (*row, *row);
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            low[i] = lower(low[i], low[i + width]);
            high[i] = higher(high[i], high[i + width]);
        }
    }
    (low[0], high[0])
}

/// Steps above `low`. Not inlined, because then rows are vectorized across each
/// other, by gathers, which is several times slower.
#[inline(never)]
fn round(row: &[f32; CENTROIDS], low: f32, inverse: f32) -> [u8; CENTROIDS] {
    // From 2^23 on floats are whole numbers, and their lowest bits say which:
    // adding rounds.
    row.map(|x| ((x - low) * inverse + 8_388_608.0).to_bits() as u8)
}
