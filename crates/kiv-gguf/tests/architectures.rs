//! Cache kinds per architecture, as llama.cpp derives them.

mod common;

use common::{Key, flags, list, open, u};
use gguf_rs::writer::MetadataValue;
use kiv_gguf::{GgufError, LayerKind, ModelFile, Untierable};

const KV: &str = ".attention.head_count_kv";

/// One letter per layer: Global, Window, Shared, Recurrent, Both, Key only, -.
fn kinds(model: &ModelFile) -> String {
    let letter = |kind| match kind {
        LayerKind::Global => 'G',
        LayerKind::SlidingWindow { .. } => 'W',
        LayerKind::Shared { .. } => 'S',
        LayerKind::Recurrent => 'R',
        LayerKind::GlobalRecurrent => 'B',
        LayerKind::KeyOnly => 'K',
        LayerKind::None => '-',
    };
    model.layers.iter().map(|l| letter(l.kind)).collect()
}

fn window(model: &ModelFile) -> Option<usize> {
    model.layers.iter().find_map(|l| match l.kind {
        LayerKind::SlidingWindow { n_swa } => Some(n_swa),
        _ => None,
    })
}

const WIDTH: &str = ".attention.sliding_window";
const PATTERN: &str = ".attention.sliding_window_pattern";

#[test]
fn plain_attention() {
    for arch in [
        "llama",
        "qwen2",
        "qwen3",
        "qwen3moe",
        "granite",
        "smollm3",
        "olmo2",
        "never-heard-of",
    ] {
        let model = open(arch, &[]).unwrap();
        assert_eq!(kinds(&model), "GGGG", "{arch}");
        model.tierable().unwrap();
        let layer = &model.layers[3];
        assert_eq!(
            (
                layer.n_head,
                layer.n_head_kv,
                layer.key_dim,
                layer.value_dim
            ),
            (4, 2, 16, 16)
        );
    }
    // A width that llama.cpp ignores.
    assert_eq!(kinds(&open("phi3", &[(WIDTH, u(128))]).unwrap()), "GGGG");
    assert_eq!(kinds(&open("qwen2", &[(WIDTH, u(128))]).unwrap()), "GGGG");
}

#[test]
fn sliding_windows() {
    let eight = (".block_count", u(8));
    for (arch, keys, expected, width) in [
        ("gemma2", vec![], "WGWGWGWG", Some(4096)),
        ("gemma3", vec![(WIDTH, u(512))], "WWWWWGWW", Some(512)),
        ("gemma3", vec![], "GGGGGGGG", None),
        (
            "gemma3",
            vec![(WIDTH, u(512)), (PATTERN, u(4))],
            "WWWGWWWG",
            Some(512),
        ),
        ("gemma3n", vec![(WIDTH, u(512))], "WWWWGWWW", Some(512)),
        ("gpt-oss", vec![(WIDTH, u(128))], "WGWGWGWG", Some(128)),
        ("cohere2", vec![(WIDTH, u(4096))], "WWWGWWWG", Some(4096)),
        ("cohere2moe", vec![(WIDTH, u(4096))], "GWWWGWWW", Some(4096)),
        ("olmo2", vec![(WIDTH, u(4096))], "WWWGWWWG", Some(4096)),
        ("llama4", vec![], "WWWGWWWG", Some(8192)),
        ("llama4", vec![(WIDTH, u(0))], "GGGGGGGG", None),
        ("smallthinker", vec![(WIDTH, u(9))], "GWWWGWWW", Some(4096)),
        ("exaone4", vec![(WIDTH, u(4096))], "GGGGGGGG", None),
        (
            "mimo2",
            vec![(WIDTH, u(128)), (PATTERN, list(&[0, 1, 1, 1, 0, 1, 1, 0]))],
            "GWWWGWWG",
            Some(128),
        ),
    ] {
        let mut keys: Vec<Key> = keys;
        keys.push(eight.clone());
        let model = open(arch, &keys).unwrap();
        assert_eq!(
            (kinds(&model).as_str(), window(&model)),
            (expected, width),
            "{arch} {keys:?}"
        );
        // The pinned llama.cpp does not survive llama4 without chunks.
        assert_eq!(
            model.tierable().is_err(),
            arch == "llama4" && width.is_none()
        );
    }
    for key in [WIDTH, PATTERN] {
        let other = if key == WIDTH {
            (PATTERN, flags(&[true; 4]))
        } else {
            (WIDTH, u(128))
        };
        let error = open("gemma4", &[other]).unwrap_err();
        assert!(matches!(error, GgufError::MissingKey { .. }), "{error}");
        assert!(
            error.to_string().contains(&format!("gemma4{key}")),
            "{error}"
        );
    }
}

#[test]
fn shared_layers_name_their_source() {
    let model = open(
        "gemma4",
        &[
            (".block_count", u(6)),
            (WIDTH, u(512)),
            (PATTERN, flags(&[true, true, true, false, true, false])),
            (".attention.shared_kv_layers", u(2)),
            (".attention.head_count_kv", list(&[2, 2, 2, 1, 2, 1])),
            (".attention.key_length", u(64)),
            (".attention.value_length", u(64)),
            (".attention.key_length_swa", u(32)),
            (".attention.value_length_swa", u(32)),
        ],
    )
    .unwrap();
    assert_eq!(kinds(&model), "WWWGSS");
    assert_eq!(model.layers[4].kind, LayerKind::Shared { source: 2 });
    assert_eq!(model.layers[5].kind, LayerKind::Shared { source: 3 });
    assert_eq!((model.layers[2].key_dim, model.layers[3].key_dim), (32, 64));
    assert_eq!(
        (model.layers[2].n_head_kv, model.layers[3].n_head_kv),
        (2, 1)
    );

    let model = open("gemma3n", &[(".block_count", u(30)), (WIDTH, u(512))]).unwrap();
    assert_eq!(kinds(&model), "WWWWG".repeat(4) + &"S".repeat(10));
    assert_eq!(model.layers[20].kind, LayerKind::Shared { source: 18 });
    assert_eq!(model.layers[24].kind, LayerKind::Shared { source: 19 });

    let error = open(
        "gemma4",
        &[
            (WIDTH, u(8)),
            (PATTERN, flags(&[true; 4])),
            (".attention.shared_kv_layers", u(3)),
        ],
    );
    assert!(matches!(error, Err(GgufError::BadKey { .. })));
}

