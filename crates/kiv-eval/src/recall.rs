//! Share of the true attention that the resident rows cover.
//!
//! While the questions of a prompt are read, every layer's queries are scored
//! against every key, cold or resident. *Mass recall* of a query is the
//! share of its softmax that falls on resident rows (sinks, window, slots);
//! *top-k recall* the share of its `k` best keys among all that are resident
//! (k = [`TOP`], as Quest measures it). Both are told per layer and query head,
//! and over all of them.

use crate::ask::Reader;
use kiv_numeric::dot;
use kiv_policy::ColdError;
use kiv_runtime::{Attended, AttentionTap, Error};
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;

/// Keys that count as a query's best.
pub const TOP: usize = 10;

/// Blocks whose keys are decoded together.
const DECODED: usize = 128;

/// Recall over queries, and by layer and head.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recall {
    /// Mean mass recall over all queries, layers and heads.
    pub mass_mean: f64,
    /// Mass recall that 95 % of them exceed.
    pub mass_p5: f64,
    /// Smallest mean of any layer and head.
    pub mass_worst: f64,
    /// Mean top-k recall.
    pub topk: f64,
    /// Mean mass recall, `[layer][head]`.
    pub mass_by_head: Vec<Vec<f64>>,
    /// Queries measured, over all layers and heads.
    pub queries: usize,
}

impl Recall {
    pub(crate) fn merge(all: &[Self]) -> Self {
        let queries: usize = all.iter().map(|r| r.queries).sum();
        let mean = |get: &dyn Fn(&Self) -> f64| {
            all.iter().map(|r| get(r) * r.queries as f64).sum::<f64>() / queries.max(1) as f64
        };
        let shape = all
            .first()
            .map_or_else(Vec::new, |r| r.mass_by_head.clone());
        let by_head = |layer: usize, head: usize| mean(&|r: &Self| r.mass_by_head[layer][head]);
        let mass_by_head: Vec<Vec<f64>> = shape
            .iter()
            .enumerate()
            .map(|(layer, heads)| (0..heads.len()).map(|head| by_head(layer, head)).collect())
            .collect();
        Self {
            mass_mean: mean(&|r| r.mass_mean),
            mass_p5: mean(&|r| r.mass_p5),
            mass_worst: mass_by_head.iter().flatten().copied().fold(1.0, f64::min),
            topk: mean(&|r| r.topk),
            mass_by_head,
            queries,
        }
    }
}

/// One query's recalls.
#[derive(Clone, Copy)]
struct Sample {
    layer: usize,
    head: usize,
    mass: f64,
    topk: f64,
}

struct Measure(Arc<Mutex<Vec<Sample>>>);

impl AttentionTap for Measure {
    fn attended(&mut self, view: &mut Attended<'_>) -> Result<(), ColdError> {
        let mut samples = Vec::new();
        for kv_head in 0..view.geometry.n_head_kv {
            let scores = Scores::collect(view, kv_head)?;
            for (head, logits) in &scores.logits {
                let (mass, topk) = recall(logits, &scores.resident);
                samples.push(Sample {
                    layer: view.layer,
                    head: *head,
                    mass,
                    topk,
                });
            }
        }
        self.0.lock().extend(samples);
        Ok(())
    }
}

/// The logits of every key of one KV head, and whether each key is resident.
struct Scores {
    /// Of every query: its head, and its logits.
    logits: Vec<(usize, Vec<f32>)>,
    resident: Vec<bool>,
}

