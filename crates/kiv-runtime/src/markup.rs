//! What some models mark with special tokens, which are no text: thoughts, answers and calls
//! of functions. It becomes text in the form of the others: `<think>…</think>` and
//! `<tool_call>{"name": …, "arguments": …}</tool_call>`.

use crate::model::Model;
use crate::session::Token;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

/// What opens and closes thoughts in generated text.
pub const THINK: [&str; 2] = ["<think>", "</think>"];

/// What opens and closes a call of a function in generated text.
pub const TOOL_CALL: [&str; 2] = ["<tool_call>", "</tool_call>"];

/// What a special token means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// A head follows, which says what comes after it.
    Head,
    /// The same, in a line of its own.
    Line,
    /// What follows in the head is of no use.
    Aside,
    /// The head ends.
    Body,
    /// What the head was for ends.
    End,
    /// This stands for it.
    Text(&'static str),
}

/// Special tokens of a family of models; the first three, if it has so many, have to be there.
type Family = [(&'static str, Mark)];

const FAMILIES: [&Family; 9] = [
    // gpt-oss: a head is `assistant`, a channel, and for a call its recipient.
    &[
        (CHANNEL, Mark::Head),
        ("<|message|>", Mark::Body),
        ("<|start|>", Mark::Head),
        ("<|constrain|>", Mark::Aside),
        ("<|end|>", Mark::End),
    ],
    // Mistral since 2025; before, a list in JSON followed the first.
    &[
        ("[TOOL_CALLS]", Mark::Head),
        ("[ARGS]", Mark::Body),
        ("[CALL_ID]", Mark::Aside),
        ("[THINK]", Mark::Text(THINK[0])),
        ("[/THINK]", Mark::Text(THINK[1])),
    ],
    // Kimi K2: `functions.name:0`.
    &[
        ("<|tool_call_begin|>", Mark::Head),
        ("<|tool_call_argument_begin|>", Mark::Body),
        ("<|tool_call_end|>", Mark::End),
    ],
    // DeepSeek since V3.
    &[
        ("<｜tool▁call▁begin｜>", Mark::Head),
        (DEEPSEEK, Mark::Body),
        ("<｜tool▁call▁end｜>", Mark::End),
    ],
    // LFM2: a list of calls as Python writes it.
    &[
        ("<|tool_call_start|>", Mark::Text(TOOL_CALL[0])),
        ("<|tool_call_end|>", Mark::Text(TOOL_CALL[1])),
    ],
    // Gemma 4: `call:name{key:value}`.
    &[
        (GEMMA, Mark::Line),
        ("<channel|>", Mark::End),
        ("<|tool_call>", Mark::Text(TOOL_CALL[0])),
        ("<tool_call|>", Mark::Text(TOOL_CALL[1])),
        ("<|\"|>", Mark::Text("<|\"|>")),
    ],
    // Command R7B and A.
    &[
        ("<|START_ACTION|>", Mark::Text(TOOL_CALL[0])),
        ("<|END_ACTION|>", Mark::Text(TOOL_CALL[1])),
        ("<|START_THINKING|>", Mark::Text(THINK[0])),
        ("<|END_THINKING|>", Mark::Text(THINK[1])),
    ],
    // Phi-4.
    &[
        ("<|tool_call|>", Mark::Text(TOOL_CALL[0])),
        ("<|/tool_call|>", Mark::Text(TOOL_CALL[1])),
    ],
    // Granite, whose calls go to the end of the answer.
    &[("<|tool_call|>", Mark::Text(TOOL_CALL[0]))],
];

const GEMMA: &str = "<|channel>";

const DEEPSEEK: &str = "<｜tool▁sep｜>";

/// By this templates of models that answer in channels are known.
pub(crate) const CHANNEL: &str = "<|channel|>";

/// What is being written.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text,
    Head {
        text: String,
        aside: bool,
        /// Whether it is a line.
        line: bool,
    },
    Thoughts,
    /// Arguments; whether there are any yet.
    Call(bool),
    /// A call that says its name in the first line of its body (DeepSeek V3 and R1).
    Named(String),
}

/// A model's special tokens of these kinds.
#[derive(Debug)]
pub(crate) struct Marks {
    of: HashMap<Token, Mark>,
    /// Whether heads are of channels.
    channels: bool,
    /// Whether a head may say `function` alone, and the body the name (DeepSeek V3 and R1).
    is_named_later: bool,
}

impl Marks {
    /// Of a model that has any.
    pub fn of(model: &Model) -> Option<Self> {
        let token = |text: &str| {
            let last = *model.tokenize(text, false).last()?;
            (model.piece(last, true) == text.as_bytes()).then_some(last)
        };
        FAMILIES.into_iter().find_map(|family| {
            let marks = family
                .iter()
                .map(|(text, mark)| Some((token(text)?, *mark)));
            let marks: Vec<_> = marks.collect();
            let is_whole = marks.iter().take(3).all(Option::is_some);
            let of = marks.into_iter().flatten().collect();
            is_whole.then(|| Self::of_family(family, of))
        })
    }

    fn of_family(family: &Family, of: HashMap<Token, Mark>) -> Self {
        Self {
            of,
            channels: [CHANNEL, GEMMA].contains(&family[0].0),
            is_named_later: family.iter().any(|(text, _)| *text == DEEPSEEK),
        }
    }
}

/// Translates an answer token by token.
pub(crate) struct Markup {
    marks: Arc<Marks>,
    part: Part,
}

impl Markup {
    /// The beginning of an answer.
    pub fn new(marks: Arc<Marks>) -> Self {
        let part = Part::Text;
        Self { marks, part }
    }

    /// The next token, and its bytes if it is no special one; what comes of it.
    pub fn hear(&mut self, token: Token, piece: Vec<u8>) -> Vec<u8> {
        let Some(mark) = self.marks.of.get(&token).copied() else {
            return self.go_on(piece);
        };
        match (mark, &mut self.part) {
            (Mark::Aside, Part::Head { aside, .. }) => *aside = true,
            (Mark::Body, Part::Head { text, .. }) => {
                let head = std::mem::take(text);
                return self.begin(&head);
            }
            (Mark::Head, Part::Head { text, .. }) if self.marks.channels => text.push(' '),
            (Mark::Head | Mark::Line, _) => {
                let before = self.close();
                self.part = Part::Head {
                    text: String::new(),
                    aside: false,
                    line: mark == Mark::Line,
                };
                return before;
            }
            (Mark::End, _) => return self.close(),
            // A quote, such as Gemma's, ends nothing.
            (Mark::Text(text), Part::Thoughts) if text != TOOL_CALL[0] => return text.into(),
            (Mark::Text(text), _) => {
                let mut before = self.close();
                before.extend(text.bytes());
                return before;
            }
            _ => {}
        }
        Vec::new()
    }

    fn go_on(&mut self, piece: Vec<u8>) -> Vec<u8> {
        match &mut self.part {
            Part::Head { text, aside, line } => {
                if !*aside {
                    *text += &String::from_utf8_lossy(&piece);
                }
                let Some((head, rest)) = text.split_once('\n').filter(|_| *line) else {
                    return Vec::new();
                };
                let (head, rest) = (head.to_owned(), rest.as_bytes().to_vec());
                let mut opened = self.begin(&head);
                opened.extend(self.go_on(rest));
                return opened;
            }
            Part::Named(text) => {
                *text += &String::from_utf8_lossy(&piece);
                return Vec::new();
            }
            Part::Call(any) => *any |= !piece.trim_ascii().is_empty(),
            Part::Text | Part::Thoughts => {}
        }
        piece
    }

    /// What a head is for begins.
    fn begin(&mut self, head: &str) -> Vec<u8> {
        let words = || head.split_whitespace();
        let name = if self.marks.channels {
            words().find_map(|word| word.strip_prefix("to="))
        } else {
            words().next()
        };
        let opened;
        (self.part, opened) = match name {
            Some("function") if self.marks.is_named_later => {
                (Part::Named(String::new()), String::new())
            }
            Some(name) => (Part::Call(false), opening(name)),
            None if words().any(|word| ["analysis", "thought"].contains(&word)) => {
                (Part::Thoughts, format!("{}\n", THINK[0]))
            }
            None => (Part::Text, String::new()),
        };
        opened.into_bytes()
    }

    /// What is being written ends.
    fn close(&mut self) -> Vec<u8> {
        let text = match std::mem::replace(&mut self.part, Part::Text) {
            Part::Text => String::new(),
            // An answer of which nothing is known yet.
            Part::Head { .. } if self.marks.channels => String::new(),
            Part::Head { text, .. } => text,
            Part::Thoughts => format!("\n{}\n\n", THINK[1]),
            Part::Call(any) => closing(if any { "" } else { "{}" }),
            Part::Named(text) => {
                let (name, body) = text.trim_start().split_once('\n').unwrap_or((&text, ""));
                let from = body.find('{').unwrap_or(body.len());
                let to = body.rfind('}').map_or(from, |at| at + 1);
                let arguments = body.get(from..to).filter(|text| !text.is_empty());
                opening(name) + &closing(arguments.unwrap_or("{}"))
            }
        };
        text.into_bytes()
    }

    /// The answer ends. What is cut off in between is left open, so that it is not taken for
    /// whole.
    pub fn end(&mut self, is_whole: bool) -> Vec<u8> {
        match &self.part {
            Part::Thoughts | Part::Call(_) if !is_whole => Vec::new(),
            Part::Named(text) if !is_whole => text.clone().into_bytes(),
            _ => self.close(),
        }
    }
}

/// A call up to its arguments. Some models write what functions are, too, and their number.
fn opening(name: &str) -> String {
    let name = name.trim();
    let name = name.strip_prefix("functions.").unwrap_or(name);
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let name = match name.rsplit_once(':') {
        Some((before, after)) if number(after) => before,
        _ => name,
    };
    format!(
        "{}{{\"name\": {}, \"arguments\": ",
        TOOL_CALL[0],
        json!(name)
    )
}

fn closing(arguments: &str) -> String {
    format!("{arguments}}}{}", TOOL_CALL[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of an answer in which special tokens are written out; `…` at its end:
    /// it is cut off.
    fn translated(family: usize, answer: &str) -> String {
        let family = FAMILIES[family];
        let marks = (0..).zip(family).map(|(token, (_, mark))| (token, *mark));
        let marks = Marks::of_family(family, marks.collect());
        let mut markup = Markup::new(Arc::new(marks));
        let (answer, is_whole) = match answer.strip_suffix('…') {
            Some(cut) => (cut, false),
            None => (answer, true),
        };
        let (mut out, mut rest) = (Vec::new(), answer);
        while !rest.is_empty() {
            let marked = (0..)
                .zip(family)
                .find(|(_, (text, _))| rest.starts_with(text));
            let (token, len) = match marked {
                Some((token, (text, _))) => (token, text.len()),
                None => (99, rest.chars().next().map_or(0, char::len_utf8)),
            };
            let piece = if token == 99 { &rest[..len] } else { "" };
            out.extend(markup.hear(token, piece.as_bytes().to_vec()));
            rest = &rest[len..];
        }
        out.extend(markup.end(is_whole));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn channels() {
        for (answer, expected) in [
            (
                "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes é.",
                "<think>\nHm.\n</think>\n\nYes é.",
            ),
            (
                "<|channel|>commentary to=functions.turn <|constrain|>json<|message|>{\"by\": 1}",
                "<tool_call>{\"name\": \"turn\", \"arguments\": {\"by\": 1}}</tool_call>",
            ),
            (
                "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.turn<|channel|>\
                 commentary json<|message|> ",
                "<think>\nHm.\n</think>\n\n<tool_call>{\"name\": \"turn\", \"arguments\":  {}}</tool_call>",
            ),
            ("<|channel|>commentary<|message|>I look.", "I look."),
            ("<|channel|>analysis<|message|>Hm…", "<think>\nHm"),
            ("No channel", "No channel"),
            ("<|channel|>fin…", ""),
        ] {
            assert_eq!(translated(0, answer), expected, "{answer}");
        }
    }

    #[test]
    fn calls() {
        let call = |name| {
            format!("<tool_call>{{\"name\": \"{name}\", \"arguments\": {{\"by\": 1}}}}</tool_call>")
        };
        for (family, answer) in [
            (
                1,
                "I turn.[TOOL_CALLS]a[ARGS]{\"by\": 1}[TOOL_CALLS]b[CALL_ID]x1[ARGS]{\"by\": 1}",
            ),
            (
                2,
                "I turn.<|tool_call_begin|>functions.a:0<|tool_call_argument_begin|>{\"by\": 1}\
                 <|tool_call_end|><|tool_call_begin|>functions.b:1<|tool_call_argument_begin|>{\"by\": 1}\
                 <|tool_call_end|>",
            ),
            (
                3,
                "I turn.<｜tool▁call▁begin｜>a<｜tool▁sep｜>{\"by\": 1}<｜tool▁call▁end｜>\
                 <｜tool▁call▁begin｜>function<｜tool▁sep｜>b\n```json\n{\"by\": 1}\n```<｜tool▁call▁end｜>",
            ),
        ] {
            let expected = format!("I turn.{}{}", call("a"), call("b"));
            assert_eq!(translated(family, answer), expected);
        }
        // A name like any other, but of DeepSeek's models.
        let named = "[TOOL_CALLS]function[ARGS]{\"by\": 1}";
        assert_eq!(translated(1, named), call("function"));
        let listed = "<|tool_call_start|>[a(by=1)]<|tool_call_end|>I turn.";
        let expected = "<tool_call>[a(by=1)]</tool_call>I turn.";
        assert_eq!(translated(4, listed), expected);
        let gemma = "<|channel>thought\n<|\"|>Hm.<|\"|><channel|>I turn.<|tool_call>call:a{by:<|\"|>1<|\"|>}<tool_call|>";
        let expected = "<think>\n<|\"|>Hm.<|\"|>\n</think>\n\nI turn.<tool_call>call:a{by:<|\"|>1<|\"|>}</tool_call>";
        assert_eq!(translated(5, gemma), expected);
        let cohere = "<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[]<|END_ACTION|>";
        let expected = "<think>Hm.</think><tool_call>[]</tool_call>";
        assert_eq!(translated(6, cohere), expected);
        let thoughts = "[THINK]Hm.[/THINK]Yes.[TOOL_CALLS]a[ARGS]{\"by\": 1}";
        let expected = format!("<think>Hm.</think>Yes.{}", call("a"));
        assert_eq!(translated(1, thoughts), expected);
        let old = "[{\"name\": \"a\", \"arguments\": {}}]";
        assert_eq!(translated(1, &format!("[TOOL_CALLS]{old}")), old);
        // Half a call is none.
        let half = "<tool_call>{\"name\": \"a\", \"arguments\": {\"by";
        assert_eq!(translated(1, "[TOOL_CALLS]a[ARGS]{\"by…"), half);
    }
}
