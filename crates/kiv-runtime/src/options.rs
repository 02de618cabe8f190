//! How a session is set up.

use crate::error::Error;
use crate::gpu;
use crate::model::Model;
use crate::persist::COMMIT_EVERY;
use crate::session::Session;
use kiv_policies::Pq;
use kiv_policy::{Policy, RowFormat};
use kiv_pool::{PoolConfig, PoolError, PoolLayout};
use std::path::PathBuf;

/// Most threads that llama.cpp computes with (`GGML_MAX_N_THREADS`); it aborts the process
/// where it is asked for more than it can start.
pub const MAX_THREADS: usize = 512;

/// How positions beyond the trained length are squeezed into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions times a factor.
    Linear,
    /// YaRN (arXiv 2309.00071).
    Yarn,
}

/// Where far tokens are for attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// Where they are.
    #[default]
    Absolute,
    /// Retrieved blocks right before the window, sinks right before them: no distance
    /// is beyond the resident pool, however long the text is. For texts longer than
    /// the model was trained for. Before anything has left the pool it is as
    /// [`Positions::Absolute`].
    Remapped,
}

impl Positions {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Absolute, Self::Remapped];

    /// Name as in `--kv-pos`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absolute => "absolute",
            Self::Remapped => "remapped",
        }
    }
}

/// Rotary position embedding, where it is to differ from the model's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rope {
    pub scaling: Option<RopeScaling>,
    pub freq_base: f32,
    pub freq_scale: f32,
}

impl Rope {
    fn check(&self) -> Result<(), Error> {
        for (value, flag) in [
            (self.freq_base, "--rope-freq-base"),
            (self.freq_scale, "--rope-freq-scale"),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::Rope { flag, value });
            }
        }
        Ok(())
    }
}

/// Where cold rows go on disk.
pub(crate) enum Disk {
    /// A context that stays.
    Kept(PathBuf),
    /// One that stays as it is.
    Borrowed(PathBuf),
    /// A folder to make one of the session's own in, which is removed with it.
    Scratch(PathBuf),
}

/// Everything that a session is built from.
pub(crate) struct SessionOptions {
    pub n_ctx: usize,
    pub pool: PoolConfig,
    /// `None`: everything resident.
    pub policy: Option<Box<dyn Policy>>,
    pub type_k: RowFormat,
    pub type_v: RowFormat,
    /// Types of cold K and V rows; `None`: the cache's.
    pub store_types: Option<[RowFormat; 2]>,
    pub disk: Option<Disk>,
    /// Most bytes of cold rows in host memory, if they are on disk.
    pub host_limit: Option<usize>,
    pub commit_every: usize,
    pub threads: usize,
    pub threads_batch: usize,
    pub offload_kv: bool,
    pub all_logits: bool,
    pub rope: Rope,
    pub positions: Positions,
    pub shuffle: Option<u64>,
    /// Takes a cache in host memory for a GPU's: see [`SessionBuilder::lend_host_memory`].
    pub lends_host: bool,
    pub warn: fn(&str),
    pub rests: bool,
    /// Stops before each layer's attention for nothing: see
    /// [`SessionBuilder::stop_for_nothing`].
    pub stops: bool,
}

/// The pool that a session gets: what was asked for, as the policy (`None`:
/// everything resident) and a model with sliding windows of `n_swa` tokens (0:
/// none) change it. The window is as long as theirs at least: what leaves it leaves
/// theirs, too.
///
/// # Errors
/// [`PoolError`] if that cannot be laid out.
pub fn pool_layout(
    mut pool: PoolConfig,
    policy: Option<&dyn Policy>,
    n_ctx: usize,
    n_swa: usize,
) -> Result<PoolLayout, PoolError> {
    let Some(policy) = policy else {
        return PoolLayout::new(&PoolConfig {
            sinks: 0,
            budget: 0,
            block: 1,
            // The layout adds room for a micro-batch and a block itself.
            window: n_ctx.saturating_sub(pool.ubatch + 1).max(1),
            ubatch: pool.ubatch,
        });
    };
    pool.block = policy.block().unwrap_or(pool.block);
    if !policy.retrieves() {
        // No slots: what they would take widens the window.
        pool.window = pool.window.saturating_add(pool.budget);
        pool.budget = 0;
    }
    pool.window = pool.window.max(n_swa);
    let layout = PoolLayout::new(&pool)?;
    let beside = layout.cells_beside(n_swa);
    Ok(layout.at_least(beside))
}