impl Scores {
    fn collect(view: &Attended<'_>, kv_head: usize) -> Result<Self, ColdError> {
        let g = view.geometry;
        let heads = kv_head * g.group()..(kv_head + 1) * g.group();
        let (mut asked, mut logits) = (Vec::new(), Vec::new());
        for token in 0..view.queries.n_tokens() {
            for head in heads.clone() {
                let queries = [&view.queries, &view.cold_queries];
                asked.push(queries.map(|of| of.get(token, head)));
                logits.push((head, Vec::new()));
            }
        }
        let mut score = |key: &[f32], is_sealed: bool| {
            for (queries, (_, logits)) in asked.iter().zip(&mut logits) {
                let logit = dot(queries[usize::from(is_sealed)], key) * g.scale;
                logits.push(g.soft_cap.map_or(logit, |cap| cap * (logit / cap).tanh()));
            }
        };
        // Sinks, window and micro-batch; what is in the slots is cold as well
        // and counted there. Before anything is sealed the slots hold their
        // own tokens, and all is resident.
        let sealed = view.cold.n_blocks() > 0;
        let mut resident = Vec::new();
        for (key, position) in (view.keys(kv_head).chunks_exact(g.key_dim)).zip(view.positions()) {
            if !(sealed && view.is_slot(*position)) {
                score(key, false);
                resident.push(true);
            }
        }
        let block = view.block();
        let mut wanted = vec![false; view.cold.n_blocks()];
        for block in view.resident_blocks(kv_head) {
            wanted[block as usize] = true;
        }
        // Some blocks at a time: decoded keys of a long text would need gigabytes.
        let (mut at, mut keys) = (0, Vec::new());
        while at < wanted.len() {
            let n = (wanted.len() - at).min(DECODED);
            let run = view.cold.keys(view.layer, kv_head, at as u32, n)?;
            let run = run.rows();
            run.decode_into(&mut keys);
            keys.chunks_exact(g.key_dim)
                .for_each(|key| score(key, true));
            let blocks = run.n_rows() / block;
            for is_wanted in &wanted[at..at + blocks] {
                resident.extend(std::iter::repeat_n(*is_wanted, block));
            }
            at += blocks;
        }
        Ok(Self { logits, resident })
    }
}

/// Mass and top-k recall of one query. All keys are older than it: these
/// are single tokens being read.
fn recall(logits: &[f32], resident: &[bool]) -> (f64, f64) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut all, mut covered) = (0.0, 0.0);
    for (logit, resident) in logits.iter().zip(resident) {
        let p = f64::from(logit - max).exp();
        all += p;
        covered += if *resident { p } else { 0.0 };
    }
    let mut best: Vec<usize> = (0..logits.len()).collect();
    let k = TOP.min(best.len());
    if k < best.len() {
        best.select_nth_unstable_by(k, |a, b| logits[*b].total_cmp(&logits[*a]));
    }
    let found = best[..k].iter().filter(|i| resident[**i]).count();
    (covered / all, found as f64 / k.max(1) as f64)
}

/// Reads the prompt's probes token by token and measures meanwhile. `None` if
/// the policy has dropped rows: nobody knows what attention they would have
/// had.
pub(crate) fn judge(reader: &mut Reader<'_>) -> Result<Option<Recall>, Error> {
    let session = reader.bare()?;
    let all_resident = session.resident_tokens() >= session.tokens().len();
    if !all_resident && session.memory().host_kv == 0 {
        return Ok(None);
    }
    let samples = Arc::new(Mutex::new(Vec::new()));
    for question in reader.prompt.questions.iter().filter(|q| q.probe) {
        let text = reader.tokenize(&question.text);
        let session = reader.bare()?;
        session.set_tap(Some(Box::new(Measure(Arc::clone(&samples)))));
        let read = session.read_one_by_one(&text);
        session.set_tap(None);
        read?;
    }
    let samples = std::mem::take(&mut *samples.lock());
    Ok(Some(summarize(&samples)))
}

fn summarize(samples: &[Sample]) -> Recall {
    let n_layers = samples.iter().map(|s| s.layer + 1).max().unwrap_or(0);
    let n_heads = samples.iter().map(|s| s.head + 1).max().unwrap_or(0);
    let mut sums = vec![vec![(0.0, 0usize); n_heads]; n_layers];
    for s in samples {
        let (sum, n) = &mut sums[s.layer][s.head];
        *sum += s.mass;
        *n += 1;
    }
    let mass_by_head: Vec<Vec<f64>> = sums
        .iter()
        .map(|heads| {
            heads
                .iter()
                .map(|(sum, n)| sum / (*n).max(1) as f64)
                .collect()
        })
        .collect();
    let mut masses: Vec<f64> = samples.iter().map(|s| s.mass).collect();
    masses.sort_by(f64::total_cmp);
    let n = samples.len().max(1) as f64;
    Recall {
        mass_mean: masses.iter().sum::<f64>() / n,
        mass_p5: masses.get(masses.len() / 20).copied().unwrap_or(1.0),
        mass_worst: mass_by_head.iter().flatten().copied().fold(1.0, f64::min),
        topk: samples.iter().map(|s| s.topk).sum::<f64>() / n,
        mass_by_head,
        queries: samples.len(),
    }
}
