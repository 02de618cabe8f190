//! For tests: one layer with two query heads, or more, and a KV head, and 40 sealed blocks.

use crate::local::NoLocal;
use kiv_policy::{
    Alone, BlockId, ColdRows, Geometry, LayerGeometry, Phase, Policy, Queries, RowFormat,
    SelectRequest,
};
use kiv_store::{ColdTier, HostStore};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

pub(crate) const DIM: usize = 32;
pub(crate) const N_BLOCKS: usize = 40;
const BLOCK: usize = 16;

/// So many numbers up to a size.
pub(crate) fn random(rng: &mut ChaCha8Rng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-size..size)).collect()
}

/// A store of keys of a size, which are values, too, and that `policy` knows all of.
pub(crate) fn store(
    policy: &mut dyn Policy,
    n_slots: usize,
    size: f32,
    rng: &mut ChaCha8Rng,
) -> HostStore {
    store_of(policy, 2, n_slots, size, rng)
}

/// The same for so many query heads.
pub(crate) fn store_of(
    policy: &mut dyn Policy,
    n_head: usize,
    n_slots: usize,
    size: f32,
    rng: &mut ChaCha8Rng,
) -> HostStore {
    let geometry = Geometry {
        layers: vec![LayerGeometry {
            il: 0,
            n_head,
            n_head_kv: 1,
            key_dim: DIM,
            value_dim: DIM,
            scale: 0.3,
            soft_cap: None,
        }],
        block: BLOCK,
        n_slots,
        first_position: 0,
        key_format: RowFormat::F32,
        value_format: RowFormat::F32,
        n_threads: 1,
    };
    let rows = RowFormat::F32.encode(&random(rng, N_BLOCKS * BLOCK * DIM, size));
    let mut store = HostStore::new(&geometry);
    store.append(0, 0, &rows, &rows).unwrap();
    store.publish(N_BLOCKS).unwrap();
    policy.start(&geometry).unwrap();
    policy.sealed(&store).unwrap();
    store
}

/// A decoded token's question, of as many query heads as there are queries.
pub(crate) fn request<'a>(
    queries: &'a [f32],
    cold: &'a dyn ColdRows,
    resident: &'a [&'a [BlockId]],
) -> SelectRequest<'a> {
    SelectRequest {
        layer: 0,
        phase: Phase::Decode,
        step: 0,
        runners: 0,
        queries: Queries {
            values: queries,
            n_head: queries.len() / DIM,
            dim: DIM,
            positions: &[1000],
        },
        cold,
        local: &NoLocal,
        takes_rest: true,
        resident,
        sinks: &[],
        helpers: &Alone,
    }
}
