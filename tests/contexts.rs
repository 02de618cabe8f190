//! Contexts that outlive their session: the same logits, bit by bit.

mod support;

use kiv::{Error, Model, Outputs, Session, SessionBuilder, Token};
use std::path::Path;
use support::{model, prose};

fn small(model: &Model, policy: &str) -> SessionBuilder {
    support::small(model).policy(policy)
}

/// Bits of the logits after each of `tokens`, read one by one.
fn follow(session: &mut Session, tokens: &[Token]) -> Vec<Vec<u32>> {
    let each = tokens.iter().map(|token| {
        session.read_one_by_one(&[*token]).unwrap();
        bits(session)
    });
    each.collect()
}

fn bits(session: &Session) -> Vec<u32> {
    session.logits().iter().map(|l| l.to_bits()).collect()
}

#[test]
fn a_context_goes_on_as_if_nothing_had_happened() {
    let model = model();
    let text = prose(&model, 2200);
    for (policy, store) in [
        ("pq", None),
        ("exact", None),
        ("quest", None),
        ("kiv", None),
        ("pq", Some("q8_0")),
        ("exact", Some("q4_0")),
    ] {
        let lengths: &[usize] = match (policy, store) {
            ("pq", None) => &[40, 256, 300, 701, 1999],
            _ => &[300, 999],
        };
        for &n in lengths {
            let block = if policy == "kiv" { 64 } else { 16 };
            let folder = tempfile::tempdir().unwrap();
            let build = || {
                let mut builder = small(&model, policy).budget(4 * block).block(block);
                if let Some(store) = store {
                    let format = kiv::policy::RowFormat::from_name(store).unwrap();
                    builder = builder.store_types(format, format);
                }
                builder
            };
            let on_disk = || build().context_dir(folder.path()).build().unwrap();
            let mut plain = build().build().unwrap();
            plain.read(&text[..n]).unwrap();
            let mut writer = on_disk();
            writer.read(&text[..n]).unwrap();
            writer.commit().unwrap();
            assert_eq!(bits(&writer), bits(&plain));
            let what = format!("{policy} {store:?}, {n} tokens");
            let more = &text[n..n + 40];
            let want = follow(&mut plain, more);
            assert_eq!(follow(&mut writer, more), want, "{what}: writer");
            plain.read(&text[n + 40..n + 140]).unwrap();
            drop(writer);
            // Twice: the second begins where the first began.
            for _ in 0..2 {
                let mut again = on_disk();
                assert_eq!(again.tokens(), &text[..n]);
                assert_eq!(follow(&mut again, more), want, "{what}: reopened");
                again.read(&text[n + 40..n + 140]).unwrap();
                assert_eq!(bits(&again), bits(&plain), "{what}: read on");
            }
        }
    }
}

/// A policy that takes over in a session and one that finds the context on disk know
/// the same.
#[test]
fn another_policy_takes_over() {
    let model = model();
    let text = prose(&model, 1400);
    for policy in ["exact", "quest"] {
        let folder = tempfile::tempdir().unwrap();
        let on_disk = |policy: &str| {
            let builder = small(&model, policy).context_dir(folder.path());
            builder.build().unwrap()
        };
        let mut session = on_disk("pq");
        session.read(&text[..1200]).unwrap();
        session.commit().unwrap();
        drop(session);
        let mut session = small(&model, "pq").build().unwrap();
        session.read(&text[..1200]).unwrap();
        session
            .set_policy(kiv::policy::by_name(policy).unwrap())
            .unwrap();
        assert_eq!(session.policy_name(), policy);
        let want = follow(&mut on_disk(policy), &text[1200..1240]);
        assert_eq!(follow(&mut session, &text[1200..1240]), want, "{policy}");
    }
}

