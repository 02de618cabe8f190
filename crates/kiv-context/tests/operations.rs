//! Random operations against a simple model, with failing operations and
//! losses of power in between.

mod support;

use kiv_context::{ContextError, DiskTier, Folder};
use kiv_policy::ColdRows;
use kiv_store::ColdTier;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
use support::{MemFolder, identity, pattern, streams};

/// What a context should hold: a salt for each block, and the parts.
#[derive(Clone, Debug, Default, PartialEq)]
struct Held {
    salts: Vec<u8>,
    parts: Vec<(String, Vec<u8>)>,
    n_tokens: u64,
    /// Its number.
    commit: u64,
}

#[derive(Clone, Debug)]
enum Op {
    Append(usize),
    RollBack(usize),
    Truncate(usize),
    Commit(u8),
    Reopen,
    Crash,
    /// The n-th write operation from here on fails.
    Fail(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0usize..5).prop_map(Op::Append),
        1 => (1usize..3).prop_map(Op::RollBack),
        2 => (0usize..12).prop_map(Op::Truncate),
        3 => any::<u8>().prop_map(Op::Commit),
        1 => Just(Op::Reopen),
        2 => Just(Op::Crash),
        2 => (0usize..14).prop_map(Op::Fail),
    ]
}

fn append(tier: &mut DiskTier, first: usize, count: usize, salt: u8) {
    for (stream, (layer, head, lens)) in streams(&identity()).into_iter().enumerate() {
        let [keys, values] = [0, 1].map(|which| {
            let blocks = first..first + count;
            blocks
                .flat_map(|b| pattern(b, stream, which, salt, lens[which]))
                .collect::<Vec<u8>>()
        });
        tier.append(layer, head, &keys, &values).unwrap();
    }
}

fn assert_holds(tier: &DiskTier, held: &Held) {
    assert_eq!(tier.n_blocks(), held.salts.len());
    for (stream, (layer, head, lens)) in streams(&identity()).into_iter().enumerate() {
        for (block, salt) in held.salts.iter().enumerate() {
            let keys = tier.keys(layer, head, block as u32, 9).unwrap();
            let values = tier.values(layer, head, block as u32, 9).unwrap();
            for (which, run) in [keys, values].into_iter().enumerate() {
                let want = pattern(block, stream, which, *salt, lens[which]);
                assert_eq!(run.rows().bytes, want, "block {block}");
            }
        }
    }
}

fn open(folder: &MemFolder, limit: Option<usize>) -> Result<DiskTier, ContextError> {
    DiskTier::open_in(Arc::new(folder.clone()), identity(), limit)
}

