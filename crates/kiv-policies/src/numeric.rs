//! Loops that the compiler turns into vector code.

/// Keys scored together by [`tile_logits`].
pub(crate) const TILE: usize = 32;

/// `a * b + c`, fused where the target has it. Without the instruction
/// `mul_add` would call a slow library routine.
#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

/// Inner product; lengths are equal.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut acc = [0f32; LANES];
    let (a_main, a_rest) = a.as_chunks::<LANES>();
    let (b_main, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_main.iter().zip(b_main) {
        for i in 0..LANES {
            acc[i] = fma(x[i], y[i], acc[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    acc.iter().sum::<f32>() + rest
}

/// Inner products of `R` queries with [`TILE`] keys given as columns:
/// `columns[d][i]` is value `d` of key `i`.
#[inline]
pub(crate) fn tile_logits<const R: usize>(
    queries: [&[f32]; R],
    columns: &[[f32; TILE]],
) -> [[f32; TILE]; R] {
    let mut acc = [[0f32; TILE]; R];
    for (d, column) in columns.iter().enumerate() {
        for r in 0..R {
            let q = queries[r][d];
            for i in 0..TILE {
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
pub(crate) fn exp_nonpositive(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that the reduction loses no bits.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let n = (clamped * LOG2_E + 0.5).floor();
    let r = fma(-n, LN2_LOW, fma(-n, LN2_HIGH, clamped));
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = fma(p, r, c);
    }
    // 2^n by its exponent bits; n is in -126..=0 here.
    let power = f32::from_bits(((n as i32 + 127) << 23).cast_unsigned());
    if x < -87.0 { 0.0 } else { p * power }
}

/// `ln(sum of e^x)`, `-inf` of nothing.
pub(crate) fn log_sum_exp(values: &[f32]) -> f32 {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return max;
    }
    let sum: f32 = values.iter().map(|v| exp_nonpositive(v - max)).sum();
    max + sum.ln()
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
        let columns: Vec<[f32; TILE]> =
            k.iter().map(|v| std::array::from_fn(|i| v * i as f32)).collect();
        let [logits] = tile_logits([&q[..]], &columns);
        for (i, logit) in logits.iter().enumerate() {
            assert!((logit - naive * i as f32).abs() < 1e-3);
        }
    }

    #[test]
    fn log_sum_exp_of_extremes() {
        assert_eq!(log_sum_exp(&[]), f32::NEG_INFINITY);
        assert!((log_sum_exp(&[1e4, 1e4]) - (1e4 + 2f32.ln())).abs() < 1e-2);
    }
}
