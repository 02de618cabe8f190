//! Sums over vectors.

/// Mean of vectors `[n, dim]`.
pub(crate) fn mean(vectors: &[f32], dim: usize) -> Vec<f32> {
    let mut sums = vec![0f64; dim];
    for vector in vectors.chunks_exact(dim) {
        let pairs = sums.iter_mut().zip(vector);
        pairs.for_each(|(s, v)| *s += f64::from(*v));
    }
    let n = (vectors.len() / dim).max(1) as f64;
    sums.iter().map(|s| (s / n) as f32).collect()
}

/// Subtracts `centre` from each vector.
pub(crate) fn subtract(vectors: &mut [f32], centre: &[f32]) {
    for vector in vectors.chunks_exact_mut(centre.len()) {
        vector.iter_mut().zip(centre).for_each(|(v, c)| *v -= c);
    }
}

/// Squared distance of each vector from what its code stands for.
pub(crate) fn squared_errors(
    vectors: &[f32],
    decoded: &[f32],
    dim: usize,
) -> impl Iterator<Item = f32> {
    let pairs = vectors.chunks_exact(dim).zip(decoded.chunks_exact(dim));
    pairs.map(|(v, d)| v.iter().zip(d).map(|(v, d)| (v - d) * (v - d)).sum())
}
