//! Choosing the next token; llama.cpp's samplers in llama.cpp's order.

use crate::session::Token;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;

/// Sampling parameters; the defaults are llama.cpp's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Temperature; 0 takes the likeliest token always.
    pub temperature: f32,
    /// Keep the `k` likeliest; 0 keeps all.
    pub top_k: i32,
    /// Keep the likeliest that make up this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Seed of the random choice.
    pub seed: u32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Always the likeliest token.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }
}

/// A sampler with its random state.
pub(crate) struct Sampler(LlamaSampler);

impl Sampler {
    pub(crate) fn new(p: &Sampling) -> Self {
        if p.temperature <= 0.0 {
            return Self(LlamaSampler::chain_simple([LlamaSampler::greedy()]));
        }
        Self(LlamaSampler::chain_simple([
            LlamaSampler::top_k(p.top_k),
            LlamaSampler::top_p(p.top_p, 1),
            LlamaSampler::min_p(p.min_p, 1),
            LlamaSampler::temp(p.temperature),
            LlamaSampler::dist(p.seed),
        ]))
    }

    /// The next token by these logits, `[n_vocab]`.
    pub(crate) fn sample(&mut self, logits: &[f32]) -> Option<Token> {
        let data = (0..)
            .zip(logits)
            .map(|(id, logit)| LlamaTokenData::new(LlamaToken(id), *logit, 0.0));
        let mut candidates = LlamaTokenDataArray::from_iter(data, false);
        self.0.apply(&mut candidates);
        let token = candidates.selected_token()?;
        self.0.accept(token);
        Some(token.0)
    }
}
