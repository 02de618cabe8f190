//! The OpenAPI document says what the server does: its routes, what they take and what
//! they answer.

mod support;

use jsonschema::Validator;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use support::http::*;

const DOCUMENT: &str = include_str!("../crates/kiv-server/openapi.json");

fn document() -> Value {
    serde_json::from_str(DOCUMENT).unwrap()
}

/// A part of the document as a schema; its references are into the document.
fn validator(document: &Value, part: &Value) -> Validator {
    let mut schema = part.clone();
    schema["components"] = document["components"].clone();
    jsonschema::validator_for(&schema).unwrap()
}

fn assert_valid(validator: &Validator, value: &Value, what: &str) {
    let errors: Vec<String> = validator
        .iter_errors(value)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{what}: {errors:#?}\n{value:#}");
}

/// Nothing that is not written down.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(close);
            if map.get("properties").is_some_and(Value::is_object)
                && map.get("type").is_some_and(|kind| kind == "object")
            {
                map.entry("additionalProperties").or_insert(json!(false));
            }
        }
        Value::Array(all) => all.iter_mut().for_each(close),
        _ => {}
    }
}

/// Requests whose answers say all that an answer can.
fn requests() -> Vec<(&'static str, Value)> {
    let said = json!([{"role": "system", "content": FACT}, {"role": "user", "content": QUESTION}]);
    let prompt = format!("{FACT}\n{QUESTION}\nAnswer:");
    let options = json!({"temperature": 0, "num_predict": 6});
    let mut flat = safe()["function"].clone();
    flat["type"] = json!("function");
    let tools = json!([safe()]);
    let thinking = r#"root ::= "<think>Hm.</think>48213""#;
    vec![
        ("/v1/models", Value::Null),
        ("/models", Value::Null),
        ("/v1/models/{id}", Value::Null),
        (
            "/v1/chat/completions",
            json!({"messages": said, "temperature": 0, "max_tokens": 6, "kiv_retrieved": true,
                "logprobs": true, "top_logprobs": 2, "return_progress": true,
                "stream_options": {"include_usage": true}}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": said, "max_tokens": 80, "tools": tools, "tool_choice": "required"}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": said, "grammar": thinking}),
        ),
        (
            "/v1/responses",
            json!({"input": QUESTION, "grammar": thinking}),
        ),
        (
            "/v1/completions",
            json!({"prompt": prompt, "temperature": 0, "max_tokens": 6, "logprobs": 2,
                "kiv_retrieved": true, "return_progress": true,
                "stream_options": {"include_usage": true}}),
        ),
        (
            "/v1/responses",
            json!({"input": QUESTION, "instructions": FACT, "max_output_tokens": 6, "temperature": 0,
                "include": ["message.output_text.logprobs"], "top_logprobs": 2}),
        ),
        (
            "/v1/responses",
            json!({"input": [{"role": "user", "content": QUESTION}], "tools": [flat],
                "tool_choice": "required", "max_output_tokens": 80}),
        ),
        (
            "/api/chat",
            json!({"model": "tiny", "messages": said, "options": options}),
        ),
        (
            "/api/chat",
            json!({"messages": said, "format": safe()["function"]["parameters"], "tools": tools}),
        ),
        (
            "/api/generate",
            json!({"prompt": QUESTION, "system": FACT, "options": options}),
        ),
        ("/api/tags", Value::Null),
        ("/api/show", json!({"model": "tiny"})),
        ("/api/ps", Value::Null),
        ("/api/version", Value::Null),
        ("/health", Value::Null),
        ("/v1/health", Value::Null),
        ("/props", Value::Null),
        ("/slots", Value::Null),
        ("/openapi.json", Value::Null),
        ("/tokenize", json!({"content": FACT, "add_special": true})),
        ("/detokenize", json!({"tokens": [1, 2, 3]})),
        ("/apply-template", json!({"messages": said})),
        (
            "/completion",
            json!({"prompt": prompt, "temperature": 0, "n_predict": 6, "n_probs": 2}),
        ),
        ("/completions", json!({"prompt": prompt, "n_predict": 6})),
        (
            "/chat/completions",
            json!({"messages": said, "max_tokens": 6}),
        ),
        (
            "/responses",
            json!({"input": QUESTION, "max_output_tokens": 6}),
        ),
    ]
}

#[test]
fn the_document_is_valid_and_of_this_version() {
    let document = document();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        let is_valid = jsonschema::meta::validate(schema);
        assert!(is_valid.is_ok(), "{name}: {is_valid:?}");
        // Every reference leads somewhere.
        validator(&document, schema);
        let used = DOCUMENT.contains(&format!("#/components/schemas/{name}\""));
        assert!(used, "nothing refers to {name}");
    }
    let at = server(1, 1, Some("secret"));
    assert_eq!(get(at, "/openapi.json").json(), document, "without a key");
}

#[test]
fn the_document_has_all_routes_and_no_others() {
    let document = document();
    let mut written = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            written.insert((method.to_uppercase(), path.clone()));
        }
    }
    let routes = kiv_server::routes();
    let routes = routes.map(|(method, path)| (method.to_string(), path.to_owned()));
    assert_eq!(written, routes.collect::<BTreeSet<_>>());
}

