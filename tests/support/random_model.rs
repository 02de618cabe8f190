//! Small models with random weights, of architectures whose caches differ.

use gguf_rs::writer::{GGUFWriter, MetadataValue, TensorInfo};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::path::Path;

/// Shape of a random model.
pub struct Shape {
    pub arch: &'static str,
    pub n_layer: u32,
    pub n_head: u32,
    pub n_head_kv: u32,
    pub head_dim: u32,
    /// Sliding window in tokens, 0 for none.
    pub n_swa: u32,
}

const N_EMBD: u64 = 128;
const N_FF: u64 = 256;

impl Shape {
    /// Writes the model, with the vocabulary of `vocab_from`.
    pub fn write(&self, path: &Path, vocab_from: &Path) {
        let mut writer = GGUFWriter::new(path, 3).unwrap();
        self.add_metadata(&mut writer);
        let n_vocab = add_vocabulary(&mut writer, vocab_from);
        let tensors = self.tensors(n_vocab);
        for (name, shape) in &tensors {
            writer.add_tensor(TensorInfo {
                name: name.clone(),
                shape: shape.clone(),
                dtype: 0,
            });
        }
        writer.write().unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(u64::from(self.n_layer + self.head_dim));
        for (index, (name, shape)) in tensors.iter().enumerate() {
            let norm = name.contains("norm");
            let n: u64 = shape.iter().product();
            // Large enough that attention has favourites.
            let value = |_| {
                if norm {
                    1.0
                } else {
                    rng.random_range(-0.2f32..0.2)
                }
            };
            let bytes: Vec<u8> = (0..n).map(value).flat_map(f32::to_le_bytes).collect();
            writer.write_tensor_data(index, &bytes).unwrap();
        }
        writer.finalize().unwrap();
    }

    fn add_metadata(&self, writer: &mut GGUFWriter) {
        let arch = self.arch;
        writer.add_metadata("general.architecture", arch);
        writer.add_metadata("general.name", "random weights");
        for (key, value) in [
            ("block_count", self.n_layer),
            ("context_length", 32_768),
            ("embedding_length", N_EMBD as u32),
            ("feed_forward_length", N_FF as u32),
            ("attention.head_count", self.n_head),
            ("attention.head_count_kv", self.n_head_kv),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
        ] {
            writer.add_metadata_u32(&format!("{arch}.{key}"), value);
        }
        if self.n_swa > 0 {
            writer.add_metadata_u32(&format!("{arch}.attention.sliding_window"), self.n_swa);
        }
        writer.add_metadata_f32(&format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-6);
        writer.add_metadata_f32(&format!("{arch}.rope.freq_base"), 10_000.0);
        if arch == "gemma2" {
            writer.add_metadata_f32("gemma2.attn_logit_softcapping", 20.0);
            writer.add_metadata_f32("gemma2.final_logit_softcapping", 30.0);
        }
    }

    fn tensors(&self, n_vocab: u64) -> Vec<(String, Vec<u64>)> {
        let (q, kv) = (
            u64::from(self.n_head * self.head_dim),
            u64::from(self.n_head_kv * self.head_dim),
        );
        let head = u64::from(self.head_dim);
        let mut tensors = vec![
            ("token_embd.weight".to_owned(), vec![N_EMBD, n_vocab]),
            ("output_norm.weight".to_owned(), vec![N_EMBD]),
        ];
        for il in 0..self.n_layer {
            let mut add = |name: &str, shape: Vec<u64>| {
                tensors.push((format!("blk.{il}.{name}.weight"), shape));
            };
            add("attn_norm", vec![N_EMBD]);
            add("attn_q", vec![N_EMBD, q]);
            add("attn_k", vec![N_EMBD, kv]);
            add("attn_v", vec![N_EMBD, kv]);
            add("attn_output", vec![q, N_EMBD]);
            add("ffn_norm", vec![N_EMBD]);
            add("ffn_gate", vec![N_EMBD, N_FF]);
            add("ffn_up", vec![N_EMBD, N_FF]);
            add("ffn_down", vec![N_FF, N_EMBD]);
            if self.arch.starts_with("gemma") {
                add("post_attention_norm", vec![N_EMBD]);
                add("post_ffw_norm", vec![N_EMBD]);
            }
            if self.arch == "gemma3" {
                add("attn_q_norm", vec![head]);
                add("attn_k_norm", vec![head]);
            }
        }
        tensors
    }
}

/// Copies the tokenizer; returns the size of the vocabulary.
fn add_vocabulary(writer: &mut GGUFWriter, from: &Path) -> u64 {
    let path = from.to_str().unwrap();
    let model = gguf_rs::get_gguf_container_array_size(path, u64::MAX)
        .unwrap()
        .decode()
        .unwrap();
    let mut n_vocab = 0;
    for (key, value) in model
        .metadata()
        .iter()
        .filter(|(key, _)| key.starts_with("tokenizer."))
    {
        match value {
            Value::String(text) => writer.add_metadata(key, text),
            Value::Bool(yes) => writer.add_metadata_bool(key, *yes),
            Value::Number(n) => writer.add_metadata_u32(key, n.as_u64().unwrap() as u32),
            Value::Array(items) => {
                let item = |value: &Value| match value {
                    Value::String(text) => MetadataValue::String(text.clone()),
                    other => MetadataValue::Int32(other.as_i64().unwrap() as i32),
                };
                writer.add_metadata_array(key, items.iter().map(item).collect());
                if key == "tokenizer.ggml.tokens" {
                    n_vocab = items.len() as u64;
                }
            }
            _ => {}
        }
    }
    n_vocab
}
