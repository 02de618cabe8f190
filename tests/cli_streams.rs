//! What becomes of the program when nobody takes its output, and when it is interrupted.
#![cfg(all(feature = "cli", unix))]

mod support;

use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use tempfile::TempDir;

/// A pool of 256 cells.
const SMALL: &str = "--kv-sinks 4 --kv-window 64 --kv-block 16 --kv-budget 64 -ub 32 -t 1";

/// `kiv LINE` in `dir`, with the tests' own cache folder.
fn kiv(dir: &Path, line: &str) -> Command {
    let mut kiv = Command::new(env!("CARGO_BIN_EXE_kiv"));
    kiv.current_dir(dir)
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .args(line.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    kiv
}

fn interrupt(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args([signal, &pid]).status();
    assert!(sent.unwrap().success());
}

/// The end of it, and what it said on standard error.
fn end(mut child: Child) -> (ExitStatus, String) {
    let mut said = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    (child.wait().unwrap(), said)
}

/// A folder with a context of a few tokens in it, and a line of every command's kind.
fn commands() -> (TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let made = kiv(
        dir.path(),
        &format!("run -p Hello --kv-dir made -n 0 {SMALL}"),
    )
    .status();
    assert!(made.unwrap().success());
    let lines = [
        "run -p Hello -n 2",
        "run -p Hello -n 0",
        "run -p Hello -n 2 --json",
        "inspect",
        "inspect --json",
        "demo --tokens 1024 --depths 50",
        "bench --ctx 64 -n 2 --kv-policy window",
        "eval needle --ctx 1024 --depths 50 --kv-policy full",
    ];
    let lines = lines.map(|line| format!("{line} {SMALL}"));
    let of_contexts = [
        "context list --kv-dir .",
        "context info --kv-dir made",
        "context verify --kv-dir made",
        "verify --ubatches 7 --cache-types f16 --swaps 10 -t 1",
    ];
    let all = lines.into_iter().chain(of_contexts.map(str::to_owned));
    (dir, all.collect())
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let (dir, lines) = commands();
    for line in lines {
        let mut child = kiv(dir.path(), &line).spawn().unwrap();
        drop(child.stdout.take());
        let (status, said) = end(child);
        assert_eq!(status.code(), Some(0), "{line}\n{said}");
        assert!(!said.contains("error:"), "{line}\n{said}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_one_error() {
    let (dir, lines) = commands();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for line in lines {
        let (status, said) = end(kiv(dir.path(), &line).stdout(full()).spawn().unwrap());
        assert_eq!(status.code(), Some(1), "{line}\n{said}");
        let why = "error: cannot write to standard output\n  caused by: No space left on device";
        assert!(said.contains(why), "{line}\n{said}");
        assert!(!said.contains("panicked"), "{line}\n{said}");
    }
    // A log that cannot be written stops nothing.
    let line = format!("run -p Hello -n 2 {SMALL}");
    let output = kiv(dir.path(), &line).stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!output.stdout.is_empty());
}

#[test]
fn what_was_read_is_kept_though_nobody_takes_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("run -p Hello -n 8 --kv-dir context {SMALL}");
    let mut child = kiv(dir.path(), &line).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(end(child).0.code(), Some(0));
    let info = kiv(dir.path(), "context info --kv-dir context --json").output();
    let info: Value = serde_json::from_slice(&info.unwrap().stdout).unwrap();
    assert!(info["tokens"].as_u64().unwrap() > 1, "{info}");
}

#[test]
fn a_benchmark_is_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("bench --ctx 64,100000 -n 2 --kv-policy exact {SMALL}");
    let mut child = kiv(dir.path(), &line).spawn().unwrap();
    // After the table's head and its first row the long text is read.
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..3 {
        stdout.read_line(&mut String::new()).unwrap();
    }
    interrupt(&child, "-INT");
    let (status, said) = end(child);
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("\ninterrupted after "), "{said}");
}

#[test]
fn an_evaluation_is_interrupted_and_leaves_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("eval needle --ctx 100000 --kv-policy exact --kv-dir rows {SMALL}");
    let child = kiv(dir.path(), &line).spawn().unwrap();
    let rows = dir.path().join("rows");
    let folders = || fs::read_dir(&rows).map_or(0, Iterator::count);
    while folders() == 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    interrupt(&child, "-INT");
    let (status, said) = end(child);
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted after "), "{said}");
    assert_eq!(folders(), 0);
}

#[test]
fn a_conversation_from_a_pipe_is_interrupted_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    // A template after which the bundled model finds no end.
    let line = format!("chat --chat-template chatml -c 8192 --temp 0 {SMALL}");
    let mut child = kiv(dir.path(), &line)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It repeats this, where to a word it would answer with line breaks.
    let fact = b"The secret code of Amber Falcon is 48213.\n";
    stdin.write_all(fact).unwrap();
    stdin.write_all(b"two\nthree\n").unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 8]).unwrap();
    interrupt(&child, "-INT");
    // Its input goes on: it does not.
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(end(child).0.code(), Some(130));
    assert_eq!(
        rest.matches('\n').count(),
        rest.trim_end().matches('\n').count() + 1
    );
    drop(stdin);
}

