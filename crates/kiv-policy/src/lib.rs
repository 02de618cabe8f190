//! The plug-in interface of kiv.
//!
//! A *policy* decides which blocks of the past are resident while a layer
//! attends. The runtime does everything else: it watches llama.cpp compute,
//! seals blocks that leave the recent window into the cold store, asks the
//! policy before each layer's attention, and copies what is missing into the
//! slots. This crate holds the interface only, so that a policy author never
//! builds llama.cpp.
//!
//! # Life of a policy
//! 1. [`Policy::start`] once, with the [`Geometry`] of the model and pool.
//! 2. [`Policy::seal`] for every (layer, KV head) whenever blocks leave the
//!    window, then [`Policy::sealed`] once. Block ids count from 0 without gaps.
//! 3. [`Policy::select`] before a layer's attention, in prefill once per
//!    micro-batch, in decode once per token.
//! 4. [`Policy::truncate`] when the sequence is cut back.
//!
//! # Words
//! A *block* is [`Geometry::block`] consecutive tokens. Block `b` holds the
//! positions `first_position + b * block ..`. A *slot* is room for one block
//! on the compute device, per layer and KV head. A *query group* is the
//! `n_head / n_head_kv` query heads that share a KV head (grouped-query
//! attention, Ainslie et al., arXiv 2305.13245).
//!
//! An implementation can be run through [`conformance::check`].

mod cold;
pub mod conformance;
mod helpers;
mod rows;
mod selection;

pub use cold::{ColdError, ColdRows, ColdRun, RowsOf};
pub use helpers::{Alone, Helpers, Spawned};
pub use rows::{RowFormat, Rows};
pub use selection::{InvalidSelection, Rest, Selection};

use thiserror::Error;

/// Number of a sealed block, from 0 at the end of the attention sinks.
pub type BlockId = u32;

/// Why a policy could not do what it was asked.
///
/// The runtime stops the current micro-batch, takes it back, and returns this
/// to the caller with the layer it happened in.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct PolicyError(pub String);

/// One layer whose cache is tiered.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerGeometry {
    /// llama.cpp's layer index, for messages; policies count layers from 0.
    pub il: u32,
    /// Query heads.
    pub n_head: usize,
    /// KV heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Values in a K row of one head, and in a query of one head.
    pub key_dim: usize,
    /// Values in a V row of one head.
    pub value_dim: usize,
    /// Attention logits are `scale * (q . k)`, before any soft cap.
    pub scale: f32,
    /// Logits are squashed to `cap * tanh(logit / cap)` (Gemma 2), if at all.
    pub soft_cap: Option<f32>,
}

impl LayerGeometry {
    /// Query heads per KV head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.n_head / self.n_head_kv
    }
}

/// What a policy must know before the first token.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    /// Tiered layers in model order.
    pub layers: Vec<LayerGeometry>,
    /// Tokens in a block.
    pub block: usize,
    /// Slots per layer and KV head: the most blocks one selection may name.
    pub n_slots: usize,
    /// Position of the first token of block 0 (the number of sinks).
    pub first_position: usize,
    /// Type of cold K rows: the cache's, or another that they are stored in.
    pub key_format: RowFormat,
    /// Type of cold V rows.
    pub value_format: RowFormat,
    /// Threads that a policy may use while the model waits for it; while it computes, a few
    /// of its own, for what need not be done at once.
    pub n_threads: usize,
}

/// Blocks that have just left the recent window, of one layer and KV head.
#[derive(Clone, Copy, Debug)]
pub struct SealedBlocks<'a> {
    /// Index into [`Geometry::layers`].
    pub layer: usize,
    /// KV head.
    pub kv_head: usize,
    /// Id of the first of these blocks.
    pub first: BlockId,
    /// How many.
    pub count: usize,
    /// K rows `[count * block, key_dim]`, rotated by their positions (post-RoPE),
    /// as the cold store will give them back.
    pub keys: Rows<'a>,
    /// V rows `[count * block, value_dim]`.
    pub values: Rows<'a>,
}

/// The resident tokens that are not in slots: sinks, recent window and the
/// micro-batch itself. They are attended in any case; a policy may want their
/// scores, because a query that attends to its neighbours needs no slot.
pub trait LocalRows: Sync {
    /// Positions, ascending.
    fn positions(&self) -> &[i32];

    /// K rows of one KV head as numbers: `out` becomes
    /// `[positions().len(), key_dim]`.
    ///
    /// # Panics
    /// If `kv_head` is out of range.
    fn keys(&self, kv_head: usize, out: &mut Vec<f32>);

