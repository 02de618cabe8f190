//! What the program says to bad input: one error, where it is, a way out.
#![cfg(feature = "cli")]

mod support;

use gguf_rs::writer::{GGUFWriter, MetadataValue, TensorInfo};
use std::fs;
use std::path::Path;
use support::{bundled_path, kiv};
use tempfile::TempDir;

/// Numbers that differ from machine to machine.
const FILTERS: [(&str, &str); 1] = [(r"[\d.]+ [KMGT]iB are available", "[SIZE] are available")];

/// An empty folder, the program's working directory.
fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A folder with one file in it.
fn with(name: &str, bytes: impl AsRef<[u8]>) -> TempDir {
    let dir = dir();
    fs::write(dir.path().join(name), bytes).unwrap();
    dir
}

/// The bundled model's bytes.
fn model() -> Vec<u8> {
    fs::read(bundled_path()).unwrap()
}

/// The bundled model, said to be of another architecture. The name must have
/// five letters, as `qwen3` has.
fn model_as(arch: &str) -> Vec<u8> {
    let (old, new) = (b"qwen3", arch.as_bytes());
    let mut bytes = model();
    for at in 0..bytes.len() - old.len() {
        if bytes[at..].starts_with(old) {
            bytes[at..at + old.len()].copy_from_slice(new);
        }
    }
    bytes
}

/// A folder with a `model.gguf` of four heads, all zeros.
fn header(arch: &str, n_embd: u32, tensors: bool) -> TempDir {
    let dir = dir();
    let mut writer = GGUFWriter::new(dir.path().join("model.gguf"), 3).unwrap();
    writer.add_metadata("general.architecture", arch);
    for (key, value) in [
        ("context_length", 8192),
        ("embedding_length", n_embd),
        ("feed_forward_length", 256),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("block_count", 4),
    ] {
        writer.add_metadata_u32(&format!("{arch}.{key}"), value);
    }
    writer.add_metadata("tokenizer.ggml.model", "gpt2");
    let tokens = ["a", "b", "c"].map(|t| MetadataValue::String(t.to_owned()));
    writer.add_metadata_array("tokenizer.ggml.tokens", tokens.to_vec());
    if tensors {
        writer.add_tensor(TensorInfo {
            name: "token_embd.weight".to_owned(),
            shape: vec![n_embd.into(), 3],
            dtype: 1,
        });
    }
    writer.write().unwrap();
    writer.finalize().unwrap();
    dir
}

