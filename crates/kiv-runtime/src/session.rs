//! One sequence being read and continued.

use crate::cells::CellMap;
use crate::cold::{Cold, Scratch};
use crate::disk::open_disk;
use crate::dump::DumpForm;
use crate::error::Error;
use crate::gpu::{self, GpuOptions, GpuTier};
use crate::hook::{Engine, Seen};
use crate::llama::{Context, ContextParams};
use crate::mark::Mark;
use crate::model::Model;
use crate::options::{Positions, SessionOptions, pool_layout};
use crate::probe::rotations;
use crate::remap::Remap;
use crate::stats::Stats;
use crate::tap::AttentionTap;
use crate::tiers::{Batch, Tiers};
use kiv_cuda::{Counters as GpuCounters, Overlap as GpuOverlap};
use kiv_policy::{DeviceUse, Geometry, LayerGeometry, Phase, Policy, RowFormat};
use kiv_pool::PoolLayout;
use kiv_store::HostStore;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A token number of the model's vocabulary.
pub type Token = i32;

/// How far reading has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Tokens read of this text.
    pub read: usize,
    /// Tokens of this text.
    pub total: usize,
    /// Bytes in the host tier.
    pub host_bytes: usize,
}

/// Which logits are wanted of a stretch of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// Of the last token: what comes next.
    Last,
    /// Of every token.
    All,
}

/// Memory that a session takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// KV cache on the compute device, constant.
    pub resident_kv: usize,
    /// Sealed rows in host RAM.
    pub host_kv: usize,
    /// The policy's index.
    pub index: usize,
    /// Sealed rows on disk.
    pub disk: usize,
}

/// A sequence: tokens read so far, the resident pool, and everything that has
/// left it.
///
/// ```no_run
/// # fn main() -> Result<(), kiv_runtime::Error> {
/// let model = kiv_runtime::Model::load("model.gguf")?;
/// let mut session = model.session().policy("exact").budget(1024).build()?;
/// session.read(&model.tokenize("A very long text. Question: …", true))?;
/// for piece in session.generate(Default::default()) {
///     print!("{}", piece?.text);
/// }
/// # Ok(()) }
/// ```
pub struct Session {
    pub(crate) model: Model,
    pub(crate) context: Context<Engine>,
    /// Bytes of the KV cache of a stock context.
    stock_bytes: usize,
    pub(crate) layout: PoolLayout,
    pub(crate) n_ctx: usize,
    pub(crate) tokens: Vec<Token>,
    /// Positions before the window that llama.cpp has never seen: it wants
    /// them without gaps, so its own count is behind by as many.
    pub(crate) invented: usize,
    pub(crate) step: u64,
    /// Something failed half-way and could not be taken back.
    pub(crate) broken: bool,
    pub(crate) last_logits: Vec<f32>,
    pub(crate) interrupt: Arc<AtomicBool>,
    /// Whether logits of every token can be had.
    all_logits: bool,
    /// How llama.cpp writes cells, if they can be put back.
    pub(crate) form: Option<DumpForm>,
    /// Whether some layers do not keep every token, and llama.cpp gives what they hold
    /// apart from all else.
    pub(crate) has_partial: bool,
    pub(crate) mark: Option<Mark>,
    /// Tokens at the last commit, unless something before them has changed.
    pub(crate) committed: Option<usize>,
    pub(crate) commit_every: usize,
    /// After the context, whose files are in it.
    pub(crate) scratch: Option<Scratch>,
}

