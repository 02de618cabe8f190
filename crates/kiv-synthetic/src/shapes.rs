//! Shapes of real models, from the `config.json` files that their makers publish.

/// The shape of one model: what its weights' sizes follow from.
#[derive(Debug)]
pub struct Shape {
    /// Name on the command line, unique in [`SHAPES`].
    pub name: &'static str,
    /// Its maker's name for it.
    pub title: &'static str,
    /// Parameters as its model card says, in units of 10⁹ (of Gemma: without the
    /// per-layer embeddings, and only what reads text).
    pub billions: f64,
    /// `general.architecture` in llama.cpp's words.
    pub(crate) arch: &'static str,
    /// Layers.
    pub layers: u32,
    /// Values of the residual stream.
    pub(crate) width: u64,
    /// Query heads.
    pub(crate) heads: u64,
    /// KV heads.
    pub(crate) kv_heads: u64,
    /// Values of a head (of Gemma: in layers that see everything).
    pub(crate) head: u64,
    /// Feed-forward width.
    pub(crate) ff: u64,
    /// Tokens of the vocabulary.
    pub vocab: u64,
    /// Tokens that it was trained for.
    pub(crate) n_ctx: u32,
    /// RoPE's base.
    pub(crate) rope_base: f32,
    /// What norms add to the variance.
    pub(crate) eps: f32,
    /// Whether the last matrix is the embedding.
    pub(crate) tied: bool,
    /// What is peculiar.
    pub(crate) family: Family,
}

/// What a family of models has that others lack.
#[derive(Debug)]
pub(crate) enum Family {
    /// RoPE's low frequencies are slowed down (`rope_scaling` of type `llama3`).
    Llama {
        /// By so much.
        rope_factor: f32,
    },
    /// Biases of queries, keys and values.
    Qwen2,
    /// Sliding windows, shared caches, per-layer embeddings.
    Gemma4(Gemma4),
}

/// Sizes that only Gemma 4 has.
#[derive(Debug)]
pub(crate) struct Gemma4 {
    /// The last of so many layers sees everything, the others a window.
    pub period: u32,
    /// Tokens of the window.
    pub window: u32,
    /// Values of a head in layers with a window.
    pub head_swa: u64,
    /// RoPE's base in layers with a window.
    pub rope_base_swa: f32,
    /// First layers, which have caches of their own; later ones use theirs.
    pub own: u32,
    /// Feed-forward width of the later ones.
    pub ff_shared: u64,
    /// Values that a token brings to each layer.
    pub per_layer: u64,
    /// Of the pairs in a head of layers that see everything, those that RoPE turns.
    pub rotated: u64,
    /// The logits' soft cap.
    pub cap: f32,
}

/// Every shape there is.
pub static SHAPES: [Shape; 4] = [
    // meta-llama/Llama-3.2-3B, config.json and model card (3.21 B).
    Shape {
        name: "llama-3.2-3b",
        title: "Llama 3.2 3B",
        billions: 3.21,
        arch: "llama",
        layers: 28,
        width: 3072,
        heads: 24,
        kv_heads: 8,
        head: 128,
        ff: 8192,
        vocab: 128_256,
        n_ctx: 131_072,
        rope_base: 500_000.0,
        eps: 1e-5,
        tied: true,
        family: Family::Llama { rope_factor: 32.0 },
    },
    // Qwen/Qwen2.5-3B-Instruct, config.json and model card (3.09 B).
    Shape {
        name: "qwen2.5-3b",
        title: "Qwen2.5 3B",
        billions: 3.09,
        arch: "qwen2",
        layers: 36,
        width: 2048,
        heads: 16,
        kv_heads: 2,
        head: 128,
        ff: 11_008,
        vocab: 151_936,
        n_ctx: 32_768,
        rope_base: 1_000_000.0,
        eps: 1e-6,
        tied: true,
        family: Family::Qwen2,
    },
    // google/gemma-4-E2B, text_config of config.json, and model card (2.3 B effective,
    // that is without per-layer embeddings; 5.1 B with them and with what sees and hears).
    Shape {
        name: "gemma-4-e2b",
        title: "Gemma 4 E2B",
        billions: 2.3,
        arch: "gemma4",
        layers: 35,
        width: 1536,
        heads: 8,
        kv_heads: 1,
        head: 512,
        ff: 6144,
        vocab: 262_144,
        n_ctx: 131_072,
        rope_base: 1_000_000.0,
        eps: 1e-6,
        tied: true,
        family: Family::Gemma4(Gemma4 {
            period: 5,
            window: 512,
            head_swa: 256,
            rope_base_swa: 10_000.0,
            own: 15,
            ff_shared: 12_288,
            per_layer: 256,
            rotated: 64,
            cap: 30.0,
        }),
    },
    // meta-llama/Llama-3.1-8B, config.json and model card (8.03 B).
    Shape {
        name: "llama-3.1-8b",
        title: "Llama 3.1 8B",
        billions: 8.03,
        arch: "llama",
        layers: 32,
        width: 4096,
        heads: 32,
        kv_heads: 8,
        head: 128,
        ff: 14_336,
        vocab: 128_256,
        n_ctx: 131_072,
        rope_base: 500_000.0,
        eps: 1e-5,
        tied: false,
        family: Family::Llama { rope_factor: 8.0 },
    },
];

impl Shape {
    /// The shape of this name.
    ///
    /// # Errors
    /// Which names there are.
    pub fn by_name(name: &str) -> Result<&'static Self, String> {
        SHAPES.iter().find(|s| s.name == name).ok_or_else(|| {
            let names: Vec<_> = SHAPES.iter().map(|s| s.name).collect();
            format!("there are {}", names.join(", "))
        })
    }

    /// Fewest layers that llama.cpp loads: of Gemma one with a window and one without.
    pub(crate) fn fewest_layers(&self) -> u32 {
        match self.family {
            Family::Gemma4(_) => 2,
            _ => 1,
        }
    }
}
