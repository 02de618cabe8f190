//! Flags. Those that llama.cpp has keep its names and meaning.

use clap::{Args, Parser, Subcommand, ValueEnum};
use kiv_eval::Task;
use kiv_policy::RowFormat;
use kiv_pool::PoolConfig;
use kiv_runtime::{Positions, RopeScaling, Sampling};
use std::ffi::OsString;
use std::path::PathBuf;

mod adopt;
mod store;
mod synthetic;
mod template;

pub(crate) use adopt::parse;
pub(crate) use store::{ContextArgs, ContextCommand, StoreArgs};
pub(crate) use synthetic::SyntheticArgs;
pub(crate) use template::TemplateArgs;

/// llama.cpp's short flags of several letters, which clap cannot declare.
const LONG_SHORTS: [(&str, &str); 10] = [
    ("-tb", "--threads-batch"),
    ("-ub", "--ubatch-size"),
    ("-ngl", "--gpu-layers"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-nkvo", "--no-kv-offload"),
    ("-sys", "--system-prompt"),
    ("-hf", "--hf-repo"),
    ("-hfr", "--hf-repo"),
    ("-hff", "--hf-file"),
];

/// Flags whose values may look like flags: texts.
const TEXTS: [&str; 6] = [
    "-p",
    "--prompt",
    "-r",
    "--reverse-prompt",
    "-sys",
    "--system-prompt",
];

/// Puts clap's names in place of [`LONG_SHORTS`], where flags are.
fn expand(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let (mut is_text, mut is_over) = (false, false);
    args.map(|arg| {
        if is_over || std::mem::take(&mut is_text) {
            return arg;
        }
        is_over = arg == "--";
        is_text = TEXTS.iter().any(|flag| arg == *flag);
        let known = LONG_SHORTS.iter().find(|(short, _)| arg == *short);
        known.map_or(arg, |(_, long)| OsString::from(long))
    })
    .collect()
}

#[derive(Debug, Parser)]
#[command(
    name = "kiv",
    version,
    about = "Million-token contexts for any GGUF model",
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Read a text or prompt and continue it
    Run(RunArgs),
    /// Talk to a model
    Chat(ChatArgs),
    /// Serve OpenAI, ollama and llama-server clients
    Serve(ServeArgs),
    /// Hide needles in a long generated text and ask for them
    Demo(DemoArgs),
    /// Measure speed and memory, policies side by side
    Bench(BenchArgs),
    /// Judge policies by tasks, attention recall or divergence
    Eval(EvalArgs),
    /// Show a model's layers and what memory a context will take
    Inspect(InspectArgs),
    /// Check this model against stock llama.cpp, bit by bit
    Verify(VerifyArgs),
    /// Look at, check, copy and remove contexts on disk
    Context(ContextArgs),
    /// List models that other programs have downloaded
    Models(ModelsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ModelsArgs {
    /// Only those whose names hold this
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Read the files and compare them with their checksums
    #[arg(long)]
    pub verify: bool,
    /// JSON lines on standard output
    #[arg(long)]
    pub json: bool,
}

/// Which model, and how it is run.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// GGUF file (of a split model the first), or the name of a downloaded model
    /// (`kiv models`). Default: the bundled model
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Repository on the Hugging Face hub, user/model or user/model:quant: its model is
    /// downloaded unless the cache has it [-hf; quant: Q4_K_M if there is one]
    #[arg(long, conflicts_with = "model", value_name = "REPO")]
    pub hf_repo: Option<String>,
    /// File of the repository, instead of a quant [-hff]
    // Clap asks for no flag that another one excludes.
    #[arg(
        long,
        requires = "hf_repo",
        conflicts_with = "model",
        value_name = "FILE"
    )]
    pub hf_file: Option<String>,
    /// Most tokens of text; 0 is what the model was trained for
    #[arg(short, long, default_value_t = 0, value_name = "N")]
    pub ctx_size: usize,
    /// Threads while generating [default: all]
    #[arg(short, long, value_parser = threads, allow_negative_numbers = true, value_name = "N")]
    pub threads: Option<usize>,
    /// Threads while reading [-tb; default: as --threads]
    #[arg(long, value_parser = threads, allow_negative_numbers = true, value_name = "N")]
    pub threads_batch: Option<usize>,
    /// Most tokens handed over at once; bounds --ubatch-size
    #[arg(short, long, default_value_t = 2048, value_parser = positive, value_name = "N")]
    pub batch_size: usize,
    /// Tokens computed at once while reading [-ub]
    #[arg(long, default_value_t = 512, value_parser = positive, value_name = "N")]
    pub ubatch_size: usize,
    /// Layers on the GPU: a number, all, or auto, which is left to llama.cpp [-ngl]
    #[arg(long, alias = "n-gpu-layers", value_parser = gpu_layers, value_name = "N")]
    #[arg(default_value = "auto", allow_negative_numbers = true)]
    pub gpu_layers: GpuLayers,
    /// K cache type: f16, bf16, q8_0, q4_0 [-ctk]
    #[arg(long, default_value = "f16", value_parser = cache_type, value_name = "TYPE")]
    pub cache_type_k: RowFormat,
    /// V cache type: f16, bf16, q8_0, q4_0 [-ctv]
    #[arg(long, default_value = "f16", value_parser = cache_type, value_name = "TYPE")]
    pub cache_type_v: RowFormat,
    /// Keep the resident cache in host memory too [-nkvo]
    #[arg(long)]
    pub no_kv_offload: bool,
    /// Read the file instead of mapping it
    #[arg(long)]
    pub no_mmap: bool,
    /// RoPE scaling: none, linear, yarn [default: the model's]
    #[arg(long, value_parser = rope_scaling, value_name = "KIND")]
    pub rope_scaling: Option<RopeScaling>,
    /// RoPE base frequency [default: the model's]
    #[arg(
        long,
        default_value_t = 0.0,
        hide_default_value = true,
        value_parser = real,
        allow_negative_numbers = true,
        value_name = "X"
    )]
    pub rope_freq_base: f32,
    /// RoPE frequency factor [default: the model's]
    #[arg(
        long,
        default_value_t = 0.0,
        hide_default_value = true,
        value_parser = real,
        allow_negative_numbers = true,
        value_name = "X"
    )]
    pub rope_freq_scale: f32,
    /// Where far tokens are for attention: absolute, where they are; remapped, within the
    /// length that the model was trained for (longer texts)
    #[arg(long, default_value = "absolute", value_parser = positions, value_name = "KIND")]
    pub kv_pos: Positions,
    /// Whether one slot stands for what is known of the tokens outside of the slots, while
    /// text is generated: on or off
    #[arg(long, default_value = "on", value_parser = switch, action = clap::ArgAction::Set, value_name = "on|off")]
    pub kv_rest: bool,
    /// Where the index of pq is searched for generated tokens: host; or device, the first GPU,
    /// as far as its memory goes (no GPU has confirmed it yet)
    #[arg(long, default_value = "host", value_parser = where_index_is, action = clap::ArgAction::Set, value_name = "host|device")]
    pub kv_index: bool,
    /// Go on although the memory plan does not fit
    #[arg(long)]
    pub force: bool,
    /// One JSON document (or JSON lines) on standard output
    #[arg(long)]
    pub json: bool,
    /// llama.cpp's log on standard error
    #[arg(short, long)]
    pub verbose: bool,
}

