//! Contexts in real folders: the contract of tiers, damage, locks, forks.

mod support;

use kiv_context::{
    ContextError, DiskOptions, DiskTier, Identity, fork, info, list, remove, verify,
};
use kiv_policy::{ColdRows, RowsOf};
use kiv_store::{ColdTier, conformance};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use support::{identity, pattern, streams};

fn options(path: &Path, host_limit: Option<usize>) -> DiskOptions {
    DiskOptions {
        folder: path.to_owned(),
        host_limit,
    }
}

fn open(path: &Path) -> Result<DiskTier, ContextError> {
    DiskTier::open(&options(path, None), identity())
}

/// Appends and publishes blocks up to `n`, with a salt.
fn grow(tier: &mut DiskTier, n: usize, salt: u8) {
    for block in tier.n_blocks()..n {
        for (stream, (layer, head, lens)) in streams(&identity()).into_iter().enumerate() {
            let [k, v] = [0, 1].map(|which| pattern(block, stream, which, salt, lens[which]));
            tier.append(layer, head, &k, &v).unwrap();
        }
        tier.publish(1).unwrap();
    }
}

fn commit(tier: &mut DiskTier, text: &str) {
    let mut commit = tier.commit();
    commit.part("tokens", text.as_bytes()).unwrap();
    commit.finish(text.len()).unwrap();
}

fn holds(tier: &DiskTier, block: usize, salt: u8) -> bool {
    let mut streams = streams(&identity()).into_iter().enumerate();
    streams.all(|(stream, (layer, head, lens))| {
        let keys = tier.keys(layer, head, block as u32, 1).unwrap();
        let values = tier.values(layer, head, block as u32, 1).unwrap();
        keys.rows().bytes == pattern(block, stream, 0, salt, lens[0])
            && values.rows().bytes == pattern(block, stream, 1, salt, lens[1])
    })
}

#[test]
fn the_disk_is_a_tier_under_every_limit() {
    for limit in [None, Some(0), Some(700), Some(20_000)] {
        let folder = tempfile::tempdir().unwrap();
        let mut n = 0;
        let make = |geometry: &kiv_policy::Geometry| -> Box<dyn ColdTier> {
            n += 1;
            let identity = Identity::new([0; 32], String::new(), geometry, Vec::new());
            let path = folder.path().join(n.to_string());
            Box::new(DiskTier::open(&options(&path, limit), identity).unwrap())
        };
        conformance::check(make, 12).unwrap();
    }
}

#[test]
fn memory_stays_below_the_limit_and_reads_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let limit = 10_000;
    let mut tier = DiskTier::open(&options(folder.path(), Some(limit)), identity()).unwrap();
    grow(&mut tier, 100, 1);
    assert!(tier.host_bytes() <= limit && tier.host_bytes() > limit / 2);
    assert!(tier.disk_bytes() > 8 * limit);
    for block in 0..100 {
        assert!(holds(&tier, block, 1));
    }
    let stats = tier.read_stats();
    assert!(
        stats.misses > 500 && stats.bytes > 8 * limit as u64,
        "{stats:?}"
    );
    // What was announced is there, or on its way.
    tier.expect(1, 0, RowsOf::Both, &[5, 6]);
    for block in [5, 6] {
        tier.keys(1, 0, block, 1).unwrap();
        tier.values(1, 0, block, 1).unwrap();
    }
    let more = tier.read_stats();
    assert_eq!(more.misses - stats.misses, 4, "each part is read once");
    assert!(tier.host_bytes() <= limit);
}

#[test]
fn a_context_outlives_its_process_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/context");
    let mut tier = open(&path).unwrap();
    assert!(tier.is_new());
    grow(&mut tier, 5, 1);
    commit(&mut tier, "five");
    grow(&mut tier, 7, 1);
    drop(tier);
    for round in 0..3 {
        let mut tier = open(&path).unwrap();
        assert_eq!(tier.n_blocks(), 5 + round);
        assert!(holds(&tier, 4, 1));
        grow(&mut tier, 6 + round, 1);
        commit(&mut tier, "more");
    }
    // Small files are put together.
    assert_eq!(info(&path).unwrap().manifest.segments.len(), 1);
    assert!(verify(&path).unwrap().faults.is_empty());
    let found = list(&folder.path().join("deep")).unwrap();
    assert_eq!(found, std::slice::from_ref(&path));
    remove(&path).unwrap();
    assert!(!path.exists());
    assert!(matches!(info(&path), Err(ContextError::Missing { .. })));
}

