//! Models with recurrent layers, without a cache, or with an encoder.

use crate::Spec;
use crate::builder::{Builder, D, E, FF, H, HKV, KV, Q};
use kiv_synthetic::gguf::Value;

pub const SPECS: &[Spec] = &[
    Spec {
        name: "mamba",
        about: "recurrent only",
        build: mamba,
    },
    Spec {
        name: "jamba",
        about: "attention and Mamba layers",
        build: jamba,
    },
    Spec {
        name: "lfm2",
        about: "attention and short convolutions",
        build: lfm2,
    },
    Spec {
        name: "qwen3next",
        about: "attention and linear attention, experts",
        build: qwen3next,
    },
    Spec {
        name: "falcon-h1",
        about: "attention and Mamba in every layer",
        build: falcon_h1,
    },
    Spec {
        name: "bert",
        about: "embeddings only",
        build: bert,
    },
    Spec {
        name: "t5",
        about: "encoder and decoder",
        build: t5,
    },
];

/// Sizes of Mamba's state.
const CONV: u64 = 4;
const INNER: u64 = 2 * E;
const STATE: u64 = 16;
const RANK: u64 = 8;

fn ssm_keys(b: &mut Builder, inner: u64, state: u64, rank: u64) {
    b.u32("ssm.conv_kernel", CONV as u32);
    b.u32("ssm.inner_size", inner as u32);
    b.u32("ssm.state_size", state as u32);
    b.u32("ssm.time_step_rank", rank as u32);
}

fn mamba_layer(b: &mut Builder, il: u32) {
    b.layer(
        il,
        &[
            ("ssm_in", &[E, 2 * INNER]),
            ("ssm_conv1d", &[CONV, INNER]),
            ("ssm_x", &[INNER, RANK + 2 * STATE]),
            ("ssm_dt", &[RANK, INNER]),
            ("ssm_out", &[INNER, E]),
        ],
    );
    b.layer_exact(
        il,
        &[
            ("ssm_conv1d.bias", &[INNER]),
            ("ssm_dt.bias", &[INNER]),
            ("ssm_a", &[STATE, INNER]),
            ("ssm_d", &[INNER]),
        ],
    );
}

fn mamba() -> Builder {
    let mut b = Builder::new("mamba", 2);
    b.u32("feed_forward_length", 0);
    b.u32("attention.head_count", 0);
    b.u32("attention.head_count_kv", 0);
    ssm_keys(&mut b, INNER, STATE, RANK);
    for il in 0..2 {
        b.layer(il, &[("attn_norm", &[E])]);
        mamba_layer(&mut b, il);
    }
    b
}

/// KV heads of layers that attend (odd ones), none in the others.
fn every_second(b: &mut Builder, n_layer: u32) {
    let heads = (0..n_layer).map(|il| if il % 2 == 1 { HKV as i32 } else { 0 });
    b.set("attention.head_count_kv", Value::I32s(heads.collect()));
}

fn jamba() -> Builder {
    let mut b = Builder::new("jamba", 4);
    ssm_keys(&mut b, INNER, STATE, RANK);
    every_second(&mut b, 4);
    for il in 0..4 {
        b.norms(il);
        b.ffn(il);
        if il % 2 == 1 {
            b.attention(il, Q, KV);
        } else {
            mamba_layer(&mut b, il);
            b.layer(
                il,
                &[
                    ("ssm_dt_norm", &[RANK]),
                    ("ssm_b_norm", &[STATE]),
                    ("ssm_c_norm", &[STATE]),
                ],
            );
        }
    }
    b
}

fn lfm2() -> Builder {
    const TAPS: u64 = 3;
    let mut b = Builder::new("lfm2", 4);
    b.u32("shortconv.l_cache", TAPS as u32);
    every_second(&mut b, 4);
    b.without("output_norm.weight");
    b.global("token_embd_norm.weight", &[E]);
    for il in 0..4 {
        b.norms(il);
        b.ffn(il);
        if il % 2 == 1 {
            b.attention(il, Q, KV);
            b.qk_norm(il, D);
        } else {
            b.layer(
                il,
                &[
                    ("shortconv.conv", &[TAPS, E]),
                    ("shortconv.in_proj", &[E, 3 * E]),
                    ("shortconv.out_proj", &[E, E]),
                ],
            );
        }
    }
    b
}

