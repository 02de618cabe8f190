//! OpenAI's protocol: models, chat completions, completions.

use crate::answer::{Listener, is_whole};
use crate::ask::{self, Params, Raw, Whole};
use crate::calls::Call;
use crate::engine::{Event, Summary};
use crate::fault::{Fault, Protocol};
use crate::logprobs;
use crate::messages::{Sent, messages};
use crate::thoughts::{Said, Thoughts};
use crate::tools::Tools;
use crate::{App, Shared, ask::check_model};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::StreamExt;
use kiv_runtime::{Chosen, Finish, GenerateOptions, Grammar};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) async fn models(State(app): State<Shared>) -> Response {
    Json(json!({"object": "list", "data": [told(&app)]})).into_response()
}

pub(crate) async fn model(
    State(app): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    // One that is no text is no model's either.
    let id = id.map_or("\u{fffd}".to_owned(), |Path(id)| id);
    match check_model(&app, Some(&id)) {
        Ok(()) => Json(told(&app)).into_response(),
        Err(fault) => refused(fault),
    }
}

/// What is told of the model.
fn told(app: &App) -> Value {
    let created = seconds(app.started);
    json!({"id": app.config.name, "object": "model", "created": created, "owned_by": "kiv"})
}

pub(crate) async fn chat(State(app): State<Shared>, Raw(body): Raw) -> Response {
    answer(&app, &body, Kind::Chat)
        .await
        .unwrap_or_else(refused)
}

pub(crate) async fn completions(State(app): State<Shared>, Raw(body): Raw) -> Response {
    answer(&app, &body, Kind::Text)
        .await
        .unwrap_or_else(refused)
}

fn refused(fault: Fault) -> Response {
    fault.answer(Protocol::OpenAi)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chat,
    Text,
}

/// What all pieces of an answer have in common.
struct Frame {
    kind: Kind,
    id: String,
    created: u64,
    app: Shared,
    /// Whether to tell how likely tokens were.
    likeliest: bool,
    /// Characters of the answer whose tokens have been told.
    told: usize,
}

async fn answer(app: &Shared, body: &[u8], kind: Kind) -> Result<Response, Fault> {
    let mut params = Params::parse(body)?;
    check_model(app, params.take::<String>("model")?.as_deref())?;
    for (name, harmless) in [
        ("functions", vec![json!([])]),
        ("n", vec![json!(1)]),
        ("best_of", vec![json!(1)]),
        ("logit_bias", vec![json!({})]),
        ("suffix", vec![json!("")]),
        ("echo", vec![json!(false)]),
        ("audio", vec![]),
        ("modalities", vec![json!(["text"])]),
        ("web_search_options", vec![]),
        ("add_generation_prompt", vec![json!(true)]),
    ] {
        params.refuse(name, &harmless)?;
    }
    let tools = match kind {
        Kind::Chat => Tools::take(&mut params)?,
        Kind::Text => Tools::default(),
    };
    let grammar = match (tools.grammar(), response_format(&mut params)?) {
        (None, None) => ask::grammar(app, &mut params)?,
        (Some(grammar), None) => ask::checked(app, Some(grammar), "tools")?,
        (None, format) => ask::checked(app, format, "response_format")?,
        (Some(_), Some(_)) => {
            let why = "tool_choice and response_format cannot both say what the answer must be";
            return Err(Fault::param("response_format", why));
        }
    };
    let (prompt, param, usual, thoughts) = match kind {
        Kind::Chat => {
            let said: Vec<Sent> = params.need("messages")?;
            let variables = ask::template_variables(&mut params)?;
            let text = ask::render(app, messages(said)?, &tools, variables)?;
            let thoughts = ask::thoughts(&mut params, &text, grammar.as_ref())?;
            let prompt = ask::tokens(app, &text, true);
            (prompt, "messages", None, thoughts)
        }
        Kind::Text => {
            let prompt = ask::prompt(app, &mut params)?;
            (prompt, "prompt", Some(16), Thoughts::default())
        }
    };
    // As in llama-server, less than 0 is "until it ends".
    let newer = params.whole("max_completion_tokens", -1, ask::MOST)?;
    let max = newer.or(params.whole("max_tokens", -1, ask::MOST)?);
    let max = max.or(params.whole("n_predict", -2, ask::MOST)?);
    let options = GenerateOptions {
        max_tokens: max.map_or(usual, |n| usize::try_from(n).ok()),
        sampling: ask::sampling(&mut params, 1.0)?,
        grammar,
        stop: ask::stops(&mut params)?,
        ignore_end: params.take("ignore_eos")?.unwrap_or(false),
        likeliest: match kind {
            Kind::Chat => logprobs::of_chat(&mut params)?,
            Kind::Text => logprobs::of_completion(&mut params)?,
        },
    };
    let stream = params.take::<bool>("stream")?.unwrap_or(false);
    let include: bool = params
        .within("stream_options")?
        .take("include_usage")?
        .unwrap_or(false);
    // As in llama-server, and kiv's own.
    let progress = params.take::<bool>("return_progress")?.unwrap_or(false);
    let retrieved = params.take::<bool>("kiv_retrieved")?.unwrap_or(false);
    let likeliest = options.likeliest.is_some();
    let events = ask::submit(app, prompt, options, param, retrieved)?;
    let mut frame = Frame::new(kind, Shared::clone(app), likeliest);
    let listener = Listener::new(tools, thoughts);
    if stream {
        return Ok(frame.stream(events, listener, include, progress));
    }
    let whole = ask::collect(events).await?;
    let (said, calls) = listener.whole(&whole.text, whole.summary.finish);
    Ok(Json(frame.whole(&said, &calls, &whole)).into_response())
}

