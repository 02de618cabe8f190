//! OpenAI's Responses protocol.

mod support;

use serde_json::{Value, json};
use std::net::SocketAddr;
use support::http::*;

fn ask(at: SocketAddr, body: &Value) -> Value {
    let answer = post(at, "/v1/responses", body);
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
    answer.json()
}

/// The events of the same request, streamed: their names are those in them, and they are
/// numbered.
fn stream(at: SocketAddr, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let answer = post(at, "/v1/responses", &body);
    assert!(answer.head.contains("text/event-stream"), "{}", answer.body);
    let names = answer
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("event: "));
    let events = data(&answer);
    let types = events.iter().map(|event| event["type"].as_str().unwrap());
    assert!(types.eq(names), "{}", answer.body);
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
    }
    events
}

/// Without what differs from one answer to the next.
fn timeless(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(key, _)| {
                !["id", "call_id", "created_at", "input_tokens_details"].contains(&key.as_str())
            });
            kept.map(|(key, value)| (key.clone(), timeless(value)))
                .collect()
        }
        Value::Array(all) => all.iter().map(timeless).collect(),
        other => other.clone(),
    }
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

fn text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"]
        .as_str()
        .unwrap()
}

/// The tests' function in this protocol's form.
fn flat_safe() -> Value {
    let mut function = safe()["function"].clone();
    function["type"] = json!("function");
    function
}

#[test]
fn a_text_is_answered() {
    let at = server(1, 4, None);
    let body = json!({"model": "tiny", "input": QUESTION, "instructions": FACT, "temperature": 0,
        "max_output_tokens": 6, "metadata": {"a": "b"}});
    let first = ask(at, &body);
    assert_eq!(text(&first), " 48213");
    assert_eq!(first["status"], "incomplete");
    assert_eq!(
        first["incomplete_details"],
        json!({"reason": "max_output_tokens"})
    );
    assert_eq!(first["usage"]["output_tokens"], 6);
    for (name, value) in [
        ("object", json!("response")),
        ("store", json!(false)),
        ("previous_response_id", Value::Null),
        ("metadata", json!({"a": "b"})),
        ("instructions", json!(FACT)),
        ("max_output_tokens", json!(6)),
        ("temperature", json!(0.0)),
        ("top_p", json!(0.95)),
        ("tool_choice", json!("auto")),
    ] {
        assert_eq!(first[name], value, "{name}");
    }
    // The same as items, of which all is known by now.
    let input = json!([
        {"role": "developer", "content": FACT},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
    ]);
    let again = ask(
        at,
        &json!({"input": input, "temperature": 0, "max_output_tokens": 6, "store": true}),
    );
    assert_eq!(text(&again), " 48213");
    assert_eq!(again["store"], false, "nothing is kept");
    let usage = &again["usage"];
    let read = usage["input_tokens"].as_u64().unwrap() - 1;
    assert_eq!(usage["input_tokens_details"]["cached_tokens"], read);
}

