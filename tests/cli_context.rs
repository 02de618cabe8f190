//! Contexts on disk from the command line: what is kept, continued, shared,
//! checked and refused.
#![cfg(feature = "cli")]

mod support;

use serde_json::Value;
use std::fs;
use std::path::Path;
use support::{kiv, model, prose};
use tempfile::TempDir;

/// A pool of 256 cells, which a page of text overflows.
const SMALL: &str = "--kv-sinks 4 --kv-window 64 --kv-block 16 --kv-budget 64 -ub 32 -t 1 --temp 0";
const FACT: &str = "The secret code of Amber Falcon is 48213.\n";
const QUESTION: &str =
    "\nWhat is the secret code of Amber Falcon? The secret code of Amber Falcon is";

/// A folder with a fact and then about 1500 tokens of prose in `book.txt`.
fn book() -> TempDir {
    let model = model();
    let dir = tempfile::tempdir().unwrap();
    let text = FACT.to_owned() + &model.detokenize(&prose(&model, 1500));
    fs::write(dir.path().join("book.txt"), text).unwrap();
    dir
}

/// Runs `kiv LINE MORE --json`; the last line that it prints.
fn json(dir: &Path, line: &str, more: &[&str]) -> Value {
    let mut args: Vec<&str> = line.split_whitespace().collect();
    args.extend(more);
    args.push("--json");
    let output = kiv(dir, &args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}\n{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

fn run(dir: &Path, line: &str, more: &[&str]) -> Value {
    json(dir, &format!("run --kv-dir context {line} {SMALL}"), more)
}

/// What `kiv LINE` says when it fails.
fn refused(dir: &Path, line: &str) -> String {
    let args: Vec<&str> = line.split_whitespace().collect();
    let output = kiv(dir, &args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let code = output.status.code().expect("killed by a signal");
    let said = format!("$ kiv {line}\n--- exit code {code}\n{stderr}");
    assert!(matches!(code, 1 | 2), "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn a_question_is_answered_without_reading_again() {
    let dir = book();
    let first = run(dir.path(), "-f book.txt -n 2", &[]);
    let n = first["prompt_tokens"].as_u64().unwrap();
    assert_eq!(first["context_tokens"], 0);
    assert_eq!(first["generated_tokens"], 2);
    assert!(first["disk_bytes"].as_u64().unwrap() > first["host_kv_bytes"].as_u64().unwrap());
    // The answer is not kept: every question finds the same context.
    for _ in 0..2 {
        let asked = run(dir.path(), "-n 6 --kv-no-save", &["-p", QUESTION]);
        assert!(asked["text"].as_str().unwrap().contains("48213"), "{asked}");
        // All that was shown is there, its last token, too.
        assert_eq!(asked["context_tokens"].as_u64(), Some(n + 2));
        assert_eq!(asked["reused_tokens"], asked["context_tokens"]);
        assert!(asked["prompt_tokens"].as_u64().unwrap() < 40);
        assert!(asked["disk_misses"].as_u64().unwrap() > 0);
        assert!(asked["first_token_s"].as_f64().unwrap() > 0.0);
    }
    // With the text given again only what differs is read.
    let again = run(dir.path(), "-n 6 -f book.txt", &["-p", QUESTION]);
    assert_eq!(again["reused_tokens"].as_u64(), Some(n));
    assert!(again["text"].as_str().unwrap().contains("48213"), "{again}");
    // Kept this time: it goes on from there.
    let on = run(dir.path(), "-n 1", &["-p", " Amen."]);
    assert!(on["context_tokens"].as_u64().unwrap() > n + 10);
}

/// Whoever goes on with a context need not say again how it was written.
#[test]
fn flags_of_the_context_are_taken_from_it() {
    let dir = book();
    let first = run(dir.path(), "-f book.txt -n 2 --kv-store q8_0", &[]);
    let line = "run --kv-dir context -t 1 --temp 0 -n 6 --kv-no-save";
    let asked = json(dir.path(), line, &["-p", QUESTION]);
    assert!(asked["text"].as_str().unwrap().contains("48213"), "{asked}");
    assert_eq!(asked["resident_kv_bytes"], first["resident_kv_bytes"]);
    // They are shown, and only those that would have been others.
    let output = kiv(dir.path(), &line.split(' ').collect::<Vec<_>>());
    let output = { output }.args(["-p", QUESTION]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    let taken = "as the context was written: --kv-block 16 --kv-sinks 4 --kv-store q8_0,q8_0 \
                 --kv-window 64 --kv-budget 64 --ubatch-size 32\n";
    assert!(told.contains(taken), "{told}");
    // What is said counts.
    let told = refused(dir.path(), "run --kv-dir context -p x --kv-window 96");
    assert!(told.contains("--kv-window 64, not 96"), "{told}");
}

#[test]
fn a_host_limit_gives_the_same_answers() {
    let dir = book();
    let first = run(dir.path(), "-f book.txt -n 2", &[]);
    let limit = first["host_kv_bytes"].as_u64().unwrap() / 8;
    let answer = |flags: &str| {
        let asked = run(
            dir.path(),
            &format!("-n 12 --kv-no-save {flags}"),
            &["-p", QUESTION],
        );
        let host = asked["host_kv_bytes"].as_u64().unwrap();
        (asked["text"].as_str().unwrap().to_owned(), host)
    };
    let (want, _) = answer("");
    let (text, host) = answer(&format!("--kv-host-limit {limit}"));
    assert_eq!(text, want);
    assert!(host <= limit, "{host} of {limit}");
}

/// What `kiv chat LINE` answers to lines piped in.
fn chat(dir: &Path, line: &str, said: &str) -> String {
    let line = format!("chat --kv-dir context -n 6 --json {line} {SMALL}");
    let args: Vec<&str> = line.split_whitespace().collect();
    let output = { kiv(dir, &args) }.write_stdin(said).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}\n{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The text that the context holds.
fn held(dir: &Path) -> String {
    let tokens = kiv_runtime::stored_tokens(&dir.join("context")).unwrap();
    model().detokenize(&tokens)
}

#[test]
fn a_conversation_goes_on_after_what_is_there() {
    let dir = book();
    let path = dir.path();
    let ask = "What is the secret code of Amber Falcon?\n";
    run(path, "-f book.txt -n 0", &[]);
    let book = held(path);
    // Two processes, two questions in the first; then one that says again what it is about.
    let answers = chat(path, "", &format!("{ask}{ask}"));
    assert_eq!(answers.matches("48213").count(), 2, "{answers}");
    let before = held(path);
    assert!(before.starts_with(&book) && before.matches("Question:").count() == 2);
    for again in ["", "-f book.txt"] {
        let before = held(path);
        assert!(chat(path, again, ask).contains("48213"));
        let now = held(path);
        assert!(
            now.starts_with(&before) && now.len() > before.len(),
            "{now}"
        );
        assert!(!now.contains("\n\nQuestion:"), "{now}");
    }
    let before = held(path);
    assert!(chat(path, "--kv-no-save", ask).contains("48213"));
    // Another text, or another system prompt: nothing is cut.
    fs::write(path.join("other.txt"), "Another text.").unwrap();
    for other in ["-f other.txt", "-sys Hello", "-sys Hello -f book.txt"] {
        let said = refused(path, &format!("chat --kv-dir context {other} {SMALL}"));
        assert!(
            said.contains("would be lost") && said.contains("--kv-no-save"),
            "{said}"
        );
        chat(path, &format!("--kv-no-save {other}"), ask);
    }
    assert_eq!(held(path), before);
}

#[test]
fn a_turn_that_is_held_is_ended_before_the_next() {
    let dir = book();
    let path = dir.path();
    let template = "--chat-template chatml";
    // The text as it is, then turns.
    run(path, "-f book.txt -n 0", &[]);
    let book = held(path);
    for _ in 0..2 {
        chat(path, &format!("{template} -f book.txt"), "Who?\n");
    }
    let now = held(path);
    let turns = now.strip_prefix(&book).unwrap();
    assert!(
        turns.starts_with("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"),
        "{turns}"
    );
    let again = "<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(turns.matches(again).count(), 1, "{turns}");
    assert_eq!(turns.matches("<|im_start|>").count(), 4, "{turns}");
    // From the start, with a system's turn.
    fs::remove_dir_all(path.join("context")).unwrap();
    for more in ["-sys Hi", "-sys Hi", ""] {
        chat(path, &format!("{template} {more}"), "Who?\n");
    }
    let now = held(path);
    assert_eq!(now.matches("<|im_start|>system").count(), 1, "{now}");
    assert_eq!(now.matches(again).count(), 3, "{now}");
}

/// As from a read-only file system, without a lock file.
#[test]
#[cfg(unix)]
fn a_context_is_read_where_nothing_can_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let dir = book();
    run(dir.path(), "-f book.txt -n 2", &[]);
    let context = dir.path().join("context");
    fs::remove_file(context.join("lock")).unwrap();
    let may = |mode| fs::set_permissions(&context, fs::Permissions::from_mode(mode)).unwrap();
    may(0o555);
    let files = || {
        let all = fs::read_dir(&context).unwrap().map(|file| {
            let path = file.unwrap().path();
            (fs::read(&path).unwrap(), path)
        });
        let mut all: Vec<_> = all.collect();
        all.sort();
        all
    };
    let before = files();
    let asked = run(dir.path(), "-n 6 --kv-no-save", &["-p", QUESTION]);
    assert!(asked["text"].as_str().unwrap().contains("48213"), "{asked}");
    // More than the pool holds is read after the beginning of the text.
    let text = fs::read_to_string(dir.path().join("book.txt")).unwrap();
    let other = text[..text.len() / 3].to_owned() + &text[text.len() / 2..];
    fs::write(dir.path().join("other.txt"), other).unwrap();
    let other = run(
        dir.path(),
        "-n 6 --kv-no-save -f other.txt",
        &["-p", QUESTION],
    );
    assert!(other["text"].as_str().unwrap().contains("48213"), "{other}");
    let [read, reused] = ["prompt_tokens", "reused_tokens"].map(|key| other[key].as_u64().unwrap());
    assert!(reused > 256 && read > reused + 256, "{other}");
    let line = format!("chat --kv-dir context --kv-no-save {SMALL} -n 2 --json");
    let mut chat = kiv(dir.path(), &line.split(' ').collect::<Vec<_>>());
    chat.write_stdin("Hello\n").assert().success();
    assert_eq!(files(), before);
    may(0o755);
}

#[test]
fn contexts_are_listed_checked_forked_and_removed() {
    let dir = book();
    let path = dir.path();
    run(path, "-f book.txt -n 2", &[]);
    let info = json(path, "context info --kv-dir context", &[]);
    assert_eq!(info["version"], 1);
    assert_eq!(
        (&info["key_type"], &info["block_tokens"]),
        (&"f16".into(), &16.into())
    );
    assert_eq!(info["settings"]["--kv-window"], "64");
    assert!(info["model"].as_str().unwrap().starts_with("tiny F16 "));
    json(path, "context fork --kv-dir context --to other", &[]);
    assert_eq!(
        json(path, "context list --kv-dir .", &[])["path"],
        "./other"
    );
    let output = kiv(path, &["context", "list", "--kv-dir", "."])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
    let verified = json(path, "context verify --kv-dir other", &[]);
    assert_eq!(
        (&verified["faults"], &verified["blocks"]),
        (&0.into(), &info["blocks"])
    );
    json(path, "context rm --kv-dir other", &[]);
    assert!(!path.join("other").exists());

    // A flipped bit is told with its block, and whoever needs the rows hears of it.
    let rows = fs::read_dir(path.join("context")).unwrap();
    let rows = rows
        .map(|f| f.unwrap().path())
        .find(|p| p.to_str().unwrap().contains("rows-"));
    let rows = rows.unwrap();
    let mut bytes = fs::read(&rows).unwrap();
    let record = (bytes.len() - 64) / info["blocks"].as_u64().unwrap() as usize;
    bytes[64 + 3 * record + 77] ^= 4;
    fs::write(&rows, bytes).unwrap();
    let said = refused(path, "context verify --kv-dir context");
    assert!(said.contains("damaged in 1 places"), "{said}");
    let output = kiv(
        path,
        &["context", "verify", "--kv-dir", "context", "--json"],
    )
    .output();
    let line = String::from_utf8(output.unwrap().stdout).unwrap();
    let fault: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!(fault["block"], 3);
    let what = fault["fault"].as_str().unwrap();
    assert!(
        what.contains("block 3 (positions 52 to 67), layer 0, KV head 0, keys"),
        "{what}"
    );
    let line = format!("run --kv-dir context -p x -n 1 --kv-policy exact {SMALL}");
    let said = refused(path, &line);
    assert!(said.contains("block 3 (positions 52 to 67)"), "{said}");
}

/// JSON cannot hold such a path.
#[test]
#[cfg(target_os = "linux")]
fn a_path_that_is_not_utf8_is_shown_as_far_as_it_is() {
    use std::os::unix::ffi::OsStrExt;
    let dir = book();
    let path = dir.path();
    run(path, "-f book.txt -n 0", &[]);
    let odd = std::ffi::OsStr::from_bytes(b"a\xffb");
    let context = |command: &str, more: &[&str]| {
        let mut kiv = kiv(path, &["context", command, "--json"]);
        let output = kiv.args(more).arg("--kv-dir").arg(odd).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}: {output:?}");
        let line = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    fs::rename(path.join("context"), path.join(odd)).unwrap();
    for command in ["list", "info", "verify"] {
        assert_eq!(context(command, &[])["path"], "a\u{fffd}b");
    }
    assert_eq!(context("fork", &["--to", "c"])["from"], "a\u{fffd}b");
    assert_eq!(context("rm", &[])["removed"], "a\u{fffd}b");
}

#[test]
fn the_plan_knows_types_and_places() {
    let dir = book();
    let path = dir.path();
    let n = run(path, "-f book.txt -n 2", &[])["prompt_tokens"]
        .as_u64()
        .unwrap();
    let plan = |flags: &str| {
        let line = format!("inspect -c {n} {SMALL} {flags}").replace("--temp 0", "");
        let doc = json(path, &line, &[]);
        ["host_kv_bytes", "disk_bytes"].map(|key| doc["plan"][key].as_u64().unwrap())
    };
    let taken = |flags: &str| {
        let line = format!("run -f book.txt -n 2 {SMALL} {flags}");
        let doc = json(path, &line, &[]);
        ["host_kv_bytes", "disk_bytes"].map(|key| doc[key].as_u64().unwrap())
    };
    let [f16, none] = plan("");
    assert_eq!(none, 0);
    assert_eq!(plan("--kv-store q8_0"), [f16 * 17 / 32, 0]);
    assert_eq!(plan("--kv-store q4_0"), [f16 * 9 / 32, 0]);
    // Less than 0.3 of f16.
    assert!(plan("--kv-store q4_0")[0] * 10 < f16 * 3);
    for flags in [
        "--kv-store q4_0",
        "--kv-store q8_0,f16",
        "--kv-dir a",
        "--kv-store q4_0 --kv-dir b",
    ] {
        assert_eq!(plan(flags), taken(flags), "{flags}");
    }
    let [host, disk] = plan("--kv-dir c --kv-host-limit 100K");
    assert!(host == 100 << 10 && disk > f16, "{host} {disk}");
    let taken = taken("--kv-dir c --kv-host-limit 100K");
    assert!(taken[0] <= host && taken[1] == disk);
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = book();
    let path = dir.path();
    run(path, "-f book.txt -n 2", &[]);
    fs::create_dir(path.join("full")).unwrap();
    fs::write(path.join("full/thesis.txt"), "precious").unwrap();
    let mut told = String::new();
    for line in [
        "run --kv-dir context -p x --kv-block 32",
        "run --kv-dir context -p x --kv-store q8_0 --kv-window 64 --kv-sinks 4 --kv-block 16 --kv-budget 64 -ub 32",
        "run --kv-dir new -p x --kv-policy full -c 4096",
        "run --kv-dir new -p x --kv-policy window -c 4096",
        "run --kv-dir full -p x",
        "run --kv-dir book.txt -p x",
        "run --kv-host-limit 4G -p x",
        "run --kv-dir new --kv-host-limit 4X -p x",
        "run --kv-no-save -p x",
        "run --kv-store q5_1 -p x",
        "run --kv-store q8_0,q4_0,f16 -p x",
        "context info --kv-dir nowhere",
        "context verify --kv-dir full",
        "context rm --kv-dir full",
        "context list --kv-dir nowhere",
        "context fork --kv-dir context --to full",
        "context fork --kv-dir context --to context/copy",
        "context info",
    ] {
        told += &refused(path, line);
        told += "\n";
    }
    let left = fs::read_dir(path.join("full")).unwrap();
    assert_eq!(left.count(), 1);
    insta::assert_snapshot!(told);
}
