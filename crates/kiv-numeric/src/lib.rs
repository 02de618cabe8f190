//! Inner loops of scoring, in plain Rust that the compiler turns into vector
//! code for the CPU that it is told about.

mod columns;
pub mod rope;

pub use columns::Columns;

/// Independent accumulators in reductions.
const LANES: usize = 16;

/// Keys scored together by [`tile_logits`].
pub const TILE: usize = 32;

/// Keys whose accumulators for some queries stay in registers.
const HALF: usize = TILE / 2;

/// Whether [`fma`] rounds once.
pub const FUSES: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

/// `a * b + c`, fused where the target has it. Without the instruction
/// `mul_add` would call a slow library routine.
#[inline(always)]
#[must_use]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    if FUSES { a.mul_add(b, c) } else { a * b + c }
}

/// Sum of all lanes, by halves: one after another would be a chain of waits.
#[inline(always)]
fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Inner product of two vectors of one length.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    let (a_main, a_rest) = a.as_chunks::<LANES>();
    let (b_main, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_main.iter().zip(b_main) {
        for i in 0..LANES {
            acc[i] = fma(x[i], y[i], acc[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sum_lanes(acc) + rest
}

/// Inner products of `R` queries with [`TILE`] keys given as columns:
/// `columns[d][i]` is value `d` of key `i`.
///
/// # Panics
/// If a query is shorter than there are columns.
#[inline]
#[must_use]
pub fn tile_logits<const R: usize>(
    queries: [&[f32]; R],
    columns: &[[f32; TILE]],
) -> [[f32; TILE]; R] {
    // Few enough accumulators to stay in registers, and enough not to wait for each other.
    if R <= 2 {
        parts_of_logits::<R, TILE, TILE>(queries, columns)
    } else {
        parts_of_logits::<R, HALF, TILE>(queries, columns)
    }
}

/// [`tile_logits`] of the first `N` keys, half of a tile or all, appended to `out` query by
/// query.
///
/// # Panics
/// If a query is shorter than there are columns.
// Inlined into large loops its accumulators were kept in memory, which takes three times as
// long.
#[inline(never)]
pub fn first_logits<const R: usize, const N: usize>(
    queries: [&[f32]; R],
    columns: &[[f32; TILE]],
    out: &mut Vec<[f32; N]>,
) {
    out.extend_from_slice(&parts_of_logits::<R, HALF, N>(queries, columns));
}

/// [`tile_logits`] of the first `N` keys, `W` at a time.
#[inline(always)]
fn parts_of_logits<const R: usize, const W: usize, const N: usize>(
    queries: [&[f32]; R],
    columns: &[[f32; TILE]],
) -> [[f32; N]; R] {
    const { assert!(N.is_multiple_of(W) && N <= TILE, "whole parts of a tile") }
    // Lengths known to be equal leave no check in the loop.
    let queries = queries.map(|query| &query[..columns.len()]);
    let mut sums = [[0f32; N]; R];
    for part in 0..N / W {
        let acc = part_of_logits::<R, W>(queries, columns, part);
        for (sums, acc) in sums.iter_mut().zip(acc) {
            sums.as_chunks_mut::<W>().0[part] = acc;
        }
    }
    sums
}

/// Products of queries, as long as there are columns, with `W` keys.
#[inline(always)]
fn part_of_logits<const R: usize, const W: usize>(
    queries: [&[f32]; R],
    columns: &[[f32; TILE]],
    part: usize,
) -> [[f32; W]; R] {
    let mut acc = [[0f32; W]; R];
    for (d, column) in columns.iter().enumerate() {
        let column = &column.as_chunks::<W>().0[part];
        for r in 0..R {
            let q = queries[r][d];
            for i in 0..W {
                acc[r][i] = fma(q, column[i], acc[r][i]);
            }
        }
    }
    acc
}

/// `e^x` for `x <= 0`, relative error below 3e-7; 0 below -87.
///
/// Range reduction by powers of two and a Taylor polynomial: plain
/// arithmetic, so loops over it become vector code, which `f32::exp` does not.
#[inline(always)]
#[must_use]
pub fn exp_nonpositive(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that the reduction loses no bits.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let shifted = fma(clamped, LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma(-n, LN2_LOW, fma(-n, LN2_HIGH, clamped));
    let mut p = 1.0 / 5040.0;
    for c in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = fma(p, r, c);
    }
    // 2^n by its exponent bits; n is in -126..=0 here.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { p * power }
}

/// `ln(sum of e^x)`, `-inf` of nothing.
///
/// Maxima and sums run in lanes: in one accumulator they would be a chain of
/// dependent steps.
#[must_use]
pub fn log_sum_exp(values: &[f32]) -> f32 {
    let (main, rest) = values.as_chunks::<LANES>();
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for chunk in main {
        for i in 0..LANES {
            maxima[i] = larger(maxima[i], chunk[i]);
        }
    }
    let max = maxima
        .into_iter()
        .chain(rest.iter().copied())
        .fold(f32::NEG_INFINITY, larger);
    if max == f32::NEG_INFINITY {
        return max;
    }
    let mut sums = [0f32; LANES];
    for chunk in main {
        for i in 0..LANES {
            sums[i] += exp_nonpositive(chunk[i] - max);
        }
    }
    let rest: f32 = rest.iter().map(|v| exp_nonpositive(v - max)).sum();
    max + (sum_lanes(sums) + rest).ln()
}

/// [`log_sum_exp`] of every column of `[n_rows][n_columns]`.
///
/// # Panics
/// If `n_columns` is 0.
#[must_use]
pub fn column_log_sum_exp(rows: &[f32], n_columns: usize) -> Vec<f32> {
    let mut max = vec![f32::NEG_INFINITY; n_columns];
    for row in rows.chunks_exact(n_columns) {
        max.iter_mut()
            .zip(row)
            .for_each(|(m, v)| *m = if *v > *m { *v } else { *m });
    }
    // A column of nothing but -inf must not become -inf - -inf.
    let base: Vec<f32> = max
        .iter()
        .map(|m| if m.is_finite() { *m } else { 0.0 })
        .collect();
    let mut sum = vec![0f32; n_columns];
    for row in rows.chunks_exact(n_columns) {
        for ((s, v), b) in sum.iter_mut().zip(row).zip(&base) {
            *s += exp_nonpositive(v - b);
        }
    }
    sum.iter().zip(&base).map(|(s, b)| b + s.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exp() {
        for i in 0..=87_000 {
            let x = -(i as f32) / 1000.0;
            let (got, want) = (f64::from(exp_nonpositive(x)), f64::from(x).exp());
            assert!((got - want).abs() <= 3e-7 * want, "e^{x}: {got} for {want}");
        }
        assert_eq!(exp_nonpositive(-88.0), 0.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn dots_agree() {
        let q: Vec<f32> = (0..70).map(|i| (i as f32 * 0.37).sin()).collect();
        let k: Vec<f32> = (0..70).map(|i| (i as f32 * 0.11).cos()).collect();
        let naive: f32 = q.iter().zip(&k).map(|(a, b)| a * b).sum();
        assert!((dot(&q, &k) - naive).abs() < 1e-5);
        let columns: Vec<[f32; TILE]> = k
            .iter()
            .map(|v| std::array::from_fn(|i| v * i as f32))
            .collect();
        let [logits] = tile_logits([&q[..]], &columns);
        for (i, logit) in logits.iter().enumerate() {
            assert!((logit - naive * i as f32).abs() < 1e-3);
        }
    }

    #[test]
    fn log_sum_exp_of_extremes() {
        assert_eq!(log_sum_exp(&[]), f32::NEG_INFINITY);
        let rows = [f32::NEG_INFINITY, 1.0, 2.0, f32::NEG_INFINITY, 3.0, 2.0];
        let columns = column_log_sum_exp(&rows, 3);
        assert_eq!(columns[0], f32::NEG_INFINITY);
        for (column, values) in [(1, [1.0, 3.0]), (2, [2.0, 2.0])] {
            assert!((columns[column] - log_sum_exp(&values)).abs() < 1e-6);
        }
        assert!((log_sum_exp(&[1e4, 1e4]) - (1e4 + 2f32.ln())).abs() < 1e-2);
    }
}