/// What `kiv LINE` says when it fails, as a user would see it.
fn refused(dir: &Path, line: &str, stdin: &[u8]) -> String {
    let args: Vec<&str> = line.split_whitespace().collect();
    let output = kiv(dir, &args).write_stdin(stdin).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let code = output.status.code().expect("killed by a signal");
    let said =
        format!("$ kiv {line}\n--- exit code {code}\n--- stdout\n{stdout}--- stderr\n{stderr}");
    assert!(matches!(code, 1 | 2), "{said}");
    let errors = stderr.lines().filter(|l| l.starts_with("error:")).count();
    assert_eq!(errors, 1, "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert_eq!(stdout, "", "{said}");
    for noise in [
        "panicked",
        "RUST_BACKTRACE",
        "llama_",
        "ggml_",
        "gguf_",
        "print_info",
        "load:",
    ] {
        assert!(
            !stderr.replace("convert_hf_to_gguf.py", "").contains(noise),
            "{noise}: {said}"
        );
    }
    said
}

/// Compares what is said with the snapshot named like the test.
macro_rules! refused {
    ($dir:expr, $line:expr) => {
        refused!($dir, $line, b"")
    };
    ($dir:expr, $line:expr, $stdin:expr) => {{
        let said = refused($dir.path(), $line, $stdin);
        insta::with_settings!({ omit_expression => true, filters => FILTERS }, {
            insta::assert_snapshot!(said);
        });
    }};
}

// Model files.

#[test]
fn a_text_file_is_not_a_model() {
    refused!(with("notes.txt", "Dear diary,\n"), "run -m notes.txt -p hi");
}

#[test]
fn a_safetensors_file_needs_conversion() {
    let mut bytes = 64u64.to_le_bytes().to_vec();
    bytes.extend(b"{\"__metadata__\":{\"format\":\"pt\"}}");
    refused!(
        with("model.safetensors", bytes),
        "run -m model.safetensors -p hi"
    );
}

#[test]
fn an_empty_model_file() {
    refused!(with("model.gguf", ""), "run -m model.gguf -p hi");
}

#[test]
fn a_folder_is_not_a_model() {
    let dir = dir();
    fs::create_dir(dir.path().join("models")).unwrap();
    refused!(dir, "run -m models -p hi");
}

#[test]
fn a_model_that_is_not_there() {
    refused!(dir(), "inspect -m model.gguf");
}

#[test]
fn a_model_cut_in_its_header() {
    refused!(
        with("model.gguf", &model()[..2000]),
        "run -m model.gguf -p hi"
    );
}

#[test]
fn a_model_cut_in_its_weights() {
    refused!(
        with("model.gguf", &model()[..3_000_000]),
        "run -m model.gguf -p hi"
    );
}

#[test]
fn an_architecture_that_llama_cpp_does_not_know() {
    refused!(
        with("model.gguf", model_as("qwenX")),
        "run -m model.gguf -p hi"
    );
}

#[test]
fn an_architecture_that_its_keys_do_not_follow() {
    let mut bytes = model();
    let key = b"general.architecture";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap();
    let value = at + bytes[at..].windows(5).position(|w| w == b"qwen3").unwrap();
    bytes[value..value + 5].copy_from_slice(b"llama");
    refused!(with("model.gguf", bytes), "run -m model.gguf -p hi");
}

#[test]
fn a_vocabulary_without_weights() {
    refused!(header("llama", 64, false), "run -m model.gguf -p hi");
}

#[test]
fn a_vocabulary_without_weights_under_full() {
    refused!(
        header("llama", 64, false),
        "run -m model.gguf -p hi --kv-policy full"
    );
}

#[test]
fn a_model_that_runs_without_flash_attention() {
    refused!(header("grok", 64, true), "run -m model.gguf -p hi");
}

#[test]
fn a_model_with_alibi() {
    refused!(
        with("model.gguf", model_as("bloom")),
        "run -m model.gguf -p hi"
    );
}

#[test]
fn a_model_with_alibi_cannot_be_verified() {
    refused!(
        with("model.gguf", model_as("bloom")),
        "verify -m model.gguf"
    );
}

#[test]
fn under_full_llama_cpp_judges_the_model() {
    refused!(
        with("model.gguf", model_as("bloom")),
        "run -m model.gguf -p hi --kv-policy full"
    );
}

#[test]
fn an_embedding_model_does_not_generate() {
    refused!(
        header("bert", 64, true),
        "run -m model.gguf -p hi --kv-policy full"
    );
}

#[test]
fn a_cache_type_that_does_not_fit_the_heads() {
    refused!(
        header("llama", 80, true),
        "run -m model.gguf -p hi -ctk q8_0"
    );
}

#[test]
fn a_cache_type_that_does_not_fit_the_heads_cannot_be_verified() {
    refused!(
        header("llama", 80, true),
        "verify -m model.gguf --cache-types q4_0"
    );
}

// Prompts.

#[test]
fn a_prompt_file_that_is_not_there() {
    refused!(dir(), "run -f book.txt");
}

#[test]
fn an_empty_prompt_file() {
    refused!(with("book.txt", ""), "run -f book.txt");
}

#[test]
fn a_prompt_file_of_white_space() {
    refused!(with("book.txt", " \n\t\n"), "run -f book.txt");
}

#[test]
fn a_prompt_file_that_is_not_utf8() {
    refused!(with("book.txt", b"caf\xe9 au lait"), "run -f book.txt");
}

#[test]
fn standard_input_that_is_not_utf8() {
    refused!(dir(), "run -f -", b"caf\xe9 au lait");
}

#[test]
fn no_prompt_at_all() {
    refused!(dir(), "run");
}

#[test]
fn a_prompt_longer_than_the_context() {
    let dir = with("book.txt", "the cat sat on the mat. ".repeat(1000));
    refused!(dir, "run -f book.txt -c 5000 -t 1");
}

#[test]
fn a_prompt_longer_than_the_context_of_full() {
    let dir = with("book.txt", "the cat sat on the mat. ".repeat(50));
    refused!(dir, "run -f book.txt -c 100 -t 1 --kv-policy full");
}

#[test]
fn a_document_longer_than_the_context_of_a_chat() {
    let dir = with("book.txt", "the cat sat on the mat. ".repeat(1000));
    refused!(dir, "chat -f book.txt -c 5000 -t 1", b"Who sat?\n");
}

// The pool.

#[test]
fn a_budget_that_is_not_whole_blocks() {
    refused!(dir(), "run -p hi --kv-budget 100 --kv-block 32");
}

#[test]
fn blocks_of_nothing() {
    refused!(dir(), "run -p hi --kv-block 0");
}

#[test]
fn a_window_of_nothing() {
    refused!(dir(), "run -p hi --kv-window 0");
}

#[test]
fn micro_batches_of_nothing() {
    refused!(dir(), "run -p hi --ubatch-size 0");
}

#[test]
fn batches_of_nothing() {
    refused!(dir(), "run -p hi --batch-size 0");
}

#[test]
fn a_pool_larger_than_llama_cpp_can_number() {
    refused!(dir(), "run -p hi --kv-window 4000000000");
}

#[test]
fn a_full_context_larger_than_llama_cpp_can_number() {
    refused!(dir(), "run -p hi -c 4000000000 --kv-policy full");
}

// Flags.

#[test]
fn an_unknown_policy() {
    refused!(dir(), "run -p hi --kv-policy best");
}

#[test]
fn an_unknown_cache_type() {
    refused!(dir(), "run -p hi -ctk q3_k");
}

#[test]
fn an_unknown_rope_scaling() {
    refused!(dir(), "run -p hi --rope-scaling foo");
}

#[test]
fn a_bad_number() {
    refused!(dir(), "run -p hi -c 8k");
}

#[test]
fn a_temperature_that_is_no_number() {
    refused!(dir(), "run -p hi --temp nan");
}

#[test]
fn a_seed_of_more_than_32_bits() {
    refused!(dir(), "run -p hi -s 4294967296");
}

#[test]
fn more_threads_than_llama_cpp_has() {
    refused!(dir(), "run -p hi -t 100000");
}

#[test]
fn a_check_of_what_is_not_checked() {
    refused!(dir(), "verify -ctk q8_0");
}

#[test]
fn an_unknown_flag() {
    refused!(dir(), "run -p hi --kv-budgets 64");
}

#[test]
fn an_unknown_command() {
    refused!(dir(), "rum");
}

// Memory. Only Linux tells how much there is.

/// A text that would not fit the memory of any machine, but ends early.
#[cfg(target_os = "linux")]
const TOO_MUCH: &str = "run -f facts.txt -c 200000000000 -n 100000000000 \
                        --temp 0 -r 213 -t 1";

#[cfg(target_os = "linux")]
fn facts() -> TempDir {
    let facts = "The secret code of Amber Falcon is 48213.\n\
                 What is the secret code of Amber Falcon? The secret code of Amber Falcon is";
    with("facts.txt", facts)
}

#[cfg(target_os = "linux")]
#[test]
fn more_host_memory_than_there_is() {
    refused!(facts(), TOO_MUCH);
}

#[cfg(target_os = "linux")]
#[test]
fn force_goes_on_although_the_plan_does_not_fit() {
    let args: Vec<&str> = TOO_MUCH.split_whitespace().chain(["--force"]).collect();
    let output = kiv(facts().path(), &args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("warning: ") && stderr.contains(" of memory are needed"),
        "{stderr}"
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), " 48\n");
}

