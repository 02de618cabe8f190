//! Work that is done elsewhere, dividing eras and training codebooks: the same index, whoever
//! does it and when.

use kiv_fastscan::Isa;
use kiv_index::{Effort, HeadIndex, Hits, Params, Scratch, Work};
use kiv_wire::Take;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

const DIM: usize = 32;
const SEGMENT: usize = 64;
const ERA: usize = 4 * SEGMENT;

const EVERYTHING: Effort = Effort {
    probed: usize::MAX / 2,
    kept: usize::MAX / 2,
};

fn params(late: usize) -> Params {
    Params {
        segment: SEGMENT,
        era: 4,
        late,
        ..Params::new(DIM, 0.2)
    }
}

fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    /// The index itself, where it needs it.
    Nobody,
    /// Another thread, before anything else happens.
    AtOnce,
    /// Another thread, which is not done when the era's turn comes.
    Slowly,
}

/// An index, all keys that there are, and who is at work on it.
struct Session {
    index: HeadIndex,
    keys: Vec<f32>,
    who: Who,
    at_work: Vec<JoinHandle<()>>,
}

impl Session {
    fn new(who: Who, late: usize) -> Self {
        Self {
            index: HeadIndex::new(params(late)),
            keys: random(1, 6 * ERA * DIM),
            who,
            at_work: Vec::new(),
        }
    }

    fn keys_of(&self, work: &Work) -> Vec<f32> {
        let tokens = work.tokens();
        self.keys[tokens.start * DIM..tokens.end * DIM].to_vec()
    }

    /// Goes on to `n` tokens, with queries in between.
    fn go_on(&mut self, n: usize) {
        while self.index.len() < n {
            // As many as are left to the next of some steps.
            let end = ((self.index.len() + 24) / 24 * 24).min(n);
            self.index.observe(&random(end as u64, DIM));
            let (keys, from) = (&self.keys, self.index.len());
            let mut read = |first: usize, out: &mut Vec<f32>| {
                out.extend_from_slice(&keys[first * DIM..(first + SEGMENT) * DIM]);
                true
            };
            let new = &keys[from * DIM..end * DIM];
            self.index.append(new, &mut read).unwrap();
            self.give_out();
        }
    }

    fn give_out(&mut self) {
        while self.who != Who::Nobody
            && let Some(tokens) = self.index.undone()
        {
            let work = self.index.give_away().unwrap();
            assert_eq!(work.tokens(), tokens);
            let (keys, who) = (self.keys_of(&work), self.who);
            let worker = spawn(move || {
                if who == Who::Slowly {
                    sleep(Duration::from_millis(30));
                }
                work.run(keys);
            });
            if who == Who::AtOnce {
                worker.join().unwrap();
            } else {
                self.at_work.push(worker);
            }
        }
        assert!(self.index.undone().is_none() || self.who == Who::Nobody);
    }

    /// All of it as bytes.
    fn saved(&self) -> Vec<Vec<u8>> {
        let mut rest = Vec::new();
        self.index.put_rest(&mut rest);
        let era = |i| {
            let mut bytes = Vec::new();
            self.index.put_era(i, &mut bytes);
            bytes
        };
        std::iter::once(rest)
            .chain((0..self.index.n_eras()).map(era))
            .collect()
    }

    /// As another process would find it.
    fn reopen(&mut self) {
        let saved = self.saved();
        let mut parts = saved.iter().map(|bytes| Take::new(bytes));
        let mut rest = parts.next().unwrap();
        let mut eras: Vec<_> = parts.collect();
        let params = self.index.params().clone();
        self.index = HeadIndex::take(params, &mut rest, &mut eras).unwrap();
        assert_eq!(self.saved(), saved);
        self.give_out();
    }

    /// Best tokens of some queries, and the bits of their logits.
    fn found(&self) -> Vec<(Vec<u32>, Vec<u32>)> {
        let few = Effort {
            probed: 64,
            kept: 20,
        };
        (0..3)
            .map(|i| self.search(&random(100 + i, DIM), few))
            .collect()
    }

    fn search(&self, query: &[f32], effort: Effort) -> (Vec<u32>, Vec<u32>) {
        let (mut scratch, mut hits) = (Scratch::default(), Hits::default());
        self.index
            .search(Isa::detect(), query.into(), effort, &mut scratch, &mut hits)
            .unwrap();
        let (tokens, logits) = hits.of(0);
        (
            tokens.to_vec(),
            logits.iter().map(|l| l.to_bits()).collect(),
        )
    }
}

/// What is done to a session, as the others do it too.
#[derive(Clone, Copy, Debug)]
enum Step {
    To(usize),
    Cut(usize),
    Reopen,
}
use Step::{Cut, Reopen, To};

