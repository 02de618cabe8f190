use super::super::*;
use super::{SHARE, behind};
use crate::fixture;
use crate::local::NoLocal;
use kiv_policy::{Alone, Queries, RowFormat, conformance};
use kiv_store::{ColdTier, HostStore};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::thread::sleep;
use std::time::Duration;

const DIM: usize = 16;
const BLOCK: usize = 16;
/// In blocks: eras of 256 tokens, each in its place 64 tokens after it is whole.
const ERA: usize = 16;
const PLACE: usize = ERA + 4;
const LAYERS: usize = 2;
const HEADS: usize = 3;

fn geometry() -> Geometry {
    let layer = |il| LayerGeometry {
        il,
        n_head: 2 * HEADS,
        n_head_kv: HEADS,
        key_dim: DIM,
        value_dim: DIM,
        scale: 0.3,
        soft_cap: None,
    };
    Geometry {
        layers: (0..LAYERS as u32).map(layer).collect(),
        block: BLOCK,
        n_slots: 5,
        first_position: 4,
        key_format: RowFormat::F16,
        value_format: RowFormat::F16,
        n_threads: 8,
    }
}

/// A policy with small eras.
fn pq(before_each: fn()) -> Pq {
    Pq {
        before_each,
        sizes: |dim, scale| Params {
            segment: 32,
            era: 8,
            late: 2,
            ..Params::new(dim, scale)
        },
        ..Pq::default()
    }
}

fn random(seed: usize, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
    fixture::random(&mut rng, n, 1.5)
}

/// A session's policy and rows.
struct Session {
    policy: Pq,
    store: HostStore,
    /// Whether all work is waited for as soon as it is given away.
    waits: bool,
}

impl Session {
    fn new(before_each: fn(), waits: bool) -> Self {
        let mut policy = pq(before_each);
        policy.start(&geometry()).unwrap();
        Self {
            policy,
            store: HostStore::new(&geometry()),
            waits,
        }
    }

    /// Seals one more block.
    fn seal(&mut self) -> Result<(), PolicyError> {
        let n = self.store.n_blocks();
        for layer in 0..LAYERS {
            for head in 0..HEADS {
                let rows = random(n * 100 + layer * 10 + head, BLOCK * DIM);
                let rows = RowFormat::F16.encode(&rows);
                self.store.append(layer, head, &rows, &rows).unwrap();
            }
        }
        self.store.publish(1).unwrap();
        let told = self.policy.sealed(&self.store);
        if told.is_err() {
            // As a session does.
            self.store.truncate(n);
            self.policy.truncate(n).unwrap();
        }
        self.wait();
        told
    }

    fn wait(&mut self) {
        while self.waits && self.policy.state.as_ref().unwrap().workers.at_work() > 0 {
            sleep(Duration::from_micros(50));
        }
    }

    /// What is wanted for a token's queries in every layer.
    fn ask(&mut self, seed: usize) -> Vec<Selection> {
        let values = random(7 * seed, 2 * HEADS * DIM);
        let mut answers = Vec::new();
        for layer in 0..LAYERS {
            let mut selection = Selection::default();
            selection.reset(HEADS);
            let request = SelectRequest {
                layer,
                phase: Phase::Decode,
                step: seed as u64,
                runners: 0,
                queries: Queries {
                    values: &values,
                    n_head: 2 * HEADS,
                    dim: DIM,
                    positions: &[100_000],
                },
                cold: &self.store,
                local: &NoLocal,
                takes_rest: true,
                resident: &[],
                sinks: &[],
                helpers: &Alone,
            };
            self.policy.select(&request, &mut selection).unwrap();
            self.wait();
            answers.push(selection);
        }
        answers
    }

    /// Seals blocks until there are so many, and asks after each.
    fn go_on(&mut self, n_blocks: usize) -> Vec<Vec<Selection>> {
        let mut answers = Vec::new();
        while self.store.n_blocks() < n_blocks {
            self.seal().unwrap();
            answers.push(self.ask(self.store.n_blocks()));
        }
        answers
    }

    fn cut(&mut self, n_blocks: usize) {
        self.store.truncate(n_blocks);
        self.policy.truncate(n_blocks).unwrap();
        self.policy.sealed(&self.store).unwrap();
    }

    fn saved(&self) -> Vec<(String, Vec<u8>)> {
        let mut parts = Vec::new();
        let mut keep = |name: &str, bytes: &[u8]| {
            parts.push((name.to_owned(), bytes.to_vec()));
            Ok(())
        };
        assert!(self.policy.save(&mut keep).unwrap());
        parts
    }