/// What `response_format` says that the answer must be.
fn response_format(params: &mut Params) -> Result<Option<Grammar>, Fault> {
    let Some(format) = params.take::<Value>("response_format")? else {
        return Ok(None);
    };
    let schema = |schema: &Value| match schema {
        Value::Object(_) => Some(Grammar::JsonSchema(schema.to_string())),
        _ => None,
    };
    let found = match format["type"].as_str() {
        Some("text") => return Ok(None),
        // llama-server takes a schema there, too.
        Some("json_object") => schema(&format["schema"]).or(Some(Grammar::json_object())),
        Some("json_schema") => schema(&format["json_schema"]["schema"]),
        _ => None,
    };
    found.map(Some).ok_or_else(|| {
        let why = format!(
            "response_format must be of type text, json_object or json_schema with its \
             json_schema.schema, not {format}"
        );
        Fault::param("response_format", why)
    })
}

/// Calls as OpenAI's clients want them.
fn calls_json(calls: &[Call], indexed: bool) -> Value {
    let calls = calls.iter().enumerate().map(|(i, call)| {
        let mut one = json!({
            "id": call_id(),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments.to_string()},
        });
        if indexed {
            one["index"] = json!(i);
        }
        one
    });
    calls.collect()
}

impl Frame {
    fn new(kind: Kind, app: Shared, likeliest: bool) -> Self {
        let prefix = match kind {
            Kind::Chat => "chatcmpl-",
            Kind::Text => "cmpl-",
        };
        Self {
            kind,
            id: fresh_id(prefix),
            created: seconds(SystemTime::now()),
            app,
            likeliest,
            told: 0,
        }
    }

    /// `logprobs` of a choice.
    fn logprobs(&mut self, chosen: &[Chosen]) -> Value {
        match self.kind {
            _ if !self.likeliest => Value::Null,
            Kind::Chat => logprobs::chat(&self.app.model, chosen),
            Kind::Text => logprobs::completion(&self.app.model, chosen, &mut self.told),
        }
    }