#[test]
fn policies_that_cannot_take_over_are_refused() {
    let model = model();
    let text = prose(&model, 600);
    for (from, to) in [
        ("pq", "window"),
        ("window", "pq"),
        ("full", "pq"),
        ("pq", "kiv"),
    ] {
        let mut session = small(&model, from).build().unwrap();
        session.read(&text).unwrap();
        let refused = session.set_policy(kiv::policy::by_name(to).unwrap());
        let told = refused.unwrap_err().to_string();
        assert!(told.starts_with(&format!("policy `{to}` cannot take over: ")));
        // Nothing has changed.
        assert_eq!(session.policy_name(), from);
        session.read_one_by_one(&text[..1]).unwrap();
    }
}

/// Commits at odd places change nothing, and a process that was cut off goes on
/// from the last of them.
#[test]
fn commits_leave_no_trace() {
    let model = model();
    let text = prose(&model, 2000);
    let mut plain = small(&model, "pq").build().unwrap();
    plain.read(&text[..1600]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let build = || {
        let builder = small(&model, "pq").context_dir(folder.path());
        builder.commit_every(100).build().unwrap()
    };
    let mut session = build();
    // Whole micro-batches, as the other reads them.
    let mut stopped = 0;
    session
        .read_with(&text[..960], Outputs::Last, |_, _| {}, |p| stopped = p.read)
        .unwrap();
    drop(session);
    let mut session = build();
    let kept = session.tokens().len();
    assert!(
        (600..960).contains(&kept) && kept.is_multiple_of(32),
        "{kept}"
    );
    session.read(&text[kept..1600]).unwrap();
    assert_eq!(bits(&session), bits(&plain));
}

#[test]
fn a_host_limit_changes_no_answer() {
    let model = model();
    let text = prose(&model, 3000);
    let run = |limit: Option<usize>| {
        let folder = tempfile::tempdir().unwrap();
        let builder = small(&model, "pq").scratch_dir(folder.path());
        let mut builder = builder.commit_every(64);
        if let Some(limit) = limit {
            builder = builder.host_limit(limit);
        }
        let mut session = builder.build().unwrap();
        session.read(&text[..2900]).unwrap();
        let logits = follow(&mut session, &text[2900..2960]);
        let (memory, reads) = (session.memory(), session.stats().reads);
        // Nobody will come back to it: nothing but rows is written.
        session.commit().unwrap();
        let own = std::fs::read_dir(folder.path()).unwrap().next();
        let names = std::fs::read_dir(own.unwrap().unwrap().path()).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["lock", "rows-00000001"]);
        let forked = session.fork(folder.path().join("copy"));
        assert!(matches!(forked, Err(Error::NoContext)));
        drop(session);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        (logits, memory, reads)
    };
    let (want, memory, reads) = run(None);
    assert_eq!((reads.misses, reads.bytes), (0, 0));
    assert!(reads.hits > 0 && memory.disk > memory.host_kv);
    let limit = memory.host_kv / 8;
    let (logits, memory, reads) = run(Some(limit));
    assert_eq!(logits, want);
    assert!(memory.host_kv <= limit && memory.disk > 8 * limit);
    assert!(reads.misses > 0 && reads.bytes > 0, "{reads:?}");
    let (logits, memory, _) = run(Some(0));
    assert_eq!((logits, memory.host_kv), (want, 0));
}