    /// As [`LocalRows::keys`], appending only the rows from `positions()[first]`
    /// on: for policies that keep the others from step to step.
    ///
    /// # Panics
    /// If `kv_head` or `first` is out of range.
    fn keys_from(&self, kv_head: usize, first: usize, out: &mut Vec<f32>) {
        let mut all = Vec::new();
        self.keys(kv_head, &mut all);
        let n = self.positions().len();
        assert!(first <= n, "row {first} of {n}");
        out.extend_from_slice(&all[all.len() / n.max(1) * first..]);
    }
}

/// The queries of one layer and micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `[n_tokens, n_head, key_dim]`, row-major, rotated by their positions.
    pub values: &'a [f32],
    /// Query heads.
    pub n_head: usize,
    /// Values in a query.
    pub dim: usize,
    /// Position of each token, ascending.
    pub positions: &'a [i32],
}

impl<'a> Queries<'a> {
    /// Tokens in the micro-batch.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.positions.len()
    }

    /// The query of one token and query head.
    ///
    /// # Panics
    /// If either is out of range.
    #[must_use]
    pub fn get(&self, token: usize, head: usize) -> &'a [f32] {
        assert!(head < self.n_head, "head out of range");
        let at = (token * self.n_head + head) * self.dim;
        &self.values[at..at + self.dim]
    }
}

/// Why the model is computing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading given text, many tokens at once.
    Prefill,
    /// One token after another.
    Decode,
}

/// The question before a layer's attention.
pub struct SelectRequest<'a> {
    /// Index into [`Geometry::layers`].
    pub layer: usize,
    /// Prefill or decode.
    pub phase: Phase,
    /// Counts micro-batches.
    pub step: u64,
    /// How many blocks may be named for each KV head that came next
    /// ([`Selection::ranked_mut`]): what may be wanted soon is fetched ahead. 0 if that is
    /// of no use.
    pub runners: usize,
    /// This layer's queries.
    pub queries: Queries<'a>,
    /// All sealed rows.
    pub cold: &'a dyn ColdRows,
    /// Resident rows outside the slots.
    pub local: &'a dyn LocalRows,
    /// Whether a [`Rest`] is of use: it is, for the only token of a step. It takes one of
    /// the slots: a head that gives one may want one block less.
    pub takes_rest: bool,
    /// Blocks in the slots of each KV head now, [`BlockId::MAX`] for a slot with none. Who
    /// wants them again, wants what need not be copied. Empty if that is not known.
    pub resident: &'a [&'a [BlockId]],
    /// Learned sinks (gpt-oss): a logit for each query head, which takes its share of the
    /// softmax and has no row. Empty in models without.
    pub sinks: &'a [f32],
    /// Threads that have computed for the model and wait for the answer. They are kept awake
    /// for who asks for it ([`Policy::takes_help`]).
    pub helpers: &'a dyn Helpers,
}

/// Keeps a part of an index under a name; see [`Policy::save`].
pub type KeepPart<'a> = dyn FnMut(&str, &[u8]) -> Result<(), PolicyError> + 'a;

/// Finds a part of an index by its name; see [`Policy::load`].
pub type FindPart<'a> = dyn FnMut(&str) -> Result<Option<Vec<u8>>, PolicyError> + 'a;

/// What a policy's index takes and does on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceUse {
    /// Bytes of its memory.
    pub bytes: usize,
    /// Searches that it has done, of one layer's KV head for one token each.
    pub searches: u64,
}

/// Chooses the resident blocks.
///
/// Implementations are deterministic: the same calls give the same answers.
pub trait Policy: Send {
    /// Name as in `--kv-policy`.
    fn name(&self) -> &str;

    /// Block length that the policy insists on, if it does.
    fn block(&self) -> Option<usize> {
        None
    }

    /// Whether the policy ever asks for blocks. Without retrieval there are no
    /// slots (their budget widens the window) and rows that leave the window
    /// are dropped.
    fn retrieves(&self) -> bool {
        true
    }

    /// Whether selections are made by [`SelectRequest::helpers`]. Otherwise these may be put
    /// to sleep, so that threads of the policy's own have the cores to themselves.
    fn takes_help(&self) -> bool {
        false
    }

    /// Called once before everything else.
    ///
    /// # Errors
    /// If the policy cannot work with this geometry.
    fn start(&mut self, geometry: &Geometry) -> Result<(), PolicyError>;

    /// Blocks have left the window. They are readable through
    /// [`SelectRequest::cold`] later on, so nothing has to be copied.
    ///
    /// # Errors
    /// If the policy cannot take them up (say, no memory).
    fn seal(&mut self, blocks: &SealedBlocks<'_>) -> Result<(), PolicyError> {
        let _ = blocks;
        Ok(())
    }

