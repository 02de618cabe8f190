//! Good, split, damaged and hostile files.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Key, tiny, u, write};
use gguf_rs::writer::MetadataValue;
use kiv_gguf::{GgufError, ModelFile, Untierable};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Tensors<'a> = [(&'a str, &'a [u64], u32)];
const TENSORS: &Tensors = &[
    ("token_embd.weight", &[64, 100], 30),
    ("output_norm.weight", &[64], 0),
];
const F16_TENSORS: &Tensors = &[
    ("token_embd.weight", &[64, 100], 1),
    ("output_norm.weight", &[64], 0),
];

fn model(dir: &Path, tensors: &Tensors) -> PathBuf {
    let path = dir.join("m.gguf");
    let tokens = (0..9)
        .map(|i| MetadataValue::String(format!("t{i}")))
        .collect();
    let keys: &[Key] = &[
        ("tokenizer.ggml.tokens", MetadataValue::Array(tokens)),
        (
            "tokenizer.chat_template",
            MetadataValue::String("{{ x }}".into()),
        ),
        ("general.name", MetadataValue::String("Small".into())),
    ];
    write(&path, "llama", keys, tensors);
    path
}

/// gguf-rs' writer sizes some types wrongly: bring the file to this length.
fn pad(path: &Path, len: u64) {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(len)
        .unwrap();
}

#[test]
fn the_bundled_model() {
    let model = ModelFile::open(tiny()).unwrap();
    assert_eq!(model.arch, "qwen3");
    assert_eq!((model.n_layer, model.layers.len()), (4, 4));
    assert_eq!((model.n_vocab, model.n_ctx_train), (2048, 1 << 20));
    let layer = &model.layers[2];
    assert_eq!(
        (
            layer.n_head,
            layer.n_head_kv,
            layer.key_dim,
            layer.value_dim
        ),
        (4, 2, 64, 64)
    );
    assert!(!model.is_vocab_only);
    model.tierable().unwrap();
    let len = fs::metadata(tiny()).unwrap().len();
    assert!(model.weights_bytes < len && model.weights_bytes > len * 9 / 10);
    assert!(model.n_params * 2 <= model.weights_bytes);
    assert_eq!(model.files, std::slice::from_ref(&model.path));
}

#[test]
fn strings_and_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let path = model(dir.path(), TENSORS);
    pad(&path, 1 << 20);
    let model = ModelFile::open(&path).unwrap();
    assert_eq!(model.name.as_deref(), Some("Small"));
    assert_eq!(model.chat_template.as_deref(), Some("{{ x }}"));
    assert_eq!(
        model.n_vocab, 9,
        "the vocabulary's length, though it is not kept"
    );
    assert_eq!(model.file_type, "bf16");
    assert_eq!(model.weights_bytes, 64 * 100 * 2 + 64 * 4);
    assert_eq!(model.n_params, 64 * 101);
}

#[test]
fn what_is_not_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        ModelFile::open(path).unwrap_err().to_string()
    };
    assert!(
        ModelFile::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("is a directory")
    );
    assert!(
        ModelFile::open(dir.path().join("no"))
            .unwrap_err()
            .to_string()
            .contains("no such file")
    );
    assert!(put("empty.gguf", b"").contains("empty"));
    assert!(put("page.gguf", b"<!DOCTYPE html>").contains("web page"));
    let zip = put("zip.gguf", b"PK\x03\x04....");
    assert!(
        zip.contains(r#""PK\x03\x04....""#) && zip.contains("zip"),
        "{zip}"
    );
    assert!(put("g", b"GG").contains("not a GGUF"));
    assert!(put("h", b"GGUF\x03\0\0").contains("truncated"));
    assert!(put("be", b"GGUF\0\0\0\x03").contains("big-endian"));
    assert!(put("fugg", b"FUGG\0\0\0\x03").contains("big-endian"));
    for version in [0u8, 1, 4, 200] {
        let message = put(
            "version",
            &[b"GGUF", &[version, 0, 0, 0][..], &[0; 16]].concat(),
        );
        assert!(
            message.contains(&format!("version {version} ")),
            "{message}"
        );
    }
    let keyless = put("keyless", &[&b"GGUF\x03\0\0\0"[..], &[0; 16]].concat());
    assert!(
        keyless.contains("general.architecture is missing"),
        "{keyless}"
    );

    let path = dir.path().join("mmproj.gguf");
    write(&path, "clip", &[], TENSORS);
    assert!(
        ModelFile::open(&path)
            .unwrap_err()
            .to_string()
            .contains("mmproj")
    );
}

