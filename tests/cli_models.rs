//! Models by the names that other programs gave them.
#![cfg(feature = "cli")]

#[path = "../crates/kiv-hub/tests/server/mod.rs"]
mod server;
mod support;

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use tempfile::TempDir;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny-f16.gguf");
const SHA256: &str = "f6e76466ae9b79cd82250e9e7108a7b5f968934a417900238fd55f6626fa22a8";

/// A home with an ollama store that holds the bundled model as `needle:tiny`.
fn home() -> TempDir {
    let home = TempDir::new().unwrap();
    let store = home.path().join(".ollama/models");
    let names = store.join("manifests/registry.ollama.ai/library/needle");
    fs::create_dir_all(&names).unwrap();
    fs::create_dir_all(store.join("blobs")).unwrap();
    let size = fs::metadata(MODEL).unwrap().len();
    let manifest = format!(
        r#"{{"layers":[{{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:{SHA256}","size":{size}}}]}}"#
    );
    fs::write(names.join("tiny"), manifest).unwrap();
    fs::copy(MODEL, blob(home.path())).unwrap();
    home
}

fn blob(home: &Path) -> std::path::PathBuf {
    home.join(format!(".ollama/models/blobs/sha256-{SHA256}"))
}

fn kiv(home: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    // Nobody listens there: the tests' network is the loopback.
    kiv_with("http://127.0.0.1:9", home, args)
}

