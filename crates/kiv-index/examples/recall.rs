//! How much of the attention mass that exact selection finds an index finds,
//! and how fast, on keys and queries of a model.
//!
//! ```sh
//! cargo run --release -p kiv-eval --example capture -- DIR 262144 kiv
//! cargo run --release -p kiv-index --example recall -- DIR [name=value …]
//! ```
//!
//! Names: `budget` (tokens), `block` (tokens), `scale`, `n` (keys), `queries`,
//! `probed`, `kept` (see `Effort`), `fine`, `coarse`, `segment`, `list`,
//! `era`, `late` (see `Params`; 0, unlike in a session: what is whole is divided), `timed` (searches besides, for a profiler), `observe` (0: codebooks never see a query). A row for
//! every layer and KV head:
//!
//! - `exact`: share of the softmax over these keys that the best blocks hold
//! - `found`: what the blocks hold that the index finds, over `exact`
//! - `us`: microseconds of one search; `build`: of a key; `bytes`: of a key

use kiv_fastscan::Isa;
use kiv_index::{Effort, HeadIndex, Hits, Params, Scratch};
use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

fn floats(path: &Path) -> Option<Vec<f32>> {
    let bytes = std::fs::read(path).ok()?;
    let (words, _) = bytes.as_chunks::<4>();
    Some(words.iter().map(|w| f32::from_le_bytes(*w)).collect())
}

fn softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    logits.iter_mut().for_each(|l| *l = (*l - max).exp());
    let sum: f32 = logits.iter().sum();
    logits.iter_mut().for_each(|l| *l /= sum);
}

/// Indices of the `k` largest.
fn best(values: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
    order.truncate(k);
    order
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("name the folder of a capture")?;
    let dir = Path::new(&dir);
    let given: HashMap<String, f64> = args
        .filter_map(|arg| {
            let (name, value) = arg.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect();
    let get = |name: &str, default: f64| given.get(name).copied().unwrap_or(default);
    let int = |name: &str, default: usize| get(name, default as f64) as usize;
    let (dim, group) = (int("dim", 64), int("group", 2));
    let scale = get("scale", 1.0 / (dim as f64).sqrt()) as f32;
    let (block, budget) = (int("block", 32), int("budget", 2048));
    let effort = Effort {
        probed: int("probed", 10240),
        kept: int("kept", 2048),
    };
    let base = Params::new(dim, scale);
    let params = Params {
        dim,
        scale,
        fine: int("fine", base.fine),
        coarse: int("coarse", base.coarse),
        segment: int("segment", base.segment),
        list: int("list", base.list),
        era: int("era", base.era),
        late: int("late", 0),
    };
    let reuse = get("reuse", 0.0) > 0.0;
    let isa = Isa::detect();
    println!("{effort:?} {params:?} {}", isa.name());
    let (mut all_exact, mut all_found, mut rows) = (0.0, 0.0, 0);
    for layer in 0.. {
        if !dir.join(format!("keys.{layer}.0.f32")).exists() {
            break;
        }
        for head in 0.. {
            let file = |what: &str| floats(&dir.join(format!("{what}.{layer}.{head}.f32")));
            let (Some(mut keys), Some(read), Some(asked)) =
                (file("keys"), file("read"), file("asked"))
            else {
                break;
            };
            keys.truncate(int("n", usize::MAX / dim).min(keys.len() / dim) / block * block * dim);
            let n = keys.len() / dim;
            let mut index = HeadIndex::new(params.clone());
            let started = Instant::now();
            // As a session would: queries of a micro-batch, then its keys.
            let per_key = read.len() as f64 / keys.len() as f64;
            let segment = params.segment;
            let mut read_back = |first: usize, out: &mut Vec<f32>| {
                out.extend_from_slice(&keys[first * dim..(first + segment) * dim]);
                true
            };
            for (i, keys) in keys.chunks(512 * dim).enumerate() {
                if get("observe", 1.0) > 0.0 {
                    let at = |i: usize| ((i * 512) as f64 * per_key) as usize * dim;
                    index.observe(&read[at(i).min(read.len())..at(i + 1).min(read.len())]);
                }
                index.append(keys, &mut read_back)?;
            }
            let build = started.elapsed().as_secs_f64() * 1e6 / n as f64;
            let all = asked.len() / (dim * group);
            let n_queries = int("queries", 40).min(all);
            let (mut scratch, mut hits) = (Scratch::default(), Hits::default());
            let (mut exact, mut found, mut reused, mut time) = (0.0, 0.0, 0.0, 0.0);
            let started = Instant::now();
            for i in 0..int("timed", 0) {
                let at = (i % all) * dim * group;
                let queries: Vec<f32> = asked[at..at + dim * group]
                    .iter()
                    .map(|v| v * scale)
                    .collect();
                index.search(isa, queries[..].into(), effort, &mut scratch, &mut hits)?;
            }
            let timed = started.elapsed().as_secs_f64() * 1e6 / get("timed", 1.0);
            for i in 0..n_queries {
                let at = (i * all / n_queries) * dim * group;
                let queries: Vec<f32> = asked[at..at + dim * group]
                    .iter()
                    .map(|v| v * scale)
                    .collect();
                let shares = |queries: &[f32]| {
                    let mut share = vec![0f32; n / block];
                    for query in queries.chunks(dim) {
                        let mut logits: Vec<f32> = keys
                            .chunks(dim)
                            .map(|k| k.iter().zip(query).map(|(a, b)| a * b).sum())
                            .collect();
                        softmax(&mut logits);
                        for (share, masses) in share.iter_mut().zip(logits.chunks(block)) {
                            *share += masses.iter().sum::<f32>() / group as f32;
                        }
                    }
                    share
                };
                let share = shares(&queries);
                let started = Instant::now();
                index.search(isa, queries[..].into(), effort, &mut scratch, &mut hits)?;
                time += started.elapsed().as_secs_f64() * 1e6;
                let mut mass = vec![0f32; n / block];
                for query in 0..group {
                    let (tokens, logits) = hits.of(query);
                    let mut logits = logits.to_vec();
                    softmax(&mut logits);
                    for (token, share) in tokens.iter().zip(logits) {
                        mass[*token as usize / block] += share;
                    }
                }
                let held =
                    |blocks: &[usize]| blocks.iter().map(|b| f64::from(share[*b])).sum::<f64>();
                exact += held(&best(&share, budget / block));
                if reuse && i > 0 {
                    let before: Vec<f32> = asked[at - dim * group..at]
                        .iter()
                        .map(|v| v * scale)
                        .collect();
                    reused += held(&best(&shares(&before), budget / block));
                }
                found += held(&best(&mass, budget / block));
            }
            println!(
                "layer {layer} head {head} n {n} exact {:.4} found {:.4} us {:.0} timed {timed:.0} build {build:.2} bytes {:.2}",
                exact / n_queries as f64,
                found / exact,
                time / n_queries as f64,
                index.bytes() as f64 / n as f64,
            );
            if reuse {
                println!(
                    "  the best blocks of the token before: {:.4}",
                    reused / exact
                );
            }
            all_exact += exact;
            all_found += found;
            rows += n_queries;
        }
    }
    println!(
        "all: exact {:.4} found {:.4}",
        all_exact / f64::from(rows as u32),
        all_found / all_exact
    );
    Ok(())
}
