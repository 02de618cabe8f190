//! `kiv eval`: what a policy makes of a model's answers.

mod header;
mod report;
mod resume;

use crate::args::{EvalArgs, EvalCommand, Tasks};
use crate::interrupt;
use crate::model::{self, Opened, passing_builder};
use crate::output::{ReadBar, print_json};
use anyhow::{Context, Result, bail};
use kiv_eval::{Case, Contender, Env, Figures, Outcome, Plan, Record, Summary, Task};
use kiv_runtime::{Model, SessionBuilder};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;

/// Room for a question, its answer, or a text for teacher forcing, in tokens.
const AFTER: usize = 2048;

pub(crate) fn run(args: &EvalArgs) -> Result<ExitCode> {
    if let Some(EvalCommand::Report(args)) = &args.command {
        return report::run(args);
    }
    let prompts = read_prompts(args)?;
    let plan = plan(args, &prompts)?;
    let opened = model::open(&args.model)?;
    let model = load(args, &opened, &plan)?;
    let sha256 = header::sha256(&opened.file.files)?;
    let lines = Lines::new(args, header::header(args, &opened.file, &sha256, &plan))?;
    let case = |case: &Case<'_>| key(args, &sha256, &prompts, case);
    let bar: RefCell<Option<ReadBar>> = RefCell::new(None);
    let env = Env {
        model: &model,
        builder: &|contender, n_tokens| session(args, &model, &plan, contender, n_tokens),
        interrupt: interrupt::flag(),
        // Nothing more is judged once it cannot be told.
        done: &|it| lines.failure.borrow().is_some() || lines.done.contains(&case(it)),
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
            bar.borrow_mut().take();
            let mut value = serde_json::to_value(record).unwrap_or_default();
            value["seed"] = args.seed.into();
            let entries = value["entries"].as_u64().map(|n| n as usize);
            value["case"] = case(&Case {
                task: record.task,
                contender: &record.contender,
                n_ctx: record.n_ctx,
                entries: entries.filter(|n| args.entries.contains(n)),
                prompt: record.prompt,
            })
            .into();
            lines.tell(value, &line(record));
        },
        &mut |summary: &Summary| {
            bar.borrow_mut().take();
            let value = serde_json::to_value(summary).unwrap_or_default();
            lines.tell(value, &total(summary));
        },
    );
    bar.borrow_mut().take();
    lines.finish()?;
    result?;
    Ok(ExitCode::SUCCESS)
}

/// A session of a contender for so many tokens.
fn session(
    args: &EvalArgs,
    model: &Model,
    plan: &Plan,
    contender: &Contender,
    n_tokens: usize,
) -> SessionBuilder {
    let Contender { policy, budget, .. } = contender;
    let mut cache = args.cache.with(budget.unwrap_or_default());
    cache.kv_block = contender.own_block.unwrap_or(cache.kv_block);
    if policy == "full" {
        return passing_builder(model, &args.model, &cache, policy).ctx_size(n_tokens);
    }
    if plan.tasks.contains(&Task::Recall) && drops(policy) {
        // The attention that dropped rows would have had can be told only if
        // they are kept: the same tokens are resident, and no others.
        cache.kv_window = cache.kv_window.saturating_add(cache.kv_budget);
        cache.kv_budget = 0;
        return passing_builder(model, &args.model, &cache, KEEPS);
    }
    passing_builder(model, &args.model, &cache, policy)
}

/// A policy that keeps every row, and has nothing to choose without slots.
const KEEPS: &str = "exact";

/// Whether a policy drops rows.
fn drops(policy: &str) -> bool {
    kiv_policies::by_name(policy).is_some_and(|p| !p.retrieves())
}

/// The text of --prompts, empty without.
fn read_prompts(args: &EvalArgs) -> Result<String> {
    let Some(path) = &args.prompts else {
        return Ok(String::new());
    };
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {} (--prompts)", path.display()))
}

fn plan(args: &EvalArgs, prompts: &str) -> Result<Plan> {
    let mut tasks = Vec::new();
    for choice in &args.tasks {
        match choice {
            Tasks::All => tasks.extend(Task::ALL),
            Tasks::One(task) => tasks.push(*task),
        }
    }
    if tasks == [Task::Recall] && args.kv_policy.iter().all(|p| p == "full") {
        bail!(
            "there is nothing to measure: everything is resident under full. \
             Give recall another policy (--kv-policy exact)"
        );
    }
    if let Some(reader) = &args.read_policy
        && !kiv_eval::reads_for_others(reader)
    {
        let mut able = kiv_policies::NAMES.to_vec();
        able.retain(|name| kiv_eval::reads_for_others(name));
        bail!(
            "--read-policy {reader} cannot read for others: there are {}",
            able.join(", ")
        );
    }
    let prompts = match &args.prompts {
        None => Vec::new(),
        Some(path) => kiv_eval::parse_prompts(prompts).map_err(|error| {
            anyhow::anyhow!(
                "{}: {error} (--prompts). Each line is one JSON object: \
                 {{\"context\": \"…\", \"question\": \"…\", \"answer\": \"…\"}}",
                path.display()
            )
        })?,
    };
    Ok(Plan {
        tasks: unique(tasks),
        policies: unique(args.kv_policy.clone()),
        read_policy: args.read_policy.clone(),
        block: Some(args.cache.kv_block),
        budgets: unique(args.cache.kv_budget.clone()),
        lengths: unique(args.ctx.clone()),
        entries: unique(args.entries.clone()),
        prompts,
        depths: args.depths.iter().map(|percent| percent / 100.0).collect(),
        samples: args.samples,
        seed: args.seed,
    })
}

