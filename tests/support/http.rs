//! A server on the loopback, and requests to it.

use kiv::{ChatTemplate, Model};
use kiv_server::{Config, Engine, EngineOptions, router};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub const FACT: &str = "The secret code of Amber Falcon is 48213.";
pub const QUESTION: &str = "What is the secret code of Amber Falcon?";
pub const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if enable_thinking is false %}At once. {% endif %}Answer:";

/// A server of the bundled model with a pool of 512 cells or so.
pub fn server(sessions: usize, queue: usize, api_key: Option<&str>) -> SocketAddr {
    server_of(TEMPLATE, sessions, queue, api_key)
}

/// The same with a chat template.
pub fn server_of(
    template: &str,
    sessions: usize,
    queue: usize,
    api_key: Option<&str>,
) -> SocketAddr {
    let model = Model::load("models/tiny-f16.gguf").unwrap();
    let options = EngineOptions {
        room: None,
        sessions,
        queue,
        kept: None,
    };
    let engine = Engine::start(model.clone(), options, |model, _| {
        let session = model.session().policy("pq").window(256).budget(512);
        session.ubatch(128).threads(1, 1).build()
    })
    .unwrap();
    serve_as(template, model, engine, api_key)
}

/// A text that ends answers.
pub const STOP: &str = "(end)";

/// A server of an engine.
pub fn serve(model: Model, engine: Engine, api_key: Option<&str>) -> SocketAddr {
    serve_as(TEMPLATE, model, engine, api_key)
}

fn serve_as(template: &str, model: Model, engine: Engine, api_key: Option<&str>) -> SocketAddr {
    let config = Config {
        name: "tiny".to_owned(),
        bytes: 1,
        digest: "0123456789abcdef".repeat(4),
        template: Some(ChatTemplate::parse(template)),
        stop: vec![STOP.to_owned()],
        n_ctx: 1 << 20,
        api_key: api_key.map(str::to_owned),
        hosts: Vec::new(),
    };
    let router = router(config, model, engine);
    let (told, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            let headers = Duration::from_secs(2);
            kiv_server::serve_with(listener, router, std::future::pending(), headers)
                .await
                .unwrap();
        });
    });
    address.recv().unwrap()
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// Sends a request whose body may be of any kind, reads all of the answer.
pub fn raw(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(300)))
        .unwrap();
    let length = body.len();
    let host = if headers.contains("Host:") {
        ""
    } else {
        "Host: localhost\r\n"
    };
    let request = format!(
        "{method} {path} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    // A server that refuses early may not read all of it.
    let _ = stream.write_all(request.as_bytes());
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).map_or(0, |s| s.parse().unwrap());
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") {
        unchunked(body)
    } else {
        body.to_owned()
    };
    Answer {
        status,
        head: head.to_lowercase(),
        body,
    }
}

pub fn unchunked(mut text: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole += &rest[..size];
        text = rest[size..].trim_start_matches("\r\n");
        if size == 0 {
            break;
        }
    }
    whole
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    raw(address, "POST", path, "", &body.to_string())
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    raw(address, "GET", path, "", "")
}

/// A number among `/metrics`, by its name.
pub fn metric(metrics: &str, name: &str) -> usize {
    let values = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let value = values.filter_map(|rest| rest.strip_prefix(' ')).next();
    value.expect(name).parse().expect("a number")
}

pub fn conversation(document: &str) -> Value {
    json!([{"role": "system", "content": document}, {"role": "user", "content": [{"type": "text", "text": QUESTION}]}])
}

/// `n` tokens of prose, about, with the fact in front.
pub fn document(n: usize) -> String {
    let mut text = FACT.to_owned();
    for paragraph in kiv_haystack::Prose::new(3) {
        text += " ";
        text += &paragraph;
        if text.len() > 3 * n {
            break;
        }
    }
    text.replace('\n', " ")
}

/// A request whose answer ends only when nobody listens any more.
pub fn endless() -> String {
    json!({"prompt": "In the beginning", "stream": true, "ignore_eos": true}).to_string()
}

pub fn data(answer: &Answer) -> Vec<Value> {
    let lines = answer
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// A function that wants a number.
pub fn safe() -> Value {
    json!({"type": "function", "function": {
        "name": "open_safe",
        "description": "Opens the safe.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "integer"}},
            "required": ["code"],
            "additionalProperties": false,
        },
    }})
}
