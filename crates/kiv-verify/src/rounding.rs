//! How far rounding may move logits when attention adds in another order.
//!
//! Flash attention computes `sum p_i v_i` in the order of the cells, in f16 or
//! f32 steps. Two orders give two results, each off the true value by its own
//! rounding; they differ by at most twice the larger error. A worst-case bound
//! on that error (n times the unit roundoff) says nothing useful in f16, so it
//! is measured, per layer: stock order against the same attention in f64 on
//! the same cache bytes. Then every attention output of an unpermuted run is
//! moved by random noise of twice that error, and the largest change of any
//! logit, over several runs, doubled, is the bound. It thus follows from the
//! model's own sensitivity and the kernel's own accuracy; nothing is tuned.
//!
//! An error that is no rounding ([`LARGEST_RELATIVE_ERROR`]) means that the
//! kernel and the f64 attention did not see the same rows. Then the bound is 0:
//! no difference is excused.

use crate::compare;
use kiv_policy::{ColdError, RowFormat};
use kiv_runtime::{Attended, AttentionTap, Error, Outputs, SessionBuilder, Token};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

/// Runs with noise.
const TRIALS: u64 = 3;

/// Largest error, relative to the largest output of the layer, that can be
/// rounding. Sums in f16 come to some thousandths, in f32 to millionths.
const LARGEST_RELATIVE_ERROR: f64 = 0.03;

/// Of a micro-batch at most this many queries are recomputed, and decoded
/// tokens in steps of this many: f64 attention is slow.
const SAMPLE: usize = 16;

/// The bound on `|logit - stock logit|` for these tokens.
pub(crate) fn bound(
    builder: &dyn Fn() -> SessionBuilder,
    cache_type: RowFormat,
    tokens: &[Token],
    stock: &[Vec<f32>],
    seed: u64,
) -> Result<f64, Error> {
    let errors = Arc::new(Mutex::new(Vec::new()));
    let measure = Measure {
        errors: Arc::clone(&errors),
        cache_type,
        seen: 0,
    };
    logits_with(builder(), tokens, Box::new(measure))?;
    let errors: Vec<LayerError> = errors.lock().clone();
    if errors
        .iter()
        .any(|e| e.error > LARGEST_RELATIVE_ERROR * e.output)
    {
        return Ok(0.0);
    }
    let mut largest = 0f64;
    for trial in 0..TRIALS {
        let noise = Noise {
            errors: errors.clone(),
            rng: ChaCha8Rng::seed_from_u64(seed.wrapping_add(trial)),
        };
        let logits = logits_with(builder(), tokens, Box::new(noise))?;
        largest = largest.max(compare(stock, &logits).0);
    }
    Ok(2.0 * largest)
}

fn logits_with(
    builder: SessionBuilder,
    tokens: &[Token],
    tap: Box<dyn AttentionTap>,
) -> Result<Vec<Vec<f32>>, Error> {
    let mut session = builder.build()?;
    session.set_tap(Some(tap));
    let mut all = Vec::new();
    session.read_with(
        tokens,
        Outputs::All,
        |_, row| all.push(row.to_vec()),
        |_| {},
    )?;
    Ok(all)
}

/// Largest error and largest output of a layer.
#[derive(Clone, Copy, Debug, Default)]
struct LayerError {
    error: f64,
    output: f64,
}

/// Measures the kernel's error against f64, per layer.
struct Measure {
    errors: Arc<Mutex<Vec<LayerError>>>,
    cache_type: RowFormat,
    seen: usize,
}

