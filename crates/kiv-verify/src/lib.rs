//! Checks the tiered cache of a model against stock llama.cpp.
//!
//! A sparse cache that is wrong still writes fluent text, so nothing here
//! looks at text. Four checks, each for every cache type:
//!
//! - `resident`: nothing has left the pool. All logits must equal those of a
//!   stock context, bit by bit.
//! - `permuted`: nothing is missing, but the blocks in the slots of every
//!   layer and KV head are put in a new random order at every step. Attention
//!   sums the same numbers in another order, so logits may differ by rounding,
//!   within a bound that follows from the model (module `rounding`).
//! - `bytes`: after thousands of swaps that a random policy asks for, the bytes
//!   of every slot must equal the cold rows of its block.
//! - `budget`: one block of all is missing, the one that true scores call the
//!   least. The next-token distribution must stay within [`BUDGET_KL`] of full
//!   attention.

mod random;
mod rounding;

use kiv_eval::kl_divergence;
use kiv_policy::RowFormat;
use kiv_runtime::{Error, Model, Outputs, SessionBuilder, Token};
use serde::Serialize;
use thiserror::Error;

/// Most Kullback-Leibler divergence, in nats and on average over tokens, that
/// one missing block of about ten may cause in `budget`.
pub const BUDGET_KL: f64 = 0.02;

/// What to check.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Types of both K and V caches.
    pub cache_types: Vec<RowFormat>,
    /// Micro-batch sizes for `resident` and `permuted`.
    pub ubatches: Vec<usize>,
    /// Swaps in `bytes`.
    pub swaps: u64,
    /// Compute threads.
    pub threads: usize,
    /// Seed of text and permutations.
    pub seed: u64,
    /// Shortest window, in tokens: at least the model's own sliding window.
    pub window: usize,
    /// Whether `bytes` and `budget` are made, too.
    pub thorough: bool,
    /// Is told what sessions have to tell, see [`SessionBuilder::warn`].
    pub warn: fn(&str),
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            cache_types: vec![RowFormat::F16, RowFormat::Q8_0, RowFormat::Q4_0],
            ubatches: vec![1, 7, 512],
            swaps: 10_000,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            seed: 1,
            window: WINDOW,
            thorough: true,
            warn: |_| {},
        }
    }
}

/// Outcome of one check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// `resident`, `permuted`, `bytes` or `budget`.
    pub check: &'static str,
    /// K and V cache type.
    pub cache_type: &'static str,
    /// Micro-batch size.
    pub ubatch: usize,
    /// Largest difference of any logit from stock llama.cpp's.
    pub max_abs_dlogit: f64,
    /// What it may be (`bytes`: slots that may differ; `budget`: mean KL).
    pub bound: f64,
    /// Logits compared (`bytes`: slots compared).
    pub compared: usize,
    /// Blocks copied into slots meanwhile.
    pub swaps: u64,
    /// Mean KL divergence from stock, in nats (`budget`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Slots whose bytes differ (`bytes`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differing: Option<usize>,
    /// Whether the outcome is within the bound.
    pub pass: bool,
}

/// Why a check could not be made.
#[derive(Debug, Error)]
#[error("check `{check}`, cache type {cache_type}, micro-batch {ubatch}")]
pub struct CheckError {
    check: &'static str,
    cache_type: RowFormat,
    ubatch: usize,
    source: Error,
}

/// Pool of all checks: small, so that large models take minutes, not hours.
const SINKS: usize = 4;
const BLOCK: usize = 16;
const SLOTS: usize = 8;
const WINDOW: usize = 64;

