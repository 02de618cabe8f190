use super::crew::WAKING;
use super::*;
use crate::fixture;
use kiv_index::{Effort, Found};
use kiv_policy::{Alone, ColdError, ColdRun, Helpers, Queries, Rest, Spawned};
use kiv_store::HostStore;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::{Arc, Mutex};

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
    let mut policy = Pq::default().in_order();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let rows = fixture::store(&mut policy, 6, 1.5, &mut rng);
    let reads_left = Mutex::new(usize::MAX);
    (policy, Failing { rows, reads_left })
}

/// A token's queries.
fn queries(seed: u64) -> Vec<f32> {
    queries_of(2, seed)
}

/// Those of so many query heads.
fn queries_of(n_head: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    fixture::random(&mut rng, n_head * fixture::DIM, 1.5)
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

/// Few subquantizers, and small eras of small segments.
fn coarse(dim: usize, scale: f32) -> Params {
    Params {
        fine: 2,
        coarse: 2,
        segment: 64,
        era: 4,
        late: 0,
        ..Params::new(dim, scale)
    }
}

/// However coarse the codes are, and however many query heads there are: a key outside of the
/// slots counts for what it is.
#[test]
fn a_rest_is_made_of_true_logits() {
    for n_head in [2, 9, 16, 32] {
        let mut policy = Pq::default().with_sizes(coarse);
        // So many slots that all other keys are in the rest.
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        let rows = fixture::store_of(&mut policy, n_head, 26, 1.5, rng);
        let all = rows.keys(0, 0, 0, fixture::N_BLOCKS).unwrap();
        let (block, mut keys) = (all.rows().n_rows() / fixture::N_BLOCKS, Vec::new());
        all.rows().decode_into(&mut keys);
        drop(all);
        let reads_left = Mutex::new(usize::MAX);
        let cold = Failing { rows, reads_left };
        let asked = queries_of(n_head, 2);
        let (wanted, rest) = ask(&mut policy, &cold, &asked).unwrap();
        assert_eq!((wanted.len(), rest.logits.len()), (25, n_head));
        for (i, query) in asked.chunks(fixture::DIM).enumerate() {
            let all_keys = &keys;
            let keys = keys.chunks(fixture::DIM).enumerate();
            let outside = keys.filter(|(token, _)| !wanted.contains(&((token / block) as BlockId)));
            let logit = |key: &[f32]| 0.3 * kiv_numeric::dot(query, key);
            let total: Vec<f32> = all_keys.chunks(fixture::DIM).map(logit).collect();
            let apart = rest.totals[i] - kiv_numeric::log_sum_exp(&total);
            assert!(apart.abs() < 1.0, "query {i} of {n_head}: {apart}");
            let (mut sum, mut value) = (0.0, vec![0.0; fixture::DIM]);
            for (_, key) in outside {
                let share = (logit(key) - rest.logits[i]).exp();
                sum += share;
                value.iter_mut().zip(key).for_each(|(v, k)| *v += share * k);
            }
            assert!((sum - 1.0).abs() < 0.05, "query {i} of {n_head}: {sum}");
            let got = &rest.values[i * fixture::DIM..(i + 1) * fixture::DIM];
            let apart = got.iter().zip(&value).map(|(a, b)| (a - b).abs());
            assert!(apart.fold(0.0, f32::max) < 0.05, "query {i} of {n_head}");
        }
    }
}

#[test]
fn all_heads_are_served_by_several_threads() {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(3);
    let own = threads.build().unwrap();
    let few: [(usize, &dyn Helpers); 4] =
        [(0, &Alone), (0, &Spawned(3)), (1, &Alone), (1, &Spawned(3))];
    for (work, helpers) in few
        .into_iter()
        .chain([(WAKING + 1, &Alone as &dyn Helpers)])
    {
        let own = &own;
        let crew = Crew { own, helpers, work };
        let finished = Mutex::new(Vec::new());
        let finish = |head: usize| {
            finished.lock().unwrap().push(head);
            Ok(())
        };
        crew.all((0..17).collect(), Ok, finish).unwrap();
        let mut finished = finished.into_inner().unwrap();
        finished.sort_unstable();
        assert_eq!(finished, (0..17).collect::<Vec<_>>());
        let fails = |head: usize| match head {
            11 => Err(PolicyError("eleven".to_owned())),
            _ => Ok(head),
        };
        for failed in [
            crew.all((0..17).collect(), fails, |_| Ok(())),
            crew.all((0..17).collect(), Ok, |head| fails(head).map(|_| ())),
        ] {
            assert_eq!(failed.unwrap_err().to_string(), "eleven");
        }
    }
}

/// Who looks for the queries of a head makes no difference, bit by bit: not for so few that
/// they are searched for together, and not for more.
#[test]
fn what_is_chosen_does_not_depend_on_the_threads() {
    for n_head in [2, 9, 16, 32] {
        threads_choose_the_same(n_head, Pq::default);
        threads_choose_the_same(n_head, || Pq::default().in_order());
        threads_choose_the_same(n_head, || Pq::default().with_sizes(coarse));
    }
}

fn threads_choose_the_same(n_head: usize, policy: fn() -> Pq) {
    let store = |policy: &mut Pq| {
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        fixture::store_of(policy, n_head, 6, 1.5, rng)
    };
    let (mut alone, mut several) = (policy(), policy());
    let cold = store(&mut alone);
    store(&mut several);
    let values_of = n_head * fixture::DIM;
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (mut rests, mut last) = (0, Vec::new());
    // Micro-batches and tokens in turn.
    for n_tokens in [1, 1, 40, 1, 300, 7, 1] {
        let values = fixture::random(&mut rng, n_tokens * values_of, 1.5);
        let positions: Vec<i32> = (1000..).take(n_tokens).collect();
        let decodes = n_tokens == 1;
        let select = |policy: &mut Pq, helpers: &dyn Helpers| {
            let request = SelectRequest {
                phase: [Phase::Prefill, Phase::Decode][usize::from(decodes)],
                queries: Queries {
                    values: &values,
                    n_head,
                    dim: fixture::DIM,
                    positions: &positions,
                },
                takes_rest: decodes,
                runners: 3,
                helpers,
                ..fixture::request(&values, &cold, &[])
            };
            let mut selection = Selection::default();
            selection.reset(1);
            policy.select(&request, &mut selection).unwrap();
            selection
        };
        let (one, same) = (
            select(&mut alone, &Alone),
            select(&mut several, &Spawned(3)),
        );
        assert_eq!(one.head(0), same.head(0));
        assert_eq!(one.rest(0), same.rest(0));
        assert_eq!(one.runners(0), same.runners(0));
        let rest = &one.rest(0).logits;
        assert_eq!(rest.len(), if decodes { n_head } else { 0 });
        rests += usize::from(!rest.is_empty());
        assert_ne!(one.head(0), last, "{n_tokens}");
        last = one.head(0).to_vec();
    }
    assert_eq!(rests, 4);
    let parts = |policy: &Pq| policy.state.as_ref().unwrap().heads[0][0].parts.len();
    assert_eq!((parts(&alone), parts(&several)), (1, n_head.min(3)));
    // A query that is no number is told of, and forgotten.
    let bad = vec![f32::NAN; values_of];
    let values = queries_of(n_head, 5);
    for (values, is_good) in [(&bad[..], false), (&values[..], true)] {
        let select = |policy: &mut Pq, helpers: &dyn Helpers| {
            let request = SelectRequest {
                helpers,
                ..fixture::request(values, &cold, &[])
            };
            let mut selection = Selection::default();
            selection.reset(1);
            let chosen = policy.select(&request, &mut selection);
            chosen.ok().map(|()| selection.head(0).to_vec())
        };
        let chosen = select(&mut several, &Spawned(3));
        assert_eq!(chosen.is_some(), is_good);
        if is_good {
            assert_eq!(select(&mut alone, &Alone), chosen);
        }
    }
}

/// Blocks in slots have their head start, however many query heads there are.
#[test]
fn many_heads_let_stay_who_is_there() {
    for n_head in [9, 16, 32] {
        let mut policy = Pq::default();
        // All blocks have nearly the same share.
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        let cold = fixture::store_of(&mut policy, n_head, 6, 1e-4, rng);
        let values = queries_of(n_head, 2);
        let mut ask = |resident: &[BlockId]| {
            let mut selection = Selection::default();
            selection.reset(1);
            let resident = [resident];
            let request = fixture::request(&values, &cold, &resident);
            policy.select(&request, &mut selection).unwrap();
            let mut wanted = selection.head(0).to_vec();
            wanted.sort_unstable();
            wanted
        };
        let there = [3, 9, 17, 25, 30];
        assert_ne!(ask(&[]), there);
        assert_eq!(ask(&there), there);
    }
}

/// A device that finds nothing, and remembers what it was asked.
struct Asked(Arc<Mutex<Vec<Vec<f32>>>>);

impl Finder for Asked {
    fn find(
        &mut self,
        layer: usize,
        heads: &[&HeadIndex],
        asked: kiv_index::Asked<'_>,
        _: Effort,
        found: &mut [Option<Found>],
    ) {
        assert_eq!((layer, heads.len(), found.len()), (0, 1, 1));
        // Nothing is attended to in any case.
        assert_eq!(asked.floors, [f32::NEG_INFINITY; 2]);
        self.0.lock().unwrap().push(asked.queries.to_vec());
    }

    fn bytes(&self) -> usize {
        77
    }

    fn searches(&self) -> u64 {
        0
    }
}

#[test]
fn a_device_is_asked_for_decoded_tokens_alone() {
    let (mut plain, store) = prepared();
    assert_eq!(plain.device_use(), None);
    let asked = Arc::default();
    let mut policy = Pq::default().with_finder(Box::new(Asked(Arc::clone(&asked))));
    let rows = fixture::store(&mut policy, 6, 1.5, &mut ChaCha8Rng::seed_from_u64(1));
    assert_eq!(policy.device_use().map(|u| u.bytes), Some(77));
    // Who finds nothing leaves it to the CPU.
    let values = queries(2);
    let reads_left = Mutex::new(usize::MAX);
    let cold = Failing { rows, reads_left };
    let wanted = ask(&mut plain, &store, &values).unwrap();
    assert_eq!(ask(&mut policy, &cold, &values).unwrap(), wanted);
    // As they are searched for: under the scale.
    let scaled: Vec<f32> = values.iter().map(|v| v * 0.3).collect();
    assert_eq!(*asked.lock().unwrap(), [scaled]);
    let mut selection = Selection::default();
    let prefill = SelectRequest {
        phase: Phase::Prefill,
        ..fixture::request(&values, &cold, &[])
    };
    selection.reset(1);
    policy.select(&prefill, &mut selection).unwrap();
    let bad = [&values[1..], &[f32::NAN]].concat();
    assert!(ask(&mut policy, &cold, &bad).is_err());
    assert_eq!(asked.lock().unwrap().len(), 1);
}

/// What is wanted for a micro-batch's queries, `[n, 2, DIM]`, of which each attends to a sink.
fn read(policy: &mut dyn Policy, cold: &dyn ColdRows, values: &[f32], sink: f32) -> Vec<BlockId> {
    let positions: Vec<i32> = (1000..).take(values.len() / 2 / fixture::DIM).collect();
    let request = SelectRequest {
        phase: Phase::Prefill,
        queries: Queries {
            values,
            n_head: 2,
            dim: fixture::DIM,
            positions: &positions,
        },
        takes_rest: false,
        sinks: &[sink; 2],
        ..fixture::request(values, cold, &[])
    };
    let mut selection = Selection::default();
    selection.reset(1);
    policy.select(&request, &mut selection).unwrap();
    selection.head(0).to_vec()
}

/// Reading sees what scoring every key for every query would.
#[test]
fn a_micro_batch_wants_what_each_of_its_queries_needs() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let (mut policy, mut exact) = (Pq::default(), crate::Exact::default());
    let store = fixture::store(&mut policy, 8, 1.5, &mut ChaCha8Rng::seed_from_u64(1));
    fixture::store(&mut exact, 8, 1.5, &mut ChaCha8Rng::seed_from_u64(1));
    let (mut same, mut all) = (0, 0);
    for n in [1, 5, 16, 70, 300] {
        for sink in [f32::NEG_INFINITY, 0.0, 6.0] {
            let values = fixture::random(&mut rng, n * 2 * fixture::DIM, 2.0);
            let wanted = read(&mut policy, &store, &values, sink);
            let best = read(&mut exact, &store, &values, sink);
            assert_eq!((wanted.len(), best.len()), (8, 8));
            same += best.iter().filter(|block| wanted.contains(block)).count();
            all += best.len();
        }
    }
    // Exact adds up what a token's heads need.
    assert!(same * 100 >= all * 80, "{same} of {all}");
}