/// Names and bytes of all files.
fn files(path: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let mut all: Vec<_> = entries
        .map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn a_borrowed_context_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("context");
    let borrow = || DiskTier::borrow(&options(&path, None), identity());
    assert!(borrow().unwrap().is_new() && !path.exists());
    let mut tier = open(&path).unwrap();
    grow(&mut tier, 5, 1);
    commit(&mut tier, "five");
    // Of no commit.
    grow(&mut tier, 7, 1);
    assert!(matches!(borrow(), Err(ContextError::Locked { .. })));
    drop(tier);
    let before = files(&path);
    let (mut one, mut other) = (borrow().unwrap(), borrow().unwrap());
    assert!(matches!(open(&path), Err(ContextError::Locked { .. })));
    for (tier, salt) in [(&mut one, 2), (&mut other, 3)] {
        assert_eq!(tier.n_blocks(), 5);
        grow(tier, 9, salt);
        tier.truncate(3);
        grow(tier, 6, salt);
        commit(tier, "in memory");
        grow(tier, 8, salt);
        assert!(holds(tier, 2, 1) && holds(tier, 3, salt) && holds(tier, 7, salt));
        assert_eq!(tier.part("tokens").unwrap().unwrap(), b"in memory");
    }
    drop((one, other));
    assert_eq!(files(&path), before);
    // Without a lock, as in a copy.
    std::fs::remove_file(path.join("lock")).unwrap();
    assert_eq!(borrow().unwrap().part("tokens").unwrap().unwrap(), b"five");
    assert!(!path.join("lock").exists());
    assert!(verify(&path).unwrap().faults.is_empty());
}

#[test]
fn a_manifest_of_another_program_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("manifest");
    std::fs::write(&name, "[package]").unwrap();
    std::fs::write(folder.path().join("part-00000001"), "precious").unwrap();
    let refused = remove(folder.path());
    assert!(matches!(refused, Err(ContextError::Missing { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    // A damaged one of ours is.
    let path = folder.path().join("context");
    let mut tier = open(&path).unwrap();
    grow(&mut tier, 5, 1);
    commit(&mut tier, "five");
    drop(tier);
    let mut manifest = std::fs::read(path.join("manifest")).unwrap();
    manifest.truncate(20);
    std::fs::write(path.join("manifest"), manifest).unwrap();
    remove(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn cut_and_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mut tier = open(folder.path()).unwrap();
    grow(&mut tier, 6, 1);
    commit(&mut tier, "old");
    tier.truncate(3);
    grow(&mut tier, 8, 2);
    assert!(holds(&tier, 2, 1) && holds(&tier, 3, 2) && holds(&tier, 7, 2));
    drop(tier);
    // Never committed: the old rows are all there.
    let mut tier = open(folder.path()).unwrap();
    assert!((0..6).all(|block| holds(&tier, block, 1)));
    tier.truncate(3);
    grow(&mut tier, 8, 2);
    commit(&mut tier, "new");
    drop(tier);
    let tier = open(folder.path()).unwrap();
    assert!((0..3).all(|block| holds(&tier, block, 1)));
    assert!((3..8).all(|block| holds(&tier, block, 2)));
}

#[test]
fn forks_share_files_and_go_their_ways() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|n| folder.path().join(n));
    let mut tier = open(&a).unwrap();
    grow(&mut tier, 50, 1);
    commit(&mut tier, "common");
    tier.fork(&b).unwrap();
    assert!(matches!(tier.fork(&b), Err(ContextError::NotEmpty { .. })));
    for inside in [a.clone(), a.join("deep/copy"), b.join("../a/copy")] {
        let refused = tier.fork(&inside);
        assert!(
            matches!(refused, Err(ContextError::Within { .. })),
            "{inside:?}"
        );
    }
    let mut other = open(&b).unwrap();
    grow(&mut tier, 55, 2);
    grow(&mut other, 52, 3);
    commit(&mut tier, "first");
    commit(&mut other, "second");
    assert!(matches!(fork(&a, &c), Err(ContextError::Locked { .. })));
    drop((tier, other));
    fork(&a, &c).unwrap();
    remove(&a).unwrap();
    for (path, salt, n) in [(&b, 3, 52), (&c, 2, 55)] {
        let tier = open(path).unwrap();
        assert_eq!(tier.n_blocks(), n);
        assert!((0..50).all(|block| holds(&tier, block, 1)));
        assert!((50..n).all(|block| holds(&tier, block, salt)));
        drop(tier);
        assert!(verify(path).unwrap().faults.is_empty());
    }
}

#[cfg(unix)]
#[test]
fn forks_take_no_room() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|n| folder.path().join(n));
    let mut tier = open(&a).unwrap();
    grow(&mut tier, 50, 1);
    commit(&mut tier, "common");
    drop(tier);
    fork(&a, &b).unwrap();
    let rows = info(&b).unwrap().manifest.segments[0].name();
    let [one, two] = [&a, &b].map(|p| std::fs::metadata(p.join(&rows)).unwrap());
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
}

