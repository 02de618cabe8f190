//! Fake folders of ollama, the Hugging Face cache, LM Studio and llama.cpp.

use kiv_models::{FindError, FoundModel, Source, Stores};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const MODEL: &str = "application/vnd.ollama.image.model";

fn write(path: &Path, bytes: &[u8]) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
    path.to_owned()
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A model of ollama's: its manifest and its blob.
fn pulled(root: &Path, place: &str, weights: &[u8]) -> (PathBuf, PathBuf) {
    let digest = sha256(weights);
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"sha256:00","size":2}},"layers":[
            {{"mediaType":"application/vnd.ollama.image.template","digest":"sha256:11","size":3}},
            {{"mediaType":"{MODEL}","digest":"sha256:{digest}","size":{}}}]}}"#,
        weights.len()
    );
    (
        write(&root.join("manifests").join(place), manifest.as_bytes()),
        write(&root.join(format!("blobs/sha256-{digest}")), weights),
    )
}

fn names(models: &[FoundModel]) -> Vec<&str> {
    models.iter().map(|model| model.name.as_str()).collect()
}

fn ollama(root: &Path) -> Stores {
    Stores {
        ollama: vec![root.to_owned()],
        ..Stores::default()
    }
}

#[test]
fn ollama_models_have_the_names_that_ollama_uses() {
    let dir = TempDir::new().unwrap();
    let library = "registry.ollama.ai/library";
    let (_, blob) = pulled(dir.path(), &format!("{library}/llama3.2/3b"), b"three");
    pulled(dir.path(), &format!("{library}/llama3.2/latest"), b"latest");
    pulled(dir.path(), "registry.ollama.ai/ada/tuned/v2", b"tuned");
    pulled(dir.path(), "hf.co/org/repo-GGUF/Q4_K_M", b"from hf");
    let stores = ollama(dir.path());
    let listing = stores.list();
    assert_eq!(
        names(&listing.models),
        [
            "ada/tuned:v2",
            "hf.co/org/repo-GGUF:Q4_K_M",
            "llama3.2:3b",
            "llama3.2:latest"
        ]
    );
    assert_eq!(listing.broken, []);
    let found = stores.find("Llama3.2:3B").unwrap();
    assert_eq!((found.path.clone(), found.bytes), (blob.clone(), 5));
    assert_eq!(found.verify(), Ok(true));
    // As ollama does: no tag means `latest`, and else the only one.
    assert_eq!(stores.find("llama3.2").unwrap().name, "llama3.2:latest");
    assert_eq!(stores.find("ada/tuned").unwrap().name, "ada/tuned:v2");
    // A bit that has changed since.
    fs::write(&blob, b"thrEe").unwrap();
    let problem = found.verify().unwrap_err().to_string();
    assert!(
        problem.contains("SHA-256") && problem.contains("fetch llama3.2:3b again"),
        "{problem}"
    );
}

