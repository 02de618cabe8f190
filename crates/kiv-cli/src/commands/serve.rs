//! `kiv serve`: OpenAI, ollama and llama-server clients.

use crate::args::ServeArgs;
use crate::model::{self, Opened, builder};
use crate::output::{hex, print_json, print_warning};
use crate::{interrupt, template};
use anyhow::{Context, Result};
use kiv_server::{Config, Engine, EngineOptions, KeptContexts, Room};
use serde_json::json;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;

pub(crate) fn run(args: ServeArgs) -> Result<ExitCode> {
    let args = Arc::new(args);
    let policy = args.policy.kv_policy.clone();
    let opened = model::open(&args.model)?;
    let n_ctx = opened.n_ctx(&args.model);
    let plan = model::plan(&opened.file, &args.model, &args.cache, &policy, n_ctx, 0)?;
    model::check_memory(&plan, &args.model)?;
    let room = room(&opened, &args, plan.weights_bytes);
    let model = opened.load(&args.model, &policy)?;
    let template = template::choose(&args.template, &opened, &model)?;
    if template.is_none() {
        note!(
            "warning: the model carries no chat template: conversations are refused, plain prompts are not (--chat-template)"
        );
    }
    let (template, stop) = template.map_or((None, Vec::new()), |t| (Some(t.template), t.stop));
    let stem = opened.file.path.file_stem().unwrap_or_default();
    let config = Config {
        digest: digest(&opened)?,
        name: (args.alias.clone())
            .or_else(|| Some(opened.found.as_ref()?.name.clone()))
            .unwrap_or_else(|| stem.to_string_lossy().into_owned()),
        bytes: std::fs::metadata(&opened.file.path).map_or(0, |found| found.len()),
        template,
        stop,
        n_ctx,
        // An empty one, as an unset variable of a container gives, is none.
        api_key: args.api_key.clone().filter(|key| !key.trim().is_empty()),
        hosts: args.allow_host.clone(),
    };
    let options = EngineOptions {
        sessions: args.parallel,
        queue: args.queue,
        kept: args.cache.store.kv_dir.clone().map(|folder| KeptContexts {
            folder,
            most: args.kv_contexts,
            warn: print_warning,
        }),
        room,
    };
    let (address, json) = ((args.host.clone(), args.port), args.model.json);
    let engine = Engine::start(model.clone(), options, move |model, folder| {
        let builder = builder(model, &args.model, &args.cache, &policy);
        match folder {
            Some(folder) => builder.context_dir(folder).build(),
            None => builder.build(),
        }
    })?;
    let router = kiv_server::router(config, model, engine);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the server's threads")?;
    let (host, port) = address;
    runtime.block_on(async move {
        let listener = TcpListener::bind((host.as_str(), port))
            .await
            .with_context(|| {
                format!("cannot listen on {host}:{port} (--host, --port): is another server there?")
            })?;
        let url = format!("http://{}", listener.local_addr()?);
        // Before anyone is told that it runs, and may stop it.
        let flag = interrupt::flag();
        note!("listening on {url}");
        if json {
            print_json(&json!({"listening": url}))?;
        }
        let stop = async move {
            while !flag.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            note!("stopping: running answers come to their end (again: at once)");
        };
        kiv_server::serve(listener, router, stop).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// What tells the model's file from others: its SHA-256 where a store tells it, or else a hash of
/// parts of it, for which not all of it has to be read.
fn digest(opened: &Opened) -> Result<String> {
    let of_store = opened.found.as_ref().and_then(|found| found.sha256.clone());
    Ok(match of_store {
        Some(digest) => digest,
        None => hex(&opened.file.fingerprint()?),
    })
}

/// Memory that is left for contexts, and what they will take of it; nothing where the system
/// does not tell, or with --force.
fn room(opened: &Opened, args: &Arc<ServeArgs>, weights: u64) -> Option<Room> {
    let available = kiv_gguf::available_memory().filter(|_| !args.model.force)?;
    let (file, n_ctx) = (opened.file.clone(), opened.n_ctx(&args.model));
    let args = Arc::clone(args);
    let of_session = move |n_tokens| {
        let policy = &args.policy.kv_policy;
        let plan = model::plan(&file, &args.model, &args.cache, policy, n_ctx, n_tokens);
        plan.map_or(0, |plan| plan.total_host_bytes.saturating_sub(weights))
    };
    Some(Room {
        bytes: available.saturating_sub(weights),
        of_session: Arc::new(of_session),
    })
}
