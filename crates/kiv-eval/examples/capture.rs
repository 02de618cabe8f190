//! Writes the keys and queries of a model to raw files, for index experiments.
//!
//! ```sh
//! cargo run --release -p kiv-eval --example capture -- DIR [TOKENS] [POLICY] [MODEL]
//! ```
//!
//! A text with needles is read under `POLICY` (default `exact`), then every
//! needle is asked for, token by token. Files, all little-endian f32, one row
//! after another, per tiered layer `L` and KV head `H`:
//!
//! - `keys.L.H.f32`: `[n_sealed, key_dim]`, oldest token first
//! - `read.L.H.f32`: `[n, group, key_dim]`, queries of every 8th token read
//! - `asked.L.H.f32`: `[n, group, key_dim]`, queries of the questions' tokens

use kiv_haystack::{Haystack, HaystackSpec};
use kiv_policy::{Geometry, Phase, Policy, PolicyError, SealedBlocks, SelectRequest, Selection};
use kiv_runtime::Model;
use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Passes everything on to another policy, and writes down what it saw.
struct Capture {
    inner: Box<dyn Policy>,
    dir: PathBuf,
    groups: Vec<usize>,
}

impl Capture {
    fn append(&self, what: &str, layer: usize, head: usize, rows: &[f32]) -> std::io::Result<()> {
        let path = self.dir.join(format!("{what}.{layer}.{head}.f32"));
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
        file.write_all(&bytes)
    }
}

fn failed(error: std::io::Error) -> PolicyError {
    PolicyError(format!("cannot write a capture: {error}"))
}

impl Policy for Capture {
    fn name(&self) -> &'static str {
        "capture"
    }

    fn block(&self) -> Option<usize> {
        self.inner.block()
    }

    fn start(&mut self, geometry: &Geometry) -> Result<(), PolicyError> {
        self.groups = geometry.layers.iter().map(|l| l.group()).collect();
        self.inner.start(geometry)
    }

    fn seal(&mut self, blocks: &SealedBlocks<'_>) -> Result<(), PolicyError> {
        let mut keys = Vec::new();
        blocks.keys.decode_into(&mut keys);
        self.append("keys", blocks.layer, blocks.kv_head, &keys)
            .map_err(failed)?;
        self.inner.seal(blocks)
    }

    fn select(
        &mut self,
        request: &SelectRequest<'_>,
        selection: &mut Selection,
    ) -> Result<(), PolicyError> {
        let group = self.groups[request.layer];
        let (what, step) = match request.phase {
            Phase::Prefill => ("read", 8),
            Phase::Decode => ("asked", 1),
        };
        for kv_head in 0..selection.n_heads() {
            let mut rows = Vec::new();
            for token in (0..request.queries.n_tokens()).step_by(step) {
                for head in kv_head * group..(kv_head + 1) * group {
                    rows.extend_from_slice(request.queries.get(token, head));
                }
            }
            self.append(what, request.layer, kv_head, &rows)
                .map_err(failed)?;
        }
        self.inner.select(request, selection)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dir = PathBuf::from(args.first().ok_or("name a folder to write to")?);
    std::fs::create_dir_all(&dir)?;
    let n_tokens: usize = args.get(1).map_or(Ok(32768), |n| n.parse())?;
    let name = args.get(2).map_or("exact", String::as_str);
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-f16.gguf");
    let path = args.get(3).map_or(bundled, PathBuf::from);

    let model = Model::load(path)?;
    let count = |text: &str| model.tokenize(text, false).len();
    let depths = (0..11).map(|i| f64::from(i) / 10.0).collect();
    let spec = HaystackSpec::new(1, n_tokens - 1, depths);
    let haystack = Haystack::build(&spec, &mut |text| count(text))?;
    let capture = Capture {
        inner: kiv_policies::by_name(name).ok_or("no such policy")?,
        dir,
        groups: Vec::new(),
    };
    let mut session = model
        .session()
        .ctx_size(n_tokens + 4096)
        .custom_policy(Box::new(capture))
        .build()?;
    session.read(&model.tokenize(&haystack.text, true))?;
    let n = session.tokens().len();
    for placed in &haystack.needles {
        session.read_one_by_one(&model.tokenize(&placed.needle.question, false))?;
        session.truncate(n)?;
    }
    Ok(())
}
