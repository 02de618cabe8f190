//! Choosing the next token; llama.cpp's samplers in llama.cpp's order.

use crate::error::Error;
use crate::grammar::Grammar;
use crate::model::Model;
use crate::session::Token;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;

/// Sampling parameters; the defaults are llama.cpp's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Temperature, 0 or more; 0 takes the likeliest token always.
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

    fn check(&self) -> Result<(), Error> {
        let (any, share) = ("a number of 0 or more", "a number from 0 to 1");
        for (name, value, most, range) in [
            ("temperature", self.temperature, f32::MAX, any),
            ("top_p", self.top_p, 1.0, share),
            ("min_p", self.min_p, 1.0, share),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(Error::Sampling { name, value, range });
            }
        }
        Ok(())
    }
}

/// Below this logits would become infinite, and the likeliest token is all that is left.
const COLDEST: f32 = 1e-30;

/// A sampler with its random state.
pub(crate) struct Sampler {
    chain: LlamaSampler,
    grammar: Option<LlamaSampler>,
}

impl Sampler {
    pub(crate) fn new(
        p: &Sampling,
        grammar: Option<&Grammar>,
        model: &Model,
    ) -> Result<Self, Error> {
        p.check()?;
        let chain = if p.temperature < COLDEST {
            LlamaSampler::chain_simple([LlamaSampler::greedy()])
        } else {
            LlamaSampler::chain_simple([
                LlamaSampler::top_k(p.top_k),
                LlamaSampler::top_p(p.top_p, 1),
                LlamaSampler::min_p(p.min_p, 1),
                LlamaSampler::temp(p.temperature),
                LlamaSampler::dist(p.seed),
            ])
        };
        let grammar = grammar.map(|grammar| grammar.sampler(model));
        Ok(Self {
            chain,
            grammar: grammar.transpose()?,
        })
    }

    /// The next token by these logits, `[n_vocab]`; `None` if no token fits.
    pub(crate) fn sample(&mut self, logits: &[f32]) -> Option<Token> {
        let all = || {
            let data = (0..).zip(logits);
            let data = data.map(|(id, logit)| LlamaTokenData::new(LlamaToken(id), *logit, 0.0));
            LlamaTokenDataArray::from_iter(data, false)
        };
        let mut candidates = all();
        self.chain.apply(&mut candidates);
        let mut token = candidates.selected_token()?;
        if let Some(grammar) = &mut self.grammar {
            // Looking at one token is cheap, at a whole vocabulary it is not: only if
            // that one does not fit another is chosen among those that do.
            let one = [LlamaTokenData::new(token, 1.0, 0.0)];
            let mut one = LlamaTokenDataArray::from_iter(one, false);
            grammar.apply(&mut one);
            if !fits(&one, token) {
                let mut fitting = all();
                grammar.apply(&mut fitting);
                self.chain.apply(&mut fitting);
                token = fitting
                    .selected_token()
                    .filter(|token| fits(&fitting, *token))?;
            }
            grammar.try_accept(token).ok()?;
        }
        self.chain.accept(token);
        Some(token.0)
    }
}

/// Whether a grammar has left a token its chance.
fn fits(candidates: &LlamaTokenDataArray, token: LlamaToken) -> bool {
    let found = candidates.data.iter().find(|data| data.id() == token);
    found.is_some_and(|data| data.logit() > f32::NEG_INFINITY)
}