    fn around(&self, object: &str, choices: &Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created,
            "model": self.app.config.name,
            "choices": choices,
        })
    }

    fn whole(&mut self, said: &Said, calls: &[Call], whole: &Whole) -> Value {
        let summary = &whole.summary;
        let text = &said.text;
        let reason = reason(summary.finish, calls);
        let (object, choice) = match self.kind {
            Kind::Chat => (
                "chat.completion",
                json!({"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": null, "finish_reason": reason}),
            ),
            Kind::Text => (
                "text_completion",
                json!({"index": 0, "text": text, "logprobs": null, "finish_reason": reason}),
            ),
        };
        let logprobs = self.logprobs(&whole.chosen);
        let mut whole = self.around(object, &json!([choice]));
        whole["choices"][0]["logprobs"] = logprobs;
        if !said.thoughts.is_empty() {
            let message = &mut whole["choices"][0]["message"];
            message["reasoning_content"] = json!(said.thoughts);
        }
        if !calls.is_empty() {
            let message = &mut whole["choices"][0]["message"];
            message["tool_calls"] = calls_json(calls, false);
            if text.is_empty() {
                message["content"] = Value::Null;
            }
        }
        whole["usage"] = usage(summary);
        if let Some(retrieved) = &summary.retrieved {
            whole["kiv_retrieved"] = json!(retrieved);
        }
        whole
    }

    /// A piece of a stream in which something is said.
    fn saying(&self, said: &Said, first: bool) -> Value {
        let text = Some(&*said.text).filter(|text| !text.is_empty());
        let mut piece = self.piece(text, None, first);
        if !said.thoughts.is_empty() {
            piece["choices"][0]["delta"]["reasoning_content"] = json!(said.thoughts);
        }
        piece
    }

    fn piece(&self, text: Option<&str>, reason: Option<&str>, first: bool) -> Value {
        let (object, choice) = match self.kind {
            Kind::Chat => {
                let mut delta = json!({});
                if first {
                    delta["role"] = json!("assistant");
                }
                if let Some(text) = text {
                    delta["content"] = json!(text);
                }
                (
                    "chat.completion.chunk",
                    json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}),
                )
            }
            Kind::Text => (
                "text_completion",
                json!({"index": 0, "text": text.unwrap_or(""), "logprobs": null, "finish_reason": reason}),
            ),
        };
        self.around(object, &json!([choice]))
    }

    fn stream(
        mut self,
        events: ask::Events,
        mut listener: Listener,
        include_usage: bool,
        progress: bool,
    ) -> Response {
        let mut first = true;
        // Tokens whose text is held back.
        let mut held = Vec::new();
        let pieces = events.flat_map(move |event| {
            let mut lines = Vec::new();
            match event {
                Event::Reading {
                    read,
                    total,
                    reused,
                } if progress => {
                    let mut piece = self.piece(None, None, first);
                    first = false;
                    piece["prompt_progress"] =
                        json!({"total": total, "cache": reused, "processed": read});
                    lines.push(piece.to_string());
                }
                Event::Reading { .. } => {}
                Event::Text { text, chosen } => {
                    // Pieces without text, too: a client that has gone is noticed by them.
                    let said = listener.hear(&text);
                    let mut piece = self.saying(&said, first);
                    held.extend(chosen);
                    if said != Said::default() {
                        let told = std::mem::take(&mut held);
                        piece["choices"][0]["logprobs"] = self.logprobs(&told);
                    }
                    lines.push(piece.to_string());
                    first = false;
                }
                Event::Done(summary) => {
                    let (rest, calls) = std::mem::take(&mut listener).end(summary.finish);
                    if rest != Said::default() || !held.is_empty() {
                        let mut piece = self.saying(&rest, first);
                        if !held.is_empty() {
                            piece["choices"][0]["logprobs"] = self.logprobs(&held);
                        }
                        lines.push(piece.to_string());
                        first = false;
                    }
                    if !calls.is_empty() {
                        let mut piece = self.piece(None, None, first);
                        piece["choices"][0]["delta"]["tool_calls"] = calls_json(&calls, true);
                        lines.push(piece.to_string());
                        first = false;
                    }
                    let reason = reason(summary.finish, &calls);
                    let mut last = self.piece(None, Some(reason), first);
                    if let Some(retrieved) = &summary.retrieved {
                        last["kiv_retrieved"] = json!(retrieved);
                    }
                    lines.push(last.to_string());
                    if include_usage {
                        let mut last = self.piece(None, None, false);
                        last["choices"] = json!([]);
                        last["usage"] = usage(&summary);
                        lines.push(last.to_string());
                    }
                    lines.push("[DONE]".to_owned());
                }
                Event::Failed(why) => {
                    lines.push(Fault::failed(why).body(Protocol::OpenAi).to_string());
                }
            }
            let events = lines
                .into_iter()
                .map(|line| Ok::<_, Infallible>(sse::Event::default().data(line)));
            tokio_stream::iter(events.collect::<Vec<_>>())
        });
        Sse::new(pieces)
            .keep_alive(sse::KeepAlive::default())
            .into_response()
    }
}

/// Why an answer ended. One that was cut off says so, also where calls came before.
fn reason(finish: Finish, calls: &[Call]) -> &'static str {
    match is_whole(finish) {
        false => "length",
        true if calls.is_empty() => "stop",
        true => "tool_calls",
    }
}

fn usage(summary: &Summary) -> Value {
    json!({
        "prompt_tokens": summary.prompt,
        "completion_tokens": summary.generated,
        "total_tokens": summary.prompt + summary.generated,
        "prompt_tokens_details": {"cached_tokens": summary.reused},
    })
}

/// A name that no other answer of this server has.
pub(crate) fn fresh_id(prefix: &str) -> String {
    format!("{prefix}{:x}{:04x}", seconds(SystemTime::now()), counted())
}

/// The same of a call: nine letters and digits, as Mistral's templates want it.
pub(crate) fn call_id() -> String {
    let mut rest = (seconds(SystemTime::now()) << 14) | (counted() & 0x3fff);
    let mut id = [0; 9];
    for place in id.iter_mut().rev() {
        *place = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
        rest /= 36;
    }
    id.into_iter().map(char::from).collect()
}

fn counted() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::call_id;
    use std::collections::BTreeSet;

    #[test]
    fn calls_have_names_of_their_own() {
        let all: BTreeSet<String> = (0..1000).map(|_| call_id()).collect();
        assert_eq!(all.len(), 1000);
        let nine = |id: &String| id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric());
        assert!(all.iter().all(nine), "{all:?}");
    }
}
