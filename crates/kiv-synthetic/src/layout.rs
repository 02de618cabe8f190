//! Metadata and tensors of a shape, named and typed as llama.cpp wants them.

use crate::Synthetic;
use crate::gguf::{Kind, Tensor, Value};
use crate::shapes::{Family, Gemma4, Shape};
use crate::vocab;
use crate::weights::Content;

/// `general.file_type` of Q4_K_M.
const Q4_K_M: u32 = 15;

/// Biases are small beside what they are added to.
const BIAS: Content = Content::Random(0.1);

/// What is written: a file's head and tensors.
pub(crate) struct Layout {
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<(Tensor, Content)>,
    arch: &'static str,
}

impl Layout {
    pub fn new(model: &Synthetic) -> Self {
        let shape = model.shape;
        let mut layout = Self {
            metadata: Vec::new(),
            tensors: Vec::new(),
            arch: shape.arch,
        };
        let general = [
            ("general.architecture", Value::Str(shape.arch.to_owned())),
            ("general.name", Value::Str(model.label())),
            ("general.file_type", Value::U32(Q4_K_M)),
            ("general.quantization_version", Value::U32(2)),
            // Told apart from files that another version of this crate made.
            ("kiv.synthetic.version", Value::U32(1)),
            ("kiv.synthetic.seed", Value::Str(model.seed.to_string())),
        ];
        let general = general.map(|(key, value)| (key.to_owned(), value));
        layout.metadata.extend(general);
        layout.keys(model);
        layout.metadata.extend(vocab::metadata(model.vocab));

        let (width, vocab) = (shape.width, model.vocab);
        let embedding = if shape.tied { Kind::Q6K } else { Kind::Q4K };
        layout.matrix("token_embd.weight", &[width, vocab], embedding);
        if !shape.tied {
            layout.matrix("output.weight", &[width, vocab], Kind::Q6K);
        }
        layout.ones("output_norm.weight", width);
        match &shape.family {
            Family::Llama { rope_factor } => {
                let factors = llama3_factors(shape, *rope_factor);
                layout.values("rope_freqs.weight", factors);
            }
            Family::Qwen2 => {}
            Family::Gemma4(gemma) => layout.gemma4_globals(model, gemma),
        }
        for il in 0..model.layers {
            layout.layer(model, il);
        }
        layout
    }

    fn set(&mut self, suffix: &str, value: Value) {
        self.metadata
            .push((format!("{}.{suffix}", self.arch), value));
    }

    fn keys(&mut self, model: &Synthetic) {
        let shape = model.shape;
        for (suffix, value) in [
            ("block_count", model.layers),
            ("context_length", shape.n_ctx),
            ("embedding_length", shape.width as u32),
            ("attention.head_count", shape.heads as u32),
            ("attention.head_count_kv", shape.kv_heads as u32),
            ("attention.key_length", shape.head as u32),
            ("attention.value_length", shape.head as u32),
            ("rope.dimension_count", shape.head as u32),
        ] {
            self.set(suffix, Value::U32(value));
        }
        self.set("rope.freq_base", Value::F32(shape.rope_base));
        self.set("attention.layer_norm_rms_epsilon", Value::F32(shape.eps));
        let Family::Gemma4(gemma) = &shape.family else {
            self.set("feed_forward_length", Value::U32(shape.ff as u32));
            return;
        };
        let layers = 0..model.layers;
        let widths = layers
            .clone()
            .map(|il| gemma.layer(shape, model.layers, il).ff as i32);
        self.set("feed_forward_length", Value::I32s(widths.collect()));
        let slides = layers.map(|il| gemma.layer(shape, model.layers, il).slides);
        self.set(
            "attention.sliding_window_pattern",
            Value::Bools(slides.collect()),
        );
        let head = gemma.head_swa as u32;
        for (suffix, value) in [
            ("attention.sliding_window", gemma.window),
            (
                "attention.shared_kv_layers",
                gemma.shared(shape, model.layers),
            ),
            ("attention.key_length_swa", head),
            ("attention.value_length_swa", head),
            ("rope.dimension_count_swa", head),
            ("embedding_length_per_layer_input", gemma.per_layer as u32),
        ] {
            self.set(suffix, Value::U32(value));
        }
        self.set("rope.freq_base_swa", Value::F32(gemma.rope_base_swa));
        self.set("final_logit_softcapping", Value::F32(gemma.cap));
    }

    /// A matrix whose products are about as large as what they are of.
    fn matrix(&mut self, name: &str, dims: &[u64], kind: Kind) {
        let deviation = 1.0 / (dims[0] as f32).sqrt();
        self.push(name, dims, kind, Content::Random(deviation));
    }

    fn ones(&mut self, name: &str, n: u64) {
        self.push(name, &[n], Kind::F32, Content::Constant(1.0));
    }

    fn values(&mut self, name: &str, values: Vec<f32>) {
        let n = values.len() as u64;
        self.push(name, &[n], Kind::F32, Content::Values(values));
    }

