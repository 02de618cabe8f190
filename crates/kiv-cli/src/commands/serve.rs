//! `kiv serve`: OpenAI, ollama and llama-server clients.

use crate::args::ServeArgs;
use crate::model::{self, builder};
use crate::output::{print_json, print_warning};
use crate::{interrupt, template};
use anyhow::{Context, Result};
use kiv_server::{Config, Engine, EngineOptions, KeptContexts};
use serde_json::json;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;

pub(crate) fn run(args: ServeArgs) -> Result<ExitCode> {
    let policy = args.policy.kv_policy.clone();
    let opened = model::open(&args.model)?;
    let n_ctx = opened.n_ctx(&args.model);
    let plan = model::plan(&opened.file, &args.model, &args.cache, &policy, n_ctx, 0)?;
    model::check_memory(&plan, &args.model)?;
    let model = opened.load(&args.model, &policy)?;
    let template = template::choose(&args.template, &opened, &model)?;
    if template.is_none() {
        note!(
            "warning: the model carries no chat template: conversations are refused, plain prompts are not (--chat-template)"
        );
    }
    let (template, stop) = template.map_or((None, Vec::new()), |t| (Some(t.template), t.stop));
    let named = opened.file.path.file_stem().unwrap_or_default();
    let config = Config {
        name: args
            .alias
            .clone()
            .unwrap_or_else(|| named.to_string_lossy().into_owned()),
        bytes: std::fs::metadata(&opened.file.path).map_or(0, |found| found.len()),
        template,
        stop,
        n_ctx,
        api_key: args.api_key.clone(),
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
    };
    let (address, json) = ((args.host.clone(), args.port), args.model.json);
    let shared = Arc::new(args);
    let engine = Engine::start(model.clone(), options, move |model, folder| {
        let builder = builder(model, &shared.model, &shared.cache, &policy);
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
