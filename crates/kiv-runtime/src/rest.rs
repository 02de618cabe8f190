//! Rows that stand for tokens which are not resident.
//!
//! A policy may know what the tokens that are in no slot would add to a decoded token's
//! attention: for every query head one logit and one value ([`Rest`]). Attention is
//! llama.cpp's own, and takes keys, not logits; but of a decoded token there is one query
//! for each head of a group, fewer than a key has values, so that a key can be found whose
//! products with them are any numbers that are wanted. Every cell of a slot that was given
//! up gets such a key: it has its logit for one query head, and next to no weight for the
//! others of the group.

use crate::llama::CacheTensor;
use crate::slot::write_heads;
use kiv_policy::{LayerGeometry, Rest, RowFormat};
use kiv_pool::PoolLayout;

/// Nats below a query's own rest, or below the total of what it attends to if it has none, at
/// which a row has no weight.
const NOTHING: f32 = 14.0;

/// Share of a soft cap beyond which there are no logits to be had.
const CAPPED: f32 = 0.999;

/// Largest error of a logit, in nats.
const CLOSE: f32 = 0.1;

/// Whether a slot has room for what a rest needs, and rows of this type are exact enough.
pub(crate) fn fits(geometry: &LayerGeometry, format: RowFormat, layout: &PoolLayout) -> bool {
    layout.n_slots > 1 && geometry.group() <= layout.block && format != RowFormat::Q4_0
}

