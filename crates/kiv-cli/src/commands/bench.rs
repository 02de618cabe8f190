//! `kiv bench`: speed and memory, policies side by side in one run.

mod timeline;

use crate::args::{BenchArgs, Fill, SyntheticArgs};
use crate::bundled::cache_folders;
use crate::model::{self, passing_builder, session};
use crate::output::{ReadBar, bytes, peak_rss, print_json, reset_peak_rss};
use anyhow::{Result, bail};
use kiv_gguf::ModelFile;
use kiv_runtime::{Model, Outputs, Timeline, Token, device_memory};
use kiv_synthetic::Synthetic;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use timeline::Drawing;

/// What `--stops` adds.
const STOPS: &str = "full+stops";

/// What one policy did in one round.
#[derive(Clone, Default)]
struct Sample {
    prefill_s: f64,
    decode_ms: f64,
    select_ms: f64,
    swap_ms: f64,
    blocks_swapped: f64,
    disk_hits: f64,
    disk_misses: f64,
    disk_wait_ms: f64,
    seal_s: f64,
    index_s: f64,
}

/// A row of `kiv bench --json`.
#[derive(Serialize)]
struct Row<'a> {
    model: &'a str,
    policy: &'a str,
    n_ctx: usize,
    fill: &'static str,
    rounds: usize,
    prefill_s: f64,
    prefill_tok_s: f64,
    /// Prefill speed over the first policy's, at this length.
    prefill_speed_ratio: f64,
    /// Of the time reading: copying rows out, and building the index.
    seal_s: f64,
    index_s: f64,
    decode_ms_per_token: f64,
    /// Decode speed over the first policy's, at this length.
    decode_speed_ratio: f64,
    /// Of a decoded token.
    select_ms: f64,
    swap_ms: f64,
    blocks_swapped_per_token: f64,
    resident_kv_bytes: usize,
    host_kv_bytes: usize,
    index_bytes: usize,
    disk_bytes: usize,
    /// Reads of cold rows that memory served, and that went to disk, and the
    /// time for which the model waited for the disk; of a decoded token.
    disk_hits_per_token: f64,
    disk_misses_per_token: f64,
    disk_wait_ms: f64,
    /// Where a GPU's own streams swap: shares of the blocks that were there before they
    /// were wanted, and of the time of transfers that passed while something was computed.
    gpu_foreseen: Option<f64>,
    gpu_hidden: Option<f64>,
    /// Where a device searches the index: bytes of its memory, and searches that it has done.
    device_index_bytes: Option<usize>,
    device_searches: Option<u64>,
    /// Bytes that are taken of the memory of all GPUs, by whomever, after the last token; where
    /// there is one.
    device_used_bytes: Option<usize>,
    peak_rss_bytes: Option<u64>,
}

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let synthetic = args.synthetic.model()?;
    let opened = match &synthetic {
        Some(model) => model::open_file(&file(model, &args.synthetic)?, false, &args.model)?,
        None => model::open(&args.model)?,
    };
    let name = name(&opened.file);
    let longest = args.ctx.iter().copied().max().unwrap_or(0);
    let shortest = args.ctx.iter().copied().min().unwrap_or(0);
    if args.timeline.is_some() && args.predict.min(shortest) < 2 {
        bail!(
            "--timeline draws a token besides those that are measured: -n 2 and --ctx 2 at least"
        );
    }
    if let Some(path) = &args.timeline {
        // Told now, not after all has been measured.
        Drawing::default().write(path)?;
    }
    let model = opened.load_for(&args.model, &args.cache, &args.kv_policy, longest)?;
    // Text and what is decoded after it are one context. What is too long is told at once.
    let decoded = args.predict.min(longest);
    let room = match args.model.ctx_size {
        0 => opened.n_ctx(&args.model).max(longest + decoded),
        given => given,
    };
    if longest + decoded > room && args.kv_policy.iter().any(|policy| policy != "full") {
        bail!(
            "--ctx {longest} with {decoded} tokens to decode does not fit the context of {room} \
             tokens: at most {} (--ctx-size)",
            room.saturating_sub(args.predict)
        );
    }
    note!("{}", kiv_runtime::system_info());
    let text = match &synthetic {
        Some(model) => model.tokens(longest, args.seed),
        None => text(&model, longest, args.seed),
    };
    if !args.model.json {
        say!("{name}")?;
        say!(
            "{:10} {:>8} {:9} {:>9} {:>9} {:>8} {:>7} {:>7} {:>9} {:>8} {:>9} {:>9} {:>10} {:>10}",
            "policy",
            "context",
            "fill",
            "read s",
            "tok/s",
            "ratio",
            "seal s",
            "index s",
            "ms/token",
            "ratio",
            "select ms",
            "swap ms",
            "resident",
            "host"
        )?;
    }
    let mut drawing = Drawing::default();
    for &n_ctx in &args.ctx {
        let stops = args.stops.then_some(STOPS);
        let policies: Vec<&str> = (args.kv_policy.iter().map(String::as_str).chain(stops))
            .filter(|p| {
                let retrieves = kiv_policies::by_name(p).is_some_and(|p| p.retrieves());
                let possible = args.fill == Fill::Text || retrieves || is_full(p);
                if !possible {
                    note!("{p} keeps nothing that could be filled: no row at {n_ctx} tokens");
                }
                possible
            })
            .collect();
        let mut rows: Vec<(Vec<Sample>, Row<'_>)> = Vec::new();
        for round in 0..args.rounds.max(1) {
            for (i, policy) in policies.iter().enumerate() {
                reset_peak_rss();
                let text = &text[..n_ctx];
                let (sample, row, timeline) = measure(args, &model, &name, (policy, room), text)?;
                if let Some(timeline) = timeline.filter(|_| round == 0) {
                    drawing.add((policy, n_ctx), &timeline);
                }
                if round == 0 {
                    rows.push((vec![sample], row));
                } else {
                    rows[i].0.push(sample);
                }
            }
        }
        let first = rows
            .first()
            .map(|(samples, _)| median(samples))
            .unwrap_or_default();
        for (samples, mut row) in rows {
            let m = median(&samples);
            row.rounds = samples.len();
            row.prefill_s = m.prefill_s;
            row.prefill_tok_s = n_ctx as f64 / m.prefill_s;
            row.prefill_speed_ratio = first.prefill_s / m.prefill_s;
            row.decode_ms_per_token = m.decode_ms;
            row.decode_speed_ratio = first.decode_ms / m.decode_ms;
            row.select_ms = m.select_ms;
            row.swap_ms = m.swap_ms;
            row.blocks_swapped_per_token = m.blocks_swapped;
            row.disk_hits_per_token = m.disk_hits;
            row.disk_misses_per_token = m.disk_misses;
            row.disk_wait_ms = m.disk_wait_ms;
            row.seal_s = m.seal_s;
            row.index_s = m.index_s;
            print(args, &row)?;
        }
    }
    if let Some(path) = &args.timeline {
        drawing.write(path)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The synthetic model's file, made if it is not there.
fn file(model: &Synthetic, args: &SyntheticArgs) -> Result<PathBuf, kiv_synthetic::Error> {
    let making = |path: &std::path::Path, n| {
        note!("making {}, {}", path.display(), bytes(n));
    };
    if let Some(folder) = &args.synthetic_dir {
        return model.file_in(folder, making);
    }
    // A folder that cannot be made is no reason to try none other.
    let mut folders = cache_folders();
    let usable = folders.find(|folder| std::fs::create_dir_all(folder).is_ok());
    model.file_in(&usable.unwrap_or_else(std::env::temp_dir), making)
}

/// What a model calls itself, or its file's name.
fn name(file: &ModelFile) -> String {
    let of_file = || file.path.file_name().unwrap_or_default().to_string_lossy();
    file.name.clone().unwrap_or_else(|| of_file().into_owned())
}

/// `n` tokens of generated prose.
fn text(model: &Model, n: usize, seed: u64) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(n);
    for paragraph in kiv_haystack::Prose::new(seed) {
        tokens.extend(model.tokenize(&(paragraph + "\n"), tokens.is_empty()));
        if tokens.len() >= n {
            break;
        }
    }
    tokens.truncate(n);
    tokens
}

/// Whether everything is resident.
fn is_full(policy: &str) -> bool {
    ["full", STOPS].contains(&policy)
}

fn measure<'a>(
    args: &BenchArgs,
    model: &Model,
    name: &'a str,
    (policy, room): (&'a str, usize),
    text: &[Token],
) -> Result<(Sample, Row<'a>, Option<Timeline>)> {
    let n_ctx = text.len();
    // Decoding repeats the text's end; there must be room for it.
    let decode = &text[n_ctx.saturating_sub(args.predict)..];
    let room = if is_full(policy) {
        n_ctx + decode.len()
    } else {
        room
    };
    // What is drawn is not measured.
    let drawn = usize::from(args.timeline.is_some());
    let (decode, drawn) = decode.split_at(decode.len() - drawn);
    let named = if is_full(policy) { "full" } else { policy };
    let mut builder = passing_builder(model, &args.model, &args.cache, named).ctx_size(room);
    if policy == STOPS {
        builder = builder.stop_for_nothing();
    }
    let mut session = session(builder)?;
    let started = Instant::now();
    match args.fill {
        Fill::Text => {
            let bar = ReadBar::new(n_ctx, session.memory().resident_kv as u64);
            session.read_with(text, Outputs::Last, |_, _| {}, |p| bar.update(p))?;
        }
        Fill::Synthetic => session.fill_synthetic(text, args.seed)?,
    }
    let prefill_s = started.elapsed().as_secs_f64();
    let before = session.stats();
    let started = Instant::now();
    // One call, as a stock loop would make them: token by token.
    session.read_one_by_one(decode)?;
    let per_token = 1e3 / decode.len().max(1) as f64;
    let decode_ms = started.elapsed().as_secs_f64() * per_token;
    let spent = session.stats().since(&before);
    let timeline = match drawn {
        [token, ..] => Some(session.read_timed(*token)?),
        [] => None,
    };
    let memory = session.memory();
    let devices = device_memory();
    let sample = Sample {
        prefill_s,
        decode_ms,
        select_ms: spent.select.as_secs_f64() * per_token,
        swap_ms: spent.swap.as_secs_f64() * per_token,
        blocks_swapped: spent.blocks_swapped as f64 / decode.len().max(1) as f64,
        disk_hits: spent.reads.hits as f64 / decode.len().max(1) as f64,
        disk_misses: spent.reads.misses as f64 / decode.len().max(1) as f64,
        disk_wait_ms: spent.reads.waited.as_secs_f64() * per_token,
        seal_s: before.seal.as_secs_f64(),
        index_s: before.index.as_secs_f64(),
    };
    let row = Row {
        model: name,
        policy,
        n_ctx,
        fill: match args.fill {
            Fill::Text => "text",
            Fill::Synthetic => "synthetic",
        },
        rounds: 0,
        prefill_s: 0.0,
        prefill_tok_s: 0.0,
        prefill_speed_ratio: 0.0,
        seal_s: 0.0,
        index_s: 0.0,
        decode_ms_per_token: 0.0,
        decode_speed_ratio: 0.0,
        select_ms: 0.0,
        swap_ms: 0.0,
        blocks_swapped_per_token: 0.0,
        resident_kv_bytes: memory.resident_kv,
        host_kv_bytes: memory.host_kv,
        index_bytes: memory.index,
        disk_bytes: memory.disk,
        disk_hits_per_token: 0.0,
        disk_misses_per_token: 0.0,
        disk_wait_ms: 0.0,
        gpu_foreseen: session.gpu_counters().map(|c| c.foreseen()),
        gpu_hidden: session.gpu_overlap()?.map(|o| o.share()),
        device_index_bytes: session.device_index().map(|d| d.bytes),
        device_searches: session.device_index().map(|d| d.searches),
        device_used_bytes: (!devices.is_empty())
            .then(|| devices.iter().map(|d| d.total - d.free.min(d.total)).sum()),
        peak_rss_bytes: peak_rss(),
    };
    Ok((sample, row, timeline))
}

/// Each figure's own median.
fn median(samples: &[Sample]) -> Sample {
    let middle = |get: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(get).collect();
        values.sort_by(f64::total_cmp);
        let n = values.len();
        if n % 2 == 1 {
            values[n / 2]
        } else {
            (values[n / 2 - 1] + values[n / 2]) / 2.0
        }
    };
    Sample {
        prefill_s: middle(|s| s.prefill_s),
        decode_ms: middle(|s| s.decode_ms),
        select_ms: middle(|s| s.select_ms),
        swap_ms: middle(|s| s.swap_ms),
        blocks_swapped: middle(|s| s.blocks_swapped),
        disk_hits: middle(|s| s.disk_hits),
        disk_misses: middle(|s| s.disk_misses),
        disk_wait_ms: middle(|s| s.disk_wait_ms),
        seal_s: middle(|s| s.seal_s),
        index_s: middle(|s| s.index_s),
    }
}

fn print(args: &BenchArgs, row: &Row<'_>) -> Result<()> {
    if args.model.json {
        return print_json(row);
    }
    say!(
        "{:10} {:>8} {:9} {:>9.2} {:>9.0} {:>8.3} {:>7.2} {:>7.2} {:>9.3} {:>8.3} {:>9.3} {:>9.3} {:>10} {:>10}",
        row.policy,
        row.n_ctx,
        row.fill,
        row.prefill_s,
        row.prefill_tok_s,
        row.prefill_speed_ratio,
        row.seal_s,
        row.index_s,
        row.decode_ms_per_token,
        row.decode_speed_ratio,
        row.select_ms,
        row.swap_ms,
        bytes(row.resident_kv_bytes as u64),
        bytes(row.host_kv_bytes as u64)
    )?;
    Ok(())
}
