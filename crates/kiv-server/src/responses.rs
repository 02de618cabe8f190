//! OpenAI's Responses protocol. No state is kept between requests: a client sends the
//! whole conversation, of which the engine knows what it has read.

use crate::Shared;
use crate::answer::{Listener, is_whole};
use crate::ask::{self, Params, Raw, check_model};
use crate::calls::Call;
use crate::engine::{Event, Summary};
use crate::fault::{Fault, Protocol};
use crate::logprobs;
use crate::messages;
use crate::openai::{call_id, fresh_id, seconds};
use crate::thoughts::Said;
use crate::tools::Tools;
use axum::Json;
use axum::extract::State;
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::StreamExt;
use kiv_runtime::{Chosen, GenerateOptions, Grammar, Message};
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
    // Thoughts are told as they are, and not once more in short.
    let harmless = ["auto", "concise", "detailed", "none"].map(Value::from);
    reasoning.refuse("summary", &harmless)?;
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
        (None, None) => ask::grammar(app, &mut params)?,
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
    let text = ask::render(app, said, &tools, variables).map_err(|fault| Fault {
        param: Some("input"),
        ..fault
    })?;
    let thoughts = ask::thoughts(&mut params, &text, grammar.as_ref())?;
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
    let prompt = ask::tokens(app, &text, true);
    let mut writer = Writer::new(app, told, Listener::new(tools, thoughts));
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
    // Of what the assistant says or calls next.
    let mut thoughts: Vec<String> = Vec::new();
    for (i, item) in items.into_iter().enumerate() {
        let field = |name: &str| {
            let why = || wrong(format!("input[{i}].{name} must be a text"));
            item[name].as_str().map(str::to_owned).ok_or_else(why)
        };
        let text = |name: &str| {
            messages::text_of(&item[name]).map_err(|why| wrong(format!("input[{i}].{name} {why}")))
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
                let mut message = Message::new(role, text("content")?);
                let before = std::mem::take(&mut thoughts);
                if role == "assistant" {
                    messages::think(&mut message, before.join("\n"));
                }
                said.push(message);
            }
            "function_call" => {
                let call = json!({
                    "id": field("call_id")?, "type": "function",
                    "function": {"name": field("name")?, "arguments": field("arguments")?},
                });
                let call = messages::call_for_templates(call)
                    .ok_or_else(|| wrong(format!("input[{i}] is no call")))?;
                // What was said and called in one answer is one message.
                if !matches!(said.last(), Some(last) if last.role == "assistant") {
                    said.push(Message::new("assistant", ""));
                }
                let calls = said.last_mut().and_then(|last| {
                    messages::think(last, std::mem::take(&mut thoughts).join("\n"));
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
            // Those of other servers may be encrypted, or told in short.
            "reasoning" => {
                let parts = item["content"].as_array().into_iter().flatten();
                let parts = parts.filter_map(|part| part["text"].as_str());
                thoughts.extend(parts.map(str::to_owned));
            }
            other => {
                return Err(wrong(format!(
                    "input[{i}] is of type {other:?}, which is not supported"
                )));
            }
        }
    }
    Ok(said)
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
    /// Items of the output that are complete.
    output: Vec<Value>,
    /// The one that has begun.
    open: Option<Item>,
    /// Tokens of thoughts.
    thought: usize,
    /// Tokens that have not been told of: what they say is held back.
    chosen: Vec<Chosen>,
}

/// Thoughts, or the message.
struct Item {
    kind: ItemKind,
    id: String,
    text: String,
    logprobs: Vec<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ItemKind {
    Thoughts,
    Message,
}

impl ItemKind {
    /// What its part is called.
    fn part(self) -> &'static str {
        match self {
            Self::Thoughts => "reasoning_text",
            Self::Message => "output_text",
        }
    }
}

impl Item {
    fn new(kind: ItemKind) -> Self {
        let prefix = match kind {
            ItemKind::Thoughts => "rs_",
            ItemKind::Message => "msg_",
        };
        Self {
            kind,
            id: fresh_id(prefix),
            text: String::new(),
            logprobs: Vec::new(),
        }
    }

    fn part(&self) -> Value {
        let mut part = json!({"type": self.kind.part(), "text": self.text});
        if self.kind == ItemKind::Message {
            part["annotations"] = json!([]);
            part["logprobs"] = json!(self.logprobs);
        }
        part
    }

    fn item(&self, status: &str, content: &[Value]) -> Value {
        match self.kind {
            ItemKind::Thoughts => json!({"id": self.id, "type": "reasoning", "status": status,
                "summary": [], "content": content}),
            ItemKind::Message => json!({"id": self.id, "type": "message", "status": status,
                "role": "assistant", "content": content}),
        }
    }
}

impl Writer {
    fn new(app: &Shared, told: Map<String, Value>, listener: Listener) -> Self {
        Self {
            app: Shared::clone(app),
            id: fresh_id("resp_"),
            created: seconds(SystemTime::now()),
            told,
            listener,
            sequence: 0,
            output: Vec::new(),
            open: None,
            thought: 0,
            chosen: Vec::new(),
        }
    }

    /// The response as it is now.
    fn response(&self, status: &str) -> Value {
        let mut response = json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status,
            "model": self.app.config.name, "output": self.output, "error": null,
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

    /// An event about the only part of an item of the output, the next one.
    fn about(&mut self, kind: &str, item: &Item, mut fields: Value) -> Value {
        fields["item_id"] = json!(item.id);
        fields["output_index"] = json!(self.output.len());
        fields["content_index"] = json!(0);
        self.event(kind, fields)
    }

    /// What comes before all else.
    fn begin(&mut self) -> Vec<Value> {
        let response = json!({"response": self.response("in_progress")});
        let kinds = ["response.created", "response.in_progress"];
        kinds.map(|kind| self.event(kind, response.clone())).into()
    }

    /// What is to be told now; nothing while text is held back.
    fn hear(&mut self, event: Event) -> Vec<Value> {
        match event {
            Event::Reading { .. } => Vec::new(),
            Event::Text { text, chosen } => {
                self.chosen.extend(chosen);
                let said = self.listener.hear(&text);
                self.tell(&said)
            }
            Event::Done(summary) => self.end(&summary),
            Event::Failed(why) => {
                let mut response = self.response("failed");
                response["error"] = json!({"code": "server_error", "message": why});
                vec![self.event("response.failed", json!({"response": response}))]
            }
        }
    }

    /// What has been said, thoughts before text.
    fn tell(&mut self, said: &Said) -> Vec<Value> {
        let mut events = Vec::new();
        let parts = [
            (ItemKind::Thoughts, &said.thoughts),
            (ItemKind::Message, &said.text),
        ];
        for (kind, text) in parts {
            if !text.is_empty() {
                events.extend(self.say(kind, text));
            }
        }
        events
    }

    /// More of an item, which begins with it.
    fn say(&mut self, kind: ItemKind, text: &str) -> Vec<Value> {
        let mut events = Vec::new();
        if self.open.as_ref().is_some_and(|open| open.kind != kind) {
            events = self.close("completed");
        }
        let mut item = match self.open.take() {
            Some(item) => item,
            None => {
                let item = Item::new(kind);
                let index = self.output.len();
                let added = json!({"output_index": index, "item": item.item("in_progress", &[])});
                events.push(self.event("response.output_item.added", added));
                let added = json!({"part": item.part()});
                events.push(self.about("response.content_part.added", &item, added));
                item
            }
        };
        let chosen = std::mem::take(&mut self.chosen);
        let mut delta = json!({"delta": text});
        if kind == ItemKind::Message {
            let logprobs = logprobs::places(&self.app.model, &chosen);
            delta["logprobs"] = json!(logprobs);
            item.logprobs.extend(logprobs);
        }
        let name = format!("response.{}.delta", kind.part());
        events.push(self.about(&name, &item, delta));
        item.text += text;
        self.open = Some(item);
        events
    }

    /// The item that has begun is complete, or is no longer.
    fn close(&mut self, status: &str) -> Vec<Value> {
        let Some(item) = self.open.take() else {
            return Vec::new();
        };
        let mut done = json!({"text": item.text});
        match item.kind {
            ItemKind::Message => done["logprobs"] = json!(item.logprobs),
            ItemKind::Thoughts => {
                self.thought += ask::tokens(&self.app, &item.text, false).len();
            }
        }
        let name = format!("response.{}.done", item.kind.part());
        let part = item.part();
        let whole = item.item(status, std::slice::from_ref(&part));
        let mut events = vec![
            self.about(&name, &item, done),
            self.about("response.content_part.done", &item, json!({"part": part})),
        ];
        let done = json!({"output_index": self.output.len(), "item": whole});
        events.push(self.event("response.output_item.done", done));
        self.output.push(whole);
        events
    }

    fn end(&mut self, summary: &Summary) -> Vec<Value> {
        let (rest, calls) = std::mem::take(&mut self.listener).end(summary.finish);
        let is_whole = is_whole(summary.finish);
        let status = if is_whole { "completed" } else { "incomplete" };
        let mut events = self.tell(&rest);
        // An answer has something in it, be it an empty text.
        if self.open.is_none() && self.output.is_empty() && calls.is_empty() {
            events.extend(self.say(ItemKind::Message, ""));
        }
        if let Some(open) = &mut self.open
            && open.kind == ItemKind::Message
            && calls.is_empty()
        {
            let last = logprobs::places(&self.app.model, &self.chosen);
            open.logprobs.extend(last);
        }
        events.extend(self.close(status));
        for call in &calls {
            self.call(call, &mut events);
        }
        let mut response = self.response(status);
        if !is_whole {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response["usage"] = json!({
            "input_tokens": summary.prompt,
            "input_tokens_details": {"cached_tokens": summary.reused},
            "output_tokens": summary.generated,
            "output_tokens_details": {"reasoning_tokens": self.thought},
            "total_tokens": summary.prompt + summary.generated,
        });
        let kind = format!("response.{status}");
        events.push(self.event(&kind, json!({"response": response})));
        events
    }

    /// A call as an item of the output, and its events.
    fn call(&mut self, call: &Call, events: &mut Vec<Value>) {
        let index = self.output.len();
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
        self.output.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was thought is of what was said or called next, however many items there are of it.
    #[test]
    fn thoughts_go_with_what_follows_them() {
        let think = |text: &str| json!({"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]});
        let say = |role: &str, text: &str| json!({"role": role, "content": text});
        let call = json!({"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"});
        let items = json!([
            say("user", "a"), think("one"), think("two"), say("assistant", "b"), think("three"), call,
            {"type": "function_call_output", "call_id": "1", "output": "c"},
            think("four"), call, think("broken off"), say("user", "d"), say("assistant", "e")
        ]);
        let messages = conversation(items).unwrap();
        let told: Vec<_> = (messages.iter())
            .map(|m| {
                (
                    m.role.as_str(),
                    m.more.get("thinking").and_then(Value::as_str),
                )
            })
            .collect();
        let thoughts = [
            None,
            Some("one\ntwo\nthree"),
            None,
            Some("four"),
            None,
            None,
        ];
        let roles = [
            "user",
            "assistant",
            "tool",
            "assistant",
            "user",
            "assistant",
        ];
        assert_eq!(told, roles.into_iter().zip(thoughts).collect::<Vec<_>>());
    }
}