/// With a hub at `endpoint`.
fn kiv_with(endpoint: &str, home: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::cargo_bin("kiv").unwrap();
    for variable in [
        "OLLAMA_MODELS",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_OFFLINE",
        "LLAMA_CACHE",
        "XDG_CACHE_HOME",
    ] {
        command.env_remove(variable);
    }
    command.env("HF_ENDPOINT", endpoint);
    let output = command.env("HOME", home).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn a_downloaded_model_runs_by_its_name() {
    let home = home();
    let question = "The secret code of Amber Falcon is 48213.\nWhat is the secret code of Amber \
                    Falcon? The secret code of Amber Falcon is";
    let run = [
        "run", "-m", "needle", "-p", question, "-n", "6", "--json", "-c", "8192",
    ];
    let (code, out, err) = kiv(home.path(), &run);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("needle: needle:tiny from ollama"), "{err}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert!(answer["text"].as_str().unwrap().contains("48213"), "{out}");

    let (code, out, err) = kiv(home.path(), &["models", "--verify", "--json"]);
    assert_eq!(code, Some(0), "{err}");
    let line: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(line["name"], "needle:tiny");
    assert_eq!(line["source"], "ollama");
    assert_eq!(line["verified"], true);
}

#[test]
fn what_cannot_be_found_or_used_is_said() {
    let home = home();
    let inspect = |name: &str| kiv(home.path(), &["inspect", "-m", name]);
    let (code, _, err) = inspect("needle:huge");
    assert_eq!(code, Some(1));
    assert!(
        err.contains("no downloaded model needle:huge (there is needle:tiny); `kiv models` lists"),
        "{err}"
    );
    // A name that is a path is a path.
    let (code, _, err) = inspect("needle.gguf");
    assert_eq!(code, Some(1));
    assert!(
        err.contains("needle.gguf") && !err.contains("downloaded"),
        "{err}"
    );

    let mut bytes = fs::read(MODEL).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(blob(home.path()), bytes).unwrap();
    let (code, out, _) = kiv(home.path(), &["models", "--verify"]);
    assert_eq!(code, Some(1));
    assert!(
        out.contains("unusable") && out.contains("fetch needle:tiny again with ollama"),
        "{out}"
    );

    fs::remove_file(blob(home.path())).unwrap();
    let (code, _, err) = inspect("needle:tiny");
    assert_eq!(code, Some(1));
    assert!(
        err.contains("`ollama pull needle:tiny` fetches it again"),
        "{err}"
    );
    let (code, out, err) = kiv(home.path(), &["models", "nothing like it"]);
    assert_eq!((code, out.as_str()), (Some(0), ""));
    assert!(err.contains("name holds `nothing like it`"), "{err}");
}

#[cfg(unix)]
#[test]
fn a_model_of_the_hub_that_is_in_the_cache_runs_without_a_network() {
    let home = TempDir::new().unwrap();
    let folder = home
        .path()
        .join(".cache/huggingface/hub/models--ada--needle");
    let snapshot = folder.join("snapshots/0123abcd");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::create_dir_all(folder.join("blobs")).unwrap();
    fs::write(folder.join("refs/main"), "0123abcd").unwrap();
    fs::copy(MODEL, folder.join("blobs").join(SHA256)).unwrap();
    let link = snapshot.join("needle-F16.gguf");
    std::os::unix::fs::symlink(format!("../../blobs/{SHA256}"), link).unwrap();
    for what in [
        &["-hf", "ada/needle"][..],
        &["-hf", "ada/needle:f16"],
        &["-hf", "ada/needle", "-hff", "needle-F16.gguf"],
    ] {
        let args = [&["run", "-p", "The", "-n", "2", "-c", "4096"], what].concat();
        let (code, out, err) = kiv(home.path(), &args);
        assert_eq!(code, Some(0), "{err}");
        assert!(!out.is_empty());
        assert!(
            err.contains("needle-F16.gguf, as the cache has it"),
            "{err}"
        );
    }
    let (code, _, err) = kiv(home.path(), &["run", "-p", "The", "-hf", "ada/needle:Q8_0"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("error: the hub cannot be reached"), "{err}");
}

#[test]
fn a_model_of_the_hub_is_downloaded_once() {
    let home = TempDir::new().unwrap();
    let model = fs::read(MODEL).unwrap();
    let hub = server::Server::start(&[("needle-Q8_0.gguf", &model[..])]);
    let inspect = |endpoint: &str| {
        let args = ["inspect", "-hf", "ada/model:q8_0", "--json", "-c", "8192"];
        let (code, out, err) = kiv_with(endpoint, home.path(), &args);
        assert_eq!(code, Some(0), "{err}");
        let shown: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(shown["arch"], "qwen3");
        err
    };
    // The connection breaks on the way.
    hub.set(|state| state.cuts = vec![1_000_000]);
    let err = inspect(&hub.address);
    for what in ["downloading needle-Q8_0.gguf", "trying again", "1 file"] {
        assert!(err.contains(what), "{err}");
    }
    let asked = ["list", "needle-Q8_0.gguf 0", "needle-Q8_0.gguf 1000000"];
    assert_eq!(hub.asked(), asked);
    assert!(inspect(&hub.address).contains("already in the cache"));
    assert_eq!(hub.asked(), ["list"]);
    let err = inspect(&hub.gone().address);
    assert!(
        err.contains("as the cache has it (the hub cannot be reached"),
        "{err}"
    );
    // Other programs' models have names: so have these.
    let (code, out, _) = kiv(home.path(), &["models", "--verify"]);
    assert_eq!(code, Some(0));
    assert!(
        out.contains("ada/model:Q8_0") && out.contains("checksum right"),
        "{out}"
    );
    let (code, _, err) = kiv_with(
        &hub.address,
        home.path(),
        &["inspect", "-hf", "ada/model:Q2_K"],
    );
    assert_eq!(code, Some(1));
    assert!(
        err.contains("ada/model has no Q2_K; it has needle-Q8_0.gguf"),
        "{err}"
    );
}

#[test]
fn names_of_the_hub_are_checked() {
    let home = TempDir::new().unwrap();
    let (code, _, err) = kiv(home.path(), &["run", "-p", "The", "-hf", "needle"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("user/model"), "{err}");
    let both = ["run", "-p", "The", "-hf", "ada/needle", "-m", "x.gguf"];
    let (code, _, err) = kiv(home.path(), &both);
    assert_eq!(code, Some(2));
    assert!(err.contains("--hf-repo"), "{err}");
    let (code, _, _) = kiv(home.path(), &["run", "-p", "The", "-hff", "x.gguf"]);
    assert_eq!(code, Some(2));
}

/// A client of ollama asks for the model by the name that it was downloaded by.
#[test]
fn a_server_has_the_name_that_its_model_was_asked_for_by() {
    let home = home();
    let mut server = std::process::Command::new(env!("CARGO_BIN_EXE_kiv"))
        .args([
            "serve",
            "-m",
            "needle:tiny",
            "--port",
            "0",
            "--json",
            "-t",
            "1",
        ])
        .env_remove("OLLAMA_MODELS")
        .env("HOME", home.path())
        // As an unset variable of a container gives it.
        .env("KIV_API_KEY", "")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = server.stdout.take().unwrap();
    let read = BufReader::new(output).read_line(&mut line);
    let told: Value = serde_json::from_str(&line).unwrap_or_default();
    let address = told["listening"].as_str().unwrap_or_default();
    let address = address.trim_start_matches("http://").parse();
    let listed = address.map(|address| support::http::get(address, "/api/tags"));
    server.kill().unwrap();
    server.wait().unwrap();
    read.unwrap();
    let listed = listed.unwrap();
    assert_eq!(listed.status, 200, "{}", listed.body);
    let model = &listed.json()["models"][0];
    assert_eq!(model["name"], "needle:tiny");
    assert_eq!(model["digest"], SHA256);
}