/// One query of many that looks for something else is not lost in their mean.
#[test]
fn a_single_query_is_seen() {
    let mut policy = Pq::default();
    let store = fixture::store(&mut policy, 6, 1.5, &mut ChaCha8Rng::seed_from_u64(1));
    let mut keys = Vec::new();
    let all = store.keys(0, 0, 0, fixture::N_BLOCKS).unwrap();
    all.rows().decode_into(&mut keys);
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for token in [3, 100, 331, 500, 639] {
        let usual = fixture::random(&mut rng, fixture::DIM, 1.0);
        let mut values = Vec::new();
        for _ in 0..512 * 2 {
            let noise = fixture::random(&mut rng, fixture::DIM, 0.05);
            values.extend(usual.iter().zip(noise).map(|(a, b)| a + b));
        }
        let one = rng.random_range(0..512 * 2) * fixture::DIM;
        let key = &keys[token * fixture::DIM..][..fixture::DIM];
        let looks = values[one..].iter_mut().zip(key);
        looks.for_each(|(value, key)| *value = 2.0 * key);
        let wanted = read(&mut policy, &store, &values, f32::NEG_INFINITY);
        let block = (token * fixture::N_BLOCKS / (keys.len() / fixture::DIM)) as BlockId;
        assert!(wanted.contains(&block), "{block} in {wanted:?}");
    }
}

/// What a query attends to in any case leaves no room for keys that are far below it.
#[test]
fn who_looks_at_what_is_there_anyway_asks_for_nothing() {
    let (mut policy, store) = prepared();
    let values = queries(2);
    let mut ask = |sinks: [f32; 2]| {
        let mut selection = Selection::default();
        selection.reset(1);
        let request = SelectRequest {
            sinks: &sinks,
            ..fixture::request(&values, &store, &[])
        };
        policy.select(&request, &mut selection).unwrap();
        (selection.head(0).to_vec(), selection.rest(0).clone())
    };
    let none = f32::NEG_INFINITY;
    let (all, rest) = ask([none, none]);
    assert_eq!((all.len(), rest.logits.len()), (5, 2));
    // Logits are not above 0.3 * 32 * 1.5 * 1.5.
    let (wanted, rest) = ask([40.0, 40.0]);
    assert!(wanted.is_empty() && rest.logits.is_empty());
    // Each query by itself, and as much as it needs.
    let (first, second) = (ask([none, 40.0]).0, ask([40.0, none]).0);
    assert!(first.len() == 5 && second.len() == 5 && first != second);
    assert_eq!(ask([5.0, 5.0]).0.len(), 5);
}
