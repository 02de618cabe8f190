//! Every architecture of `kiv-testmodels` through the hook; the outcome is the
//! table in `docs/models.md`. `KIV_WRITE_TABLE=1` writes it anew, figures and
//! all; otherwise all but the figures must be as written.

use kiv::inspect::{LayerKind, ModelFile};
use kiv::policy::RowFormat;
use kiv::{Model, Outputs, SessionBuilder, Token};
use kiv_testmodels::Spec;
use kiv_verify::{Plan, verify};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Blocks that the policies may keep, as in `kiv-verify`.
const BLOCK: usize = 16;
const SLOTS: usize = 8;
const UBATCH: usize = 64;

/// A cell of the table.
enum Cell {
    Yes,
    /// With its mean KL divergence.
    Close(f64),
    /// A figure without a verdict.
    Kl(f64),
    Refused,
    /// Not as it should be.
    Wrong(String),
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::Close(kl) => write!(f, "yes, {kl:.4}"),
            Self::Kl(kl) => write!(f, "{kl:.4}"),
            Self::Refused => f.write_str("refused"),
            Self::Wrong(why) => write!(f, "WRONG: {why}"),
        }
    }
}

struct Row {
    spec: Spec,
    layers: String,
    tokens: usize,
    cells: Vec<Cell>,
    message: Option<String>,
}

/// One model and what a run of it takes.
struct Run {
    model: Model,
    window: usize,
}

impl Run {
    fn builder(&self, n_ctx: usize) -> SessionBuilder {
        self.model
            .session()
            .sinks(4)
            .block(BLOCK)
            .budget(SLOTS * BLOCK)
            .window(self.window)
            .ubatch(UBATCH)
            .ctx_size(n_ctx)
            .threads(1, 1)
            .all_logits(true)
    }

    fn text(&self, n: usize) -> Vec<Token> {
        let mut tokens = Vec::new();
        for paragraph in kiv_haystack::Prose::new(5) {
            tokens.extend(self.model.tokenize(&(paragraph + "\n"), tokens.is_empty()));
            if tokens.len() >= n {
                break;
            }
        }
        tokens.truncate(n);
        tokens
    }

    fn logits(&self, policy: &str, tokens: &[Token]) -> Result<Vec<Vec<f32>>, String> {
        let mut session = self
            .builder(tokens.len() + UBATCH)
            .policy(policy)
            .build()
            .map_err(|e| chain(&e))?;
        let mut all = Vec::new();
        session
            .read_with(
                tokens,
                Outputs::All,
                |_, row| all.push(row.to_vec()),
                |_| {},
            )
            .map_err(|e| chain(&e))?;
        Ok(all)
    }

    /// Resident and permuted, for a cache type.
    fn verify(&self, cache_type: RowFormat) -> Vec<Cell> {
        let plan = Plan {
            cache_types: vec![cache_type],
            ubatches: vec![1, UBATCH],
            threads: 1,
            window: self.window,
            thorough: false,
            ..Plan::default()
        };
        let mut cells = [Cell::Yes, Cell::Yes];
        let done = verify(&self.model, &plan, |line| {
            if !line.pass {
                cells[usize::from(line.check == "permuted")] = Cell::Wrong(format!("{line:?}"));
            }
        });
        if let Err(error) = done {
            cells[0] = Cell::Wrong(chain(&error));
        }
        cells.into()
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(text, ": {error}");
        source = error.source();
    }
    text
}

fn mean_kl(full: &[Vec<f32>], other: &[Vec<f32>]) -> f64 {
    assert_eq!(full.len(), other.len());
    let kls = full.iter().zip(other);
    kls.map(|(f, o)| kiv_eval::kl_divergence(f, o)).sum::<f64>() / full.len() as f64
}

fn finite(logits: &[Vec<f32>]) -> bool {
    !logits.is_empty() && logits.iter().flatten().all(|x| x.is_finite())
}

