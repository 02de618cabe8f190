//! The server on the loopback: its protocols, what it refuses, several clients at
//! once, clients that go away.

mod support;

use kiv::Model;
use kiv_server::{Engine, EngineOptions};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::http::*;

#[test]
fn openai_clients() {
    let at = server(2, 4, None);
    let ask = |stream: bool| {
        json!({"model": "tiny", "messages": conversation(FACT), "temperature": 0, "max_tokens": 6,
            "stream": stream, "stream_options": {"include_usage": true}, "user": "someone"})
    };
    let whole = post(at, "/v1/chat/completions", &ask(false));
    assert_eq!(whole.status, 200, "{}", whole.body);
    let whole = whole.json();
    assert_eq!(whole["object"], "chat.completion");
    let choice = &whole["choices"][0];
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": " 48213"})
    );
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 6);
    assert_eq!(whole["usage"]["prompt_tokens_details"]["cached_tokens"], 0);

    let streamed = post(at, "/v1/chat/completions", &ask(true));
    assert!(streamed.head.contains("text/event-stream"));
    assert!(streamed.body.trim_end().ends_with("data: [DONE]"));
    let pieces = data(&streamed);
    let content = |piece: &Value| {
        piece["choices"][0]["delta"]["content"]
            .as_str()
            .map(str::to_owned)
    };
    assert_eq!(
        pieces.iter().filter_map(content).collect::<String>(),
        " 48213"
    );
    assert_eq!(pieces[0]["choices"][0]["delta"]["role"], "assistant");
    let usage = &pieces.last().unwrap()["usage"];
    let known = usage["prompt_tokens"].as_u64().unwrap() - 1;
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], known);

    let text = json!({"prompt": format!("{FACT}\n{QUESTION} The secret code of Amber Falcon is"), "temperature": 0, "stop": ["13"]});
    let text = post(at, "/v1/completions", &text).json();
    assert_eq!(text["choices"][0]["text"], " 482");
    assert_eq!(text["choices"][0]["finish_reason"], "stop");
    let models = get(at, "/v1/models").json();
    assert_eq!(models["data"][0]["id"], "tiny");
}

/// kiv's own: how far reading has come, and where the answer came from.
#[test]
fn answers_say_where_they_came_from() {
    let at = server(1, 4, None);
    // The fact is far from both ends.
    let prose = document(3000).replace(FACT, "");
    let middle = prose.len() / 2 + prose[prose.len() / 2..].find(' ').unwrap();
    let text = format!("{} {FACT}{}", &prose[..middle], &prose[middle..]);
    let ask = json!({"messages": conversation(&text), "temperature": 0, "max_tokens": 6, "stream": true,
        "return_progress": true, "kiv_retrieved": true});
    let pieces = data(&post(at, "/v1/chat/completions", &ask));
    let progress: Vec<(u64, u64)> = (pieces.iter().map(|p| &p["prompt_progress"]))
        .filter(|p| p.is_object())
        .map(|p| {
            (
                p["processed"].as_u64().unwrap(),
                p["total"].as_u64().unwrap(),
            )
        })
        .collect();
    assert!(progress.len() > 3 && progress.is_sorted(), "{progress:?}");
    let (read, total) = *progress.last().unwrap();
    assert_eq!(read, total);
    let told = pieces.iter().find(|p| p["kiv_retrieved"].is_object());
    let told = &told.unwrap()["kiv_retrieved"];
    let bins: Vec<f64> = serde_json::from_value(told["bins"].clone()).unwrap();
    assert!((bins.iter().sum::<f64>() - 1.0).abs() < 1e-3, "{bins:?}");
    let passages = told["passages"].as_array().unwrap();
    let has_fact = |p: &&Value| p["text"].as_str().unwrap().contains("48213");
    let fact = passages.iter().find(has_fact).unwrap();
    let tokens = told["tokens"].as_u64().unwrap();
    let from = fact["from"].as_u64().unwrap();
    assert!((tokens / 3..tokens * 2 / 3).contains(&from), "{fact}");
    // Nobody asked: nothing is told.
    let ask = json!({"messages": conversation(FACT), "max_tokens": 1});
    let answer = post(at, "/v1/chat/completions", &ask).json();
    assert!(answer["kiv_retrieved"].is_null() && answer["usage"].is_object());
}

