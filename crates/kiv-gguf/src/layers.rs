//! What kind of cache llama.cpp gives each layer.
//!
//! The file alone does not say: llama.cpp fills in defaults per architecture
//! (`load_arch_hparams`, `create_memory`). The tables here follow the pinned
//! llama.cpp and want another look when the pin moves.

use crate::error::{GgufError, Untierable};
use crate::hparams::Hparams;

/// Most layers that llama.cpp can hold.
const MAX_LAYERS: usize = 512;

/// What a layer keeps of the tokens it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Keys and values of the whole context: the kind that kiv tiers.
    Global,
    /// Keys and values of the newest tokens (a window, or llama4's chunk).
    SlidingWindow {
        /// Tokens of the window.
        n_swa: usize,
    },
    /// Nothing of its own: attends to the cache of an earlier layer.
    Shared {
        /// The layer that owns the cache.
        source: usize,
    },
    /// A state of constant size.
    Recurrent,
    /// Both a [`LayerKind::Global`] cache and a recurrent state (Falcon-H1).
    GlobalRecurrent,
    /// A latent key per token, of which the value is a view (MLA).
    KeyOnly,
    /// Nothing.
    None,
}

impl LayerKind {
    /// Whether kiv tiers the cache of such a layer.
    #[must_use]
    pub const fn is_tiered(self) -> bool {
        matches!(self, Self::Global | Self::GlobalRecurrent)
    }

    /// Stable name, for machine output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::SlidingWindow { .. } => "sliding_window",
            Self::Shared { .. } => "shared",
            Self::Recurrent => "recurrent",
            Self::GlobalRecurrent => "global_recurrent",
            Self::KeyOnly => "key_only",
            Self::None => "none",
        }
    }
}

impl std::fmt::Display for LayerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SlidingWindow { n_swa } => write!(f, "sliding_window({n_swa})"),
            Self::Shared { source } => write!(f, "shared({source})"),
            kind => f.write_str(kind.name()),
        }
    }
}

/// One layer, as its cache sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// Index, from 0.
    pub il: usize,
    /// What it keeps.
    pub kind: LayerKind,
    /// Query heads.
    pub n_head: usize,
    /// KV heads.
    pub n_head_kv: usize,
    /// Values of one head's key.
    pub key_dim: usize,
    /// Values of one head's value; 0 where none is kept
    /// ([`LayerKind::KeyOnly`]).
    pub value_dim: usize,
    /// Values (f32) of the recurrent state of one sequence, 0 without one.
    pub state_len: usize,
}

/// When, and how wide, an architecture slides.
#[derive(Clone, Copy)]
enum Window {
    /// Always; this wide if the file does not say (0: it must).
    Always(usize),
    /// If the file gives a width above 0.
    IfGiven,
    /// As [`Window::IfGiven`], but always this wide.
    IfGivenFixed(usize),
    /// Unless the file gives a width of 0, and always this wide.
    UnlessZero(usize),
}

/// Which layers slide, if the file has no pattern.
#[derive(Clone, Copy)]
enum Pattern {
    /// All but the last of every so many.
    GlobalLast(usize),
    /// All but the first of every so many.
    GlobalFirst(usize),
    /// The file must say, by an array.
    Array,
    /// All.
    All,
}

fn sliding(arch: &str, n_layer: usize) -> Option<(Window, Pattern)> {
    use Pattern::{All, Array, GlobalFirst, GlobalLast};
    use Window::{Always, IfGiven, IfGivenFixed, UnlessZero};
    Some(match arch {
        "gemma2" => (Always(4096), GlobalLast(2)),
        "gemma3" => (IfGiven, GlobalLast(6)),
        "gemma3n" => (Always(0), GlobalLast(5)),
        "gpt-oss" => (Always(0), GlobalLast(2)),
        "cohere2" | "exaone-moe" | "muse-glimmer" => (Always(0), GlobalLast(4)),
        "cohere2moe" => (Always(0), GlobalFirst(4)),
        "exaone4" if n_layer == 64 => (Always(4096), GlobalLast(4)),
        "afmoe" | "mellum" | "olmo2" => (IfGiven, GlobalLast(4)),
        "plamo3" => (IfGiven, GlobalLast(8)),
        "laguna" => (IfGiven, GlobalFirst(4)),
        "smallthinker" => (IfGivenFixed(4096), GlobalFirst(4)),
        "llama4" => (UnlessZero(8192), GlobalLast(4)),
        "lfm2" => (IfGiven, All),
        "deepseek4" => (Always(0), All),
        "gemma4" | "gemma4-assistant" | "granite_swa" | "maple" | "mimo2" | "spark2_5"
        | "step35" | "dots3note" => (Always(0), Array),
        // phi3 among others: a width in the file, which llama.cpp ignores.
        _ => return None,
    })
}