impl ModelArgs {
    /// Tokens in a micro-batch.
    pub fn ubatch(&self) -> usize {
        self.ubatch_size.min(self.batch_size)
    }
}

/// The tiered cache.
#[derive(Clone, Debug, Args)]
pub(crate) struct CacheArgs {
    /// Newest tokens that stay resident
    #[arg(long, default_value_t = PoolConfig::default().window, value_parser = positive, value_name = "N")]
    pub kv_window: usize,
    /// Tokens retrieved per layer and KV head
    #[arg(long, default_value_t = PoolConfig::default().budget, value_name = "N")]
    pub kv_budget: usize,
    /// Tokens in a block, the unit of retrieval
    #[arg(long, default_value_t = PoolConfig::default().block, value_parser = positive, value_name = "N")]
    pub kv_block: usize,
    /// First tokens that stay resident
    #[arg(long, default_value_t = PoolConfig::default().sinks, value_name = "N")]
    pub kv_sinks: usize,
    #[command(flatten)]
    pub store: StoreArgs,
}

impl CacheArgs {
    /// The pool asked for, with micro-batches of `ubatch`.
    pub fn pool(&self, ubatch: usize) -> PoolConfig {
        PoolConfig {
            sinks: self.kv_sinks,
            window: self.kv_window,
            budget: self.kv_budget,
            block: self.kv_block,
            ubatch,
        }
    }
}

/// One policy.
#[derive(Debug, Args)]
pub(crate) struct PolicyArg {
    /// Which blocks are resident: pq, full, window, exact, quest, arkvale, kiv
    #[arg(long, default_value = "pq", value_parser = policy, value_name = "NAME")]
    pub kv_policy: String,
}

