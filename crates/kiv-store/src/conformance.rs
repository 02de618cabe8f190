//! What every [`ColdTier`] must hold to, wherever it keeps rows.

use crate::ColdTier;
use kiv_policy::{BlockId, Geometry, LayerGeometry, RowFormat, RowsOf};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A model in plain vectors: bytes of K and V by stream.
struct Model {
    geometry: Geometry,
    /// `[stream][K, V]`.
    rows: Vec<[Vec<u8>; 2]>,
    n_blocks: usize,
}

impl Model {
    fn streams(&self) -> Vec<(usize, usize)> {
        let layers = self.geometry.layers.iter().enumerate();
        layers
            .flat_map(|(layer, l)| (0..l.n_head_kv).map(move |head| (layer, head)))
            .collect()
    }

    fn block_bytes(&self, layer: usize) -> [usize; 2] {
        let (g, l) = (&self.geometry, &self.geometry.layers[layer]);
        [
            g.block * g.key_format.row_bytes(l.key_dim),
            g.block * g.value_format.row_bytes(l.value_dim),
        ]
    }
}

/// Geometries that differ in what a tier could take for granted.
#[must_use]
pub fn geometries() -> Vec<Geometry> {
    let layer = |n_head_kv, key_dim, value_dim| LayerGeometry {
        il: 0,
        n_head: 4,
        n_head_kv,
        key_dim,
        value_dim,
        scale: 1.0,
        soft_cap: None,
    };
    let geometry = |block, key_format, value_format| Geometry {
        layers: vec![layer(2, 32, 64), layer(1, 64, 32)],
        block,
        n_slots: 4,
        first_position: 0,
        key_format,
        value_format,
        n_threads: 1,
    };
    vec![
        geometry(1, RowFormat::Q8_0, RowFormat::F16),
        geometry(7, RowFormat::F16, RowFormat::Q4_0),
        geometry(32, RowFormat::Q4_0, RowFormat::Q4_0),
        geometry(1500, RowFormat::F16, RowFormat::F16),
    ]
}