    /// All layers and KV heads have been told of blocks, and `cold` has them:
    /// the place to bring an index up to date, for all heads at once. After an
    /// error the blocks are taken back ([`Policy::truncate`]).
    ///
    /// # Errors
    /// If the policy cannot take them up.
    fn sealed(&mut self, cold: &dyn ColdRows) -> Result<(), PolicyError> {
        let _ = cold;
        Ok(())
    }

    /// Forgets every block with id `n_blocks` and above, in all layers. Those below may
    /// be forgotten with them: [`Policy::sealed`] is called before anything is selected.
    ///
    /// # Errors
    /// If the policy cannot.
    fn truncate(&mut self, n_blocks: usize) -> Result<(), PolicyError> {
        let _ = n_blocks;
        Ok(())
    }

    /// Names the blocks that this layer's queries want, per KV head: at most
    /// [`Geometry::n_slots`] each, none twice, all sealed. Heads that are left
    /// empty change nothing. Slots that nobody asks for keep their blocks, and
    /// these are attended too.
    ///
    /// # Errors
    /// If the policy cannot decide; nothing is guessed in its place.
    fn select(
        &mut self,
        request: &SelectRequest<'_>,
        selection: &mut Selection,
    ) -> Result<(), PolicyError>;

    /// Host memory that the policy's own index takes now, in bytes.
    fn index_bytes(&self) -> usize {
        0
    }

    /// What the policy's index takes and does on a device; `None` if it uses none.
    fn device_use(&self) -> Option<DeviceUse> {
        None
    }

    /// Gives what the policy knows of the sealed blocks to `keep`, as named
    /// parts, so that [`Policy::load`] can take it up in another process. Parts
    /// that have not changed since the last time are not written again.
    /// Answers `false`, having given nothing, if its index is rebuilt from the
    /// rows instead: then blocks are sealed again one after another.
    ///
    /// # Errors
    /// Those of `keep`.
    fn save(&self, keep: &mut KeepPart<'_>) -> Result<bool, PolicyError> {
        let _ = keep;
        Ok(false)
    }

    /// Takes up what [`Policy::save`] gave, right after [`Policy::start`] with
    /// the same geometry. Answers `false`, as if it had not been called, if the
    /// parts are of another version or for other sizes.
    ///
    /// # Errors
    /// Those of `part`.
    fn load(&mut self, part: &mut FindPart<'_>) -> Result<bool, PolicyError> {
        let _ = part;
        Ok(false)
    }

    /// Host memory that the index will take at `n_tokens`, in bytes: the
    /// plan that is shown before anything is read.
    fn planned_index_bytes(&self, geometry: &Geometry, n_tokens: usize) -> usize {
        let _ = (geometry, n_tokens);
        0
    }

    /// Host memory that the policy will take for a time besides, to make that index, in bytes.
    fn planned_work_bytes(&self, geometry: &Geometry, n_tokens: usize) -> usize {
        let _ = (geometry, n_tokens);
        0
    }
}

impl<P: Policy + ?Sized> Policy for Box<P> {
    fn name(&self) -> &str {
        (**self).name()
    }
    fn block(&self) -> Option<usize> {
        (**self).block()
    }
    fn retrieves(&self) -> bool {
        (**self).retrieves()
    }
    fn takes_help(&self) -> bool {
        (**self).takes_help()
    }
    fn start(&mut self, geometry: &Geometry) -> Result<(), PolicyError> {
        (**self).start(geometry)
    }
    fn seal(&mut self, blocks: &SealedBlocks<'_>) -> Result<(), PolicyError> {
        (**self).seal(blocks)
    }
    fn sealed(&mut self, cold: &dyn ColdRows) -> Result<(), PolicyError> {
        (**self).sealed(cold)
    }
    fn truncate(&mut self, n_blocks: usize) -> Result<(), PolicyError> {
        (**self).truncate(n_blocks)
    }
    fn select(
        &mut self,
        request: &SelectRequest<'_>,
        selection: &mut Selection,
    ) -> Result<(), PolicyError> {
        (**self).select(request, selection)
    }
    fn index_bytes(&self) -> usize {
        (**self).index_bytes()
    }
    fn device_use(&self) -> Option<DeviceUse> {
        (**self).device_use()
    }
    fn save(&self, keep: &mut KeepPart<'_>) -> Result<bool, PolicyError> {
        (**self).save(keep)
    }
    fn load(&mut self, part: &mut FindPart<'_>) -> Result<bool, PolicyError> {
        (**self).load(part)
    }
    fn planned_index_bytes(&self, geometry: &Geometry, n_tokens: usize) -> usize {
        (**self).planned_index_bytes(geometry, n_tokens)
    }

    fn planned_work_bytes(&self, geometry: &Geometry, n_tokens: usize) -> usize {
        (**self).planned_work_bytes(geometry, n_tokens)
    }
}
