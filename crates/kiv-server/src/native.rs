//! What llama-server has of its own.

use crate::Shared;
use crate::ask::{self, Params, Raw};
use crate::engine::{Event, Summary};
use crate::fault::{Fault, Protocol};
use crate::logprobs;
use crate::messages::{Sent, messages};
use crate::tools::Tools;
use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use kiv_runtime::{ChatTemplate, Finish, GenerateOptions};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio_stream::StreamExt;

fn answer(result: Result<Value, Fault>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(fault) => fault.answer(Protocol::Native),
    }
}

pub(crate) async fn unknown(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let fault = Fault::new(
        StatusCode::NOT_FOUND,
        format!("there is no {method} {path} here"),
    );
    fault.answer(Protocol::of(path))
}

/// A path that is here, asked in another way than it is.
pub(crate) async fn another_method(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let fault = Fault::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{path} does not take {method}"),
    );
    fault.answer(Protocol::of(path))
}

pub(crate) async fn health(State(app): State<Shared>) -> Response {
    if app.engine.is_running() {
        Json(json!({"status": "ok"})).into_response()
    } else {
        ask::ended().answer(Protocol::Native)
    }
}

pub(crate) async fn props(State(app): State<Shared>) -> Response {
    let slots = app.engine.slots().len();
    let settings = json!({"n_ctx": app.config.n_ctx});
    let token = |name| {
        app.model
            .special(name)
            .map_or(String::new(), |(_, text)| text)
    };
    let template = app.config.template.as_ref().map(|template| match template {
        ChatTemplate::Jinja(text) | ChatTemplate::Named(text) => text,
    });
    Json(json!({
        "default_generation_settings": settings,
        "total_slots": slots,
        "model_alias": app.config.name,
        "chat_template": template,
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "modalities": {"vision": false, "audio": false},
        "build_info": concat!("kiv ", env!("CARGO_PKG_VERSION")),
    }))
    .into_response()
}

pub(crate) async fn slots(State(app): State<Shared>) -> Response {
    let slots = app.engine.slots();
    let slots = slots.iter().enumerate().map(|(id, slot)| {
        json!({
            "id": id, "n_ctx": app.config.n_ctx, "is_processing": slot.busy,
            "n_tokens": slot.tokens, "resident_kv_bytes": slot.resident_bytes,
            "host_kv_bytes": slot.host_bytes, "disk_kv_bytes": slot.disk_bytes,
        })
    });
    Json(slots.collect::<Vec<_>>()).into_response()
}

/// Prometheus' text form.
pub(crate) async fn metrics(State(app): State<Shared>) -> Response {
    let (counters, slots) = (app.engine.counters(), app.engine.slots());
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let sum = |of: fn(&crate::SlotState) -> usize| slots.iter().map(of).sum::<usize>();
    let mut text = String::new();
    for (name, kind, help, value) in [
        (
            "requests_total",
            "counter",
            "Requests taken",
            count(&counters.requests),
        ),
        (
            "requests_cancelled_total",
            "counter",
            "Requests given up by their client",
            count(&counters.cancelled),
        ),
        (
            "requests_failed_total",
            "counter",
            "Requests that failed",
            count(&counters.failed),
        ),
        (
            "requests_open",
            "gauge",
            "Requests that wait or run",
            count(&counters.open),
        ),
        (
            "prompt_tokens_total",
            "counter",
            "Prompt tokens read",
            count(&counters.read),
        ),
        (
            "prompt_tokens_reused_total",
            "counter",
            "Prompt tokens that were known",
            count(&counters.reused),
        ),
        (
            "generated_tokens_total",
            "counter",
            "Tokens generated",
            count(&counters.generated),
        ),
        ("sessions", "gauge", "Sessions", slots.len()),
        (
            "context_tokens",
            "gauge",
            "Tokens in all sessions",
            sum(|s| s.tokens),
        ),
        (
            "resident_kv_bytes",
            "gauge",
            "KV cache on the device",
            sum(|s| s.resident_bytes),
        ),
        (
            "host_kv_bytes",
            "gauge",
            "Cold rows in host memory",
            sum(|s| s.host_bytes),
        ),
        (
            "disk_kv_bytes",
            "gauge",
            "Cold rows on disk, of all sessions",
            sum(|s| s.disk_bytes),
        ),
        (
            "stored_contexts",
            "gauge",
            "Contexts on disk that no session holds",
            count(&counters.stored),
        ),
        (
            "contexts_unsaved_total",
            "counter",
            "Times that a context could not be kept",
            count(&counters.unsaved),
        ),
    ] {
        let _ = writeln!(
            text,
            "# HELP kiv_{name} {help}\n# TYPE kiv_{name} {kind}\nkiv_{name} {value}"
        );
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, text).into_response()
}

pub(crate) async fn tokenize(State(app): State<Shared>, Raw(body): Raw) -> Response {
    let tokens = || {
        let mut params = Params::parse(&body)?;
        params.refuse("with_pieces", &[json!(false)])?;
        params.refuse("parse_special", &[json!(true)])?;
        let text: String = params.need("content")?;
        let start = params.take::<bool>("add_special")?.unwrap_or(false);
        Ok(json!({"tokens": ask::tokens(&app, &text, start)}))
    };
    answer(tokens())
}

