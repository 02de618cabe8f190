//! Every architecture of `kiv-testmodels` through the hook; the outcome is the
//! table in `docs/models.md`. `KIV_WRITE_TABLE=1` writes it anew, figures and
//! all; otherwise all but the figures must be as written.

use kiv::inspect::{LayerKind, ModelFile};
use kiv::policy::{ColdError, RowFormat};
use kiv::{
    Attended, AttentionTap, Error, Model, Outputs, Positions, Session, SessionBuilder, Token,
};
use kiv_numeric::dot;
use kiv_testmodels::Spec;
use kiv_verify::{Plan, verify};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

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
    /// What is said where a cell is refused.
    messages: Vec<String>,
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
        logits(self.builder(tokens.len() + UBATCH).policy(policy), tokens)
    }

    /// With all blocks of a text in slots, but every eighth.
    fn nearly_all(&self, tokens: &[Token]) -> Result<Vec<Vec<f32>>, String> {
        let builder = self.builder(tokens.len() + UBATCH + tokens.len() / 8 * 7);
        logits(builder.policy("exact").budget(tokens.len() / 8 * 7), tokens)
    }

    /// A context that is kept, and one that is opened again, asked the same.
    fn reopened(&self, tokens: &[Token], folder: &Path, messages: &mut Vec<String>) -> Cell {
        let (text, question) = tokens.split_at(tokens.len() - 8);
        let build = || {
            let builder = self.builder(tokens.len() + UBATCH).policy("pq");
            builder.context_dir(folder.join("context")).build()
        };
        let answer = |session: &mut Session| {
            session.read_one_by_one(question)?;
            Ok::<_, Error>(session.logits().to_vec())
        };
        let mut session = match build() {
            Ok(session) => session,
            Err(error @ Error::NotKept { .. }) => {
                messages.push(chain(&error));
                return Cell::Refused;
            }
            Err(error) => return Cell::Wrong(chain(&error)),
        };
        let kept = session.read(text).and_then(|()| session.commit());
        let kept = kept.and_then(|()| answer(&mut session));
        drop(session);
        let opened = build().and_then(|mut session| {
            assert_eq!(session.tokens(), text);
            answer(&mut session)
        });
        match (kept, opened) {
            (Ok(kept), Ok(opened)) if kept == opened => Cell::Yes,
            (Ok(_), Ok(_)) => Cell::Wrong("other logits".to_owned()),
            (kept, opened) => Cell::Wrong(format!("{:?}, {:?}", kept.err(), opened.err())),
        }
    }

    /// A place that was marked: what comes after it is the same when far more than the
    /// window has been read and taken back in between.
    fn taken_back(&self, tokens: &[Token]) -> Cell {
        let (text, question) = tokens.split_at(tokens.len() - 8);
        let builder = self.builder(2 * tokens.len() + UBATCH).policy("exact");
        let run = || {
            let mut session = builder.build()?;
            session.read(text)?;
            session.mark()?;
            session.rewind(text.len())?;
            session.read_one_by_one(question)?;
            let first = session.logits().to_vec();
            let much = session.pool().n_cells + 100;
            session.read(&text[..much])?;
            session.rewind(text.len())?;
            session.read_one_by_one(question)?;
            Ok::<_, Error>((first, session.logits().to_vec()))
        };
        match run() {
            Ok((first, again)) if first == again => Cell::Yes,
            Ok((first, again)) => {
                Cell::Wrong(format!("KL {}", kiv_eval::kl_divergence(&first, &again)))
            }
            Err(error) => Cell::Wrong(chain(&error)),
        }
    }

    /// Remapped positions: what a query meets in the slots must be what policies are
    /// shown of the sealed rows.
    fn remapped(&self, tokens: &[Token], messages: &mut Vec<String>) -> Cell {
        let (text, question) = tokens.split_at(tokens.len() - 8);
        let builder = self.builder(tokens.len() + UBATCH);
        let builder = builder.policy("pq").positions(Positions::Remapped);
        let mut session = match builder.build() {
            Ok(session) => session,
            Err(error @ Error::CannotRemap { .. }) => {
                messages.push(chain(&error));
                return Cell::Refused;
            }
            Err(error) => return Cell::Wrong(chain(&error)),
        };
        let seen = Arc::new(Mutex::new(Seen::default()));
        let read = session.read(text).and_then(|()| {
            session.set_tap(Some(Box::new(Frames(Arc::clone(&seen)))));
            session.read_one_by_one(question)
        });
        let seen = seen.lock().unwrap();
        match read {
            Err(error) => Cell::Wrong(chain(&error)),
            Ok(()) if !session.logits().iter().all(|x| x.is_finite()) => {
                Cell::Wrong("not finite".to_owned())
            }
            Ok(()) if seen.keys == 0 || seen.worst > 0.02 => Cell::Wrong(format!(
                "products of {} keys differ by up to {} of their lengths",
                seen.keys, seen.worst
            )),
            Ok(()) => Cell::Yes,
        }
    }
}