fn qwen3next() -> Builder {
    // Key heads, value heads, and values of either.
    const GROUPS: u64 = 2;
    const HEADS: u64 = 4;
    const DIM: u64 = 32;
    let (keys, values) = (GROUPS * DIM, HEADS * DIM);
    let mut b = Builder::new("qwen3next", 4);
    b.expert_keys();
    b.u32("expert_shared_feed_forward_length", FF as u32);
    ssm_keys(&mut b, values, DIM, HEADS);
    b.u32("ssm.group_count", GROUPS as u32);
    for il in 0..4 {
        b.layer(il, &[("attn_norm", &[E]), ("post_attention_norm", &[E])]);
        b.experts(il);
        b.shared_expert(il);
        b.layer(il, &[("ffn_gate_inp_shexp", &[E])]);
        if il == 3 {
            // Each query head comes with a gate of its size.
            b.layer(
                il,
                &[
                    ("attn_q", &[E, 2 * Q]),
                    ("attn_k", &[E, KV]),
                    ("attn_v", &[E, KV]),
                    ("attn_output", &[Q, E]),
                ],
            );
            b.qk_norm(il, D);
        } else {
            b.layer(
                il,
                &[
                    ("attn_qkv", &[E, 2 * keys + values]),
                    ("attn_gate", &[E, values]),
                    ("ssm_conv1d", &[CONV, 2 * keys + values]),
                    ("ssm_ba", &[E, 2 * HEADS]),
                    ("ssm_norm", &[DIM]),
                    ("ssm_out", &[values, E]),
                ],
            );
            b.layer_exact(il, &[("ssm_dt.bias", &[HEADS]), ("ssm_a", &[HEADS])]);
        }
    }
    b
}

fn falcon_h1() -> Builder {
    const HEADS: u64 = 8;
    let conv = INNER + 2 * STATE;
    let mut b = Builder::new("falcon-h1", 2);
    ssm_keys(&mut b, INNER, STATE, HEADS);
    b.u32("ssm.group_count", 1);
    for il in 0..2 {
        b.attention(il, Q, KV);
        b.ffn(il);
        b.layer(
            il,
            &[
                ("attn_norm", &[E]),
                ("ssm_in", &[E, INNER + conv + HEADS]),
                ("ssm_conv1d", &[CONV, conv]),
                ("ssm_norm", &[INNER, 1]),
                ("ssm_out", &[INNER, E]),
            ],
        );
        b.layer_exact(
            il,
            &[
                ("ffn_norm", &[E]),
                ("ssm_conv1d.bias", &[conv]),
                ("ssm_dt.bias", &[HEADS]),
                ("ssm_a", &[1, HEADS]),
                ("ssm_d", &[1, HEADS]),
            ],
        );
    }
    b
}

fn bert() -> Builder {
    const LENGTH: u64 = 512;
    let mut b = Builder::new("bert", 2);
    b.u32("context_length", LENGTH as u32);
    b.u32("attention.head_count_kv", H as u32);
    b.set("attention.causal", Value::Bool(false));
    b.metadata
        .push(("tokenizer.ggml.token_type_count".into(), Value::U32(2)));
    b.without("output_norm.weight");
    b.global("token_types.weight", &[E, 2]);
    b.global("position_embd.weight", &[E, LENGTH]);
    b.global("token_embd_norm.weight", &[E]);
    b.global("token_embd_norm.bias", &[E]);
    for il in 0..2 {
        b.attention(il, Q, Q);
        b.layer(
            il,
            &[
                ("attn_output_norm", &[E]),
                ("layer_output_norm", &[E]),
                ("ffn_up", &[E, FF]),
                ("ffn_down", &[FF, E]),
            ],
        );
        b.layer_exact(
            il,
            &[
                ("attn_output_norm.bias", &[E]),
                ("layer_output_norm.bias", &[E]),
            ],
        );
    }
    b
}

fn t5() -> Builder {
    const BUCKETS: u64 = 8;
    let mut b = Builder::new("t5", 2);
    b.u32("attention.head_count_kv", H as u32);
    b.u32("attention.relative_buckets_count", BUCKETS as u32);
    b.u32("decoder_start_token_id", 0);
    b.without("output_norm.weight");
    b.global("enc.output_norm.weight", &[E]);
    b.global("dec.output_norm.weight", &[E]);
    for il in 0..2 {
        for (side, kinds) in [("enc", &["attn"][..]), ("dec", &["attn", "cross_attn"])] {
            let mut add = |name: &str, dims: &[u64]| {
                b.global(&format!("{side}.blk.{il}.{name}.weight"), dims);
            };
            for kind in kinds {
                add(&format!("{kind}_norm"), &[E]);
                for matrix in ["q", "k", "v", "o"] {
                    add(&format!("{kind}_{matrix}"), &[E, E]);
                }
            }
            add("attn_rel_b", &[H, BUCKETS]);
            add("ffn_norm", &[E]);
            add("ffn_gate", &[E, FF]);
            add("ffn_up", &[E, FF]);
            add("ffn_down", &[FF, E]);
        }
    }
    b
}