#[test]
fn the_page_is_served_without_a_key_and_can_load_nothing_foreign() {
    let at = server(1, 4, Some("secret"));
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
    ] {
        let page = get(at, path);
        assert_eq!(page.status, 200);
        assert!(page.head.contains(kind) && page.head.contains("default-src 'self'"));
        assert!(!page.body.contains("http://") && !page.body.contains("https://"));
    }
    assert_eq!(get(at, "/slots").status, 401);
}

#[test]
fn ollama_clients() {
    let at = server(2, 4, None);
    let options = json!({"temperature": 0, "num_predict": 6, "num_ctx": 4096});
    let ask = json!({"model": "tiny:latest", "messages": [{"role": "user", "content": format!("{FACT} {QUESTION}")}], "options": options});
    let answer = post(at, "/api/chat", &ask);
    assert!(answer.head.contains("application/x-ndjson"));
    let lines: Vec<Value> = answer
        .body
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let content = |line: &Value| line["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(lines.iter().map(content).collect::<String>(), " 48213");
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["done"], &last["done_reason"]),
        (&json!(true), &json!("length"))
    );
    assert_eq!(last["eval_count"], 6);
    assert!(
        lines[..lines.len() - 1]
            .iter()
            .all(|line| line["done"] == false)
    );

    // The template has more to say to who shall not think.
    let mut ask = json!({"messages": conversation("A."), "stream": false, "options": options});
    let usual = post(at, "/api/chat", &ask).json();
    ask["think"] = json!(false);
    let quick = post(at, "/api/chat", &ask).json();
    let tokens = |answer: &Value| answer["prompt_eval_count"].as_u64().unwrap();
    assert!(tokens(&quick) > tokens(&usual), "{usual} {quick}");

    let ask = json!({"model": "tiny", "prompt": format!("{FACT}\n{QUESTION}"), "stream": false, "options": options});
    let answer = post(at, "/api/generate", &ask).json();
    assert_eq!(answer["response"], " 48213");
    // Who asks nothing wants the model loaded.
    for (path, said) in [
        ("/api/generate", json!({"model": "tiny", "keep_alive": -1})),
        ("/api/chat", json!({"model": "tiny", "messages": []})),
    ] {
        let answer = post(at, path, &said).json();
        let is_done = (&answer["done"], &answer["done_reason"]);
        assert_eq!(is_done, (&json!(true), &json!("load")));
    }
    // `ollama list` shows twelve digits of a digest, and `ollama ps` when a model goes.
    let listed = get(at, "/api/tags").json();
    assert_eq!(listed["models"][0]["name"], "tiny");
    assert_eq!(listed["models"][0]["digest"].as_str().unwrap().len(), 64);
    let running = get(at, "/api/ps").json();
    assert_eq!(running["models"][0]["context_length"], 1 << 20);
    assert_eq!(running["models"][0]["expires_at"], "2200-01-01T00:00:00Z");
    let tagged = json!({"model": "tiny:latest"});
    assert_eq!(post(at, "/api/show", &tagged).status, 200);
    // Clients want an ollama that is not too old.
    let version = get(at, "/api/version").json()["version"].clone();
    let version = version.as_str().unwrap().split('.').map(str::parse);
    let version = version.collect::<Result<Vec<u32>, _>>().unwrap();
    assert!(version >= vec![0, 12, 10], "{version:?}");
    let shown = post(at, "/api/show", &json!({"model": "tiny"})).json();
    assert_eq!(shown["model_info"]["general.architecture"], "qwen3");
    assert_eq!(
        shown["capabilities"],
        json!(["completion", "tools", "thinking"])
    );
}

