//! Rotary position embedding (RoFormer, arXiv 2104.09864), as far as it takes to
//! turn cached keys to other positions.
//!
//! llama.cpp rotates keys before it caches them. What its graph says of the
//! rotation - dimensions, frequencies, YaRN (arXiv 2309.00071), LongRoPE's factors -
//! is enough to compute a key's angles at any position; a key is turned by the
//! difference of two.

/// How pairs of a row's values are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// Neighbours: (0, 1), (2, 3), … (llama).
    Neighbours,
    /// A value of the first half with one of the second (NeoX, and sections of it
    /// where all of a token's positions are the same).
    Halves,
}

/// The rotation of one layer's keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Which values turn with which.
    pub pairs: Pairs,
    /// First value that is rotated.
    pub first: usize,
    /// Values that are rotated.
    pub n_dims: usize,
    /// The slowest pair turns by about its inverse for each position.
    pub freq_base: f32,
    /// Positions are multiplied by this, as far as `ramp` says.
    pub freq_scale: f32,
    /// Share of YaRN: 0 is none.
    pub ext_factor: f32,
    /// Pairs that turn so often within the trained length are left alone by YaRN.
    pub beta_fast: f32,
    /// Pairs that turn so seldom are scaled in full.
    pub beta_slow: f32,
    /// Tokens that YaRN's model was trained for first.
    pub n_ctx_orig: i32,
    /// Divisors of the frequencies, `[n_dims / 2]` or none.
    pub factors: Vec<f32>,
}

impl Rotation {
    /// The first `n_dims` values, nothing scaled.
    #[must_use]
    pub fn plain(pairs: Pairs, n_dims: usize, freq_base: f32) -> Self {
        Self {
            pairs,
            first: 0,
            n_dims,
            freq_base,
            freq_scale: 1.0,
            ext_factor: 0.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            n_ctx_orig: 4096,
            factors: Vec::new(),
        }
    }

    /// Angles of all pairs at a position, in radians. Computed in f32 and in the
    /// order of ggml's CPU code, whose rounding is part of what is cached: at a
    /// million tokens it is some hundredths of a radian.
    pub fn angles(&self, position: i32, angles: &mut Vec<f64>) {
        let n_dims = self.n_dims as f32;
        let step = self.freq_base.powf(-2.0 / n_dims);
        let (low, high) = self.ramp();
        let mut theta = position as f32;
        for pair in 0..self.n_dims / 2 {
            let far = theta / self.factors.get(pair).copied().unwrap_or(1.0);
            let near = self.freq_scale * far;
            let angle = if self.ext_factor == 0.0 {
                near
            } else {
                let at = (pair as f32 - low) / (high - low).max(0.001);
                let mix = (1.0 - at.clamp(0.0, 1.0)) * self.ext_factor;
                near * (1.0 - mix) + far * mix
            };
            angles.push(f64::from(angle));
            theta *= step;
        }
    }

    /// Pairs between which YaRN goes over from frequencies as they are to scaled ones.
    fn ramp(&self) -> (f32, f32) {
        let n_dims = self.n_dims as f32;
        let turns = |n: f32| {
            let length = self.n_ctx_orig as f32 / (n * 2.0 * std::f32::consts::PI);
            n_dims * length.ln() / (2.0 * self.freq_base.ln())
        };
        (
            turns(self.beta_fast).floor().max(0.0),
            turns(self.beta_slow).ceil().min(n_dims - 1.0),
        )
    }

    /// What turns rows from some positions to others.
    #[must_use]
    pub fn turn(&self, positions: impl Iterator<Item = (i32, i32)>) -> Turn {
        let (mut from, mut to, mut turns) = (Vec::new(), Vec::new(), Vec::new());
        for (old, new) in positions {
            from.clear();
            to.clear();
            self.angles(old, &mut from);
            self.angles(new, &mut to);
            turns.extend(to.iter().zip(&from).map(|(to, from)| {
                let (sin, cos) = (to - from).sin_cos();
                [cos as f32, sin as f32]
            }));
        }
        Turn {
            pairs: self.pairs,
            first: self.first,
            half: self.n_dims / 2,
            turns,
        }
    }
}

/// Turns of rows, one after another.
#[derive(Clone, Debug)]
pub struct Turn {
    pairs: Pairs,
    first: usize,
    half: usize,
    /// `[n_rows][half]` cosines and sines.
    turns: Vec<[f32; 2]>,
}

/// Turns the first values of a row, as many as there are turns (cosine and sine of each
/// pair) twice.
///
/// # Panics
/// If the row is shorter.
pub fn turn_row(row: &mut [f32], turns: &[[f32; 2]], pairs: Pairs) {
    let row = &mut row[..2 * turns.len()];
    match pairs {
        Pairs::Neighbours => {
            for (pair, turn) in row.chunks_exact_mut(2).zip(turns) {
                [pair[0], pair[1]] = rotated([pair[0], pair[1]], *turn);
            }
        }
        Pairs::Halves => {
            let (first, rest) = row.split_at_mut(turns.len());
            for ((a, b), turn) in first.iter_mut().zip(rest).zip(turns) {
                [*a, *b] = rotated([*a, *b], *turn);
            }
        }
    }
}

