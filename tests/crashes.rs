//! A process that is killed while it writes a context, disks that are full, and folders
//! that may no longer be written.
#![cfg(all(feature = "cli", unix))]

mod support;

use kiv::{Model, Outputs, Session, Token};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::error::Error;
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;
use support::{kiv, model, prose, small};

/// Tokens of the text; a writer that reaches the end begins anew.
const TEXT: usize = 6000;

/// What the writer says when it begins.
const READY: &str = "the writer begins";

const FOLDER: &str = "KIV_TEST_CRASH_FOLDER";

fn open(model: &Model, folder: &Path) -> Session {
    small(model)
        .context_dir(folder)
        .commit_every(64)
        .build()
        .unwrap()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

/// The process that is killed: reads the text, committing all the time.
#[test]
#[ignore = "the other tests start it"]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let model = model();
    let text = prose(&model, TEXT);
    let mut session = open(&model, Path::new(&folder));
    println!("{READY}");
    loop {
        let n = session.tokens().len();
        if n >= text.len() {
            session.clear().unwrap();
            continue;
        }
        // Whole micro-batches, whatever was read before.
        let read = session.read(&text[n..(n + 32).min(text.len())]);
        if let Err(error) = read.and_then(|()| session.commit()) {
            let causes = std::iter::successors(error.source(), |&cause| cause.source());
            let causes: Vec<String> = causes.map(ToString::to_string).collect();
            println!("error: {error}: {}", causes.join(": "));
            return;
        }
    }
}

/// Starts a writer, and returns when it writes. `by` starts it, if anything has to.
fn start_writer(path: &Path, by: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let writer = std::env::current_exe().unwrap();
    let mut words = by.iter().map(Path::new).chain([writer.as_path()]);
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .args(["--exact", "writer", "--ignored", "--nocapture"])
        .env(FOLDER, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // From then on it does nothing but read and commit.
    let mut told = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(told.any(|line| line.unwrap().contains(READY)), "no writer");
    (child, told)
}

/// Logits after every 32 tokens, of a session that nothing ever happened to.
fn clean_run(model: &Model, text: &[Token]) -> Vec<Vec<u32>> {
    let mut session = small(model).build().unwrap();
    let pieces = text.chunks(32).map(|piece| {
        session.read(piece).unwrap();
        bits(session.logits())
    });
    pieces.collect()
}

fn kill_writers(kills: usize, seed: u64) {
    let model = model();
    let text = prose(&model, TEXT);
    let clean = clean_run(&model, &text);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("context");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut lengths = Vec::new();
    for kill in 0..kills {
        let (mut child, _told) = start_writer(&path, &[]);
        // Mostly soon; now and then after it has got over what takes long, as dividing
        // the first segment of an index does.
        let wait = 2.0 * rng.random_range(0f64..1.0).powi(3);
        std::thread::sleep(Duration::from_secs_f64(wait));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "the writer ended by itself");
        // It opens, with a beginning of the text that was committed.
        let mut session = open(&model, &path);
        let n = session.tokens().len();
        assert_eq!(session.tokens(), &text[..n], "kill {kill}");
        assert!(n.is_multiple_of(32) || n == TEXT, "kill {kill}: {n} tokens");
        lengths.push(n);
        // It goes on as the clean run does; not kept, so that the next writer
        // begins where this one was killed.
        // In the middle of a text nobody has asked for logits.
        if !session.logits().is_empty() {
            assert_eq!(
                bits(session.logits()),
                clean[n.div_ceil(32) - 1],
                "kill {kill}"
            );
        }
        for (i, piece) in text[n..].chunks(32).enumerate().take(3) {
            let mut logits = Vec::new();
            session
                .read_with(piece, Outputs::Last, |_, row| logits = bits(row), |_| {})
                .unwrap();
            assert_eq!(logits, clean[n / 32 + i], "kill {kill}, {n} tokens");
        }
        drop(session);
        if n > 0 {
            let verified = kiv_context::verify(&path).unwrap();
            assert_eq!(verified.faults, [], "kill {kill}");
        }
    }
    println!("tokens after each kill: {lengths:?}");
}

#[test]
fn a_killed_writer_leaves_its_last_commit() {
    kill_writers(8, 1);
}