/// Products of queries with keys in slots, against those with sealed keys.
#[derive(Default)]
struct Seen {
    keys: usize,
    /// Largest difference, to the product of the lengths.
    worst: f32,
}

struct Frames(Arc<Mutex<Seen>>);

impl AttentionTap for Frames {
    fn attended(&mut self, view: &mut Attended<'_>) -> Result<(), ColdError> {
        let (g, block) = (view.geometry, view.block());
        let mut seen = self.0.lock().unwrap();
        for kv_head in 0..g.n_head_kv {
            let keys = view.keys(kv_head);
            let rows = keys.chunks_exact(g.key_dim).zip(view.positions());
            let in_slots: Vec<&[f32]> = rows
                .filter(|(_, position)| view.is_slot(**position))
                .map(|(key, _)| key)
                .collect();
            for (slot, id) in view.slots(kv_head).into_iter().enumerate() {
                let Some(id) = id else {
                    continue;
                };
                let run = view.cold.keys(view.layer, kv_head, id, 1)?;
                let mut sealed = Vec::new();
                run.rows().decode_into(&mut sealed);
                let slot = &in_slots[slot * block..(slot + 1) * block];
                for (key, sealed) in slot.iter().zip(sealed.chunks_exact(g.key_dim)) {
                    for head in kv_head * g.group()..(kv_head + 1) * g.group() {
                        let query = view.queries.get(0, head);
                        let shown = view.cold_queries.get(0, head);
                        let length = (dot(query, query) * dot(key, key)).sqrt();
                        let difference = (dot(query, key) - dot(shown, sealed)).abs();
                        seen.worst = seen.worst.max(difference / length.max(1e-6));
                        seen.keys += 1;
                    }
                }
            }
        }
        Ok(())
    }
}

fn logits(builder: SessionBuilder, tokens: &[Token]) -> Result<Vec<Vec<f32>>, String> {
    let mut session = builder.build().map_err(|e| chain(&e))?;
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

impl Run {
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

const COLUMNS: usize = 12;

fn row(spec: Spec, folder: &Path) -> Row {
    let path = spec.write(folder).unwrap();
    let file = ModelFile::open(&path).unwrap();
    let mut row = Row {
        spec,
        layers: layers(&file),
        tokens: 0,
        cells: vec![],
        messages: vec![],
    };
    let model = match Model::load(&path) {
        Ok(model) => model,
        // Told before anything is loaded, too.
        Err(Error::Load { reason, .. }) if file.tierable().is_err() => {
            row.messages.push(reason);
            row.cells.resize_with(COLUMNS, || Cell::Refused);
            return row;
        }
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
            row.messages.push(no_folder(why));
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
            row.messages.push(no_folder(chain(&told)));
            row.cells.resize_with(COLUMNS, || Cell::Refused);
            return row;
        }
        (Ok(()), Err(kiv::Error::LongRope { .. })) => {
            let error = run.builder(1 << 17).policy("exact").build().err().unwrap();
            row.messages.push(chain(&error));
            row.cells.resize_with(COLUMNS - 1, || Cell::Refused);
            // Distances stay short where positions are remapped.
            let near = run.builder(1 << 17).positions(Positions::Remapped);
            let n_cells = near.policy("pq").build().unwrap().pool().n_cells;
            row.tokens = 8 * n_cells;
            let text = run.text(row.tokens);
            row.cells.push(run.remapped(&text, &mut row.messages));
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
    // `window` last in the table, but first here, to compare with.
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
                    _ if kl < 1.25 * dropped => Cell::Close(kl),
                    _ => Cell::Wrong(format!("KL {kl}, of window {dropped}")),
                }
            }
        });
    }
    row.cells.push(match run.nearly_all(&text) {
        Err(why) => Cell::Wrong(why),
        Ok(logits) if !finite(&logits) => Cell::Wrong("not finite".to_owned()),
        Ok(logits) => {
            let kl = mean_kl(&full[n_cells..], &logits[n_cells..]);
            if kl < dropped / 4.0 {
                Cell::Close(kl)
            } else {
                Cell::Wrong(format!("KL {kl}, of window {dropped}"))
            }
        }
    });
    row.cells.extend(cells.into_iter().rev());
    let q8 = run.verify(RowFormat::Q8_0);
    let wrong = q8.into_iter().find(|c| !matches!(c, Cell::Yes));
    row.cells.push(wrong.unwrap_or(Cell::Yes));
    row.cells
        .push(run.reopened(&text, folder, &mut row.messages));
    let _ = std::fs::remove_dir_all(folder.join("context"));
    row.cells.push(run.taken_back(&text));
    row.cells.push(run.remapped(&text, &mut row.messages));
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
  chunk: a pool and 1024 tokens) is finite and not farther from full attention
  (by a quarter) than `window`, which drops what leaves the pool. The figure is the
  mean KL divergence from full attention in nats, of all tokens after the first pool.
