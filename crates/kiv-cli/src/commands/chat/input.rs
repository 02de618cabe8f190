//! Lines of a conversation, typed or piped in.

use crate::interrupt;
use anyhow::{Context, Result};
use rustyline::config::Behavior;
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};
use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

/// How often Ctrl-C is looked for while no line comes.
const LOOK: Duration = Duration::from_millis(50);

/// Where lines come from.
pub(super) enum Input {
    Terminal(Box<DefaultEditor>),
    Pipe(Receiver<std::io::Result<String>>),
}

impl Input {
    pub fn new() -> Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Pipe(piped()));
        }
        note!("Ctrl-C stops an answer, Ctrl-D ends the conversation.");
        // A file that answers go to gets no prompts: they stay at the terminal.
        let behavior = if std::io::stdout().is_terminal() {
            Behavior::Stdio
        } else {
            Behavior::PreferTerm
        };
        let config = Config::builder().behavior(behavior).build();
        let editor = DefaultEditor::with_config(config)?;
        Ok(Self::Terminal(Box::new(editor)))
    }

    /// The next line; `None` at the end, or where Ctrl-C takes its place.
    pub fn next(&mut self) -> Result<Option<String>> {
        match self {
            Self::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    let _ = editor.add_history_entry(&line);
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(error.into()),
            },
            Self::Pipe(lines) => loop {
                match lines.recv_timeout(LOOK) {
                    Ok(line) => return line.map(Some).context("cannot read standard input"),
                    Err(RecvTimeoutError::Disconnected) => return Ok(None),
                    Err(RecvTimeoutError::Timeout) => {}
                }
                if interrupt::flag().load(Ordering::Relaxed) {
                    return Ok(None);
                }
            },
        }
    }
}

/// Lines of standard input, read by a thread of their own: a read that waits goes on waiting
/// when Ctrl-C comes.
fn piped() -> Receiver<std::io::Result<String>> {
    let (told, lines) = sync_channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if told.send(line).is_err() {
                break;
            }
        }
    });
    lines
}
