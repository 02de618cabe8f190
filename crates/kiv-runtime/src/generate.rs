//! Generation as an iterator of pieces of text.

use crate::error::Error;
use crate::grammar::Grammar;
use crate::markup::Markup;
use crate::sampling::{Sampler, Sampling};
use crate::session::{Session, Token};
use std::collections::VecDeque;
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
    /// Tell of every token how likely it was, and so many of the likeliest beside it:
    /// see [`Generation::take_chosen`].
    pub likeliest: Option<usize>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: Some(128),
            sampling: Sampling::default(),
            grammar: None,
            stop: Vec::new(),
            ignore_end: false,
            likeliest: None,
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

/// A token of an answer and how likely it was: natural logarithms of probabilities by the
/// model's own logits, before temperature, cuts and grammar.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The token.
    pub token: Token,
    /// How likely it was.
    pub logprob: f32,
    /// The likeliest tokens at its place, the likeliest first.
    pub likeliest: Vec<(Token, f32)>,
}

impl Chosen {
    fn new(token: Token, logits: &[f32], n: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
        let of = |i: usize| (f64::from(logits[i] - max) - sum.ln()) as f32;
        // Of two that are as likely the first comes first, as where the likeliest is taken.
        let order = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        let mut all: Vec<usize> = (0..logits.len()).collect();
        let n = n.min(all.len());
        if n > 0 {
            all.select_nth_unstable_by(n - 1, order);
        }
        all.truncate(n);
        all.sort_unstable_by(order);
        Self {
            token,
            logprob: of(token as usize),
            likeliest: all.into_iter().map(|i| (i as Token, of(i))).collect(),
        }
    }
}