#[test]
fn llama_server_clients() {
    let at = server(1, 4, None);
    assert_eq!(get(at, "/health").json(), json!({"status": "ok"}));
    let tokens = post(at, "/tokenize", &json!({"content": FACT})).json();
    let back = post(at, "/detokenize", &tokens).json();
    assert_eq!(back["content"], FACT);
    let prompt = post(
        at,
        "/apply-template",
        &json!({"messages": conversation("A.")}),
    )
    .json();
    assert_eq!(prompt["prompt"], format!("A.\n{QUESTION}\nAnswer:"));
    let with_tools = json!({"messages": conversation("A."), "tools": [safe()]});
    let prompt = post(at, "/apply-template", &with_tools).json();
    assert!(
        prompt["prompt"].as_str().unwrap().contains("open_safe"),
        "{prompt}"
    );
    let quick = json!({"enable_thinking": false});
    let quick = json!({"messages": conversation("A."), "chat_template_kwargs": quick});
    let prompt = post(at, "/apply-template", &quick).json();
    assert_eq!(
        prompt["prompt"],
        format!("A.\n{QUESTION}\nAt once. Answer:")
    );
    let ask = json!({"prompt": format!("{FACT}\n{QUESTION}\nAnswer:"), "n_predict": 6, "temperature": 0, "stream": true});
    let pieces = data(&post(at, "/completion", &ask));
    let text: String = pieces
        .iter()
        .map(|p| p["content"].as_str().unwrap())
        .collect();
    assert_eq!(text, " 48213");
    assert!(
        pieces
            .iter()
            .any(|p| p["prompt_progress"]["processed"].is_u64())
    );
    assert_eq!(pieces.last().unwrap()["stop_type"], "limit");
    let props = get(at, "/props").json();
    assert_eq!(props["total_slots"], 1);
    assert_eq!(props["eos_token"], "<|endoftext|>");
    assert!(
        props["chat_template"]
            .as_str()
            .unwrap()
            .contains("messages")
    );
    let metrics = get(at, "/metrics").body;
    assert!(
        metrics.contains("kiv_generated_tokens_total 6\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("# TYPE kiv_requests_open gauge\nkiv_requests_open 0\n"),
        "{metrics}"
    );
}

/// llama-server takes either protocol's name of the limit; one that is not heeded is an answer
/// as long as the context.
/// Paths that clients know from elsewhere.
#[test]
fn models_by_name_and_paths_without_a_version() {
    let at = server(1, 4, None);
    let listed = get(at, "/v1/models").json();
    assert_eq!(get(at, "/models").json(), listed);
    for name in ["tiny", "%74iny", "tiny:latest"] {
        let told = get(at, &format!("/v1/models/{name}"));
        assert_eq!((told.status, told.json()), (200, listed["data"][0].clone()));
    }
    for (path, name) in [
        ("some/model:1b", "some/model:1b"),
        ("some%2Fmodel", "some/model"),
        ("tiny/", "tiny/"),
        ("%ff", ""),
    ] {
        let told = get(at, &format!("/v1/models/{path}"));
        let error = &told.json()["error"];
        assert_eq!((told.status, &error["param"]), (404, &json!("model")));
        assert!(error["message"].as_str().unwrap().contains(name), "{error}");
    }
    let messages = conversation(FACT);
    let chat = json!({"messages": messages, "max_tokens": 1});
    let chat = post(at, "/chat/completions", &chat).json();
    assert_eq!(chat["object"], "chat.completion");
    let response = json!({"input": QUESTION, "max_output_tokens": 1});
    let response = post(at, "/responses", &response).json();
    assert_eq!(response["object"], "response");
    // Errors, too, are those of OpenAI.
    let error = post(at, "/chat/completions", &json!({})).json();
    assert_eq!(error["error"]["param"], "messages");
    assert_eq!(get(at, "/responses").json()["error"]["code"], Value::Null);
    // This one is llama-server's own.
    let own = json!({"prompt": "x", "n_predict": 1});
    let own = post(at, "/completions", &own).json();
    assert!(own["content"].is_string() && own["choices"].is_null());
}

#[test]
fn limits_have_several_names() {
    let at = server(1, 4, None);
    let said = conversation(FACT);
    for (path, body, count) in [
        (
            "/v1/chat/completions",
            json!({"messages": said, "n_predict": 3, "ignore_eos": true}),
            "/usage/completion_tokens",
        ),
        (
            "/v1/completions",
            json!({"prompt": FACT, "n_predict": 3, "ignore_eos": true}),
            "/usage/completion_tokens",
        ),
        (
            "/completion",
            json!({"prompt": FACT, "max_tokens": 3, "ignore_eos": true}),
            "/tokens_predicted",
        ),
        // Tokens are read as they are: the fourth would be a start token.
        (
            "/v1/completions",
            json!({"prompt": [[5, 6, 7]], "max_tokens": 3, "ignore_eos": true}),
            "/usage/prompt_tokens",
        ),
        (
            "/completion",
            json!({"prompt": [5, 6, 7], "n_predict": 0}),
            "/tokens_evaluated",
        ),
    ] {
        let answer = post(at, path, &body).json();
        assert_eq!(answer.pointer(count), Some(&json!(3)), "{path}: {answer}");
    }
    let endless = json!({"messages": said, "max_tokens": -1, "grammar": "root ::= \"a\"{20}"});
    let answer = post(at, "/v1/chat/completions", &endless).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "a".repeat(20));
}

