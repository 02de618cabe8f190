//! Requests to a server's engine, without a server.

use kiv::{GenerateOptions, Sampling, Token};
use kiv_server::{Engine, Event, Request};
use tokio::sync::mpsc::UnboundedReceiver;

/// Asks for an answer of so many tokens.
pub fn submit(engine: &Engine, prompt: &[Token], max_tokens: usize) -> UnboundedReceiver<Event> {
    let (events, told) = tokio::sync::mpsc::unbounded_channel();
    let options = GenerateOptions {
        max_tokens: Some(max_tokens),
        sampling: Sampling::greedy(),
        ignore_end: true,
        ..GenerateOptions::default()
    };
    let request = Request {
        prompt: prompt.to_vec(),
        options,
        retrieved: false,
        events,
    };
    engine.submit(request).unwrap();
    told
}