/// What the header says of layers, in runs: `2 x (3 global, 1 none)` would be
/// too clever, so kinds are counted.
fn layers(file: &ModelFile) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for layer in &file.layers {
        let name = layer.kind.name();
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, n)) => *n += 1,
            None => counts.push((name, 1)),
        }
    }
    let counts: Vec<_> = counts.iter().map(|(k, n)| format!("{n} {k}")).collect();
    counts.join(", ")
}

/// The header and the live graph must tell the same of the tiered layers.
fn same_layers(file: &ModelFile, session: &kiv::Session) -> Result<(), String> {
    let told: Vec<_> = file
        .tiered_layers()
        .map(|l| (l.il, l.n_head, l.n_head_kv, l.key_dim, l.value_dim))
        .collect();
    let geometry = session.geometry().ok_or("no geometry")?;
    let seen: Vec<_> = geometry
        .layers
        .iter()
        .map(|l| (l.il as usize, l.n_head, l.n_head_kv, l.key_dim, l.value_dim))
        .collect();
    if told == seen {
        Ok(())
    } else {
        Err(format!("the header tells {told:?}, the graph {seen:?}"))
    }
}

const COLUMNS: usize = 8;

fn row(spec: Spec, folder: &Path) -> Row {
    let path = spec.write(folder).unwrap();
    let file = ModelFile::open(&path).unwrap();
    let mut row = Row {
        spec,
        layers: layers(&file),
        tokens: 0,
        cells: vec![],
        message: None,
    };
    let model = match Model::load(&path) {
        Ok(model) => model,
        Err(error) => {
            row.cells.push(Cell::Wrong(chain(&error)));
            return row;
        }
    };
    row.cells.push(Cell::Yes);
    let n_swa = file.layers.iter().filter_map(|l| match l.kind {
        LayerKind::SlidingWindow { n_swa } => Some(n_swa),
        _ => None,
    });
    let run = Run {
        window: n_swa.max().unwrap_or(0).max(64),
        model,
    };
    let no_folder = |text: String| text.replace(&format!("{}/", folder.display()), "");

    row.cells.push(match run.logits("full", &run.text(300)) {
        Ok(logits) if finite(&logits) => Cell::Yes,
        Ok(_) => Cell::Wrong("not finite".to_owned()),
        Err(why) => {
            row.message = Some(no_folder(why));
            Cell::Refused
        }
    });

    let pool = run.builder(1 << 17).policy("exact").build();
    let n_cells = match (file.tierable(), pool) {
        (Ok(()), Ok(session)) => {
            if let Err(why) = same_layers(&file, &session) {
                row.cells.push(Cell::Wrong(why));
                return row;
            }
            session.pool().n_cells
        }
        (Err(told), Err(_)) => {
            // What the program says, before it loads anything.
            row.message = Some(no_folder(chain(&told)));
            row.cells.resize_with(COLUMNS, || Cell::Refused);
            return row;
        }
        (Ok(()), Err(kiv::Error::LongRope { .. })) => {
            let error = run.builder(1 << 17).policy("exact").build().err().unwrap();
            row.message = Some(chain(&error));
            row.cells.resize_with(COLUMNS, || Cell::Refused);
            return row;
        }
        (told, seen) => {
            let seen = seen.err().map(|e| chain(&e));
            row.cells
                .push(Cell::Wrong(format!("header: {told:?}, graph: {seen:?}")));
            return row;
        }
    };
    row.cells.extend(run.verify(RowFormat::F16));

    // Eight pools of text; of llama4, whose pool is 8192 and more, a bit more
    // than one.
    row.tokens = if n_cells > 4096 {
        n_cells + 1024
    } else {
        8 * n_cells
    };
    let text = run.text(row.tokens);
    let full = run.logits("full", &text).unwrap();
    // `window` last in the table, but first here: the others must beat it.
    let mut dropped = f64::INFINITY;
    let mut cells = Vec::new();
    for policy in ["window", "pq", "exact"] {
        cells.push(match run.logits(policy, &text) {
            Err(why) => Cell::Wrong(why),
            Ok(logits) if !finite(&logits) => Cell::Wrong("not finite".to_owned()),
            Ok(logits) => {
                let kl = mean_kl(&full[n_cells..], &logits[n_cells..]);
                match policy {
                    "window" => {
                        dropped = kl;
                        Cell::Kl(kl)
                    }
                    _ if kl < dropped => Cell::Close(kl),
                    _ => Cell::Wrong(format!("KL {kl}, of window {dropped}")),
                }
            }
        });
    }
    row.cells.extend(cells.into_iter().rev());
    let q8 = run.verify(RowFormat::Q8_0);
    let wrong = q8.into_iter().find(|c| !matches!(c, Cell::Yes));
    row.cells.push(wrong.unwrap_or(Cell::Yes));
    row
}

