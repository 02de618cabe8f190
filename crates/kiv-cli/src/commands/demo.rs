//! `kiv demo`: needles in a generated text far longer than the resident cache.

use crate::args::DemoArgs;
use crate::model::{self, passing_builder, session};
use crate::output::{ReadBar, bytes, print_json};
use anyhow::{Context, Result, bail};
use kiv_haystack::{Haystack, HaystackSpec};
use kiv_runtime::{Error, Finish, GenerateOptions, Outputs, Sampling, Session};
use serde::Serialize;
use std::process::ExitCode;
use std::time::Instant;

/// Room kept for a question and its answer, in tokens.
const QUESTION: usize = 128;

/// Most tokens of an answer.
const ANSWER: usize = 8;

/// The JSON document of `kiv demo --json`.
#[derive(Serialize)]
struct Report<'a> {
    tokens: usize,
    needles: Vec<Found>,
    prefill_s: f64,
    decode_ms_per_token: f64,
    policy: &'a str,
    resident_kv_bytes: usize,
    host_kv_bytes: usize,
    index_bytes: usize,
    stock_kv_bytes: u64,
    blocks_swapped: u64,
    peak_rss_bytes: Option<u64>,
}

/// One needle: where, what it is, what was answered.
#[derive(Serialize)]
struct Found {
    depth: f64,
    name: String,
    expected: String,
    got: String,
    pass: bool,
}

pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode> {
    let policy = &args.policy.kv_policy;
    let opened = model::open(&args.model)?;
    let n_ctx = opened.n_ctx(&args.model);
    if args.tokens.saturating_add(QUESTION) > n_ctx {
        bail!(
            "--tokens {} with room for the questions does not fit the context of {n_ctx} tokens: \
             at most {} (--ctx-size)",
            args.tokens,
            n_ctx.saturating_sub(QUESTION)
        );
    }
    // Stock llama.cpp reserves its cache at once: only what the text takes.
    let full_ctx = args.tokens + QUESTION;
    let planned = if policy == "full" { full_ctx } else { n_ctx };
    let plan = model::plan(
        &opened.file,
        &args.model,
        &args.cache,
        policy,
        planned,
        args.tokens,
    )?;
    model::check_memory(&plan, &args.model)?;
    let model = opened.load(&args.model, policy)?;
    let depths = args.depths.iter().map(|percent| percent / 100.0).collect();
    // One token is the start of text.
    let spec = HaystackSpec::new(args.seed, args.tokens.saturating_sub(1), depths);
    let haystack = Haystack::build(&spec, &mut |text| model.tokenize(text, false).len())
        .with_context(|| {
            let (n, tokens) = (args.depths.len(), args.tokens);
            format!(
                "cannot hide {n} needles in --tokens {tokens}: raise it, or give fewer --depths"
            )
        })?;
    let tokens = model.tokenize(&haystack.text, true);
    let mut builder = passing_builder(&model, &args.model, &args.cache, policy);
    if policy == "full" {
        builder = builder.ctx_size(tokens.len() + QUESTION);
    }
    let mut session = session(builder)?;
    if !args.model.json {
        note!("{}", kiv_runtime::system_info());
        note!(
            "{} tokens, {} needles; policy {}, {} tokens resident",
            tokens.len(),
            haystack.needles.len(),
            session.policy_name(),
            session.pool().n_cells
        );
    }
    let started = Instant::now();
    let bar = ReadBar::new(tokens.len(), session.memory().resident_kv as u64);
    let read = session.read_with(&tokens, Outputs::Last, |_, _| {}, |p| bar.update(p));
    drop(bar);
    if let Err(Error::Interrupted { read, total }) = read {
        note!("interrupted after {read} of {total} tokens");
        return Ok(ExitCode::from(130));
    }
    read?;
    session.mark()?;
    let prefill_s = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let (mut found, mut decoded) = (Vec::new(), 0);
    for placed in &haystack.needles {
        let needle = &placed.needle;
        let (got, n) = ask(&mut session, &needle.question, tokens.len())?;
        decoded += n;
        let pass = needle.is_answered_by(&got);
        if !args.model.json {
            let mark = if pass { "ok  " } else { "MISS" };
            let (depth, name) = (placed.depth * 100.0, &needle.name);
            say!(
                "{mark} {depth:5.1} %  {name:22} {}  answered {}",
                needle.code,
                got.trim()
            )?;
        }
        found.push(Found {
            depth: placed.depth * 100.0,
            name: needle.name.clone(),
            expected: needle.code.clone(),
            got,
            pass,
        });
    }
    let decode_ms_per_token = started.elapsed().as_secs_f64() * 1e3 / decoded.max(1) as f64;
    let memory = session.memory();
    let right = found.iter().filter(|f| f.pass).count();
    let all = right == found.len();
    if args.model.json {
        print_json(&Report {
            tokens: tokens.len(),
            needles: found,
            prefill_s,
            decode_ms_per_token,
            policy: session.policy_name(),
            resident_kv_bytes: memory.resident_kv,
            host_kv_bytes: memory.host_kv,
            index_bytes: memory.index,
            stock_kv_bytes: plan.stock_kv_bytes,
            blocks_swapped: session.stats().blocks_swapped,
            peak_rss_bytes: crate::output::peak_rss(),
        })?;
    } else {
        say!(
            "{right} of {} needles found in {} tokens",
            found.len(),
            tokens.len()
        )?;
        say!(
            "read in {prefill_s:.1} s ({:.0} tokens/s), then {decode_ms_per_token:.1} ms a token",
            tokens.len() as f64 / prefill_s
        )?;
        say!(
            "KV cache: {} resident, {} in host RAM, {} index; stock llama.cpp keeps {} resident",
            bytes(memory.resident_kv as u64),
            bytes(memory.host_kv as u64),
            bytes(memory.index as u64),
            bytes(plan.stock_kv_bytes)
        )?;
    }
    // Other rules and other models may miss needles; this must not.
    if !all && opened.bundled && policy == "exact" {
        bail!(
            "true scores missed a needle that the bundled model finds: this is a bug of kiv, please report it"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks one question and takes it back: the answer and the tokens decoded.
fn ask(session: &mut Session, question: &str, text_len: usize) -> Result<(String, usize)> {
    let question = session.model().tokenize(question, false);
    session.read_one_by_one(&question)?;
    let options = GenerateOptions {
        max_tokens: Some(ANSWER),
        sampling: Sampling::greedy(),
        stop: vec!["\n".to_owned()],
        ..GenerateOptions::default()
    };
    let mut answer = String::new();
    let mut stream = session.generate(options);
    for piece in &mut stream {
        answer += &piece?.text;
    }
    answer += &stream.rest();
    if stream.finish() == Some(Finish::Interrupted) {
        let (read, total) = (stream.generated(), ANSWER);
        return Err(Error::Interrupted { read, total }.into());
    }
    let decoded = question.len() + stream.generated();
    session.truncate(text_len)?;
    Ok((answer, decoded))
}