const ALWAYS_RECURRENT: [&str; 6] = ["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"];

/// Architectures that read all tokens at once and use no cache (llama.cpp
/// allocates one for `t5encoder` all the same).
const NO_CACHE: [&str; 17] = [
    "bert",
    "modern-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "eurobert",
    "gemma-embedding",
    "wavtokenizer-dec",
    "dream",
    "llada",
    "llada-moe",
    "rnd1",
    "clef",
    "t5encoder",
    "clip",
];

/// A layer's width in tokens where it slides, per layer.
fn windows(hp: &Hparams, n_layer: usize) -> Result<Vec<Option<usize>>, GgufError> {
    const WIDTH: &str = "attention.sliding_window";
    const PATTERN: &str = "attention.sliding_window_pattern";
    let none = vec![None; n_layer];
    let Some((window, pattern)) = sliding(hp.arch, n_layer) else {
        return Ok(none);
    };
    let given = hp.tokens(WIDTH)?;
    let width = match (window, given) {
        (Window::Always(0), None) => return Err(hp.missing(WIDTH)),
        (Window::Always(default), given) => given.unwrap_or(default),
        (Window::IfGiven | Window::IfGivenFixed(_), None | Some(0)) => return Ok(none),
        (Window::IfGiven, Some(width)) => width,
        (Window::UnlessZero(_), Some(0)) => return Ok(none),
        (Window::IfGivenFixed(width) | Window::UnlessZero(width), _) => width,
    };
    let flags = match pattern {
        Pattern::All => vec![true; n_layer],
        Pattern::Array => hp
            .flags(PATTERN, n_layer)?
            .ok_or_else(|| hp.missing(PATTERN))?,
        Pattern::GlobalLast(period) | Pattern::GlobalFirst(period) => {
            if let Some(flags) = hp.flags(PATTERN, n_layer)? {
                flags
            } else {
                let period = hp.size(PATTERN)?.unwrap_or(period);
                let global = if matches!(pattern, Pattern::GlobalFirst(_)) {
                    0
                } else {
                    period.wrapping_sub(1)
                };
                // A period of 0 means that all layers slide.
                (0..n_layer)
                    .map(|il| period == 0 || il % period != global)
                    .collect()
            }
        }
    };
    Ok(flags
        .into_iter()
        .map(|slides| slides.then_some(width))
        .collect())
}

/// Which layers are recurrent (`true`), of those that this file has.
fn recurrent(
    hp: &Hparams,
    n_layer: usize,
    n_all: usize,
    n_head_kv: &[usize],
    n_ff: &[usize],
) -> Result<Vec<bool>, GgufError> {
    const INTERVAL: &str = "full_attention_interval";
    let no_heads = |il: usize| n_head_kv[il] == 0;
    let every = match hp.arch {
        arch if ALWAYS_RECURRENT.contains(&arch) => return Ok(vec![true; n_layer]),
        "jamba" | "plamo2" | "granitehybrid" | "lfm2" | "lfm2moe" | "kimi-linear" | "kimi-k3"
        | "bailingmoe3" | "glm5-next" => return Ok((0..n_layer).map(no_heads).collect()),
        "nemotron_h" | "nemotron_h_moe" => {
            return Ok((0..n_layer)
                .map(|il| no_heads(il) && n_ff[il] == 0)
                .collect());
        }
        "qwen3next" | "qwen35" | "qwen35moe" | "qwen4exp" => 4,
        "minimax-01" => 8,
        _ => return Ok(vec![false; n_layer]),
    };
    const LAYERS: &str = "attention.recurrent_layers";
    if hp.is_array(LAYERS) {
        return Ok(hp
            .flags(LAYERS, n_all)?
            .unwrap_or_default()
            .into_iter()
            .take(n_layer)
            .collect());
    }
    let every = hp.size(INTERVAL)?.unwrap_or(every);
    if every == 0 {
        return Err(hp.bad(INTERVAL, "is 0, which cannot be"));
    }
    Ok((0..n_layer).map(|il| (il + 1) % every != 0).collect())
}