#[test]
fn vocabularies_open_but_do_not_tier() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vocab.gguf");
    write(&path, "llama", &[(".block_count", u(0))], &[]);
    let model = ModelFile::open(&path).unwrap();
    assert!(model.is_vocab_only);
    assert_eq!(model.untierable, Some(Untierable::VocabOnly));
}

#[test]
fn short_files_say_how_short() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(tiny()).unwrap();
    let path = dir.path().join("short.gguf");
    fs::write(&path, &bytes[..bytes.len() - 4096]).unwrap();
    match ModelFile::open(&path).unwrap_err() {
        GgufError::TruncatedData { has, needs, .. } => {
            assert_eq!(has, bytes.len() as u64 - 4096);
            assert!(needs > has && needs <= bytes.len() as u64);
        }
        error => panic!("{error}"),
    }
}

#[test]
fn splits_are_found_and_missed() {
    let dir = tempfile::tempdir().unwrap();
    let name = |i: usize| dir.path().join(format!("big-{i:05}-of-00003.gguf"));
    for i in 0..3u32 {
        let keys = [("split.count", u(3)), ("split.no", u(i))];
        write(
            &name(i as usize + 1),
            "llama",
            &keys,
            &[(["a", "b", "c"][i as usize], &[32], 0)],
        );
    }
    let model = ModelFile::open(name(1)).unwrap();
    assert_eq!(model.files, [name(1), name(2), name(3)]);
    assert_eq!((model.weights_bytes, model.n_params), (3 * 128, 3 * 32));

    match ModelFile::open(name(2)).unwrap_err() {
        GgufError::NotFirstSplit { first, number, .. } => assert_eq!((first, number), (name(1), 2)),
        error => panic!("{error}"),
    }
    fs::rename(name(1), dir.path().join("renamed.gguf")).unwrap();
    let error = ModelFile::open(dir.path().join("renamed.gguf")).unwrap_err();
    assert!(
        error.to_string().contains("NAME-00001-of-00003.gguf"),
        "{error}"
    );
    fs::rename(dir.path().join("renamed.gguf"), name(1)).unwrap();
    fs::copy(name(2), name(3)).unwrap();
    let error = ModelFile::open(name(1)).unwrap_err().to_string();
    assert!(
        error.contains("not split 3 of 3, as its name says, but split 2"),
        "{error}"
    );
    write(&name(3), "llama", &[], &[("c", &[32], 0)]);
    let error = ModelFile::open(name(1)).unwrap_err().to_string();
    assert!(error.contains("not split 3 of 3"), "{error}");
    fs::remove_file(name(3)).unwrap();
    // The second one under the first one's name.
    fs::copy(name(2), name(1)).unwrap();
    let error = ModelFile::open(name(1)).unwrap_err().to_string();
    assert!(error.contains("NAME-00002-of-00003.gguf"), "{error}");
    let keys = [("split.count", u(3)), ("split.no", u(0))];
    write(&name(1), "llama", &keys, &[("a", &[32], 0)]);
    let error = ModelFile::open(name(1)).unwrap_err();
    assert!(
        error.to_string().contains("split 3 of 3 is missing"),
        "{error}"
    );
}

/// As `llama-gguf-split --no-tensor-first-split` cuts them, behind the links of a
/// Hugging Face cache.
#[cfg(unix)]
#[test]
fn a_first_split_may_have_no_tensors_and_splits_may_be_links() {
    let dir = tempfile::tempdir().unwrap();
    let name = |i: u32| {
        dir.path()
            .join(format!("snapshot/big-{i:05}-of-00003.gguf"))
    };
    let blob = |i: u32| dir.path().join(format!("blob{i}"));
    fs::create_dir(dir.path().join("snapshot")).unwrap();
    let split = |i: u32, all: u32, tensors: &Tensors| {
        let keys = [
            ("split.count", u(3)),
            ("split.no", u(i - 1)),
            ("split.tensors.count", u(all)),
        ];
        write(&blob(i), "llama", &keys, tensors);
    };
    for i in 1..=3 {
        std::os::unix::fs::symlink(blob(i), name(i)).unwrap();
    }
    split(1, 3, &[]);
    split(2, 3, F16_TENSORS);
    split(3, 3, &[("output.weight", &[64, 100], 0)]);
    let model = ModelFile::open(name(1)).unwrap();
    assert_eq!(model.files, [name(1), name(2), name(3)]);
    assert!(!model.is_vocab_only);
    assert_eq!(model.n_params, 6400 + 64 + 6400);
    assert_eq!(model.weights_bytes, 2 * 6400 + 4 * 64 + 4 * 6400);

    split(1, 4, &[]);
    let error = ModelFile::open(name(1)).unwrap_err().to_string();
    assert!(
        error.contains("split.tensors.count says 4, but 3 tensors"),
        "{error}"
    );
    // A part that has not come to its end.
    split(1, 3, &[]);
    pad(&blob(3), fs::metadata(blob(3)).unwrap().len() - 4096);
    match ModelFile::open(name(1)).unwrap_err() {
        GgufError::TruncatedData { path, .. } => assert_eq!(path, name(3)),
        error => panic!("{error}"),
    }
    // A link to what is no more.
    fs::remove_file(blob(2)).unwrap();
    match ModelFile::open(name(1)).unwrap_err() {
        GgufError::MissingSplit { path, number, .. } => assert_eq!((path, number), (name(2), 2)),
        error => panic!("{error}"),
    }
}

