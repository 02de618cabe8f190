//! Text as tokens.
//!
//! llama.cpp divides the text of many models (those of GPT-4o's kind, Mistral's, DeepSeek's) by
//! regular expressions of C++'s library, which call themselves for every character of what they
//! match: a long run of letters or dashes would overflow the stack and end the process. So it
//! is done on a stack that has room for the longest line, and lines that are longer still are
//! handed over in pieces.

use crate::model::Model;
use crate::session::Token;
use llama_cpp_2::vocab::VocabType;

/// Characters of a line at most. It is cut before a space after a word, where the expressions
/// of nearly all models begin anew in any case; a word as long as that anywhere.
const LONGEST_LINE: usize = 1 << 16;

/// Stack for a character: some 330 bytes have been seen (GCC 12, optimized).
const STACK: usize = 2048;

/// Stack for all else.
const ANYWAY: usize = 256 << 10;

impl Model {
    /// Tokens of `text`. `start` adds what the model wants at the start of a
    /// text (usually BOS). Special tokens written out in the text are taken as
    /// such. A text of a million tokens takes seconds.
    #[must_use]
    pub fn tokenize(&self, text: &str, start: bool) -> Vec<Token> {
        let vocab = self.raw().get().vocab();
        let tokenize = |piece: &str, start| {
            let tokens = vocab.tokenize(piece.as_bytes(), start, true);
            tokens.into_iter().map(|token| token.0).collect()
        };
        // Others use no expressions, and may begin a text with a space.
        if vocab.vocab_type() != VocabType::BPE {
            return tokenize(text, start);
        }
        let Lines { cuts, longest } = Lines::of(text);
        let need = longest * STACK + ANYWAY;
        stacker::maybe_grow(need, need, || {
            let mut tokens: Vec<Token> = Vec::new();
            let mut first = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                tokens.extend(tokenize(&text[first..cut], start && first == 0));
                first = cut;
            }
            tokens
        })
    }
}

/// The lines of a text, each with all white space after it.
#[derive(Debug, Default, PartialEq)]
struct Lines {
    /// Where those that are too long are cut, in bytes.
    cuts: Vec<usize>,
    /// Characters of the longest one that is left.
    longest: usize,
}

impl Lines {
    fn of(text: &str) -> Self {
        let mut lines = Self::default();
        // Characters of this line before the next one, and of those before the last space
        // after a word, which is there.
        let mut so_far = 0;
        let mut place = None;
        let (mut after_word, mut has_ended) = (false, false);
        for (at, next) in text.char_indices() {
            let is_white = next.is_whitespace();
            if has_ended && !is_white {
                (so_far, place, has_ended) = (0, None, false);
            }
            has_ended |= matches!(next, '\n' | '\r');
            if next == ' ' && after_word {
                place = Some((at, so_far));
            }
            after_word = !is_white;
            if so_far == LONGEST_LINE {
                let (cut, before) = place.take().unwrap_or((at, so_far));
                lines.cuts.push(cut);
                so_far -= before;
            }
            so_far += 1;
            lines.longest = lines.longest.max(so_far);
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn lines_are_cut_where_they_are_too_long() {
        let cuts = |text: &str| Lines::of(text).cuts;
        let of = |text: &str| Lines::of(text).longest;
        assert_eq!(Lines::of(""), Lines::default());
        assert_eq!(of("one\ntwo, three\r\n\n  four\n"), 15);
        assert_eq!(of("é\u{301}\u{4e2d}"), 3);
        let n = LONGEST_LINE;
        assert_eq!(cuts(&"a".repeat(n)), [0; 0]);
        assert_eq!(cuts(&"é".repeat(2 * n + 1)), [2 * n, 4 * n]);
        assert_eq!(cuts(&"word\n".repeat(n)), [0; 0]);
        // "…xx word" is cut before the space.
        let words = "xx word".repeat(n);
        let lines = Lines::of(&words);
        assert_eq!(lines.longest, n);
        assert!(lines.cuts.len() >= 7 && lines.cuts.is_sorted());
        assert!(
            lines
                .cuts
                .iter()
                .all(|cut| words[*cut..].starts_with(" word"))
        );
        // Not within white space.
        let wide = format!("{}  {}", "a".repeat(n - 1), "b".repeat(n));
        assert_eq!(cuts(&wide), [n - 1, 2 * n - 1]);
    }

    fn model(name: &str) -> Model {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        Model::load(models.join(name)).unwrap()
    }

    #[test]
    fn pieces_are_as_the_whole() {
        let model = model("tiny-f16.gguf");
        let words: String = (0..40_000)
            .map(|i| format!("no. {}  is it, ", i * i))
            .collect();
        assert!(!Lines::of(&words).cuts.is_empty());
        let whole = model
            .raw()
            .get()
            .vocab()
            .tokenize(words.as_bytes(), true, true);
        let whole: Vec<Token> = whole.into_iter().map(|token| token.0).collect();
        assert_eq!(model.tokenize(&words, true), whole);
    }

    /// Under other rules, with which llama.cpp divides texts by C++'s expressions.
    #[test]
    fn long_runs_do_not_overflow_the_stack() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let file = std::fs::read(models.join("tiny-f16.gguf")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let named = |text: &[u8]| [&(text.len() as u64).to_le_bytes(), text].concat();
        let find = |bytes: &[u8], what: &[u8]| {
            let mut windows = bytes.windows(what.len());
            windows.position(|window| window == what).unwrap()
        };
        for rules in ["gpt-4o", "tekken", "deepseek-v3"] {
            let mut file = file.clone();
            let key = b"tokenizer.ggml.pre";
            let mut at = find(&file, key) + key.len() + 4;
            file.splice(at..at + 8 + 5, named(rules.as_bytes()));
            // Tensors begin at a multiple of 32: another name fills it up.
            let key = b"general.name";
            at = find(&file, key) + key.len() + 4;
            let len = u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
            let name = vec![b'x'; len + 32 + 5 - rules.len()];
            file.splice(at..at + 8 + len, named(&name));
            let path = folder.path().join(rules);
            std::fs::write(&path, file).unwrap();
            let model = Model::load(&path).unwrap();
            for run in ["a", "=", " ", "\u{4e2d}", "aB", "1", "\n", "a b "] {
                let text = run.repeat(100_000);
                let tokens = model.tokenize(&text, false);
                assert_eq!(model.detokenize(&tokens), text, "{rules}, {run:?}");
            }
        }
    }
}
