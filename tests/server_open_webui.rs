//! Open WebUI's requests: a chat about a document, and the helper calls around it.

mod support;

use serde_json::{Value, json};
use std::net::SocketAddr;
use support::http::*;

/// What is asked, one request a line. `$DOCUMENT` and `$ANSWER` stand for the text that
/// is talked about and for the first answer.
const SESSION: &str = include_str!("data/open-webui.jsonl");

/// A value with its placeholders filled in.
fn filled(value: &Value, document: &str, answer: &str) -> Value {
    match value {
        Value::String(text) => {
            let text = text.replace("$DOCUMENT", document);
            text.replace("$ANSWER", answer).into()
        }
        Value::Array(all) => all.iter().map(|v| filled(v, document, answer)).collect(),
        Value::Object(all) => {
            let all = all.iter();
            all.map(|(key, v)| (key.clone(), filled(v, document, answer)))
                .collect()
        }
        other => other.clone(),
    }
}

/// Prompt tokens that were read until now.
fn tokens_read(at: SocketAddr) -> u64 {
    metric(&get(at, "/metrics").body, "kiv_prompt_tokens_total") as u64
}

/// The text of a streamed chat, and the tokens of its prompt: all, and known before (of
/// which ollama's protocol says nothing).
fn told(protocol: &str, answer: &Answer) -> (String, u64, Option<u64>) {
    match protocol {
        "openai" => {
            let pieces = data(answer);
            let text = pieces
                .iter()
                .filter_map(|p| p["choices"][0]["delta"]["content"].as_str());
            let usage = &pieces.last().unwrap()["usage"];
            let known = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
            let total = usage["prompt_tokens"].as_u64().unwrap();
            (text.collect(), total, Some(known.unwrap()))
        }
        _ => {
            let lines = answer.body.lines();
            let lines = lines.map(|line| serde_json::from_str(line).unwrap());
            let lines: Vec<Value> = lines.collect();
            let text = lines
                .iter()
                .map(|l| l["message"]["content"].as_str().unwrap());
            let total = lines.last().unwrap()["prompt_eval_count"].as_u64();
            (text.collect(), total.unwrap(), None)
        }
    }
}

fn replay(protocol: &str) {
    let at = server(2, 4, None);
    let text = document(3000);
    let mut chats: Vec<(String, u64)> = Vec::new();
    let mut helpers = 0;
    for line in SESSION.lines() {
        let step: Value = serde_json::from_str(line).unwrap();
        if step["protocol"] != protocol {
            continue;
        }
        let first = chats.first().map_or("", |(answer, _)| answer);
        let body = filled(&step["body"], &text, first);
        let (method, path) = (&step["method"], step["path"].as_str().unwrap());
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let before = tokens_read(at);
        let answer = raw(at, method.as_str().unwrap(), path, "", &body);
        assert_eq!(answer.status, 200, "{}: {}", step["kind"], answer.body);
        match step["kind"].as_str().unwrap() {
            "chat" => {
                let (text, total, known) = told(protocol, &answer);
                let read = tokens_read(at) - before;
                assert!(known.is_none_or(|known| total - known == read));
                if let Some((_, first)) = chats.last() {
                    // What is new, the answer to the last turn, and the end of its prompt,
                    // which asks for an answer.
                    let new = total - first;
                    assert!(new < 200 && read <= new + 16, "{read} of {new} new tokens");
                } else {
                    assert!(total > 2000, "longer than the pool");
                }
                chats.push((text, total));
            }
            "models" => assert!(answer.json().is_object()),
            helper => {
                let answer = answer.json();
                let text = match protocol {
                    "openai" => &answer["choices"][0]["message"]["content"],
                    _ => &answer["message"]["content"],
                };
                assert!(text.is_string(), "{helper}: {answer}");
                helpers += 1;
            }
        }
    }
    assert!(helpers >= 5);
    let answers: Vec<&str> = chats.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(answers, [" 48213", " 48213"]);
    let slots = get(at, "/slots").json();
    assert_eq!(slots.as_array().map(Vec::len), Some(2), "{slots}");
    assert_eq!(json!(false), slots[0]["is_processing"]);
}

#[test]
fn through_openai_s_protocol() {
    replay("openai");
}

#[test]
fn through_ollama_s_protocol() {
    replay("ollama");
}