#[test]
fn what_is_broken_in_ollama_s_store_is_said() {
    let dir = TempDir::new().unwrap();
    let place = |model: &str| format!("registry.ollama.ai/library/{model}/latest");
    let (manifest, _) = pulled(dir.path(), &place("torn"), b"weights 1");
    fs::write(&manifest, br#"{"layers":[{"mediaType""#).unwrap();
    let (_, blob) = pulled(dir.path(), &place("gone"), b"weights 2");
    fs::remove_file(blob).unwrap();
    let (_, blob) = pulled(dir.path(), &place("short"), b"weights 3");
    fs::write(blob, b"weig").unwrap();
    write(
        &dir.path().join("manifests").join(place("cloud")),
        br#"{"layers":[]}"#,
    );
    let evil = format!(
        r#"{{"layers":[{{"mediaType":"{MODEL}","digest":"sha256:../../etc/passwd","size":1}}]}}"#
    );
    write(
        &dir.path().join("manifests").join(place("evil")),
        evil.as_bytes(),
    );
    pulled(dir.path(), &place("good"), b"weights 4");
    let stores = ollama(dir.path());
    let listing = stores.list();
    assert_eq!(names(&listing.models), ["good:latest"]);
    let expected = [
        ("cloud:latest", "names no weights"),
        ("evil:latest", "is no digest"),
        (
            "gone:latest",
            "the weights are missing: `ollama pull gone:latest` fetches it again",
        ),
        ("short:latest", "4 bytes instead of 9"),
        ("torn:latest", "the manifest is damaged"),
    ];
    assert_eq!(listing.broken.len(), expected.len());
    for ((name, problem), (expected, why)) in listing.broken.iter().zip(expected) {
        assert_eq!(name, expected);
        assert!(problem.why.contains(why), "{name}: {problem}");
    }
    let error = stores.find("gone").unwrap_err();
    assert!(matches!(error, FindError::Broken { .. }), "{error}");
}

#[cfg(unix)]
#[test]
fn hugging_face_snapshots_are_read_through_their_links() {
    let dir = TempDir::new().unwrap();
    let repository = dir.path().join("models--bartowski--Tiny-GGUF");
    let digest = sha256(b"four bits");
    write(&repository.join(format!("blobs/{digest}")), b"four bits");
    write(&repository.join("blobs/0123456789abcdef"), b"projector");
    write(&repository.join("refs/main"), b"c0ffee\n");
    let snapshot = repository.join("snapshots/c0ffee");
    fs::create_dir_all(&snapshot).unwrap();
    let link = |name: &str, blob: &str| {
        std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    };
    link("Tiny-Q4_K_M.gguf", &digest);
    link("mmproj-Tiny.gguf", "0123456789abcdef");
    link("Tiny-Q8_0.gguf", "never-downloaded");
    // Older snapshots, and a dataset.
    write(&repository.join("snapshots/0ld/Tiny-Q2_K.gguf"), b"old");
    write(&repository.join("snapshots/0ld/Tiny-Q4_K_M.gguf"), b"other");
    write(
        &dir.path().join("datasets--a--b/snapshots/x/y.gguf"),
        b"no model",
    );
    let stores = Stores {
        hugging_face: vec![dir.path().to_owned()],
        ..Stores::default()
    };
    let listing = stores.list();
    assert_eq!(
        names(&listing.models),
        ["bartowski/Tiny-GGUF:Q2_K", "bartowski/Tiny-GGUF:Q4_K_M"]
    );
    assert_eq!(listing.broken.len(), 1);
    assert_eq!(listing.broken[0].0, "bartowski/Tiny-GGUF:Q8_0");
    assert!(listing.broken[0].1.why.contains("missing"));
    let found = stores.find("bartowski/tiny-gguf:q4_k_m").unwrap();
    assert_eq!(found.verify(), Ok(true));
    assert_eq!(fs::read(&found.path).unwrap(), b"four bits");
    fs::write(repository.join(format!("blobs/{digest}")), b"five bits").unwrap();
    assert!(found.verify().is_err());
}

#[test]
fn split_models_need_all_their_parts() {
    let dir = TempDir::new().unwrap();
    let repository = dir.path().join("pub/Big-GGUF");
    for (number, bytes) in [(1, &b"one"[..]), (2, b"two!"), (3, b"three")] {
        write(
            &repository.join(format!("Big-Q6_K-{number:05}-of-00003.gguf")),
            bytes,
        );
    }
    write(&repository.join("Big-Q4_0.gguf"), b"whole");
    let stores = Stores {
        lm_studio: vec![dir.path().to_owned(), dir.path().to_owned()],
        ..Stores::default()
    };
    let listing = stores.list();
    assert_eq!(
        names(&listing.models),
        ["pub/Big-GGUF:Q4_0", "pub/Big-GGUF:Q6_K"]
    );
    let split = stores.find("pub/big-gguf:q6_k").unwrap();
    assert_eq!((split.bytes, split.source), (12, Source::LmStudio));
    assert!(split.path.ends_with("Big-Q6_K-00001-of-00003.gguf"));
    assert_eq!(split.verify(), Ok(false), "nothing to compare with");
    let error = stores.find("pub/Big-GGUF").unwrap_err().to_string();
    assert!(
        error.contains("pub/Big-GGUF:Q4_0, pub/Big-GGUF:Q6_K"),
        "{error}"
    );
    fs::remove_file(repository.join("Big-Q6_K-00002-of-00003.gguf")).unwrap();
    let listing = stores.list();
    assert_eq!(names(&listing.models), ["pub/Big-GGUF:Q4_0"]);
    let problem = &listing.broken[0].1;
    assert!(
        problem.path.ends_with("Big-Q6_K-00002-of-00003.gguf"),
        "{problem}"
    );
}

#[cfg(unix)]
#[test]
fn every_part_is_compared_with_its_own_checksum() {
    let dir = TempDir::new().unwrap();
    let repository = dir.path().join("models--org--Big-GGUF");
    let snapshot = repository.join("snapshots/c0ffee");
    fs::create_dir_all(&snapshot).unwrap();
    let blob = |bytes: &[u8]| repository.join("blobs").join(sha256(bytes));
    for (number, bytes) in [(1, &b"one"[..]), (2, b"two")] {
        let name = format!("Big-Q6_K-{number:05}-of-00002.gguf");
        std::os::unix::fs::symlink(write(&blob(bytes), bytes), snapshot.join(name)).unwrap();
    }
    let stores = Stores {
        hugging_face: vec![dir.path().to_owned()],
        ..Stores::default()
    };
    let found = stores.find("org/Big-GGUF:Q6_K").unwrap();
    assert_eq!(found.verify(), Ok(true));
    fs::write(blob(b"two"), b"tw0").unwrap();
    let problem = found.verify().unwrap_err();
    assert!(
        problem.path.ends_with("Big-Q6_K-00002-of-00002.gguf"),
        "{problem}"
    );
}

#[test]
fn what_goes_with_a_model_is_none() {
    let dir = TempDir::new().unwrap();
    for name in [
        "imatrix.gguf",
        "mtp-tiny-Q4_0.gguf",
        "eagle3-tiny.gguf",
        "dflash-tiny.gguf",
    ] {
        write(&dir.path().join("pub/Tiny").join(name), b"beside");
    }
    write(&dir.path().join("pub/Tiny/tiny-Q4_0.gguf"), b"model");
    let stores = Stores {
        lm_studio: vec![dir.path().to_owned()],
        ..Stores::default()
    };
    assert_eq!(names(&stores.list().models), ["pub/Tiny:Q4_0"]);
}

#[cfg(unix)]
#[test]
fn links_that_lead_back_end() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("below/tiny-Q4_0.gguf"), b"model");
    for (to, link) in [(".", "again"), ("below", "below/below")] {
        std::os::unix::fs::symlink(dir.path().join(to), dir.path().join(link)).unwrap();
    }
    let stores = Stores {
        llama_cpp: vec![dir.path().to_owned()],
        ..Stores::default()
    };
    assert_eq!(names(&stores.list().models), ["tiny-Q4_0"]);
}

#[test]
fn unknown_names_are_told_what_is_like_them() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("org_repo_phi-3-Q4_0.gguf"), b"phi");
    let stores = Stores {
        llama_cpp: vec![dir.path().to_owned()],
        ollama: vec![dir.path().join("not there")],
        ..Stores::default()
    };
    let error = stores.find("phi-3:q4").unwrap_err().to_string();
    assert!(error.contains("there is org_repo_phi-3-Q4_0"), "{error}");
    let error = stores.find("llama3.2:3b").unwrap_err().to_string();
    assert!(error.contains("`kiv models` lists"), "{error}");
    assert_eq!(stores.find("org_repo_phi-3-Q4_0").unwrap().bytes, 3);
}