#[test]
fn what_cannot_be_is_refused_in_each_protocol_s_form() {
    let at = server(1, 4, None);
    let message = json!([{"role": "user", "content": "x"}]);
    let openai = [
        (json!({"messages": []}), "messages"),
        (json!({}), "messages"),
        (json!({"messages": "x"}), "messages"),
        (
            json!({"messages": [{"role": "robot", "content": "x"}]}),
            "messages",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages",
        ),
        (
            json!({"messages": message, "temperature": -1}),
            "temperature",
        ),
        (
            json!({"messages": message, "temperature": "hot"}),
            "temperature",
        ),
        (json!({"messages": message, "top_p": 1.5}), "top_p"),
        (json!({"messages": message, "n": 2}), "n"),
        (json!({"messages": message, "tools": [{}]}), "tools"),
        (
            json!({"messages": message, "response_format": {"type": "yaml"}}),
            "response_format",
        ),
        (
            json!({"messages": message, "response_format": {"type": "json_schema",
                "json_schema": {"schema": {"type": "number of things"}}}}),
            "response_format",
        ),
        (
            json!({"messages": message, "tool_choice": "required"}),
            "tool_choice",
        ),
        (
            json!({"messages": message, "tools": [safe()],
                "tool_choice": {"type": "function", "function": {"name": "other"}}}),
            "tool_choice",
        ),
        (
            json!({"messages": message, "grammar": "root ::= nothing"}),
            "grammar",
        ),
        (
            json!({"messages": message, "top_logprobs": 1}),
            "top_logprobs",
        ),
        (json!({"messages": message, "stream": "yes"}), "stream"),
        (json!({"messages": message, "max_tokens": -3}), "max_tokens"),
    ];
    let penalties = [
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
    ];
    let penalties = penalties.map(|name| (json!({"messages": message, name: 0.5}), name));
    for (body, param) in openai.into_iter().chain(penalties) {
        let answer = post(at, "/v1/chat/completions", &body);
        assert_eq!(answer.status, 400, "{body}");
        let error = &answer.json()["error"];
        assert_eq!(error["param"], param, "{body}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(
            error["message"].as_str().unwrap().contains(param),
            "{error}"
        );
    }
    let unknown = post(
        at,
        "/v1/chat/completions",
        &json!({"model": "gpt-9", "messages": message}),
    );
    assert_eq!(
        (unknown.status, &unknown.json()["error"]["param"]),
        (404, &json!("model"))
    );
    for body in ["", "{", "[]", "\"x\"", "{\"prompt\": \"\u{1}"] {
        for path in ["/v1/completions", "/api/generate", "/completion"] {
            let answer = raw(at, "POST", path, "", body);
            assert_eq!(answer.status, 400, "{path} {body}");
            let error = &answer.json()["error"];
            assert_eq!(
                error.is_string(),
                path.starts_with("/api"),
                "{path}: {error}"
            );
        }
    }
    let answer = post(
        at,
        "/api/chat",
        &json!({"messages": message, "options": {"top_p": 7}}),
    );
    assert!(
        answer.json()["error"]
            .as_str()
            .unwrap()
            .contains("top_p must be 0 to 1, not 7")
    );
    // An answer must not look as if they had been heeded.
    let penalty = json!({"prompt": "x", "n_predict": 1, "repeat_penalty": 1.1});
    assert_eq!(post(at, "/completion", &penalty).status, 400);
    let penalty = json!({"prompt": "x", "options": {"num_predict": 1, "repeat_penalty": 1.1}});
    assert_eq!(post(at, "/api/generate", &penalty).status, 400);
    let none = json!({"prompt": "x", "n_predict": 1, "repeat_penalty": 1, "presence_penalty": 0.0});
    assert_eq!(post(at, "/completion", &none).status, 200);
    for (path, body) in [
        ("/detokenize", json!({"tokens": [99999]})),
        ("/completion", json!({"prompt": [1, "x"]})),
        ("/completion", json!({"prompt": [99999]})),
        ("/v1/completions", json!({"prompt": ["x", "y"]})),
        ("/v1/completions", json!({"prompt": {}})),
    ] {
        let answer = post(at, path, &body);
        let error = answer.json()["error"]["message"].to_string();
        assert_eq!(answer.status, 400, "{body}");
        assert!(error.contains("a list of"), "{body}: {error}");
    }
    assert_eq!(get(at, "/v1/nothing").status, 404);
    for path in ["/v1/completions", "/api/chat", "/completion"] {
        let answer = get(at, path);
        assert_eq!(answer.status, 405, "{path}");
        let error = &answer.json()["error"];
        assert_eq!(error.is_string(), path.starts_with("/api"), "{error}");
        assert!(error.to_string().contains("does not take GET"), "{error}");
    }
    let chat = [
        ("modalities", json!(["text", "audio"]), json!(["text"])),
        ("add_generation_prompt", json!(false), json!(true)),
        ("chat_template_kwargs", json!("no"), json!({})),
        ("top_n_sigma", json!(1.5), json!(-1)),
    ];
    let native = [
        ("n", json!(2), json!(1)),
        ("lora", json!([{"id": 0, "scale": 1.0}]), json!([])),
        ("return_tokens", json!(true), json!(false)),
        ("t_max_predict_ms", json!(100), json!(0)),
        ("min_keep", json!(4), json!(0)),
        (
            "samplers",
            json!(["temperature", "top_k"]),
            json!("edkypmxt"),
        ),
        ("samplers", json!(["top_k", "top_p", "temperature"]), {
            json!([
                "penalties",
                "dry",
                "top_k",
                "typ_p",
                "top_p",
                "min_p",
                "xtc",
                "temperature"
            ])
        }),
    ];
    let tokenize = [
        ("with_pieces", json!(true), json!(false)),
        ("parse_special", json!(false), json!(true)),
    ];
    let chat_body = json!({"messages": message, "max_tokens": 1});
    let native_body = json!({"prompt": "x", "n_predict": 1});
    for (path, body, cases) in [
        ("/v1/chat/completions", chat_body, &chat[..]),
        ("/completion", native_body, &native[..]),
        ("/tokenize", json!({"content": "x"}), &tokenize[..]),
    ] {
        for (name, other, harmless) in cases {
            let status = |value: &Value| {
                let mut body = body.clone();
                body[*name] = value.clone();
                post(at, path, &body).status
            };
            assert_eq!(status(other), 400, "{path}: {name} = {other}");
            assert_eq!(status(harmless), 200, "{path}: {name} = {harmless}");
        }
    }
    // A body of 100 MB is not even read.
    let header = "Content-Type: application/json\r\n";
    let mut stream = TcpStream::connect(at).unwrap();
    write!(stream, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n{header}\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.contains("413"), "{line}");
    // Pages of other sites, and names that lead here (DNS rebinding).
    for headers in [
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Host: evil.example\r\n",
    ] {
        let answer = raw(at, "POST", "/api/generate", headers, "{\"prompt\": \"x\"}");
        assert_eq!(answer.status, 403, "{headers}");
    }
    let own = raw(
        at,
        "GET",
        "/v1/models",
        "Origin: http://localhost:3000\r\n",
        "",
    );
    assert_eq!(own.status, 200);
    // After all that it still answers.
    assert_eq!(
        post(at, "/completion", &json!({"prompt": "x", "n_predict": 1})).status,
        200
    );
}