    /// Goes on with what another process would find.
    fn reopen(&mut self) {
        let parts = self.saved();
        let before_each = self.policy.before_each;
        self.policy = pq(before_each);
        self.policy.start(&geometry()).unwrap();
        let mut find = |name: &str| {
            let part = parts.iter().find(|(known, _)| known == name);
            Ok(part.map(|(_, bytes)| bytes.clone()))
        };
        assert!(self.policy.load(&mut find).unwrap());
    }
}

/// Three sessions whose work is done before anything else happens, at leisure, and too
/// slowly for their turns.
fn sessions() -> [Session; 3] {
    [
        Session::new(|| (), true),
        Session::new(|| (), false),
        Session::new(|| sleep(Duration::from_millis(20)), false),
    ]
}

fn all_same<T: PartialEq>(of_each: &[T]) -> bool {
    of_each.iter().all(|one| *one == of_each[0])
}

#[test]
fn answers_do_not_depend_on_how_fast_work_is_done() {
    let mut sessions = sessions();
    for (cut, reopen, to) in [
        // Straight on, from between an era's end and its turn, and cut back to before,
        // to there, and to right after.
        (None, false, ERA + 1),
        (None, true, PLACE),
        (Some(PLACE - 1), false, PLACE + 3),
        (Some(ERA - 3), true, PLACE - 1),
        (Some(ERA + 1), false, PLACE),
        (Some(ERA), true, 2 * ERA + 1),
        (Some(ERA + 2), false, 2 * ERA + 3),
        (Some(1), false, PLACE + 1),
        (Some(0), true, 2 * PLACE),
    ] {
        let answers = sessions.each_mut().map(|session| {
            if let Some(n) = cut {
                session.cut(n);
            }
            if reopen {
                session.reopen();
            }
            session.go_on(to)
        });
        let what = format!("cut to {cut:?}, reopened: {reopen}, read to {to}");
        assert!(all_same(&answers), "{what}");
        assert!(all_same(&sessions.each_ref().map(Session::saved)), "{what}");
    }
    // There was some.
    let heads = sessions.iter().flat_map(|s| &s.policy.state);
    let mut heads = heads.flat_map(|state| state.heads.iter().flatten());
    assert!(heads.all(|head| head.index.n_eras() == 2));
}

#[test]
fn the_conformance_kit_passes_with_small_eras() {
    conformance::check(|| Box::new(pq(|| sleep(Duration::from_millis(1))))).unwrap();
}

#[test]
fn as_many_are_given_away_as_there_are_threads() {
    let mut session = Session::new(|| sleep(Duration::from_millis(200)), false);
    session.go_on(ERA);
    let state = session.policy.state.as_mut().unwrap();
    assert_eq!(state.workers.at_work(), 8 / SHARE);
    assert!(!state.workers.is_free() && state.undone);
    let wait = |head: &Head| head.index.undone().is_some();
    let waiting = state.heads.iter().flatten().filter(|head| wait(head));
    assert_eq!(waiting.count(), LAYERS * HEADS - 8 / SHARE);
    // A session that goes leaves nothing to wait for.
    drop(session);
}

/// The session does the work itself.
#[test]
fn a_panic_at_work_harms_nobody() {
    let mut session = Session::new(|| panic!("as a broken machine would"), true);
    let mut whole = Session::new(|| (), true);
    assert!(session.go_on(PLACE + 3) == whole.go_on(PLACE + 3));
    assert!(session.saved() == whole.saved());
}

#[test]
fn what_is_late_is_done_in_rounds_of_all_threads() {
    // Nobody else does anything.
    let (n_heads, n_threads) = (224, 16);
    let mut undone = n_heads;
    let mut most = 0;
    for batch in 1..=32u8 {
        let now = behind(f32::from(batch) / 32.0, n_heads, undone, n_threads);
        assert_eq!(now % n_threads, 0);
        undone -= now;
        most = most.max(now);
    }
    assert_eq!((undone, most), (0, n_threads));
    // Others are fast enough.
    assert_eq!(behind(0.5, 224, 112, 16), 0);
    // What is left for the end is less than a round.
    assert_eq!(behind(1.0, 8, 5, 2), 4);
    assert_eq!(behind(1.5, 8, 1, 2), 0);
}