/// f32 values of one recurrent layer's state.
fn state_len(
    hp: &Hparams,
    n_embd: usize,
    n_head: usize,
    key_dim: usize,
) -> Result<usize, GgufError> {
    let get = |suffix| hp.size(suffix).map(Option::unwrap_or_default);
    let wkv = get("wkv.head_size")?;
    if wkv != 0 {
        let shifts = hp.size("token_shift_count")?.unwrap_or(2);
        return Ok(n_embd.saturating_mul(shifts + wkv));
    }
    let conv = get("ssm.conv_kernel")?;
    let lfm = get("shortconv.l_cache")?;
    let kda = get("kda.head_dim")?;
    let (inner, state) = (get("ssm.inner_size")?, get("ssm.state_size")?);
    let groups = get("ssm.group_count")?;
    let rolling = if lfm != 0 {
        n_embd * (lfm - 1)
    } else if kda != 0 {
        let taps = if conv == 0 { 3 } else { conv - 1 };
        (3 * taps).saturating_mul(n_head.saturating_mul(kda))
    } else {
        conv.saturating_sub(1)
            .saturating_mul(inner + (2 * groups).saturating_mul(state))
    };
    let linear = match hp.arch {
        "minimax-01" => key_dim,
        _ => kda,
    };
    let kept = if linear != 0 {
        linear.saturating_mul(linear).saturating_mul(n_head)
    } else {
        state * inner
    };
    Ok(rolling.saturating_add(kept))
}

/// Derives every layer of the model, multi-token-prediction layers left out.
pub(crate) fn layers(hp: &Hparams, n_embd: usize) -> Result<Vec<LayerInfo>, GgufError> {
    const LAYERS: &str = "block_count";
    const NEXTN: &str = "nextn_predict_layers";
    const HEADS: &str = "attention.head_count";
    let n_all = hp.size(LAYERS)?.ok_or_else(|| hp.missing(LAYERS))?;
    if n_all == 0 || n_all > MAX_LAYERS {
        return Err(hp.bad(LAYERS, format!("is {n_all}; 1 to {MAX_LAYERS} can be")));
    }
    let nextn = hp.size(NEXTN)?.unwrap_or(0);
    let n_layer = n_all
        .checked_sub(nextn)
        .ok_or_else(|| hp.bad(NEXTN, format!("is {nextn}, more than {n_all} layers")))?;

    let n_head = match hp.per_layer(HEADS, n_all)? {
        Some(n_head) => n_head,
        None if ALWAYS_RECURRENT.contains(&hp.arch) || NO_CACHE.contains(&hp.arch) => {
            vec![0; n_all]
        }
        None => return Err(hp.missing(HEADS)),
    };
    let n_head_kv = hp
        .per_layer("attention.head_count_kv", n_all)?
        .unwrap_or_else(|| n_head.clone());
    let n_ff = hp
        .per_layer("feed_forward_length", n_all)?
        .unwrap_or_else(|| vec![0; n_all]);

    // Only the first layer's heads count here, as in llama.cpp.
    let default_dim = n_embd.checked_div(n_head[0]).unwrap_or(0);
    let dim = |suffix, default| Ok::<_, GgufError>(hp.size(suffix)?.unwrap_or(default));
    let key = dim("attention.key_length", default_dim)?;
    let value = dim("attention.value_length", default_dim)?;
    let key_swa = dim("attention.key_length_swa", key)?;
    let value_swa = dim("attention.value_length_swa", value)?;
    let mla =
        dim("attention.key_length_mla", 0)? != 0 && dim("attention.value_length_mla", 0)? != 0;

    let windows = windows(hp, n_layer)?;
    let recurrent = recurrent(hp, n_layer, n_all, &n_head_kv, &n_ff)?;
    let state = state_len(hp, n_embd, n_head[0], key)?;
    let owners = owners(hp, n_all)?;

    let layers = (0..n_layer).map(|il| {
        let (key_dim, value_dim) = match windows[il] {
            Some(_) => (key_swa, value_swa),
            None => (key, value),
        };
        let kind = if NO_CACHE.contains(&hp.arch) {
            LayerKind::None
        } else if hp.arch == "falcon-h1" {
            LayerKind::GlobalRecurrent
        } else if recurrent[il] {
            LayerKind::Recurrent
        } else if n_head_kv[il] == 0 || (hp.arch.starts_with("nemotron_h") && n_ff[il] != 0) {
            LayerKind::None
        } else if il >= owners {
            LayerKind::Shared {
                source: owners - if windows[il].is_some() { 2 } else { 1 },
            }
        } else if mla {
            LayerKind::KeyOnly
        } else if let Some(n_swa) = windows[il] {
            LayerKind::SlidingWindow { n_swa }
        } else {
            LayerKind::Global
        };
        let has_state = matches!(kind, LayerKind::Recurrent | LayerKind::GlobalRecurrent);
        LayerInfo {
            il,
            kind,
            n_head: n_head[il],
            n_head_kv: n_head_kv[il],
            key_dim,
            value_dim: if kind == LayerKind::KeyOnly {
                0
            } else {
                value_dim
            },
            state_len: if has_state { state } else { 0 },
        }
    });
    let mut layers: Vec<_> = layers.collect();
    if hp.arch == "nanbeige" {
        // A looped model: the same layers again, each time with their own cache.
        let loops = hp.size("num_loops")?.unwrap_or(1);
        if loops == 0 || n_layer * loops > MAX_LAYERS {
            return Err(hp.bad("num_loops", format!("is {loops}, which cannot be")));
        }
        layers = (0..n_layer * loops)
            .map(|il| LayerInfo {
                il,
                ..layers[il % n_layer].clone()
            })
            .collect();
    }
    Ok(layers)
}

