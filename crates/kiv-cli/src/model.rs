//! From flags to a model and a session: looks before it leaps.

use crate::args::{CacheArgs, ModelArgs};
use crate::output::{DownloadBar, bytes, print_warning};
use crate::{bundled, interrupt};
use anyhow::{Context, Result, anyhow, bail};
use kiv_context::{ContextError, Identity, RecordLayout};
use kiv_gguf::{LayerKind, MemoryPlan, ModelFile, PlanOptions, Untierable};
use kiv_models::FoundModel;
use kiv_policy::{Geometry, LayerGeometry};
use kiv_pool::{PoolError, PoolLayout};
use kiv_runtime::{LoadOptions, Model, Positions, Session, SessionBuilder};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A model's header and, once loaded, the model.
pub(crate) struct Opened {
    pub file: ModelFile,
    /// What the store says of it, if it was asked for by name.
    pub found: Option<FoundModel>,
    /// Whether it is the bundled one.
    pub bundled: bool,
}

/// Reads the header of the model that the flags name.
pub(crate) fn open(args: &ModelArgs) -> Result<Opened> {
    let mut stored = None;
    let (path, bundled): (PathBuf, bool) = match &args.model {
        Some(path) if kiv_models::is_path(path) => (path.clone(), false),
        Some(wanted) => {
            let wanted = wanted.to_string_lossy();
            let found = kiv_models::Stores::from_env().find(&wanted)?;
            note!("{wanted}: {} from {}", found.name, found.source);
            let path = found.path.clone();
            stored = Some(found);
            (path, false)
        }
        None if args.hf_repo.is_some() => (fetched(args)?, false),
        None => {
            note!(
                "no -m: using the bundled model tiny (2.9 M parameters, finds facts, writes poorly)"
            );
            (bundled::path()?, true)
        }
    };
    Ok(Opened {
        found: stored,
        ..open_file(&path, bundled, args)?
    })
}

/// Reads the header of a model that no flag names.
pub(crate) fn open_file(path: &Path, bundled: bool, args: &ModelArgs) -> Result<Opened> {
    kiv_runtime::set_verbose(args.verbose);
    let file = ModelFile::open(path)?;
    let (n_ctx, trained) = (args.ctx_size, file.n_ctx_train);
    let scaled = args.rope_freq_base != 0.0 || args.rope_freq_scale != 0.0;
    if n_ctx > trained && !scaled && args.kv_pos == Positions::Absolute {
        note!(
            "warning: --ctx-size {n_ctx} is more than the {trained} tokens that this model was trained for: \
             past them answers get poor, unless positions are remapped (--kv-pos remapped) or \
             scaled (--rope-freq-scale)"
        );
    }
    Ok(Opened {
        file,
        found: None,
        bundled,
    })
}

/// The file of the repository that the flags name, downloaded if need be.
fn fetched(args: &ModelArgs) -> Result<PathBuf> {
    let repo = args.hf_repo.as_deref().unwrap_or_default();
    let wanted = kiv_hub::Wanted::parse(repo, args.hf_file.as_deref())?;
    let fetched = kiv_hub::Hub::from_env()?.fetch(&wanted, &mut DownloadBar::default())?;
    let from = match (&fetched.offline, fetched.downloaded) {
        (Some(why), _) => format!("as the cache has it ({why})"),
        (None, 0) => "already in the cache".to_owned(),
        (None, n) => format!("downloaded, {n} file{}", if n == 1 { "" } else { "s" }),
    };
    note!("{repo}: {}, {from}", fetched.name);
    Ok(fetched.path)
}

impl Opened {
    /// Tokens that the flags allow.
    pub fn n_ctx(&self, args: &ModelArgs) -> usize {
        if args.ctx_size == 0 {
            self.file.n_ctx_train
        } else {
            args.ctx_size
        }
    }

    /// Loads the weights.
    pub fn load(&self, args: &ModelArgs, policy: &str) -> Result<Model> {
        let usable = self.file.untierable.is_none_or(Untierable::runs_untiered);
        if policy != "full" || !usable {
            self.file.tierable()?;
        }
        self.file
            .check_cache_types(args.cache_type_k, args.cache_type_v)?;
        let options = LoadOptions {
            gpu_layers: args.gpu_layers.0,
            mmap: !args.no_mmap,
        };
        Model::load_with(&self.file.path, options).map_err(|error| {
            // llama.cpp takes paths as texts.
            let advice = match self.file.path.to_str() {
                Some(_) => "Try another conversion of this model, or a newer kiv",
                None => "Its path is not UTF-8: rename it",
            };
            anyhow!("{error}. {advice}")
        })
    }

