//! What a model thinks before it answers is told apart from the answer, in every protocol.

mod support;

use serde_json::{Value, json};
use support::http::*;

/// Of a model that thinks if it is not told otherwise: the prompt begins the thoughts.
const TEMPLATE: &str = "\
{% for m in messages %}{{ m.role }}: {% if m.thinking %}({{ m.thinking }}) {% endif %}{{ m.content }}\n{% endfor %}\
Answer:{% if enable_thinking | default(true) %}{{ reasoning_effort }}<think>\n{% endif %}";

/// Thoughts and an answer.
const BOTH: &str = r#"root ::= "<think>\nHm, <tool_call>?\n</think>\n\n48213""#;

fn streamed(at: std::net::SocketAddr, path: &str, body: &Value) -> Answer {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let answer = post(at, path, &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer
}

/// All texts at a place in each of these.
fn joined(events: &[Value], pointer: &str) -> String {
    let texts = events.iter().filter_map(|e| e.pointer(pointer)?.as_str());
    texts.collect()
}

#[test]
fn openai() {
    let at = server_of(TEMPLATE, 1, 4, None);
    let messages = json!([{"role": "user", "content": QUESTION}]);
    let body = json!({"messages": messages, "grammar": BOTH, "tools": [safe()]});
    let path = "/v1/chat/completions";
    let whole = post(at, path, &body).json();
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "Hm, <tool_call>?");
    assert_eq!(message["content"], "48213");
    let events = data(&streamed(at, path, &body));
    let thoughts = joined(&events, "/choices/0/delta/reasoning_content");
    assert_eq!(thoughts, "Hm, <tool_call>?");
    assert_eq!(joined(&events, "/choices/0/delta/content"), "48213");

    let mut kept = body.clone();
    kept["reasoning_format"] = json!("none");
    kept.as_object_mut().unwrap().remove("tools");
    let whole = post(at, path, &kept).json();
    let message = &whole["choices"][0]["message"];
    assert_eq!(
        message["content"],
        "<think>\nHm, <tool_call>?\n</think>\n\n48213"
    );
    assert!(message["reasoning_content"].is_null());
    kept["reasoning_format"] = json!("deepseek-legacy");
    let refused = post(at, path, &kept);
    assert_eq!(refused.status, 400);
    assert!(
        refused.body.contains("reasoning_format"),
        "{}",
        refused.body
    );

    // The prompt has begun the thoughts, and this model does not end them.
    let body = json!({"messages": messages, "temperature": 5, "seed": 1, "max_tokens": 12});
    let whole = post(at, path, &body).json();
    let message = &whole["choices"][0]["message"];
    let thoughts = message["reasoning_content"].as_str();
    assert!(thoughts.is_some_and(|text| !text.is_empty()), "{whole}");
    assert_eq!(message["content"], "");
    // An answer of a form has none.
    let mut held = body.clone();
    held["response_format"] = json!({"type": "json_object"});
    let whole = post(at, path, &held).json();
    let content = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.trim_start().starts_with('{'), "{whole}");
}

#[test]
fn responses() {
    let at = server_of(TEMPLATE, 1, 4, None);
    let body = json!({"input": QUESTION, "grammar": BOTH});
    let whole = post(at, "/v1/responses", &body).json();
    let [thoughts, message] = whole["output"].as_array().unwrap().as_slice() else {
        panic!("{whole}");
    };
    assert_eq!(thoughts["type"], "reasoning");
    assert_eq!(thoughts["content"][0]["text"], "Hm, <tool_call>?");
    assert_eq!(message["content"][0]["text"], "48213");
    let counted = &whole["usage"]["output_tokens_details"]["reasoning_tokens"];
    assert!(counted.as_u64().unwrap() > 0);

    let events = data(&streamed(at, "/v1/responses", &body));
    let of = |kind: &str| -> Vec<Value> {
        let of_kind = events.iter().filter(|e| e["type"] == kind);
        of_kind.cloned().collect()
    };
    let thought = joined(&of("response.reasoning_text.delta"), "/delta");
    assert_eq!(thought, "Hm, <tool_call>?");
    assert_eq!(joined(&of("response.output_text.delta"), "/delta"), "48213");
    let done = of("response.output_item.done");
    let places: Vec<&Value> = done.iter().map(|e| &e["output_index"]).collect();
    assert_eq!(places, [0, 1]);
    let sequence: Vec<u64> = events
        .iter()
        .map(|e| e["sequence_number"].as_u64().unwrap())
        .collect();
    assert!(sequence.iter().copied().eq(0..events.len() as u64));

    // What the client sends back reaches the template.
    let asked = json!({"role": "user", "content": QUESTION});
    let again = json!({"input": [asked, thoughts, message, asked], "max_output_tokens": 1});
    assert_eq!(post(at, "/v1/responses", &again).status, 200);
}

#[test]
fn ollama() {
    let at = server_of(TEMPLATE, 1, 4, None);
    let messages = json!([{"role": "user", "content": QUESTION}]);
    // Hot enough for some word among its line breaks.
    let options = json!({"temperature": 5, "seed": 1, "num_predict": 12});
    let chat = json!({"messages": messages, "options": options, "stream": false});
    let generate = json!({"prompt": QUESTION, "options": options, "stream": false});
    for (path, body, thoughts, text) in [
        ("/api/chat", chat, "/message/thinking", "/message/content"),
        ("/api/generate", generate, "/thinking", "/response"),
    ] {
        for think in [json!(null), json!(true), json!("low")] {
            let mut body = body.clone();
            body["think"] = think;
            let whole = post(at, path, &body).json();
            let thought = whole.pointer(thoughts).and_then(Value::as_str);
            assert!(
                thought.is_some_and(|text| !text.is_empty()),
                "{body} {whole}"
            );
            assert_eq!(whole.pointer(text).unwrap(), "");
            let lines = streamed(at, path, &body).body;
            let events = lines
                .lines()
                .map(|line| serde_json::from_str(line).unwrap());
            let events: Vec<Value> = events.collect();
            assert_eq!(Some(joined(&events, thoughts).as_str()), thought);
        }
        let mut quiet = body.clone();
        quiet["think"] = json!(false);
        let whole = post(at, path, &quiet).json();
        assert!(whole.pointer(thoughts).is_none(), "{whole}");
        assert_ne!(whole.pointer(text).unwrap(), "");
        quiet["think"] = json!(3);
        assert_eq!(post(at, path, &quiet).status, 400);
    }
    let shown = post(at, "/api/show", &json!({})).json();
    assert_eq!(
        shown["capabilities"],
        json!(["completion", "tools", "thinking"])
    );
}
