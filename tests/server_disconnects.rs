//! Clients that go away at any moment, while one keeps asking.

mod support;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::http::*;

const SESSIONS: usize = 2;
/// Clients that go away at once.
const AT_ONCE: usize = 20;

/// Where a client goes away.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// Before its headers are complete.
    Headers,
    /// Before its body is.
    Body,
    /// Some time after its request is complete: it waits, or its prompt is read, or its
    /// answer is generated, by what the others do.
    Asked,
    /// When some of the answer has come.
    Streaming,
}

/// One request that is not waited for to its end.
fn go_away(at: SocketAddr, moment: Moment, random: &mut ChaCha8Rng) {
    let (path, mut body) = request(random);
    let is_streaming = matches!(moment, Moment::Streaming);
    body["stream"] = json!(is_streaming || random.random());
    let body = body.to_string();
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n");
    let whole = format!("{head}\r\n{body}");
    let end = match moment {
        Moment::Headers => random.random_range(0..head.len()),
        Moment::Body => random.random_range(head.len() + 2..whole.len()),
        Moment::Asked | Moment::Streaming => whole.len(),
    };
    let mut stream = TcpStream::connect(at).unwrap();
    stream.write_all(&whole.as_bytes()[..end]).unwrap();
    match moment {
        Moment::Headers | Moment::Body => {}
        Moment::Asked => {
            let pause = random.random_range(0..60);
            std::thread::sleep(Duration::from_millis(pause));
        }
        Moment::Streaming => {
            let mut part = Vec::new();
            let most = random.random_range(1..2000);
            let wait = Some(Duration::from_secs(120));
            stream.set_read_timeout(wait).unwrap();
            stream.take(most).read_to_end(&mut part).unwrap();
            let begin = b"HTTP/1.1 200 OK";
            assert!(part.starts_with(&begin[..part.len().min(begin.len())]));
            assert!(!part.is_empty(), "the server was first to go");
        }
    }
}

/// A request of any protocol whose answer would take long.
fn request(random: &mut ChaCha8Rng) -> (&'static str, Value) {
    let text = document(random.random_range(1..1500));
    let said = json!([{"role": "user", "content": text}]);
    match random.random_range(0..5) {
        0 => ("/v1/chat/completions", json!({"messages": said})),
        1 => ("/v1/responses", json!({"input": text})),
        2 => (
            "/v1/completions",
            json!({"prompt": text, "max_tokens": 500}),
        ),
        3 => ("/api/chat", json!({"messages": said})),
        _ => ("/completion", json!({"prompt": text, "ignore_eos": true})),
    }
}

/// Answers of the client that stays.
fn answers(at: SocketAddr) -> Vec<Value> {
    let ask = |n: usize| {
        let body =
            json!({"messages": conversation(&document(n)), "temperature": 0, "max_tokens": 6});
        let answer = post(at, "/v1/chat/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["choices"][0].clone()
    };
    [0, 300, 900].map(ask).to_vec()
}

fn storm(n: usize) {
    // Room for all, should the server be slow to notice.
    let at = server(SESSIONS, n + 1, None);
    let alone = answers(at);
    assert_eq!(alone[0]["message"]["content"], " 48213");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let leaving: Vec<_> = (0..AT_ONCE)
            .map(|worker| {
                scope.spawn(move || {
                    let mut random = ChaCha8Rng::seed_from_u64(worker as u64);
                    for i in (worker..n).step_by(AT_ONCE) {
                        let moments = [
                            Moment::Headers,
                            Moment::Body,
                            Moment::Asked,
                            Moment::Streaming,
                        ];
                        // Each of them as often.
                        let moment = moments[(i / AT_ONCE + worker) % moments.len()];
                        go_away(at, moment, &mut random);
                    }
                })
            })
            .collect();
        let steady = scope.spawn(|| {
            let mut rounds = 0;
            while !is_over.load(Ordering::SeqCst) || rounds == 0 {
                assert_eq!(answers(at), alone);
                rounds += 1;
            }
        });
        let left: Vec<_> = leaving.into_iter().map(|client| client.join()).collect();
        is_over.store(true, Ordering::SeqCst);
        steady.join().unwrap();
        assert!(left.iter().all(Result::is_ok));
    });
    at_rest(at);
    assert_eq!(answers(at), alone);
}

/// Waits until nothing runs or waits, and checks that nothing is lost.
fn at_rest(at: SocketAddr) {
    let started = Instant::now();
    loop {
        let metrics = get(at, "/metrics").body;
        let count = |name: &str| metric(&metrics, name);
        let slots = get(at, "/slots").json();
        let slots = slots.as_array().unwrap();
        let busy = slots.iter().filter(|slot| slot["is_processing"] == true);
        if count("kiv_requests_open") == 0 && busy.count() == 0 {
            assert_eq!(count("kiv_requests_failed_total"), 0, "{metrics}");
            assert!(count("kiv_requests_cancelled_total") > 0, "{metrics}");
            assert_eq!(slots.len(), SESSIONS);
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "{metrics}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn clients_that_go_away_at_random_moments_cost_others_nothing() {
    storm(200);
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_of_them() {
    storm(1000);
}