#[test]
fn a_conversation_whose_pipe_is_silent_is_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("chat -n 1 --json --temp 0 {SMALL}");
    let mut child = kiv(dir.path(), &line)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    // It has answered, and waits.
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    interrupt(&child, "-INT");
    assert_eq!(end(child).0.code(), Some(130));
    drop(stdin);
}

/// `kiv chat` at a terminal, which `script` lends it.
#[cfg(target_os = "linux")]
struct Terminal {
    script: Child,
    keys: std::process::ChildStdin,
    screen: std::process::ChildStdout,
    /// All that was shown.
    said: String,
}

#[cfg(target_os = "linux")]
impl Terminal {
    fn chat(dir: &Path, args: &str) -> Self {
        // Some shells would stay beside the program, and end of the same Ctrl-C.
        let line = format!("exec {} chat {args}", env!("CARGO_BIN_EXE_kiv"));
        let mut script = Command::new("script");
        script
            .args(["-qec", &line, "/dev/null"])
            .current_dir(dir)
            .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut script = script.spawn().unwrap();
        Self {
            keys: script.stdin.take().unwrap(),
            screen: script.stdout.take().unwrap(),
            script,
            said: String::new(),
        }
    }

    fn wait_until(&mut self, done: impl Fn(&str) -> bool) {
        while !done(&self.said) {
            let mut some = [0; 1024];
            let got = self.screen.read(&mut some).unwrap();
            assert!(got > 0, "it ends too early: {}", self.said);
            self.said += &String::from_utf8_lossy(&some[..got]);
        }
    }

    /// Waits until it takes a line, for the `n`th time: what is pasted is put in brackets then.
    fn wait_for_line(&mut self, n: usize) {
        self.wait_until(|said| said.matches("\u{1b}[?2004h").count() == n);
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).unwrap();
    }

    /// Ctrl-D, which ends the conversation. Gives all that was shown.
    fn leave(mut self) -> String {
        self.press(&[4]);
        assert!(self.script.wait().unwrap().success());
        self.said
    }
}

#[test]
#[cfg(target_os = "linux")]
fn an_answer_is_interrupted_at_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let args = format!("--chat-template chatml -c 8192 --temp 0 {SMALL}");
    let mut terminal = Terminal::chat(dir.path(), &args);
    terminal.wait_for_line(1);
    let before = terminal.said.len();
    terminal.press(b"hello\r");
    terminal.wait_until(|said| said.len() > before + 400);
    terminal.press(&[3]);
    terminal.wait_for_line(2);
    let said = terminal.leave();
    assert!(!said.contains("the context is full"), "{said}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_question_too_long_leaves_room_for_a_shorter_one_at_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let args = format!("-c 256 -n 8 --temp 0 {SMALL}");
    let mut terminal = Terminal::chat(dir.path(), &args);
    terminal.wait_for_line(1);
    let long = "The secret code of Amber Falcon is 48213. ".repeat(40);
    terminal.press(format!("{long}\r").as_bytes());
    terminal.wait_for_line(2);
    assert!(
        terminal.said.contains("the context is full"),
        "{}",
        terminal.said
    );
    terminal
        .press(b"The secret code of Amber Falcon is 48213. The secret code of Amber Falcon is\r");
    terminal.wait_for_line(3);
    let said = terminal.leave();
    assert_eq!(said.matches("the context is full").count(), 1, "{said}");
}

/// Prompts are for the terminal.
#[test]
#[cfg(target_os = "linux")]
fn a_file_of_answers_holds_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let args = format!("--json -n 4 --temp 0 {SMALL} > out.jsonl");
    let mut terminal = Terminal::chat(dir.path(), &args);
    for n in 1..3 {
        terminal.wait_for_line(n);
        terminal.press(b"hello\r");
    }
    terminal.wait_for_line(3);
    let said = terminal.leave();
    assert!(said.contains("> "), "{said}");
    let lines = fs::read_to_string(dir.path().join("out.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    for line in lines.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}

#[test]
fn a_server_says_where_it_listens_and_stops_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("serve --json --port 0 {SMALL}");
    let mut child = kiv(dir.path(), &line).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let told: Value = serde_json::from_str(&line).unwrap();
    let url = told["listening"].as_str().unwrap();
    let at = url.strip_prefix("http://").unwrap();
    std::net::TcpStream::connect(at).unwrap();
    interrupt(&child, "-TERM");
    let (status, said) = end(child);
    assert_eq!(status.code(), Some(0), "{said}");
}

#[test]
fn no_folder_is_made_where_one_happens_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let mut inspect = kiv(dir.path(), "inspect");
    let shared = tempfile::tempdir().unwrap();
    inspect.env("XDG_CACHE_HOME", "").env("HOME", "");
    let output = inspect.env("TMPDIR", shared.path()).output();
    assert!(output.unwrap().status.success());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    // Other users have theirs beside it.
    let made = fs::read_dir(shared.path()).unwrap().next().unwrap();
    let name = made.unwrap().file_name().into_string().unwrap();
    assert!(name.starts_with("kiv-"), "{name}");
}
