//! `kiv run`: read a text, continue it.

use crate::args::RunArgs;
use crate::model::{self, builder, session};
use crate::output::{ReadBar, peak_rss, print_json};
use anyhow::{Result, bail};
use kiv_runtime::{Error, Finish, GenerateOptions, Outputs};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

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
    peak_rss_bytes: Option<u64>,
    seed: u32,
}

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let prompt = prompt(args)?;
    let policy = &args.policy.kv_policy;
    let opened = model::open(&args.model)?;
    let model = opened.load(&args.model, policy)?;
    let tokens = model.tokenize(&prompt, true);
    let n_ctx = opened.n_ctx(&args.model);
    model::check_length(tokens.len(), n_ctx)?;
    let wanted = usize::try_from(args.predict).ok();
    let total = tokens.len().saturating_add(wanted.unwrap_or(0)).min(n_ctx);
    let plan = model::plan(&opened.file, &args.model, &args.cache, policy, n_ctx, total)?;
    model::check_memory(&plan, &args.model)?;
    let mut session = session(builder(&model, &args.model, &args.cache, policy))?;

    let started = Instant::now();
    let bar = ReadBar::new(tokens.len(), session.memory().resident_kv as u64);
    let read = session.read_with(&tokens, Outputs::Last, |_, _| {}, |p| bar.update(p));
    drop(bar);
    let interrupted = match read {
        Ok(()) => false,
        Err(Error::Interrupted { read, total }) => {
            eprintln!("interrupted: {read} of {total} tokens read, nothing generated");
            true
        }
        Err(error) => return Err(error.into()),
    };
    let prefill_s = started.elapsed().as_secs_f64();

    let sampling = args.sampling.sampling();
    if !args.model.json && args.sampling.seed < 0 && sampling.temperature > 0.0 {
        eprintln!("seed: {}", sampling.seed);
    }
    let started = Instant::now();
    let mut text = String::new();
    let (mut generated, mut finish) = (0, Finish::Interrupted);
    if !interrupted {
        let options = GenerateOptions {
            max_tokens: wanted,
            sampling,
            stop: args.reverse_prompt.clone(),
            ..GenerateOptions::default()
        };
        let mut stream = session.generate(options);
        let mut show = |piece: &str| -> Result<()> {
            text += piece;
            if !args.model.json {
                let mut out = std::io::stdout().lock();
                write!(out, "{piece}")?;
                out.flush()?;
            }
            Ok(())
        };
        for piece in &mut stream {
            show(&piece?.text)?;
        }
        show(&stream.rest())?;
        generated = stream.generated();
        finish = stream.finish().unwrap_or(Finish::End);
        if !args.model.json {
            println!();
        }
    }
    let decode_s = started.elapsed().as_secs_f64();
    if args.model.json {
        let memory = session.memory();
        print_json(&Report {
            text: &text,
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
            disk_bytes: 0,
            blocks_swapped: session.stats().blocks_swapped,
            peak_rss_bytes: peak_rss(),
            seed: sampling.seed,
        })?;
    } else if finish == Finish::ContextFull {
        eprintln!("the context is full ({n_ctx} tokens): raise --ctx-size to go on");
    }
    Ok(ExitCode::from(if finish == Finish::Interrupted {
        130
    } else {
        0
    }))
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