pub(crate) async fn detokenize(State(app): State<Shared>, Raw(body): Raw) -> Response {
    let text = || {
        let tokens: Vec<Value> = Params::parse(&body)?.need("tokens")?;
        let tokens = ask::known(&app, &tokens).ok_or_else(|| {
            let most = app.model.n_vocab() - 1;
            Fault::param("tokens", format!("tokens must be a list of 0 to {most}"))
        })?;
        Ok(json!({"content": app.model.detokenize(&tokens)}))
    };
    answer(text())
}

pub(crate) async fn apply_template(State(app): State<Shared>, Raw(body): Raw) -> Response {
    let prompt = || {
        let mut params = Params::parse(&body)?;
        params.refuse("add_generation_prompt", &[json!(true)])?;
        let tools = Tools::take(&mut params)?;
        let said: Vec<Sent> = params.need("messages")?;
        let variables = ask::template_variables(&mut params)?;
        let prompt = ask::render(&app, messages(said)?, &tools, variables)?;
        Ok(json!({"prompt": prompt}))
    };
    answer(prompt())
}

pub(crate) async fn completion(State(app): State<Shared>, Raw(body): Raw) -> Response {
    let done = complete(&app, &body).await;
    done.unwrap_or_else(|fault| fault.answer(Protocol::Native))
}

/// Where llama-server's clients look for how likely tokens were.
const PROBABILITIES: &str = "completion_probabilities";

async fn complete(app: &Shared, body: &[u8]) -> Result<Response, Fault> {
    let mut params = Params::parse(body)?;
    for (name, harmless) in [
        ("post_sampling_probs", vec![json!(false)]),
        ("logit_bias", vec![json!([])]),
        ("image_data", vec![json!([])]),
        ("n_cmpl", vec![json!(1)]),
        ("n", vec![json!(1)]),
        ("lora", vec![json!([])]),
        ("n_indent", vec![json!(0)]),
        ("return_tokens", vec![json!(false)]),
        ("t_max_predict_ms", vec![json!(0), json!(-1)]),
    ] {
        params.refuse(name, &harmless)?;
    }
    let prompt = ask::prompt(app, &mut params)?;
    let most = params.whole("n_predict", -2, ask::MOST)?;
    let most = most.or(params.whole("max_tokens", -2, ask::MOST)?);
    let options = GenerateOptions {
        max_tokens: most.filter(|n| *n >= 0).map(|n| n as usize),
        sampling: ask::sampling(&mut params, 0.8)?,
        grammar: ask::grammar(app, &mut params)?,
        stop: ask::stops(&mut params)?,
        ignore_end: params.take("ignore_eos")?.unwrap_or(false),
        likeliest: logprobs::n_probs(&mut params)?,
    };
    let is_asked = options.likeliest.is_some();
    let stream = params.take::<bool>("stream")?.unwrap_or(false);
    let events = ask::submit(app, prompt, options, "prompt", false)?;
    if !stream {
        let whole = ask::collect(events).await?;
        let mut last = last(&whole.text, &whole.summary);
        if is_asked {
            last[PROBABILITIES] = logprobs::native(&app.model, &whole.chosen);
        }
        return Ok(Json(last).into_response());
    }
    let app = Shared::clone(app);
    let lines = events.map(move |event| {
        let line = match event {
            Event::Reading {
                read,
                total,
                reused,
            } => json!({
                "content": "", "stop": false,
                "prompt_progress": {"total": total, "cache": reused, "processed": read},
            }),
            Event::Text { text, chosen } => {
                let mut line = json!({"content": text, "stop": false});
                if is_asked {
                    line[PROBABILITIES] = logprobs::native(&app.model, &chosen);
                }
                line
            }
            Event::Done(summary) => last("", &summary),
            Event::Failed(why) => Fault::failed(why).body(Protocol::Native),
        };
        Ok::<_, Infallible>(format!("data: {line}\n\n"))
    });
    let kind = [(header::CONTENT_TYPE, "text/event-stream")];
    Ok((kind, Body::from_stream(lines)).into_response())
}

fn last(text: &str, summary: &Summary) -> Value {
    let kind = match summary.finish {
        Finish::End => "eos",
        Finish::Stop => "word",
        Finish::MaxTokens | Finish::ContextFull | Finish::Interrupted => "limit",
    };
    json!({
        "content": text, "stop": true, "stop_type": kind,
        "tokens_predicted": summary.generated, "tokens_evaluated": summary.prompt,
        "timings": {
            "cache_n": summary.reused,
            "prompt_n": summary.prompt - summary.reused,
            "prompt_ms": summary.reading.as_secs_f64() * 1e3,
            "predicted_n": summary.generated,
            "predicted_ms": summary.generating.as_secs_f64() * 1e3,
        },
    })
}