/// Each once, where it comes first.
fn unique<T: PartialEq>(all: Vec<T>) -> Vec<T> {
    let mut unique = Vec::new();
    for item in all {
        if !unique.contains(&item) {
            unique.push(item);
        }
    }
    unique
}

/// Loads the model if everything of the plan fits the memory.
fn load(args: &EvalArgs, opened: &Opened, plan: &Plan) -> Result<Model> {
    let mut policies = plan.policies.clone();
    if plan.tasks.contains(&Task::Kld) && !policies.iter().any(|p| p == "full") {
        // Divergence is from full attention.
        policies.push("full".to_owned());
    }
    if plan.tasks.contains(&Task::Recall) && policies.iter().any(|p| drops(p)) {
        policies.push(KEEPS.to_owned());
    }
    let check = |longest: usize| -> Result<()> {
        for budget in &plan.budgets {
            let cache = args.cache.with(*budget);
            opened.check_for(
                &args.model,
                &cache,
                &policies,
                longest.saturating_add(AFTER),
            )?;
        }
        Ok(())
    };
    // Lengths that are asked for are known now, others once there is a
    // tokenizer.
    let lengths = if plan.tasks.is_empty() {
        None
    } else {
        plan.lengths.iter().copied().max()
    };
    let asked_for = lengths.unwrap_or(0);
    check(asked_for)?;
    let tiered = policies.iter().find(|p| *p != "full");
    let model = opened.load(&args.model, tiered.map_or("full", String::as_str))?;
    let longest = kiv_eval::longest(&model, plan)?;
    if longest > asked_for {
        check(longest)?;
    }
    Ok(model)
}

/// What a case is called in the lines: the same in every run with the same
/// settings.
fn key(args: &EvalArgs, model_sha256: &str, prompts: &str, case: &Case<'_>) -> String {
    let Contender {
        policy,
        budget,
        read_by,
        ..
    } = case.contender;
    let number = |n: Option<usize>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let window = budget.map(|_| args.cache.kv_window);
    let mut settings = header::settings(args, model_sha256, case.task, budget.is_none());
    if case.task == Task::Prompts {
        settings += prompts;
    }
    if let Some(reader) = read_by {
        settings += &format!(" read by {reader}");
    }
    if let Some(entries) = case.entries {
        settings += &format!(" {entries} entries");
    }
    format!(
        "{} {policy} {} {} {} {} {} {} {}",
        case.task.name(),
        case.n_ctx,
        case.prompt,
        number(*budget),
        number(window),
        args.samples,
        args.seed,
        header::short_hash(&settings),
    )
}

/// Where lines go.
struct Lines {
    /// Cases that an earlier run has finished.
    done: HashSet<String>,
    out: Option<RefCell<File>>,
    json: bool,
    /// Comes before the first line, if there is any.
    header: RefCell<Option<Value>>,
    failure: RefCell<Option<anyhow::Error>>,
}

impl Lines {
    fn new(args: &EvalArgs, header: Value) -> Result<Self> {
        let (done, out) = args.out.as_deref().map(resume::open).transpose()?.unzip();
        Ok(Self {
            done: done.unwrap_or_default(),
            out: out.map(RefCell::new),
            json: args.model.json,
            header: RefCell::new(Some(header)),
            failure: RefCell::default(),
        })
    }

    fn tell(&self, value: Value, text: &str) {
        let told = (|| -> Result<()> {
            for value in self.header.take().into_iter().chain([value]) {
                if let Some(file) = &self.out {
                    // At once: others may append to the same file.
                    let line = format!("{value}\n");
                    let written = file.borrow_mut().write_all(line.as_bytes());
                    written.context("cannot write --out")?;
                }
                if self.json {
                    print_json(&value)?;
                }
            }
            if !self.json {
                say!("{text}")?;
            }
            Ok(())
        })();
        if let Err(error) = told {
            self.failure.borrow_mut().get_or_insert(error);
        }
    }

    /// The first failure, if there was one.
    fn finish(&self) -> Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

fn line(record: &Record) -> String {
    let head = format!("{} {:>8}", contender(&record.contender), record.n_ctx);
    match &record.outcome {
        Outcome::Answered(a) => {
            let mark = if a.pass { "ok  " } else { "MISS" };
            let depth = a
                .depth
                .map_or_else(|| "     -".to_owned(), |d| format!("{d:5.1}%"));
            format!(
                "{head} {mark} {:9} {depth} {} answered {:?}",
                record.task.name(),
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
        "{} {} {:>8}:",
        summary.task.name(),
        contender(&summary.contender),
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

fn contender(contender: &Contender) -> String {
    let budget = contender.budget.map(|b| b.to_string()).unwrap_or_default();
    let by = contender.read_by.as_ref();
    let by = by.map_or_else(String::new, |by| format!(" (read by {by})"));
    format!("{:8} {budget:>5}{by}", contender.policy)
}
