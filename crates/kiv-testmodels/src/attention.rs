//! Decoders whose layers all attend.

use crate::Spec;
use crate::builder::{Builder, D, E, FF, H, HKV, KV, Q, SWA, X};
use crate::vocab::N_VOCAB;
use kiv_synthetic::gguf::Value;

macro_rules! specs {
    ($($name:literal, $about:literal, $build:expr;)*) => {
        &[$(Spec { name: $name, about: $about, build: || $build }),*]
    };
}

pub const SPECS: &[Spec] = specs![
    "llama-gqa", "two query heads to a KV head", llama(HKV);
    "llama-mqa", "one KV head", llama(1);
    "llama-mha", "a KV head to every query head", llama(H);
    "llama-yarn", "YaRN", llama_yarn();
    "mistral", "a sliding window in the file, which llama.cpp ignores", mistral();
    "mistral3", "YaRN, queries scaled by position", mistral3();
    "qwen2", "biases", qwen2();
    "qwen3", "norms of queries and keys", qwen3(false);
    "qwen3moe", "experts", qwen3(true);
    "phi3", "one matrix for Q, K and V", phi3(131_072);
    "phi3-long", "long RoPE factors at any length", phi3(128);
    "phi3-longrope", "long RoPE factors above 1024 tokens", phi3(1024);
    "gemma2", "soft caps, sliding windows", gemma2();
    "gemma3", "sliding windows", gemma3();
    "gemma3n", "sliding windows, layers that share a cache", gemma3n();
    "gemma4", "the same with two head sizes", gemma4();
    "cohere2", "sliding windows, no RoPE in global layers", cohere2();
    "olmo2", "norms over all heads", olmo2(false);
    "olmo3", "the same with sliding windows", olmo2(true);
    "granite", "scales of its own", granite();
    "smollm3", "no RoPE in every fourth layer", smollm3();
    "llama4", "chunks of 8192 tokens, no RoPE in global layers", llama4(true);
    "llama4-global", "no chunks", llama4(false);
    "gpt-oss", "learned sinks, sliding windows, experts", gpt_oss();
    "deepseek2", "latent attention (MLA), keys only", deepseek2(true);
    "deepseek2-mha", "an old file of it, keys and values", deepseek2(false);
];

fn llama(n_head_kv: u64) -> Builder {
    let mut b = Builder::new("llama", 2);
    b.u32("attention.head_count_kv", n_head_kv as u32);
    llama_layers(&mut b, n_head_kv * D);
    b
}

fn llama_layers(b: &mut Builder, kv: u64) {
    for il in 0..2 {
        b.norms(il);
        b.attention(il, Q, kv);
        b.ffn(il);
    }
}

fn yarn(b: &mut Builder) {
    b.set("rope.scaling.type", Value::Str("yarn".to_owned()));
    b.f32("rope.scaling.factor", 4.0);
    b.u32("rope.scaling.original_context_length", 1024);
}

fn llama_yarn() -> Builder {
    let mut b = llama(HKV);
    yarn(&mut b);
    b
}

fn mistral() -> Builder {
    let mut b = llama(HKV);
    b.u32("attention.sliding_window", SWA);
    b
}

fn mistral3() -> Builder {
    let mut b = Builder::new("mistral3", 2);
    yarn(&mut b);
    b.f32("attention.temperature_scale", 0.1);
    llama_layers(&mut b, KV);
    b
}

fn qwen2() -> Builder {
    let mut b = Builder::new("qwen2", 2);
    llama_layers(&mut b, KV);
    for il in 0..2 {
        b.layer_exact(
            il,
            &[
                ("attn_q.bias", &[Q]),
                ("attn_k.bias", &[KV]),
                ("attn_v.bias", &[KV]),
            ],
        );
    }
    b
}

fn qwen3(experts: bool) -> Builder {
    let mut b = Builder::new(if experts { "qwen3moe" } else { "qwen3" }, 2);
    if experts {
        b.expert_keys();
    }
    for il in 0..2 {
        b.norms(il);
        b.attention(il, Q, KV);
        b.qk_norm(il, D);
        if experts {
            b.experts(il);
        } else {
            b.ffn(il);
        }
    }
    b
}

fn phi3(n_ctx_orig: u32) -> Builder {
    let mut b = Builder::new("phi3", 2);
    b.u32("rope.scaling.original_context_length", n_ctx_orig);
    b.f32("rope.scaling.attn_factor", 1.1);
    for il in 0..2 {
        b.norms(il);
        b.layer(
            il,
            &[
                ("attn_qkv", &[E, Q + 2 * KV]),
                ("attn_output", &[Q, E]),
                ("ffn_up", &[E, 2 * FF]),
                ("ffn_down", &[FF, E]),
            ],
        );
    }
    b.global("rope_factors_long.weight", &[D / 2]);
    b.global("rope_factors_short.weight", &[D / 2]);
    b
}

