//! Version 1, as it was first written: later versions read it.

mod support;

use kiv_context::{DiskTier, verify};
use kiv_policy::ColdRows;
use kiv_store::ColdTier;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{MemFolder, identity, pattern, streams};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/context-v1")
}

/// What the golden context holds: seven blocks, the last five written after a
/// cut, and two parts.
fn write(folder: &MemFolder) -> DiskTier {
    let mut tier = DiskTier::open_in(Arc::new(folder.clone()), identity(), None).unwrap();
    let grow = |tier: &mut DiskTier, n: usize, salt: u8| {
        for block in tier.n_blocks()..n {
            for (stream, (layer, head, lens)) in streams(&identity()).into_iter().enumerate() {
                let [k, v] = [0, 1].map(|which| pattern(block, stream, which, salt, lens[which]));
                tier.append(layer, head, &k, &v).unwrap();
            }
            tier.publish(1).unwrap();
        }
    };
    grow(&mut tier, 5, 1);
    let mut commit = tier.commit();
    commit.part("tokens", b"first").unwrap();
    commit.finish(5).unwrap();
    tier.truncate(2);
    grow(&mut tier, 7, 2);
    let mut commit = tier.commit();
    commit.part("tokens", b"second").unwrap();
    commit.part("hot", &[0xab; 100]).unwrap();
    commit.finish(6).unwrap();
    tier
}

fn assert_golden(tier: &DiskTier) {
    assert_eq!((tier.n_blocks(), tier.manifest().n_tokens), (7, 6));
    assert_eq!(tier.manifest().commit, 2);
    assert_eq!(tier.part("tokens").unwrap().unwrap(), b"second");
    assert_eq!(tier.part("hot").unwrap().unwrap(), [0xab; 100]);
    assert_eq!(tier.part("index").unwrap(), None);
    for (stream, (layer, head, lens)) in streams(&identity()).into_iter().enumerate() {
        for block in 0..7 {
            let salt = if block < 2 { 1 } else { 2 };
            let keys = tier.keys(layer, head, block as u32, 1).unwrap();
            let values = tier.values(layer, head, block as u32, 1).unwrap();
            assert_eq!(keys.rows().bytes, pattern(block, stream, 0, salt, lens[0]));
            assert_eq!(
                values.rows().bytes,
                pattern(block, stream, 1, salt, lens[1])
            );
        }
    }
}

#[test]
fn version_1_is_read() {
    assert_eq!(verify(&golden()).unwrap().faults, []);
    // A copy: opening one removes what no commit names.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    kiv_context::fork(&golden(), &copy).unwrap();
    let options = kiv_context::DiskOptions {
        folder: copy,
        host_limit: None,
    };
    assert_golden(&DiskTier::open(&options, identity()).unwrap());
}

/// What is written today is the same, byte by byte; with another format this
/// fails, and then needs a version and a golden context of its own.
#[test]
fn version_1_is_written() {
    let folder = MemFolder::default();
    let tier = write(&folder);
    assert_golden(&tier);
    let write_to = std::env::var_os("KIV_WRITE_GOLDEN");
    for name in kiv_context::Folder::names(&folder).unwrap() {
        let bytes = folder.bytes(&name).unwrap();
        let path = golden().join(&name);
        if write_to.is_some() {
            std::fs::create_dir_all(golden()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let kept = std::fs::read(&path).unwrap();
        assert!(kept == bytes, "{name} differs");
    }
}