/// How tokens are chosen.
#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Temperature; 0 takes the likeliest token always
    #[arg(long, alias = "temperature", default_value_t = 0.8, value_parser = real, allow_negative_numbers = true, value_name = "X")]
    pub temp: f32,
    /// Keep the N likeliest tokens; 0 and less keep all
    #[arg(
        long,
        default_value_t = 40,
        allow_negative_numbers = true,
        value_name = "N"
    )]
    pub top_k: i32,
    /// Keep the likeliest tokens that make up this probability
    #[arg(long, default_value_t = 0.95, value_parser = share, allow_negative_numbers = true, value_name = "X")]
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the likeliest
    #[arg(long, default_value_t = 0.05, value_parser = share, allow_negative_numbers = true, value_name = "X")]
    pub min_p: f32,
    /// Seed of the random choice; -1 picks one and says which
    #[arg(short, long, default_value_t = -1, value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)), allow_negative_numbers = true, value_name = "N")]
    pub seed: i64,
}

impl SamplingArgs {
    /// The parameters, with a seed picked by the clock if none is given.
    pub fn sampling(&self) -> Sampling {
        let seed = u32::try_from(self.seed).unwrap_or_else(|_| {
            let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
            now.subsec_nanos() ^ (now.as_secs() as u32)
        });
        Sampling {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub policy: PolicyArg,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Text to continue; comes after the file's
    #[arg(short, long, allow_hyphen_values = true, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// File with the text to read (- is standard input)
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Leave the context in --kv-dir as it is; nothing is written there
    #[arg(long, requires = "kv_dir")]
    pub kv_no_save: bool,
    /// Most tokens to generate; -1 is until the text ends
    #[arg(
        short = 'n',
        long = "predict",
        alias = "n-predict",
        default_value_t = 128,
        allow_negative_numbers = true,
        value_name = "N"
    )]
    pub predict: i64,
    /// End the generation at this text (repeatable)
    #[arg(short, long, allow_hyphen_values = true, value_name = "TEXT")]
    pub reverse_prompt: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub policy: PolicyArg,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// File to read before the conversation
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Leave the context in --kv-dir as it is; nothing is written there
    #[arg(long, requires = "kv_dir")]
    pub kv_no_save: bool,
    /// System prompt [-sys]
    #[arg(long, allow_hyphen_values = true, value_name = "TEXT")]
    pub system_prompt: Option<String>,
    #[command(flatten)]
    pub template: TemplateArgs,
    /// Most tokens of an answer; -1 is until it ends
    #[arg(short = 'n', long = "predict", alias = "n-predict", default_value_t = -1, allow_negative_numbers = true, value_name = "N")]
    pub predict: i64,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub policy: PolicyArg,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    pub host: String,
    /// Port to listen on; 0 is any that is free
    #[arg(long, default_value_t = 8080, value_name = "N")]
    pub port: u16,
    /// Key that clients must send (Authorization: Bearer KEY)
    #[arg(long, env = "KIV_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Host names that requests and pages may be of, besides the loopback's; * is any
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    /// Sessions kept, and requests served in turn
    #[arg(long, default_value_t = 4, value_parser = positive, value_name = "N")]
    pub parallel: usize,
    /// Contexts kept below --kv-dir besides those of sessions; the ones not used for
    /// longest are removed
    #[arg(long, default_value_t = 64, value_parser = positive, requires = "kv_dir", value_name = "N")]
    pub kv_contexts: usize,
    /// Requests that may wait
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub queue: usize,
    /// Name of the model for clients [default: the one that -m gives, or its file's]
    #[arg(short, long, value_name = "NAME")]
    pub alias: Option<String>,
    #[command(flatten)]
    pub template: TemplateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub policy: PolicyArg,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Length of the text
    #[arg(long, default_value_t = 65536, value_name = "N")]
    pub tokens: usize,
    /// Where needles are hidden, in percent
    #[arg(long, default_value = "0,10,20,30,40,50,60,70,80,90,100", value_delimiter = ',', value_parser = percent, value_name = "PERCENT")]
    pub depths: Vec<f64>,
    /// Seed of text and needles
    #[arg(short, long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub synthetic: SyntheticArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Policies to compare, the first is what ratios refer to
    #[arg(long, default_value = "full,window,pq,exact,kiv", value_delimiter = ',', value_parser = policy, value_name = "NAMES")]
    pub kv_policy: Vec<String>,
    /// Context lengths
    #[arg(long, default_value = "8192,32768", value_delimiter = ',', value_parser = positive, value_name = "N,…")]
    pub ctx: Vec<usize>,
    /// text: read generated text; synthetic: fill the cold store (of `full`,
    /// the cache) with copies of real rows instead of reading
    #[arg(long, default_value = "text", value_name = "KIND")]
    pub fill: Fill,
    /// Tokens decoded at each length
    #[arg(short = 'n', long = "predict", alias = "n-predict", default_value_t = 64, value_parser = positive, value_name = "N")]
    pub predict: usize,
    /// Interleaved repetitions; rows give medians
    #[arg(long, default_value_t = 1, value_parser = positive, value_name = "N")]
    pub rounds: usize,
    /// Besides full, a row full+stops: full that stops before each layer's attention, as
    /// policies make it do where a layer sees everything, and goes on at once
    #[arg(long)]
    pub stops: bool,
    /// Draws the last token of each row, layer by layer, into a file that chrome://tracing
    /// and Perfetto show
    #[arg(long, value_name = "FILE")]
    pub timeline: Option<PathBuf>,
    /// Seed of the text
    #[arg(short, long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

/// Where a benchmark's context comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fill {
    Text,
    Synthetic,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    pub command: Option<EvalCommand>,
    /// all, or some of needle, passkey, phonebook, facts, count, track, recall
    /// and kld (comma-separated)
    #[arg(value_name = "TASKS", value_delimiter = ',', value_parser = tasks, required_unless_present = "prompts")]
    pub tasks: Vec<Tasks>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub cache: EvalCacheArgs,
    /// Policies to compare, on the same prompts; full is judged first
    #[arg(long, default_value = "full,pq", value_delimiter = ',', value_parser = policy, value_name = "NAMES")]
    pub kv_policy: Vec<String>,
    /// Policy that reads each context, once for all others that keep every row (and
    /// want blocks of one size); without it every policy reads for itself
    #[arg(long, value_parser = policy, value_name = "NAME")]
    pub read_policy: Option<String>,
    /// Context lengths
    #[arg(long, default_value = "8192", value_delimiter = ',', value_parser = positive, value_name = "N,…")]
    pub ctx: Vec<usize>,
    /// Sizes of phone books; the context is as long as they are [default: as
    /// many entries as --ctx holds]
    #[arg(long, value_delimiter = ',', value_parser = positive, value_name = "N,…")]
    pub entries: Vec<usize>,
    /// Depths of needles, in percent
    #[arg(long, default_value = "0,10,20,30,40,50,60,70,80,90,100", value_delimiter = ',', value_parser = percent, value_name = "PERCENT")]
    pub depths: Vec<f64>,
    /// Questions per depth (needle), tens of questions (phonebook, facts), or
    /// prompts of each kind (passkey, count, track)
    #[arg(long, default_value_t = 1, value_parser = positive, value_name = "N")]
    pub samples: usize,
    /// Seed of all prompts
    #[arg(short, long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Judge by these prompts too: JSON lines of context, question and answer
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// File to append the JSON lines to; what it already holds is not done again
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// Make one page with tables and figures from the JSON lines of evaluations
    Report(ReportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Files that `kiv eval --out` or `--json` wrote; of lines about the same
    /// question the last counts
    #[arg(required = true, value_name = "FILES")]
    pub files: Vec<PathBuf>,
    /// The page to write
    #[arg(short, long, default_value = "report.html", value_name = "FILE")]
    pub output: PathBuf,
    /// Folder to write every figure to, as an SVG file
    #[arg(long, value_name = "DIR")]
    pub figures: Option<PathBuf>,
}

/// The tiered cache, with several budgets side by side.
#[derive(Clone, Debug, Args)]
pub(crate) struct EvalCacheArgs {
    /// Newest tokens that stay resident
    #[arg(long, default_value_t = PoolConfig::default().window, value_parser = positive, value_name = "N")]
    pub kv_window: usize,
    /// Tokens retrieved per layer and KV head, side by side
    #[arg(long, default_values_t = [PoolConfig::default().budget], value_delimiter = ',', value_name = "N,…")]
    pub kv_budget: Vec<usize>,
    /// Tokens in a block, the unit of retrieval
    #[arg(long, default_value_t = PoolConfig::default().block, value_parser = positive, value_name = "N")]
    pub kv_block: usize,
    /// First tokens that stay resident
    #[arg(long, default_value_t = PoolConfig::default().sinks, value_name = "N")]
    pub kv_sinks: usize,
    #[command(flatten)]
    pub store: StoreArgs,
}

impl EvalCacheArgs {
    /// The cache with one of the budgets.
    pub fn with(&self, kv_budget: usize) -> CacheArgs {
        CacheArgs {
            kv_window: self.kv_window,
            kv_budget,
            kv_block: self.kv_block,
            kv_sinks: self.kv_sinks,
            store: self.store.clone(),
        }
    }
}

/// What stands in a list of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tasks {
    All,
    One(Task),
}

