//! A conversation that goes on after what a context holds: nothing of it is cut.

use anyhow::{Result, bail};
use kiv_runtime::{ChatTemplate, Message, Model, Session, Token};
use std::path::Path;

/// What is said in the turns that stand for those that are held.
const ASKED: &str = "(what was asked)";
const ANSWERED: &str = "(what was answered)";

/// Tokens at the end of what is held among which an answer begins.
const ANSWER: usize = 1 << 16;

/// What a conversation begins with.
pub(super) struct Opening<'a> {
    pub template: &'a ChatTemplate,
    /// The system's, if there is one.
    pub messages: &'a [Message],
    /// The text of --file.
    pub document: Option<&'a str>,
    /// The folder, and whether it stays as it is.
    pub folder: &'a Path,
    pub is_borrowed: bool,
}

/// What turns are read after.
pub(super) struct Held {
    tokens: Vec<Token>,
    /// Whether it ends with an answer, whose turn is still to be ended.
    is_answered: bool,
}

impl Opening<'_> {
    /// What the session holds, if turns go after it. `None` if it holds nothing, or nothing
    /// but the beginning of this conversation.
    ///
    /// # Errors
    /// If it holds another text than the one that is given: to read that, it would be lost.
    pub fn held(&self, session: &Session) -> Result<Option<Held>> {
        let (model, held) = (session.model(), session.tokens());
        let n = held.len();
        if n == 0 {
            return Ok(None);
        }
        let (before, after) = self.around(model)?;
        if begins_with(model, &model.tokenize(&before, true), held) {
            note!("{n} tokens in the context, with which this conversation begins");
            return Ok(None);
        }
        let is_there =
            |text: &str| begins_with(model, held, &model.tokenize(text.trim_end(), true));
        // As a conversation has it, or as `kiv run` has read it.
        let is_held =
            is_there(&before) || self.is_document() && self.document.is_some_and(is_there);
        if !self.messages.is_empty() && !is_held {
            if self.is_borrowed {
                note!("{n} tokens in the context, of another text: left aside");
                return Ok(None);
            }
            let folder = self.folder.display();
            bail!(
                "{folder} holds {n} tokens, which do not begin with what --file and --system-prompt \
                 say: they would be lost. Give the same as when they were read, or neither (the \
                 conversation goes on after them), or another --kv-dir, or --kv-no-save"
            );
        }
        note!("{n} tokens in the context: the conversation goes on after them");
        Ok(Some(Held {
            tokens: held.to_vec(),
            is_answered: self.is_answered(model, held, after.trim()),
        }))
    }

    /// Whether the document is all that the conversation begins with.
    fn is_document(&self) -> bool {
        let system = self.messages.first().map(|m| &*m.content);
        system == self.document
    }

    /// The text before the first question, and from there to its answer.
    fn around(&self, model: &Model) -> Result<(String, String)> {
        let mut messages = self.messages.to_vec();
        messages.push(Message::new("user", ASKED));
        let text = self.template.apply(model, &messages)?;
        let (before, after) = text.rsplit_once(ASKED).unwrap_or((&text, ""));
        Ok((before.to_owned(), after.to_owned()))
    }

    /// Whether tokens end with an answer, which begins with `mark`, and the template tells
    /// how one ends.
    fn is_answered(&self, model: &Model, held: &[Token], mark: &str) -> bool {
        let end = &held[held.len().saturating_sub(ANSWER)..];
        let mut messages = lead();
        messages.push(Message::new("user", ASKED));
        let rendered = self.template.apply(model, &messages);
        !mark.is_empty()
            && String::from_utf8_lossy(&bytes(model, end)).contains(mark)
            && rendered.is_ok_and(|text| text.contains(ANSWERED))
    }
}

impl Held {
    /// Messages that come before those of this conversation.
    pub fn lead(&self) -> Vec<Message> {
        if self.is_answered { lead() } else { Vec::new() }
    }

    /// All tokens, where a conversation after [`Held::lead`] is this text.
    pub fn and(&self, model: &Model, text: &str) -> Vec<Token> {
        let mut tokens = self.tokens.clone();
        if !self.is_answered {
            // A text starts once.
            let start = model.special("bos").map(|(_, start)| start);
            let text = start
                .and_then(|start| text.strip_prefix(&*start))
                .unwrap_or(text);
            tokens.extend(model.tokenize(text, false));
            return tokens;
        }
        let text = text.split_once(ANSWERED).map_or(text, |(_, rest)| rest);
        let new = model.tokenize(text, false);
        // A text that ends answers is held with them.
        let twice = tokens.last() == new.first();
        tokens.extend(&new[usize::from(twice)..]);
        tokens
    }
}

/// Turns in the place of those that are held.
fn lead() -> Vec<Message> {
    vec![
        Message::new("user", ASKED),
        Message::new("assistant", ANSWERED),
    ]
}

/// Whether the text of `all` begins with that of `part`, whose last tokens may be others:
/// they depend on what comes next.
fn begins_with(model: &Model, all: &[Token], part: &[Token]) -> bool {
    let pairs = all.iter().zip(part);
    let same = pairs.take_while(|(a, b)| a == b).count();
    let part = bytes(model, &part[same..]);
    // No token is less than a byte, those apart that are none.
    let all = all[same..].iter().take(2 * part.len());
    bytes(model, &all.copied().collect::<Vec<_>>()).starts_with(&part)
}

fn bytes(model: &Model, tokens: &[Token]) -> Vec<u8> {
    tokens.iter().flat_map(|t| model.piece(*t, true)).collect()
}