/// Those of processes that are no more, and no other folder.
#[test]
fn folders_of_rows_that_were_left_are_removed() {
    use std::fs::{self, File};
    let parent = tempfile::tempdir().unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let make = |name: &str, files: &[&str]| {
        let folder = parent.path().join(name);
        fs::create_dir(&folder).unwrap();
        for file in files {
            fs::write(folder.join(file), "").unwrap();
        }
        let lock = File::options().write(true).open(folder.join("lock"));
        lock.and_then(|lock| lock.set_modified(long_ago).map(|()| lock))
            .ok()
    };
    make("scratch-1-0", &["lock", "rows-00000001"]);
    let kept = [
        ("scratch-1-1", &["lock", "rows-00000001", "manifest"][..]),
        ("scratch-1-2", &["lock", "rows-00000001", "notes"]),
        ("scratch-1-3", &["rows-00000001"]),
        ("scratch-1", &["lock"]),
        ("scratch-book-1", &["lock"]),
        ("book", &["lock", "rows-00000001"]),
    ];
    for (name, files) in kept {
        make(name, files);
    }
    // Somebody's, and one that somebody is about to have.
    let held = make("scratch-2-0", &["lock", "rows-00000001"]).unwrap();
    held.try_lock().unwrap();
    make("scratch-2-1", &[]);
    fs::write(parent.path().join("scratch-2-1/lock"), "").unwrap();
    drop(
        small(&model(), "pq")
            .scratch_dir(parent.path())
            .build()
            .unwrap(),
    );
    let names = fs::read_dir(parent.path()).unwrap();
    let mut names: Vec<_> = names
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut want = kept.map(|(name, _)| name).to_vec();
    want.extend(["scratch-2-0", "scratch-2-1"]);
    want.sort_unstable();
    assert_eq!(names, want);
}

/// Cutting back past the window, or to where little of it would be left (1344, 1376), gives
/// what a session that never went on would have, once its slots hold their first blocks again.
#[test]
fn a_deep_cut_is_exact() {
    let model = model();
    let text = prose(&model, 3000);
    for n in [20, 68, 200, 256, 544, 1024, 1344, 1376] {
        let mut fresh = small(&model, "exact").build().unwrap();
        fresh.read(&text[..n]).unwrap();
        fresh.rewind(n).unwrap();
        let mut long = small(&model, "exact").build().unwrap();
        long.read(&text[..1500]).unwrap();
        long.truncate(n).unwrap();
        assert_eq!(long.tokens(), &text[..n]);
        assert_eq!(long.memory().host_kv, fresh.memory().host_kv, "{n}");
        // Another text follows.
        let other = &text[2600..2700];
        assert_eq!(
            follow(&mut long, &other[..30]),
            follow(&mut fresh, &other[..30]),
            "{n}"
        );
        for session in [&mut fresh, &mut long] {
            session.read(&other[30..]).unwrap();
            session.read(&text[..500]).unwrap();
            let (compared, wrong) = session.compare_slots().unwrap();
            assert!(compared > 0 && wrong == 0);
        }
        assert_eq!(bits(&long), bits(&fresh), "{n}: read on");
    }
}

#[test]
fn the_longest_common_prefix_is_reused() {
    let model = model();
    let text = prose(&model, 3000);
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let builder = small(&model, "pq").context_dir(folder.path());
        builder.build().unwrap()
    };
    let mut session = open();
    session.read(&text[..2000]).unwrap();
    session.commit().unwrap();
    drop(session);

    // The same text again: nothing is read, the logits are known.
    let mut session = open();
    let before = bits(&session);
    assert_eq!(session.reuse(&text[..2000]).unwrap(), 2000);
    assert_eq!(bits(&session), before);
    // It goes on.
    assert_eq!(session.reuse(&text[..2300]).unwrap(), 2000);
    // A beginning of it: the last token gives logits.
    assert_eq!(session.reuse(&text[..1990]).unwrap(), 1989);
    session.read_one_by_one(&text[1989..1990]).unwrap();
    session.commit().unwrap();
    drop(session);
    // It diverges deep in what has been sealed.
    let mut session = open();
    assert_eq!(session.tokens(), &text[..1990]);
    let mut other = text[..700].to_vec();
    other.extend(&text[2000..2100]);
    assert_eq!(session.reuse(&other).unwrap(), 700);
    session.read(&other[700..]).unwrap();
    session.commit().unwrap();
    let after = bits(&session);
    drop(session);
    let session = open();
    assert_eq!((session.tokens(), bits(&session)), (&other[..], after));
    drop(session);
    // Nothing in common.
    let mut session = open();
    assert_eq!(session.reuse(&text[5..60]).unwrap(), 0);
    session.read(&text[5..60]).unwrap();
    session.commit().unwrap();
    drop(session);
    let mut fresh = small(&model, "pq").build().unwrap();
    fresh.read(&text[5..60]).unwrap();
    assert_eq!(bits(&open()), bits(&fresh));
}