/// Replaces the type of the last tensor in the table of a file from `model`.
fn with_type(bytes: &[u8], kind: u32) -> Vec<u8> {
    let name = b"output_norm.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 8;
    let mut bytes = bytes.to_vec();
    bytes[at..at + 4].copy_from_slice(&kind.to_le_bytes());
    bytes
}

#[test]
fn tensor_types_are_sized_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = model(dir.path(), TENSORS);
    pad(&path, 1 << 20);
    let bytes = fs::read(&path).unwrap();
    let base = 64 * 100 * 2;
    // bf16, nvfp4 (on which gguf-rs panics), mxfp4, iq4_nl, i8
    for (kind, size) in [(30, 128), (40, 36), (39, 34), (20, 36), (24, 64)] {
        fs::write(&path, with_type(&bytes, kind)).unwrap();
        assert_eq!(
            ModelFile::open(&path).unwrap().weights_bytes,
            base + size,
            "{kind}"
        );
    }
    for kind in [4, 31, 36, 43, u32::MAX] {
        fs::write(&path, with_type(&bytes, kind)).unwrap();
        assert!(
            matches!(ModelFile::open(&path), Err(GgufError::TensorType { .. })),
            "{kind}"
        );
    }
    // 64 values are no whole block of q4_K
    fs::write(&path, with_type(&bytes, 12)).unwrap();
    assert!(matches!(
        ModelFile::open(&path),
        Err(GgufError::BadHeader { .. })
    ));
}

#[test]
fn lengths_that_lie_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lie.gguf");
    let head = |tensors: u64, keys: u64| {
        [
            &b"GGUF\x03\0\0\0"[..],
            &tensors.to_le_bytes(),
            &keys.to_le_bytes(),
        ]
        .concat()
    };
    let array = |kind: u32, len: u64| {
        [
            &head(0, 1)[..],
            &1u64.to_le_bytes(),
            b"a",
            &9u32.to_le_bytes(),
            &kind.to_le_bytes(),
            &len.to_le_bytes(),
            &[0; 64],
        ]
        .concat()
    };
    for bytes in [
        head(u64::MAX, 0),
        head(0, u64::MAX),
        head(1, 0),
        [head(0, 1), u64::MAX.to_le_bytes().to_vec()].concat(),
        [
            &head(0, 1)[..],
            &1u64.to_le_bytes(),
            b"a",
            &8u32.to_le_bytes(),
            &(1u64 << 60).to_le_bytes(),
        ]
        .concat(),
        array(0, u64::MAX),
        array(12, u64::MAX / 8 + 2),
        array(8, 1 << 40),
        array(9, 1),
        array(77, 1),
    ] {
        fs::write(&path, &bytes).unwrap();
        let error = ModelFile::open(&path).unwrap_err();
        assert!(
            matches!(
                error,
                GgufError::TruncatedHeader { .. } | GgufError::BadHeader { .. }
            ),
            "{error}"
        );
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = model(dir.path(), F16_TENSORS);
    ModelFile::open(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let header = bytes
        .windows(18)
        .position(|w| w == b"output_norm.weight")
        .unwrap()
        + 64;

    for len in (0..header).chain((header..bytes.len()).step_by(97)) {
        fs::write(&path, &bytes[..len]).unwrap();
        assert!(ModelFile::open(&path).is_err(), "{len} bytes");
    }
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for round in 0..3000 {
        let mut bytes = bytes.clone();
        for _ in 0..=round % 3 {
            let at = rng.random_range(0..header);
            bytes[at] = match rng.random_range(0..3) {
                0 => bytes[at] ^ (1 << rng.random_range(0..8)),
                1 => 0xff,
                _ => rng.random(),
            };
        }
        fs::write(&path, &bytes).unwrap();
        // Some changes are harmless, none may panic.
        if let Err(error) = ModelFile::open(&path) {
            assert!(error.to_string().contains("m.gguf"), "{error}");
        }
    }
}