/// A copy that fails half-way leaves nothing: no folder that is neither a context nor empty.
#[test]
fn forks_that_fail_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let a = folder.path().join("a");
    let mut tier = open(&a).unwrap();
    grow(&mut tier, 5, 1);
    commit(&mut tier, "common");
    // After the rows.
    let part = info(&a).unwrap().manifest.parts[0].file();
    std::fs::rename(a.join(&part), folder.path().join("elsewhere")).unwrap();
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    for to in [folder.path().join("new/deep/copy"), empty.clone()] {
        let error = tier.fork(&to).unwrap_err().to_string();
        assert!(error.contains("cannot copy"), "{error}");
    }
    assert!(!folder.path().join("new").exists());
    assert!(files(&empty).is_empty());
    std::fs::rename(folder.path().join("elsewhere"), a.join(&part)).unwrap();
    tier.fork(&empty).unwrap();
    assert_eq!(open(&empty).unwrap().n_blocks(), 5);
    assert!(matches!(
        tier.fork(&empty),
        Err(ContextError::NotEmpty { .. })
    ));
    assert_eq!(open(&empty).unwrap().n_blocks(), 5);
}

/// What systems and people leave in folders does not keep a context from being used, and
/// is left alone.
#[test]
fn other_files_beside_a_context_stay() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|n| folder.path().join(n));
    let mut tier = open(&a).unwrap();
    grow(&mut tier, 5, 1);
    commit(&mut tier, "five");
    drop(tier);
    let notes = a.join("notes");
    std::fs::create_dir(&notes).unwrap();
    for name in [".DS_Store", "desktop.ini", "part-1", "notes/one.txt"] {
        std::fs::write(a.join(name), "precious").unwrap();
    }
    let others = |path: &Path| {
        let all = ["notes/one.txt", ".DS_Store", "desktop.ini", "part-1"];
        all.map(|name| std::fs::read(path.join(name)).is_ok_and(|b| b == b"precious"))
    };
    let mut tier = open(&a).unwrap();
    assert!((0..5).all(|block| holds(&tier, block, 1)));
    grow(&mut tier, 7, 2);
    commit(&mut tier, "seven");
    tier.fork(&b).unwrap();
    drop(tier);
    let borrowed = DiskTier::borrow(&options(&a, None), identity()).unwrap();
    assert_eq!(borrowed.n_blocks(), 7);
    drop(borrowed);
    assert!(verify(&a).unwrap().faults.is_empty());
    assert_eq!((others(&a), others(&b)), ([true; 4], [false; 4]));
    remove(&a).unwrap();
    assert_eq!(others(&a), [true; 4]);
    assert_eq!(std::fs::read_dir(&a).unwrap().count(), 4);
    // Now it is a folder like any other.
    let error = open(&a).err().unwrap();
    assert!(matches!(error, ContextError::Foreign { .. }), "{error}");
    assert_eq!(std::fs::read_dir(&a).unwrap().count(), 4);
}

#[test]
fn others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut tier = open(folder.path()).unwrap();
    commit(&mut tier, "x");
    let second = open(folder.path()).err().unwrap();
    assert!(matches!(second, ContextError::Locked { .. }));
    assert!(matches!(
        verify(folder.path()),
        Err(ContextError::Locked { .. })
    ));
    assert!(matches!(
        remove(folder.path()),
        Err(ContextError::Locked { .. })
    ));
    drop(tier);
    let with = |change: &dyn Fn(&mut Identity)| {
        let mut other = identity();
        change(&mut other);
        let opened = DiskTier::open(&options(folder.path(), None), other);
        opened.err().unwrap().to_string()
    };
    let model = with(&|i| {
        i.model[3] ^= 1;
        i.model_name = "another".to_owned();
    });
    assert!(
        model.contains("with another model (a test model, not another)"),
        "{model}"
    );
    let block = with(&|i| i.block = 8);
    assert!(block.contains("--kv-block 4, not 8"), "{block}");
    let store = with(&|i| i.key_format = kiv_policy::RowFormat::F16);
    assert!(
        store.contains("--kv-store q8_0,f16, not f16,f16"),
        "{store}"
    );
    let setting = with(&|i| i.settings[0].1 = "q8_0".to_owned());
    assert!(
        setting.contains("--cache-type-k f16, not q8_0"),
        "{setting}"
    );
    open(folder.path()).unwrap();

    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("thesis.txt"), "precious").unwrap();
    let error = open(other.path()).err().unwrap().to_string();
    assert!(error.contains("holds `thesis.txt`"), "{error}");
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 1);
    let file = other.path().join("thesis.txt");
    let error = open(&file).err().unwrap().to_string();
    assert!(error.contains("cannot make the folder"), "{error}");
}

