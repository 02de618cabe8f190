//! What is wrong with a request, in the words of its protocol.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A protocol, which has its own form of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    OpenAi,
    Ollama,
    Native,
}

impl Protocol {
    /// By the path of a request.
    pub fn of(path: &str) -> Self {
        let unversioned = ["/models", "/chat/completions", "/responses"];
        if path.starts_with("/v1/") || unversioned.contains(&path) {
            Self::OpenAi
        } else if path.starts_with("/api/") {
            Self::Ollama
        } else {
            Self::Native
        }
    }
}

/// A refusal.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub status: StatusCode,
    pub message: String,
    /// The parameter that is wrong.
    pub param: Option<&'static str>,
}

impl Fault {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
        }
    }

    /// A parameter that cannot be had.
    pub fn param(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param),
            ..Self::new(StatusCode::BAD_REQUEST, message)
        }
    }

    /// The answer's body, or what a stream that has begun ends with.
    pub fn body(&self, protocol: Protocol) -> Value {
        let Self {
            status,
            message,
            param,
        } = self;
        let kind = match status.as_u16() {
            401 | 403 => "authentication_error",
            404 => "not_found_error",
            400..=499 => "invalid_request_error",
            503 => "unavailable_error",
            _ => "server_error",
        };
        match protocol {
            Protocol::OpenAi => {
                json!({"error": {"message": message, "type": kind, "param": param, "code": null}})
            }
            Protocol::Ollama => json!({"error": message}),
            Protocol::Native => {
                json!({"error": {"code": status.as_u16(), "message": message, "type": kind}})
            }
        }
    }

    /// What the engine says when it cannot go on.
    pub fn failed(why: String) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, why)
    }

    pub fn answer(self, protocol: Protocol) -> Response {
        let (status, body) = (self.status, self.body(protocol));
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let soon = header::HeaderValue::from_static("2");
            response.headers_mut().insert(header::RETRY_AFTER, soon);
        }
        response
    }
}
