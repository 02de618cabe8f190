//! Answers that are held to a form: schemas and grammars.

mod support;

use serde_json::{Value, json};
use support::http::*;

#[test]
fn answers_are_what_a_schema_says() {
    let at = server(1, 4, None);
    let said = json!([{"role": "user", "content": format!("{FACT} {QUESTION}")}]);
    let schema = &safe()["function"]["parameters"];
    let shared = json!({"messages": said, "temperature": 0, "max_tokens": 60});
    let with = |name: &str, value: Value| {
        let mut body = shared.clone();
        body[name] = value;
        body
    };
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let bodies = [
        with("response_format", format),
        with(
            "response_format",
            json!({"type": "json_object", "schema": schema}),
        ),
        with("json_schema", schema.clone()),
    ];
    for body in bodies {
        let answer = post(at, "/v1/chat/completions", &body);
        let answer = answer.json();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let found: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(found["code"].is_i64(), "{found}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    // Without a schema the model writes no JSON.
    let free = post(at, "/v1/chat/completions", &shared).json();
    let text = free["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(text).is_err(), "{text}");

    let body = json!({"messages": said, "stream": false, "format": schema,
        "options": {"temperature": 0, "num_predict": 60}});
    let answer = post(at, "/api/chat", &body).json();
    let text = answer["message"]["content"].as_str().unwrap();
    let found: Value = serde_json::from_str(text).unwrap();
    assert!(found["code"].is_i64(), "{found}");

    let body = json!({"prompt": FACT, "n_predict": 8, "temperature": 0,
        "grammar": "root ::= \"<\" [0-9] [0-9] \">\""});
    let answer = post(at, "/completion", &body).json();
    let text = answer["content"].as_str().unwrap();
    assert!(
        text.len() == 4 && text.starts_with('<') && text.ends_with('>'),
        "{text}"
    );
}

/// The server's own stop texts end no answer that is held to a form; the client's do.
#[test]
fn an_answer_of_a_form_is_not_cut_off() {
    let at = server(1, 4, None);
    let grammar = format!(r#"root ::= "4 {STOP} 8""#);
    let mut ask = json!({"messages": conversation(FACT), "grammar": grammar});
    let said = |ask: &Value| {
        let answer = post(at, "/v1/chat/completions", ask).json();
        answer["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(said(&ask), format!("4 {STOP} 8"));
    ask["stop"] = json!(STOP);
    assert_eq!(said(&ask), "4 ");
}

/// llama.cpp's reading of each would never end, or end the process.
#[test]
fn grammars_that_would_do_harm_are_refused() {
    let at = server(1, 4, None);
    let deep = format!("root ::= {}", "(".repeat(100_000));
    let circle = json!({"$defs": {"a": {"$ref": "#/$defs/a"}}, "allOf": [{"$ref": "#/$defs/a"}]});
    let many = (0..3000).map(|i| (format!("p{i}"), json!({"type": "string"})));
    let many = json!({"type": "object", "properties": Value::Object(many.collect())});
    for (name, value, why) in [
        ("grammar", json!(deep), "groups"),
        ("json_schema", circle, "$ref"),
        ("json_schema", many, "properties"),
    ] {
        let ask = json!({"prompt": "x", "n_predict": 1, name: value});
        let answer = post(at, "/completion", &ask);
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert!(answer.body.contains(why), "{}", answer.body);
    }
    // As deep as can be is read, and so is what refers to one definition after another.
    let deep = format!("root ::= {}\"ab\"{}", "(".repeat(200), ")".repeat(200));
    let chain = (0..2000).map(|i| {
        let next = json!({"type": "array", "items": {"$ref": format!("#/$defs/d{}", i + 1)}});
        (
            format!("d{i}"),
            if i == 1999 { json!({"const": 1}) } else { next },
        )
    });
    let chain = json!({"$defs": Value::Object(chain.collect()), "$ref": "#/$defs/d0"});
    for (name, value) in [("grammar", json!(deep)), ("json_schema", chain)] {
        let ask = json!({"prompt": "x", "n_predict": 1, name: value});
        assert_eq!(post(at, "/completion", &ask).status, 200);
    }
}
