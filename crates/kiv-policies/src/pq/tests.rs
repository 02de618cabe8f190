use super::*;
use crate::local::NoLocal;
use kiv_policy::{ColdError, ColdRun, Queries, Rest, RowFormat};
use kiv_store::{ColdTier, HostStore};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DIM: usize = 32;
const BLOCK: usize = 16;
const N_BLOCKS: usize = 40;

/// Rows whose values cannot be read any more after so many times.
struct Failing {
    rows: HostStore,
    reads_left: Mutex<usize>,
}

impl ColdRows for Failing {
    fn n_blocks(&self) -> usize {
        self.rows.n_blocks()
    }

    fn keys(&self, l: usize, h: usize, b: BlockId, n: usize) -> Result<ColdRun<'_>, ColdError> {
        self.rows.keys(l, h, b, n)
    }

    fn values(&self, l: usize, h: usize, b: BlockId, n: usize) -> Result<ColdRun<'_>, ColdError> {
        let mut left = self.reads_left.lock().unwrap();
        *left = left
            .checked_sub(1)
            .ok_or_else(|| ColdError("no such row".to_owned()))?;
        self.rows.values(l, h, b, n)
    }
}

/// A policy that knows all blocks of a store, and the store.
fn prepared() -> (Pq, Failing) {
    let geometry = Geometry {
        layers: vec![LayerGeometry {
            il: 0,
            n_head: 2,
            n_head_kv: 1,
            key_dim: DIM,
            value_dim: DIM,
            scale: 0.3,
            soft_cap: None,
        }],
        block: BLOCK,
        n_slots: 6,
        first_position: 0,
        key_format: RowFormat::F32,
        value_format: RowFormat::F32,
        n_threads: 1,
    };
    let rows = RowFormat::F32.encode(&random(1, N_BLOCKS * BLOCK * DIM));
    let mut store = HostStore::new(&geometry);
    store.append(0, 0, &rows, &rows).unwrap();
    store.publish(N_BLOCKS).unwrap();
    let mut policy = Pq::default();
    policy.start(&geometry).unwrap();
    policy.sealed(&store).unwrap();
    let reads_left = Mutex::new(usize::MAX);
    let store = Failing {
        rows: store,
        reads_left,
    };
    (policy, store)
}

fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.5..1.5)).collect()
}

/// What is wanted for a token's queries, and what the rest adds.
fn ask(
    policy: &mut Pq,
    cold: &Failing,
    queries: &[f32],
) -> Result<(Vec<BlockId>, Rest), PolicyError> {
    let mut selection = Selection::default();
    selection.reset(1);
    let request = SelectRequest {
        layer: 0,
        phase: Phase::Decode,
        step: 0,
        runners: 0,
        queries: Queries {
            values: queries,
            n_head: 2,
            dim: DIM,
            positions: &[1000],
        },
        cold,
        local: &NoLocal,
        takes_rest: true,
        resident: &[],
        sinks: &[],
    };
    policy.select(&request, &mut selection)?;
    Ok((selection.head(0).to_vec(), selection.rest(0).clone()))
}

#[test]
fn a_row_that_cannot_be_read_leaves_no_trace() {
    let (before, after) = (random(2, 2 * DIM), random(3, 2 * DIM));
    let (mut policy, store) = prepared();
    let (undisturbed, _) = ask(&mut policy, &store, &before).unwrap();
    let wanted = ask(&mut policy, &store, &after).unwrap();
    assert!(undisturbed.iter().any(|block| !wanted.0.contains(block)));
    for reads in [0, 1, 7] {
        let (mut policy, store) = prepared();
        *store.reads_left.lock().unwrap() = reads;
        let failed = ask(&mut policy, &store, &before).unwrap_err();
        assert_eq!(failed.to_string(), "no such row");
        *store.reads_left.lock().unwrap() = usize::MAX;
        assert_eq!(ask(&mut policy, &store, &after).unwrap(), wanted);
    }
}

#[test]
fn all_heads_are_served_by_several_threads() {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(3);
    let threads = threads.build().unwrap();
    for work in [0, PARALLEL + 1] {
        let served = Mutex::new(Vec::new());
        let serve = |head: usize| {
            served.lock().unwrap().push(head);
            Ok(())
        };
        for_all(&threads, work, (0..17).collect(), serve).unwrap();
        let mut served = served.into_inner().unwrap();
        served.sort_unstable();
        assert_eq!(served, (0..17).collect::<Vec<_>>());
        let fails = |head: usize| match head {
            11 => Err(PolicyError("eleven".to_owned())),
            _ => Ok(()),
        };
        let failed = for_all(&threads, work, (0..17).collect(), fails);
        assert_eq!(failed.unwrap_err().to_string(), "eleven");
    }
}
