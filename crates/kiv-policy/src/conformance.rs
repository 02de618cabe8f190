//! A conformance kit: what every policy must hold to, whatever it chooses.
//!
//! [`check`] drives a policy through made-up models (grouped-query and
//! multi-head, odd block lengths, several cache types), growing and shrinking
//! sequences, prefill and decode, and queries at the extremes. It checks the
//! contract of [`Policy`], not the quality of the choice.
//!
//! ```
//! # use kiv_policy::*;
//! struct Newest(Geometry);
//! impl Policy for Newest {
//!     fn name(&self) -> &str { "newest" }
//!     fn start(&mut self, g: &Geometry) -> Result<(), PolicyError> {
//!         self.0 = g.clone();
//!         Ok(())
//!     }
//!     fn select(&mut self, r: &SelectRequest<'_>, s: &mut Selection) -> Result<(), PolicyError> {
//!         let n = r.cold.n_blocks();
//!         for head in s.heads_mut() {
//!             head.extend((n.saturating_sub(self.0.n_slots)..n).map(|b| b as BlockId));
//!         }
//!         Ok(())
//!     }
//! }
//! # let empty = Geometry { layers: vec![], block: 1, n_slots: 0, first_position: 0,
//! #     key_format: RowFormat::F16, value_format: RowFormat::F16, n_threads: 1 };
//! conformance::check(|| Box::new(Newest(empty.clone()))).unwrap();
//! ```

use crate::{
    Alone, BlockId, ColdError, ColdRows, ColdRun, Geometry, LayerGeometry, LocalRows, Phase,
    Policy, Queries, RowFormat, Rows, SealedBlocks, SelectRequest, Selection,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

/// A broken promise, and where it was broken.
#[derive(Debug, Error)]
#[error("policy `{policy}`, case {case}: {what}")]
pub struct Breach {
    /// The policy's name.
    pub policy: String,
    /// Which made-up model and step.
    pub case: String,
    /// What went wrong.
    pub what: String,
}

/// A cold store in plain vectors.
struct Cold {
    geometry: Geometry,
    /// `[layer][kv_head]`: K bytes, V bytes.
    rows: Vec<Vec<(Vec<u8>, Vec<u8>)>>,
    n_blocks: usize,
}

impl Cold {
    fn run<'a>(
        &self,
        (format, row_len): (RowFormat, usize),
        bytes: &'a [u8],
        first: BlockId,
        max: usize,
    ) -> Result<ColdRun<'a>, ColdError> {
        // One block at a time when the id is odd: policies must not count on
        // long runs.
        let first = first as usize;
        let n = if first % 2 == 1 {
            1
        } else {
            max.min(self.n_blocks - first)
        };
        let block = format.row_bytes(row_len) * self.geometry.block;
        Ok(ColdRun::Lent(Rows {
            format,
            row_len,
            bytes: &bytes[first * block..(first + n) * block],
        }))
    }
}

impl ColdRows for Cold {
    fn n_blocks(&self) -> usize {
        self.n_blocks
    }
    fn keys(
        &self,
        layer: usize,
        kv_head: usize,
        first: BlockId,
        max: usize,
    ) -> Result<ColdRun<'_>, ColdError> {
        let dim = self.geometry.layers[layer].key_dim;
        self.run(
            (self.geometry.key_format, dim),
            &self.rows[layer][kv_head].0,
            first,
            max,
        )
    }
    fn values(
        &self,
        layer: usize,
        kv_head: usize,
        first: BlockId,
        max: usize,
    ) -> Result<ColdRun<'_>, ColdError> {
        let dim = self.geometry.layers[layer].value_dim;
        self.run(
            (self.geometry.value_format, dim),
            &self.rows[layer][kv_head].1,
            first,
            max,
        )
    }
}

struct Local {
    positions: Vec<i32>,
    dim: usize,
}

impl LocalRows for Local {
    fn positions(&self) -> &[i32] {
        &self.positions
    }
    fn keys(&self, _kv_head: usize, out: &mut Vec<f32>) {
        out.clear();
        out.extend((0..self.positions.len() * self.dim).map(|i| (i % 7) as f32 * 0.1 - 0.3));
    }
}

