//! Rows that stand for tokens which are not resident.
//!
//! A policy may know what the tokens that are in no slot would add to a decoded token's
//! attention: for every query head one logit and one value ([`Rest`]). Attention is
//! llama.cpp's own, and takes keys, not logits; but of a decoded token there is one query
//! for each head of a group, fewer than a key has values, so that a key can be found whose
//! products with them are any numbers that are wanted. Every cell of a slot that was given
//! up gets such a key: it has its logit for one query head, and next to no weight for the
//! others of the group.

use kiv_policy::{LayerGeometry, Rest, RowFormat};

/// Nats below the smallest rest at which a row has no weight.
const NOTHING: f32 = 14.0;

/// Largest error of a logit, in nats.
const CLOSE: f32 = 0.02;

/// K and V rows, `[n_cells, key_dim]` and `[n_cells, value_dim]`, that are to the queries
/// `[group, key_dim]` of one KV head what a rest says; `None` if there are none: queries
/// that are all but parallel leave no choice.
pub(crate) fn rows(
    geometry: &LayerGeometry,
    format: RowFormat,
    queries: &[f32],
    rest: &Rest,
    n_cells: usize,
) -> Option<[Vec<f32>; 2]> {
    let (group, dim, value_dim) = (geometry.group(), geometry.key_dim, geometry.value_dim);
    let least = rest.logits.iter().copied().filter(|l| l.is_finite());
    let least = least.reduce(f32::min)?;
    if n_cells < group || rest.logits.len() != group || rest.values.len() != group * value_dim {
        return None;
    }
    let queries: Vec<&[f32]> = queries.chunks_exact(dim).collect();
    let gram = Gram::new(&queries, geometry.scale)?;
    let mut keys = Vec::with_capacity(n_cells * dim);
    let mut values = Vec::with_capacity(n_cells * value_dim);
    let mut wanted = vec![0.0; group];
    for own in 0..group {
        // Cells own, own + group, …
        let copies = (n_cells - own).div_ceil(group) as f32;
        for (head, wanted) in wanted.iter_mut().enumerate() {
            let logit = rest.logits[head];
            let is_own = head == own && logit.is_finite();
            let logit = if is_own { logit - copies.ln() } else { least - NOTHING };
            *wanted = match geometry.soft_cap {
                Some(cap) => cap * (logit / cap).clamp(-0.999, 0.999).atanh(),
                None => logit,
            };
        }
        let key = gram.key(&queries, &wanted);
        let key = rounded(format, &key);
        for (query, wanted) in queries.iter().zip(&wanted) {
            let product: f32 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
            let error = product * geometry.scale - wanted;
            if !(error.abs() <= CLOSE) {
                return None;
            }
        }
        keys.extend(key);
        values.extend(&rest.values[own * value_dim..(own + 1) * value_dim]);
    }
    for cell in group..n_cells {
        let own = cell % group;
        keys.extend_from_within(own * dim..(own + 1) * dim);
        values.extend_from_within(own * value_dim..(own + 1) * value_dim);
    }
    Some([keys, values])
}

fn rounded(format: RowFormat, values: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    format.decode(&format.encode(values), &mut out);
    out
}

/// Products of queries with each other, factored (Cholesky): a lower triangle by rows.
struct Gram(Vec<Vec<f64>>);

impl Gram {
    fn new(queries: &[&[f32]], scale: f32) -> Option<Self> {
        let mut rows: Vec<Vec<f64>> = Vec::new();
        for (i, a) in queries.iter().enumerate() {
            let mut row: Vec<f64> = Vec::new();
            for (j, b) in queries[..=i].iter().enumerate() {
                let product = a.iter().zip(*b).map(|(x, y)| f64::from(*x) * f64::from(*y));
                let product = product.sum::<f64>() * f64::from(scale);
                let known = |other: &[f64]| -> f64 {
                    row.iter().zip(other).map(|(x, y)| x * y).sum()
                };
                if j < i {
                    row.push((product - known(&rows[j][..j])) / rows[j][j]);
                } else {
                    let left = product - known(&row);
                    // What is left of a query besides the others.
                    if !(left > product * 1e-4) {
                        return None;
                    }
                    row.push(left.sqrt());
                }
            }
            rows.push(row);
        }
        Some(Self(rows))
    }

    /// The shortest key that has these logits.
    fn key(&self, queries: &[&[f32]], logits: &[f32]) -> Vec<f32> {
        let n = logits.len();
        let mut x = vec![0.0; n];
        for i in 0..n {
            let known: f64 = (0..i).map(|j| self.0[i][j] * x[j]).sum();
            x[i] = (f64::from(logits[i]) - known) / self.0[i][i];
        }
        for i in (0..n).rev() {
            let known: f64 = (i + 1..n).map(|j| self.0[j][i] * x[j]).sum();
            x[i] = (x[i] - known) / self.0[i][i];
        }
        let mut key = vec![0.0; queries[0].len()];
        for (query, x) in queries.iter().zip(x) {
            key.iter_mut().zip(*query).for_each(|(k, q)| *k += (x * f64::from(*q)) as f32);
        }
        key
    }
}