#[test]
fn headers_that_never_end_are_not_waited_for() {
    let at = server(1, 4, None);
    let mut slow: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(at).unwrap();
            stream
                .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-")
                .unwrap();
            stream
        })
        .collect();
    // Others are served meanwhile, and in the end the slow ones are closed.
    assert_eq!(get(at, "/health").status, 200);
    for stream in &mut slow {
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut rest = Vec::new();
        // Closed, or reset: not timed out.
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
}

#[test]
fn a_key_is_asked_for() {
    let at = server(1, 4, Some("secret"));
    for (headers, status) in [
        ("", 401),
        ("Authorization: Bearer guess\r\n", 401),
        ("Authorization: Bearer secret\r\n", 200),
    ] {
        assert_eq!(
            raw(at, "GET", "/v1/models", headers, "").status,
            status,
            "{headers}"
        );
    }
    assert_eq!(get(at, "/health").status, 200);
}

#[test]
fn a_document_is_read_once_and_helper_calls_do_not_push_it_out() {
    let at = server(2, 8, None);
    let ask = |messages: Value| {
        let body = json!({"messages": messages, "temperature": 0, "max_tokens": 6});
        let answer = post(at, "/v1/chat/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    };
    let long = document(3000);
    let first = ask(conversation(&long));
    assert_eq!(first["choices"][0]["message"]["content"], " 48213");
    let total = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(total > 2000, "longer than the pool");
    for title in ["Write a title.", "Give three tags.", "Is this spam?"] {
        ask(json!([{"role": "user", "content": title}]));
    }
    let again = ask(conversation(&long));
    assert_eq!(again["choices"][0]["message"]["content"], " 48213");
    let known = &again["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(known.as_u64().unwrap() >= total - 1, "{again}");
}

#[test]
fn a_short_chat_goes_on_while_a_long_text_is_read() {
    let at = server(2, 8, None);
    let long = document(20_000);
    let started = Instant::now();
    let reader = std::thread::spawn(move || {
        let body = json!({"messages": conversation(&long), "temperature": 0, "max_tokens": 6});
        let answer = post(at, "/v1/chat/completions", &body).json();
        (
            answer["choices"][0]["message"]["content"].clone(),
            Instant::now(),
        )
    });
    // Until it is being read.
    while !get(at, "/slots").body.contains("\"is_processing\":true") {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "nothing is read"
        );
    }
    let body = json!({"messages": conversation(FACT), "temperature": 0, "max_tokens": 6});
    let answer = post(at, "/v1/chat/completions", &body).json();
    let short = Instant::now();
    assert_eq!(answer["choices"][0]["message"]["content"], " 48213");
    let (content, long) = reader.join().unwrap();
    assert_eq!(content, " 48213");
    assert!(short < long, "the short chat waited for the long text");
}

#[test]
fn clients_at_once_get_what_each_would_get_alone() {
    let at = server(3, 32, None);
    let code = |i: usize| format!("{}", 10_000 + 7919 * i);
    let body = move |i: usize| {
        let text = format!(
            "The secret code of Amber Falcon is {}. {}",
            code(i),
            document(200 * (i % 4))
        );
        let prompt = format!("{text}\n{QUESTION}\nAnswer:").replacen(FACT, "", 1);
        json!({"prompt": prompt, "temperature": 0, "max_tokens": 6})
    };
    let text = |answer: Answer| {
        answer.json()["choices"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let threads: Vec<_> = (0..12)
        .map(|i| std::thread::spawn(move || post(at, "/v1/completions", &body(i))))
        .collect();
    let together: Vec<String> = threads
        .into_iter()
        .map(|t| text(t.join().unwrap()))
        .collect();
    let alone = server(1, 1, None);
    for (i, together) in together.iter().enumerate() {
        assert_eq!(
            *together,
            text(post(alone, "/v1/completions", &body(i))),
            "client {i}"
        );
        assert_eq!(*together, format!(" {}", code(i)));
    }
}

#[test]
fn clients_that_go_away_cost_nothing_more() {
    let at = server(1, 8, None);
    let body = endless();
    let length = body.len();
    // No more than the head and the first line: what the model writes may be nothing.
    for n_read in [0usize, 1, 100, 200] {
        let mut stream = TcpStream::connect(at).unwrap();
        write!(
            stream,
            "POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut part = vec![0; n_read];
        stream.read_exact(&mut part).unwrap();
        drop(stream);
    }
    let started = Instant::now();
    loop {
        let metrics = get(at, "/metrics").body;
        let count = |name: &str| metric(&metrics, name);
        // The first may be gone before anybody has heard of it.
        if count("kiv_requests_total") >= 3 && count("kiv_requests_open") == 0 {
            assert!(count("kiv_requests_cancelled_total") > 0, "{metrics}");
            assert_eq!(count("kiv_requests_failed_total"), 0, "{metrics}");
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{metrics}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let answer = post(
        at,
        "/completion",
        &json!({"prompt": format!("{FACT}\n{QUESTION}\nAnswer:"), "n_predict": 6, "temperature": 0}),
    );
    assert_eq!(answer.json()["content"], " 48213");
}

#[test]
fn more_than_can_wait_is_refused_for_now() {
    let at = server(1, 1, None);
    let long = endless();
    let open = || {
        let mut stream = TcpStream::connect(at).unwrap();
        let length = long.len();
        write!(
            stream,
            "POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{long}"
        )
        .unwrap();
        stream
    };
    let _running = open();
    let _waiting = open();
    let started = Instant::now();
    while !get(at, "/metrics").body.contains("kiv_requests_open 2\n") {
        assert!(started.elapsed() < Duration::from_secs(60));
    }
    let refused = post(at, "/v1/completions", &json!({"prompt": "x"}));
    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("retry-after: 2"));
    assert_eq!(refused.json()["error"]["type"], "unavailable_error");
}

#[test]
fn a_server_that_cannot_answer_any_more_says_so() {
    let model = Model::load("models/tiny-f16.gguf").unwrap();
    let options = EngineOptions {
        room: None,
        sessions: 2,
        queue: 4,
        kept: None,
    };
    let opened = AtomicUsize::new(0);
    let engine = Engine::start(model.clone(), options, move |model, _| {
        let is_first = opened.fetch_add(1, Ordering::SeqCst) == 0;
        assert!(is_first, "a fault, for the sake of the test");
        model.session().threads(1, 1).build()
    });
    let at = serve(model, engine.unwrap(), None);
    assert_eq!(get(at, "/health").status, 200);
    let busy = std::thread::spawn(move || raw(at, "POST", "/completion", "", &endless()));
    while get(at, "/slots").json()[0]["is_processing"] != true {
        std::thread::sleep(Duration::from_millis(10));
    }
    // A second session is needed for this one.
    let body = json!({"prompt": "x", "n_predict": 1});
    assert_eq!(post(at, "/completion", &body).status, 500);
    assert!(busy.join().unwrap().body.contains("error"));
    // Answers break off before the thread is quite at its end.
    while get(at, "/health").status != 500 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let answer = post(at, "/completion", &body);
    assert_eq!(answer.status, 500);
    assert!(answer.body.contains("start it again"), "{}", answer.body);
    assert_eq!(get(at, "/health").status, 500);
}
