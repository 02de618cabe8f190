//! OpenAI's Responses protocol. No state is kept between requests: a client sends the
//! whole conversation, of which the engine knows what it has read.

use crate::Shared;
use crate::ask::{self, Params, Raw, check_model};
use crate::engine::{Event, Summary};
use crate::fault::{Fault, Protocol};
use crate::logprobs;
use crate::openai::{call_id, fresh_id, seconds};
use crate::tools::{Call, Listener, Tools};
use axum::Json;
use axum::extract::State;
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::StreamExt;
use kiv_runtime::{Chosen, Finish, GenerateOptions, Grammar, Message};
use serde_json::{Map, Value, json};
use std::convert::Infallible;
use std::time::SystemTime;

/// What `include` may name: how likely tokens were, and what kiv never has.
const LOGPROBS: &str = "message.output_text.logprobs";
const NEVER: &str = "reasoning.encrypted_content";

pub(crate) async fn create(State(app): State<Shared>, Raw(body): Raw) -> Response {
    let answer = answer(&app, &body).await;
    answer.unwrap_or_else(|fault| fault.answer(Protocol::OpenAi))
}

async fn answer(app: &Shared, body: &[u8]) -> Result<Response, Fault> {
    let mut params = Params::parse(body)?;
    check_model(app, params.take::<String>("model")?.as_deref())?;
    for name in ["previous_response_id", "conversation"] {
        if let Some(id) = params.take::<Value>(name)? {
            let why = format!(
                "{name} cannot be {id}: responses are not stored here, send the whole conversation as input"
            );
            return Err(Fault::param(name, why));
        }
    }
    for (name, harmless) in [
        ("background", vec![json!(false)]),
        ("prompt", vec![]),
        ("truncation", vec![json!("disabled")]),
    ] {
        params.refuse(name, &harmless)?;
    }
    let mut told = told(&params);
    let mut reasoning = params.within("reasoning")?;
    // Thoughts are in the text, and not told once more in short.
    reasoning.refuse("summary", &[json!("auto"), json!("none")])?;
    if let Some(effort) = reasoning.take::<String>("effort")? {
        told.insert(
            "reasoning".to_owned(),
            json!({"effort": effort, "summary": null}),
        );
        params.set("reasoning_effort", effort.into());
    }
    let variables = ask::template_variables(&mut params)?;
    params.take::<Map<String, Value>>("metadata")?;
    params.take::<String>("user")?;
    flat_tools(&mut params)?;
    let tools = Tools::take(&mut params)?;
    let grammar = match (tools.grammar(), text_format(&mut params)?) {
        (Some(grammar), None) => ask::checked(app, Some(grammar), "tools")?,
        (None, format) => ask::checked(app, format, "text")?,
        (Some(_), Some(_)) => {
            let why = "tool_choice and text.format cannot both say what the answer must be";
            return Err(Fault::param("text", why));
        }
    };
    let instructions: Option<String> = params.take("instructions")?;
    let instructions = instructions.map(|text| Message::new("system", text));
    let said: Vec<Message> = (instructions.into_iter())
        .chain(conversation(params.need("input")?)?)
        .collect();
    let text = ask::render_with(app, said, &tools, variables).map_err(|fault| Fault {
        param: Some("input"),
        ..fault
    })?;
    let options = GenerateOptions {
        max_tokens: (params.whole("max_output_tokens", 1, ask::MOST)?).map(|n| n as usize),
        sampling: ask::sampling(&mut params, 1.0)?,
        grammar,
        stop: ask::stops(&mut params)?,
        ignore_end: false,
        likeliest: likeliest(&mut params)?,
    };
    let short = |value: f32| value.to_string().parse::<f64>().unwrap_or_default();
    told.insert(
        "temperature".to_owned(),
        json!(short(options.sampling.temperature)),
    );
    told.insert("top_p".to_owned(), json!(short(options.sampling.top_p)));
    let stream = params.take::<bool>("stream")?.unwrap_or(false);
    let prompt = app.model.tokenize(&text, true);
    let mut writer = Writer::new(app, told, tools);
    let mut events = ask::submit(app, prompt, options, "input", false)?;
    if !stream {
        while let Some(event) = events.next().await {
            if let Event::Failed(why) = event {
                return Err(Fault::failed(why));
            }
            let is_end = matches!(event, Event::Done(_));
            let last = writer.hear(event).pop();
            if let Some(mut last) = last.filter(|_| is_end) {
                return Ok(Json(last["response"].take()).into_response());
            }
        }
        return Err(ask::ended());
    }
    let begin = tokio_stream::iter(writer.begin());
    let rest = events.flat_map(move |event| {
        let mut lines = writer.hear(event);
        if lines.is_empty() {
            // A comment: a client that has gone is noticed by what is written to it.
            lines.push(Value::Null);
        }
        tokio_stream::iter(lines)
    });
    let lines = begin.chain(rest).map(|line| {
        let event = sse::Event::default();
        Ok::<_, Infallible>(match line["type"].as_str() {
            Some(kind) => event.event(kind).data(line.to_string()),
            None => event.comment(""),
        })
    });
    let lines = Sse::new(lines).keep_alive(sse::KeepAlive::default());
    Ok(lines.into_response())
}