/// Every bit of every file matters: what is flipped is found, and named by
/// block where it is in one.
#[test]
fn flipped_bits_are_found_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut tier = open(folder.path()).unwrap();
    grow(&mut tier, 20, 1);
    commit(&mut tier, "some tokens");
    drop(tier);
    let manifest = info(folder.path()).unwrap().manifest;
    let record = kiv_context::RecordLayout::new(&identity()).record_bytes();
    let files: Vec<(std::path::PathBuf, usize)> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.path(), entry.metadata().unwrap().len() as usize)
        })
        .filter(|(_, len)| *len > 0)
        .collect();
    assert_eq!(files.len(), 3);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut by_block = 0;
    for flip in 0..200 {
        // Half of them in rows, the others in the small files.
        let (path, len) = if flip % 2 == 0 {
            let rows = manifest.segments[0].name();
            files.iter().find(|f| f.0.ends_with(&rows)).unwrap()
        } else {
            &files[rng.random_range(0..files.len())]
        };
        let whole = std::fs::read(path).unwrap();
        let mut bytes = whole.clone();
        let at = rng.random_range(0..*len);
        bytes[at] ^= 1 << rng.random_range(0..8);
        std::fs::write(path, &bytes).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        match verify(folder.path()) {
            Err(error) => assert_eq!(name, "manifest", "{error}"),
            Ok(verified) => {
                let [fault] = &verified.faults[..] else {
                    panic!("{:?} after flipping {at} of {name}", verified.faults);
                };
                assert_eq!(fault.path, *path);
                if name.starts_with("rows") {
                    let block = at.checked_sub(64).map(|at| at / record);
                    assert_eq!(fault.block, block);
                    if let Some(block) = block {
                        by_block += 1;
                        assert!(fault.what.contains(&format!("block {block} ")));
                    }
                    // Whoever reads it is told, too.
                    match open(folder.path()) {
                        Err(_) => assert_eq!(block, None),
                        Ok(tier) => {
                            let block = block.unwrap() as u32;
                            let mut errors = 0;
                            for (layer, head, _) in streams(&identity()) {
                                errors += usize::from(tier.keys(layer, head, block, 1).is_err());
                                errors += usize::from(tier.values(layer, head, block, 1).is_err());
                            }
                            assert_eq!(errors, 1);
                        }
                    }
                } else {
                    assert!(fault.what.contains("tokens"), "{}", fault.what);
                }
            }
        }
        std::fs::write(path, whole).unwrap();
    }
    assert!(by_block >= 100);
}

/// Files that end early, and bytes that follow where none should.
#[test]
fn cut_files_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut tier = open(folder.path()).unwrap();
    grow(&mut tier, 3, 1);
    commit(&mut tier, "tokens");
    drop(tier);
    for name in ["rows-00000001", "part-00000002", "manifest"] {
        let path = folder.path().join(name);
        let bytes = std::fs::read(&path).unwrap();
        for n in [0, 7, 12, 33, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..n]).unwrap();
            let found = verify(folder.path()).map_or(1, |v| v.faults.len());
            assert!(found > 0, "{n} bytes of {name}");
            if name.starts_with("rows") {
                let error = open(folder.path()).err().unwrap().to_string();
                assert!(error.contains("rows-"), "{error}");
            }
        }
        std::fs::remove_file(&path).unwrap();
        let found = verify(folder.path()).map_or(1, |v| v.faults.len());
        assert!(found > 0, "no {name}");
        std::fs::write(&path, &bytes).unwrap();
    }
    assert!(verify(folder.path()).unwrap().faults.is_empty());
}

/// The folder is gone while the context is open.
#[test]
fn a_removed_folder_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("context");
    let mut tier = open(&path).unwrap();
    grow(&mut tier, 3, 1);
    commit(&mut tier, "tokens");
    std::fs::remove_dir_all(&path).unwrap();
    assert!((0..3).all(|block| holds(&tier, block, 1)));
    let mut commit = tier.commit();
    let error = commit.part("tokens", b"other").unwrap_err().to_string();
    assert!(
        error.contains("cannot write") && error.contains("part-"),
        "{error}"
    );
}
