//! An answer as it comes: thoughts, text, and calls of functions.

use crate::calls::{self, Call};
use crate::thoughts::{Said, Thoughts, begun_mark};
use crate::tools::Tools;
use kiv_runtime::Finish;

/// Whether an answer came to its own end, and was not cut off.
pub(crate) fn is_whole(finish: Finish) -> bool {
    match finish {
        Finish::End | Finish::Stop => true,
        Finish::MaxTokens | Finish::ContextFull | Finish::Interrupted => false,
    }
}

/// Takes an answer as it comes and tells what of it can be shown at once: thoughts, and
/// text that can be part of no call.
#[derive(Default)]
pub(crate) struct Listener {
    thoughts: Thoughts,
    tools: Tools,
    text: String,
    shown: usize,
}

impl Listener {
    /// Of an answer that may call these.
    pub fn new(tools: Tools, thoughts: Thoughts) -> Self {
        Self {
            thoughts,
            tools,
            ..Self::default()
        }
    }

    /// More of the answer has come; what can be shown now.
    pub fn hear(&mut self, more: &str) -> Said {
        let mut said = self.thoughts.hear(more);
        said.text = self.show(said.text);
        said
    }

    fn show(&mut self, more: String) -> String {
        if self.tools.is_empty() {
            return more;
        }
        self.text += &more;
        // A call may be all there is.
        if calls::may_be(&self.text) {
            return String::new();
        }
        // No mark is in what has been shown, nor the beginning of one.
        let new = &self.text[self.shown..];
        let end = calls::starts(new).unwrap_or_else(|| {
            let held = calls::marks().map(|mark| begun_mark(new, mark));
            new.len() - held.max().unwrap_or(0)
        });
        let more = new[..end].to_owned();
        self.shown += end;
        more
    }

    /// The answer has ended: what has not been shown, and calls.
    pub fn end(mut self, finish: Finish) -> (Said, Vec<Call>) {
        let mut said = std::mem::take(&mut self.thoughts).end();
        said.text = self.show(said.text);
        let (text, calls) = self.tools.read(&self.text, is_whole(finish));
        let text = if calls.is_empty() { &self.text } else { &text };
        said.text += text.get(self.shown..).unwrap_or_default();
        (said, calls)
    }

    /// All of an answer at once.
    pub fn whole(mut self, answer: &str, finish: Finish) -> (Said, Vec<Call>) {
        let mut said = self.thoughts.hear(answer);
        let rest = self.thoughts.end();
        said.thoughts += &rest.thoughts;
        let text = said.text + &rest.text;
        let (text, calls) = self.tools.read(&text, is_whole(finish));
        said.text = text;
        (said, calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the answer is cut into pieces, nothing of a call is shown, and nothing else
    /// is lost.
    #[test]
    fn what_is_shown_while_it_comes() {
        let json = r#"{"name": "time", "arguments": {}}"#;
        let call = format!("<tool_call>{json}</tool_call>");
        for (answer, thoughts, shown, calls) in [
            (format!("I look. {call}"), "", "I look. ", 1),
            (
                format!("<think>{call}?</think>{call}"),
                &*format!("{call}?"),
                "",
                1,
            ),
            (json.to_owned(), "", "", 1),
            ("[time()]".to_owned(), "", "", 1),
            (
                "a < b and <tool> too".to_owned(),
                "",
                "a < b and <tool> too",
                0,
            ),
            ("{not a call}".to_owned(), "", "{not a call}", 0),
            ("<think>".to_owned(), "", "", 0),
            ("<tool".to_owned(), "", "<tool", 0),
        ] {
            let listener = || {
                let tools = Tools::of(crate::calls::tests::tools());
                Listener::new(tools, Thoughts::after("", false))
            };
            for size in 1..answer.len() {
                let mut listener = listener();
                let mut all = Said::default();
                let bytes = answer.as_bytes();
                for piece in bytes.chunks(size) {
                    let said = listener.hear(std::str::from_utf8(piece).unwrap());
                    all.thoughts += &said.thoughts;
                    all.text += &said.text;
                }
                let (rest, found) = listener.end(Finish::End);
                all.thoughts += &rest.thoughts;
                all.text += &rest.text;
                let all = (&*all.thoughts, &*all.text, found.len());
                assert_eq!(all, (thoughts, shown, calls), "{answer} {size}");
            }
            let (said, found) = listener().whole(&answer, Finish::End);
            let all = (&*said.thoughts, &*said.text, found.len());
            assert_eq!(all, (thoughts, shown.trim_end(), calls), "{answer}");
        }
    }
}