#[test]
fn a_stream_tells_what_a_buffered_answer_holds() {
    let at = server(1, 4, None);
    let body = json!({"input": QUESTION, "instructions": FACT, "temperature": 0,
        "max_output_tokens": 6, "include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let whole = ask(at, &body);
    let events = stream(at, &body);
    assert_eq!(
        kinds(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    let last = &events.last().unwrap()["response"];
    assert_eq!(timeless(last), timeless(&whole));
    let deltas: Vec<&Value> = events
        .iter()
        .filter(|e| e["type"] == "response.output_text.delta")
        .collect();
    let joined: String = deltas
        .iter()
        .map(|e| e["delta"].as_str().unwrap())
        .collect();
    assert_eq!(joined, text(&whole));
    let item = &last["output"][0];
    assert!(deltas.iter().all(|e| e["item_id"] == item["id"]));
    let told = deltas
        .iter()
        .flat_map(|e| e["logprobs"].as_array().unwrap());
    let told: Vec<&Value> = told.collect();
    let all = item["content"][0]["logprobs"].as_array().unwrap();
    assert_eq!(told, all.iter().collect::<Vec<_>>());
    assert_eq!(all.len(), 6);
    assert!(
        all.iter()
            .all(|p| p["top_logprobs"].as_array().unwrap().len() == 2)
    );
}

#[test]
fn functions_are_called() {
    let at = server(1, 4, None);
    let question = json!({"role": "user", "content": format!("{FACT} {QUESTION}")});
    for choice in [
        json!("required"),
        json!({"type": "function", "name": "open_safe"}),
    ] {
        let body = json!({"input": [question], "tools": [flat_safe()], "tool_choice": choice,
            "temperature": 0, "max_output_tokens": 80});
        let whole = ask(at, &body);
        assert_eq!(whole["status"], "completed");
        assert_eq!(whole["tools"], json!([flat_safe()]));
        assert_eq!(whole["tool_choice"], choice);
        let call = &whole["output"][0];
        assert_eq!(
            (&call["type"], &call["name"], &call["status"]),
            (
                &json!("function_call"),
                &json!("open_safe"),
                &json!("completed")
            )
        );
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments["code"].is_i64());

        let events = stream(at, &body);
        assert_eq!(
            kinds(&events)[2..],
            [
                "response.output_item.added",
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "response.output_item.done",
                "response.completed",
            ]
        );
        let last = &events.last().unwrap()["response"];
        assert_eq!(timeless(last), timeless(&whole));
        assert_eq!(events[4]["arguments"], call["arguments"]);

        // The conversation goes on with what the function gave, and means to the model
        // what it means in a chat.
        let output =
            json!({"type": "function_call_output", "call_id": call["call_id"], "output": "opened"});
        let body = json!({"input": [question, call, output], "tools": [flat_safe()],
            "temperature": 0, "max_output_tokens": 4});
        let after = ask(at, &body);
        let said = json!([question,
            {"role": "assistant", "content": null, "tool_calls": [{"id": call["call_id"], "type": "function",
                "function": {"name": "open_safe", "arguments": call["arguments"]}}]},
            {"role": "tool", "tool_call_id": call["call_id"], "content": "opened"}]);
        let body = json!({"messages": said, "tools": [safe()], "temperature": 0, "max_tokens": 4});
        let chat = post(at, "/v1/chat/completions", &body).json();
        assert_eq!(text(&after), chat["choices"][0]["message"]["content"]);
        assert_eq!(
            after["usage"]["input_tokens"],
            chat["usage"]["prompt_tokens"]
        );
    }
}

#[test]
fn answers_are_what_a_schema_says() {
    let at = server(1, 4, None);
    let format =
        json!({"type": "json_schema", "name": "x", "schema": safe()["function"]["parameters"]});
    let body = json!({"input": format!("{FACT} {QUESTION}"), "text": {"format": format},
        "temperature": 0, "max_output_tokens": 60});
    let whole = ask(at, &body);
    assert_eq!(whole["status"], "completed");
    assert_eq!(whole["text"]["format"], format);
    let found: Value = serde_json::from_str(text(&whole)).unwrap();
    assert!(found["code"].is_i64(), "{found}");
}

#[test]
fn what_cannot_be_is_refused() {
    let at = server(1, 4, None);
    for (body, param, words) in [
        (json!({}), "input", "missing"),
        (json!({"input": 5}), "input", "not 5"),
        (json!({"input": []}), "input", "a list of items"),
        (json!({"input": [5]}), "input", "input[0].role"),
        (
            json!({"input": [{"role": "robot", "content": "x"}]}),
            "input",
            "\"robot\"",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input",
            "input_image",
        ),
        (
            json!({"input": [{"type": "item_reference", "id": "msg_1"}]}),
            "input",
            "item_reference",
        ),
        (
            json!({"input": [{"type": "function_call", "call_id": "1", "name": 5, "arguments": ""}]}),
            "input",
            "input[0].name",
        ),
        (
            json!({"input": "x", "previous_response_id": "resp_1"}),
            "previous_response_id",
            "not stored here",
        ),
        (
            json!({"input": "x", "max_output_tokens": 0}),
            "max_output_tokens",
            "not 0",
        ),
        (
            json!({"input": "x", "tools": [{"type": "web_search"}]}),
            "tools",
            "web_search",
        ),
        (
            json!({"input": "x", "tools": [flat_safe()], "tool_choice": {"type": "function", "name": "y"}}),
            "tool_choice",
            "\"y\"",
        ),
        (
            json!({"input": "x", "text": {"format": {"type": "yaml"}}}),
            "text",
            "yaml",
        ),
        (
            json!({"input": "x", "top_logprobs": 21}),
            "top_logprobs",
            "0 to 20, not 21",
        ),
        (
            json!({"input": "x", "top_logprobs": 2}),
            "top_logprobs",
            "include",
        ),
        (
            json!({"input": "x", "include": ["file_search_call.results"]}),
            "include",
            "file_search_call",
        ),
        (
            json!({"input": "x", "background": true}),
            "background",
            "not supported",
        ),
        (json!({"input": "x", "metadata": "y"}), "metadata", "\"y\""),
        (
            json!({"input": "x", "temperature": 101}),
            "temperature",
            "not 101",
        ),
    ] {
        let answer = post(at, "/v1/responses", &body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
        let error = &answer.json()["error"];
        assert_eq!(error["param"], param, "{body}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{body}: {message}");
    }
}