fn gemma_layer(b: &mut Builder, il: u32, q: u64, kv: u64) {
    b.norms(il);
    b.attention(il, q, kv);
    b.ffn(il);
    b.layer(
        il,
        &[("post_attention_norm", &[E]), ("post_ffw_norm", &[E])],
    );
}

fn gemma2() -> Builder {
    let mut b = Builder::new("gemma2", 4);
    b.u32("attention.sliding_window", SWA);
    b.f32("attn_logit_softcapping", 20.0);
    b.f32("final_logit_softcapping", 30.0);
    for il in 0..4 {
        gemma_layer(&mut b, il, Q, KV);
    }
    b
}

fn gemma3() -> Builder {
    let mut b = Builder::new("gemma3", 6);
    b.u32("attention.sliding_window", SWA);
    for il in 0..6 {
        gemma_layer(&mut b, il, Q, KV);
        b.qk_norm(il, D);
    }
    b
}

/// The first 20 layers own their caches, whatever the file says.
fn gemma3n() -> Builder {
    const LAYERS: u32 = 25;
    // llama.cpp's constants.
    const ALTUP: u64 = 4;
    const ALTUP_E: u64 = 256;
    const LAUREL: u64 = 64;
    let mut b = Builder::new("gemma3n", LAYERS);
    b.u32("attention.sliding_window", SWA);
    let all = ALTUP_E * u64::from(LAYERS);
    b.global("altup_proj.weight", &[E, E, ALTUP - 1]);
    b.global("altup_unembd_proj.weight", &[E, E, ALTUP - 1]);
    b.global("per_layer_token_embd.weight", &[all, N_VOCAB]);
    b.global("per_layer_model_proj.weight", &[E, all]);
    b.global("per_layer_proj_norm.weight", &[ALTUP_E]);
    for il in 0..LAYERS {
        gemma_layer(&mut b, il, Q, KV);
        b.qk_norm(il, D);
        b.layer(
            il,
            &[
                ("inp_gate", &[E, ALTUP_E]),
                ("proj", &[ALTUP_E, E]),
                ("post_norm", &[E]),
                ("altup_correct_coef", &[ALTUP, ALTUP]),
                ("altup_correct_scale", &[E]),
                ("altup_predict_coef", &[ALTUP, ALTUP * ALTUP]),
                ("altup_router", &[E, ALTUP]),
                ("altup_router_norm", &[E]),
                ("laurel_l", &[E, LAUREL]),
                ("laurel_r", &[LAUREL, E]),
                ("laurel_post_norm", &[E]),
            ],
        );
    }
    b
}

fn gemma4() -> Builder {
    const LAYERS: u32 = 6;
    const SHARED: u32 = 2;
    const PER_LAYER: u64 = 16;
    let mut b = Builder::new("gemma4", LAYERS);
    let slides = |il: u32| il.is_multiple_of(2);
    b.u32("attention.sliding_window", SWA);
    b.set(
        "attention.sliding_window_pattern",
        Value::Bools((0..LAYERS).map(slides).collect()),
    );
    b.u32("attention.shared_kv_layers", SHARED);
    b.u32("embedding_length_per_layer_input", PER_LAYER as u32);
    for (suffix, dim) in [
        ("attention.key_length", 2 * D),
        ("attention.value_length", 2 * D),
        ("rope.dimension_count", 2 * D),
        ("attention.key_length_swa", D),
        ("attention.value_length_swa", D),
        ("rope.dimension_count_swa", D),
    ] {
        b.u32(suffix, dim as u32);
    }
    let all = PER_LAYER * u64::from(LAYERS);
    b.global("per_layer_token_embd.weight", &[all, N_VOCAB]);
    b.global("per_layer_model_proj.weight", &[E, all]);
    b.global("per_layer_proj_norm.weight", &[PER_LAYER]);
    b.global("rope_freqs.weight", &[D]);
    for il in 0..LAYERS {
        let head = if slides(il) { D } else { 2 * D };
        gemma_layer(&mut b, il, H * head, HKV * head);
        b.qk_norm(il, head);
        b.layer(
            il,
            &[
                ("inp_gate", &[E, PER_LAYER]),
                ("proj", &[PER_LAYER, E]),
                ("post_norm", &[E]),
            ],
        );
    }
    b
}

fn cohere2() -> Builder {
    let mut b = Builder::new("cohere2", 4);
    b.u32("attention.sliding_window", SWA);
    b.f32("logit_scale", 0.25);
    for il in 0..4 {
        b.layer(il, &[("attn_norm", &[E])]);
        b.attention(il, Q, KV);
        b.ffn(il);
    }
    b
}