fn tasks(name: &str) -> Result<Tasks, String> {
    if name == "all" {
        return Ok(Tasks::All);
    }
    let one = name.parse().map(Tasks::One);
    one.map_err(|e: String| e.replace("there are ", "there are all, "))
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub policy: PolicyArg,
    #[command(flatten)]
    pub cache: CacheArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Cache types to check
    #[arg(long, default_value = "f16,q8_0,q4_0", value_delimiter = ',', value_parser = cache_type, value_name = "TYPES")]
    pub cache_types: Vec<RowFormat>,
    /// Micro-batch sizes to check
    #[arg(long, default_value = "1,7,512", value_delimiter = ',', value_parser = positive, value_name = "N,…")]
    pub ubatches: Vec<usize>,
    /// Random swaps in the byte check
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub swaps: u64,
    /// Seed of texts and permutations
    #[arg(short, long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

/// Layers on the GPU, if that is not left to llama.cpp.
#[derive(Clone, Copy, Debug)]
pub struct GpuLayers(pub Option<u32>);

/// llama.cpp's spellings of `auto` and `all` are numbers, too.
fn gpu_layers(text: &str) -> Result<GpuLayers, String> {
    let n = match text {
        "auto" | "-1" => None,
        "all" | "-2" => Some(u32::MAX),
        _ => Some(text.parse().map_err(|_| "not a number, all or auto")?),
    };
    Ok(GpuLayers(n))
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a whole number".to_owned()),
    }
}

