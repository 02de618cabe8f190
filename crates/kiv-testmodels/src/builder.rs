//! A model being described: metadata and tensors, before it has values.

use crate::vocab::{self, N_VOCAB};
use kiv_synthetic::gguf::{Kind, Tensor, Value};

/// Residual stream of every model.
pub const E: u64 = 128;
/// Feed-forward width.
pub const FF: u64 = 64;
/// Query heads, KV heads and head size where nothing else is said.
pub const H: u64 = 4;
/// KV heads.
pub const HKV: u64 = 2;
/// Head size.
pub const D: u64 = 32;
/// Values of all query heads.
pub const Q: u64 = H * D;
/// Values of all KV heads.
pub const KV: u64 = HKV * D;
/// Experts of a mixture, of which two are used.
pub const X: u64 = 4;
/// Sliding window in tokens.
pub const SWA: u32 = 32;

/// Metadata and tensors of one model.
#[derive(Clone, Debug)]
pub struct Builder {
    arch: &'static str,
    /// Metadata in the order of writing.
    pub metadata: Vec<(String, Value)>,
    /// Tensors in the order of writing.
    pub tensors: Vec<Tensor>,
}

impl Builder {
    /// A model with the usual metadata, an embedding and a last norm.
    pub fn new(arch: &'static str, n_layer: u32) -> Self {
        let mut b = Self {
            arch,
            metadata: vec![
                ("general.architecture".to_owned(), Value::Str(arch.into())),
                (
                    "general.name".to_owned(),
                    Value::Str("random weights".into()),
                ),
            ],
            tensors: Vec::new(),
        };
        for (suffix, value) in [
            ("block_count", n_layer),
            ("context_length", 131_072),
            ("embedding_length", E as u32),
            ("feed_forward_length", FF as u32),
            ("attention.head_count", H as u32),
            ("attention.head_count_kv", HKV as u32),
            ("attention.key_length", D as u32),
            ("attention.value_length", D as u32),
            ("rope.dimension_count", D as u32),
        ] {
            b.u32(suffix, value);
        }
        b.f32("attention.layer_norm_rms_epsilon", 1e-6);
        b.f32("attention.layer_norm_epsilon", 1e-6);
        b.f32("rope.freq_base", 10_000.0);
        b.metadata.extend(vocab::metadata());
        b.global("token_embd.weight", &[E, N_VOCAB]);
        b.global("output_norm.weight", &[E]);
        b
    }

    /// Sets a key of the architecture, in place of what it was.
    pub fn set(&mut self, suffix: &str, value: Value) {
        let key = format!("{}.{suffix}", self.arch);
        match self.metadata.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key, value)),
        }
    }

    /// Sets a number.
    pub fn u32(&mut self, suffix: &str, value: u32) {
        self.set(suffix, Value::U32(value));
    }

    /// Sets a float.
    pub fn f32(&mut self, suffix: &str, value: f32) {
        self.set(suffix, Value::F32(value));
    }

    /// Adds a tensor by its full name.
    pub fn global(&mut self, name: &str, dims: &[u64]) {
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            kind: Kind::F32,
        });
    }

    /// Removes a tensor that [`Builder::new`] added.
    pub fn without(&mut self, name: &str) {
        self.tensors.retain(|t| t.name != name);
    }

    /// Adds weights of a layer.
    pub fn layer(&mut self, il: u32, tensors: &[(&str, &[u64])]) {
        for (name, dims) in tensors {
            self.global(&format!("blk.{il}.{name}.weight"), dims);
        }
    }

    /// Adds tensors of a layer by names that are complete.
    pub fn layer_exact(&mut self, il: u32, tensors: &[(&str, &[u64])]) {
        for (name, dims) in tensors {
            self.global(&format!("blk.{il}.{name}"), dims);
        }
    }

    /// Projections of attention: `q` and `kv` values of all heads.
    pub fn attention(&mut self, il: u32, q: u64, kv: u64) {
        self.layer(
            il,
            &[
                ("attn_q", &[E, q]),
                ("attn_k", &[E, kv]),
                ("attn_v", &[E, kv]),
                ("attn_output", &[q, E]),
            ],
        );
    }

    /// Norms of queries and keys, of `dim` values.
    pub fn qk_norm(&mut self, il: u32, dim: u64) {
        self.layer(il, &[("attn_q_norm", &[dim]), ("attn_k_norm", &[dim])]);
    }

    /// Norms before attention and before the feed-forward part.
    pub fn norms(&mut self, il: u32) {
        self.layer(il, &[("attn_norm", &[E]), ("ffn_norm", &[E])]);
    }

    /// A gated feed-forward part.
    pub fn ffn(&mut self, il: u32) {
        self.layer(
            il,
            &[
                ("ffn_gate", &[E, FF]),
                ("ffn_up", &[E, FF]),
                ("ffn_down", &[FF, E]),
            ],
        );
    }

    /// A mixture of experts.
    pub fn experts(&mut self, il: u32) {
        self.layer(
            il,
            &[
                ("ffn_gate_inp", &[E, X]),
                ("ffn_gate_exps", &[E, FF, X]),
                ("ffn_up_exps", &[E, FF, X]),
                ("ffn_down_exps", &[FF, E, X]),
            ],
        );
    }

    /// The expert that every token takes.
    pub fn shared_expert(&mut self, il: u32) {
        self.layer(
            il,
            &[
                ("ffn_gate_shexp", &[E, FF]),
                ("ffn_up_shexp", &[E, FF]),
                ("ffn_down_shexp", &[FF, E]),
            ],
        );
    }

    /// Metadata of a mixture of experts.
    pub fn expert_keys(&mut self) {
        self.u32("expert_count", X as u32);
        self.u32("expert_used_count", 2);
        self.u32("expert_feed_forward_length", FF as u32);
    }
}
