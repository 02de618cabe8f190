//! The hook on caches of other kinds: one head a group, one KV head for all,
//! sliding-window layers beside global ones, soft caps, odd head sizes.

mod support {
    pub mod random_model;
}

use kiv::inspect::{LayerKind, ModelFile};
use kiv::policy::RowFormat;
use kiv::{Error, Model};
use kiv_verify::{Line, Plan, verify};
use std::path::{Path, PathBuf};
use support::random_model::Shape;

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-f16.gguf")
}

fn check(shape: &Shape, cache_types: &[RowFormat]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("random.gguf");
    shape.write(&path, &bundled());
    let file = ModelFile::open(&path).unwrap();
    file.tierable().unwrap();
    let model = Model::load(&path).unwrap();

    // The runtime tiers what the header calls global, and sees it alike.
    let session = model
        .session()
        .threads(1, 1)
        .ctx_size(8192)
        .build()
        .unwrap();
    let tiered: Vec<_> = file.tiered_layers().collect();
    let seen = &session.geometry().unwrap().layers;
    assert_eq!(seen.len(), tiered.len());
    for (seen, told) in seen.iter().zip(&tiered) {
        assert_eq!(seen.il as usize, told.il);
        assert_eq!((seen.n_head, seen.n_head_kv), (told.n_head, told.n_head_kv));
        assert_eq!(
            (seen.key_dim, seen.value_dim),
            (told.key_dim, told.value_dim)
        );
    }
    let sliding = file
        .layers
        .iter()
        .filter(|l| matches!(l.kind, LayerKind::SlidingWindow { .. }));
    assert_eq!(sliding.count() > 0, shape.n_swa > 0);

    let plan = Plan {
        cache_types: cache_types.to_vec(),
        ubatches: vec![1, 64],
        swaps: 500,
        threads: 1,
        seed: 3,
        ..Plan::default()
    };
    let mut lines: Vec<Line> = Vec::new();
    verify(&model, &plan, |line| lines.push(line.clone())).unwrap();
    for line in lines {
        // `budget` asks how little the least block matters, which random
        // weights do not promise; that it is a number is checked all the same.
        assert!(
            line.pass || (line.check == "budget" && line.kl.unwrap() < 1.0),
            "{line:?}"
        );
    }
}

#[test]
fn llama_with_one_kv_head_per_query_head() {
    let shape = Shape {
        arch: "llama",
        n_layer: 2,
        n_head: 4,
        n_head_kv: 4,
        head_dim: 32,
        n_swa: 0,
    };
    check(&shape, &[RowFormat::F16, RowFormat::Q8_0]);
}

#[test]
fn llama_with_one_kv_head_and_an_odd_head_size() {
    let shape = Shape {
        arch: "llama",
        n_layer: 2,
        n_head: 3,
        n_head_kv: 1,
        head_dim: 40,
        n_swa: 0,
    };
    check(&shape, &[RowFormat::F16]);
}

#[test]
fn gemma3_with_sliding_windows() {
    let shape = Shape {
        arch: "gemma3",
        n_layer: 6,
        n_head: 4,
        n_head_kv: 2,
        head_dim: 64,
        n_swa: 32,
    };
    check(&shape, &[RowFormat::F16, RowFormat::Q4_0]);
}

#[test]
fn gemma2_with_soft_caps_and_sliding_windows() {
    let shape = Shape {
        arch: "gemma2",
        n_layer: 4,
        n_head: 4,
        n_head_kv: 2,
        head_dim: 32,
        n_swa: 48,
    };
    check(&shape, &[RowFormat::F16]);
}

#[test]
fn sliding_windows_decide_what_can_be_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("random.gguf");
    let shape = Shape {
        arch: "gemma3",
        n_layer: 6,
        n_head: 2,
        n_head_kv: 1,
        head_dim: 32,
        n_swa: 512,
    };
    shape.write(&path, &bundled());
    let model = Model::load(&path).unwrap();
    let build = || {
        let builder = model.session().window(256).budget(128).block(16);
        let builder = builder.ubatch(64).threads(1, 1).ctx_size(1 << 16);
        builder.policy("exact").build().unwrap()
    };
    // The recent window is as long as the model's own at least.
    let mut session = build();
    assert!(session.pool().window >= 512);

    let tokens: Vec<i32> = (0..4000).map(|i| 5 + i * 7 % 200).collect();
    let question = &tokens[100..130];
    session.read(&tokens).unwrap();
    session.read_one_by_one(question).unwrap();
    let logits = session.logits().to_vec();
    // A few tokens can be taken back, as if they had never been there.
    session.rewind(tokens.len()).unwrap();
    session.read_one_by_one(question).unwrap();
    assert_eq!(session.logits(), logits);
    // Far more cannot: the layers that slide have forgotten what came before.
    let error = session.truncate(tokens.len() - 1000).err().unwrap();
    assert!(matches!(error, Error::TruncateTooFar { .. }), "{error}");
    let Error::TruncateTooFar { window_first, .. } = error else {
        unreachable!()
    };
    // The error says how far one can go; nothing is lost.
    assert!(session.truncate(window_first - 1).is_err());
    session.truncate(window_first).unwrap();
    let mut fresh = build();
    fresh.read(&tokens[..window_first]).unwrap();
    let most = |logits: &[f32], other: &[f32]| {
        let pairs = logits.iter().zip(other);
        pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs()))
    };
    fresh.read_one_by_one(question).unwrap();
    session.read_one_by_one(question).unwrap();
    let difference = most(session.logits(), fresh.logits());
    // The one has sealed more blocks than the other.
    assert!(difference < 0.2, "{difference}");
    // Forgotten altogether and read again it is the same.
    session.clear().unwrap();
    session.read(&tokens).unwrap();
    session.read_one_by_one(question).unwrap();
    assert_eq!(session.logits(), logits);
}
