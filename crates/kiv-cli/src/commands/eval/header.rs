//! The line that says under which conditions the others came about.

use crate::args::EvalArgs;
use crate::model;
use crate::output::hex;
use anyhow::{Context, Result};
use kiv_eval::{Plan, Task};
use kiv_gguf::ModelFile;
use kiv_runtime::Positions;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// SHA-256 of files, one after the other, in hexadecimal.
pub(super) fn sha256(files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let cannot = || format!("cannot read {}", path.display());
        let mut file = File::open(path).with_context(cannot)?;
        loop {
            match file.read(&mut buffer).with_context(cannot)? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
    }
    Ok(hex(&hash.finalize()))
}

/// The first digits of the SHA-256 of a text.
pub(super) fn short_hash(text: &str) -> String {
    hex(&Sha256::digest(text)[..6])
}

/// The header of this run.
pub(super) fn header(args: &EvalArgs, file: &ModelFile, sha256: &str, plan: &Plan) -> Value {
    let bytes = |path: &PathBuf| path.metadata().map_or(0, |m| m.len());
    let model = &args.model;
    let threads = model::threads(model);
    json!({
        "header": true,
        "kiv_version": env!("CARGO_PKG_VERSION"),
        "model_arch": file.arch,
        "model_name": file.name,
        // Without its folder: that is nobody's business.
        "model_file": file.path.file_name().map(|n| n.to_string_lossy()),
        "model_type": file.file_type,
        "model_params": file.n_params,
        "model_bytes": file.files.iter().map(bytes).sum::<u64>(),
        "model_sha256": sha256,
        "cpu": cpu(),
        "os": std::env::consts::OS,
        "threads": threads,
        "threads_batch": model.threads_batch.unwrap_or(threads),
        "gpu_layers": model.gpu_layers.0,
        "ctx_size": model.ctx_size,
        "ubatch": model.ubatch(),
        "cache_type_k": model.cache_type_k.to_string(),
        "cache_type_v": model.cache_type_v.to_string(),
        "no_kv_offload": model.no_kv_offload,
        "rope_scaling": model.rope_scaling.map(|kind| format!("{kind:?}").to_lowercase()),
        "rope_freq_base": model.rope_freq_base,
        "rope_freq_scale": model.rope_freq_scale,
        "kv_pos": model.kv_pos.name(),
        "kv_rest": model.kv_rest,
        "kv_policy": plan.policies,
        "kv_read_policy": plan.read_policy,
        "kv_window": args.cache.kv_window,
        "kv_budget": plan.budgets,
        "kv_block": args.cache.kv_block,
        "kv_sinks": args.cache.kv_sinks,
        "kv_store_k": args.cache.store.types(model).k.to_string(),
        "kv_store_v": args.cache.store.types(model).v.to_string(),
        "tasks": plan.tasks.iter().map(|t| t.name()).collect::<Vec<_>>(),
        "ctx": plan.lengths,
        "entries": plan.entries,
        "depths": args.depths,
        "samples": plan.samples,
        "seed": plan.seed,
    })
}

/// What makes two cases different besides what their keys spell out.
pub(super) fn settings(args: &EvalArgs, model_sha256: &str, task: Task, full: bool) -> String {
    let model = &args.model;
    let mut text = format!(
        "{model_sha256} {} {} {:?} {} {} {:?}",
        model.cache_type_k,
        model.cache_type_v,
        model.rope_scaling,
        model.rope_freq_base,
        model.rope_freq_scale,
        args.depths,
    );
    if !full {
        if model.kv_pos == Positions::Remapped {
            text += " remapped";
        }
        if model.kv_rest {
            text += " rest";
        }
        let (block, sinks) = (args.cache.kv_block, args.cache.kv_sinks);
        text += &format!(" {block} {sinks} {}", model.ubatch());
        if let Some(store) = args.cache.store.kv_store {
            text += &format!(" {} {}", store.k, store.v);
        }
    }
    text + " " + task.name()
}

/// The processor's name, where the system tells.
fn cpu() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    if let Some((_, name)) = line.and_then(|l| l.split_once(':')) {
        return Some(name.trim().to_owned());
    }
    if cfg!(target_os = "macos") {
        let mut sysctl = std::process::Command::new("sysctl");
        let output = sysctl.args(["-n", "machdep.cpu.brand_string"]).output();
        let name = String::from_utf8(output.ok()?.stdout).ok()?;
        return Some(name.trim().to_owned()).filter(|n| !n.is_empty());
    }
    None
}