#[test]
fn answers_are_what_the_document_says() {
    let document = document();
    let mut closed = document.clone();
    close(&mut closed["components"]["schemas"]);
    let at = server(2, 4, None);
    let mut asked = BTreeSet::new();
    for (path, body) in requests() {
        asked.insert(path);
        let (method, operation) = operation(&document, path);
        let contents = &operation["responses"]["200"]["content"];
        let whole = validator(&closed, &contents["application/json"]["schema"]);
        if method == "get" {
            let answer = get(at, &path.replace("{id}", "tiny"));
            assert_eq!(answer.status, 200, "{path}");
            assert_valid(&whole, &answer.json(), path);
            continue;
        }
        let request = &operation["requestBody"]["content"]["application/json"]["schema"];
        assert_valid(&validator(&document, request), &body, path);
        let mut body = body;
        body["stream"] = json!(false);
        let answer = post(at, path, &body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert_valid(&whole, &answer.json(), path);

        let contents = contents.as_object().unwrap();
        if let Some((kind, content)) = contents
            .iter()
            .find(|(kind, _)| *kind != "application/json")
        {
            let piece = validator(&closed, &content["schema"]);
            body["stream"] = json!(true);
            let answer = post(at, path, &body);
            assert!(answer.head.contains(kind), "{path}: {}", answer.head);
            let lines = answer.body.lines().filter_map(|line| match kind.as_str() {
                "text/event-stream" => line.strip_prefix("data: ").filter(|l| *l != "[DONE]"),
                _ => Some(line),
            });
            let pieces: Vec<Value> = lines.map(|l| serde_json::from_str(l).unwrap()).collect();
            assert!(pieces.len() > 1, "{path}");
            for value in &pieces {
                assert_valid(&piece, value, path);
            }
        }

        let wrong = raw(at, "POST", path, "", "nonsense");
        assert_eq!(wrong.status, 400, "{path}");
        let name = operation["responses"]["default"]["$ref"].as_str().unwrap();
        let error = closed.pointer(&name[1..]).unwrap();
        let error = validator(&closed, &error["content"]["application/json"]["schema"]);
        assert_valid(&error, &wrong.json(), path);
    }
    // Who asks nothing gets one document, streamed or not.
    let loaded = validator(
        &closed,
        &json!({"$ref": "#/components/schemas/OllamaGenerate"}),
    );
    let answer = post(at, "/api/generate", &json!({"stream": true})).json();
    assert_valid(&loaded, &answer, "/api/generate");
    for path in document["paths"].as_object().unwrap().keys() {
        let (_, operation) = operation(&document, path);
        let is_json = operation["responses"]["200"]["content"]["application/json"].is_object();
        assert_eq!(is_json, asked.contains(path.as_str()), "{path}");
    }
}

fn operation<'d>(document: &'d Value, path: &str) -> (&'d str, &'d Value) {
    let operations = document["paths"][path].as_object().unwrap();
    let (method, operation) = operations.iter().next().unwrap();
    (method, operation)
}

/// What a schema does not allow is refused, for every parameter by itself; limits are
/// where the document says.
#[test]
fn what_the_document_does_not_allow_is_refused() {
    let document = document();
    let at = server(1, 4, None);
    let schema = |part: &Value| match part["$ref"].as_str() {
        Some(name) => document.pointer(&name[1..]).unwrap().clone(),
        None => part.clone(),
    };
    for (path, mut body) in [
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "logprobs": true}),
        ),
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 1})),
        (
            "/v1/responses",
            json!({"input": "x", "max_output_tokens": 1, "include": ["message.output_text.logprobs"]}),
        ),
        (
            "/api/chat",
            json!({"messages": [{"role": "user", "content": "x"}], "options": {"num_predict": 1}}),
        ),
        (
            "/api/generate",
            json!({"prompt": "x", "options": {"num_predict": 1}}),
        ),
        ("/api/show", json!({})),
        ("/tokenize", json!({"content": "x"})),
        ("/detokenize", json!({"tokens": [1]})),
        (
            "/apply-template",
            json!({"messages": [{"role": "user", "content": "x"}]}),
        ),
        ("/completion", json!({"prompt": "x", "n_predict": 1})),
    ] {
        let (_, operation) = operation(&document, path);
        let request = &operation["requestBody"]["content"]["application/json"]["schema"];
        let properties = schema(request)["properties"].clone();
        check_limits(at, path, &mut body, &[], &properties, &document);
        if let Some(options) = properties.get("options") {
            let properties = schema(options)["properties"].clone();
            check_limits(at, path, &mut body, &["options"], &properties, &document);
        }
    }
}

fn check_limits(
    at: SocketAddr,
    path: &str,
    body: &mut Value,
    within: &[&str],
    properties: &Value,
    document: &Value,
) {
    for (name, property) in properties.as_object().unwrap() {
        let allowed = validator(document, property);
        let status = |value: &Value| {
            let mut body = body.clone();
            let place = within
                .iter()
                .fold(&mut body, |place, name| &mut place[name]);
            place[name] = value.clone();
            post(at, path, &body).status
        };
        let mut values = vec![
            json!(5),
            json!(0.5),
            json!(-1e12),
            json!(true),
            json!("x"),
            json!([]),
            json!({}),
        ];
        for (limit, step) in [("minimum", -1.0), ("maximum", 1.0)] {
            if let Some(limit) = property[limit].as_f64() {
                values.push(json!((limit + step) as i64));
                // As much as can be may take long to do, and so does "no limit", below 0.
                if (0.0..=100.0).contains(&limit) {
                    let at_limit = json!(limit as i64);
                    assert_eq!(status(&at_limit), 200, "{path}: {name} = {at_limit}");
                }
            }
        }
        for value in values.iter().filter(|value| !allowed.is_valid(value)) {
            assert_eq!(status(value), 400, "{path}: {name} = {value}");
        }
    }
}
