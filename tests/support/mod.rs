//! What several tests need.
#![allow(dead_code, reason = "each test uses its part")]

pub mod engine;
pub mod http;

use kiv::{GenerateOptions, Model, Sampling, Session, SessionBuilder, Token};
use kiv_haystack::Haystack;
use std::path::PathBuf;

/// The bundled model's file.
pub fn bundled_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/tiny-f16.gguf")
}

/// The bundled model.
pub fn model() -> Model {
    Model::load(bundled_path()).unwrap()
}

/// A pool of 256 cells: overflows after a page of text.
pub fn small(model: &Model) -> SessionBuilder {
    model
        .session()
        .sinks(4)
        .window(64)
        .block(16)
        .budget(64)
        .ubatch(32)
        .threads(1, 1)
}

/// `n` tokens of generated prose.
pub fn prose(model: &Model, n: usize) -> Vec<Token> {
    let mut tokens = Vec::new();
    for paragraph in kiv_haystack::Prose::new(11) {
        tokens.extend(model.tokenize(&(paragraph + "\n"), tokens.is_empty()));
        if tokens.len() >= n {
            break;
        }
    }
    tokens.truncate(n);
    tokens
}

/// Reads a text and asks for each of its needles: which are found.
pub fn answers(session: &mut Session, haystack: &Haystack) -> Vec<bool> {
    let model = session.model().clone();
    session.read(&model.tokenize(&haystack.text, true)).unwrap();
    let n = session.tokens().len();
    let ask = |needle: &kiv_haystack::Needle| {
        session
            .read_one_by_one(&model.tokenize(&needle.question, false))
            .unwrap();
        let options = GenerateOptions {
            max_tokens: Some(6),
            sampling: Sampling::greedy(),
            ..GenerateOptions::default()
        };
        let text: String = session.generate(options).map(|p| p.unwrap().text).collect();
        session.truncate(n).unwrap();
        needle.is_answered_by(&text)
    };
    haystack
        .needles
        .iter()
        .map(|placed| &placed.needle)
        .map(ask)
        .collect()
}

/// The program, in `dir` and with a cache folder of the tests' own.
#[cfg(feature = "cli")]
pub fn kiv(dir: &std::path::Path, args: &[&str]) -> assert_cmd::Command {
    let mut kiv = assert_cmd::Command::new(env!("CARGO_BIN_EXE_kiv"));
    kiv.current_dir(dir)
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .env_remove("COLUMNS")
        .env_remove("CLICOLOR_FORCE")
        .env_remove("KIV_API_KEY")
        .args(args);
    kiv
}
