//! `kiv verify`: this model's tiered cache against stock llama.cpp.

use crate::args::VerifyArgs;
use crate::model;
use crate::output::{print_json, print_warning};
use anyhow::{Context, Result};
use kiv_gguf::LayerKind;
use kiv_verify::{Line, Plan};
use std::process::ExitCode;

pub(crate) fn run(args: &VerifyArgs) -> Result<ExitCode> {
    let opened = model::open(&args.model)?;
    for format in &args.cache_types {
        opened
            .file
            .check_cache_types(*format, *format)
            .with_context(|| {
                format!(
                    "cannot check a {format} cache of this model: leave it out of --cache-types"
                )
            })?;
    }
    let model = opened.load(&args.model, "exact")?;
    let defaults = Plan::default();
    let n_swa = opened.file.layers.iter().filter_map(|l| match l.kind {
        LayerKind::SlidingWindow { n_swa } => Some(n_swa),
        _ => None,
    });
    let plan = Plan {
        window: n_swa.max().unwrap_or(0).max(defaults.window),
        cache_types: args.cache_types.clone(),
        ubatches: args.ubatches.clone(),
        swaps: args.swaps,
        threads: model::threads(&args.model),
        seed: args.seed,
        warn: print_warning,
        ..defaults
    };
    let mut failed = None;
    let all = kiv_verify::verify(&model, &plan, |line| {
        let printed = if args.model.json {
            print_json(line)
        } else {
            print(line)
        };
        if let Err(error) = printed {
            failed.get_or_insert(error);
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    if !all {
        note!(
            "error: this model does not pass; use --kv-policy full with it and report the lines above"
        );
    }
    Ok(ExitCode::from(u8::from(!all)))
}

fn print(line: &Line) -> Result<()> {
    let word = if line.pass { "ok  " } else { "FAIL" };
    let what = match line.check {
        "bytes" => format!(
            "{} of {} slots differ after {} swaps",
            line.differing.unwrap_or_default(),
            line.compared,
            line.swaps
        ),
        "budget" => format!(
            "KL {:.2e} nats (bound {:.2e}), max |dlogit| {:.3}",
            line.kl.unwrap_or_default(),
            line.bound,
            line.max_abs_dlogit
        ),
        _ => format!(
            "max |dlogit| {:.3e} (bound {:.3e})",
            line.max_abs_dlogit, line.bound
        ),
    };
    say!(
        "{word} {:8} cache {:4} ubatch {:3}: {what}",
        line.check,
        line.cache_type,
        line.ubatch
    )?;
    Ok(())
}
