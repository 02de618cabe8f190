//! ollama's protocol.

use crate::answer::{Listener, is_whole};
use crate::ask::{self, Params, Raw, check_model};
use crate::calls::Call;
use crate::engine::{Event, Summary};
use crate::fault::{Fault, Protocol};
use crate::messages::{Sent, messages};
use crate::openai::call_id;
use crate::thoughts::{Said, Thoughts, thinks};
use crate::tools::Tools;
use crate::{App, Shared};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use kiv_runtime::{GenerateOptions, Grammar};
use serde_json::{Map, Value, json};
use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_stream::StreamExt;

/// When the model will be unloaded: as far away as `ollama ps` calls "Forever".
const NEVER: &str = "2200-01-01T00:00:00Z";

/// The ollama whose protocol this is: clients refuse older ones.
const SPOKEN: &str = "0.12.10";

pub(crate) async fn version() -> Response {
    Json(json!({"version": SPOKEN})).into_response()
}

pub(crate) async fn tags(State(app): State<Shared>) -> Response {
    Json(json!({"models": [model(&app)]})).into_response()
}

pub(crate) async fn ps(State(app): State<Shared>) -> Response {
    let mut model = model(&app);
    let resident: usize = app
        .engine
        .slots()
        .iter()
        .map(|slot| slot.resident_bytes)
        .sum();
    model["size_vram"] = json!(resident);
    model["context_length"] = json!(app.config.n_ctx);
    model["expires_at"] = json!(NEVER);
    Json(json!({"models": [model]})).into_response()
}

pub(crate) async fn show(State(app): State<Shared>, Raw(body): Raw) -> Response {
    let shown = || -> Result<Value, Fault> {
        let mut params = Params::parse(&body)?;
        let name = match params.take::<String>("model")? {
            Some(name) => Some(name),
            None => params.take("name")?,
        };
        check_model(&app, name.as_deref())?;
        // Clients offer only what is said here.
        let mut capabilities = vec!["completion"];
        if let Some(template) = &app.config.template {
            capabilities.push("tools");
            if thinks(template) {
                capabilities.push("thinking");
            }
        }
        let arch = app
            .model
            .metadata("general.architecture")
            .unwrap_or_default();
        Ok(json!({
            "modelfile": "", "parameters": "", "template": "",
            "details": model(&app)["details"],
            "model_info": {"general.architecture": arch, format!("{arch}.context_length"): app.config.n_ctx},
            "capabilities": capabilities,
        }))
    };
    match shown() {
        Ok(shown) => Json(shown).into_response(),
        Err(fault) => fault.answer(Protocol::Ollama),
    }
}

fn model(app: &App) -> Value {
    let family = app
        .model
        .metadata("general.architecture")
        .unwrap_or_default();
    json!({
        "name": app.config.name, "model": app.config.name,
        "modified_at": stamp(app.started), "size": app.config.bytes, "digest": app.config.digest,
        "details": {"format": "gguf", "family": family, "families": [family], "parameter_size": "", "quantization_level": ""},
    })
}

pub(crate) async fn chat(State(app): State<Shared>, Raw(body): Raw) -> Response {
    let answer = answer(&app, &body, true).await;
    answer.unwrap_or_else(|fault| fault.answer(Protocol::Ollama))
}

pub(crate) async fn generate(State(app): State<Shared>, Raw(body): Raw) -> Response {
    let answer = answer(&app, &body, false).await;
    answer.unwrap_or_else(|fault| fault.answer(Protocol::Ollama))
}

/// What a template is told of `think`: whether to think, or how much. Models that think
/// unless they are told not to have a variable for it.
fn thinking(params: &mut Params) -> Result<Map<String, Value>, Fault> {
    let mut all = Map::new();
    match params.take::<Value>("think")? {
        None | Some(Value::Null) => {}
        Some(think @ Value::Bool(_)) => {
            all.insert("enable_thinking".to_owned(), think);
        }
        Some(Value::String(effort)) => {
            all.insert("enable_thinking".to_owned(), json!(true));
            all.insert("reasoning_effort".to_owned(), json!(effort));
        }
        Some(other) => {
            let why = format!("think must be true, false or a text such as \"low\", not {other}");
            return Err(Fault::param("think", why));
        }
    }
    Ok(all)
}