/// What a response repeats of its request.
fn told(params: &Params) -> Map<String, Value> {
    let usual = json!({
        "instructions": null, "max_output_tokens": null, "metadata": {},
        "parallel_tool_calls": true, "text": {"format": {"type": "text"}},
        "tool_choice": "auto", "tools": [], "top_logprobs": 0, "user": null,
    });
    let Value::Object(mut told) = usual else {
        return Map::new();
    };
    for (name, value) in &mut told {
        if let Some(given) = params.look(name) {
            *value = given.clone();
        }
    }
    told
}

/// How many of the likeliest tokens are wanted.
fn likeliest(params: &mut Params) -> Result<Option<usize>, Fault> {
    let include: Vec<String> = params.take("include")?.unwrap_or_default();
    let known = |name: &&String| [LOGPROBS, NEVER].contains(&name.as_str());
    if let Some(other) = include.iter().find(|name| !known(name)) {
        let why = format!("include cannot name {other:?}, only {LOGPROBS:?}");
        return Err(Fault::param("include", why));
    }
    let wanted = include.iter().any(|name| name == LOGPROBS);
    let top = params.whole("top_logprobs", 0, logprobs::CHAT)?;
    if let Some(top) = top.filter(|top| *top > 0 && !wanted) {
        let why = format!("top_logprobs can be {top} only if include names {LOGPROBS:?}");
        return Err(Fault::param("top_logprobs", why));
    }
    Ok(wanted.then(|| top.unwrap_or(0) as usize))
}

/// What `text.format` says that the answer must be.
fn text_format(params: &mut Params) -> Result<Option<Grammar>, Fault> {
    let Some(format) = params.within("text")?.take::<Value>("format")? else {
        return Ok(None);
    };
    match (format["type"].as_str(), &format["schema"]) {
        (Some("text"), _) => Ok(None),
        (Some("json_object"), _) => Ok(Some(Grammar::json_object())),
        (Some("json_schema"), schema @ Value::Object(_)) => {
            Ok(Some(Grammar::JsonSchema(schema.to_string())))
        }
        _ => {
            let why = format!(
                "text.format must be of type text, json_object or json_schema with its schema, \
                 not {format}"
            );
            Err(Fault::param("text", why))
        }
    }
}

/// Tools, and the choice of one, in the form of chat completions, which nests what is
/// flat here.
fn flat_tools(params: &mut Params) -> Result<(), Fault> {
    let nested = |mut tool: Value| match tool.as_object_mut() {
        Some(flat) if flat.get("type").is_some_and(|kind| kind == "function") => {
            // The others stay in their order.
            flat.shift_remove("type");
            Some(json!({"type": "function", "function": tool}))
        }
        _ => None,
    };
    let tools: Vec<Value> = params.take("tools")?.unwrap_or_default();
    let mut all = Vec::new();
    for (i, tool) in tools.into_iter().enumerate() {
        if !tool["name"].is_string() || tool["type"] != "function" {
            let why = format!(
                "tools[{i}] must be {{\"type\": \"function\", \"name\": …}}, not of type {}",
                tool["type"]
            );
            return Err(Fault::param("tools", why));
        }
        all.extend(nested(tool));
    }
    params.set("tools", all.into());
    if let Some(choice @ Value::Object(_)) = params.look("tool_choice") {
        let choice = choice.clone();
        params.set("tool_choice", nested(choice.clone()).unwrap_or(choice));
    }
    Ok(())
}