/// Geometries that differ in everything a policy could take for granted.
fn geometries(block: Option<usize>) -> Vec<Geometry> {
    let layer = |il, n_head, n_head_kv, key_dim, value_dim| LayerGeometry {
        il,
        n_head,
        n_head_kv,
        key_dim,
        value_dim,
        scale: (key_dim as f32).sqrt().recip(),
        soft_cap: (il == 5).then_some(30.0),
    };
    let geometry = |layers, own_block, n_slots, key_format, n_threads| Geometry {
        layers,
        block: block.unwrap_or(own_block),
        n_slots,
        first_position: 4,
        key_format,
        value_format: key_format,
        n_threads,
    };
    vec![
        geometry(
            vec![layer(0, 4, 2, 64, 64), layer(1, 4, 2, 64, 64)],
            32,
            4,
            RowFormat::F16,
            2,
        ),
        // Layers 0 and 2 are not tiered; one KV head; heads of different size.
        geometry(
            vec![layer(1, 3, 1, 32, 96), layer(3, 6, 6, 96, 32)],
            16,
            1,
            RowFormat::Q8_0,
            1,
        ),
        geometry(vec![layer(5, 2, 2, 128, 128)], 7, 3, RowFormat::Q4_0, 3),
        geometry(vec![layer(0, 8, 2, 40, 40)], 1, 24, RowFormat::F32, 2),
        geometry(vec![layer(0, 2, 1, 256, 256)], 64, 0, RowFormat::Bf16, 1),
    ]
}

/// Runs a policy through the kit. `make` must give a fresh instance each time.
///
/// # Errors
/// The first promise that the policy breaks.
pub fn check(mut make: impl FnMut() -> Box<dyn Policy>) -> Result<(), Breach> {
    let (name, block) = {
        let policy = make();
        (policy.name().to_owned(), policy.block())
    };
    for (number, geometry) in geometries(block).into_iter().enumerate() {
        let breach = |at: &str, what: String| Breach {
            policy: name.clone(),
            case: format!("model {number}, {at}"),
            what,
        };
        // Two instances side by side: they must agree in everything.
        let mut pair = [make(), make()];
        for policy in &mut pair {
            policy
                .start(&geometry)
                .map_err(|e| breach("start", e.to_string()))?;
        }
        let mut cold = Cold {
            rows: geometry
                .layers
                .iter()
                .map(|l| vec![(Vec::new(), Vec::new()); l.n_head_kv])
                .collect(),
            geometry,
            n_blocks: 0,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(number as u64);
        // Growing, cut back, growing again; the first question comes before
        // any block is sealed.
        for (round, count) in [0usize, 1, 2, 5, 13, 40].into_iter().enumerate() {
            let at = format!("round {round}");
            if round == 4 {
                truncate(&mut cold, 3);
                for policy in &mut pair {
                    policy.truncate(3).map_err(|e| breach(&at, e.to_string()))?;
                }
            }
            seal(&mut cold, &mut pair, count, &mut rng).map_err(|e| breach(&at, e))?;
            for layer in 0..cold.geometry.layers.len() {
                for (n_tokens, size) in [(1, 1.0), (1, 0.0), (5, 3.0), (33, 1.0), (1, 1e30)] {
                    let at = format!("{at}, layer {layer}, {n_tokens} queries of size {size}");
                    ask(
                        &cold,
                        &mut pair,
                        layer,
                        (n_tokens, size),
                        round as u64,
                        &mut rng,
                    )
                    .map_err(|e| breach(&at, e))?;
                }
            }
        }
        reload(&cold, &mut pair, &mut make).map_err(|e| breach("saved and loaded", e))?;
        for layer in 0..cold.geometry.layers.len() {
            let at = format!("saved and loaded, layer {layer}");
            for queries in [(1, 1.0), (5, 3.0)] {
                ask(&cold, &mut pair, layer, queries, 6, &mut rng).map_err(|e| breach(&at, e))?;
            }
        }
        seal(&mut cold, &mut pair, 3, &mut rng).map_err(|e| breach("sealed after loading", e))?;
        for layer in 0..cold.geometry.layers.len() {
            let at = format!("sealed after loading, layer {layer}");
            ask(&cold, &mut pair, layer, (1, 1.0), 7, &mut rng).map_err(|e| breach(&at, e))?;
        }
        let [a, b] = pair.map(|p| p.index_bytes());
        if a != b {
            return Err(breach("end", format!("index_bytes differs: {a} and {b}")));
        }
    }
    Ok(())
}

/// Puts a policy that loads what the second one saved in its place.
fn reload(
    cold: &Cold,
    pair: &mut [Box<dyn Policy>; 2],
    make: &mut impl FnMut() -> Box<dyn Policy>,
) -> Result<(), String> {
    let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
    let saved = pair[1].save(&mut |name, bytes| {
        parts.push((name.to_owned(), bytes.to_vec()));
        Ok(())
    });
    if !saved.map_err(|e| e.to_string())? {
        return if parts.is_empty() {
            Ok(())
        } else {
            Err("parts were given by a policy that says it saves none".to_owned())
        };
    }
    let mut names: Vec<&String> = parts.iter().map(|p| &p.0).collect();
    names.sort();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("two parts have the same name".to_owned());
    }
    // Without its parts, or with broken ones, it says so, and can start anew.
    let broken: Vec<_> = parts
        .iter()
        .map(|(name, bytes)| (name.clone(), bytes[..bytes.len() / 2].to_vec()))
        .collect();
    for parts in [Vec::new(), broken] {
        let mut policy = make();
        policy.start(&cold.geometry).map_err(|e| e.to_string())?;
        let loaded = policy.load(&mut |name| Ok(find(&parts, name)));
        if loaded.map_err(|e| e.to_string())? {
            return Err("parts that are missing or cut were loaded".to_owned());
        }
        if policy.index_bytes() != {
            let mut new = make();
            new.start(&cold.geometry).map_err(|e| e.to_string())?;
            new.index_bytes()
        } {
            return Err("parts that were refused left something behind".to_owned());
        }
    }
    let mut policy = make();
    policy.start(&cold.geometry).map_err(|e| e.to_string())?;
    let loaded = policy.load(&mut |name| Ok(find(&parts, name)));
    if !loaded.map_err(|e| e.to_string())? {
        return Err("its own parts were refused".to_owned());
    }
    pair[1] = policy;
    Ok(())
}

