//! Generation as an iterator of pieces of text.

use crate::error::Error;
use crate::sampling::{Grammar, Sampler, Sampling};
use crate::session::{Session, Token};
use std::sync::atomic::Ordering;

/// What to generate, and when to stop.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most tokens; `None` is until the text ends or the context is full.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What the text must be, if anything; it ends when that is complete.
    pub grammar: Option<Grammar>,
    /// Texts that end the generation; they are not part of it.
    pub stop: Vec<String>,
    /// Go on after the end of the text.
    pub ignore_end: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: Some(128),
            sampling: Sampling::default(),
            grammar: None,
            stop: Vec::new(),
            ignore_end: false,
        }
    }
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the text.
    End,
    /// As many tokens as wanted.
    MaxTokens,
    /// One of the stop texts came.
    Stop,
    /// No room in the context.
    ContextFull,
    /// The caller asked to stop.
    Interrupted,
}

/// A piece of generated text; may be empty while a character is incomplete or
/// a stop text may have begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The token.
    pub token: Token,
    /// Text that is now certain.
    pub text: String,
}

/// Generated text, token by token. Every token that is yielded has been
/// chosen but is read by the model only when the next one is asked for.
pub struct TokenStream<'s> {
    session: &'s mut Session,
    generation: Generation,
}

/// A [`TokenStream`] that does not hold its session, for those who generate in
/// several sessions in turn.
pub struct Generation {
    /// Made when the first token is chosen.
    sampler: Option<Sampler>,
    options: GenerateOptions,
    /// Chosen but not read yet.
    pending: Option<Token>,
    /// Bytes that are not certain yet.
    held: Vec<u8>,
    generated: usize,
    finish: Option<Finish>,
}

impl Session {
    /// Continues the text. Without a token to continue from, the first item is
    /// [`Error::NoLogits`].
    pub fn generate(&mut self, options: GenerateOptions) -> TokenStream<'_> {
        TokenStream {
            session: self,
            generation: Generation::new(options),
        }
    }
}

impl TokenStream<'_> {
    /// Why it ended, once it has.
    #[must_use]
    pub fn finish(&self) -> Option<Finish> {
        self.generation.finish()
    }

    /// Tokens generated so far.
    #[must_use]
    pub fn generated(&self) -> usize {
        self.generation.generated()
    }

    /// See [`Generation::rest`].
    #[must_use]
    pub fn rest(&mut self) -> String {
        self.generation.rest()
    }
}

impl Iterator for TokenStream<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.generation.step(self.session)
    }
}

impl Generation {
    /// The beginning of a text.
    #[must_use]
    pub fn new(options: GenerateOptions) -> Self {
        Self {
            sampler: None,
            options,
            pending: None,
            held: Vec::new(),
            generated: 0,
            finish: None,
        }
    }

    /// Why it ended, once it has.
    #[must_use]
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Tokens generated so far.
    #[must_use]
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// Text that was held back when the stream ended: an incomplete character
    /// or the beginning of a stop text that did not come.
    #[must_use]
    pub fn rest(&mut self) -> String {
        if self.finish == Some(Finish::Stop) {
            self.held.clear();
        }
        let held = std::mem::take(&mut self.held);
        String::from_utf8_lossy(&held).into_owned()
    }

    fn end(&mut self, why: Finish) -> Option<Result<Piece, Error>> {
        self.finish = Some(why);
        None
    }

    /// Moves what is certain out of the held bytes.
    fn certain_text(&mut self) -> String {
        for stop in self.options.stop.iter().filter(|s| !s.is_empty()) {
            let found = self
                .held
                .windows(stop.len())
                .position(|w| w == stop.as_bytes());
            if let Some(at) = found {
                self.held.truncate(at);
                self.finish = Some(Finish::Stop);
                let text = String::from_utf8_lossy(&self.held).into_owned();
                self.held.clear();
                return text;
            }
        }
        // The end of what is held may be the beginning of a stop text.
        let begun = |stop: &String| {
            (1..stop.len())
                .rev()
                .find(|n| self.held.ends_with(&stop.as_bytes()[..*n]))
                .unwrap_or(0)
        };
        let keep = self.options.stop.iter().map(begun).max().unwrap_or(0);
        let sure = &self.held[..self.held.len() - keep];
        // Cut off an incomplete character, but not bytes that can never
        // become one.
        let sure = match std::str::from_utf8(sure) {
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            _ => sure.len(),
        };
        let rest = self.held.split_off(sure);
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held = rest;
        text
    }

    /// The next piece, `None` once it has ended. Always of the same session.
    ///
    /// # Errors
    /// Any [`Error`]; [`Error::NoLogits`] without a token to continue from.
    pub fn step(&mut self, session: &mut Session) -> Option<Result<Piece, Error>> {
        if self.finish.is_some() {
            return None;
        }
        if self
            .options
            .max_tokens
            .is_some_and(|max| self.generated >= max)
        {
            return self.end(Finish::MaxTokens);
        }
        if session.interrupt_flag().load(Ordering::Relaxed) {
            return self.end(Finish::Interrupted);
        }
        if let Some(token) = self.pending.take() {
            if session.tokens().len() >= session.n_ctx() {
                return self.end(Finish::ContextFull);
            }
            match session.read_one_by_one(&[token]) {
                Ok(()) => {}
                Err(Error::Interrupted { .. }) => return self.end(Finish::Interrupted),
                Err(error) => {
                    self.finish = Some(Finish::Interrupted);
                    return Some(Err(error));
                }
            }
        }
        if session.logits().is_empty() {
            self.finish = Some(Finish::Interrupted);
            return Some(Err(Error::NoLogits));
        }
        let sampler = match &mut self.sampler {
            Some(sampler) => sampler,
            none => {
                let (options, model) = (&self.options, session.model());
                match Sampler::new(&options.sampling, options.grammar.as_ref(), model) {
                    Ok(sampler) => none.insert(sampler),
                    Err(error) => {
                        self.finish = Some(Finish::Interrupted);
                        return Some(Err(error));
                    }
                }
            }
        };
        let Some(token) = sampler.sample(session.logits()) else {
            return self.end(Finish::End);
        };
        if session.model().is_end(token) && !self.options.ignore_end {
            return self.end(Finish::End);
        }
        self.pending = Some(token);
        self.generated += 1;
        self.held.extend(session.model().piece(token, false));
        let text = self.certain_text();
        Some(Ok(Piece { token, text }))
    }
}