#[test]
fn forks_share_blocks_and_continue_apart() {
    let model = model();
    let text = prose(&model, 3000);
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    let open = |path: &Path| small(&model, "pq").context_dir(path).build().unwrap();
    let mut session = open(&a);
    session.read(&text[..1500]).unwrap();
    session.fork(&b).unwrap();
    let mut other = open(&b);
    assert_eq!(other.tokens(), session.tokens());
    let one = follow(&mut session, &text[1500..1600]);
    let two = follow(&mut other, &text[2000..2100]);
    assert_ne!(one, two);
    session.commit().unwrap();
    other.commit().unwrap();
    drop((session, other));
    assert_eq!(bits(&open(&a)), one[99]);
    assert_eq!(bits(&open(&b)), two[99]);
}

/// An index that another policy left, or none at all, is made anew.
#[test]
fn another_policy_takes_the_rows_up() {
    let model = model();
    let text = prose(&model, 2500);
    let folder = tempfile::tempdir().unwrap();
    let open = |policy| {
        small(&model, policy)
            .context_dir(folder.path())
            .build()
            .unwrap()
    };
    let mut session = open("pq");
    session.read(&text[..2000]).unwrap();
    session.commit().unwrap();
    drop(session);
    // `exact` has no index: what it chooses does not depend on the way.
    let mut plain = small(&model, "pq").build().unwrap();
    plain.read(&text[..2000]).unwrap();
    let mut session = open("exact");
    assert_eq!(session.policy_name(), "exact");
    session.read(&text[2000..2100]).unwrap();
    session.commit().unwrap();
    drop(session);
    let mut session = open("pq");
    assert_eq!(session.tokens(), &text[..2100]);
    assert!(session.memory().index > 0);
    session.read(&text[2100..2200]).unwrap();
    assert!(session.stats().blocks_wanted > 0);
}

#[test]
fn other_settings_and_models_are_refused() {
    let model = model();
    let text = prose(&model, 600);
    let folder = tempfile::tempdir().unwrap();
    let build = |change: &dyn Fn(SessionBuilder) -> SessionBuilder| {
        change(small(&model, "pq"))
            .context_dir(folder.path())
            .build()
    };
    let mut session = build(&|b| b).unwrap();
    session.read(&text).unwrap();
    session.commit().unwrap();
    let locked = build(&|b| b).err().unwrap().to_string();
    assert!(locked.contains("in use by another process"), "{locked}");
    drop(session);
    let q8 = kiv::policy::RowFormat::Q8_0;
    let f16 = kiv::policy::RowFormat::F16;
    for (change, words) in [
        (
            &(|b: SessionBuilder| b.window(65)) as &dyn Fn(_) -> _,
            "--kv-window 64, not 65",
        ),
        (
            &|b: SessionBuilder| b.budget(128),
            "--kv-budget 64, not 128",
        ),
        (&|b: SessionBuilder| b.block(32), "--kv-block 16, not 32"),
        (&|b: SessionBuilder| b.sinks(8), "--kv-sinks 4, not 8"),
        (
            &|b: SessionBuilder| b.store_types(q8, f16),
            "--kv-store f16,f16, not q8_0,f16",
        ),
        (
            &|b: SessionBuilder| b.cache_types(q8, f16).store_types(f16, f16),
            "--cache-type-k f16",
        ),
        (
            &|b: SessionBuilder| b.rope(None, 0.0, 0.5),
            "--rope-freq-scale 0, not 0.5",
        ),
        (&|b: SessionBuilder| b.ctx_size(590), "holds 600 tokens"),
        (&|b: SessionBuilder| b.policy("full"), "under full"),
        (&|b: SessionBuilder| b.policy("window"), "drops rows"),
    ] {
        let error = build(change).err().unwrap();
        assert!(error.to_string().contains(words), "{error} lacks {words}");
    }
    // The same weights in another file are the same model; other weights are not.
    let copy = folder.path().parent().unwrap().join("copy-of-model.gguf");
    let mut bytes = std::fs::read(support::bundled_path()).unwrap();
    std::fs::write(&copy, &bytes).unwrap();
    let other = |path: &Path| {
        let model = Model::load(path).unwrap();
        small(&model, "pq").context_dir(folder.path()).build()
    };
    assert_eq!(other(&copy).unwrap().tokens(), text);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&copy, &bytes).unwrap();
    let error = other(&copy).err().unwrap().to_string();
    std::fs::remove_file(&copy).unwrap();
    assert!(error.contains("with another model"), "{error}");
}