/// Messages of `input`.
fn conversation(input: Value) -> Result<Vec<Message>, Fault> {
    let wrong = |why: String| Fault::param("input", why);
    let items = match input {
        Value::String(text) => return Ok(vec![Message::new("user", text)]),
        Value::Array(items) if !items.is_empty() => items,
        other => {
            let why = format!("input must be a text or a list of items, not {other}");
            return Err(wrong(why));
        }
    };
    let mut said: Vec<Message> = Vec::new();
    for (i, item) in items.into_iter().enumerate() {
        let field = |name: &str| {
            let why = || wrong(format!("input[{i}].{name} must be a text"));
            item[name].as_str().map(str::to_owned).ok_or_else(why)
        };
        let text = |name: &str| {
            text_of(&item[name]).map_err(|why| wrong(format!("input[{i}].{name} {why}")))
        };
        match item["type"].as_str().unwrap_or("message") {
            "message" => {
                let role = match field("role")?.as_str() {
                    "developer" | "system" => "system",
                    "user" => "user",
                    "assistant" => "assistant",
                    other => {
                        return Err(wrong(format!("input[{i}]: there is no role {other:?}")));
                    }
                };
                said.push(Message::new(role, text("content")?));
            }
            "function_call" => {
                let call = json!({
                    "id": field("call_id")?, "type": "function",
                    "function": {"name": field("name")?, "arguments": field("arguments")?},
                });
                let call = ask::call_for_templates(call)
                    .ok_or_else(|| wrong(format!("input[{i}] is no call")))?;
                // What was said and called in one answer is one message.
                if !matches!(said.last(), Some(last) if last.role == "assistant") {
                    said.push(Message::new("assistant", ""));
                }
                let calls = said.last_mut().and_then(|last| {
                    let calls = last.more.entry("tool_calls".to_owned());
                    calls.or_insert_with(|| json!([])).as_array_mut()
                });
                if let Some(calls) = calls {
                    calls.push(call);
                }
            }
            "function_call_output" => {
                let mut message = Message::new("tool", text("output")?);
                let id = field("call_id")?;
                message.more.insert("tool_call_id".to_owned(), id.into());
                said.push(message);
            }
            // Thoughts of another model.
            "reasoning" => {}
            other => {
                return Err(wrong(format!(
                    "input[{i}] is of type {other:?}, which is not supported"
                )));
            }
        }
    }
    Ok(said)
}

/// The text of a content, which may be a list of parts.
fn text_of(content: &Value) -> Result<String, String> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        other => return Err(format!("must be a text or a list of parts, not {other}")),
    };
    let text = |part: &Value| {
        let name = match part["type"].as_str() {
            Some("input_text" | "output_text" | "text") => "text",
            Some("refusal") => "refusal",
            _ => {
                return Err(format!(
                    "with a part of type {} is not supported",
                    part["type"]
                ));
            }
        };
        let text = part[name].as_str().map(str::to_owned);
        text.ok_or_else(|| format!("has a part without {name}"))
    };
    let texts: Result<Vec<String>, String> = parts.iter().map(text).collect();
    texts.map(|texts| texts.join("\n"))
}

/// Makes a response, and the events that tell of it, from what the engine says.
struct Writer {
    app: Shared,
    id: String,
    created: u64,
    told: Map<String, Value>,
    listener: Listener,
    /// Number of the next event.
    sequence: usize,
    /// The message, once it has begun.
    message: Option<Said>,
    /// Tokens that have not been told of: what they say is held back.
    chosen: Vec<Chosen>,
}

struct Said {
    id: String,
    text: String,
    logprobs: Vec<Value>,
}

