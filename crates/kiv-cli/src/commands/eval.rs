//! `kiv eval`: what a policy makes of a model's answers.

use crate::args::EvalArgs;
use crate::model::{self, builder};
use crate::output::{ReadBar, print_json};
use anyhow::{Context, Result};
use kiv_eval::{Env, Figures, Outcome, Plan, Record, Summary, Task};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::ExitCode;

/// Room for a question, its answer, or a text for teacher forcing, in tokens.
const AFTER: usize = 2048;

pub(crate) fn run(args: &EvalArgs) -> Result<ExitCode> {
    let opened = model::open(&args.model)?;
    let mut policies = args.kv_policy.clone();
    if args.task == Task::Recall {
        // Everything resident is a recall of 1, and has no tiers to look at.
        policies.retain(|p| p != "full");
    }
    let longest = args.ctx.iter().copied().max().unwrap_or(0) + AFTER;
    let model = opened.load_for(&args.model, &args.cache, &policies, longest)?;
    let plan = Plan {
        task: args.task,
        policies,
        lengths: args.ctx.clone(),
        depths: args.depths.iter().map(|percent| percent / 100.0).collect(),
        samples: args.samples,
        seed: args.seed,
    };
    let case = |policy: &str, n_ctx: usize, prompt: usize| -> String {
        let (task, budget, window) = (args.task.name(), args.cache.kv_budget, args.cache.kv_window);
        format!(
            "{task} {policy} {n_ctx} {prompt} {budget} {window} {} {}",
            args.samples, args.seed
        )
    };
    let done = args
        .out
        .as_deref()
        .map(finished)
        .transpose()?
        .unwrap_or_default();
    let out = args.out.as_deref().map(open_out).transpose()?;
    let out = RefCell::new(out);
    let failure: RefCell<Option<anyhow::Error>> = RefCell::new(None);
    let bar: RefCell<Option<ReadBar>> = RefCell::new(None);
    let tell = |value: Value, text: String| {
        bar.borrow_mut().take();
        let told = (|| -> Result<()> {
            if let Some(file) = out.borrow_mut().as_mut() {
                writeln!(file, "{value}").context("cannot write --out")?;
            }
            if args.model.json {
                return print_json(&value);
            }
            println!("{text}");
            Ok(())
        })();
        if let Err(error) = told {
            failure.borrow_mut().get_or_insert(error);
        }
    };
    let env = Env {
        model: &model,
        builder: &|policy, n_tokens| {
            let built = builder(&model, &args.model, &args.cache, policy);
            if policy == "full" {
                built.ctx_size(n_tokens)
            } else {
                built
            }
        },
        done: &|policy, n_ctx, prompt| done.contains(&case(policy, n_ctx, prompt)),
        progress: &|_, total, progress| {
            bar.borrow_mut()
                .get_or_insert_with(|| ReadBar::new(total, 0))
                .update(progress);
        },
    };
    let result = kiv_eval::evaluate(
        &env,
        &plan,
        &mut |record: &Record| {
            let mut value = serde_json::to_value(record).unwrap_or_default();
            value["case"] = case(&record.policy, record.n_ctx, record.prompt).into();
            value["kv_budget"] = args.cache.kv_budget.into();
            tell(value, line(record));
        },
        &mut |summary: &Summary| {
            let mut value = serde_json::to_value(summary).unwrap_or_default();
            value["kv_budget"] = args.cache.kv_budget.into();
            tell(value, total(summary));
        },
    );
    bar.borrow_mut().take();
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    result?;
    Ok(ExitCode::SUCCESS)
}

/// Cases that an earlier run has finished. A prompt's last line may be missing
/// if the run was cut off, so the very last case is judged again.
fn finished(path: &Path) -> Result<HashSet<String>> {
    let shown = path.display();
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown} (--out)")),
    };
    let (mut done, mut last) = (HashSet::new(), None);
    for text in BufReader::new(file).lines() {
        let text = text.with_context(|| format!("cannot read {shown} (--out)"))?;
        // A line that was cut off is no record.
        let Ok(value) = serde_json::from_str::<Value>(&text) else {
            continue;
        };
        if value["summary"] == true {
            last = None;
        } else if let Some(case) = value["case"].as_str() {
            done.insert(case.to_owned());
            last = Some(case.to_owned());
        }
    }
    if let Some(case) = last {
        done.remove(&case);
    }
    Ok(done)
}

fn open_out(path: &Path) -> Result<std::fs::File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    options
        .open(path)
        .with_context(|| format!("cannot write {} (--out)", path.display()))
}

fn line(record: &Record) -> String {
    let head = format!("{:8} {:>8}", record.policy, record.n_ctx);
    match &record.outcome {
        Outcome::Answered(a) => {
            let mark = if a.pass { "ok  " } else { "MISS" };
            let depth = a
                .depth
                .map_or_else(|| "     -".to_owned(), |d| format!("{d:5.1}%"));
            format!(
                "{head} {mark} {depth} {} answered {:?}",
                a.expected,
                a.got.trim()
            )
        }
        Outcome::Recall(r) => format!("{head} {} queries measured", r.queries),
        Outcome::Divergence(d) => format!("{head} {} tokens compared", d.tokens),
    }
}

fn total(summary: &Summary) -> String {
    let head = format!(
        "{} {:8} {:>8}:",
        summary.task.name(),
        summary.policy,
        summary.n_ctx
    );
    match &summary.figures {
        Figures::Passed { passed, total } => format!("{head} {passed} of {total}"),
        Figures::Recall(r) => format!(
            "{head} mass recall {:.4} (p5 {:.4}, worst head {:.4}), top-10 recall {:.4}",
            r.mass_mean, r.mass_p5, r.mass_worst, r.topk
        ),
        Figures::Divergence(d) => format!(
            "{head} KL {:.5} nats (largest {:.3}), same top-1 {:.4}",
            d.kld_mean, d.kld_max, d.same_top1
        ),
    }
}