impl Session {
    pub(crate) fn new(model: &Model, mut options: SessionOptions) -> Result<Self, Error> {
        let n_train = model.n_ctx_train();
        let n_ctx = if options.n_ctx == 0 {
            n_train
        } else {
            options.n_ctx
        };
        gpu::say_if_absent(options.warn);
        let policy = options.policy.take();
        let pool = options.pool.clone();
        let layout = pool_layout(pool, policy.as_deref(), n_ctx, model.raw().n_swa())?;
        let raw = model.raw();
        if !raw.has_decoder() || raw.has_encoder() {
            let reason = "it encodes text (an embedding or encoder-decoder model)".to_owned();
            return Err(Error::NotGenerative { reason });
        }
        if let Some(why) = model.not_generative() {
            return Err(Error::NotGenerative {
                reason: why.to_string(),
            });
        }
        if policy.is_some() && raw.get().is_recurrent() {
            let reason = "it keeps a recurrent state instead of a KV cache".to_owned();
            return Err(Error::Unhookable { reason });
        }
        let params = ContextParams {
            n_cells: layout.n_cells,
            ubatch: layout.ubatch,
            max_outputs: if options.all_logits { layout.ubatch } else { 1 },
            threads: options.threads,
            threads_batch: options.threads_batch,
            type_k: options.type_k,
            type_v: options.type_v,
            offload_kv: options.offload_kv,
            rope: options.rope,
            hooked: policy.is_some() || options.stops,
        };
        let make = |params: &ContextParams| {
            let engine = Engine {
                seen: Some(Seen::default()),
                ..Engine::default()
            };
            Context::new(model.raw().clone(), params, engine).map_err(|reason| Error::Context {
                type_k: options.type_k,
                type_v: options.type_v,
                reason,
            })
        };
        // A stock context tells nothing of itself: ask a small hooked one.
        let stock_bytes = if params.hooked {
            0
        } else {
            stock_cache_bytes(&layout, raw.n_swa(), &params, make)?
        };
        let context = make(&params)?;
        let mut session = Self {
            stock_bytes,
            model: model.clone(),
            context,
            layout,
            n_ctx,
            tokens: Vec::new(),
            invented: 0,
            step: 0,
            broken: false,
            last_logits: Vec::new(),
            interrupt: Arc::default(),
            all_logits: options.all_logits,
            form: None,
            has_partial: false,
            mark: None,
            committed: None,
            commit_every: options.commit_every,
            scratch: None,
        };
        session.look_at_attention(policy, options)?;
        session.resume()?;
        Ok(session)
    }

