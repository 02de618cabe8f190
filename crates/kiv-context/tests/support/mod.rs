//! A folder in memory that is stricter than any disk: what was not synced may
//! be lost, in part and in any order, and any operation may fail.
#![allow(dead_code, reason = "each test uses its part")]

use kiv_context::{Appendable, Folder, Identity, Readable};
use kiv_policy::{LayerGeometry, RowFormat};
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// A file: its bytes, and how many of them are durable.
#[derive(Clone, Default)]
pub struct MemFile {
    pub bytes: Vec<u8>,
    pub durable: usize,
    /// What a sync could not write. As under Linux it is still read, from the system's
    /// cache, later syncs say that all is well, and it is never written.
    pub lost: Vec<Range<usize>>,
}

impl MemFile {
    /// Bytes as the disk has them.
    fn on_disk(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for lost in &self.lost {
            bytes[lost.clone()].fill(0);
        }
        bytes
    }
}

type Shared = Arc<Mutex<MemFile>>;

#[derive(Default)]
struct State {
    /// What is there now.
    names: BTreeMap<String, Shared>,
    /// What would be there after a loss of power, for certain.
    durable: BTreeMap<String, Shared>,
    /// Operations until one fails.
    fuse: Option<usize>,
    failed: usize,
    /// A rename that fails is done all the same.
    renames_anyway: bool,
}

/// The folder.
#[derive(Clone, Default)]
pub struct MemFolder(Arc<Mutex<State>>);

impl MemFolder {
    /// The `n`-th write operation from now on fails, and only that.
    pub fn fail_after(&self, n: Option<usize>) {
        self.0.lock().unwrap().fuse = n;
    }

    /// From now on a rename that fails is done all the same, as may be over a network.
    pub fn rename_anyway(&self) {
        self.0.lock().unwrap().renames_anyway = true;
    }

    /// The system's cache has been emptied: what could not be written is gone.
    pub fn drop_caches(&self) {
        for file in self.0.lock().unwrap().names.values() {
            let mut file = file.lock().unwrap();
            file.bytes = file.on_disk();
        }
    }

    /// Operations that failed.
    pub fn failed(&self) -> usize {
        self.0.lock().unwrap().failed
    }

    fn burn(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        match &mut state.fuse {
            Some(0) => {
                state.fuse = None;
                state.failed += 1;
                Err(io::Error::new(io::ErrorKind::StorageFull, "no space left"))
            }
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The folder as it may be after a loss of power.
    pub fn crashed(&self, rng: &mut ChaCha8Rng) -> Self {
        let state = self.0.lock().unwrap();
        let mut names = BTreeMap::new();
        let all: Vec<&String> = state.names.keys().chain(state.durable.keys()).collect();
        for name in all {
            // A change of a name that was not synced has happened or not.
            let file = match (state.names.get(name), state.durable.get(name)) {
                (Some(now), Some(then)) if Arc::ptr_eq(now, then) => Some(now),
                (now, then) => {
                    if rng.random() {
                        now
                    } else {
                        then
                    }
                }
            };
            if let Some(file) = file {
                let file = file.lock().unwrap();
                // Some of what was appended is there, the last of it garbage.
                let kept = rng.random_range(file.durable..=file.bytes.len());
                let mut bytes = file.on_disk();
                bytes.truncate(kept);
                let bad = rng.random_range(file.durable..=kept);
                if rng.random() {
                    rng.fill_bytes(&mut bytes[bad..]);
                }
                let durable = bytes.len();
                let lost = Vec::new();
                let file = MemFile {
                    bytes,
                    durable,
                    lost,
                };
                let file = Arc::new(Mutex::new(file));
                names.insert(name.clone(), file);
            }
        }
        let durable = names.clone();
        Self(Arc::new(Mutex::new(State {
            names,
            durable,
            ..State::default()
        })))
    }

    /// A file's bytes.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.0.lock().unwrap();
        state
            .names
            .get(name)
            .map(|f| f.lock().unwrap().bytes.clone())
    }

    /// Changes a file's bytes.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let state = self.0.lock().unwrap();
        edit(&mut state.names[name].lock().unwrap().bytes);
    }
}

impl Folder for MemFolder {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/memory").join(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.bytes(name)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Readable>> {
        let state = self.0.lock().unwrap();
        let file = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(MemReader(Arc::clone(file))))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appendable>> {
        self.burn()?;
        let mut state = self.0.lock().unwrap();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Shared::default();
        state.names.insert(name.to_owned(), Arc::clone(&file));
        Ok(Box::new(MemWriter(file, self.clone())))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let burnt = self.burn();
        let mut state = self.0.lock().unwrap();
        if burnt.is_ok() || state.renames_anyway {
            let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.names.insert(to.to_owned(), file);
        }
        burnt
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.burn()?;
        let removed = self.0.lock().unwrap().names.remove(name);
        removed
            .map(drop)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.burn()?;
        let mut state = self.0.lock().unwrap();
        state.durable = state.names.clone();
        Ok(())
    }
}

struct MemReader(Shared);

impl Readable for MemReader {
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.0.lock().unwrap();
        let at = offset as usize;
        let bytes = file.bytes.get(at..at + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

struct MemWriter(Shared, MemFolder);

impl Appendable for MemWriter {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let burnt = self.1.burn();
        // A disk that is full takes what fits.
        let n = if burnt.is_ok() {
            bytes.len()
        } else {
            bytes.len() / 2
        };
        self.0.lock().unwrap().bytes.extend_from_slice(&bytes[..n]);
        burnt
    }

    fn sync(&mut self) -> io::Result<()> {
        let burnt = self.1.burn();
        let mut file = self.0.lock().unwrap();
        let written = file.durable..file.bytes.len();
        if burnt.is_ok() {
            file.durable = written.end;
        } else {
            file.lost.push(written);
        }
        burnt
    }
}

/// A small model: two layers, blocks of 4 tokens.
pub fn identity() -> Identity {
    let layer = |il, n_head_kv, key_dim, value_dim| LayerGeometry {
        il,
        n_head: 4,
        n_head_kv,
        key_dim,
        value_dim,
        scale: 0.125,
        soft_cap: (il == 3).then_some(30.0),
    };
    Identity {
        model: std::array::from_fn(|i| i as u8),
        model_name: "a test model".to_owned(),
        layers: vec![layer(1, 2, 32, 64), layer(3, 1, 64, 32)],
        block: 4,
        first_position: 2,
        key_format: RowFormat::Q8_0,
        value_format: RowFormat::F16,
        settings: vec![("--cache-type-k".to_owned(), "f16".to_owned())],
    }
}

/// (layer, KV head, bytes of a block's keys and values).
pub fn streams(identity: &Identity) -> Vec<(usize, usize, [usize; 2])> {
    let mut streams = Vec::new();
    for (layer, l) in identity.layers.iter().enumerate() {
        for head in 0..l.n_head_kv {
            let keys = identity.block * identity.key_format.row_bytes(l.key_dim);
            let values = identity.block * identity.value_format.row_bytes(l.value_dim);
            streams.push((layer, head, [keys, values]));
        }
    }
    streams
}

/// Bytes that say which block, stream and part they are, and a salt.
pub fn pattern(block: usize, stream: usize, which: usize, salt: u8, len: usize) -> Vec<u8> {
    let seed = block * 131 + stream * 17 + which * 7 + usize::from(salt) * 61;
    (0..len).map(|i| (i * 31 + seed) as u8).collect()
}