- `7/8`: the same text under `exact` with slots for seven eighths of it is at
  least four times closer than `window`.
- `q8_0`: `resident` and `permuted` with a q8_0 cache.
- `reopened`: a context under `pq` that is kept on disk and opened by another
  session gives the same logits, bit by bit.
- `taken back`: a text after a marked place (`Session::mark`) gives the same logits, bit
  by bit, when more than a pool has been read and taken back in between (under
  `exact`).
- `remapped`: under `pq` with `--kv-pos remapped` the text is finite, and what
  queries meet in the slots is what the policy is shown of the sealed rows.
  Before anything is computed, the rotation of every layer's keys is compared
  with llama.cpp's at four positions.

Random weights attend to everything alike, so the figures say that nothing is broken,
not how good a policy is (jamba's attention, without RoPE, is so even that the best
eighth of the keys says less of it than the newest). None of these has been tried on a GPU.

| model | | layers | loads | `full` | `resident` | `permuted` | `7/8` | `exact` | `pq` | `window` | `q8_0` | reopened | taken back | remapped |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
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
    let mut all: Vec<(String, Vec<&str>)> = Vec::new();
    for row in rows {
        for message in &row.messages {
            // A figure of one machine is none of another.
            let message = message.split(" (at position").next().unwrap_or(message);
            match all.iter_mut().find(|(known, _)| known == message) {
                Some((_, names)) => names.push(row.spec.name),
                None => all.push((message.to_owned(), vec![row.spec.name])),
            }
        }
    }
    for (message, names) in all {
        let _ = writeln!(text, "- {}: `{message}`", names.join(", "));
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

fn the_table_of_models_is_true() {
    let folder = tempfile::tempdir().unwrap();
    let only = std::env::var("KIV_MODEL").ok();
    let specs = kiv_testmodels::all().into_iter();
    let specs = specs.filter(|s| only.as_deref().is_none_or(|only| s.name == only));
    // Each is computed by one thread, and none waits for another.
    let queue = Mutex::new(specs.enumerate());
    let rows = Mutex::new(Vec::new());
    let work = || {
        loop {
            let next = queue.lock().unwrap().next();
            let Some((number, spec)) = next else { return };
            let folder = folder.path().join(spec.name);
            std::fs::create_dir(&folder).unwrap();
            let row = row(spec, &folder);
            let cells: Vec<_> = row.cells.iter().map(Cell::to_string).collect();
            eprintln!("{} [{}]: {}", spec.name, row.layers, cells.join(" | "));
            rows.lock().unwrap().push((number, row));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut rows = rows.into_inner().unwrap();
    rows.sort_by_key(|(number, _)| *number);
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
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