    /// Computes one token to see how this model attends, then forgets it.
    fn look_at_attention(
        &mut self,
        policy: Option<Box<dyn Policy>>,
        options: SessionOptions,
    ) -> Result<(), Error> {
        let decode = |reason| Error::Decode {
            position: 0,
            reason,
        };
        self.context.decode(&[0], 0, &[true]).map_err(decode)?;
        let n_cells = self.context.n_cells();
        let form = DumpForm::learn(&self.context.dump(), &self.context.partial());
        self.has_partial = form.as_ref().is_ok_and(DumpForm::has_rest);
        self.context.clear();
        let (engine, _) = self.context.parts();
        let seen = engine.seen.take().unwrap_or_default();
        if n_cells < self.layout.n_cells {
            let reason = format!("{n_cells} cells were made, not {}", self.layout.n_cells);
            return Err(Error::Unhookable { reason });
        }
        engine.cells = Some(CellMap::new(&self.layout));
        let not_kept = |why: &str| Error::NotKept {
            why: why.to_owned(),
        };
        engine.stops = options.stops && policy.is_none();
        let Some(policy) = policy else {
            return if options.disk.is_some() {
                Err(not_kept("under full, which keeps everything on the device"))
            } else {
                Ok(())
            };
        };
        if let Some(reason) = seen.obstacle {
            return Err(Error::Unhookable { reason });
        }
        let remapped = options.positions == Positions::Remapped;
        if seen.short_rope {
            // Distances are what counts, and these stay short.
            let longest = if remapped {
                self.layout.n_cells
            } else {
                self.n_ctx
            };
            self.check_rope_factors(longest)?;
        }
        let layers = seen.global_layers(self.model.raw().n_swa())?;
        let remap = if remapped {
            let rotations = rotations(&mut self.context, &layers, options.type_k)?;
            self.check_distances()?;
            Some(Remap::new(rotations, &self.layout))
        } else {
            None
        };
        let (layers, sinks): (Vec<LayerGeometry>, Vec<_>) =
            layers.into_iter().map(|l| (l.geometry, l.sinks)).unzip();
        let (engine, _) = self.context.parts();
        engine.cells_from = layers.first().map(|l| l.il);
        self.form = form.ok().filter(|form| {
            let heads = |l: &LayerGeometry| [l.key_dim, l.value_dim].map(|dim| dim * l.n_head_kv);
            let formats = [options.type_k, options.type_v];
            let bytes = layers
                .iter()
                .map(heads)
                .map(|lens| [0, 1].map(|which: usize| formats[which].row_bytes(lens[which])));
            form.cell_bytes().eq(bytes)
        });
        let cache_types = [options.type_k, options.type_v];
        let [key_format, value_format] = options.store_types.unwrap_or(cache_types);
        for (format, dim) in layers.iter().flat_map(|l| {
            let dims = [l.key_dim, l.value_dim];
            [key_format, value_format].into_iter().zip(dims)
        }) {
            if !dim.is_multiple_of(format.group_len()) {
                return Err(Error::StoreType { format, dim });
            }
        }
        let geometry = Geometry {
            layers,
            block: self.layout.block,
            n_slots: self.layout.n_slots,
            first_position: self.layout.sinks,
            key_format,
            value_format,
            n_threads: options.threads_batch,
        };
        if options.disk.is_some() && !policy.retrieves() {
            return Err(not_kept("under a policy that drops rows"));
        }
        // ggml copies what is on disk, what moves without need, and keys that no kernel turns.
        let turns = |r: &Remap| options.type_k == RowFormat::F16 && r.turns_first_values();
        let by_gpu = options.disk.is_none() && options.shuffle.is_none();
        let gpu = if by_gpu && policy.retrieves() && remap.as_ref().is_none_or(turns) {
            let how = GpuOptions {
                host_limit: options.host_limit,
                lends_host: options.lends_host,
                warn: options.warn,
            };
            gpu::open(&geometry, self.context.parts().1, &how)
        } else {
            None
        };
        let store = match &options.disk {
            None => match gpu {
                Some(gpu) => Cold::Gpu(Box::new(gpu)),
                None => Cold::Host(HostStore::new(&geometry)),
            },
            Some(disk) => {
                if self.form.is_none() {
                    return Err(not_kept(
                        "of this model: it has sliding-window layers, or cells of another kind",
                    ));
                }
                let (store, scratch) =
                    open_disk(&self.model, disk, &options, &geometry, &self.layout)?;
                self.scratch = scratch;
                Cold::Disk(Box::new(store))
            }
        };
        let shuffle = options.shuffle.map(ChaCha8Rng::seed_from_u64);
        let layout = self.layout.clone();
        let tiers = Tiers::new(geometry, cache_types, layout, policy, store, remap, shuffle)?
            .with_sinks(sinks)
            .with_rests(options.rests);
        self.context.hook().tiers = Some(tiers);
        Ok(())
    }

    /// Whether no distance will be longer than what the model was trained for.
    fn check_distances(&self) -> Result<(), Error> {
        let PoolLayout {
            n_cells,
            n_slots,
            block,
            ..
        } = self.layout;
        // All slots are seen in the place of one.
        let longest = n_cells - n_slots * block + block;
        let trained = self.model.n_ctx_train();
        if longest <= trained {
            return Ok(());
        }
        let why = format!(
            "sinks, window and micro-batch are {longest} tokens, and this model was trained for \
             {trained}; lower --kv-window or --ubatch-size"
        );
        Err(Error::CannotRemap { why })
    }