/// Sets a [`Session`] up; see [`Model::session`].
///
/// Sizes are in tokens. The defaults are those of the command line.
#[must_use]
pub struct SessionBuilder {
    model: Model,
    options: SessionOptions,
    policy_name: Option<String>,
    index_on_device: bool,
}

impl SessionBuilder {
    pub(crate) fn new(model: &Model) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            model: model.clone(),
            options: SessionOptions {
                n_ctx: 0,
                pool: PoolConfig::default(),
                policy: None,
                type_k: RowFormat::F16,
                type_v: RowFormat::F16,
                store_types: None,
                disk: None,
                host_limit: None,
                commit_every: COMMIT_EVERY,
                threads,
                threads_batch: threads,
                offload_kv: true,
                all_logits: false,
                rope: Rope::default(),
                positions: Positions::default(),
                shuffle: None,
                lends_host: false,
                warn: |_| {},
                rests: true,
                stops: false,
            },
            policy_name: Some("pq".to_owned()),
            index_on_device: false,
        }
    }

    /// Policy by name: `full` (everything resident) or one of
    /// [`kiv_policies::NAMES`].
    pub fn policy(mut self, name: &str) -> Self {
        self.options.policy = None;
        self.policy_name = Some(name.to_owned());
        self
    }

    /// A policy of one's own.
    pub fn custom_policy(mut self, policy: Box<dyn Policy>) -> Self {
        self.options.policy = Some(policy);
        self.policy_name = None;
        self
    }

    /// Most tokens of the sequence; 0 is the model's trained length.
    pub fn ctx_size(mut self, n: usize) -> Self {
        self.options.n_ctx = n;
        self
    }

    /// First tokens that stay resident for ever.
    pub fn sinks(mut self, n: usize) -> Self {
        self.options.pool.sinks = n;
        self
    }

    /// Newest tokens that stay resident.
    pub fn window(mut self, n: usize) -> Self {
        self.options.pool.window = n;
        self
    }

    /// Tokens of retrieved blocks per layer and KV head.
    pub fn budget(mut self, n: usize) -> Self {
        self.options.pool.budget = n;
        self
    }

    /// Tokens of a block.
    pub fn block(mut self, n: usize) -> Self {
        self.options.pool.block = n;
        self
    }

    /// Most tokens in a micro-batch.
    pub fn ubatch(mut self, n: usize) -> Self {
        self.options.pool.ubatch = n;
        self
    }

    /// Types of the K and V caches.
    pub fn cache_types(mut self, k: RowFormat, v: RowFormat) -> Self {
        self.options.type_k = k;
        self.options.type_v = v;
        self
    }

    /// Threads in decode and in prefill, each 1 to [`MAX_THREADS`] whatever is asked for.
    pub fn threads(mut self, decode: usize, prefill: usize) -> Self {
        self.options.threads = decode.clamp(1, MAX_THREADS);
        self.options.threads_batch = prefill.clamp(1, MAX_THREADS);
        self
    }

    /// Types that cold K and V rows are stored in; the cache's own unless told
    /// otherwise. A smaller type saves host memory and costs precision.
    pub fn store_types(mut self, k: RowFormat, v: RowFormat) -> Self {
        self.options.store_types = Some([k, v]);
        self
    }

    /// Keeps the sequence in this folder. If it holds one already, the session
    /// begins with it: [`Session::tokens`] is what was read then, and it goes on
    /// bit by bit as the process that wrote it would have. Nothing is durable
    /// before [`Session::commit`].
    pub fn context_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.options.disk = Some(Disk::Kept(folder.into()));
        self
    }

    /// As [`SessionBuilder::context_dir`], but the folder stays as it is, and may be one that
    /// cannot be written to: what is sealed from now on is kept in memory, and a commit does
    /// nothing.
    pub fn borrowed_context(mut self, folder: impl Into<PathBuf>) -> Self {
        self.options.disk = Some(Disk::Borrowed(folder.into()));
        self
    }

    /// Keeps cold rows in a new folder below this one, removed with the session:
    /// for texts that are larger than the memory. Nothing is committed to it.
    pub fn scratch_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.options.disk = Some(Disk::Scratch(folder.into()));
        self
    }

    /// Most bytes of cold rows in host memory, if they are on disk; those that
    /// have not been used for longest are on disk only.
    pub fn host_limit(mut self, bytes: usize) -> Self {
        self.options.host_limit = Some(bytes);
        self
    }

    /// Tokens between two commits while a text is read, at least (and at least
    /// an eighth of all).
    pub fn commit_every(mut self, tokens: usize) -> Self {
        self.options.commit_every = tokens.max(1);
        self
    }

    /// Whether the resident cache lives on the device that computes the layer
    /// (the default) or in host memory.
    pub fn offload_kv(mut self, yes: bool) -> Self {
        self.options.offload_kv = yes;
        self
    }

    /// Keeps logits of every token, for [`crate::Outputs::All`].
    pub fn all_logits(mut self, yes: bool) -> Self {
        self.options.all_logits = yes;
        self
    }

    /// RoPE scaling (`None` as in the model), base frequency and frequency
    /// factor (0 as in the model), which [`SessionBuilder::build`] checks.
    pub fn rope(mut self, scaling: Option<RopeScaling>, freq_base: f32, freq_scale: f32) -> Self {
        self.options.rope = Rope {
            scaling,
            freq_base,
            freq_scale,
        };
        self
    }

    /// Where far tokens are for attention; nothing else under `full`.
    pub fn positions(mut self, positions: Positions) -> Self {
        self.options.positions = positions;
        self
    }

    /// Whether a policy that knows what tokens outside of the slots would add to a decoded
    /// token's attention may say so: one slot then stands for them (`kiv_policy::Rest`).
    /// On by default; off where keys are not where the model put them (remapped positions),
    /// and with a K cache of 4 bits.
    pub fn rests(mut self, rests: bool) -> Self {
        self.options.rests = rests;
        self
    }

    /// Whether a GPU searches the index for decoded tokens, in a copy in its memory, as far as
    /// there is room: `pq` alone has an index. What is found is the same. Off by default, as
    /// no GPU has confirmed it; where there is none, [`SessionBuilder::warn`] is told.
    pub fn index_on_device(mut self, yes: bool) -> Self {
        self.index_on_device = yes;
        self
    }

    /// Moves all resident blocks to other slots at random at every layer and
    /// step: attention must not notice. For checks.
    pub fn shuffle_slots(mut self, seed: u64) -> Self {
        self.options.shuffle = Some(seed);
        self
    }

    /// Under `full`, has llama.cpp stop before each layer's attention, also of layers with a
    /// sliding window, and go on at once: what a token takes longer is what stopping costs,
    /// whatever is done then. For measurements.
    pub fn stop_for_nothing(mut self) -> Self {
        self.options.stops = true;
        self
    }

    /// Is told what the user may want to know and does not stop anything: one line.
    pub fn warn(mut self, warn: fn(&str)) -> Self {
        self.options.warn = warn;
        self
    }

    /// Lets a GPU swap blocks into a cache in host memory. An emulated driver, whose GPU's
    /// memory is the host's, can do that, so that the way over a GPU can be tested where
    /// there is none; of any other GPU it is an error, and ggml copies.
    #[doc(hidden)]
    pub fn lend_host_memory(mut self) -> Self {
        self.options.lends_host = true;
        self
    }

    /// Builds the session and looks at how the model attends.
    ///
    /// # Errors
    /// [`Error::UnknownPolicy`], [`Error::Pool`], [`Error::Rope`], [`Error::Context`],
    /// [`Error::Unhookable`], [`Error::NotGenerative`] and, with
    /// [`Positions::Remapped`], [`Error::CannotRemap`].
    pub fn build(self) -> Result<Session, Error> {
        let Self {
            model,
            mut options,
            policy_name,
            index_on_device,
        } = self;
        options.rope.check()?;
        match policy_name.as_deref() {
            None | Some("full") => {}
            Some("pq") if index_on_device => {
                let finder = gpu::finder(options.warn);
                let with = |finder| Pq::default().with_finder(Box::new(finder));
                options.policy = Some(Box::new(finder.map_or_else(Pq::default, with)));
            }
            Some(name) => {
                let policy = kiv_policies::by_name(name);
                options.policy = Some(policy.ok_or_else(|| Error::UnknownPolicy {
                    name: name.to_owned(),
                })?);
            }
        }
        if index_on_device && policy_name.as_deref() != Some("pq") {
            (options.warn)("no index goes to a device: only pq has one");
        }
        Session::new(&model, options)
    }
}