/// Runs the checks and hands every outcome to `report` as it comes.
///
/// # Errors
/// The first check that could not be made. A check that fails is an outcome,
/// not an error.
pub fn verify(
    model: &Model,
    plan: &Plan,
    mut report: impl FnMut(&Line),
) -> Result<bool, CheckError> {
    let mut all = true;
    for &cache_type in &plan.cache_types {
        let mut run = |check, ubatch, f: fn(&Case) -> Result<Line, Error>| {
            let case = Case {
                model: model.clone(),
                cache_type,
                ubatch,
                swaps: plan.swaps,
                threads: plan.threads,
                seed: plan.seed,
                window: plan.window,
                warn: plan.warn,
            };
            let line = f(&case).map_err(|source| CheckError {
                check,
                cache_type,
                ubatch,
                source,
            })?;
            all &= line.pass;
            report(&line);
            Ok(())
        };
        for &ubatch in &plan.ubatches {
            run("resident", ubatch, Case::resident)?;
            run("permuted", ubatch, Case::permuted)?;
        }
        if plan.thorough {
            run("bytes", 1, Case::bytes)?;
            run("budget", 1, Case::budget)?;
        }
    }
    Ok(all)
}

/// One cache type and micro-batch size.
struct Case {
    model: Model,
    cache_type: RowFormat,
    ubatch: usize,
    swaps: u64,
    threads: usize,
    seed: u64,
    window: usize,
    warn: fn(&str),
}

/// Logits of every token, `[n_tokens][n_vocab]`.
type Logits = Vec<Vec<f32>>;

impl Case {
    /// A text of exactly `n` tokens.
    fn text(&self, n: usize) -> Vec<Token> {
        let mut tokens = Vec::new();
        let mut prose = kiv_haystack::Prose::new(self.seed);
        while tokens.len() < n {
            let paragraph = prose.next().unwrap_or_default() + "\n";
            tokens.extend(self.model.tokenize(&paragraph, tokens.is_empty()));
        }
        tokens.truncate(n);
        tokens
    }

    /// Tokens that fill the slots and leave some micro-batches to go, all of
    /// which stay resident.
    fn resident_len(&self) -> usize {
        SINKS + SLOTS * BLOCK + 32 + (2 * self.ubatch).clamp(32, 1024)
    }

    fn builder(&self, n_tokens: usize, slots: usize) -> SessionBuilder {
        self.model
            .session()
            .sinks(SINKS)
            .block(BLOCK)
            .budget(slots * BLOCK)
            .window(n_tokens.max(self.window))
            .ubatch(self.ubatch)
            .ctx_size(4 * n_tokens + 16_384)
            .cache_types(self.cache_type, self.cache_type)
            .threads(self.threads, self.threads)
            .all_logits(true)
            .warn(self.warn)
    }

    fn stock(&self, n_tokens: usize) -> SessionBuilder {
        self.builder(n_tokens, SLOTS)
            .policy("full")
            .ctx_size(n_tokens + 256)
    }

    /// Logits of `tokens` and blocks swapped on the way.
    fn logits(&self, builder: SessionBuilder, tokens: &[Token]) -> Result<(Logits, u64), Error> {
        let mut session = builder.build()?;
        let mut all = Vec::with_capacity(tokens.len());
        session.read_with(
            tokens,
            Outputs::All,
            |_, row| all.push(row.to_vec()),
            |_| {},
        )?;
        Ok((all, session.stats().blocks_swapped))
    }

    fn line(&self, check: &'static str) -> Line {
        Line {
            check,
            cache_type: self.cache_type.name(),
            ubatch: self.ubatch,
            max_abs_dlogit: 0.0,
            bound: 0.0,
            compared: 0,
            swaps: 0,
            kl: None,
            differing: None,
            pass: false,
        }
    }

    fn resident(&self) -> Result<Line, Error> {
        let tokens = self.text(self.resident_len());
        let (stock, _) = self.logits(self.stock(tokens.len()), &tokens)?;
        let (ours, _) = self.logits(self.builder(tokens.len(), SLOTS).policy("exact"), &tokens)?;
        let (difference, same_bits) = compare(&stock, &ours);
        Ok(Line {
            max_abs_dlogit: difference,
            compared: count(&stock),
            pass: same_bits,
            ..self.line("resident")
        })
    }

