//! `kiv run`: read a text, continue it.

use crate::args::RunArgs;
use crate::model::{self, builder, session};
use crate::output::{Generated, ReadBar, peak_rss, print_json};
use anyhow::{Result, bail};
use kiv_runtime::{Error, Finish, GenerateOptions, Outputs, Session, Token};
use serde::Serialize;
use std::process::ExitCode;
use std::time::Instant;

/// Tokens from which on what was read is committed before generation begins.
const SAFE: usize = 4096;

/// Tokens at the end of a question that are read one by one.
const QUESTION: usize = 64;

/// The JSON document of `kiv run --json`.
#[derive(Serialize)]
struct Report<'a> {
    text: &'a str,
    finish: &'static str,
    prompt_tokens: usize,
    generated_tokens: usize,
    prefill_s: f64,
    decode_s: f64,
    decode_ms_per_token: f64,
    policy: &'a str,
    n_ctx: usize,
    resident_tokens: usize,
    resident_kv_bytes: usize,
    host_kv_bytes: usize,
    index_bytes: usize,
    disk_bytes: usize,
    blocks_swapped: u64,
    /// Tokens that the context held at first (--kv-dir), and how many of them
    /// were kept.
    context_tokens: usize,
    reused_tokens: usize,
    /// From the start of the program.
    first_token_s: Option<f64>,
    commit_s: f64,
    disk_hits: u64,
    disk_misses: u64,
    disk_read_bytes: u64,
    disk_wait_s: f64,
    peak_rss_bytes: Option<u64>,
    seed: u32,
}

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let begun = Instant::now();
    let folder = args.cache.store.kv_dir.as_deref();
    // Looked at before anything is loaded; it may still be in use.
    let stored = model::stored(folder)?;
    // Perhaps a name was mistyped.
    let new = folder.filter(|_| stored == 0 && args.file.is_none());
    if let (Some(folder), true) = (new, args.kv_no_save) {
        let folder = folder.display();
        bail!("{folder} holds no context (--kv-dir): there is nothing to ask about");
    }
    // A context that is there is continued by a prompt; a file is the whole text.
    let continues = stored > 0 && args.file.is_none();
    let prompt = prompt(args)?;
    let policy = &args.policy.kv_policy;
    let opened = model::open(&args.model)?;
    let model = opened.load(&args.model, policy)?;
    let tokens = model.tokenize(&prompt, !continues);
    let n_ctx = opened.n_ctx(&args.model);
    let before = if continues { stored } else { 0 };
    model::check_length(before + tokens.len(), n_ctx)?;
    let wanted = usize::try_from(args.predict).ok();
    let total = (before + tokens.len())
        .saturating_add(wanted.unwrap_or(0))
        .min(n_ctx);
    let plan = model::plan(&opened.file, &args.model, &args.cache, policy, n_ctx, total)?;
    model::check_memory(&plan, &args.model)?;
    let mut builder = builder(&model, &args.model, &args.cache, policy);
    if let Some(folder) = folder {
        builder = model::with_context(builder, folder, args.kv_no_save);
    }
    let mut session = session(builder)?;
    let held = session.tokens().len();
    if let (Some(folder), false) = (new, args.model.json) {
        let folder = folder.display();
        note!("{folder} holds no context: a new one begins (--kv-dir)");
    }

    let started = Instant::now();
    let (reused, new) = if continues {
        (held, &tokens[..])
    } else {
        let reused = session.reuse(&tokens)?;
        (reused, &tokens[reused..])
    };
    if held > 0 && !args.model.json {
        note!(
            "{held} tokens in the context, {reused} of them kept, {} to read",
            new.len()
        );
    }
    let bar = ReadBar::new(new.len(), session.memory().resident_kv as u64);
    let read = read(&mut session, new, continues, &bar);
    drop(bar);
    let interrupted = match read {
        Ok(()) => false,
        Err(Error::Interrupted { read, total }) => {
            note!("interrupted: {read} of {total} tokens read, nothing generated");
            true
        }
        Err(error) => return Err(error.into()),
    };
    let prefill_s = started.elapsed().as_secs_f64();
    let saves = folder.is_some() && !args.kv_no_save;
    let mut commit_s = 0.0;
    if saves {
        // What took long to read is safe before anything else.
        let started = Instant::now();
        if new.len() >= SAFE || interrupted {
            session.commit()?;
        }
        commit_s += started.elapsed().as_secs_f64();
    }

    let sampling = args.sampling.sampling();
    if !args.model.json && args.sampling.seed < 0 && sampling.temperature > 0.0 {
        note!("seed: {}", sampling.seed);
    }
    let started = Instant::now();
    let mut answer = Generated::new(args.model.json);
    let mut first_token_s = None;
    let (mut generated, mut finish) = (0, Finish::Interrupted);
    if !interrupted {
        let options = GenerateOptions {
            max_tokens: wanted,
            sampling,
            stop: args.reverse_prompt.clone(),
            ..GenerateOptions::default()
        };
        let mut stream = session.generate(options);
        for piece in &mut stream {
            first_token_s.get_or_insert_with(|| begun.elapsed().as_secs_f64());
            if !answer.take(&piece?.text) {
                break;
            }
        }
        answer.take(&stream.rest());
        if saves {
            // What was shown is what the next prompt continues.
            stream.read_last()?;
        }
        generated = stream.generated();
        finish = stream.finish().unwrap_or(Finish::End);
        if answer.told.is_ok() && !args.model.json {
            answer.told = say!();
        }
    }
    let decode_s = started.elapsed().as_secs_f64();
    let mut kept = Ok(());
    if saves {
        let started = Instant::now();
        kept = session.commit();
        commit_s += started.elapsed().as_secs_f64();
    }
    answer.told?;
    if args.model.json {
        let (memory, stats) = (session.memory(), session.stats());
        print_json(&Report {
            text: &answer.text,
            finish: finish_name(finish),
            prompt_tokens: tokens.len(),
            generated_tokens: generated,
            prefill_s,
            decode_s,
            decode_ms_per_token: decode_s * 1e3 / generated.max(1) as f64,
            policy: session.policy_name(),
            n_ctx,
            resident_tokens: session.resident_tokens(),
            resident_kv_bytes: memory.resident_kv,
            host_kv_bytes: memory.host_kv,
            index_bytes: memory.index,
            disk_bytes: memory.disk,
            blocks_swapped: stats.blocks_swapped,
            context_tokens: held,
            reused_tokens: reused,
            first_token_s,
            commit_s,
            disk_hits: stats.reads.hits,
            disk_misses: stats.reads.misses,
            disk_read_bytes: stats.reads.bytes,
            disk_wait_s: stats.reads.waited.as_secs_f64(),
            peak_rss_bytes: peak_rss(),
            seed: sampling.seed,
        })?;
    } else if finish == Finish::ContextFull {
        note!("the context is full ({n_ctx} tokens): raise --ctx-size to go on");
    }
    // The answer is told all the same.
    kept?;
    Ok(ExitCode::from(if finish == Finish::Interrupted {
        130
    } else {
        0
    }))
}

/// Reads a text; one that continues a context is a question, whose last tokens
/// look up one by one.
fn read(
    session: &mut Session,
    tokens: &[Token],
    continues: bool,
    bar: &ReadBar,
) -> Result<(), Error> {
    let singly = if continues {
        tokens.len().min(QUESTION)
    } else {
        0
    };
    let (text, question) = tokens.split_at(tokens.len() - singly);
    if !text.is_empty() {
        session.read_with(text, Outputs::Last, |_, _| {}, |p| bar.update(p))?;
    }
    if !question.is_empty() {
        session.read_one_by_one(question)?;
    }
    Ok(())
}

fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::End => "end",
        Finish::MaxTokens => "max_tokens",
        Finish::Stop => "stop",
        Finish::ContextFull => "context_full",
        Finish::Interrupted => "interrupted",
    }
}

fn prompt(args: &RunArgs) -> Result<String> {
    let mut text = match &args.file {
        Some(path) => model::read_text(path)?,
        None => String::new(),
    };
    text += args.prompt.as_deref().unwrap_or_default();
    if text.is_empty() {
        bail!("nothing to read: give a text with --prompt or --file");
    }
    Ok(text)
}