fn assert_committed(tier: &DiskTier, held: &Held) {
    assert_holds(tier, held);
    assert_eq!(tier.manifest().n_tokens, held.n_tokens);
    let names: Vec<&str> = tier
        .manifest()
        .parts
        .iter()
        .map(|p| p.name.as_str())
        .collect();
    let want: Vec<&str> = held.parts.iter().map(|p| p.0.as_str()).collect();
    assert_eq!(names, want);
    for (name, bytes) in &held.parts {
        assert_eq!(tier.part(name).unwrap().as_ref(), Some(bytes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]
    #[test]
    fn a_context_is_what_its_last_commit_says(
        ops in prop::collection::vec(op(), 1..40),
        limit in prop::sample::select(vec![None, Some(0), Some(3000)]),
        seed in any::<u64>(),
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut folder = MemFolder::default();
        let mut tier = open(&folder, limit).unwrap();
        let (mut now, mut committed) = (Held::default(), Held::default());
        // A commit that failed in its very last step may be durable or not.
        let mut or_else: Option<Held> = None;
        for op in ops {
            match op {
                Op::Append(count) => {
                    let salt = rng.random();
                    append(&mut tier, now.salts.len(), count, salt);
                    if tier.publish(count).is_ok() {
                        now.salts.extend(std::iter::repeat_n(salt, count));
                    } else {
                        tier.roll_back();
                    }
                }
                Op::RollBack(count) => {
                    append(&mut tier, now.salts.len(), count, 0);
                    tier.roll_back();
                }
                Op::Truncate(n) => {
                    tier.truncate(n);
                    now.salts.truncate(n);
                }
                Op::Commit(tokens) => {
                    now.n_tokens = tokens.into();
                    let wanted = [("same", vec![7; 40]), ("tokens", vec![tokens; 9])];
                    let before = tier.manifest().commit;
                    now.commit = before + 1;
                    let mut commit = tier.commit();
                    let mut result = Ok(());
                    for (name, bytes) in &wanted {
                        result = result.and_then(|()| commit.part(name, bytes));
                    }
                    now.parts = wanted.map(|(n, b)| (n.to_owned(), b)).to_vec();
                    let result = result.and_then(|()| commit.finish(tokens.into()));
                    let is_last = tier.manifest().commit > before;
                    if result.is_ok() {
                        committed = now.clone();
                        or_else = None;
                    } else if is_last {
                        or_else = Some(std::mem::replace(&mut committed, now.clone()));
                    } else {
                        or_else = or_else.or(Some(now.clone()));
                    }
                }
                Op::Reopen | Op::Crash => {
                    drop(tier);
                    folder.fail_after(None);
                    if matches!(op, Op::Crash) {
                        folder = folder.crashed(&mut rng);
                    }
                    tier = open(&folder, limit).unwrap();
                    let other = or_else.take();
                    if let Some(other) = other
                        && tier.manifest().commit != committed.commit
                    {
                        committed = other;
                    }
                    assert_committed(&tier, &committed);
                    now = committed.clone();
                    // Only what the commit names is there.
                    let files = folder.names().unwrap().len();
                    let named = tier.manifest().segments.len() + tier.manifest().parts.len();
                    prop_assert_eq!(files, named + usize::from(!tier.is_new()));
                }
                Op::Fail(n) => folder.fail_after(Some(n)),
            }
            assert_holds(&tier, &now);
        }
    }
}

/// One that fails at every single operation of a commit, and goes on.
#[test]
fn every_step_of_a_commit_may_fail() {
    for fuse in 0..40 {
        let folder = MemFolder::default();
        let mut tier = open(&folder, None).unwrap();
        append(&mut tier, 0, 3, 1);
        tier.publish(3).unwrap();
        let mut commit = tier.commit();
        commit.part("tokens", b"one").unwrap();
        commit.finish(1).unwrap();
        folder.fail_after(Some(fuse));
        append(&mut tier, 3, 2, 2);
        let published = tier.publish(2).is_ok();
        if !published {
            tier.roll_back();
            // The disk has room again.
            append(&mut tier, 3, 2, 2);
            tier.publish(2).unwrap();
        }
        let mut commit = tier.commit();
        let result = commit
            .part("tokens", b"two")
            .and_then(|()| commit.finish(2));
        if let Err(error) = &result {
            let text = error.to_string();
            assert!(text.contains("cannot write /memory"), "{text}");
        }
        // What failed once can be done again.
        let failed = folder.failed();
        folder.fail_after(None);
        let mut commit = tier.commit();
        commit.part("tokens", b"three").unwrap();
        commit.finish(3).unwrap();
        drop(tier);
        let mut rng = ChaCha8Rng::seed_from_u64(fuse as u64);
        let tier = open(&folder.crashed(&mut rng), None).unwrap();
        assert_eq!((tier.n_blocks(), tier.manifest().n_tokens), (5, 3));
        assert_eq!(tier.part("tokens").unwrap().unwrap(), b"three");
        if fuse > 30 {
            assert_eq!(failed, 0, "more operations than thought");
        }
    }
}

/// Files of a kind.
fn count(folder: &MemFolder, kind: &str) -> usize {
    let names = folder.names().unwrap();
    names.iter().filter(|n| n.starts_with(kind)).count()
}

fn commit(tier: &mut DiskTier, text: &[u8]) -> Result<(), ContextError> {
    let mut commit = tier.commit();
    commit.part("tokens", text)?;
    commit.finish(text.len())
}

/// Rows that the system could not write, and says that it has when it is asked again.
#[test]
fn rows_that_could_not_be_synced_are_written_again() {
    for (limit, is_cached) in [
        (None, true),
        (None, false),
        (Some(0), true),
        (Some(0), false),
    ] {
        let folder = MemFolder::default();
        let mut tier = open(&folder, limit).unwrap();
        append(&mut tier, 0, 3, 1);
        tier.publish(3).unwrap();
        commit(&mut tier, b"one").unwrap();
        append(&mut tier, 3, 2, 2);
        tier.publish(2).unwrap();
        // The first thing that a commit without parts does is a sync, and then the last thing
        // that is done to a file which is written again; the third does not come so far.
        for fuse in [0, 3, 2] {
            folder.fail_after(Some(fuse));
            let error = tier.commit().finish(9).unwrap_err().to_string();
            assert!(error.contains("cannot write /memory/rows-"), "{error}");
        }
        // What was not finished is not there.
        assert_eq!(count(&folder, "rows-"), 2);
        if !is_cached {
            folder.drop_caches();
        }
        append(&mut tier, 5, 1, 3);
        let published = tier.publish(1);
        let committed = commit(&mut tier, b"three");
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let crashed = open(&folder.crashed(&mut rng), None).unwrap();
        if limit.is_none() || is_cached {
            committed.unwrap();
            assert_eq!(count(&folder, "rows-"), 2);
            let salts = vec![1, 1, 1, 2, 2, 3];
            assert_holds(
                &crashed,
                &Held {
                    salts,
                    ..Held::default()
                },
            );
            assert_eq!(crashed.part("tokens").unwrap().unwrap(), b"three");
        } else {
            // Nobody has them any more: that is told, and the context stays what it was.
            assert!(published.is_err());
            let error = committed.unwrap_err();
            assert!(matches!(error, ContextError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("block 3 "), "{error}");
            assert_eq!((crashed.n_blocks(), crashed.manifest().n_tokens), (3, 3));
            // Without these blocks all goes on.
            tier.truncate(3);
            append(&mut tier, 3, 2, 4);
            tier.publish(2).unwrap();
            commit(&mut tier, b"four").unwrap();
            let crashed = open(&folder.crashed(&mut rng), None).unwrap();
            let salts = vec![1, 1, 1, 4, 4];
            assert_holds(
                &crashed,
                &Held {
                    salts,
                    ..Held::default()
                },
            );
        }
    }
}

/// A disk that is full stays as full as it was, however often a commit is tried.
#[test]
fn commits_that_fail_leave_no_files() {
    for fuse in 0..40 {
        let folder = MemFolder::default();
        let mut tier = open(&folder, None).unwrap();
        append(&mut tier, 0, 3, 1);
        tier.publish(3).unwrap();
        commit(&mut tier, b"one").unwrap();
        append(&mut tier, 3, 2, 2);
        tier.publish(2).unwrap();
        let before = folder.names().unwrap();
        for _ in 0..3 {
            folder.fail_after(Some(fuse));
            if commit(&mut tier, b"two").is_ok() {
                break;
            }
            if tier.manifest().commit > 1 {
                // All but the last sync has been done.
                break;
            }
            let after = folder.names().unwrap();
            assert!(after.len() <= before.len() + 1, "{fuse}: {after:?}");
            assert_eq!(count(&folder, "part-"), 1, "{fuse}");
            assert_eq!(count(&folder, "manifest"), 1, "{fuse}");
            let mut rng = ChaCha8Rng::seed_from_u64(fuse as u64);
            let crashed = open(&folder.crashed(&mut rng), None).unwrap();
            assert_eq!(crashed.part("tokens").unwrap().unwrap(), b"one");
        }
        // One that is given up is no other.
        folder.fail_after(None);
        let before = folder.names().unwrap();
        let mut given_up = tier.commit();
        given_up.part("tokens", b"never").unwrap();
        drop(given_up);
        assert_eq!(folder.names().unwrap(), before);
    }
}

/// Over a network a rename may be done and told as one that failed.
#[test]
fn a_rename_that_failed_may_have_been_done() {
    for fuse in 0..20 {
        let folder = MemFolder::default();
        folder.rename_anyway();
        let mut tier = open(&folder, None).unwrap();
        append(&mut tier, 0, 3, 1);
        tier.publish(3).unwrap();
        folder.fail_after(Some(fuse));
        let committed = commit(&mut tier, b"one");
        folder.fail_after(None);
        tier.truncate(0);
        drop(tier);
        // Whatever there is, it is whole.
        let tier = open(&folder, None).unwrap();
        assert!(committed.is_err() || tier.n_blocks() == 3);
        let salts = vec![1; tier.n_blocks()];
        assert_holds(
            &tier,
            &Held {
                salts,
                ..Held::default()
            },
        );
        if !tier.is_new() {
            assert_eq!(tier.part("tokens").unwrap().unwrap(), b"one");
        }
    }
}

/// Blocks come and go without any commit, as in a folder that nobody will come back to.
#[test]
fn files_of_blocks_that_are_cut_off_go() {
    let folder = MemFolder::default();
    let mut tier = open(&folder, Some(0)).unwrap();
    for round in 0..20 {
        let first = tier.n_blocks();
        append(&mut tier, first, 5, round);
        tier.publish(5).unwrap();
        tier.truncate(first + 1);
        assert_eq!(count(&folder, ""), 1);
    }
    let salts = (0..20).collect();
    assert_holds(
        &tier,
        &Held {
            salts,
            ..Held::default()
        },
    );
    tier.truncate(0);
    assert_eq!(count(&folder, ""), 0);
    // What a commit names stays.
    append(&mut tier, 0, 2, 1);
    tier.publish(2).unwrap();
    commit(&mut tier, b"one").unwrap();
    tier.truncate(0);
    drop(tier);
    assert_eq!(open(&folder, None).unwrap().n_blocks(), 2);
}