#[cfg(target_os = "linux")]
#[test]
fn more_resident_memory_than_there_is() {
    refused!(
        dir(),
        "run -p hi --kv-policy full -c 2000000000 -b 100000 -ub 100000"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_benchmark_larger_than_memory() {
    refused!(dir(), "bench --ctx 1000,1000000000000 --kv-policy exact");
}

// Other commands.

#[test]
fn a_demo_too_short_for_its_needles() {
    refused!(dir(), "demo --tokens 10 -t 1");
}

#[test]
fn a_demo_longer_than_the_context() {
    refused!(dir(), "demo --tokens 5000 -c 4096 -t 1");
}

#[test]
fn a_demo_longer_than_any_context() {
    refused!(dir(), "demo --tokens 18446744073709551615");
}

#[test]
fn a_depth_beyond_the_end() {
    refused!(dir(), "demo --depths 50,150");
}

#[test]
fn a_benchmark_of_nothing() {
    refused!(dir(), "bench --ctx 0");
}

#[test]
fn a_benchmark_longer_than_the_context() {
    refused!(
        dir(),
        "bench --ctx 500,4096 -c 4096 -n 8 --kv-policy pq -t 1"
    );
}

#[test]
fn a_benchmark_that_decodes_nothing() {
    refused!(dir(), "bench -n 0");
}

#[test]
fn a_synthetic_model_that_does_not_exist() {
    refused!(dir(), "bench --synthetic gpt-9");
}

#[test]
fn a_synthetic_model_and_another() {
    refused!(dir(), "bench --synthetic llama-3.2-3b -m model.gguf");
}

#[test]
fn a_synthetic_model_of_too_many_layers() {
    refused!(dir(), "bench --synthetic llama-3.2-3b --layers 29");
}

#[test]
fn layers_of_no_synthetic_model() {
    refused!(dir(), "bench --layers 2");
}

#[test]
fn a_folder_of_synthetic_models_that_is_a_file() {
    refused!(
        with("file", ""),
        "bench --synthetic llama-3.2-3b --layers 1 --vocab 300 --synthetic-dir file"
    );
}

#[test]
fn a_check_of_micro_batches_of_nothing() {
    refused!(dir(), "verify --ubatches 7,0");
}

#[test]
fn a_temperature_below_zero() {
    refused!(dir(), "run -p hi --temp -1");
}

#[test]
fn a_rope_factor_that_makes_numbers_too_large() {
    refused!(dir(), "run -p hi --rope-freq-scale 3e38 --temp 0 -t 1");
}

#[test]
fn a_chat_template_file_that_is_not_there() {
    refused!(dir(), "chat --chat-template-file no.jinja -t 1");
}

#[test]
fn a_chat_template_that_does_not_exist() {
    refused!(dir(), "chat --chat-template klingon -t 1");
}

#[test]
fn a_zero_byte_for_a_template_of_llama_cpp() {
    refused!(dir(), "chat --temp 0 --chat-template chatml", b"a\0b\n");
}

#[test]
fn a_chat_template_that_refuses_in_two_lines() {
    let template = "{{raise_exception('no\\nway')}}";
    refused!(dir(), &format!("chat --chat-template {template}"), b"hi\n");
}

#[test]
fn a_chat_template_with_a_mistake() {
    refused!(dir(), "chat --chat-template {{messages|nonsense}} -t 1");
}

#[test]
fn a_chat_with_a_model_that_carries_no_template() {
    refused!(
        with("model.gguf", model()),
        "chat -m model.gguf -t 1",
        b"Who are you?\n"
    );
}

// Evaluations.

#[test]
fn a_task_that_does_not_exist() {
    refused!(dir(), "eval needle,haystack");
}

#[test]
fn an_evaluation_of_nothing() {
    refused!(dir(), "eval");
}

#[test]
fn recall_of_full_attention_alone() {
    refused!(dir(), "eval recall --kv-policy full");
}

#[test]
fn a_reader_that_keeps_no_rows_for_others() {
    refused!(dir(), "eval needle --read-policy window --kv-policy exact");
}

#[test]
#[cfg(target_os = "linux")]
fn results_that_cannot_be_written() {
    let dir = dir();
    let line = "eval count --ctx 512 --kv-policy full -t 1 --out /dev/full";
    let output = kiv(dir.path(), &line.split(' ').collect::<Vec<_>>())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("error: cannot write --out\n  caused by: No space left"),
        "{said}"
    );
}

#[test]
fn a_prompt_line_without_an_answer() {
    let lines = concat!(
        r#"{"context": "c", "question": "q", "answer": "a"}"#,
        "\n",
        r#"{"context": "c", "question": "q"}"#,
        "\n"
    );
    refused!(with("p.jsonl", lines), "eval --prompts p.jsonl");
}

#[test]
fn a_prompt_line_that_is_not_json() {
    refused!(with("p.jsonl", "What is it?\n"), "eval --prompts p.jsonl");
}

#[test]
fn prompts_that_are_not_there() {
    refused!(dir(), "eval --prompts p.jsonl");
}

#[test]
fn prompts_without_a_line() {
    refused!(with("p.jsonl", "\n"), "eval --prompts p.jsonl");
}

#[test]
fn a_phone_book_without_end() {
    refused!(dir(), "eval phonebook --entries 10000000 --kv-policy full");
}

/// llama.cpp takes paths as texts.
#[test]
#[cfg(target_os = "linux")]
fn a_model_whose_path_is_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let dir = dir();
    let odd = std::ffi::OsStr::from_bytes(b"a\xffb.gguf");
    fs::copy(bundled_path(), dir.path().join(odd)).unwrap();
    let mut run = kiv(dir.path(), &["run", "-p", "x", "-m"]);
    let output = run.arg(odd).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("rename it") && !said.contains("conversion"),
        "{said}"
    );
}

/// As long as no number can say.
#[test]
fn an_evaluation_of_the_longest_context() {
    let line = format!("eval needle --ctx {} --kv-policy full", usize::MAX);
    let said = refused(dir().path(), &line, b"");
    assert!(said.contains("--ctx"), "{said}");
}

#[test]
fn a_report_of_a_file_that_is_not_there() {
    refused!(dir(), "eval report out.jsonl");
}

#[test]
fn a_report_of_something_else() {
    let lines = "{\"header\": true}\n{\"policy\": \"full\", \"n_ctx\": 8192, \"prefill_s\": 1.0}\n";
    refused!(with("bench.jsonl", lines), "eval report bench.jsonl");
}

#[test]
fn a_report_of_a_line_that_breaks_off() {
    let lines = "{\"header\": true}\n{\"task\": \"nee";
    refused!(with("out.jsonl", lines), "eval report out.jsonl");
}

#[test]
fn a_report_of_nothing() {
    refused!(
        with("out.jsonl", "{\"header\": true}\n"),
        "eval report out.jsonl"
    );
}