/// Puts tiers through `rounds` random sequences of appending, publishing,
/// rolling back, cutting, announcing and reading, beside a model in plain
/// vectors.
///
/// # Errors
/// The first promise that is broken, in words.
pub fn check(
    mut make: impl FnMut(&Geometry) -> Box<dyn ColdTier>,
    rounds: usize,
) -> Result<(), String> {
    for round in 0..rounds {
        let geometries = geometries();
        let geometry = geometries[round % geometries.len()].clone();
        let mut tier = make(&geometry);
        let streams: usize = geometry.layers.iter().map(|l| l.n_head_kv).sum();
        let mut model = Model {
            geometry,
            rows: vec![Default::default(); streams],
            n_blocks: 0,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(round as u64);
        for step in 0..12 {
            let told = |what| format!("round {round}, step {step}: {what}");
            act(&mut *tier, &mut model, &mut rng).map_err(told)?;
            compare(&*tier, &model, &mut rng).map_err(told)?;
        }
    }
    Ok(())
}

fn act(tier: &mut dyn ColdTier, model: &mut Model, rng: &mut ChaCha8Rng) -> Result<(), String> {
    let count = rng.random_range(0..5usize);
    match rng.random_range(0..8) {
        0 => {
            let n = rng.random_range(0..=model.n_blocks + 1);
            tier.truncate(n);
            model.n_blocks = model.n_blocks.min(n);
            for (stream, (layer, _)) in model.streams().into_iter().enumerate() {
                let keep = model.block_bytes(layer).map(|b| b * model.n_blocks);
                for (rows, keep) in model.rows[stream].iter_mut().zip(keep) {
                    rows.truncate(keep);
                }
            }
        }
        what => {
            for (stream, (layer, head)) in model.streams().into_iter().enumerate() {
                let mut rows = model.block_bytes(layer).map(|b| vec![0; b * count]);
                rows.iter_mut().for_each(|r| rng.fill(&mut r[..]));
                let [keys, values] = &rows;
                let told = |e: crate::StoreError| e.to_string();
                tier.append(layer, head, keys, values).map_err(told)?;
                if what == 1 && stream == 1 {
                    // Something else failed half way.
                    break;
                }
                if what > 2 {
                    for (all, more) in model.rows[stream].iter_mut().zip(rows) {
                        all.extend(more);
                    }
                }
            }
            if what > 2 {
                tier.publish(count).map_err(|e| e.to_string())?;
                model.n_blocks += count;
            } else {
                tier.roll_back();
            }
        }
    }
    Ok(())
}

/// Compares all that `tier` holds with the model; blocks are announced at
/// random.
fn compare(tier: &dyn ColdTier, model: &Model, rng: &mut ChaCha8Rng) -> Result<(), String> {
    if tier.n_blocks() != model.n_blocks {
        return Err(format!(
            "{} blocks, not {}",
            tier.n_blocks(),
            model.n_blocks
        ));
    }
    let block = model.geometry.block;
    if model.n_blocks > 0 {
        let streams = model.streams();
        for _ in 0..rng.random_range(0..6) {
            let (layer, kv_head) = streams[rng.random_range(0..streams.len())];
            let block = rng.random_range(0..model.n_blocks) as BlockId;
            let rows = [RowsOf::Keys, RowsOf::Values, RowsOf::Both][rng.random_range(0..3)];
            tier.expect(layer, kv_head, rows, &[block]);
        }
    }
    for ((layer, head), rows) in model.streams().into_iter().zip(&model.rows) {
        for (which, want) in rows.iter().enumerate() {
            let (mut got, mut at) = (Vec::new(), 0);
            while at < model.n_blocks {
                let max = if rng.random() { usize::MAX } else { 1 };
                let read = if which == 0 {
                    tier.keys(layer, head, at as BlockId, max)
                } else {
                    tier.values(layer, head, at as BlockId, max)
                };
                let run = read.map_err(|e| e.to_string())?;
                let rows = run.rows();
                let blocks = rows.n_rows() / block;
                if blocks == 0 || blocks > max || rows.n_rows() % block != 0 {
                    return Err(format!("a run of {} rows", rows.n_rows()));
                }
                got.extend_from_slice(rows.bytes);
                at += blocks;
            }
            if got != *want {
                return Err(format!(
                    "layer {layer}, KV head {head}: other bytes came back"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HostStore, ReadStats, StoreError};
    use kiv_policy::{ColdError, ColdRows, ColdRun};

    /// Forgets to cut.
    struct Leaky(HostStore);
    impl ColdRows for Leaky {
        fn n_blocks(&self) -> usize {
            self.0.n_blocks()
        }
        fn keys(&self, l: usize, h: usize, b: u32, n: usize) -> Result<ColdRun<'_>, ColdError> {
            self.0.keys(l, h, b, n)
        }
        fn values(&self, l: usize, h: usize, b: u32, n: usize) -> Result<ColdRun<'_>, ColdError> {
            self.0.keys(l, h, b, n)
        }
    }
    impl ColdTier for Leaky {
        fn append(&mut self, l: usize, h: usize, k: &[u8], v: &[u8]) -> Result<(), StoreError> {
            self.0.append(l, h, k, v)
        }
        fn publish(&mut self, count: usize) -> Result<(), StoreError> {
            self.0.publish(count)
        }
        fn roll_back(&mut self) {
            self.0.roll_back();
        }
        fn truncate(&mut self, n_blocks: usize) {
            self.0.truncate(n_blocks);
        }
        fn host_bytes(&self) -> usize {
            self.0.host_bytes()
        }
    }

    #[test]
    fn the_suite_can_fail() {
        let error = check(|g| Box::new(Leaky(HostStore::new(g))), 4).unwrap_err();
        assert!(error.contains("other bytes"), "{error}");
        let store = HostStore::new(&geometries()[0]);
        assert_eq!(store.read_stats(), ReadStats::default());
    }
}
