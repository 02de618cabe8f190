//! A folder that is only read: what is written goes to memory, and hides what is below.

use crate::folder::{Appendable, DiskFolder, Folder, Readable};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

type MemoryFile = Arc<RwLock<Vec<u8>>>;

/// The folder `below` as it is, with files in memory above it.
pub(crate) struct Overlay {
    below: DiskFolder,
    above: RwLock<BTreeMap<String, MemoryFile>>,
}

impl Overlay {
    /// Nothing has been written yet.
    pub fn new(below: DiskFolder) -> Self {
        Self {
            below,
            above: RwLock::default(),
        }
    }

    fn above(&self, name: &str) -> Option<MemoryFile> {
        self.above.read().get(name).cloned()
    }
}

impl Folder for Overlay {
    fn path(&self, name: &str) -> PathBuf {
        self.below.path(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let below = match self.below.names() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names?,
        };
        let above = self.above.read();
        let all: BTreeSet<String> = below.into_iter().chain(above.keys().cloned()).collect();
        Ok(all.into_iter().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        match self.above(name) {
            Some(file) => Ok(file.read().clone()),
            None => self.below.read(name),
        }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Readable>> {
        match self.above(name) {
            Some(file) => Ok(Arc::new(Reading(file))),
            None => self.below.open(name),
        }
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appendable>> {
        if self.names()?.iter().any(|other| other == name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = MemoryFile::default();
        let mut above = self.above.write();
        above.insert(name.to_owned(), Arc::clone(&file));
        Ok(Box::new(Writing(file)))
    }

    /// Of what was written only.
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut above = self.above.write();
        let file = above.remove(from).ok_or(io::ErrorKind::NotFound)?;
        above.insert(to.to_owned(), file);
        Ok(())
    }

    /// What is below stays.
    fn remove(&self, name: &str) -> io::Result<()> {
        self.above.write().remove(name);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Reading(MemoryFile);

impl Readable for Reading {
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.0.read();
        let rest = usize::try_from(offset).ok().and_then(|at| file.get(at..));
        let bytes = rest.and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

struct Writing(MemoryFile);

impl Appendable for Writing {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write().extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
