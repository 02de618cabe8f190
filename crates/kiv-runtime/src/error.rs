//! What can go wrong, as types. Messages say what, which file or flag, and
//! what to do.

use kiv_context::ContextError;
use kiv_gguf::GgufError;
use kiv_policy::{ColdError, InvalidSelection, PolicyError, RowFormat};
use kiv_pool::PoolError;
use kiv_store::StoreError;
use std::path::PathBuf;
use thiserror::Error;

/// An error of the runtime. A session that returned one is still whole: the
/// micro-batch that failed has been taken back. Where that cannot be, it says
/// [`Error::Broken`] from then on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The model file cannot be loaded.
    #[error("cannot load {}: {reason}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// llama.cpp's reason.
        reason: String,
    },
    /// The model loads but its cache cannot be tiered.
    #[error("this model's attention cannot be hooked: {reason}. It runs with --kv-policy full")]
    Unhookable {
        /// What is in the way.
        reason: String,
    },
    /// llama.cpp stores rows where others are: there is a mistake in kiv.
    #[error(
        "llama.cpp stores to cells of the cache that are in use, and what they held is lost: {cells:?}. \
         That is a mistake in kiv: please report it with the model's name"
    )]
    CellsInUse {
        /// Where it stores.
        cells: Vec<u32>,
    },
    /// The model cannot generate text.
    #[error("this model cannot generate text: {reason}")]
    NotGenerative {
        /// What it is.
        reason: String,
    },
    /// llama.cpp made no context.
    #[error("cannot make a context (K cache {type_k}, V cache {type_v}): {reason}")]
    Context {
        /// K cache type.
        type_k: RowFormat,
        /// V cache type.
        type_v: RowFormat,
        /// llama.cpp's reason.
        reason: String,
    },
    /// The pool's numbers do not fit together.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// llama.cpp picks RoPE factors by the size of its context, which is the
    /// pool here: it would pick those for short texts.
    #[error(
        "this model takes other RoPE factors beyond {n_ctx_orig} tokens, and --ctx-size {n_ctx} \
         is beyond while the resident pool of {pool} is not: raise --kv-window until the pool is \
         larger than {n_ctx_orig}, lower --ctx-size to that, or use --kv-pos remapped or \
         --kv-policy full"
    )]
    LongRope {
        /// Tokens asked for.
        n_ctx: usize,
        /// Cells of the pool.
        pool: usize,
        /// Longest context of the short factors.
        n_ctx_orig: usize,
    },
    /// A setting of RoPE that nothing can be computed with.
    #[error("{flag} {value} cannot be: it must be a number above 0, or 0 for the model's own")]
    Rope {
        /// Command-line flag of the value.
        flag: &'static str,
        /// What was given.
        value: f32,
    },
    /// Far tokens cannot be moved near.
    #[error("positions cannot be remapped (--kv-pos): {why}")]
    CannotRemap {
        /// Why, and what to do.
        why: String,
    },
    /// The text does not fit.
    #[error(
        "the context is full: {used} tokens are read, {more} more do not fit --ctx-size {n_ctx}; \
         raise it or take a shorter text"
    )]
    ContextFull {
        /// Tokens read.
        used: usize,
        /// Tokens to come.
        more: usize,
        /// The context's size.
        n_ctx: usize,
    },
    /// Nothing to read.
    #[error("nothing to read: the prompt has no tokens")]
    NoTokens,
    /// Nothing to continue: nothing has been read since the session was made,
    /// cut back, or failed.
    #[error("nothing to continue: read something first")]
    NoLogits,
    /// Logits that are not kept.
    #[error(
        "only the last token's logits are kept: build the session with all_logits for those of \
         every token"
    )]
    OnlyLast,
    /// A grammar that llama.cpp does not take.
    #[error("the grammar cannot be used: {why}")]
    Grammar {
        /// Its reason.
        why: String,
    },
    /// A parameter of [`crate::Sampling`] out of its range.
    #[error("{name} {value} cannot be: it must be {range}")]
    Sampling {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: f32,
        /// What can be.
        range: &'static str,
    },
    /// What the model computes has become NaN.
    #[error(
        "the model's logits are not numbers: its file is damaged (kiv verify), or --rope-freq-base \
         or --rope-freq-scale is nothing that it can compute with"
    )]
    NotNumbers,
    /// A token number that the vocabulary does not have.
    #[error("token {token} is not in the vocabulary of {n_vocab}")]
    BadToken {
        /// The number.
        token: i32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// No policy of this name.
    #[error("no policy `{name}`: there are full, {}", kiv_policies::NAMES.join(", "))]
    UnknownPolicy {
        /// The name.
        name: String,
    },
    /// The policy cannot take over from another.
    #[error("policy `{policy}` cannot take over: {why}")]
    OtherPolicy {
        /// Its name.
        policy: String,
        /// Why.
        why: String,
    },
    /// The policy failed.
    #[error("policy `{policy}` failed in layer {il}")]
    Policy {
        /// Its name.
        policy: String,
        /// llama.cpp's layer index.
        il: u32,
        /// Why.
        source: PolicyError,
    },
    /// The policy's answer breaks its contract.
    #[error("policy `{policy}` gave an invalid selection in layer {il}")]
    Selection {
        /// Its name.
        policy: String,
        /// llama.cpp's layer index.
        il: u32,
        /// The breach.
        source: InvalidSelection,
    },
    /// The cold store failed.
    #[error("cannot store what leaves the recent window")]
    Store(#[from] StoreError),
    /// Sealed rows could not be read.
    #[error("cannot read what has left the recent window")]
    Cold(#[from] ColdError),
    /// The GPU did not bring blocks into the cache.
    #[error("the GPU could not swap in what has left the recent window")]
    Gpu(#[source] kiv_cuda::PoolError),
    /// A type for cold rows that rows of this length cannot have.
    #[error(
        "heads of {dim} values cannot be stored as {format}, which takes {} at a time: \
         use --kv-store f16",
        format.group_len()
    )]
    StoreType {
        /// The type asked for.
        format: RowFormat,
        /// Values in a row.
        dim: usize,
    },
    /// The context on disk failed.
    #[error(transparent)]
    Disk(Box<ContextError>),
    /// A part of the context on disk is whole, but not what was expected.
    #[error(
        "the {what} of the context cannot be taken up: {why} (--kv-dir). Read the text again into \
         another folder"
    )]
    Resume {
        /// Which part.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The context on disk is longer than what was asked for.
    #[error("the context holds {stored} tokens (--kv-dir), more than --ctx-size {n_ctx}: raise it")]
    ContextLonger {
        /// Its tokens.
        stored: usize,
        /// The context's size.
        n_ctx: usize,
    },
    /// Something that needs a context on disk.
    #[error("the session is not kept on disk: give a folder (--kv-dir)")]
    NoContext,
    /// A context on disk under a policy or model that cannot have one.
    #[error("a context cannot be kept on disk (--kv-dir) {why}")]
    NotKept {
        /// Why, as the end of the sentence.
        why: String,
    },
    /// The model file's header could not be read again.
    #[error(transparent)]
    Gguf(Box<GgufError>),
    /// llama.cpp failed on a micro-batch.
    #[error("llama.cpp failed at position {position}: {reason}")]
    Decode {
        /// First position of the micro-batch.
        position: usize,
        /// Its reason.
        reason: String,
    },
    /// Something that only a new session can do.
    #[error("the session has already read something")]
    NotEmpty,
    /// A cut that would need rows that nobody has any more: of a policy that drops them,
    /// or of sliding-window layers, which is llama.cpp's own way.
    #[error(
        "cannot cut the sequence back to {to} tokens: what is before {window_first} has left \
         the window"
    )]
    TruncateTooFar {
        /// Tokens to keep.
        to: usize,
        /// First position that is still resident.
        window_first: usize,
    },
    /// A model that cannot forget its latest tokens.
    #[error("this model keeps a recurrent state: its sequence cannot be cut back to any place")]
    CannotTruncate,
    /// Something failed half-way: a micro-batch on a model that cannot forget its latest
    /// tokens, a cut, a change of the policy. [`crate::Session::clear`] begins anew.
    #[error(
        "the session is lost: something failed half-way and could not be taken back. Its text has \
         to be read again"
    )]
    Broken,
    /// A chat template that cannot be used.
    #[error("chat template: {0}")]
    Template(String),
    /// The caller asked to stop.
    #[error("interrupted after {read} of {total} tokens")]
    Interrupted {
        /// Tokens read.
        read: usize,
        /// Tokens to read.
        total: usize,
    },
}

impl From<ContextError> for Error {
    fn from(error: ContextError) -> Self {
        Self::Disk(Box::new(error))
    }
}

impl From<GgufError> for Error {
    fn from(error: GgufError) -> Self {
        Self::Gguf(Box::new(error))
    }
}