async fn answer(app: &Shared, body: &[u8], is_chat: bool) -> Result<Response, Fault> {
    let mut params = Params::parse(body)?;
    check_model(app, params.take::<String>("model")?.as_deref())?;
    let variables = thinking(&mut params)?;
    for (name, harmless) in [
        ("images", vec![json!([])]),
        ("suffix", vec![json!("")]),
        ("template", vec![json!("")]),
        ("context", vec![json!([])]),
        ("logprobs", vec![json!(false)]),
        ("top_logprobs", vec![json!(0)]),
    ] {
        params.refuse(name, &harmless)?;
    }
    let tools = if is_chat {
        Tools::take(&mut params)?
    } else {
        Tools::default()
    };
    let grammar = match params.take::<Value>("format")? {
        None => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) if text == "json" => Some(Grammar::json_object()),
        Some(schema @ Value::Object(_)) => Some(Grammar::JsonSchema(schema.to_string())),
        Some(other) => {
            let why = format!("format must be \"json\" or a JSON schema, not {other}");
            return Err(Fault::param("format", why));
        }
    };
    let grammar = ask::checked(app, grammar, "format")?;
    let line = Line {
        model: app.config.name.clone(),
        is_chat,
    };
    let (text, param, thoughts) = if is_chat {
        let said: Vec<Sent> = params.take("messages")?.unwrap_or_default();
        if said.is_empty() {
            return Ok(Json(line.loaded()).into_response());
        }
        let text = ask::render(app, messages(said)?, &tools, variables)?;
        let thoughts = Thoughts::after(&text, grammar.is_some());
        (text, "messages", thoughts)
    } else {
        let prompt: String = params.take("prompt")?.unwrap_or_default();
        if prompt.is_empty() {
            return Ok(Json(line.loaded()).into_response());
        }
        let system: Option<String> = params.take("system")?;
        let raw = params.take::<bool>("raw")?.unwrap_or(false);
        if raw || app.config.template.is_none() {
            (prompt, "prompt", Thoughts::default())
        } else {
            let system = system.filter(|system| !system.is_empty());
            let system = system.map(|system| kiv_runtime::Message::new("system", system));
            let user = kiv_runtime::Message::new("user", prompt);
            let all: Vec<_> = system.into_iter().chain([user]).collect();
            let text = ask::render(app, all, &tools, variables)?;
            let thoughts = Thoughts::after(&text, grammar.is_some());
            (text, "prompt", thoughts)
        }
    };
    let stream = params.take::<bool>("stream")?.unwrap_or(true);
    let mut within = params.within("options")?;
    let most = within.whole("num_predict", -2, ask::MOST)?;
    let options = GenerateOptions {
        max_tokens: most.filter(|n| *n >= 0).map(|n| n as usize),
        sampling: ask::sampling(&mut within, 0.8)?,
        grammar,
        stop: ask::stops(&mut within)?,
        ..GenerateOptions::default()
    };
    let events = ask::submit(app, ask::tokens(app, &text, true), options, param, false)?;
    let listener = Listener::new(tools, thoughts);
    if stream {
        return Ok(line.stream(events, listener));
    }
    let whole = ask::collect(events).await?;
    let (said, calls) = listener.whole(&whole.text, whole.summary.finish);
    Ok(Json(line.last(&said, &calls, &whole.summary)).into_response())
}

struct Line {
    model: String,
    is_chat: bool,
}

impl Line {
    fn some(&self, said: &Said) -> Value {
        let mut line =
            json!({"model": self.model, "created_at": stamp(SystemTime::now()), "done": false});
        if self.is_chat {
            line["message"] = json!({"role": "assistant", "content": said.text});
        } else {
            line["response"] = json!(said.text);
        }
        if !said.thoughts.is_empty() {
            let at = if self.is_chat {
                &mut line["message"]
            } else {
                &mut line
            };
            at["thinking"] = json!(said.thoughts);
        }
        line
    }

    /// To who asks nothing, which is how clients have a model loaded.
    fn loaded(&self) -> Value {
        let mut line = self.some(&Said::default());
        line["done"] = json!(true);
        line["done_reason"] = json!("load");
        line
    }

    fn last(&self, said: &Said, calls: &[Call], summary: &Summary) -> Value {
        let mut line = self.some(said);
        if !calls.is_empty() {
            line["message"]["tool_calls"] = calls_json(calls);
        }
        let nanos = |time: Duration| time.as_nanos() as u64;
        line["done"] = json!(true);
        let reason = if is_whole(summary.finish) {
            "stop"
        } else {
            "length"
        };
        line["done_reason"] = json!(reason);
        line["total_duration"] = json!(nanos(summary.reading + summary.generating));
        line["load_duration"] = json!(0);
        line["prompt_eval_count"] = json!(summary.prompt);
        line["prompt_eval_duration"] = json!(nanos(summary.reading));
        line["eval_count"] = json!(summary.generated);
        line["eval_duration"] = json!(nanos(summary.generating));
        line
    }

    fn stream(self, events: ask::Events, mut listener: Listener) -> Response {
        let lines = events.filter_map(move |event| {
            let line = match event {
                Event::Reading { .. } => return None,
                // Empty lines, too: a client that has gone is noticed by them.
                Event::Text { text, .. } => self.some(&listener.hear(&text)),
                Event::Done(summary) => {
                    let (rest, calls) = std::mem::take(&mut listener).end(summary.finish);
                    self.last(&rest, &calls, &summary)
                }
                Event::Failed(why) => Fault::failed(why).body(Protocol::Ollama),
            };
            Some(Ok::<_, Infallible>(line.to_string() + "\n"))
        });
        let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
        (kind, Body::from_stream(lines)).into_response()
    }
}

/// Calls as ollama's clients want them: some tell them apart by their number.
fn calls_json(calls: &[Call]) -> Value {
    let calls = calls.iter().enumerate().map(|(i, call)| {
        let function = json!({"index": i, "name": call.name, "arguments": call.arguments});
        json!({"id": call_id(), "function": function})
    });
    calls.collect()
}

/// RFC 3339, UTC.
fn stamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days from 1 March 0000, in which leap days come last (Howard Hinnant's
    // `civil_from_days`).
    let z = days + 719_468;
    let (era, day) = (z / 146_097, z % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let date = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_apart() {
        let call = Call {
            name: "time".to_owned(),
            arguments: json!({"zone": 1}),
        };
        let calls = calls_json(&[call.clone(), call]);
        for i in 0..2 {
            let expected = json!({"index": i, "name": "time", "arguments": {"zone": 1}});
            assert_eq!(calls[i]["function"], expected);
        }
        assert_ne!(calls[0]["id"], calls[1]["id"]);
    }

    #[test]
    fn stamps() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000Z"),
        ] {
            assert_eq!(stamp(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