    /// Loads the weights if texts of up to `longest` tokens fit the memory
    /// under each of these policies.
    pub fn load_for(
        &self,
        args: &ModelArgs,
        cache: &CacheArgs,
        policies: &[String],
        longest: usize,
    ) -> Result<Model> {
        self.check_for(args, cache, policies, longest)?;
        let tiered = policies.iter().find(|p| *p != "full");
        self.load(args, tiered.map_or("full", String::as_str))
    }

    /// Refuses texts of up to `longest` tokens that do not fit the memory
    /// under each of these policies.
    pub fn check_for(
        &self,
        args: &ModelArgs,
        cache: &CacheArgs,
        policies: &[String],
        longest: usize,
    ) -> Result<()> {
        for policy in policies {
            // Stock llama.cpp reserves what it is asked for, at once.
            let n_ctx = if policy == "full" {
                longest
            } else {
                self.n_ctx(args)
            };
            let plan = plan(&self.file, args, cache, policy, n_ctx, longest)?;
            check_memory(&plan, args)?;
        }
        Ok(())
    }
}

/// The pool of a policy, as the runtime lays it out.
fn layout(
    file: &ModelFile,
    cache: &CacheArgs,
    policy: &str,
    n_ctx: usize,
    ubatch: usize,
) -> Result<PoolLayout> {
    let n_swa = file.layers.iter().filter_map(|l| match l.kind {
        LayerKind::SlidingWindow { n_swa } => Some(n_swa),
        _ => None,
    });
    let n_swa = n_swa.max().unwrap_or(0);
    let shipped = kiv_policies::by_name(policy);
    kiv_runtime::pool_layout(cache.pool(ubatch), shipped.as_deref(), n_ctx, n_swa).map_err(
        |error| match error {
            PoolError::TooLarge { .. } if policy == "full" => {
                anyhow!("--ctx-size {n_ctx} is too large for --kv-policy full: lower it, or use another policy")
            }
            error => error.into(),
        },
    )
}

/// What a text of `n_tokens` will take.
pub(crate) fn plan(
    file: &ModelFile,
    args: &ModelArgs,
    cache: &CacheArgs,
    policy: &str,
    n_ctx: usize,
    n_tokens: usize,
) -> Result<MemoryPlan> {
    let layout = layout(file, cache, policy, n_ctx, args.ubatch())?;
    let (k, v) = (args.cache_type_k, args.cache_type_v);
    let store = cache.store.types(args);
    let shipped = kiv_policies::by_name(policy);
    let geometry = Geometry {
        layers: file
            .tiered_layers()
            .map(|l| LayerGeometry {
                il: l.il as u32,
                n_head: l.n_head,
                n_head_kv: l.n_head_kv,
                key_dim: l.key_dim,
                value_dim: l.value_dim,
                scale: 1.0,
                soft_cap: None,
            })
            .collect(),
        block: layout.block,
        n_slots: layout.n_slots,
        first_position: layout.sinks,
        key_format: store.k,
        value_format: store.v,
        n_threads: batch_threads(args),
    };
    let cold = layout.cold_tokens(n_tokens);
    let index = shipped
        .as_ref()
        .map_or(0, |p| p.planned_index_bytes(&geometry, cold));
    let indexing = shipped
        .as_ref()
        .map_or(0, |p| p.planned_work_bytes(&geometry, cold));
    let options = PlanOptions {
        cold_rows: keeps_rows(policy),
        index_bytes: index as u64,
        indexing_bytes: indexing as u64,
        store_types: Some((store.k, store.v)),
        disk_bytes_per_block: cache.store.kv_dir.as_ref().map(|_| {
            let identity = Identity::new([0; 32], String::new(), &geometry, Vec::new());
            RecordLayout::new(&identity).record_bytes() as u64
        }),
        host_limit: cache.store.kv_host_limit.map(|n| n as u64),
        ..PlanOptions::default()
    };
    Ok(MemoryPlan::new(file, &layout, n_tokens, k, v, &options))
}

/// Refuses a text that is longer than the context.
pub(crate) fn check_length(n_tokens: usize, n_ctx: usize) -> Result<()> {
    if n_tokens > n_ctx {
        bail!(
            "the text of {n_tokens} tokens does not fit --ctx-size {n_ctx}: raise it, or shorten the text"
        );
    }
    Ok(())
}