fn find(parts: &[(String, Vec<u8>)], name: &str) -> Option<Vec<u8>> {
    let found = parts.iter().find(|part| part.0 == name);
    found.map(|part| part.1.clone())
}

fn truncate(cold: &mut Cold, n_blocks: usize) {
    let g = &cold.geometry;
    for (layer, heads) in g.layers.iter().zip(&mut cold.rows) {
        for (k, v) in heads {
            k.truncate(n_blocks * g.block * g.key_format.row_bytes(layer.key_dim));
            v.truncate(n_blocks * g.block * g.value_format.row_bytes(layer.value_dim));
        }
    }
    cold.n_blocks = n_blocks;
}

fn seal(
    cold: &mut Cold,
    pair: &mut [Box<dyn Policy>; 2],
    count: usize,
    rng: &mut ChaCha8Rng,
) -> Result<(), String> {
    if count == 0 {
        return Ok(());
    }
    let g = &cold.geometry;
    for (index, (layer, heads)) in g.layers.iter().zip(&mut cold.rows).enumerate() {
        for (kv_head, (k, v)) in heads.iter_mut().enumerate() {
            let mut rows = |format: RowFormat, dim: usize| {
                let n = count * g.block * dim;
                let values: Vec<f32> = (0..n).map(|_| rng.random_range(-2.0..2.0)).collect();
                format.encode(&values)
            };
            let keys = rows(g.key_format, layer.key_dim);
            let values = rows(g.value_format, layer.value_dim);
            for policy in pair.iter_mut() {
                policy
                    .seal(&SealedBlocks {
                        layer: index,
                        kv_head,
                        first: cold.n_blocks as BlockId,
                        count,
                        keys: Rows {
                            format: g.key_format,
                            row_len: layer.key_dim,
                            bytes: &keys,
                        },
                        values: Rows {
                            format: g.value_format,
                            row_len: layer.value_dim,
                            bytes: &values,
                        },
                    })
                    .map_err(|e| e.to_string())?;
            }
            k.extend(keys);
            v.extend(values);
        }
    }
    cold.n_blocks += count;
    for policy in pair.iter_mut() {
        policy.sealed(cold).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn ask(
    cold: &Cold,
    pair: &mut [Box<dyn Policy>; 2],
    layer: usize,
    (n_tokens, size): (usize, f32),
    step: u64,
    rng: &mut ChaCha8Rng,
) -> Result<(), String> {
    let g = &cold.geometry;
    let l = &g.layers[layer];
    let now = (g.first_position + cold.n_blocks * g.block) as i32;
    let values: Vec<f32> = (0..n_tokens * l.n_head * l.key_dim)
        .map(|_| rng.random_range(-1.0..1.0) * size)
        .collect();
    let positions: Vec<i32> = (0..n_tokens as i32).map(|i| now + 8 + i).collect();
    let local = Local {
        positions: (0..g.first_position as i32)
            .chain(now..now + 8 + n_tokens as i32)
            .collect(),
        dim: l.key_dim,
    };
    let mut answers = Vec::new();
    let runners = if step % 3 == 1 { 5 } else { 0 };
    let takes_rest = n_tokens == 1 && step.is_multiple_of(2);
    // The last slot has been given up.
    let mut slots = rand::seq::index::sample(rng, cold.n_blocks, g.n_slots.min(cold.n_blocks))
        .into_iter()
        .map(|b| b as BlockId)
        .collect::<Vec<_>>();
    if let Some(last) = slots.last_mut().filter(|_| takes_rest) {
        *last = BlockId::MAX;
    }
    let resident = vec![slots.as_slice(); l.n_head_kv];
    for policy in pair {
        let mut selection = Selection::default();
        selection.reset(l.n_head_kv);
        policy
            .select(
                &SelectRequest {
                    layer,
                    phase: if n_tokens == 1 {
                        Phase::Decode
                    } else {
                        Phase::Prefill
                    },
                    step,
                    runners,
                    queries: Queries {
                        values: &values,
                        n_head: l.n_head,
                        dim: l.key_dim,
                        positions: &positions,
                    },
                    cold,
                    local: &local,
                    takes_rest,
                    resident: &resident,
                    sinks: &[],
                    helpers: &Alone,
                },
                &mut selection,
            )
            .map_err(|e| format!("select failed: {e}"))?;
        if selection.n_heads() != l.n_head_kv {
            return Err(format!(
                "{} heads answered, not {}",
                selection.n_heads(),
                l.n_head_kv
            ));
        }
        selection
            .validate(g.n_slots, cold.n_blocks)
            .map_err(|e| e.to_string())?;
        for rest in (0..l.n_head_kv).map(|h| selection.rest(h)) {
            let sizes = (rest.logits.len(), rest.values.len(), rest.totals.len());
            let wanted = (l.group(), l.group() * l.value_dim, l.group());
            if !rest.is_empty() && (!takes_rest || sizes != wanted) {
                return Err(format!("a rest of {sizes:?} logits, values and totals"));
            }
        }
        if let Some(n) = (0..l.n_head_kv)
            .map(|h| selection.runners(h).len())
            .find(|n| *n > runners)
        {
            return Err(format!("{n} blocks come next, {runners} may"));
        }
        answers.push(selection);
    }
    if answers[0] != answers[1] {
        return Err("two instances answered differently".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PolicyError;

    /// Answers with fixed blocks, right or wrong, and a wrong rest if that is asked for.
    struct Fixed(Vec<BlockId>, usize, bool);
    impl Policy for Fixed {
        fn name(&self) -> &str {
            "fixed"
        }
        fn start(&mut self, g: &Geometry) -> Result<(), PolicyError> {
            self.1 = g.n_slots;
            Ok(())
        }
        fn select(&mut self, r: &SelectRequest<'_>, s: &mut Selection) -> Result<(), PolicyError> {
            if r.cold.n_blocks() > 2 && self.1 > 2 {
                s.head_mut(0).extend(&self.0);
            }
            if self.2 && r.takes_rest {
                s.parts_mut().1[0].logits.push(0.0);
            }
            Ok(())
        }
    }

    /// Says that this block comes next, asked or not.
    struct Next(BlockId, bool);
    impl Policy for Next {
        fn name(&self) -> &str {
            "next"
        }
        fn start(&mut self, _: &Geometry) -> Result<(), PolicyError> {
            Ok(())
        }
        fn select(&mut self, r: &SelectRequest<'_>, s: &mut Selection) -> Result<(), PolicyError> {
            if r.cold.n_blocks() > 2 && (r.runners > 0 || self.1) {
                s.ranked_mut(0).1.push(self.0);
            }
            Ok(())
        }
    }

    #[test]
    fn what_comes_next_is_looked_at() {
        check(|| Box::new(Next(1, false))).unwrap();
        for (next, asked, what) in [(4000, false, "cannot come next"), (1, true, "0 may")] {
            let error = check(|| Box::new(Next(next, asked))).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn the_kit_can_fail() {
        check(|| Box::new(Fixed(vec![0, 1], 0, false))).unwrap();
        for (blocks, what) in [
            (vec![1, 1], "twice"),
            (vec![4000], "unknown"),
            ((0..30).collect(), "slots"),
        ] {
            let error = check(|| Box::new(Fixed(blocks.clone(), 0, false))).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
        let error = check(|| Box::new(Fixed(vec![0], 0, true))).unwrap_err();
        assert!(error.to_string().contains("rest"), "{error}");
    }
}
