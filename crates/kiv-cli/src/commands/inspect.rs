//! `kiv inspect`: what a model is made of and what it will take.

use crate::args::InspectArgs;
use crate::model;
use crate::output::{bytes, print_json};
use anyhow::Result;
use kiv_gguf::LayerKind;
use serde_json::json;
use std::process::ExitCode;

pub(crate) fn run(args: &InspectArgs) -> Result<ExitCode> {
    let opened = model::open(&args.model)?;
    let file = &opened.file;
    let n_ctx = opened.n_ctx(&args.model);
    let policy = &args.policy.kv_policy;
    let obstacle = file.tierable().err().map(|e| e.to_string());
    let plan = model::plan(file, &args.model, &args.cache, policy, n_ctx, n_ctx)?;
    if args.model.json {
        let layers: Vec<_> = file
            .layers
            .iter()
            .map(|l| {
                json!({
                    "il": l.il, "kind": l.kind.name(), "n_head": l.n_head,
                    "n_head_kv": l.n_head_kv, "head_dim": l.key_dim, "value_dim": l.value_dim,
                })
            })
            .collect();
        print_json(&json!({
            "arch": file.arch, "name": file.name, "file_type": file.file_type,
            "n_params": file.n_params, "n_layer": file.n_layer, "n_ctx_train": file.n_ctx_train,
            "layers": layers, "n_ctx": n_ctx, "policy": policy, "tierable": obstacle.is_none(),
            "obstacle": obstacle,
            "plan": {
                "resident_kv_bytes": plan.resident_kv_bytes, "host_kv_bytes": plan.host_kv_bytes,
                "index_bytes": plan.index_bytes,
                "indexing_bytes": plan.indexing_bytes, "disk_bytes": plan.disk_bytes,
                "weights_bytes": plan.weights_bytes, "compute_bytes": plan.compute_bytes,
                "total_host_bytes": plan.total_host_bytes,
            },
            "stock_kv_bytes": plan.stock_kv_bytes,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let name = file.name.as_deref().unwrap_or("unnamed");
    say!("{}", file.path.display())?;
    say!(
        "{name}: {}, {}, {:.1} M parameters, {} layers, trained for {} tokens",
        file.arch,
        file.file_type,
        file.n_params as f64 / 1e6,
        file.n_layer,
        file.n_ctx_train
    )?;
    for (first, last) in runs(file) {
        let l = &file.layers[first];
        let which = if first == last {
            format!("layer {first}")
        } else {
            format!("layers {first}-{last}")
        };
        let window = match l.kind {
            LayerKind::SlidingWindow { n_swa } => format!(" of {n_swa} tokens"),
            LayerKind::Shared { source } => format!(" with layer {source}"),
            _ => String::new(),
        };
        say!(
            "  {which}: {}{window}, {} heads, {} KV heads of {}",
            l.kind.name(),
            l.n_head,
            l.n_head_kv,
            l.key_dim
        )?;
    }
    say!("at {n_ctx} tokens with --kv-policy {policy}:")?;
    for (what, n) in [
        ("resident KV cache", plan.resident_kv_bytes),
        ("host tier", plan.host_kv_bytes),
        ("index", plan.index_bytes),
        ("indexing (estimate)", plan.indexing_bytes),
        ("disk tier", plan.disk_bytes),
        ("weights", plan.weights_bytes),
        ("computation (estimate)", plan.compute_bytes),
        ("all of that but the disk", plan.total_host_bytes),
        ("stock llama.cpp's KV cache", plan.stock_kv_bytes),
    ] {
        say!("  {what:27} {:>11}", bytes(n))?;
    }
    if let Some(obstacle) = obstacle {
        say!("not for a tiered cache: {obstacle}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Stretches of layers that are alike: (first, last) index.
fn runs(file: &kiv_gguf::ModelFile) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, layer) in file.layers.iter().enumerate() {
        let alike = |other: &kiv_gguf::LayerInfo| {
            (other.kind, other.n_head, other.n_head_kv, other.key_dim)
                == (layer.kind, layer.n_head, layer.n_head_kv, layer.key_dim)
        };
        match runs.last_mut() {
            Some((first, last)) if alike(&file.layers[*first]) => *last = i,
            _ => runs.push((i, i)),
        }
    }
    runs
}