impl AttentionTap for Measure {
    fn attended(&mut self, view: &mut Attended<'_>) -> Result<(), ColdError> {
        let mut errors = self.errors.lock();
        if errors.len() <= view.layer {
            errors.resize(view.layer + 1, LayerError::default());
        }
        if view.layer == 0 {
            self.seen += 1;
        }
        let n_tokens = view.queries.n_tokens();
        if n_tokens == 1 && !self.seen.is_multiple_of(SAMPLE) {
            return Ok(());
        }
        let step = n_tokens.div_ceil(SAMPLE);
        for kv_head in 0..view.geometry.n_head_kv {
            let (keys, values) = (view.keys(kv_head), view.values(kv_head));
            for token in (0..n_tokens).step_by(step) {
                for head in kv_head * view.geometry.group()..(kv_head + 1) * view.geometry.group() {
                    let (error, output) = self.error(view, (token, head), &keys, &values);
                    let layer = &mut errors[view.layer];
                    layer.error = layer.error.max(error);
                    layer.output = layer.output.max(output);
                }
            }
        }
        Ok(())
    }
}

impl Measure {
    /// Largest error and value of one query's output. Kernels round the query first,
    /// some to the type that the keys are multiplied in: the nearer of the two
    /// f64 results counts.
    fn error(
        &self,
        view: &Attended<'_>,
        (token, head): (usize, usize),
        keys: &[f32],
        values: &[f32],
    ) -> (f64, f64) {
        let query = view.queries.get(token, head);
        let product_type = match self.cache_type {
            RowFormat::Q8_0 | RowFormat::Q4_0 => RowFormat::Q8_0,
            other => other,
        };
        let mut rounded = vec![0f32; query.len()];
        product_type.decode(&product_type.encode(query), &mut rounded);
        let dim = view.geometry.value_dim;
        let at = (token * view.geometry.n_head + head) * dim;
        let got = &view.output[at..at + dim];
        let now = view.queries.positions[token];
        let output = got.iter().map(|g| f64::from(g.abs())).fold(0f64, f64::max);
        let error = [query, &rounded[..]]
            .into_iter()
            .map(|query| {
                let want = attention(view, (head, query), now, keys, values);
                let off = got
                    .iter()
                    .zip(&want)
                    .map(|(g, w)| (f64::from(*g) - w).abs());
                off.fold(0f64, f64::max)
            })
            .fold(f64::INFINITY, f64::min);
        (error, output)
    }
}

/// One query's attention in f64.
fn attention(
    view: &Attended<'_>,
    (head, query): (usize, &[f32]),
    now: i32,
    keys: &[f32],
    values: &[f32],
) -> Vec<f64> {
    let g = view.geometry;
    let logits: Vec<f64> = keys
        .chunks_exact(g.key_dim)
        .zip(view.positions())
        .map(|(key, position)| {
            if *position > now {
                return f64::NEG_INFINITY;
            }
            let dot: f64 = query
                .iter()
                .zip(key)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum();
            let logit = dot * f64::from(g.scale);
            g.soft_cap.map_or(logit, |cap| {
                f64::from(cap) * (logit / f64::from(cap)).tanh()
            })
        })
        .collect();
    let sink = view.sinks.get(head).copied().map(f64::from);
    let all = logits.iter().copied().chain(sink);
    let max = all.fold(f64::NEG_INFINITY, f64::max);
    let mut out = vec![0f64; g.value_dim];
    let mut total = sink.map_or(0.0, |sink| (sink - max).exp());
    for (logit, value) in logits.iter().zip(values.chunks_exact(g.value_dim)) {
        let p = (logit - max).exp();
        total += p;
        out.iter_mut()
            .zip(value)
            .for_each(|(o, v)| *o += p * f64::from(*v));
    }
    out.iter_mut().for_each(|o| *o /= total);
    out
}

/// Moves every attention output by up to twice the measured error.
struct Noise {
    errors: Vec<LayerError>,
    rng: ChaCha8Rng,
}

impl AttentionTap for Noise {
    fn attended(&mut self, view: &mut Attended<'_>) -> Result<(), ColdError> {
        let error = self.errors.get(view.layer).map_or(0.0, |e| e.error);
        let size = 2.0 * error as f32;
        for value in view.output.iter_mut() {
            *value += self.rng.random_range(-1.0..=1.0) * size;
        }
        Ok(())
    }
}