impl Turn {
    /// Which values turn with which.
    #[must_use]
    pub fn pairs(&self) -> Pairs {
        self.pairs
    }

    /// First value of a row that turns.
    #[must_use]
    pub fn first(&self) -> usize {
        self.first
    }

    /// Values of a row that turn.
    #[must_use]
    pub fn n_dims(&self) -> usize {
        2 * self.half
    }

    /// Rows that there are turns for.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.turns.len() / self.half.max(1)
    }

    /// Cosine and sine of every pair, `[n_rows, n_dims / 2]`.
    #[must_use]
    pub fn table(&self) -> &[[f32; 2]] {
        &self.turns
    }

    /// Turns rows of `dim` values, `[n_rows, dim]`, the first by the first turn.
    ///
    /// # Panics
    /// If there are more rows than turns.
    pub fn apply(&self, rows: &mut [f32], dim: usize) {
        if self.half == 0 {
            return;
        }
        assert!(
            rows.len() / dim <= self.turns.len() / self.half,
            "more rows than turns"
        );
        for (row, turns) in rows
            .chunks_exact_mut(dim)
            .zip(self.turns.chunks_exact(self.half))
        {
            self.apply_one(row, turns);
        }
    }

    /// Turns every row as the first.
    ///
    /// # Panics
    /// If there is no turn.
    pub fn apply_first(&self, rows: &mut [f32], dim: usize) {
        for row in rows.chunks_exact_mut(dim) {
            self.apply_one(row, &self.turns[..self.half]);
        }
    }

    fn apply_one(&self, row: &mut [f32], turns: &[[f32; 2]]) {
        turn_row(&mut row[self.first..], turns, self.pairs);
    }
}

fn rotated([a, b]: [f32; 2], [cos, sin]: [f32; 2]) -> [f32; 2] {
    [a * cos - b * sin, a * sin + b * cos]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(pairs: Pairs) -> Rotation {
        Rotation::plain(pairs, 8, 10_000.0)
    }

    /// A position as one rotation, by the definition.
    fn by_definition(pairs: Pairs, row: &[f32], position: f64) -> Vec<f64> {
        let mut out: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
        for pair in 0..4 {
            let angle = position * 10_000f64.powf(-2.0 * pair as f64 / 8.0);
            let (a, b) = match pairs {
                Pairs::Neighbours => (2 * pair, 2 * pair + 1),
                Pairs::Halves => (pair, pair + 4),
            };
            let (x, y) = (out[a], out[b]);
            out[a] = x * angle.cos() - y * angle.sin();
            out[b] = x * angle.sin() + y * angle.cos();
        }
        out
    }

    #[test]
    fn a_turn_goes_from_one_position_to_another() {
        let row: Vec<f32> = (1..=10).map(|v| v as f32).collect();
        for pairs in [Pairs::Neighbours, Pairs::Halves] {
            let r = rotation(pairs);
            let mut turned = [row.clone(), row.clone()].concat();
            r.turn([(0, 5), (0, 300)].into_iter())
                .apply(&mut turned, 10);
            for (turned, position) in turned.chunks(10).zip([5.0, 300.0]) {
                let expected = by_definition(pairs, &row, position);
                for (t, e) in turned.iter().zip(expected) {
                    assert!((f64::from(*t) - e).abs() < 1e-4, "{turned:?}");
                }
            }
            // There and back; values beyond `n_dims` are never touched.
            r.turn([(5, 0), (300, 0)].into_iter())
                .apply(&mut turned, 10);
            for (t, r) in turned.iter().zip(row.iter().cycle()) {
                assert!((t - r).abs() < 1e-4);
            }
            assert_eq!(turned[8..10], row[8..10]);
        }
    }

    #[test]
    fn yarn_scales_slow_pairs_and_leaves_fast_ones() {
        let yarn = Rotation {
            freq_scale: 0.25,
            ext_factor: 1.0,
            ..rotation(Pairs::Halves)
        };
        let (mut plain, mut scaled) = (Vec::new(), Vec::new());
        rotation(Pairs::Halves).angles(1000, &mut plain);
        yarn.angles(1000, &mut scaled);
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[3] / plain[3] - 0.25).abs() < 1e-6);
    }

    #[test]
    fn factors_divide_frequencies() {
        let long = Rotation {
            factors: vec![1.0, 2.0, 4.0, 8.0],
            ..rotation(Pairs::Halves)
        };
        let (mut plain, mut divided) = (Vec::new(), Vec::new());
        rotation(Pairs::Halves).angles(77, &mut plain);
        long.angles(77, &mut divided);
        for (i, (p, d)) in plain.iter().zip(divided).enumerate() {
            assert!((p / d / f64::from(1 << i) - 1.0).abs() < 1e-6);
        }
    }
}
