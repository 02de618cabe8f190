//! What a model thinks before it answers, told apart from the answer.

use kiv_runtime::{ChatTemplate, THINK};

const OPEN: &str = THINK[0];
const CLOSE: &str = THINK[1];

/// What templates begin thoughts with, as models write it.
const OPENINGS: [&str; 4] = [OPEN, "[THINK]", "<|START_THINKING|>", "<|channel>thought"];

/// Whether a template is of a model that thinks before it answers.
pub(crate) fn thinks(template: &ChatTemplate) -> bool {
    let marks = OPENINGS
        .into_iter()
        .chain(["<|channel|>", "enable_thinking"]);
    let ChatTemplate::Jinja(source) = template else {
        return false;
    };
    marks.into_iter().any(|mark| source.contains(mark))
}

/// A part of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub thoughts: String,
    pub text: String,
}

/// Divides an answer as it comes.
#[derive(Debug, Default)]
pub(crate) struct Thoughts {
    place: Place,
    /// What may belong to a mark, or be space around one.
    held: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Place {
    /// Thoughts may begin.
    Before,
    /// Whether there are any yet.
    Inside(bool),
    /// Space between thoughts and text.
    Between,
    #[default]
    Text,
}

impl Thoughts {
    /// An answer to a prompt, which may have begun the thoughts itself, unless the answer is
    /// held to a form: then it begins with that.
    pub fn after(prompt: &str, is_held: bool) -> Self {
        let prompt = prompt.trim_end();
        let is_open = OPENINGS.iter().any(|opening| prompt.ends_with(opening));
        let place = if is_open && !is_held {
            Place::Inside(false)
        } else {
            Place::Before
        };
        let held = String::new();
        Self { place, held }
    }

    /// More of the answer has come; what of it can be shown.
    pub fn hear(&mut self, more: &str) -> Said {
        self.held += more;
        let mut said = Said::default();
        loop {
            match self.place {
                Place::Before => {
                    let begun = self.held.trim_start();
                    if let Some(rest) = begun.strip_prefix(OPEN) {
                        self.held = rest.to_owned();
                        self.place = Place::Inside(false);
                    } else if OPEN.starts_with(begun) {
                        return said;
                    } else {
                        self.place = Place::Text;
                    }
                }
                Place::Inside(begun) => {
                    if !begun {
                        self.held = self.held.trim_start().to_owned();
                    }
                    if let Some((thoughts, rest)) = self.held.split_once(CLOSE) {
                        said.thoughts += thoughts.trim_end();
                        self.held = rest.to_owned();
                        self.place = Place::Between;
                        continue;
                    }
                    let known = self.held.len() - begun_mark(&self.held, CLOSE);
                    let known = self.held[..known].trim_end().len();
                    said.thoughts += &self.held[..known];
                    self.held.drain(..known);
                    self.place = Place::Inside(begun || known > 0);
                    return said;
                }
                Place::Between => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return said;
                    }
                    self.place = Place::Text;
                }
                Place::Text => {
                    said.text += &std::mem::take(&mut self.held);
                    return said;
                }
            }
        }
    }

    /// The answer is complete: what was held back.
    pub fn end(self) -> Said {
        match self.place {
            Place::Inside(_) => Said {
                thoughts: self.held.trim_end().to_owned(),
                text: String::new(),
            },
            Place::Between => Said::default(),
            Place::Before | Place::Text => Said {
                thoughts: String::new(),
                text: self.held,
            },
        }
    }
}

/// How much of a text's end may be the beginning of a mark.
pub(crate) fn begun_mark(text: &str, mark: &str) -> usize {
    let ends = |n: &usize| text.ends_with(&mark[..*n]);
    (1..mark.len()).rev().find(ends).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the answer is cut into pieces, the same is said.
    #[test]
    fn thoughts_and_text() {
        let begun = "Question\n<think>\n";
        for (prompt, answer, thoughts, text) in [
            (
                "",
                "<think>\nHm. < 3\n\n</think>\n\nYes.\n",
                "Hm. < 3",
                "Yes.\n",
            ),
            ("", "\n <think></think>Yes.", "", "Yes."),
            (
                "",
                "  Yes <think> no </think>",
                "",
                "  Yes <think> no </think>",
            ),
            ("", "<thin", "", "<thin"),
            ("", "<think>cut </thi", "cut </thi", ""),
            ("", "<think> cut \n", "cut", ""),
            (begun, "Hm.\n</think>Yes.</think>", "Hm.", "Yes.</think>"),
            (begun, "é…", "é…", ""),
            ("<think>\n\n</think>\n\n", "Yes.", "", "Yes."),
            ("", "", "", ""),
        ] {
            let chars: Vec<char> = answer.chars().collect();
            for size in 1..=chars.len().max(1) {
                let mut listener = Thoughts::after(prompt, false);
                let mut all = Said::default();
                let pieces = chars.chunks(size).map(|p| p.iter().collect::<String>());
                let mut said: Vec<Said> = pieces.map(|piece| listener.hear(&piece)).collect();
                said.push(listener.end());
                for said in said {
                    all.thoughts += &said.thoughts;
                    all.text += &said.text;
                }
                assert_eq!(
                    (&*all.thoughts, &*all.text),
                    (thoughts, text),
                    "{answer:?} {size}"
                );
            }
        }
        let mut held = Thoughts::after(begun, true);
        assert_eq!(held.hear("{}").text, "{}");
    }
}
