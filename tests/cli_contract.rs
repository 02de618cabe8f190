//! What scripts may rely on: flags, exit codes, and the JSON of every command.
#![cfg(feature = "cli")]

mod support;

use serde_json::Value;
use std::fs;
use std::path::Path;
use support::{kiv, model, prose};
use tempfile::TempDir;

/// A pool of 256 cells, which a page of text overflows.
const SMALL: &str = "--kv-sinks 4 --kv-window 64 --kv-block 16 --kv-budget 64 -ub 32 -t 1";
/// A fact and a question for it, which the bundled model continues with
/// ` 48213`.
const FACT: &str = "The secret code of Amber Falcon is 48213.\n";
const QUESTION: &str =
    "What is the secret code of Amber Falcon? The secret code of Amber Falcon is";

/// A command that has ended well.
struct Done {
    stdout: String,
    stderr: String,
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn done(dir: &Path, args: &[&str], stdin: &str) -> Done {
    let output = kiv(dir, args).write_stdin(stdin).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{args:?}\n{stderr}");
    assert!(!stderr.contains("error:"), "{args:?}\n{stderr}");
    Done { stdout, stderr }
}

/// Runs `kiv LINE --json`; all of standard output must be JSON lines.
fn json_lines(dir: &Path, line: &str, stdin: &str) -> Vec<Value> {
    let mut args = words(line);
    args.push("--json");
    let lines: Vec<Value> = done(dir, &args, stdin)
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    assert!(lines.iter().all(Value::is_object), "{lines:?}");
    lines
}

/// As [`json_lines`], for commands that print one document.
fn json(dir: &Path, line: &str) -> Value {
    let mut lines = json_lines(dir, line, "");
    assert_eq!(lines.len(), 1, "{line}");
    lines.remove(0)
}

fn integer(doc: &Value, key: &str) -> u64 {
    doc[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} is no whole number: {doc}"))
}

fn number(doc: &Value, key: &str) -> f64 {
    doc[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key} is no number: {doc}"))
}

fn string<'a>(doc: &'a Value, key: &str) -> &'a str {
    doc[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} is no string: {doc}"))
}

fn flag(doc: &Value, key: &str) -> bool {
    doc[key]
        .as_bool()
        .unwrap_or_else(|| panic!("{key} is no flag: {doc}"))
}

fn list<'a>(doc: &'a Value, key: &str) -> &'a [Value] {
    doc[key]
        .as_array()
        .unwrap_or_else(|| panic!("{key} is no list: {doc}"))
}

fn integers(doc: &Value, keys: &str) {
    words(keys)
        .into_iter()
        .for_each(|key| _ = integer(doc, key));
}

/// Times and the like: there, and not negative.
fn numbers(doc: &Value, keys: &str) {
    for key in words(keys) {
        assert!(number(doc, key) >= 0.0, "{key}: {doc}");
    }
}

/// The process's peak memory, which only Linux tells.
fn peak_rss(doc: &Value) {
    if cfg!(target_os = "linux") {
        assert!(integer(doc, "peak_rss_bytes") > 1 << 20, "{doc}");
    } else {
        assert!(doc.get("peak_rss_bytes").is_some(), "{doc}");
    }
}

/// A folder with about `n` tokens of prose in `book.txt`, and how many they
/// are.
fn book(n: usize) -> (TempDir, u64) {
    let model = model();
    let text = model.detokenize(&prose(&model, n));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("book.txt"), &text).unwrap();
    (dir, model.tokenize(&text, true).len() as u64)
}

fn empty() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn run_reports_every_promised_field() {
    let (dir, n) = book(600);
    let doc = json(
        dir.path(),
        &format!("run -f book.txt -n 5 --temp 0 -c 4096 {SMALL}"),
    );
    string(&doc, "text");
    numbers(&doc, "prefill_s decode_s decode_ms_per_token");
    integers(
        &doc,
        "resident_tokens resident_kv_bytes host_kv_bytes index_bytes blocks_swapped",
    );
    peak_rss(&doc);
    assert_eq!(string(&doc, "policy"), "pq");
    assert_eq!(integer(&doc, "prompt_tokens"), n);
    assert!(integer(&doc, "generated_tokens") <= 5);
    assert_eq!(integer(&doc, "n_ctx"), 4096);
    assert_eq!(integer(&doc, "disk_bytes"), 0);
    assert!(integer(&doc, "blocks_swapped") > 0);
}