const HEAD: &str = "\
# Models

What the hook does with each kind of attention that llama.cpp runs. Written by
`tests/models.rs` (`KIV_WRITE_TABLE=1 cargo test --release --test models`) from
small models with random weights and true metadata (`crates/kiv-testmodels`);
the test fails if anything here but the figures is not what it measures.

- `full`: runs under `--kv-policy full`, that is stock llama.cpp.
- `resident`: while everything is in the pool, logits have the bits of stock
  llama.cpp's (micro-batches of 1 and 64).
- `permuted`: blocks in random slots at every step change nothing but rounding.
- `exact`, `pq`: a text of eight pools (of llama4, whose pool is as wide as its
  chunk: a pool and 1024 tokens) is finite and closer to full attention than
  `window`, which drops what leaves the pool. The figure is the mean KL
  divergence from full attention in nats, of all tokens after the first pool.
- `q8_0`: `resident` and `permuted` with a q8_0 cache.

Random weights attend to everything, so the figures say that nothing is broken,
not how good a policy is. Not tried yet: contexts saved and opened again, other
positions than `absolute`, and any of these on a GPU.

| model | | layers | loads | `full` | `resident` | `permuted` | `exact` | `pq` | `window` | `q8_0` |
|---|---|---|---|---|---|---|---|---|---|---|
";

fn table(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    for row in rows {
        let _ = write!(
            text,
            "| {} | {} | {} |",
            row.spec.name, row.spec.about, row.layers
        );
        for cell in &row.cells {
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text.push_str("\nRefused with:\n\n");
    for row in rows {
        if let Some(message) = &row.message {
            let _ = writeln!(text, "- {}: `{message}`", row.spec.name);
        }
    }
    text
}

/// Without figures: a number with a point is one.
fn verdicts(text: &str) -> String {
    let words = text.split_inclusive(' ').map(|word| {
        let figure = word.trim_end().parse::<f64>().is_ok() && word.contains('.');
        if figure { "# " } else { word }
    });
    words.collect()
}

#[test]
#[ignore = "docs/models.md is not written yet: the whole run takes minutes"]
fn the_table_of_models_is_true() {
    let folder = tempfile::tempdir().unwrap();
    let only = std::env::var("KIV_MODEL").ok();
    let specs = kiv_testmodels::all().into_iter();
    let rows: Vec<_> = specs
        .filter(|s| only.as_deref().is_none_or(|only| s.name == only))
        .map(|spec| {
            let row = row(spec, folder.path());
            let cells: Vec<_> = row.cells.iter().map(Cell::to_string).collect();
            eprintln!("{} [{}]: {}", spec.name, row.layers, cells.join(" | "));
            row
        })
        .collect();
    let wrong = rows.iter().flat_map(|row| &row.cells);
    let wrong = wrong.filter(|c| matches!(c, Cell::Wrong(_))).count();
    assert_eq!(wrong, 0, "{}", table(&rows));
    if only.is_some() {
        return;
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/models.md");
    let text = table(&rows);
    if std::env::var_os("KIV_WRITE_TABLE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(verdicts(&written), verdicts(&text));
}
