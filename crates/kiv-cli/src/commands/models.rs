//! `kiv models`: what other programs have downloaded.

use crate::args::ModelsArgs;
use crate::output::{bytes, print_json};
use anyhow::Result;
use kiv_models::{FoundModel, Problem, Stores};
use serde::Serialize;
use std::process::ExitCode;

/// A line of `kiv models --json`.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Model {
        #[serde(flatten)]
        model: &'a FoundModel,
        /// Whether the file has its checksum, if it was compared.
        #[serde(skip_serializing_if = "Option::is_none")]
        verified: Option<bool>,
    },
    Broken {
        name: &'a str,
        broken: &'a Problem,
    },
}

pub(crate) fn run(args: &ModelsArgs) -> Result<ExitCode> {
    let mut listing = Stores::from_env().list();
    if let Some(part) = &args.name {
        let part = part.to_lowercase();
        let holds = |name: &str| name.to_lowercase().contains(&part);
        listing.models.retain(|model| holds(&model.name));
        listing.broken.retain(|(name, _)| holds(name));
    }
    let mut lines = Vec::new();
    for model in &listing.models {
        let mut verified = None;
        if args.verify {
            match model.verify() {
                Ok(compared) => verified = compared.then_some(true),
                Err(problem) => {
                    listing.broken.push((model.name.clone(), problem));
                    continue;
                }
            }
        }
        lines.push(Line::Model { model, verified });
    }
    let broken = listing.broken.iter();
    lines.extend(broken.map(|(name, broken)| Line::Broken { name, broken }));
    for line in &lines {
        if args.json {
            print_json(line)?;
            continue;
        }
        match line {
            Line::Model { model, verified } => say!(
                "{:44} {:>10}  {}{}",
                model.name,
                bytes(model.bytes),
                model.source,
                if verified.is_some() {
                    ", checksum right"
                } else {
                    ""
                }
            )?,
            Line::Broken { name, broken } => say!("{name:44} unusable: {broken}")?,
        }
    }
    match &args.name {
        _ if !lines.is_empty() => {}
        Some(name) => note!("no downloaded model's name holds `{name}`: `kiv models` lists all"),
        None => note!(
            "no downloaded model found (looked for those of ollama, Hugging Face, LM Studio and llama.cpp)"
        ),
    }
    let verified = !args.verify || listing.broken.is_empty();
    Ok(if verified {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