fn olmo2(slides: bool) -> Builder {
    let mut b = Builder::new("olmo2", 4);
    if slides {
        b.u32("attention.sliding_window", SWA);
    }
    b.global("output.weight", &[E, N_VOCAB]);
    for il in 0..4 {
        b.attention(il, Q, KV);
        b.ffn(il);
        b.layer(
            il,
            &[
                ("attn_q_norm", &[Q]),
                ("attn_k_norm", &[KV]),
                ("post_attention_norm", &[E]),
                ("post_ffw_norm", &[E]),
            ],
        );
    }
    b
}

fn granite() -> Builder {
    let mut b = Builder::new("granite", 2);
    b.f32("logit_scale", 8.0);
    b.f32("residual_scale", 0.22);
    b.f32("embedding_scale", 12.0);
    b.f32("attention.scale", 0.1);
    llama_layers(&mut b, KV);
    b
}

fn smollm3() -> Builder {
    let mut b = Builder::new("smollm3", 4);
    for il in 0..4 {
        b.norms(il);
        b.attention(il, Q, KV);
        b.ffn(il);
    }
    b
}

fn llama4(chunks: bool) -> Builder {
    let mut b = Builder::new("llama4", 4);
    b.expert_keys();
    b.u32("expert_used_count", 1);
    b.u32("interleave_moe_layer_step", 2);
    // Any other width than 0 means chunks of 8192.
    b.u32("attention.sliding_window", if chunks { 8192 } else { 0 });
    for il in 0..4 {
        b.norms(il);
        b.attention(il, Q, KV);
        if il % 2 == 1 {
            b.experts(il);
            b.shared_expert(il);
        } else {
            b.ffn(il);
        }
    }
    b
}

fn gpt_oss() -> Builder {
    let mut b = Builder::new("gpt-oss", 4);
    b.expert_keys();
    b.u32("attention.sliding_window", SWA);
    b.global("output.weight", &[E, N_VOCAB]);
    for il in 0..4 {
        b.attention(il, Q, KV);
        b.experts(il);
        b.layer(
            il,
            &[
                ("attn_norm", &[E]),
                ("post_attention_norm", &[E]),
                ("attn_sinks", &[H]),
            ],
        );
        b.layer_exact(
            il,
            &[
                ("attn_q.bias", &[Q]),
                ("attn_k.bias", &[KV]),
                ("attn_v.bias", &[KV]),
                ("attn_output.bias", &[E]),
                ("ffn_gate_inp.bias", &[X]),
                ("ffn_gate_exps.bias", &[FF, X]),
                ("ffn_up_exps.bias", &[FF, X]),
                ("ffn_down_exps.bias", &[E, X]),
            ],
        );
    }
    b
}

fn deepseek2(latent: bool) -> Builder {
    const Q_RANK: u64 = 32;
    const KV_RANK: u64 = 64;
    // Of a head: values without and with RoPE, and of its value.
    const NOPE: u64 = 32;
    const ROPE: u64 = 32;
    const VALUE: u64 = 32;
    let mut b = Builder::new("deepseek2", 2);
    b.expert_keys();
    b.u32("expert_shared_count", 1);
    b.u32("leading_dense_block_count", 1);
    b.u32("attention.q_lora_rank", Q_RANK as u32);
    b.u32("attention.kv_lora_rank", KV_RANK as u32);
    b.u32("rope.dimension_count", ROPE as u32);
    if latent {
        b.u32("attention.head_count_kv", 1);
        b.u32("attention.key_length", (KV_RANK + ROPE) as u32);
        b.u32("attention.value_length", KV_RANK as u32);
        b.u32("attention.key_length_mla", (NOPE + ROPE) as u32);
        b.u32("attention.value_length_mla", VALUE as u32);
    } else {
        b.u32("attention.head_count_kv", H as u32);
        b.u32("attention.key_length", (NOPE + ROPE) as u32);
        b.u32("attention.value_length", VALUE as u32);
    }
    for il in 0..2 {
        b.norms(il);
        b.layer(
            il,
            &[
                ("attn_q_a_norm", &[Q_RANK]),
                ("attn_kv_a_norm", &[KV_RANK]),
                ("attn_q_a", &[E, Q_RANK]),
                ("attn_q_b", &[Q_RANK, H * (NOPE + ROPE)]),
                ("attn_kv_a_mqa", &[E, KV_RANK + ROPE]),
                ("attn_output", &[H * VALUE, E]),
            ],
        );
        if latent {
            b.layer(
                il,
                &[
                    ("attn_k_b", &[NOPE, KV_RANK, H]),
                    ("attn_v_b", &[KV_RANK, VALUE, H]),
                ],
            );
        } else {
            b.layer(il, &[("attn_kv_b", &[KV_RANK, H * (NOPE + VALUE)])]);
        }
        if il == 0 {
            b.ffn(il);
        } else {
            b.experts(il);
            b.shared_expert(il);
        }
    }
    b
}
