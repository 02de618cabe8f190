//! How long each step of reading takes: whether any of them stops a session for long.
//!
//! ```sh
//! cargo run --release -p kiv-eval --example steps -- TOKENS [FROM] [THREADS] [MODEL]
//! ```
//!
//! A generated text of `TOKENS` tokens is read under `pq`, from token `FROM` on (none by
//! default) one by one. For both ways of reading the median and the longest step are
//! printed, in milliseconds, with their part in the index, and the longest steps one by one.
//! They are of the clock: on a busy machine long ones are others' doing, but for those
//! whose time is the index's.

use kiv_haystack::{Haystack, HaystackSpec};
use kiv_runtime::{Model, Session, Token};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One micro-batch, times in milliseconds.
struct Step {
    end: usize,
    whole: f64,
    index: f64,
}

fn read(
    session: &mut Session,
    text: &[Token],
    at_once: usize,
) -> Result<Vec<Step>, kiv_runtime::Error> {
    let mut steps = Vec::new();
    for tokens in text.chunks(at_once) {
        let (before, started) = (session.stats(), Instant::now());
        if at_once == 1 {
            session.read_one_by_one(tokens)?;
        } else {
            session.read(tokens)?;
        }
        let index = session.stats().since(&before).index;
        steps.push(Step {
            end: session.tokens().len(),
            whole: started.elapsed().as_secs_f64() * 1e3,
            index: index.as_secs_f64() * 1e3,
        });
    }
    Ok(steps)
}

fn print(what: &str, mut steps: Vec<Step>) {
    // The first ones have few keys to choose from.
    steps.drain(..steps.len() / 8);
    let Some(n) = steps.len().checked_sub(1) else {
        return;
    };
    let all: f64 = steps.iter().map(|s| s.whole).sum();
    let index: f64 = steps.iter().map(|s| s.index).sum();
    steps.sort_by(|a, b| b.whole.total_cmp(&a.whole));
    let (median, longest) = (steps[n / 2].whole, steps[0].whole);
    println!(
        "{what}: median {median:.2}, longest {longest:.2}, {:.1} times as long; all {all:.0}, \
         of these in the index {index:.0}",
        longest / median
    );
    steps.sort_by(|a, b| b.index.total_cmp(&a.index));
    for step in steps.iter().take(6) {
        let Step { end, whole, index } = step;
        println!("  until token {end}: {whole:.2}, of these in the index {index:.2}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let n_tokens: usize = args.first().ok_or("how many tokens?")?.parse()?;
    let from: usize = args.get(1).map_or(Ok(n_tokens), |n| n.parse())?;
    let threads: usize = args.get(2).map_or(Ok(1), |n| n.parse())?;
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-f16.gguf");
    let path = args.get(3).map_or(bundled, PathBuf::from);

    let model = Model::load(path)?;
    let spec = HaystackSpec::new(1, n_tokens - 1, vec![0.5]);
    let count = |text: &str| model.tokenize(text, false).len();
    let haystack = Haystack::build(&spec, &mut |text| count(text))?;
    let mut text = model.tokenize(&haystack.text, true);
    text.truncate(n_tokens);
    let builder = model.session().policy("pq").ctx_size(n_tokens + 64);
    let mut session = builder.threads(threads, threads).build()?;
    let (many, single) = text.split_at(from.min(text.len()));
    let at_once = session.pool().ubatch;
    print("micro-batches", read(&mut session, many, at_once)?);
    print("single tokens", read(&mut session, single, 1)?);
    Ok(())
}