/// Generated text, token by token. What a model marks with special tokens is text, too: thoughts
/// are between `<think>` and `</think>`, calls of functions between `<tool_call>` and
/// `</tool_call>`, as JSON, whatever the model's own form is. Every token that is yielded has been
/// chosen but is read by the model only when the next one is asked for, so the last is
/// not: [`TokenStream::read_last`] does that for those who go on from here.
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
    /// Of a model that marks parts of its answers; known as the sampler is.
    markup: Option<Markup>,
    /// Bytes that are not certain yet.
    held: Vec<u8>,
    /// Tokens of these, and where each begins.
    undecided: VecDeque<(usize, Chosen)>,
    /// Tokens whose text is certain, not taken yet.
    decided: Vec<Chosen>,
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

    /// See [`Generation::read_last`].
    ///
    /// # Errors
    /// As [`Session::read`].
    pub fn read_last(&mut self) -> Result<(), Error> {
        self.generation.read_last(self.session)
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
            markup: None,
            held: Vec::new(),
            undecided: VecDeque::new(),
            decided: Vec::new(),
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

    /// Text that was held back when the stream ended: the beginning of a stop text that did
    /// not come. A character whose end did not come is no text.
    #[must_use]
    pub fn rest(&mut self) -> String {
        if self.finish == Some(Finish::Stop) {
            self.held.clear();
            self.undecided.clear();
        }
        let mut held = std::mem::take(&mut self.held);
        self.decide(held.len());
        held.truncate(whole_characters(&held));
        String::from_utf8_lossy(&held).into_owned()
    }

    /// Reads the token that was yielded last, which only the next step would: then the
    /// session holds all that was generated, the tokens of a stop text, too. Not if there is
    /// no room for it.
    ///
    /// # Errors
    /// As [`Session::read`].
    pub fn read_last(&mut self, session: &mut Session) -> Result<(), Error> {
        match self.pending.take() {
            Some(token) if session.tokens().len() < session.n_ctx() => session.read_one(token),
            _ => Ok(()),
        }
    }

    /// Tokens whose text is certain by now, with how likely they were, each once; none
    /// unless [`GenerateOptions::likeliest`] was asked for. Those of a stop text are not
    /// among them.
    #[must_use]
    pub fn take_chosen(&mut self) -> Vec<Chosen> {
        std::mem::take(&mut self.decided)
    }

    /// The tokens of the first `n` bytes are certain: those bytes are held no more.
    fn decide(&mut self, n: usize) {
        let all = self.held.is_empty() && self.finish != Some(Finish::Stop);
        let sure = (self.undecided.iter()).take_while(|(at, _)| all || *at < n);
        let sure = self.undecided.drain(..sure.count());
        self.decided.extend(sure.map(|(_, chosen)| chosen));
        for (at, _) in &mut self.undecided {
            *at -= n;
        }
    }

    fn end(&mut self, why: Finish) -> Option<Result<Piece, Error>> {
        self.finish = Some(why);
        if let Some(markup) = &mut self.markup {
            self.held.extend(markup.end(why == Finish::End));
        }
        None
    }

    /// Moves what is certain out of the held bytes.
    fn certain_text(&mut self) -> String {
        let stops = self.options.stop.iter().filter(|s| !s.is_empty());
        let found = stops.filter_map(|stop| {
            let mut windows = self.held.windows(stop.len());
            windows.position(|w| w == stop.as_bytes())
        });
        // A token may bring several at once: the text ends at the first of them.
        if let Some(at) = found.min() {
            self.held.truncate(at);
            self.finish = Some(Finish::Stop);
            let text = std::mem::take(&mut self.held);
            self.decide(at);
            return String::from_utf8_lossy(&text).into_owned();
        }
        // The end of what is held may be the beginning of a stop text.
        let begun = |stop: &String| {
            (1..stop.len())
                .rev()
                .find(|n| self.held.ends_with(&stop.as_bytes()[..*n]))
                .unwrap_or(0)
        };
        let keep = self.options.stop.iter().map(begun).max().unwrap_or(0);
        let sure = whole_characters(&self.held[..self.held.len() - keep]);
        let rest = self.held.split_off(sure);
        let text = std::mem::replace(&mut self.held, rest);
        self.decide(sure);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The next piece, `None` once it has ended. Always of the same session.
    ///
    /// # Errors
    /// Any [`Error`]; [`Error::NoLogits`] without a token to continue from, [`Error::Sampling`]
    /// and [`Error::Grammar`] where the options cannot be.
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
        if session.logits().iter().any(|logit| logit.is_nan()) {
            self.finish = Some(Finish::Interrupted);
            return Some(Err(Error::NotNumbers));
        }
        let sampler = match &mut self.sampler {
            Some(sampler) => sampler,
            none => {
                let (options, model) = (&self.options, session.model());
                self.markup = model.marks().map(Markup::new);
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
        if let Some(n) = self.options.likeliest {
            let chosen = Chosen::new(token, session.logits(), n);
            self.undecided.push_back((self.held.len(), chosen));
        }
        let piece = session.model().piece(token, false);
        self.held.extend(match &mut self.markup {
            Some(markup) => markup.hear(token, piece),
            None => piece,
        });
        let text = self.certain_text();
        Some(Ok(Piece { token, text }))
    }
}

/// How many of these bytes come before a character at their end that is incomplete. Bytes that
/// can never become a character are whole.
fn whole_characters(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last();
    let broken = last.map_or(&[][..], |chunk| chunk.invalid());
    match std::str::from_utf8(broken) {
        Err(error) if error.error_len().is_none() => bytes.len() - broken.len(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of an answer whose tokens are these bytes.
    fn shown(tokens: &[&[u8]], stop: &str) -> String {
        let stop = vec![stop.to_owned()];
        let mut generation = Generation::new(GenerateOptions {
            stop,
            ..GenerateOptions::default()
        });
        let mut text = String::new();
        for token in tokens {
            generation.held.extend(*token);
            text += &generation.certain_text();
            if generation.finish().is_some() {
                break;
            }
        }
        text + &generation.rest()
    }

    #[test]
    fn characters_in_pieces_are_shown_whole() {
        let text = "a\u{e9}\u{20ac}\u{1f600}z";
        for size in 1..text.len() {
            let tokens: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            assert_eq!(shown(&tokens, ""), text, "{size}");
            // A stop text in pieces, and one that only begins like what comes.
            assert_eq!(shown(&tokens, "\u{1f600}"), "a\u{e9}\u{20ac}", "{size}");
            assert_eq!(shown(&tokens, "\u{1f601}"), text, "{size}");
            assert_eq!(shown(&tokens, "z!"), text, "{size}");
        }
        // One that ends too early is left out; its beginning may be that of a stop text.
        assert_eq!(shown(&[b"a\xe2", b"\x82"], ""), "a");
        assert_eq!(shown(&[b"a\xe2", b"\x82"], "\u{20ac}"), "a");
        assert_eq!(shown(&[b"az"], "z!"), "az");
    }

    #[test]
    fn broken_bytes_cost_no_character_after_them() {
        assert_eq!(shown(&[b"\xe2", b"\xc3", b"\xa9"], ""), "\u{fffd}\u{e9}");
        assert_eq!(shown(&[b"\xff\xc3", b"\xa9"], ""), "\u{fffd}\u{e9}");
        assert_eq!(shown(&[b"\xff", b"\xff"], ""), "\u{fffd}\u{fffd}");
    }
}
