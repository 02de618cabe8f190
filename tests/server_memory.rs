//! The server where memory is short: what does not fit is refused, what is not in use goes.

mod support;

use kiv::{Model, Token};
use kiv_server::{Engine, EngineOptions, Event, Room};
use serde_json::json;
use std::sync::Arc;
use support::engine::submit;
use support::http::{get, post, serve};
use support::{model, prose, small};
use tokio::sync::mpsc::UnboundedReceiver;

/// An engine with memory for so many tokens, a byte each.
fn engine(model: &Model, bytes: u64) -> Engine {
    let options = EngineOptions {
        sessions: 4,
        queue: 8,
        kept: None,
        room: Some(Room {
            bytes,
            of_session: Arc::new(|n_tokens| n_tokens as u64),
        }),
    };
    Engine::start(model.clone(), options, |model, _| small(model).build()).unwrap()
}

/// Waits for the end; how many tokens were known.
fn end(told: &mut UnboundedReceiver<Event>) -> usize {
    loop {
        match told.blocking_recv().expect("an end is told") {
            Event::Done(summary) => return summary.reused,
            Event::Failed(why) => panic!("{why}"),
            Event::Reading { .. } | Event::Text { .. } => {}
        }
    }
}

/// Three texts of a thousand tokens that have nothing in common.
fn texts(model: &Model) -> [Vec<Token>; 3] {
    let all = prose(model, 3000);
    [0, 1, 2].map(|i| all[i * 1000..(i + 1) * 1000].to_vec())
}

#[test]
fn a_prompt_that_no_memory_is_for_is_refused() {
    let model = model();
    let at = serve(model.clone(), engine(&model, 500), None);
    let long = "word ".repeat(2000);
    let answer = post(
        at,
        "/v1/completions",
        &json!({"prompt": long, "max_tokens": 1}),
    );
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(answer.body.contains("of memory"), "{}", answer.body);
    let short = json!({"prompt": "Once", "max_tokens": 1});
    assert_eq!(post(at, "/v1/completions", &short).status, 200);
    assert_eq!(get(at, "/health").status, 200);
}

#[test]
fn contexts_that_nobody_uses_make_room() {
    let model = model();
    let [a, b, c] = texts(&model);
    for (bytes, held) in [(2500, 2), (10_000, 3)] {
        let engine = engine(&model, bytes);
        for text in [&a, &b, &c] {
            end(&mut submit(&engine, text, 2));
        }
        let slots = engine.slots();
        let full = slots.iter().filter(|slot| slot.tokens >= 1000).count();
        assert_eq!(full, held, "{slots:?}");
        // The newest of them are still there.
        assert!(end(&mut submit(&engine, &c, 2)) >= 900);
        assert!(end(&mut submit(&engine, &b, 2)) >= 900);
    }
}

#[test]
fn a_request_waits_for_the_memory_of_one_that_runs() {
    let model = model();
    let [a, b, _] = texts(&model);
    let engine = engine(&model, 1500);
    let mut first = submit(&engine, &a, 64);
    let mut second = submit(&engine, &b, 2);
    loop {
        match first.blocking_recv().expect("an end is told") {
            Event::Done(_) => break,
            Event::Failed(why) => panic!("{why}"),
            _ => assert!(
                second.try_recv().is_err(),
                "nothing of the second is read yet"
            ),
        }
    }
    end(&mut second);
    assert_eq!(engine.slots().len(), 1);
}