    /// llama.cpp took RoPE factors for short contexts: positions, or their differences,
    /// up to `longest` must be short.
    fn check_rope_factors(&self, longest: usize) -> Result<(), Error> {
        let arch = self.model.metadata("general.architecture");
        let key = format!(
            "{}.rope.scaling.original_context_length",
            arch.unwrap_or_default()
        );
        let given = self.model.metadata(&key).and_then(|n| n.parse().ok());
        let n_ctx_orig = given.unwrap_or(self.model.n_ctx_train());
        if longest <= n_ctx_orig {
            return Ok(());
        }
        Err(Error::LongRope {
            n_ctx: self.n_ctx,
            pool: self.layout.n_cells,
            n_ctx_orig,
        })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens read so far.
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Most tokens that the sequence may grow to.
    #[must_use]
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Cells of the resident pool.
    #[must_use]
    pub fn pool(&self) -> &PoolLayout {
        &self.layout
    }

    /// What policies are told of the model; `None` when everything is resident.
    #[must_use]
    pub fn geometry(&self) -> Option<&Geometry> {
        self.context.hook_ref().tiers.as_ref().map(Tiers::geometry)
    }

    /// Name of the policy, `full` when everything is resident.
    #[must_use]
    pub fn policy_name(&self) -> &str {
        let tiers = self.context.hook_ref().tiers.as_ref();
        tiers.map_or("full", |t| t.policy().name())
    }

    /// Lets another policy choose from now on. It is told of everything sealed so
    /// far, but not of the queries that were seen meanwhile.
    ///
    /// # Errors
    /// [`Error::OtherPolicy`] if the two cannot take over from each other: one
    /// drops rows, or they want blocks of different sizes; [`Error::Policy`], after
    /// which nothing more can be read.
    pub fn set_policy(&mut self, policy: Box<dyn Policy>) -> Result<(), Error> {
        let refused = |why: &str| Error::OtherPolicy {
            policy: policy.name().to_owned(),
            why: why.to_owned(),
        };
        let block = self.layout.block;
        let Some(tiers) = &mut self.context.hook().tiers else {
            return Err(refused("everything is on the device under full"));
        };
        if !policy.retrieves() || !tiers.policy().retrieves() {
            return Err(refused("one of the two policies drops rows"));
        }
        if let Some(own) = policy.block().filter(|own| *own != block) {
            let why = format!("it wants blocks of {own} tokens, these are of {block}");
            return Err(refused(&why));
        }
        let changed = tiers.set_policy(policy);
        self.broken |= changed.is_err();
        changed
    }

    /// Counters since the session was built.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let tiers = self.context.hook_ref().tiers.as_ref();
        tiers.map(Tiers::stats).unwrap_or_default()
    }

    /// What the GPU's own streams have done, if it is they that swap blocks; `None` if
    /// ggml copies them.
    #[must_use]
    pub fn gpu_counters(&self) -> Option<GpuCounters> {
        self.context.hook_ref().tiers.as_ref()?.gpu_counters()
    }

    /// What the policy's index takes and does on a device, if it uses one.
    #[must_use]
    pub fn device_index(&self) -> Option<DeviceUse> {
        let tiers = self.context.hook_ref().tiers.as_ref()?;
        tiers.policy().device_use()
    }

    /// The time of all transfers by the GPU's own streams, and how much of it the model has
    /// waited for; as [`Session::gpu_counters`].
    ///
    /// # Errors
    /// [`Error::Gpu`].
    pub fn gpu_overlap(&mut self) -> Result<Option<GpuOverlap>, Error> {
        let tiers = self.context.hook().tiers.as_mut();
        let told = tiers.and_then(Tiers::gpu).map(GpuTier::overlap);
        told.transpose().map_err(|error| Error::Gpu(error.into()))
    }