/// Refuses a plan that does not fit this machine's memory.
pub(crate) fn check_memory(plan: &MemoryPlan, args: &ModelArgs) -> Result<()> {
    let Some(available) = kiv_gguf::available_memory() else {
        return Ok(());
    };
    if plan.total_host_bytes <= available {
        return Ok(());
    }
    let text = format!(
        "{} of memory are needed but {} are available: weights {}, resident cache {}, host tier {}, \
         index {}, indexing {}, computation {}",
        bytes(plan.total_host_bytes),
        bytes(available),
        bytes(plan.weights_bytes),
        bytes(plan.resident_kv_bytes),
        bytes(plan.host_kv_bytes),
        bytes(plan.index_bytes),
        bytes(plan.indexing_bytes),
        bytes(plan.compute_bytes),
    );
    if args.force {
        print_warning(&text);
        return Ok(());
    }
    bail!("{text}. Take a shorter context, use -ctk q8_0 -ctv q8_0, or go on with --force");
}

/// Threads while generating.
pub(crate) fn threads(args: &ModelArgs) -> usize {
    args.threads.unwrap_or_else(all_threads)
}

/// Threads while reading.
fn batch_threads(args: &ModelArgs) -> usize {
    args.threads_batch.unwrap_or_else(|| threads(args))
}

/// As many threads as the machine runs at once.
pub(crate) fn all_threads() -> usize {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    all.min(kiv_runtime::MAX_THREADS)
}

/// A session builder with everything that the flags say.
pub(crate) fn builder(
    model: &Model,
    args: &ModelArgs,
    cache: &CacheArgs,
    policy: &str,
) -> SessionBuilder {
    let pool = cache.pool(args.ubatch());
    let store = cache.store.types(args);
    model
        .session()
        .store_types(store.k, store.v)
        .policy(policy)
        .ctx_size(args.ctx_size)
        .sinks(pool.sinks)
        .window(pool.window)
        .budget(pool.budget)
        .block(pool.block)
        .ubatch(pool.ubatch)
        .cache_types(args.cache_type_k, args.cache_type_v)
        .threads(threads(args), batch_threads(args))
        .offload_kv(!args.no_kv_offload)
        .rope(args.rope_scaling, args.rope_freq_base, args.rope_freq_scale)
        .positions(args.kv_pos)
        .rests(args.kv_rest)
        .index_on_device(args.kv_index)
        .host_limit(cache.store.kv_host_limit.unwrap_or(usize::MAX))
        .warn(print_warning)
}

/// Tokens of the context in a folder; none if there is no context yet.
pub(crate) fn stored(folder: Option<&Path>) -> Result<usize> {
    match folder.map(kiv_context::info) {
        None | Some(Err(ContextError::Missing { .. })) => Ok(0),
        Some(info) => Ok(info?.manifest.n_tokens as usize),
    }
}

/// With the context in a folder, which stays as it is if it is only borrowed.
pub(crate) fn with_context(
    builder: SessionBuilder,
    folder: &Path,
    is_borrowed: bool,
) -> SessionBuilder {
    if is_borrowed {
        builder.borrowed_context(folder)
    } else {
        builder.context_dir(folder)
    }
}

/// Whether a policy has cold rows.
fn keeps_rows(policy: &str) -> bool {
    kiv_policies::by_name(policy).is_some_and(|p| p.retrieves())
}

/// As [`builder`], for commands that make many sessions or one for the moment: a
/// folder that is given is used while it lasts, by policies that have cold rows.
pub(crate) fn passing_builder(
    model: &Model,
    args: &ModelArgs,
    cache: &CacheArgs,
    policy: &str,
) -> SessionBuilder {
    let builder = builder(model, args, cache, policy);
    match &cache.store.kv_dir {
        Some(folder) if keeps_rows(policy) => builder.scratch_dir(folder),
        _ => builder,
    }
}

/// Builds a session that Ctrl-C stops.
pub(crate) fn session(builder: SessionBuilder) -> Result<Session> {
    let mut session = builder.build()?;
    session.set_interrupt_flag(interrupt::flag());
    Ok(session)
}

/// A text file (`-` is standard input); must be UTF-8 and not empty. A byte order mark is
/// none of the text: its tokens would be sinks.
pub(crate) fn read_text(path: &std::path::Path) -> Result<String> {
    let piped = path.as_os_str() == "-";
    let shown = if piped {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    let raw = if piped {
        let mut raw = Vec::new();
        std::io::stdin().read_to_end(&mut raw).map(|_| raw)
    } else {
        std::fs::read(path)
    };
    let raw = raw.with_context(|| format!("cannot read {shown} (--file)"))?;
    let mut text = String::from_utf8(raw).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow!("{shown} is not UTF-8 text: bad byte at offset {at} (--file). Convert it first (iconv -t UTF-8)")
    })?;
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    if text.trim().is_empty() {
        bail!("{shown} has no text in it: there is nothing to read (--file)");
    }
    Ok(text)
}
