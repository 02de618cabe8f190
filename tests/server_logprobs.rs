//! How likely the tokens of an answer were, as each protocol tells it.

mod support;

use serde_json::{Value, json};
use support::http::*;

fn prompt() -> String {
    format!("{FACT}\n{QUESTION}\nAnswer:")
}

/// Checks one place of an answer: probabilities that can be, the likeliest first, and, if
/// nothing was left to chance, the chosen one first.
fn check(place: &Value, n: usize, greedy: bool) {
    let top = place["top_logprobs"].as_array().unwrap();
    assert_eq!(top.len(), n, "{place}");
    let logprobs: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
    assert!(logprobs.is_sorted_by(|a, b| a >= b), "{place}");
    let sum: f64 = logprobs.iter().map(|l| l.exp()).sum();
    assert!(sum > 0.0 && sum < 1.0 + 1e-5, "{place}: {sum}");
    assert!(place["logprob"].as_f64().unwrap() <= logprobs[0], "{place}");
    if greedy {
        assert_eq!(place["bytes"], top[0]["bytes"], "{place}");
        assert_eq!(place["logprob"], top[0]["logprob"], "{place}");
    }
}

fn text_of(places: &[Value]) -> String {
    let bytes = places.iter().flat_map(|p| p["bytes"].as_array().unwrap());
    let bytes: Vec<u8> = bytes.map(|b| b.as_u64().unwrap() as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn chats_tell_how_likely_tokens_were() {
    let at = server(1, 4, None);
    let ask = |stream: bool, temperature: f64| {
        json!({"messages": conversation(FACT), "temperature": temperature, "seed": 5, "max_tokens": 6,
            "top_k": 0, "top_p": 1, "min_p": 0,
            "stream": stream, "logprobs": true, "top_logprobs": 20})
    };
    for temperature in [0.0, 100.0] {
        let whole = post(at, "/v1/chat/completions", &ask(false, temperature)).json();
        let choice = &whole["choices"][0];
        let places = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(places.len(), 6, "{whole}");
        for place in places {
            check(place, 20, temperature == 0.0);
        }
        assert_eq!(choice["message"]["content"], text_of(places));
        // Temperature is not in them: some chosen at random are unlikely by far.
        let least = places.iter().map(|p| p["logprob"].as_f64().unwrap());
        let least = least.fold(0.0, f64::min);
        assert_eq!(temperature > 0.0, least < -2.0, "{least}");

        let pieces = data(&post(at, "/v1/chat/completions", &ask(true, temperature)));
        let mut streamed = Vec::new();
        for piece in &pieces {
            let choice = &piece["choices"][0];
            let Some(places) = choice["logprobs"]["content"].as_array() else {
                continue;
            };
            // Tokens come with their text.
            assert_eq!(choice["delta"]["content"], text_of(places));
            streamed.extend(places.iter().cloned());
        }
        assert_eq!(&streamed, places);
    }
    let mut ask = ask(false, 0.0);
    ask["top_logprobs"] = json!(0);
    let whole = post(at, "/v1/chat/completions", &ask).json();
    let places = whole["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert!(places.iter().all(|p| p["top_logprobs"] == json!([])));
    ask["logprobs"] = json!(false);
    let whole = post(at, "/v1/chat/completions", &ask).json();
    assert!(whole["choices"][0]["logprobs"].is_null());
}

/// All probabilities of a place sum up to one: here of a whole vocabulary.
#[test]
fn probabilities_are_the_model_s_own() {
    let model = support::model();
    let mut session = support::small(&model).build().unwrap();
    session.read(&model.tokenize(&prompt(), true)).unwrap();
    let options = kiv::GenerateOptions {
        max_tokens: Some(3),
        sampling: kiv::Sampling::greedy(),
        likeliest: Some(usize::MAX),
        ..kiv::GenerateOptions::default()
    };
    let mut generation = kiv::Generation::new(options);
    for _ in 0..3 {
        // What is read next is the last choice; then these are its logits.
        generation.step(&mut session).unwrap().unwrap();
        let logits = session.logits().to_vec();
        let [chosen] = &generation.take_chosen()[..] else {
            panic!("one token, one choice");
        };
        assert_eq!(chosen.likeliest.len(), model.n_vocab());
        let sum: f64 = (chosen.likeliest.iter())
            .map(|(_, l)| f64::from(*l).exp())
            .sum();
        assert!((sum - 1.0).abs() < 1e-4, "{sum}");
        // Differences are those of the logits.
        let (first, best) = chosen.likeliest[0];
        assert_eq!((first, best), (chosen.token, chosen.logprob));
        for (token, logprob) in &chosen.likeliest {
            let apart = logits[first as usize] - logits[*token as usize];
            assert!((best - logprob - apart).abs() < 1e-3, "{token}");
        }
    }
}

#[test]
fn completions_tell_how_likely_tokens_were() {
    let at = server(1, 4, None);
    let ask = |stream: bool, n: usize, stop: &str| {
        json!({"prompt": prompt(), "temperature": 0, "max_tokens": 6, "stream": stream,
            "logprobs": n, "stop": [stop]})
    };
    // A stop text is not part of an answer, nor are its tokens.
    for (stop, n) in [("nowhere", 5), ("13", 5), ("nowhere", 0)] {
        let whole = post(at, "/v1/completions", &ask(false, n, stop)).json();
        let choice = &whole["choices"][0];
        let text = choice["text"].as_str().unwrap();
        let of = |name: &str| choice["logprobs"][name].as_array().unwrap().clone();
        let tokens = of("tokens");
        let joined: String = tokens.iter().map(|t| t.as_str().unwrap()).collect();
        if stop == "nowhere" {
            assert_eq!((joined.as_str(), tokens.len()), (text, 6));
        } else {
            assert_eq!(text, " 482");
            assert!(joined.starts_with(text), "{joined}");
        }
        for (i, offset) in of("text_offset").iter().enumerate() {
            let offset = offset.as_u64().unwrap() as usize;
            assert!(text[offset..].starts_with(tokens[i].as_str().unwrap()) || stop == "13");
            let top = &of("top_logprobs")[i];
            assert_eq!(top.as_object().unwrap().len(), n.max(1));
            assert_eq!(
                top[tokens[i].as_str().unwrap()],
                of("token_logprobs")[i],
                "the chosen one is among them"
            );
        }
        let pieces = data(&post(at, "/v1/completions", &ask(true, n, stop)));
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let streamed = (pieces.iter())
                .filter_map(|p| p["choices"][0]["logprobs"][name].as_array())
                .flatten();
            assert_eq!(streamed.cloned().collect::<Vec<_>>(), of(name), "{name}");
        }
    }
    let mut plain = ask(false, 0, "13");
    plain["logprobs"] = Value::Null;
    let whole = post(at, "/v1/completions", &plain).json();
    assert!(whole["choices"][0]["logprobs"].is_null());
}

#[test]
fn llama_server_clients_ask_by_n_probs() {
    let at = server(1, 4, None);
    let ask = |stream: bool| json!({"prompt": prompt(), "temperature": 0, "n_predict": 6, "stream": stream, "n_probs": 3});
    let whole = post(at, "/completion", &ask(false)).json();
    let places = whole["completion_probabilities"].as_array().unwrap();
    assert_eq!(places.len(), 6);
    for place in places {
        check(place, 3, true);
        assert_eq!(place["id"], place["top_logprobs"][0]["id"]);
    }
    assert_eq!(whole["content"], text_of(places));
    let pieces = data(&post(at, "/completion", &ask(true)));
    let streamed = (pieces.iter())
        .filter_map(|p| p["completion_probabilities"].as_array())
        .flatten();
    assert_eq!(&streamed.cloned().collect::<Vec<_>>(), places);
    let mut plain = ask(false);
    plain["n_probs"] = json!(0);
    let whole = post(at, "/completion", &plain).json();
    assert!(whole.get("completion_probabilities").is_none());
}

#[test]
fn limits_are_told() {
    let at = server(1, 4, None);
    let said = json!([{"role": "user", "content": "x"}]);
    for (path, body, words) in [
        (
            "/v1/chat/completions",
            json!({"messages": said, "logprobs": true, "top_logprobs": 21}),
            "top_logprobs must be 0 to 20, not 21",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": said, "logprobs": true, "top_logprobs": -1}),
            "top_logprobs must be 0 to 20, not -1",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": said, "top_logprobs": 2}),
            "top_logprobs can be 2 only if logprobs is true",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": said, "logprobs": 2}),
            "logprobs cannot be 2",
        ),
        (
            "/v1/completions",
            json!({"prompt": "x", "logprobs": 6}),
            "logprobs must be 0 to 5, not 6",
        ),
        (
            "/v1/completions",
            json!({"prompt": "x", "logprobs": 0.5}),
            "logprobs must be a whole number, not 0.5",
        ),
        (
            "/completion",
            json!({"prompt": "x", "n_probs": 101}),
            "n_probs must be 0 to 100, not 101",
        ),
    ] {
        let answer = post(at, path, &body);
        assert_eq!(answer.status, 400, "{body}");
        let error = &answer.json()["error"];
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{body}: {message}");
        if path.starts_with("/v1/") {
            let param = words.split(' ').next().unwrap();
            assert_eq!(error["param"], param);
        }
    }
}