    /// Memory taken now.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let tiers = self.context.hook_ref().tiers.as_ref();
        Memory {
            resident_kv: self.stock_bytes + self.context.cache_bytes(),
            host_kv: tiers.map_or(0, |t| t.store().host_bytes()),
            index: tiers.map_or(0, |t| t.policy().index_bytes()),
            disk: tiers.map_or(0, |t| t.store().disk_bytes()),
        }
    }

    /// Tokens that are on the compute device.
    #[must_use]
    pub fn resident_tokens(&self) -> usize {
        let engine = self.context.hook_ref();
        match (&engine.tiers, &engine.cells) {
            (Some(_), Some(cells)) => cells.used(),
            _ => self.tokens.len(),
        }
    }

    /// A flag that stops reading at the next micro-batch once it is set.
    #[must_use]
    pub fn interrupt_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupt)
    }

    /// Uses this flag instead of the session's own.
    pub fn set_interrupt_flag(&mut self, flag: Arc<AtomicBool>) {
        self.interrupt = flag;
    }

    /// Shows every tiered layer's attention to `tap` from now on.
    pub fn set_tap(&mut self, tap: Option<Box<dyn AttentionTap>>) {
        self.context.hook().tap = tap;
    }

    /// Reads `tokens` as prefill: in micro-batches, retrieving for each.
    ///
    /// # Errors
    /// Any [`Error`]; tokens of complete micro-batches stay read.
    pub fn read(&mut self, tokens: &[Token]) -> Result<(), Error> {
        self.read_with(tokens, Outputs::Last, |_, _| {}, |_| {})
    }

    /// Reads `tokens` as [`Session::read`], shows wanted logits (index into
    /// `tokens`, `[n_vocab]`) and progress after every micro-batch.
    ///
    /// # Errors
    /// As [`Session::read`]; [`Error::OnlyLast`] if all logits are wanted of a session that
    /// was not built for it.
    pub fn read_with(
        &mut self,
        tokens: &[Token],
        outputs: Outputs,
        mut logits: impl FnMut(usize, &[f32]),
        mut progress: impl FnMut(Progress),
    ) -> Result<(), Error> {
        self.check(tokens)?;
        // llama.cpp ends the process if it has no room for them.
        if outputs == Outputs::All && !self.all_logits {
            return Err(Error::OnlyLast);
        }
        let total = tokens.len();
        let mut read = 0;
        for ubatch in tokens.chunks(self.layout.ubatch) {
            if self.interrupt.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { read, total });
            }
            let wanted: Vec<bool> = (read..read + ubatch.len())
                .map(|i| outputs == Outputs::All || i + 1 == total)
                .collect();
            let phase = if ubatch.len() == 1 {
                Phase::Decode
            } else {
                Phase::Prefill
            };
            self.compute(ubatch, phase, &wanted)?;
            for (i, _) in wanted.iter().enumerate().filter(|(_, wanted)| **wanted) {
                let row = self
                    .context
                    .logits(i)
                    .expect("logits of a wanted token are kept");
                logits(read + i, row);
            }
            read += ubatch.len();
            if read < total {
                self.commit_if_due()?;
            }
            progress(Progress {
                read,
                total,
                host_bytes: self.memory().host_kv,
            });
        }
        self.keep_last_logits();
        Ok(())
    }

    /// Reads `tokens` one by one, each with a retrieval of its own: the way
    /// generated tokens are read. Used for questions, which decide what is
    /// looked up.
    ///
    /// # Errors
    /// As [`Session::read`].
    pub fn read_one_by_one(&mut self, tokens: &[Token]) -> Result<(), Error> {
        self.check(tokens)?;
        for (i, token) in tokens.iter().enumerate() {
            if self.interrupt.load(Ordering::Relaxed) {
                return Err(Error::Interrupted {
                    read: i,
                    total: tokens.len(),
                });
            }
            self.compute(&[*token], Phase::Decode, &[i + 1 == tokens.len()])?;
        }
        self.keep_last_logits();
        Ok(())
    }

    /// Reads a token even if the caller has asked to stop.
    pub(crate) fn read_one(&mut self, token: Token) -> Result<(), Error> {
        self.check(&[token])?;
        self.compute(&[token], Phase::Decode, &[true])?;
        self.keep_last_logits();
        Ok(())
    }

    /// Logits after the last token read, `[n_vocab]`; empty before the first,
    /// and after a cut or an error until something is read again.
    #[must_use]
    pub fn logits(&self) -> &[f32] {
        &self.last_logits
    }

    /// Compares the bytes of every slot with the cold rows of its block:
    /// (slots compared, slots that differ).
    ///
    /// # Errors
    /// If a layer has no cache.
    pub fn compare_slots(&mut self) -> Result<(usize, usize), Error> {
        let (engine, caches) = self.context.parts();
        match (&mut engine.tiers, &engine.cells) {
            (Some(tiers), Some(cells)) if tiers.selects() => tiers.compare_slots(caches, cells),
            _ => Ok((0, 0)),
        }
    }

    pub(crate) fn check(&self, tokens: &[Token]) -> Result<(), Error> {
        if self.broken {
            return Err(Error::Broken);
        }
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        let (used, more) = (self.tokens.len(), tokens.len());
        if used + more > self.n_ctx {
            return Err(Error::ContextFull {
                used,
                more,
                n_ctx: self.n_ctx,
            });
        }
        let n_vocab = self.model.n_vocab();
        let bad = tokens.iter().find(|token| !self.model.has(**token));
        bad.map_or(Ok(()), |&token| Err(Error::BadToken { token, n_vocab }))
    }

    fn keep_last_logits(&mut self) {
        // llama.cpp keeps outputs in batch order; the last one is the last token's.
        if let Some(row) = self.context.last_logits() {
            self.last_logits.clear();
            self.last_logits.extend_from_slice(row);
        }
    }

    /// One micro-batch: room, computation, bookkeeping.
    fn compute(&mut self, tokens: &[Token], phase: Phase, outputs: &[bool]) -> Result<(), Error> {
        // Whatever happens now, these are no longer the last token's.
        self.last_logits.clear();
        self.make_room(tokens.len())?;
        let first = self.tokens.len();
        let engine = self.context.hook();
        engine.batch = Some(Batch {
            phase,
            step: self.step,
            positions: (first as i32..).take(tokens.len()).collect(),
            cells: Vec::new(),
        });
        self.step += 1;
        let result = self
            .context
            .decode(tokens, (first - self.invented) as i32, outputs);
        let engine = self.context.hook();
        let error = engine.error.take();
        let batch = engine.batch.take().expect("set above");
        let failed = error.or_else(|| {
            let reason = result.err()?;
            Some(Error::Decode {
                position: first,
                reason,
            })
        });
        if let Some(error) = failed {
            // What cells held that were in use is gone.
            let lost = matches!(error, Error::CellsInUse { .. });
            self.broken = !self.take_back(first) || lost;
            return Err(error);
        }
        if engine.cells_from.is_some() {
            let cells = engine.cells.as_mut().expect("set when built");
            cells.push(&batch.cells);
        }
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Seals as many of the oldest blocks of the window as it takes for `n`
    /// more tokens.
    fn make_room(&mut self, n: usize) -> Result<(), Error> {
        let PoolLayout {
            sinks,
            block,
            n_slots,
            n_cells,
            ..
        } = self.layout;
        let (engine, caches) = self.context.parts();
        let (Some(tiers), Some(cells)) = (&mut engine.tiers, &mut engine.cells) else {
            return Ok(());
        };
        let missing = (cells.used() + n).saturating_sub(n_cells);
        let slots_are_full = n_slots > 0 && cells.used() >= sinks + n_slots * block;
        let overwriting = missing > 0 || tiers.shuffles();
        if tiers.n_sealed() == 0 && slots_are_full && overwriting {
            // The slots' own first tokens stay where they are but are sealed
            // too, so that slots can be overwritten.
            tiers.seal_slots(caches, cells)?;
            // Resident rows will be seen from elsewhere, as after a missed step.
            self.step += u64::from(tiers.moves());
        }
        if missing == 0 {
            return Ok(());
        }
        let from = cells.window_first();
        let leaving = missing.next_multiple_of(block);
        tiers.seal(&cells.cells(from, from + leaving), caches)?;
        cells.evict(leaving);
        self.step += u64::from(tiers.moves());
        if self
            .context
            .free(from - self.invented, Some(from - self.invented + leaving))
        {
            Ok(())
        } else {
            // They are not in the window any more.
            self.broken = true;
            let reason = "llama.cpp could not free cells of the window".to_owned();
            Err(Error::Decode {
                position: from,
                reason,
            })
        }
    }
}

/// Bytes of the KV cache of a stock context, scaled up from a small one.
fn stock_cache_bytes(
    layout: &PoolLayout,
    n_swa: usize,
    params: &ContextParams,
    make: impl Fn(&ContextParams) -> Result<Context<Engine>, Error>,
) -> Result<usize, Error> {
    // Large enough for a sliding-window cache to be smaller than the other.
    let ubatch_of_one = PoolLayout {
        ubatch: 1,
        ..layout.clone()
    };
    let few = ContextParams {
        n_cells: ubatch_of_one.cells_beside(n_swa).max(256),
        ubatch: 1,
        hooked: true,
        ..params.clone()
    };
    let mut small = make(&few)?;
    let decode = |reason| Error::Decode {
        position: 0,
        reason,
    };
    small.decode(&[0], 0, &[true]).map_err(decode)?;
    let n_small = small.n_cells();
    let sliding = (n_swa + layout.ubatch)
        .next_multiple_of(256)
        .min(layout.n_cells);
    let (_, caches) = small.parts();
    Ok(caches.bytes_with(|n_cells| {
        if n_cells < n_small {
            sliding
        } else {
            layout.n_cells
        }
    }))
}
