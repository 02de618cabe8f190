//! A long context, closed and opened again by another process: the same logits as in the
//! process that wrote it, and how long that takes.
#![cfg(feature = "cli")]

mod support;

use kiv::{Model, Session, SessionBuilder, Token};
use kiv_haystack::{Haystack, HaystackSpec, Needle};
use serde_json::Value;
use std::path::{Path, PathBuf};
use support::kiv;

/// Names a folder for the context of a million tokens, which then stays. If it has that
/// context already, it is not read again.
const FOLDER: &str = "KIV_TEST_MILLION";

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/tiny-f16.gguf")
}

fn haystack(model: &Model, n_tokens: usize) -> Haystack {
    let depths = (0..11).map(|i| f64::from(i) / 10.0).collect();
    let spec = HaystackSpec::new(1, n_tokens - 1, depths);
    Haystack::build(&spec, &mut |text| model.tokenize(text, false).len()).unwrap()
}

/// The defaults of `kiv run`.
fn on_disk(model: &Model, folder: &Path) -> SessionBuilder {
    let builder = model.session().policy("pq").threads(1, 1);
    builder.context_dir(folder)
}

/// Bits of the logits after each token of a question and of 16 tokens that follow it.
fn answer(session: &mut Session, question: &[Token]) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    let mut next = 0;
    for i in 0..question.len() + 16 {
        let token = question.get(i).copied().unwrap_or(next);
        session.read_one_by_one(&[token]).unwrap();
        let logits = session.logits();
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        next = best.unwrap() as Token;
        all.push(logits.iter().map(|l| l.to_bits()).collect());
    }
    all
}

/// `kiv run` in a process of its own.
fn ask(folder: &Path, needle: &Needle) -> Value {
    let path = path();
    let mut args = vec!["run", "-m", path.to_str().unwrap(), "--kv-dir"];
    args.extend([folder.to_str().unwrap(), "-p", &needle.question]);
    args.extend(["-n", "16", "--temp", "0", "--kv-no-save", "--json"]);
    let output = kiv(Path::new("."), &args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

/// Takes all files out of the system's cache, if that is allowed.
fn drop_page_cache() -> bool {
    let sync = std::process::Command::new("sync").status();
    sync.is_ok_and(|s| s.success()) && std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

fn reopened(n_tokens: usize, folder: &Path, cold: bool) {
    let model = Model::load(path()).unwrap();
    let haystack = haystack(&model, n_tokens);
    let text = model.tokenize(&haystack.text, true);
    let needles: Vec<&Needle> = haystack.needles.iter().map(|p| &p.needle).collect();
    let question = model.tokenize(&needles[5].question, false);
    let mut writer = on_disk(&model, folder).build().unwrap();
    let known = writer.reuse(&text).unwrap();
    if known < text.len() {
        writer.read(&text[known..]).unwrap();
        writer.commit().unwrap();
    }
    let want = answer(&mut writer, &question);
    drop(writer);

    // Each question from the disk alone, by a process that knows nothing.
    let mut found = 0;
    for needle in &needles {
        let dropped = cold && drop_page_cache();
        let told = ask(folder, needle);
        assert_eq!(told["reused_tokens"], told["context_tokens"]);
        let is_right = needle.is_answered_by(told["text"].as_str().unwrap());
        found += usize::from(is_right);
        println!(
            "{} tokens, page cache {}: first token after {:.2} s, {}",
            told["context_tokens"],
            if dropped { "dropped" } else { "as it was" },
            told["first_token_s"].as_f64().unwrap(),
            if is_right { "right" } else { "wrong" },
        );
    }
    println!("{found} of {} answers are right", needles.len());
    assert!(found > needles.len() / 2);

    let mut session = on_disk(&model, folder).build().unwrap();
    assert_eq!(session.tokens(), text);
    assert!(answer(&mut session, &question) == want, "other logits");
}

#[test]
fn a_context_is_reopened_as_it_was() {
    reopened(12_000, tempfile::tempdir().unwrap().path(), false);
}

#[test]
#[ignore = "reads a million tokens: a quarter of an hour"]
fn a_million_tokens_are_reopened_as_they_were() {
    let own = tempfile::tempdir().unwrap();
    let named = std::env::var_os(FOLDER).map(PathBuf::from);
    reopened(1_048_000, named.as_deref().unwrap_or(own.path()), true);
}