    fn permuted(&self) -> Result<Line, Error> {
        let tokens = self.text(self.resident_len());
        let (stock, _) = self.logits(self.stock(tokens.len()), &tokens)?;
        let builder = || self.builder(tokens.len(), SLOTS).policy("exact");
        let shuffled = builder().shuffle_slots(self.seed);
        let (ours, swaps) = self.logits(shuffled, &tokens)?;
        let bound = rounding::bound(&builder, self.cache_type, &tokens, &stock, self.seed)?;
        let (difference, _) = compare(&stock, &ours);
        Ok(Line {
            max_abs_dlogit: difference,
            bound,
            compared: count(&stock),
            swaps,
            // No swap, no check.
            pass: difference <= bound && swaps > 0,
            ..self.line("permuted")
        })
    }

    fn bytes(&self) -> Result<Line, Error> {
        let builder = self.builder(self.window, SLOTS);
        let policy = random::RandomBlocks::new(self.seed);
        let mut session = builder
            .all_logits(false)
            .custom_policy(Box::new(policy))
            .build()?;
        // Read well past the pool, then decode until enough has moved.
        let pool = session.pool().n_cells;
        session.read(&self.text(pool + 64 * BLOCK))?;
        let more = self.text(4096);
        for token in more.iter().cycle().take(16 * more.len()) {
            if session.stats().blocks_swapped >= self.swaps
                || session.tokens().len() == session.n_ctx()
            {
                break;
            }
            session.read_one_by_one(&[*token])?;
        }
        let (compared, differing) = session.compare_slots()?;
        let swaps = session.stats().blocks_swapped;
        Ok(Line {
            compared,
            swaps,
            differing: Some(differing),
            pass: differing == 0 && compared > 0 && swaps >= self.swaps,
            ..self.line("bytes")
        })
    }

    fn budget(&self) -> Result<Line, Error> {
        // As many slots as there will be blocks, but one: the pool overflows
        // by one block and stays there.
        let builder = || self.builder(self.window, SLOTS).policy("exact");
        let pool = builder().build()?.pool().n_cells;
        let tokens = self.text(pool + BLOCK);
        let (stock, _) = self.logits(self.stock(tokens.len()), &tokens)?;
        let (ours, swaps) = self.logits(builder(), &tokens)?;
        let (stock, ours) = (&stock[pool..], &ours[pool..]);
        let (difference, _) = compare(stock, ours);
        let kls = stock.iter().zip(ours).map(|(s, o)| kl_divergence(s, o));
        let kl = kls.sum::<f64>() / stock.len() as f64;
        Ok(Line {
            max_abs_dlogit: difference,
            bound: BUDGET_KL,
            compared: count(stock),
            swaps,
            kl: Some(kl),
            pass: kl <= BUDGET_KL,
            ..self.line("budget")
        })
    }
}

fn count(logits: &[Vec<f32>]) -> usize {
    logits.iter().map(Vec::len).sum()
}

/// Largest difference, and whether all bits are the same. What is not a
/// number differs infinitely from everything.
fn compare(a: &[Vec<f32>], b: &[Vec<f32>]) -> (f64, bool) {
    let mut difference = 0f64;
    let mut same = a.len() == b.len();
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        same &= a.to_bits() == b.to_bits();
        let d = (f64::from(*a) - f64::from(*b)).abs();
        difference = if d.is_nan() {
            f64::INFINITY
        } else {
            difference.max(d)
        };
    }
    (difference, same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparing_sees_bits_and_non_numbers() {
        assert_eq!(compare(&[vec![0.0]], &[vec![-0.0]]), (0.0, false));
        assert_eq!(compare(&[vec![1.0]], &[vec![1.0]]), (0.0, true));
        assert_eq!(
            compare(&[vec![1.0, 2.0]], &[vec![f32::NAN, 2.0]]).0,
            f64::INFINITY
        );
    }
}