/// A number that can be computed with: `nan` and `inf` are numbers for Rust.
fn real(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(x) if f32::is_finite(x) && x >= 0.0 => Ok(x),
        _ => Err("not a number of 0 or more".to_owned()),
    }
}

/// A share of a probability.
fn share(text: &str) -> Result<f32, String> {
    let in_range = real(text).ok().filter(|x| *x <= 1.0);
    in_range.ok_or_else(|| "not a number from 0 to 1".to_owned())
}

/// As in llama.cpp, 0 and less are all that the machine has.
fn threads(text: &str) -> Result<usize, String> {
    let n: i64 = text.parse().map_err(|_| "not a whole number".to_owned())?;
    match usize::try_from(n) {
        Err(_) | Ok(0) => Ok(crate::model::all_threads()),
        Ok(n) if n <= kiv_runtime::MAX_THREADS => Ok(n),
        Ok(_) => Err(format!("at most {} are possible", kiv_runtime::MAX_THREADS)),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=100.0).contains(&percent) {
        Ok(percent)
    } else {
        Err("must be between 0 and 100".to_owned())
    }
}

fn cache_type(name: &str) -> Result<RowFormat, String> {
    RowFormat::from_name(name)
        .filter(|f| *f != RowFormat::F32)
        .ok_or_else(|| "there are f16, bf16, q8_0, q4_0".to_owned())
}

fn rope_scaling(name: &str) -> Result<RopeScaling, String> {
    match name {
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear),
        "yarn" => Ok(RopeScaling::Yarn),
        _ => Err("there are none, linear, yarn".to_owned()),
    }
}

fn switch(name: &str) -> Result<bool, String> {
    match name {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("there are on, off".to_owned()),
    }
}

fn where_index_is(name: &str) -> Result<bool, String> {
    match name {
        "device" => Ok(true),
        "host" => Ok(false),
        _ => Err("there are host, device".to_owned()),
    }
}

fn positions(name: &str) -> Result<Positions, String> {
    let found = Positions::ALL.into_iter().find(|p| p.name() == name);
    found.ok_or_else(|| {
        format!(
            "there are {}",
            Positions::ALL.map(Positions::name).join(", ")
        )
    })
}

fn policy(name: &str) -> Result<String, String> {
    if name == "full" || kiv_policies::NAMES.contains(&name) {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "there are full, {}",
            kiv_policies::NAMES.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_look_like_flags_stay() {
        let line = "kiv run -p -hf -sys -sys -r -ub -ngl 3 -- -hf";
        let expanded = expand(line.split(' ').map(OsString::from));
        let want = "kiv run -p -hf --system-prompt -sys -r -ub --gpu-layers 3 -- -hf";
        assert_eq!(
            expanded,
            want.split(' ').map(OsString::from).collect::<Vec<_>>()
        );
    }
}