/// Layers from the start that own their cache; the rest share.
fn owners(hp: &Hparams, n_all: usize) -> Result<usize, GgufError> {
    const SHARED: &str = "attention.shared_kv_layers";
    let owners = match hp.arch {
        "gemma3n" => 20,
        "gemma4" => {
            let shared = hp.size(SHARED)?.unwrap_or(0);
            n_all
                .checked_sub(shared)
                .filter(|owners| *owners >= 2)
                .ok_or_else(|| hp.bad(SHARED, format!("is {shared} of {n_all} layers")))?
        }
        _ => usize::MAX,
    };
    Ok(owners)
}

/// Why a model of these layers cannot be tiered, if it cannot.
pub(crate) fn untierable(hp: &Hparams, layers: &[LayerInfo]) -> Option<Untierable> {
    let count = |f: fn(LayerKind) -> bool| layers.iter().filter(|l| f(l.kind)).count();
    Some(match hp.arch {
        "t5" => Untierable::EncoderDecoder,
        // It asks for a scale that such a file does not give, and aborts.
        "llama4" if hp.tokens("attention.sliding_window").ok().flatten() == Some(0) => {
            Untierable::Aborts
        }
        "eagle3" | "dflash" | "gemma4-assistant" => Untierable::Draft,
        arch if NO_CACHE.contains(&arch) => Untierable::NotGenerative,
        _ if hp.flag("attention.causal") == Some(false) => Untierable::NotGenerative,
        arch if ALWAYS_RECURRENT.contains(&arch) => Untierable::NoKvCache,
        "grok" => Untierable::NoFlashAttention,
        "bloom" | "refact" => Untierable::Alibi,
        // The 13B; its file does not say.
        "baichuan" if layers.len() == 40 => Untierable::Alibi,
        _ if hp
            .float("attention.max_alibi_bias")
            .is_some_and(|bias| bias > 0.0) =>
        {
            Untierable::Alibi
        }
        "deepseek4" | "minimax-m3" | "graniteswitch" => Untierable::OwnCache,
        _ if count(|k| k == LayerKind::KeyOnly) > 0 => Untierable::KeyOnly,
        _ if count(LayerKind::is_tiered) == 0 => Untierable::NoGlobalLayer,
        _ => return None,
    })
}