impl Said {
    fn part(&self) -> Value {
        json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs})
    }

    fn item(&self, status: &str, content: &[Value]) -> Value {
        json!({"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content})
    }

    /// An event about this part of the output, which is always the first.
    fn with(&self, mut fields: Value) -> Value {
        fields["item_id"] = json!(self.id);
        fields["output_index"] = json!(0);
        fields["content_index"] = json!(0);
        fields
    }
}

impl Writer {
    fn new(app: &Shared, told: Map<String, Value>, tools: Tools) -> Self {
        Self {
            app: Shared::clone(app),
            id: fresh_id("resp_"),
            created: seconds(SystemTime::now()),
            told,
            listener: Listener::new(tools),
            sequence: 0,
            message: None,
            chosen: Vec::new(),
        }
    }

    /// The response as it is now.
    fn response(&self, status: &str, output: &[Value]) -> Value {
        let mut response = json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status,
            "model": self.app.config.name, "output": output, "error": null,
            "incomplete_details": null, "usage": null, "background": false, "store": false,
            "previous_response_id": null, "truncation": "disabled",
            "reasoning": {"effort": null, "summary": null},
        });
        for (name, value) in &self.told {
            response[name] = value.clone();
        }
        response
    }

    fn event(&mut self, kind: &str, mut fields: Value) -> Value {
        fields["type"] = json!(kind);
        fields["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        fields
    }

    /// What comes before all else.
    fn begin(&mut self) -> Vec<Value> {
        let response = json!({"response": self.response("in_progress", &[])});
        let kinds = ["response.created", "response.in_progress"];
        kinds.map(|kind| self.event(kind, response.clone())).into()
    }

    /// What is to be told now; nothing while text is held back.
    fn hear(&mut self, event: Event) -> Vec<Value> {
        match event {
            Event::Reading { .. } => Vec::new(),
            Event::Text { text, chosen } => {
                self.chosen.extend(chosen);
                let text = self.listener.hear(&text);
                if text.is_empty() {
                    return Vec::new();
                }
                self.say(&text)
            }
            Event::Done(summary) => self.end(&summary),
            Event::Failed(why) => {
                let mut response = self.response("failed", &[]);
                response["error"] = json!({"code": "server_error", "message": why});
                vec![self.event("response.failed", json!({"response": response}))]
            }
        }
    }

    /// More text of the message, which begins with it.
    fn say(&mut self, text: &str) -> Vec<Value> {
        let mut events = Vec::new();
        let mut said = match self.message.take() {
            Some(said) => said,
            None => {
                let said = Said {
                    id: fresh_id("msg_"),
                    text: String::new(),
                    logprobs: Vec::new(),
                };
                let added = json!({"output_index": 0, "item": said.item("in_progress", &[])});
                events.push(self.event("response.output_item.added", added));
                let added = said.with(json!({"part": said.part()}));
                events.push(self.event("response.content_part.added", added));
                said
            }
        };
        let logprobs = logprobs::places(&self.app.model, &std::mem::take(&mut self.chosen));
        let delta = said.with(json!({"delta": text, "logprobs": logprobs}));
        events.push(self.event("response.output_text.delta", delta));
        said.text += text;
        said.logprobs.extend(logprobs);
        self.message = Some(said);
        events
    }

    fn end(&mut self, summary: &Summary) -> Vec<Value> {
        let (rest, calls) = std::mem::take(&mut self.listener).end();
        let is_whole = matches!(summary.finish, Finish::End | Finish::Stop);
        let status = if is_whole { "completed" } else { "incomplete" };
        let mut events = Vec::new();
        let mut output = Vec::new();
        // An answer has something in it, be it an empty text.
        if !rest.is_empty() || (self.message.is_none() && calls.is_empty()) {
            events = self.say(&rest);
        }
        if let Some(mut said) = self.message.take() {
            if calls.is_empty() {
                let last = logprobs::places(&self.app.model, &self.chosen);
                said.logprobs.extend(last);
            }
            let done = said.with(json!({"text": said.text, "logprobs": said.logprobs}));
            events.push(self.event("response.output_text.done", done));
            let part = said.part();
            let done = said.with(json!({"part": part}));
            events.push(self.event("response.content_part.done", done));
            let item = said.item(status, &[part]);
            let done = json!({"output_index": 0, "item": item});
            events.push(self.event("response.output_item.done", done));
            output.push(item);
        }
        for call in &calls {
            output.push(self.call(call, output.len(), &mut events));
        }
        let mut response = self.response(status, &output);
        if !is_whole {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response["usage"] = json!({
            "input_tokens": summary.prompt,
            "input_tokens_details": {"cached_tokens": summary.reused},
            "output_tokens": summary.generated,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": summary.prompt + summary.generated,
        });
        let kind = format!("response.{status}");
        events.push(self.event(&kind, json!({"response": response})));
        events
    }

    /// A call as an item of the output, and its events.
    fn call(&mut self, call: &Call, index: usize, events: &mut Vec<Value>) -> Value {
        let mut item = json!({
            "id": fresh_id("fc_"), "type": "function_call", "status": "in_progress",
            "call_id": call_id(), "name": call.name, "arguments": "",
        });
        let arguments = call.arguments.to_string();
        let added = json!({"output_index": index, "item": item});
        events.push(self.event("response.output_item.added", added));
        let delta = json!({"output_index": index, "item_id": item["id"], "delta": arguments});
        events.push(self.event("response.function_call_arguments.delta", delta));
        let done = json!({"output_index": index, "item_id": item["id"], "name": call.name,
            "arguments": arguments});
        events.push(self.event("response.function_call_arguments.done", done));
        item["arguments"] = json!(arguments);
        item["status"] = json!("completed");
        let done = json!({"output_index": index, "item": item});
        events.push(self.event("response.output_item.done", done));
        item
    }
}
