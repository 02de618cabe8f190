//! `kiv chat`: a conversation at the terminal.

mod held;
mod input;

use crate::args::ChatArgs;
use crate::interrupt;
use crate::model::{self, builder};
use crate::output::{Generated, ReadBar, print_json};
use crate::template::{self, Template};
use anyhow::{Context, Result};
use held::{Held, Opening};
use input::Input;
use kiv_runtime::{
    ChatTemplate, Error, Finish, GenerateOptions, Message, Model, Outputs, Sampling, Session,
};
use serde_json::json;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

pub(crate) fn run(args: &ChatArgs) -> Result<ExitCode> {
    let document = args.file.as_deref().map(model::read_text).transpose()?;
    let folder = args.cache.store.kv_dir.as_deref();
    // Looked at before anything is loaded; it may still be in use.
    let stored = model::stored(folder)?;
    let policy = &args.policy.kv_policy;
    let opened = model::open(&args.model)?;
    let model = opened.load(&args.model, policy)?;
    let chosen = template::choose(&args.template, &opened, &model)?;
    let Template { template, stop } = chosen.with_context(|| {
        let path = opened.file.path.display();
        format!("{path}: carries no chat template: give one with --chat-template (Jinja, or a name such as chatml)")
    })?;
    let n_ctx = opened.n_ctx(&args.model);
    let read = document
        .as_deref()
        .map_or(0, |d| model.tokenize(d, true).len());
    let read = read.max(stored);
    model::check_length(read, n_ctx)?;
    let plan = model::plan(&opened.file, &args.model, &args.cache, policy, n_ctx, read)?;
    model::check_memory(&plan, &args.model)?;
    let mut builder = builder(&model, &args.model, &args.cache, policy);
    if let Some(folder) = folder {
        builder = model::with_context(builder, folder, args.kv_no_save);
    }
    let mut session = builder.build()?;
    let mut messages = system(args, document.as_deref());
    let held = match folder {
        None => None,
        Some(folder) => Opening {
            template: &template,
            messages: &messages,
            document: document.as_deref(),
            folder,
            is_borrowed: args.kv_no_save,
        }
        .held(&session)?,
    };
    if let Some(held) = &held {
        messages = held.lead();
        // As far as some models can go back.
        session.mark()?;
    }
    let mut input = Input::new()?;
    // After the line editor, which takes Ctrl-C for itself while a line is typed and leaves
    // its handler where it is.
    session.set_interrupt_flag(interrupt::flag());
    let sampling = args.sampling.sampling();
    if args.sampling.seed < 0 && sampling.temperature > 0.0 {
        note!("seed: {}", sampling.seed);
    }
    let mut chat = Chat {
        args,
        model,
        template,
        stop,
        session,
        sampling,
        messages,
        held,
    };
    // One before the first line, or between two of them, ends the conversation.
    while !interrupt::flag().load(Ordering::Relaxed) {
        let Some(line) = input.next()? else {
            let interrupted = interrupt::flag().load(Ordering::Relaxed);
            return Ok(ExitCode::from(if interrupted { 130 } else { 0 }));
        };
        if line.trim().is_empty() {
            continue;
        }
        match chat.answer(line) {
            // A shorter one may do.
            Err(why) if is_full(&why) && matches!(input, Input::Terminal(_)) => note!("{why}"),
            answered => answered?,
        }
        let interrupted = interrupt::flag().swap(false, Ordering::Relaxed);
        if interrupted && matches!(input, Input::Pipe(_)) {
            // Nobody is there to ask another question.
            break;
        }
    }
    Ok(ExitCode::from(130))
}

/// What the flags say before the first question.
fn system(args: &ChatArgs, document: Option<&str>) -> Vec<Message> {
    let texts = [args.system_prompt.as_deref(), document];
    let texts: Vec<&str> = texts.into_iter().flatten().collect();
    if texts.is_empty() {
        return Vec::new();
    }
    vec![Message::new("system", texts.join("\n\n"))]
}

/// Whether what failed did so for want of room in the context.
fn is_full(why: &anyhow::Error) -> bool {
    let error = why.downcast_ref::<Error>();
    matches!(error, Some(Error::ContextFull { .. }))
}

struct Chat<'a> {
    args: &'a ChatArgs,
    model: Model,
    template: ChatTemplate,
    /// Texts that end an answer.
    stop: Vec<String>,
    session: Session,
    sampling: Sampling,
    messages: Vec<Message>,
    /// What the conversation goes on after.
    held: Option<Held>,
}

impl Chat<'_> {
    /// Reads what is new of the conversation and generates the answer.
    fn answer(&mut self, question: String) -> Result<()> {
        self.messages.push(Message::new("user", question));
        let text = self.template.apply(&self.model, &self.messages)?;
        let tokens = match &self.held {
            None => self.model.tokenize(&text, true),
            Some(held) => held.and(&self.model, &text),
        };
        // The conversation so far has been read, up to where the template writes an
        // earlier turn another way; from there on it is read again.
        let common = self.session.reuse(&tokens)?;
        let new = &tokens[common..];
        let bar = ReadBar::new(new.len(), self.session.memory().resident_kv as u64);
        // A long beginning is prefill; the end, where the question is, selects
        // token by token.
        let question = new.len().min(64);
        let (text, question) = new.split_at(new.len() - question);
        let mut read = Ok(());
        if !text.is_empty() {
            read = self
                .session
                .read_with(text, Outputs::Last, |_, _| {}, |p| bar.update(p))
                .and_then(|()| self.session.mark());
        }
        if !question.is_empty() {
            read = read.and_then(|()| self.session.read_one_by_one(question));
        }
        drop(bar);
        if let Err(error) = read {
            // Many templates take no second question before the first one's answer.
            self.messages.pop();
            if let Error::Interrupted { read, total } = error {
                note!("interrupted after {read} of {total} tokens");
                return Ok(());
            }
            return Err(error.into());
        }
        let options = GenerateOptions {
            max_tokens: usize::try_from(self.args.predict).ok(),
            // Answers of one seed would all begin with the same throw of the dice.
            sampling: Sampling {
                seed: self.sampling.seed.wrapping_add(self.messages.len() as u32),
                ..self.sampling
            },
            stop: self.stop.clone(),
            ..GenerateOptions::default()
        };
        let json = self.args.model.json;
        let mut answer = Generated::new(json);
        let mut stream = self.session.generate(options);
        for piece in &mut stream {
            if !answer.take(&piece?.text) {
                break;
            }
        }
        answer.take(&stream.rest());
        let finish = stream.finish();
        if self.args.cache.store.kv_dir.is_some() {
            stream.read_last()?;
        }
        self.session.commit()?;
        answer.told?;
        if json {
            print_json(&json!({"role": "assistant", "content": answer.text}))?;
        } else {
            say!()?;
        }
        if finish == Some(Finish::ContextFull) {
            let n_ctx = self.session.n_ctx();
            note!("the context is full ({n_ctx} tokens): raise --ctx-size to go on");
        }
        self.messages.push(Message::new("assistant", answer.text));
        Ok(())
    }
}
