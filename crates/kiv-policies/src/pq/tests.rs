use super::*;
use crate::fixture;
use kiv_policy::{ColdError, ColdRun, Rest};
use kiv_store::HostStore;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

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
    let mut policy = Pq::default();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let rows = fixture::store(&mut policy, 6, 1.5, &mut rng);
    let reads_left = Mutex::new(usize::MAX);
    (policy, Failing { rows, reads_left })
}

/// A token's queries.
fn queries(seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    fixture::random(&mut rng, 2 * fixture::DIM, 1.5)
}

/// What is wanted for a token's queries, and what the rest adds.
fn ask(
    policy: &mut Pq,
    cold: &Failing,
    queries: &[f32],
) -> Result<(Vec<BlockId>, Rest), PolicyError> {
    let mut selection = Selection::default();
    selection.reset(1);
    let request = fixture::request(queries, cold, &[]);
    policy.select(&request, &mut selection)?;
    Ok((selection.head(0).to_vec(), selection.rest(0).clone()))
}

#[test]
fn a_row_that_cannot_be_read_leaves_no_trace() {
    let (before, after) = (queries(2), queries(3));
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