/// Rows in fewer bits: blocks are the same wherever they are, and take less.
#[test]
fn smaller_rows_are_swapped_in_as_they_are_stored() {
    let model = model();
    let text = prose(&model, 800);
    let f16 = kiv::policy::RowFormat::F16;
    let mut sizes = Vec::new();
    for name in ["f16", "q8_0", "q4_0"] {
        let format = kiv::policy::RowFormat::from_name(name).unwrap();
        for (k, v) in [(format, format), (format, f16)] {
            let builder = small(&model, "exact").store_types(k, v);
            let mut session = builder.build().unwrap();
            session.read(&text[..700]).unwrap();
            let (compared, wrong) = session.compare_slots().unwrap();
            assert!(compared > 0 && wrong == 0, "{wrong} slots differ");
            // Also after slots have gone home.
            session.rewind(700).unwrap();
            assert_eq!(session.compare_slots().unwrap().1, 0);
            sizes.push(session.memory().host_kv);
        }
    }
    let share = |i: usize| sizes[i] as f64 / sizes[0] as f64;
    assert_eq!([share(1), share(2), share(4)], [1.0, 0.53125, 0.28125]);
    assert_eq!(
        [share(3), share(5)],
        [(1.0 + 0.53125) / 2.0, (1.0 + 0.28125) / 2.0]
    );
    // Heads of 40 values have no blocks of 32.
    let error: Error = Error::StoreType {
        format: kiv::policy::RowFormat::Q4_0,
        dim: 40,
    };
    assert!(error.to_string().contains("--kv-store f16"));
}

#[test]
fn a_session_that_forgot_all_is_a_new_one() {
    let model = model();
    // Long enough for codes, which depend on the queries that were seen.
    let text = prose(&model, 4400);
    let read = |session: &mut Session| {
        session.read(&text).unwrap();
        bits(session)
    };
    let mut session = small(&model, "pq").build().unwrap();
    let new = read(&mut session);
    session.clear().unwrap();
    session.read(&text[2000..2600]).unwrap();
    session.clear().unwrap();
    assert!(read(&mut session) == new);
}

/// The keys of an era are divided beside the reading; who stops in the middle of that and
/// comes back finds what who went straight on does.
#[test]
#[ignore = "reads 84,000 tokens and some of them again: a minute"]
fn an_era_in_the_making_outlives_its_session() {
    let model = model();
    let text = prose(&model, 84_000);
    let (stop, end) = (512 * 132, 512 * 163);
    let build = || small(&model, "pq").ubatch(512);
    let mut plain = build().build().unwrap();
    plain.read(&text[..end]).unwrap();
    let more = &text[end..end + 20];
    let want = follow(&mut plain, more);
    drop(plain);
    let folder = tempfile::tempdir().unwrap();
    let on_disk = || build().context_dir(folder.path()).build().unwrap();
    let mut session = on_disk();
    session.read(&text[..stop]).unwrap();
    session.commit().unwrap();
    // At work, or not even begun.
    drop(session);
    let mut session = on_disk();
    assert_eq!(session.tokens().len(), stop);
    session.read(&text[stop..end]).unwrap();
    assert!(follow(&mut session, more) == want, "other logits");
}