    fn push(&mut self, name: &str, dims: &[u64], kind: Kind, content: Content) {
        let tensor = Tensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            kind,
        };
        self.tensors.push((tensor, content));
    }

    fn gemma4_globals(&mut self, model: &Synthetic, gemma: &Gemma4) {
        let all = gemma.per_layer * u64::from(model.layers);
        let width = model.shape.width;
        let dims = [all, model.vocab];
        self.matrix("per_layer_token_embd.weight", &dims, Kind::Q6K);
        // Which the recipe leaves as it was converted.
        self.matrix("per_layer_model_proj.weight", &[width, all], Kind::Bf16);
        self.ones("per_layer_proj_norm.weight", gemma.per_layer);
        // Pairs divided by so much stand still.
        let turned = |i| if i < gemma.rotated { 1.0 } else { 1e30 };
        let factors = (0..model.shape.head / 2).map(turned).collect();
        self.values("rope_freqs.weight", factors);
    }

    fn layer(&mut self, model: &Synthetic, il: u32) {
        let shape = model.shape;
        let (e, layers) = (shape.width, model.layers);
        let gemma = match &shape.family {
            Family::Gemma4(gemma) => Some(gemma),
            _ => None,
        };
        let layer = gemma.map_or_else(
            || Layer::plain(shape, layers),
            |g| g.layer(shape, layers, il),
        );
        let (q, kv, ff) = (
            shape.heads * layer.head,
            shape.kv_heads * layer.head,
            layer.ff,
        );
        let name = |suffix: &str| format!("blk.{il}.{suffix}");
        let of_v = wide(il, layer.n_own);
        self.ones(&name("attn_norm.weight"), e);
        self.matrix(&name("attn_q.weight"), &[e, q], Kind::Q4K);
        if il < layer.n_own {
            self.matrix(&name("attn_k.weight"), &[e, kv], Kind::Q4K);
            self.matrix(&name("attn_v.weight"), &[e, kv], of_v);
        }
        self.matrix(&name("attn_output.weight"), &[q, e], Kind::Q4K);
        if matches!(shape.family, Family::Qwen2) {
            for (suffix, n) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                self.push(&name(&format!("{suffix}.bias")), &[n], Kind::F32, BIAS);
            }
        }
        self.ones(&name("ffn_norm.weight"), e);
        self.matrix(&name("ffn_gate.weight"), &[e, ff], Kind::Q4K);
        self.matrix(&name("ffn_up.weight"), &[e, ff], Kind::Q4K);
        self.matrix(&name("ffn_down.weight"), &[ff, e], wide(il, layers));
        let Some(gemma) = gemma else { return };
        self.ones(&name("attn_q_norm.weight"), layer.head);
        if il < layer.n_own {
            // Scores are not divided by the square root of a head's size.
            let scale = Content::Constant(1.0 / (layer.head as f32).sqrt());
            let dims = [layer.head];
            self.push(&name("attn_k_norm.weight"), &dims, Kind::F32, scale);
        }
        self.ones(&name("post_attention_norm.weight"), e);
        self.ones(&name("post_ffw_norm.weight"), e);
        let per_layer = gemma.per_layer;
        self.matrix(&name("inp_gate.weight"), &[e, per_layer], Kind::Q4K);
        self.matrix(&name("proj.weight"), &[per_layer, e], Kind::Q4K);
        self.ones(&name("post_norm.weight"), e);
    }
}

/// Q4_K_M's rule for values and for the feed-forward part's last matrix: the first and
/// last eighth of `n` get more bits, and every third in between.
fn wide(il: u32, n: u32) -> Kind {
    let edge = n / 8;
    let more = il < edge || il >= 7 * n / 8 || (il - edge) % 3 == 2;
    if more { Kind::Q6K } else { Kind::Q4K }
}

/// Sizes of one layer.
struct Layer {
    head: u64,
    ff: u64,
    slides: bool,
    /// Layers that have caches of their own.
    n_own: u32,
}

impl Layer {
    fn plain(shape: &Shape, layers: u32) -> Self {
        Self {
            head: shape.head,
            ff: shape.ff,
            slides: false,
            n_own: layers,
        }
    }
}

impl Gemma4 {
    /// Layer `il` of `layers`: when there are fewer than the real model has, the last
    /// one with a cache of its own sees everything still, as llama.cpp wants it.
    fn layer(&self, shape: &Shape, layers: u32, il: u32) -> Layer {
        let period = self.period.min(layers);
        let slides = il % period != period - 1;
        let n_own = layers - self.shared(shape, layers);
        Layer {
            head: if slides { self.head_swa } else { shape.head },
            ff: if il < n_own { shape.ff } else { self.ff_shared },
            slides,
            n_own,
        }
    }

    /// Layers of `layers` that use the caches of others.
    fn shared(&self, shape: &Shape, layers: u32) -> u32 {
        let period = self.period.min(layers);
        let own = self.own * layers / shape.layers / period * period;
        layers - own.max(period)
    }
}

/// RoPE's divisors of Llama 3: 1 for pairs that turn fast, `factor` for slow ones, and
/// in between what lies between (`low_freq_factor` 1, `high_freq_factor` 4,
/// `original_max_position_embeddings` 8192 in the config).
fn llama3_factors(shape: &Shape, factor: f32) -> Vec<f32> {
    const ORIGINAL: f64 = 8192.0;
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    let factor = f64::from(factor);
    // In more bits than are kept, so that they are the same on every machine.
    let divisor = |i| {
        let exponent = 2.0 * i as f64 / shape.head as f64;
        let period = std::f64::consts::TAU * f64::from(shape.rope_base).powf(exponent);
        let turns = ORIGINAL / period;
        let share = ((turns - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - share) / factor + share)) as f32
    };
    (0..shape.head / 2).map(divisor).collect()
}
