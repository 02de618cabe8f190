//! Everything that can be wrong with a model file, each with a way out.

use std::io;
use std::path::PathBuf;

use kiv_policy::RowFormat;
use thiserror::Error;

/// Why a file cannot be inspected, or its model not be tiered.
///
/// Every message names the file and what to do about it.
#[derive(Debug, Error)]
pub enum GgufError {
    /// Nothing is there.
    #[error("{}: no such file: check the path given to -m", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// A directory, a pipe or a device.
    #[error("{}: is {what}, not a model file: name the .gguf file itself", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is, with its article.
        what: &'static str,
    },
    /// The operating system refused.
    #[error("{}: cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Zero bytes.
    #[error("{}: the file is empty: download it again", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The first four bytes are not `GGUF`.
    #[error("{}: not a GGUF file (it begins with {first}): {hint}", path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// Its first bytes, printable.
        first: String,
        /// What it looks like instead, and what to do.
        hint: &'static str,
    },
    /// Written for a big-endian machine.
    #[error(
        "{}: a big-endian GGUF, which llama.cpp cannot load here: get the little-endian file, or convert it with gguf_convert_endian.py",
        path.display()
    )]
    BigEndian {
        /// The file.
        path: PathBuf,
    },
    /// A version that llama.cpp does not load.
    #[error(
        "{}: GGUF version {version} is not supported (2 and 3 are): get a newer conversion of this model",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The file ends inside its header.
    #[error(
        "{}: truncated: its {has} bytes end inside the header: download it again",
        path.display()
    )]
    TruncatedHeader {
        /// The file.
        path: PathBuf,
        /// Bytes in the file.
        has: u64,
    },
    /// The file ends inside its weights.
    #[error(
        "{}: truncated: has {has} bytes, needs {needs}: download it again",
        path.display()
    )]
    TruncatedData {
        /// The file.
        path: PathBuf,
        /// Bytes in the file.
        has: u64,
        /// End of the last tensor.
        needs: u64,
    },
    /// The header contradicts itself.
    #[error("{}: damaged header: {detail}: download it again", path.display())]
    BadHeader {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A tensor type that this llama.cpp does not know.
    #[error(
        "{}: tensor {tensor} has ggml type {kind}, which this llama.cpp does not know (or has dropped): get another quantization of this model",
        path.display()
    )]
    TensorType {
        /// The file.
        path: PathBuf,
        /// First tensor of that type.
        tensor: String,
        /// The type's number.
        kind: u32,
    },
    /// A key that llama.cpp requires.
    #[error(
        "{}: required key {key} is missing: get a newer conversion of this model",
        path.display()
    )]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A key with a value that cannot be.
    #[error("{}: key {key} {detail}: get another conversion of this model", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with its value.
        detail: String,
    },
    /// One part of a split model is not there.
    #[error(
        "{}: split {number} of {count} is missing: put it next to {}",
        path.display(), first.display()
    )]
    MissingSplit {
        /// The missing file.
        path: PathBuf,
        /// The first split.
        first: PathBuf,
        /// Number of the missing split, from 1.
        number: usize,
        /// Number of splits.
        count: usize,
    },
    /// A later part of a split model was named.
    #[error(
        "{}: split {number} of a model: name the first one, {}",
        path.display(), first.display()
    )]
    NotFirstSplit {
        /// The file.
        path: PathBuf,
        /// The first split.
        first: PathBuf,
        /// Number of this split, from 1.
        number: usize,
    },
    /// A split whose siblings cannot be found by name.
    #[error(
        "{}: split {number} of {count}, but not named like that: rename it to NAME-{number:05}-of-{count:05}.gguf, or merge the splits with llama-gguf-split --merge",
        path.display()
    )]
    SplitName {
        /// The file.
        path: PathBuf,
        /// Number of this split, from 1.
        number: u64,
        /// Number of splits.
        count: usize,
    },
    /// A file where a split should be that is none, or another one.
    #[error(
        "{}: not split {number} of {count}, as its name says{}: rename or download it again",
        path.display(),
        holds.map_or(String::new(), |other| format!(", but split {other}"))
    )]
    OtherSplit {
        /// The file.
        path: PathBuf,
        /// Number of the split that should be there, from 1.
        number: usize,
        /// Number of splits.
        count: usize,
        /// Number of the split that is there, if it is one.
        holds: Option<u64>,
    },
    /// A GGUF that holds something other than a language model.
    #[error("{}: {what}, not a language model: pass the model itself to -m", path.display())]
    NotAModel {
        /// The file.
        path: PathBuf,
        /// What it is, with its article.
        what: &'static str,
    },
    /// A cache type that does not divide this model's heads.
    #[error(
        "{}: {flag} {format} needs head sizes that are multiples of {group}, but layer {il} has {dim}: use {flag} f16",
        path.display()
    )]
    CacheType {
        /// The file.
        path: PathBuf,
        /// `-ctk` or `-ctv`.
        flag: &'static str,
        /// The type.
        format: RowFormat,
        /// Values that share a scale in it.
        group: usize,
        /// First layer that it does not fit.
        il: usize,
        /// That layer's head size.
        dim: usize,
    },
    /// A model whose cache cannot be tiered now.
    #[error(
        "{}: cannot {} this {arch} model: {reason}: {}use another model",
        path.display(),
        if reason.runs_untiered() { "tier the cache of" } else { "run" },
        if reason.runs_untiered() { "run it with --kv-policy full, or " } else { "" }
    )]
    NotTierable {
        /// The file.
        path: PathBuf,
        /// Its architecture.
        arch: String,
        /// Why.
        reason: Untierable,
    },
}

/// Why a model's cache cannot be tiered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Untierable {
    /// No weights in the file.
    #[error("the file holds a vocabulary only")]
    VocabOnly,
    /// An embedding or diffusion model, an audio decoder, …
    #[error("it does not generate text token by token")]
    NotGenerative,
    /// The helper of a speculative pair.
    #[error("it is a draft head that only works inside another model's context")]
    Draft,
    /// Purely recurrent: constant memory already.
    #[error("it is recurrent and has no KV cache to tier")]
    NoKvCache,
    /// MLA: a latent key, and the value is a view of it.
    #[error("it keeps a latent key without values (MLA)")]
    KeyOnly,
    /// Cross-attention.
    #[error("it is an encoder-decoder model")]
    EncoderDecoder,
    /// The bias depends on positions that slots do not keep.
    #[error("its attention has a positional bias (ALiBi), which moved tokens would break")]
    Alibi,
    /// The hook sits on flash attention.
    #[error("llama.cpp runs it without flash attention, which the hook needs")]
    NoFlashAttention,
    /// Sparse attention of its own, or cache layers that other layers steer.
    #[error("llama.cpp gives it a special cache of its own")]
    OwnCache,
    /// llama.cpp ends the program as soon as a token is computed.
    #[error("the pinned llama.cpp crashes on it (llama4 without chunked attention)")]
    Aborts,
    /// Nothing grows with the context.
    #[error("no layer of it attends to the whole context")]
    NoGlobalLayer,
}

impl Untierable {
    /// Whether the model generates text all the same, with stock llama.cpp's
    /// cache.
    #[must_use]
    pub const fn runs_untiered(self) -> bool {
        !matches!(
            self,
            Self::VocabOnly
                | Self::NotGenerative
                | Self::Draft
                | Self::EncoderDecoder
                | Self::Aborts
        )
    }
}
