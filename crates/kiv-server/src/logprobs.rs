//! How likely an answer's tokens were, in the forms of the protocols.

use crate::ask::Params;
use crate::fault::Fault;
use kiv_runtime::{Chosen, Model, Token};
use serde_json::{Map, Value, json};

/// Most of the likeliest tokens that a chat may ask for, as with OpenAI.
pub(crate) const CHAT: i64 = 20;
/// The same of a completion.
const COMPLETION: i64 = 5;
/// The same of llama-server's `n_probs`, which has no limit there.
const NATIVE: i64 = 100;

/// `logprobs` and `top_logprobs` of a chat: how many of the likeliest are wanted.
pub(crate) fn of_chat(params: &mut Params) -> Result<Option<usize>, Fault> {
    let wanted = params.take::<bool>("logprobs")?.unwrap_or(false);
    let top = params.whole("top_logprobs", 0, CHAT)?.unwrap_or(0);
    if top > 0 && !wanted {
        let why = format!("top_logprobs can be {top} only if logprobs is true");
        return Err(Fault::param("top_logprobs", why));
    }
    Ok(wanted.then_some(top as usize))
}

/// `logprobs` of a completion.
pub(crate) fn of_completion(params: &mut Params) -> Result<Option<usize>, Fault> {
    let top = params.whole("logprobs", 0, COMPLETION)?;
    Ok(top.map(|top| top as usize))
}

/// llama-server's `n_probs`, of which 0 is none.
pub(crate) fn n_probs(params: &mut Params) -> Result<Option<usize>, Fault> {
    let top = params.whole("n_probs", 0, NATIVE)?;
    Ok(top.filter(|top| *top > 0).map(|top| top as usize))
}

/// JSON has no infinity; this is what OpenAI says of what cannot be.
fn told(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob
    } else {
        -9999.0
    }
}

/// A token's text. What is not UTF-8 by itself is told by its bytes, as OpenAI does:
/// no two tokens are the same then.
fn text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(
        |_| {
            let bytes = bytes.iter().map(|b| format!("\\x{b:02x}"));
            format!("bytes:{}", bytes.collect::<String>())
        },
        str::to_owned,
    )
}

fn one(model: &Model, token: Token, logprob: f32) -> Value {
    let bytes = model.piece(token, true);
    json!({"token": text(&bytes), "logprob": told(logprob), "bytes": bytes})
}

/// The same as llama-server tells it: with the token's number.
fn numbered(model: &Model, token: Token, logprob: f32) -> Value {
    let mut one = one(model, token, logprob);
    one["id"] = json!(token);
    one
}

fn all(model: &Model, chosen: &[Chosen], one: fn(&Model, Token, f32) -> Value) -> Vec<Value> {
    let tokens = chosen.iter().map(|chosen| {
        let likeliest = chosen.likeliest.iter();
        let likeliest = likeliest.map(|(token, logprob)| one(model, *token, *logprob));
        let likeliest: Value = likeliest.collect();
        let mut of_token = one(model, chosen.token, chosen.logprob);
        of_token["top_logprobs"] = likeliest;
        of_token
    });
    tokens.collect()
}

/// A list of tokens, each with the likeliest at its place.
pub(crate) fn places(model: &Model, chosen: &[Chosen]) -> Vec<Value> {
    all(model, chosen, one)
}

/// `choices[].logprobs` of a chat.
pub(crate) fn chat(model: &Model, chosen: &[Chosen]) -> Value {
    json!({"content": places(model, chosen), "refusal": null})
}

/// llama-server's `completion_probabilities`.
pub(crate) fn native(model: &Model, chosen: &[Chosen]) -> Value {
    all(model, chosen, numbered).into()
}

/// `choices[].logprobs` of a completion of which so many characters came before; moves
/// them on.
pub(crate) fn completion(model: &Model, chosen: &[Chosen], offset: &mut usize) -> Value {
    let mut tokens = Vec::new();
    let mut logprobs = Vec::new();
    let mut likeliest = Vec::new();
    let mut offsets = Vec::new();
    let name = |token: Token| text(&model.piece(token, true));
    for chosen in chosen {
        tokens.push(name(chosen.token));
        logprobs.push(told(chosen.logprob));
        // The token itself is among them, whether it is one of the likeliest or not.
        let of_token = (chosen.token, chosen.logprob);
        let of_place = chosen.likeliest.iter().chain([&of_token]);
        let of_place = of_place.map(|(token, logprob)| (name(*token), json!(told(*logprob))));
        likeliest.push(of_place.collect::<Map<String, Value>>());
        offsets.push(*offset);
        // Characters, counted by the bytes that begin one.
        let bytes = model.piece(chosen.token, false);
        *offset += bytes.iter().filter(|b| **b & 0xc0 != 0x80).count();
    }
    json!({
        "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": likeliest,
        "text_offset": offsets,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_are_not_text_are_told_by_their_bytes() {
        assert_eq!(text("né".as_bytes()), "né");
        assert_eq!(text(b""), "");
        // Two halves of a character: no text, and not the same.
        assert_eq!(text(&"é".as_bytes()[..1]), r"bytes:\xc3");
        assert_eq!(text(&"é".as_bytes()[1..]), r"bytes:\xa9");
    }

    #[test]
    fn what_cannot_be_is_a_number_all_the_same() {
        assert_eq!(told(f32::NEG_INFINITY), -9999.0);
        assert_eq!(told(-0.5), -0.5);
    }
}