#[test]
fn resident_memory_stays_the_same_while_host_memory_grows() {
    let run = |n| {
        let (dir, _) = book(n);
        let doc = json(
            dir.path(),
            &format!("run -f book.txt -n 2 --temp 0 {SMALL}"),
        );
        assert!(integer(&doc, "resident_tokens") <= 256, "{doc}");
        ["resident_kv_bytes", "host_kv_bytes"].map(|key| integer(&doc, key))
    };
    let [short, medium, long] = [100, 600, 1500].map(run);
    // 256 cells of 2 KiB: 4 layers, 2 KV heads of 64, K and V in f16.
    assert_eq!([short[0], medium[0], long[0]], [256 * 2048; 3]);
    assert_eq!(short[1], 0);
    assert!(0 < medium[1] && medium[1] < long[1], "{medium:?} {long:?}");
}

#[test]
fn inspect_plans_what_run_then_takes() {
    let (dir, prompt) = book(1500);
    let n = prompt + 4;
    for policy in ["exact", "window", "kiv", "full"] {
        let flags = format!("-c {n} {SMALL} --kv-policy {policy}");
        let inspected = json(dir.path(), &format!("inspect {flags}"));
        let run = json(
            dir.path(),
            &format!("run -f book.txt -n 4 --temp 0 {flags}"),
        );
        let both = |key| (integer(&inspected["plan"], key), integer(&run, key));
        for key in ["resident_kv_bytes", "index_bytes", "disk_bytes"] {
            let (planned, taken) = both(key);
            assert_eq!(planned, taken, "{policy}: {key}");
        }
        // The plan does not know how the text falls into micro-batches: the
        // last token generated is not read, so one block may be missing.
        let (planned, taken) = both("host_kv_bytes");
        assert!(
            (taken..=taken + 32 * 2048).contains(&planned),
            "{policy}: {planned} {taken}"
        );
        assert_eq!(taken > 0, ["exact", "kiv"].contains(&policy), "{policy}");
        assert_eq!(
            integer(&inspected, "stock_kv_bytes"),
            n.next_multiple_of(256) * 2048
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let run = |seed| {
        let dir = empty();
        let line = format!("run -p Once -n 24 --temp 1.5 --top-p 1 --min-p 0 --seed {seed} -t 1");
        let doc = json(dir.path(), &line);
        assert_eq!(integer(&doc, "seed"), seed);
        assert!(integer(&doc, "generated_tokens") <= 24);
        string(&doc, "text").to_owned()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn with_everything_resident_policies_write_what_full_writes() {
    let (dir, _) = book(500);
    let text = |policy| {
        let line = format!("run -f book.txt -n 16 --temp 0 -c 4096 -t 1 --kv-policy {policy}");
        let doc = json(dir.path(), &line);
        assert_eq!(string(&doc, "policy"), policy);
        string(&doc, "text").to_owned()
    };
    let full = text("full");
    for policy in ["exact", "window", "kiv"] {
        assert_eq!(text(policy), full, "{policy}");
    }
}

#[test]
fn without_json_standard_output_is_the_text_alone() {
    let dir = empty();
    let prompt = format!("{FACT}{QUESTION}");
    let args = ["run", "-p", &prompt, "-n", "8", "--temp", "0", "-t", "1"];
    let plain = done(dir.path(), &args, "");
    let machine = done(dir.path(), &[&args[..], &["--json"]].concat(), "");
    let doc: Value = serde_json::from_str(&machine.stdout).unwrap();
    assert_eq!(plain.stdout, format!("{}\n", string(&doc, "text")));
    assert!(plain.stdout.starts_with(" 48213"), "{}", plain.stdout);
    // One line says which model it is.
    assert_eq!(plain.stderr.lines().count(), 1, "{}", plain.stderr);
    assert!(plain.stderr.contains("bundled model"), "{}", plain.stderr);
}

#[test]
fn generation_ends_at_a_stop_string() {
    let dir = empty();
    fs::write(dir.path().join("fact.txt"), format!("{FACT}{QUESTION}")).unwrap();
    let doc = json(
        dir.path(),
        "run -f fact.txt -n 20 --temp 0 -t 1 -r never -r 213",
    );
    assert_eq!(
        (string(&doc, "text"), string(&doc, "finish")),
        (" 48", "stop")
    );
    let doc = json(dir.path(), "run -f fact.txt -n 3 --temp 0 -t 1");
    assert_eq!(
        (integer(&doc, "generated_tokens"), string(&doc, "finish")),
        (3, "max_tokens")
    );
}

#[test]
fn a_minus_reads_standard_input_and_the_prompt_follows_the_file() {
    let dir = empty();
    fs::write(dir.path().join("fact.txt"), FACT).unwrap();
    let run = |file, stdin: &str| {
        let rest = words("-n 6 --temp 0 -t 1 --json");
        let args = [&["run", "-f", file, "-p", QUESTION], &rest[..]].concat();
        let doc: Value = serde_json::from_str(&done(dir.path(), &args, stdin).stdout).unwrap();
        (
            integer(&doc, "prompt_tokens"),
            string(&doc, "text").to_owned(),
        )
    };
    let both = model().tokenize(&format!("{FACT}{QUESTION}"), true).len() as u64;
    assert_eq!(run("fact.txt", ""), (both, " 48213".to_owned()));
    assert_eq!(run("-", FACT), run("fact.txt", ""));
    // A byte order mark is none of the text.
    assert_eq!(run("-", &format!("\u{feff}{FACT}")), run("fact.txt", ""));
}

#[test]
fn llama_cpp_spellings_of_flags_are_accepted() {
    let (dir, n) = book(300);
    let short = "run -m M -f book.txt -n 2 -t 1 -tb 1 -b 512 -ub 64 -ngl 0 -ctk q8_0 -ctv q8_0 \
                 -nkvo --temp 0 --top-k 10 --top-p 0.9 --min-p 0.1 -s 3 --rope-scaling none -c 4096";
    let long = "run --model M --file book.txt --n-predict 2 --threads 1 --threads-batch 1 \
                --batch-size 512 --ubatch-size 64 --n-gpu-layers 0 --cache-type-k q8_0 \
                --cache-type-v q8_0 --no-kv-offload --no-mmap --temperature 0 --seed 3 \
                --rope-freq-base 1e12 --rope-freq-scale 1 --ctx-size 4096";
    fs::copy(support::bundled_path(), dir.path().join("M")).unwrap();
    let [short, long] = [short, long].map(|line| json(dir.path(), line));
    assert_eq!(integer(&short, "prompt_tokens"), n);
    assert_eq!(integer(&short, "seed"), 3);
    // q8_0 keeps 32 values in 34 bytes, f16 in 64.
    assert_eq!(integer(&short, "resident_kv_bytes") % (2048 * 34 / 64), 0);
    assert_eq!(short["text"], long["text"]);
    assert_eq!(short["resident_kv_bytes"], long["resident_kv_bytes"]);
    for layers in ["auto", "-1", "all", "-2", "99"] {
        let line = format!("run -p hi -n 1 --temp 0 -ngl {layers}");
        assert_eq!(integer(&json(dir.path(), &line), "generated_tokens"), 1);
    }
}

/// Flags that another one makes mean nothing, and values that mean nothing.
#[test]
fn what_would_not_be_heeded_is_refused() {
    let dir = empty();
    for line in [
        "run -p hi -m M --hf-file x",
        "bench -m M --layers 2",
        "bench -m M --vocab 300",
        "bench -m M --synthetic-dir d",
        "bench --rounds 0",
        "run -p hi -ngl many",
        "run -p hi -ngl -3",
        "run -p hi --top-p 1.5",
        "run -p hi --min-p 2",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let output = kiv(dir.path(), &args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}");
    }
}

#[test]
fn texts_may_begin_with_a_hyphen_and_threads_be_all() {
    let dir = empty();
    let args = [
        "-p",
        "- one\n- two\n-",
        "-r",
        "-x",
        "-n",
        "1",
        "-t",
        "-1",
        "-tb",
        "0",
    ];
    let args = [&["run"], &args[..], &["--json"]].concat();
    let doc: Value = serde_json::from_str(&done(dir.path(), &args, "").stdout).unwrap();
    assert_eq!(integer(&doc, "generated_tokens"), 1);
    let args = ["chat", "-sys", "- be short", "-n", "1", "-t", "1"];
    done(dir.path(), &args, "- hello\n");
}

#[test]
fn a_context_beyond_the_trained_length_is_warned_of_once() {
    let dir = empty();
    let warnings = |line: &str| {
        let done = done(dir.path(), &words(line), "");
        done.stderr
            .lines()
            .filter(|l| l.starts_with("warning: "))
            .count()
    };
    assert_eq!(warnings("run -p hi -n 1 --temp 0 -t 1 -c 1048577"), 1);
    assert_eq!(warnings("inspect -c 2000000"), 1);
    assert_eq!(warnings("inspect -c 1048576"), 0);
    assert_eq!(warnings("inspect -c 2000000 --rope-freq-scale 0.5"), 0);
}

#[test]
fn inspect_reports_every_promised_field() {
    let dir = empty();
    let doc = json(dir.path(), "inspect");
    assert_eq!(string(&doc, "arch"), "qwen3");
    assert_eq!(integer(&doc, "n_ctx"), 1 << 20);
    let layers = list(&doc, "layers");
    assert_eq!(layers.len() as u64, integer(&doc, "n_layer"));
    for (il, layer) in layers.iter().enumerate() {
        let of = |key| integer(layer, key);
        assert_eq!(
            [of("il"), of("n_head_kv"), of("head_dim")],
            [il as u64, 2, 64]
        );
        assert_eq!(string(layer, "kind"), "global");
    }
    integers(
        &doc["plan"],
        "resident_kv_bytes host_kv_bytes index_bytes disk_bytes",
    );
    assert_eq!(integer(&doc, "stock_kv_bytes"), 2 << 30);
}

#[test]
fn verify_reports_every_check_and_passes() {
    let line = "verify --cache-types f16 --ubatches 7 --swaps 200 -t 1";
    let lines = json_lines(empty().path(), line, "");
    for doc in &lines {
        assert!(flag(doc, "pass"), "{doc}");
        assert_eq!(string(doc, "cache_type"), "f16");
        integers(doc, "ubatch");
        numbers(doc, "max_abs_dlogit bound");
    }
    for check in ["resident", "permuted", "bytes", "budget"] {
        assert!(
            lines.iter().any(|doc| string(doc, "check") == check),
            "{check}: {lines:?}"
        );
    }
}

#[test]
fn demo_reports_every_needle_and_finds_it() {
    let line = "demo --tokens 2500 --kv-budget 256 --kv-window 256 -ub 64 -t 1 --depths 5,50,95";
    let doc = json(empty().path(), line);
    let tokens = integer(&doc, "tokens");
    assert!((2000..=2500).contains(&tokens), "{doc}");
    let needles = list(&doc, "needles");
    let depths: Vec<f64> = needles
        .iter()
        .map(|needle| number(needle, "depth"))
        .collect();
    assert_eq!(depths, [5.0, 50.0, 95.0]);
    for needle in needles {
        assert!(
            string(needle, "got").contains(string(needle, "expected")),
            "{needle}"
        );
        assert!(flag(needle, "pass"), "{needle}");
    }
    numbers(&doc, "prefill_s decode_ms_per_token");
    let [resident, host, stock] =
        ["resident_kv_bytes", "host_kv_bytes", "stock_kv_bytes"].map(|key| integer(&doc, key));
    assert!(resident < stock && host > 0, "{doc}");
}

/// Checks one row of `kiv bench`: policy, length, fill.
fn bench_row(doc: &Value, policy: &str, n_ctx: u64, fill: &str) {
    assert!(!string(doc, "model").is_empty());
    assert_eq!(string(doc, "policy"), policy);
    assert_eq!(integer(doc, "n_ctx"), n_ctx);
    assert_eq!(string(doc, "fill"), fill);
    numbers(
        doc,
        "prefill_s prefill_tok_s decode_ms_per_token select_ms swap_ms",
    );
    integers(doc, "resident_kv_bytes host_kv_bytes index_bytes");
    peak_rss(doc);
}

#[test]
fn bench_reports_a_row_for_each_policy_and_length() {
    let line = format!("bench --ctx 600,1500 --kv-policy full,exact -n 4 {SMALL}");
    let rows = json_lines(empty().path(), &line, "");
    assert_eq!(rows.len(), 4);
    let wanted = [
        ("full", 600),
        ("exact", 600),
        ("full", 1500),
        ("exact", 1500),
    ];
    for (row, (policy, n_ctx)) in rows.iter().zip(wanted) {
        bench_row(row, policy, n_ctx, "text");
        assert_eq!(
            integer(row, "host_kv_bytes") > 0,
            policy == "exact",
            "{row}"
        );
    }
    assert_eq!(rows[1]["resident_kv_bytes"], rows[3]["resident_kv_bytes"]);
    assert!(number(&rows[3], "select_ms") > 0.0);
}

#[test]
fn bench_fills_the_cold_store_without_reading() {
    let line =
        format!("bench --ctx 20000 --kv-policy full,window,exact --fill synthetic -n 4 {SMALL}");
    let rows = json_lines(empty().path(), &line, "");
    // `window` keeps nothing that could be filled.
    assert_eq!(rows.len(), 2);
    bench_row(&rows[0], "full", 20_000, "synthetic");
    bench_row(&rows[1], "exact", 20_000, "synthetic");
    assert!(
        integer(&rows[1], "host_kv_bytes") > 19_000 * 2048,
        "{}",
        rows[1]
    );
}

#[test]
fn bench_draws_a_token_of_each_row_and_measures_stops() {
    let dir = TempDir::new().unwrap();
    let line =
        format!("bench --ctx 1500 --kv-policy full,exact --stops --timeline t.json -n 3 {SMALL}");
    let rows = json_lines(dir.path(), &line, "");
    let policies: Vec<&str> = rows.iter().map(|row| string(row, "policy")).collect();
    assert_eq!(policies, ["full", "exact", "full+stops"]);
    // Everything is resident, and nothing is chosen.
    assert_eq!(rows[0]["resident_kv_bytes"], rows[2]["resident_kv_bytes"]);
    assert_eq!(number(&rows[2], "select_ms"), 0.0);
    let drawn: Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("t.json")).unwrap()).unwrap();
    let events = drawn["traceEvents"].as_array().unwrap();
    let n_layers = integer(&json(dir.path(), "inspect"), "n_layer");
    for (row, choices) in [(1, 0), (2, n_layers), (3, 0)] {
        let of = |kind: &str| {
            let own = events
                .iter()
                .filter(|e| e["pid"] == row && e["cat"] == kind);
            own.count() as u64
        };
        assert_eq!(
            (of("choosing"), of("bringing")),
            (choices, choices),
            "row {row}"
        );
        assert_eq!(of("computing"), choices + 1, "row {row}");
    }
}

#[test]
fn bench_makes_a_synthetic_model_once_and_inspect_reads_it() {
    let dir = TempDir::new().unwrap();
    let shape = "--synthetic qwen2.5-3b --layers 1 --vocab 300 --synthetic-dir made";
    let line = format!("bench {shape} --ctx 2000 --kv-policy pq --fill synthetic -n 2 {SMALL}");
    let args: Vec<&str> = words(&line).into_iter().chain(["--json"]).collect();
    let first = done(dir.path(), &args, "");
    assert!(first.stderr.contains("making made/"), "{}", first.stderr);
    let row: Value = serde_json::from_str(&first.stdout).unwrap();
    bench_row(&row, "pq", 2000, "synthetic");
    let label = "synthetic qwen2.5-3b Q4_K_M, 1 of 36 layers, vocabulary 300";
    assert_eq!(string(&row, "model"), label);
    let again = done(dir.path(), &args, "");
    assert!(!again.stderr.contains("making"), "{}", again.stderr);

    let files: Vec<_> = fs::read_dir(dir.path().join("made")).unwrap().collect();
    assert_eq!(files.len(), 1);
    let path = files[0].as_ref().unwrap().path();
    let doc = json(dir.path(), &format!("inspect -m {}", path.display()));
    assert_eq!(string(&doc, "name"), label);
    assert_eq!(string(&doc, "file_type"), "Q4_K_M");
    assert_eq!(integer(&doc, "n_layer"), 1);
}

#[test]
fn chat_answers_each_line_with_one_line_of_json() {
    let questions =
        "What is the secret code of Amber Falcon?\n\nWhat is the secret code of Amber Falcon?\n";
    let args = [
        &["chat", "-sys", FACT],
        &words("--temp 0 -n 8 -t 1 --json")[..],
    ]
    .concat();
    let answers = done(empty().path(), &args, questions).stdout;
    let answers: Vec<Value> = answers
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(answers.len(), 2);
    for answer in &answers {
        assert_eq!(string(answer, "role"), "assistant");
        assert!(string(answer, "content").contains("48213"), "{answer}");
    }
}

#[test]
fn chat_reads_a_file_first_and_takes_a_template_by_name() {
    let (dir, _) = book(400);
    let line = "chat -f book.txt --chat-template chatml --temp 0 -n 4 -t 1";
    let answers = json_lines(dir.path(), line, "Who are you?\n");
    assert_eq!(answers.len(), 1);
    string(&answers[0], "content");
}

#[test]
fn a_chat_template_may_be_in_a_file() {
    let (dir, _) = book(40);
    let template = "{% for m in messages %}{{ m.content }} says{% endfor %}";
    std::fs::write(dir.path().join("t.jinja"), format!("{template}\n")).unwrap();
    let answer = |flag: &str, value: &str| {
        let args = ["chat", flag, value, "-n", "4", "--temp", "0", "-t", "1"];
        done(dir.path(), &args, "The king\n").stdout
    };
    let [told, read] = [
        ("--chat-template", template),
        ("--chat-template-file", "t.jinja"),
    ]
    .map(|(flag, value)| answer(flag, value));
    assert!(told == read && !told.is_empty());
}

/// As with llama.cpp, a context may be small; and the model's own may be.
#[test]
fn a_context_may_be_smaller_than_the_pool() {
    let dir = empty();
    let line = "run -p hi -n -1 -c 40 --temp 0 -t 1";
    let small = json_lines(dir.path(), line, "").remove(0);
    assert_eq!(string(&small, "finish"), "context_full");
    let full = json_lines(dir.path(), &format!("{line} --kv-policy full"), "").remove(0);
    assert_eq!(small["text"], full["text"]);
}

#[test]
fn help_and_version_are_no_errors() {
    let dir = empty();
    for line in ["--help", "--version", "run --help", "bench -h"] {
        let done = done(dir.path(), &words(line), "");
        assert!(!done.stdout.is_empty() && done.stderr.is_empty(), "{line}");
    }
}

#[test]
fn eval_tells_every_answer_and_a_summary_per_policy() {
    let dir = TempDir::new().unwrap();
    let line = format!(
        "eval needle,facts --ctx 1500 --depths 10,60 --kv-policy full,window {SMALL} --out out.jsonl"
    );
    let lines = json_lines(dir.path(), &line, "");
    let header = &lines[0];
    assert_eq!(header["header"], true);
    for key in [
        "kiv_version",
        "model_arch",
        "model_name",
        "model_file",
        "model_sha256",
        "cache_type_k",
    ] {
        string(header, key);
    }
    assert_eq!(string(header, "model_sha256").len(), 64);
    assert!(!string(header, "model_file").contains('/'));
    for key in [
        "model_bytes",
        "threads",
        "kv_window",
        "kv_block",
        "kv_sinks",
        "seed",
    ] {
        integer(header, key);
    }
    assert_eq!(header["kv_budget"], serde_json::json!([64]));
    // Two needles, ten facts, two summaries.
    assert_eq!(lines.len(), 1 + 2 * 14);
    for (i, policy) in ["full", "window"].into_iter().enumerate() {
        let lines = &lines[1 + 14 * i..][..14];
        for (record, depth) in lines.iter().zip([10.0, 60.0]) {
            assert_eq!(string(record, "task"), "needle");
            assert_eq!(string(record, "policy"), policy);
            assert_eq!(integer(record, "n_ctx"), 1500);
            assert_eq!(number(record, "depth"), depth);
            string(record, "expected");
            string(record, "got");
            assert_eq!(record["pass"], policy == "full", "{record}");
            if policy == "full" {
                assert!(record["kv_budget"].is_null());
            } else {
                assert_eq!(integer(record, "kv_budget"), 64);
            }
        }
        assert!(lines[2..12].iter().all(|r| string(r, "task") == "facts"));
        let [needles, facts] = &lines[12..] else {
            unreachable!("14 lines each");
        };
        assert_eq!(needles["summary"], true);
        assert_eq!(
            (integer(needles, "total"), integer(facts, "total")),
            (2, 10)
        );
        assert_eq!(
            integer(needles, "passed"),
            if policy == "full" { 2 } else { 0 }
        );
    }
    // Nothing is done twice; what was cut off is done again, half a line too.
    let out = dir.path().join("out.jsonl");
    let all = fs::read_to_string(&out).unwrap();
    assert_eq!(all.lines().count(), lines.len());
    assert!(json_lines(dir.path(), &line, "").is_empty());
    assert_eq!(fs::read_to_string(&out).unwrap(), all);
    let whole: Vec<&str> = all.lines().collect();
    fs::write(&out, whole[..18].join("\n") + "\n" + &whole[18][..40]).unwrap();
    let again = json_lines(dir.path(), &line, "");
    // The needles of `window` were done before its facts.
    assert_eq!(again.len(), 1 + 10 + 1);
    assert_eq!(
        again[1..12],
        lines[17..27]
            .iter()
            .chain(&lines[28..])
            .cloned()
            .collect::<Vec<_>>()
    );
    // Another budget is another case; full attention has none, so it is done.
    let other = line.replace("--kv-budget 64", "--kv-budget 64,128");
    let more = json_lines(dir.path(), &other, "");
    assert_eq!(more.len(), 1 + 14);
    assert!(more[1..].iter().all(|l| integer(l, "kv_budget") == 128));
    // All of it makes a page, whatever was done twice.
    let page = "eval report out.jsonl -o page.html --figures figures";
    let done = done(dir.path(), &words(page), "");
    assert_eq!(done.stdout, "");
    let page = fs::read_to_string(dir.path().join("page.html")).unwrap();
    assert!(page.contains("Cache policies on tiny<") && page.contains("<svg"));
    assert!(!page.contains(dir.path().to_str().unwrap()));
    let figure = dir.path().join("figures/needle-window-budget-128.svg");
    assert!(fs::read_to_string(figure).unwrap().starts_with("<svg"));
}

#[test]
fn eval_asks_prompts_from_outside() {
    let dir = TempDir::new().unwrap();
    let line = |question: &str, answer: &str| {
        let doc = serde_json::json!({"context": FACT, "question": question, "answer": answer});
        doc.to_string() + "\n"
    };
    let prompts = line(QUESTION, "48213") + &line(QUESTION, "nobody knows");
    fs::write(dir.path().join("prompts.jsonl"), prompts).unwrap();
    let eval = format!("eval --prompts prompts.jsonl --kv-policy exact {SMALL}");
    let lines = json_lines(dir.path(), &eval, "");
    let [header, right, wrong, summary] = lines.as_slice() else {
        panic!("{lines:?}");
    };
    assert_eq!(header["header"], true);
    assert_eq!(
        (string(right, "task"), string(right, "expected")),
        ("prompts", "48213")
    );
    assert_eq!(
        (&right["pass"], &wrong["pass"]),
        (&true.into(), &false.into())
    );
    assert_eq!(
        (integer(right, "prompt"), integer(wrong, "question")),
        (0, 1)
    );
    assert!(integer(right, "n_ctx") < 100);
    assert_eq!(
        (integer(summary, "passed"), integer(summary, "total")),
        (1, 2)
    );
}

#[test]
fn eval_measures_recall_and_divergence() {
    let dir = TempDir::new().unwrap();
    let line = format!("eval recall,kld --ctx 1500 --depths 30 --kv-policy exact,window {SMALL}");
    let lines = json_lines(dir.path(), &line, "");
    let summary = |task: &str, policy: &str| {
        let of_task = |l: &&Value| l["summary"] == true && l["task"] == task;
        let found = lines.iter().filter(of_task).find(|l| l["policy"] == policy);
        found.unwrap_or_else(|| panic!("{task} {policy}: {lines:?}"))
    };
    for policy in ["exact", "window"] {
        for key in ["mass_mean", "mass_p5", "mass_worst", "topk"] {
            let value = number(summary("recall", policy), key);
            assert!((0.0..=1.0 + 1e-9).contains(&value), "{key}");
        }
        let kld = summary("kld", policy);
        assert!(number(kld, "kld_mean") >= 0.0);
        assert!((0.0..=1.0).contains(&number(kld, "same_top1")));
    }
    // What `window` drops counts as missed.
    let mass = |policy| number(summary("recall", policy), "mass_mean");
    assert!(
        mass("window") < mass("exact"),
        "{} {}",
        mass("window"),
        mass("exact")
    );
}