#[test]
fn it_does_not_matter_who_does_it_and_when() {
    // An era is whole, and takes its place `late` segments later.
    let whole = ERA;
    for late in [1, 2, 4] {
        let place = ERA + late * SEGMENT;
        let cuts = [
            // Before it is whole; while it is divided; right after; later.
            (place - 1, 0),
            (place - 1, SEGMENT + 3),
            (place - 1, whole - 1),
            (place - 1, whole),
            (place - 1, whole + 1),
            (place - SEGMENT / 2, place - SEGMENT),
            (place, place - 1),
            (place + 5, whole + 1),
            (place + 5, whole - 1),
            (2 * ERA + SEGMENT, ERA + 1),
        ];
        let plain = [
            vec![
                To(whole - 1),
                To(whole),
                To(place - 1),
                To(place),
                To(3 * ERA + 7),
            ],
            vec![To(whole), Reopen, To(place - 1), Reopen, To(place), Reopen],
            vec![
                To(2 * ERA + 3),
                Reopen,
                To(4 * ERA + 99),
                Cut(10),
                To(2 * ERA),
            ],
        ];
        let cut =
            cuts.map(|(from, to)| vec![To(from), Cut(to), Reopen, To(place + 7), To(3 * ERA)]);
        for steps in plain.into_iter().chain(cut) {
            let whos = [Who::Nobody, Who::AtOnce, Who::Slowly, Who::Nobody];
            let mut sessions = whos.map(|who| Session::new(who, late));
            for step in &steps {
                for (number, session) in sessions.iter_mut().enumerate() {
                    match *step {
                        To(n) => session.go_on(n),
                        Cut(n) => session.index.truncate(n),
                        // The last one never stops.
                        Reopen if number == 3 => (),
                        Reopen => session.reopen(),
                    }
                }
                let [nobody, others @ ..] = &sessions;
                let (saved, found) = (nobody.saved(), nobody.found());
                for other in others {
                    let what = format!("{late} late, {:?} at {step:?} of {steps:?}", other.who);
                    assert!(other.saved() == saved, "{what}");
                    assert!(other.found() == found, "{what}");
                }
            }
            for worker in sessions.into_iter().flat_map(|s| s.at_work) {
                worker.join().unwrap();
            }
        }
    }
}

#[test]
fn an_era_takes_its_place_when_its_turn_comes() {
    for who in [Who::Nobody, Who::AtOnce] {
        let mut session = Session::new(who, 2);
        for (n, eras) in [
            (ERA - 1, 0),
            (ERA, 0),
            (ERA + 2 * SEGMENT - 1, 0),
            (ERA + 2 * SEGMENT, 1),
            (2 * ERA + 2 * SEGMENT - 1, 1),
            (2 * ERA + 2 * SEGMENT, 2),
        ] {
            session.go_on(n);
            assert_eq!(session.index.n_eras(), eras, "{n} tokens");
            // Everything is found all the while, once.
            let (mut tokens, _) = session.search(&random(5, DIM), EVERYTHING);
            tokens.sort_unstable();
            assert_eq!(tokens, (0..n as u32).collect::<Vec<_>>());
        }
    }
    // With no time given it is divided at once.
    let mut session = Session::new(Who::Nobody, 0);
    session.go_on(ERA);
    assert_eq!((session.index.n_eras(), session.index.undone()), (1, None));
}

/// Whoever gives up, even by a panic, or is not done in time is not waited for.
#[test]
fn work_that_is_lost_is_done_by_the_index() {
    let place = ERA + 2 * SEGMENT;
    for (begun, starts) in [(ERA + 3, vec![0]), (ERA + SEGMENT + 3, vec![ERA, 0])] {
        for ends in ["dropped", "panics", "late"] {
            let mut session = Session::new(Who::Nobody, 2);
            session.go_on(begun);
            let mut late = Vec::new();
            for start in &starts {
                let work = session.index.give_away().unwrap();
                assert_eq!(work.tokens().start, *start);
                if ends == "late" {
                    late.push((session.keys_of(&work), work));
                    continue;
                }
                let worker = spawn(move || {
                    let _lost = work;
                    assert!(ends != "panics", "as a broken machine would");
                });
                assert_eq!(worker.join().is_err(), ends == "panics");
            }
            session.go_on(place);
            assert_eq!(session.index.n_eras(), 1);
            for (keys, work) in late {
                assert!(!work.is_wanted());
                work.run(keys);
            }
            session.go_on(2 * ERA);
            let mut whole = Session::new(Who::Nobody, 2);
            whole.go_on(begun);
            whole.go_on(2 * ERA);
            assert!(session.saved() == whole.saved(), "{ends}");
        }
    }
}

/// Who works in vain is told so, and harms nobody.
#[test]
fn work_on_what_is_forgotten_is_not_wanted() {
    let mut session = Session::new(Who::Nobody, 2);
    session.go_on(ERA + 3);
    let work = session.index.give_away().unwrap();
    session.index.truncate(ERA + 1);
    assert!(work.is_wanted());
    session.index.truncate(ERA - 1);
    assert!(!work.is_wanted() && session.index.undone().is_none());
    session.go_on(ERA);
    assert!(!work.is_wanted() && session.index.undone() == Some(0..ERA));
    let keys = session.keys_of(&work);
    work.run(keys);
    session.go_on(2 * ERA);
    let work = session.index.give_away().unwrap();
    // A copy waits for nobody.
    let copy = session.index.clone();
    assert_eq!(copy.undone(), Some(ERA..2 * ERA));
    drop((session, copy));
    assert!(!work.is_wanted());
}
