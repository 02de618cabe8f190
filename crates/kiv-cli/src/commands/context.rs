//! `kiv context`: contexts on disk.

use crate::args::{ContextArgs, ContextCommand};
use crate::output::{bytes, hex, print_json, shown};
use anyhow::{Result, bail};
use kiv_context::{Info, Manifest};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

pub(crate) fn run(args: &ContextArgs) -> Result<ExitCode> {
    match &args.command {
        ContextCommand::List(args) => list(&args.kv_dir, args.json)?,
        ContextCommand::Info(args) => {
            let info = kiv_context::info(&args.kv_dir)?;
            if args.json {
                print_json(&document(&info))?;
            } else {
                print(&info)?;
            }
        }
        ContextCommand::Verify(args) => return verify(&args.kv_dir, args.json),
        ContextCommand::Fork(args) => {
            kiv_context::fork(&args.from.kv_dir, &args.to)?;
            if args.from.json {
                print_json(&json!({"path": shown(&args.to), "from": shown(&args.from.kv_dir)}))?;
            }
        }
        ContextCommand::Rm(args) => {
            kiv_context::remove(&args.kv_dir)?;
            if args.json {
                print_json(&json!({"removed": shown(&args.kv_dir)}))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(folder: &Path, json: bool) -> Result<()> {
    for path in kiv_context::list(folder)? {
        match kiv_context::info(&path) {
            Ok(info) if json => print_json(&document(&info))?,
            Ok(info) => say!(
                "{:>10} tokens {:>10}  {}  {}",
                info.manifest.n_tokens,
                bytes(info.disk_bytes),
                info.manifest.identity.model_name,
                path.display()
            )?,
            Err(error) if json => {
                print_json(&json!({"path": shown(&path), "error": error.to_string()}))?;
            }
            Err(error) => say!("{error}")?,
        }
    }
    Ok(())
}

fn print(info: &Info) -> Result<()> {
    let Manifest {
        identity,
        commit,
        n_tokens,
        segments,
        parts,
        ..
    } = &info.manifest;
    say!("{}", info.path.display())?;
    say!("  model            {}", identity.model_name)?;
    say!("  tokens           {n_tokens}")?;
    say!(
        "  sealed blocks    {} of {} tokens, K {}, V {}, in {} files",
        info.manifest.n_blocks(),
        identity.block,
        identity.key_format,
        identity.value_format,
        segments.len()
    )?;
    say!("  commits          {commit}")?;
    say!("  on disk          {}", bytes(info.disk_bytes))?;
    say!("  --kv-block       {}", identity.block)?;
    say!("  --kv-sinks       {}", identity.first_position)?;
    for (key, value) in &identity.settings {
        say!("  {key:16} {value}")?;
    }
    for part in parts {
        say!("  part             {} ({})", part.name, bytes(part.len))?;
    }
    Ok(())
}

fn document(info: &Info) -> Value {
    let it = &info.manifest;
    let settings: serde_json::Map<String, Value> = it
        .identity
        .settings
        .iter()
        .map(|(key, value)| (key.clone(), value.clone().into()))
        .collect();
    json!({
        "path": shown(&info.path), "version": kiv_context::VERSION, "model": it.identity.model_name,
        "fingerprint": hex(&it.identity.model), "tokens": it.n_tokens, "blocks": it.n_blocks(),
        "block_tokens": it.identity.block, "sinks": it.identity.first_position,
        "key_type": it.identity.key_format.name(), "value_type": it.identity.value_format.name(),
        "settings": settings, "commits": it.commit, "files": it.segments.len(),
        "disk_bytes": info.disk_bytes,
        "parts": it.parts.iter().map(|p| json!({"name": p.name, "bytes": p.len})).collect::<Vec<_>>(),
    })
}

fn verify(folder: &Path, json: bool) -> Result<ExitCode> {
    let verified = kiv_context::verify(folder)?;
    for fault in &verified.faults {
        if json {
            print_json(
                &json!({"path": shown(&fault.path), "block": fault.block, "fault": fault.what}),
            )?;
        } else {
            say!("{}: {}", fault.path.display(), fault.what)?;
        }
    }
    if json {
        print_json(&json!({
            "summary": true, "path": shown(folder), "blocks": verified.blocks, "bytes": verified.bytes,
            "faults": verified.faults.len(),
        }))?;
    } else if verified.faults.is_empty() {
        say!(
            "{}: {} blocks and all parts are as they were written ({})",
            folder.display(),
            verified.blocks,
            bytes(verified.bytes)
        )?;
    }
    if !verified.faults.is_empty() {
        bail!(
            "{} is damaged in {} places (--kv-dir): take a copy, or read the text again into \
             another folder",
            folder.display(),
            verified.faults.len()
        );
    }
    Ok(ExitCode::SUCCESS)
}