#[test]
fn models_that_cannot_be_tiered_say_why() {
    let mla = [
        (KV, u(1)),
        (".attention.key_length_mla", u(192)),
        (".attention.value_length_mla", u(128)),
    ];
    let alibi = [(".attention.max_alibi_bias", MetadataValue::Float32(8.0))];
    let forty = [(".block_count", u(40))];
    let cases: [(&str, &[Key], &str, Untierable); 14] = [
        ("deepseek2", &mla, "KKKK", Untierable::KeyOnly),
        ("mamba", &[], "RRRR", Untierable::NoKvCache),
        ("mamba2", &[], "RRRR", Untierable::NoKvCache),
        ("rwkv6", &[], "RRRR", Untierable::NoKvCache),
        ("rwkv7", &[], "RRRR", Untierable::NoKvCache),
        ("t5", &[], "GGGG", Untierable::EncoderDecoder),
        ("bert", &[], "----", Untierable::NotGenerative),
        (
            "llama-embed",
            &[(".attention.causal", MetadataValue::Bool(false))],
            "GGGG",
            Untierable::NotGenerative,
        ),
        ("mpt", &alibi, "GGGG", Untierable::Alibi),
        ("bloom", &[], "GGGG", Untierable::Alibi),
        ("baichuan", &forty, &"G".repeat(40), Untierable::Alibi),
        ("grok", &[], "GGGG", Untierable::NoFlashAttention),
        ("minimax-m3", &[], "GGGG", Untierable::OwnCache),
        ("eagle3", &[], "GGGG", Untierable::Draft),
    ];
    for (arch, keys, expected, reason) in cases {
        let model = open(arch, keys).unwrap();
        assert_eq!(kinds(&model), expected, "{arch}");
        assert_eq!(model.untierable, Some(reason), "{arch}");
        let message = model.tierable().unwrap_err().to_string();
        assert!(
            message.contains(arch) && message.contains(&reason.to_string()),
            "{message}"
        );
    }
    // The same architectures where the reason does not hold.
    open("deepseek2", &[]).unwrap().tierable().unwrap();
    open("baichuan", &[]).unwrap().tierable().unwrap();
    open("mpt", &[]).unwrap().tierable().unwrap();
}

#[test]
fn attention_beside_recurrent_layers_is_tiered() {
    let some_kv = [(KV, list(&[0, 0, 2, 0]))];
    let some_ff = [
        (KV, list(&[0, 0, 2, 0])),
        (".feed_forward_length", list(&[0, 9, 0, 0])),
    ];
    let every_second = [(".full_attention_interval", u(2))];
    let told = [(
        ".attention.recurrent_layers",
        flags(&[true, false, false, true]),
    )];
    let cases: [(&str, &[Key], &str, usize); 7] = [
        ("falcon-h1", &[], "BBBB", 4),
        ("jamba", &some_kv, "RRGR", 1),
        ("lfm2", &some_kv, "RRGR", 1),
        ("nemotron_h", &some_ff, "R-GR", 1),
        ("qwen3next", &[], "RRRG", 1),
        ("qwen3next", &every_second, "RGRG", 2),
        ("qwen35", &told, "RGGR", 2),
    ];
    for (arch, keys, expected, tiered) in cases {
        let model = open(arch, keys).unwrap();
        assert_eq!(kinds(&model), expected, "{arch}");
        model.tierable().unwrap();
        assert_eq!(model.tiered_layers().count(), tiered, "{arch}");
    }
}

#[test]
fn extra_and_looped_layers() {
    // The multi-token-prediction layer has no place in the main context.
    let model = open("glm4moe", &[(".nextn_predict_layers", u(1))]).unwrap();
    assert_eq!(kinds(&model), "GGG");
    let model = open("nanbeige", &[(".num_loops", u(2))]).unwrap();
    assert_eq!(
        (kinds(&model).as_str(), model.layers[5].il),
        ("GGGGGGGG", 5)
    );
    // Layers without attention in a model that has some (Nemotron "deci").
    let model = open("deci", &[(".attention.head_count_kv", list(&[2, 0, 2, 2]))]).unwrap();
    assert_eq!(kinds(&model), "G-GG");
}

#[test]
fn keys_that_cannot_be_are_named() {
    for (keys, word) in [
        (vec![(".block_count", u(0))], "block_count"),
        (vec![(".block_count", u(513))], "block_count"),
        (
            vec![(".attention.head_count_kv", list(&[1, 2]))],
            "head_count_kv has 2 values for 4",
        ),
        (
            vec![(".nextn_predict_layers", u(5))],
            "nextn_predict_layers",
        ),
        (vec![(".embedding_length", u(u32::MAX))], "embedding_length"),
        // llama.cpp's positions are signed.
        (vec![(".context_length", u(1 << 31))], "context_length"),
        (
            vec![(".embedding_length", MetadataValue::String("x".into()))],
            "embedding_length",
        ),
    ] {
        let error = open("llama", &keys).unwrap_err();
        assert!(matches!(error, GgufError::BadKey { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}