/// K and V rows, `[n_cells, key_dim]` and `[n_cells, value_dim]`, that are to the queries
/// of one KV head what a rest says. `queries` are those of all heads, `[n_head, key_dim]`.
/// `None` if there is no rest, and if there are no such rows: queries that are all but
/// parallel leave no choice.
pub(crate) fn rows(
    geometry: &LayerGeometry,
    format: RowFormat,
    queries: &[f32],
    kv_head: usize,
    rest: &Rest,
    n_cells: usize,
) -> Option<[Vec<f32>; 2]> {
    let (group, dim, value_dim) = (geometry.group(), geometry.key_dim, geometry.value_dim);
    let sizes = (rest.logits.len(), rest.values.len(), rest.totals.len());
    let is_whole = sizes == (group, group * value_dim, group);
    if n_cells < group || !is_whole || rest.logits.iter().all(|l| !l.is_finite()) {
        return None;
    }
    let queries = queries.chunks_exact(dim).skip(kv_head * group);
    let queries: Vec<&[f32]> = queries.take(group).collect();
    let gram = Gram::new(&queries, geometry.scale)?;
    let mut keys = Vec::with_capacity(n_cells * dim);
    let mut values = Vec::with_capacity(n_cells * value_dim);
    let mut wanted = vec![0.0; group];
    for own in 0..group {
        // Cells own, own + group, …
        let copies = (n_cells - own).div_ceil(group) as f32;
        for (head, wanted) in wanted.iter_mut().enumerate() {
            let logit = rest.logits[head];
            // Of each query by itself: logits of one head may all be far below another's.
            let logit = match (logit.is_finite(), head == own) {
                (true, true) => logit - copies.ln(),
                (true, false) => logit - NOTHING,
                (false, _) => rest.totals[head] - NOTHING,
            };
            *wanted = match geometry.soft_cap {
                // It would weigh more than it may.
                Some(cap) if logit < -CAPPED * cap => return None,
                Some(cap) => cap * (logit / cap).min(CAPPED).atanh(),
                None => logit,
            };
        }
        let key = gram.key(&queries, &wanted);
        let key = rounded(format, &key);
        for (query, wanted) in queries.iter().zip(&wanted) {
            let product: f32 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
            let error = product * geometry.scale - wanted;
            if error.is_nan() || error.abs() > CLOSE {
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

/// Writes what [`rows`] gave for each KV head, if anything, to K and V of these cells.
pub(crate) fn write(caches: [&mut CacheTensor; 2], cells: &[u32], rests: &[Option<[Vec<f32>; 2]>]) {
    for (side, cache) in caches.into_iter().enumerate() {
        let format = cache.format();
        let mut kv_head = 0;
        // Heads that follow each other in one go.
        for heads in rests.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let rows = heads.iter().flatten().map(|both| &both[side]);
            let rows: Vec<Vec<u8>> = rows.map(|rows| format.encode(rows)).collect();
            if let Some(first) = rows.first() {
                let len = first.len() / cells.len();
                write_heads(cache, cells, (kv_head, len), &rows);
            }
            kv_head += heads.len();
        }
    }
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
                let known =
                    |other: &[f64]| -> f64 { row.iter().zip(other).map(|(x, y)| x * y).sum() };
                if j < i {
                    row.push((product - known(&rows[j][..j])) / rows[j][j]);
                } else {
                    let left = product - known(&row);
                    // What is left of a query besides the others.
                    if left.is_nan() || left <= product * 1e-4 {
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
            key.iter_mut()
                .zip(*query)
                .for_each(|(k, q)| *k += (x * f64::from(*q)) as f32);
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn geometry(group: usize, soft_cap: Option<f32>) -> LayerGeometry {
        LayerGeometry {
            il: 0,
            n_head: 2 * group,
            n_head_kv: 2,
            key_dim: 64,
            value_dim: 32,
            scale: 0.125,
            soft_cap,
        }
    }

    /// Attention over these rows is what the rest says, for every query head.
    #[test]
    fn attention_over_the_rows_is_the_rest() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for (group, soft_cap, format) in [
            (1, None, RowFormat::F16),
            (2, None, RowFormat::F32),
            (4, Some(50.0), RowFormat::F16),
            (8, None, RowFormat::Bf16),
            (7, None, RowFormat::Q8_0),
        ] {
            let g = geometry(group, soft_cap);
            let mut random = |n: usize, size: f32| -> Vec<f32> {
                (0..n).map(|_| rng.random_range(-size..size)).collect()
            };
            let queries = random(g.n_head * g.key_dim, 4.0);
            let rest = Rest {
                logits: random(group, 7.0),
                values: random(group * g.value_dim, 1.0),
                totals: vec![7.5; group],
            };
            let n_cells = 32;
            let [keys, values] = rows(&g, format, &queries, 1, &rest, n_cells).unwrap();
            assert_eq!((keys.len(), values.len()), (n_cells * 64, n_cells * 32));
            let keys = rounded(format, &keys);
            for head in 0..group {
                let query = &queries[(group + head) * 64..][..64];
                let weights = keys.chunks_exact(64).map(|key| {
                    let product: f32 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                    let logit = product * g.scale;
                    f64::from(soft_cap.map_or(logit, |c| c * (logit / c).tanh())).exp()
                });
                let weights: Vec<f64> = weights.collect();
                let total: f64 = weights.iter().sum();
                let logit = total.ln() as f32;
                assert!((logit - rest.logits[head]).abs() < 0.12, "{group}: {logit}");
                for (i, want) in rest.values[head * 32..][..32].iter().enumerate() {
                    let rows = values.chunks_exact(32).zip(&weights);
                    let got: f64 = rows.map(|(row, w)| f64::from(row[i]) * w).sum::<f64>() / total;
                    assert!(
                        (got - f64::from(*want)).abs() < 1e-4,
                        "{group}: {got} {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn heads_without_a_rest_get_next_to_nothing() {
        let g = geometry(2, None);
        let queries: Vec<f32> = (0..256)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 20.0)
            .collect();
        let rest = |logits: &[f32], total: f32| Rest {
            logits: logits.to_vec(),
            values: vec![1.0; 64],
            totals: vec![total; logits.len()],
        };
        let made = |logits: &[f32]| rows(&g, RowFormat::F32, &queries, 0, &rest(logits, 4.0), 32);
        // Nor do they where their own logits are far below the others'.
        for total in [4.0, -60.0, 80.0] {
            let mut rest = rest(&[f32::NEG_INFINITY, 3.0], 4.0);
            rest.totals[0] = total;
            let [keys, _] = rows(&g, RowFormat::F32, &queries, 0, &rest, 32).unwrap();
            for (head, most) in [(0, total - NOTHING + 0.2), (1, 3.1)] {
                let query = &queries[head * 64..][..64];
                for key in keys.chunks_exact(64) {
                    let product: f32 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                    assert!(product * g.scale < most);
                }
            }
        }
        // A cap leaves no logit so low.
        let capped = geometry(2, Some(20.0));
        let low = rest(&[f32::NEG_INFINITY, 3.0], -8.0);
        assert!(rows(&capped, RowFormat::F32, &queries, 0, &low, 32).is_none());
        assert_eq!(made(&[f32::NEG_INFINITY; 2]), None);
        assert_eq!(made(&[]), None);
    }

    #[test]
    fn parallel_queries_leave_no_choice() {
        let g = geometry(2, None);
        let one: Vec<f32> = (0..64).map(|i| (i as f32).sin()).collect();
        let queries: Vec<f32> = [1.0, 2.0, 1.0, 2.0]
            .iter()
            .flat_map(|size| one.iter().map(move |v| v * size))
            .collect();
        let rest = Rest {
            logits: vec![1.0, 1.0],
            values: vec![0.0; 64],
            totals: vec![2.0, 2.0],
        };
        assert_eq!(rows(&g, RowFormat::F32, &queries, 0, &rest, 32), None);
    }
}
