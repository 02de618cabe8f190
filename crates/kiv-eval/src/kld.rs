//! Distance of next-token distributions from full attention's.

use crate::ask::Reader;
use kiv_runtime::Error;
use serde::Serialize;

/// How far distributions are apart, over the tokens of a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// Mean Kullback-Leibler divergence from full attention, in nats.
    pub kld_mean: f64,
    /// Largest, in nats.
    pub kld_max: f64,
    /// Share of tokens whose likeliest continuation is the same.
    pub same_top1: f64,
    /// Tokens compared.
    pub tokens: usize,
}

impl Divergence {
    pub(crate) fn merge(all: &[Self]) -> Self {
        let tokens: usize = all.iter().map(|d| d.tokens).sum();
        let mean = |get: fn(&Self) -> f64| {
            all.iter().map(|d| get(d) * d.tokens as f64).sum::<f64>() / tokens.max(1) as f64
        };
        Self {
            kld_mean: mean(|d| d.kld_mean),
            kld_max: all.iter().map(|d| d.kld_max).fold(0.0, f64::max),
            same_top1: mean(|d| d.same_top1),
            tokens,
        }
    }
}

/// Logits after every token of the prompt's continuation, read one by one.
pub(crate) fn logits(reader: &mut Reader<'_>) -> Result<Vec<Vec<f32>>, Error> {
    let text = reader.tokenize(&reader.prompt.continuation);
    let session = reader.bare()?;
    let mut all = Vec::with_capacity(text.len());
    for token in text {
        session.read_one_by_one(&[token])?;
        all.push(session.logits().to_vec());
    }
    Ok(all)
}

/// How far `got` is from `want`, both logits after the same tokens.
pub(crate) fn compare(want: &[Vec<f32>], got: &[Vec<f32>]) -> Divergence {
    let (mut sum, mut max, mut same) = (0.0, 0f64, 0usize);
    for (p, q) in want.iter().zip(got) {
        let kl = kl_divergence(p, q);
        sum += kl;
        max = max.max(kl);
        same += usize::from(top(p) == top(q));
    }
    let n = want.len().max(1) as f64;
    Divergence {
        kld_mean: sum / n,
        kld_max: max,
        same_top1: same as f64 / n,
        tokens: want.len(),
    }
}

fn top(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}

/// KL divergence of the softmax of `q` from that of `p`, both logits, in nats.
#[must_use]
pub fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_softmax = |logits: &[f32]| -> Vec<f64> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shifted = logits.iter().map(|l| f64::from(*l) - f64::from(max));
        let total = shifted.clone().map(f64::exp).sum::<f64>().ln();
        shifted.map(|l| l - total).collect()
    };
    let (p, q) = (log_softmax(p), log_softmax(q));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_of_known_distributions() {
        let p = [0.0f32, 2f32.ln()];
        let q = [0.0f32, 0.0];
        // p = (1/3, 2/3), q = (1/2, 1/2).
        let want = (1.0 / 3.0) * (2f64 / 3.0).ln() + (2.0 / 3.0) * (4f64 / 3.0).ln();
        assert!((kl_divergence(&p, &q) - want).abs() < 1e-6);
        assert!(kl_divergence(&p, &p).abs() < 1e-12);
    }
}