#[test]
#[ignore = "some minutes: cargo test --release --test crashes -- --ignored a_hundred"]
fn a_hundred_killed_writers_leave_their_last_commits() {
    kill_writers(100, 2);
}

const SMALL: &str =
    "-n 2 --temp 0 --kv-sinks 4 --kv-window 64 --kv-block 16 --kv-budget 64 -ub 32 -t 1";

fn line(words: &str) -> Vec<&str> {
    words.split_whitespace().collect()
}

/// Files cannot grow any more, as on a full disk: one error, and the context is
/// what it was.
#[test]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let model = model();
    let dir = tempfile::tempdir().unwrap();
    let text = model.detokenize(&prose(&model, 3000));
    let short: String = text.chars().take(2000).collect();
    std::fs::write(dir.path().join("short.txt"), short).unwrap();
    std::fs::write(dir.path().join("long.txt"), text).unwrap();
    let first = format!("run --kv-dir context -f short.txt {SMALL}");
    kiv(dir.path(), &line(&first)).assert().success();
    let before = kiv_context::info(&dir.path().join("context")).unwrap();
    for kib in [16, 600, 1500] {
        let run = format!(
            "trap '' XFSZ; ulimit -f {kib}; exec {} run --kv-dir context -f long.txt {SMALL}",
            env!("CARGO_BIN_EXE_kiv")
        );
        let mut bash = assert_cmd::Command::new("bash");
        bash.current_dir(dir.path())
            .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
            .args(["-c", &run]);
        let failed = bash.assert().code(1);
        let told = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
        let errors = told.lines().filter(|l| l.starts_with("error:")).count();
        assert!(
            errors == 1 && told.contains("File too large"),
            "{kib} KiB: {told}"
        );
        assert!(told.contains("context/"), "{told}");
        let after = kiv_context::info(&dir.path().join("context")).unwrap();
        assert_eq!(after.manifest, before.manifest, "{kib} KiB");
        let verified = kiv_context::verify(&dir.path().join("context")).unwrap();
        assert_eq!(verified.faults, []);
    }
    let again = format!("run --kv-dir context -f long.txt {SMALL}");
    kiv(dir.path(), &line(&again)).assert().success();
}

/// Nothing may be written to the folder any more: one error, and the last commit stays.
#[test]
fn a_folder_that_becomes_read_only_is_an_error() {
    let model = model();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("context");
    // Root may write anywhere, unless it gives up the right to.
    let plain_root = [
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search",
        "--inh-caps=-all",
    ];
    let is_root = std::fs::metadata(dir.path()).unwrap().uid() == 0;
    let by: &[&str] = if is_root { &plain_root } else { &[] };
    let (mut child, told) = start_writer(&path, by);
    while !path.join("manifest").exists() {
        assert_eq!(
            child.try_wait().unwrap(),
            None,
            "the writer ended by itself"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let allow = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    allow(0o555);
    let told: Vec<String> = told.map(Result::unwrap).collect();
    assert!(child.wait().unwrap().success());
    let errors = told.iter().filter(|line| line.starts_with("error:"));
    let errors: Vec<&String> = errors.collect();
    assert!(
        errors.len() == 1
            && errors[0].contains("Permission denied")
            && errors[0].contains("context/"),
        "{told:?}"
    );
    allow(0o755);
    assert_eq!(kiv_context::verify(&path).unwrap().faults, []);
    let session = open(&model, &path);
    let n = session.tokens().len();
    assert!(n > 0);
    assert_eq!(session.tokens(), &prose(&model, TEXT)[..n]);
}

/// The folder goes away between two commits.
#[test]
fn a_folder_that_goes_away_is_an_error() {
    let model = model();
    let text = prose(&model, 2000);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("context");
    let mut session = open(&model, &path);
    session.read(&text[..960]).unwrap();
    session.commit().unwrap();
    std::fs::remove_dir_all(&path).unwrap();
    let error = session.read(&text[960..1600]).unwrap_err().to_string();
    assert!(
        error.contains("cannot write") && error.contains("--kv-dir"),
        "{error}"
    );
    // The session itself is whole; what is in memory can be looked at.
    let n = session.tokens().len();
    assert_eq!(session.tokens(), &text[..n]);
    session.read_one_by_one(&text[n..n + 1]).unwrap();
}
