//! Commits: what makes a context durable.

use super::DiskTier;
use crate::error::ContextError;
use crate::folder::Folder;
use crate::manifest::{Manifest, PartEntry, is_ours};
use std::io;
use std::iter;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// A commit being made; dropping it changes nothing, and leaves no files.
pub struct Commit<'a> {
    tier: &'a mut DiskTier,
    parts: Vec<PartEntry>,
}

impl Commit<'_> {
    /// Adds a part. One that is the same as in the last commit is not written
    /// again.
    ///
    /// # Errors
    /// [`ContextError::Io`].
    pub fn part(&mut self, name: &str, bytes: &[u8]) -> Result<(), ContextError> {
        let (len, sum) = (bytes.len() as u64, xxh3_64(bytes));
        let old = self.tier.manifest.parts.iter();
        let mut same = old.filter(|p| (p.name.as_str(), p.len, p.sum) == (name, len, sum));
        if let Some(same) = same.next() {
            self.parts.push(same.clone());
            return Ok(());
        }
        let entry = PartEntry {
            name: name.to_owned(),
            id: self.tier.new_id(),
            len,
            sum,
        };
        let (file, folder) = (entry.file(), &*self.tier.reader.folder);
        let written = write_file(folder, &file, &[&entry.header(), bytes]);
        written.map_err(ContextError::io("write", folder.path(&file)))?;
        self.parts.push(entry);
        Ok(())
    }

    /// Makes it durable. All parts that were not added are dropped.
    ///
    /// # Errors
    /// [`ContextError::Io`]; the last commit is what it was, unless the system
    /// failed in saying whether the new one is durable. [`ContextError::Damaged`] if the
    /// system has dropped rows that it could not write.
    pub fn finish(self, n_tokens: usize) -> Result<(), ContextError> {
        let parts = self.parts.clone();
        self.tier.finish(parts, n_tokens)
    }
}

impl Drop for Commit<'_> {
    fn drop(&mut self) {
        // What no manifest has come to name would be there for every try.
        for file in self.parts.iter().map(PartEntry::file) {
            if !self.tier.is_named(&file) {
                let _ = self.tier.reader.folder.remove(&file);
            }
        }
    }
}

impl DiskTier {
    /// Begins a commit: everything published so far, and the parts that are
    /// given to it, become durable at once by [`Commit::finish`].
    pub fn commit(&mut self) -> Commit<'_> {
        Commit {
            tier: self,
            parts: Vec::new(),
        }
    }

    fn finish(&mut self, parts: Vec<PartEntry>, n_tokens: usize) -> Result<(), ContextError> {
        if self.is_doubtful {
            self.write_again()?;
        }
        self.sync_rows()?;
        let folder = Arc::clone(&self.reader.folder);
        let here = folder.path("");
        // All names are there before the manifest that needs them.
        folder.sync().map_err(ContextError::io("write", &here))?;
        let segments = self.reader.segments.read();
        let entries = segments.iter().map(|s| s.entry);
        let manifest = Manifest {
            identity: self.manifest.identity.clone(),
            commit: self.manifest.commit + 1,
            n_tokens: n_tokens as u64,
            segments: entries.filter(|s| s.blocks > 0).collect(),
            parts,
            next_id: self.next_id,
        };
        drop(segments);
        if let Err(error) = write_manifest(&*folder, &manifest) {
            // Over a network it may have got its name all the same.
            let found = read_manifest(&*folder);
            if !matches!(&found, Ok(Some(found)) if *found == manifest) {
                // What it names stays where nobody can tell.
                self.in_doubt = found.is_err().then_some(manifest);
                return Err(ContextError::io("write", folder.path("manifest.new"))(
                    error,
                ));
            }
        }
        self.manifest = manifest;
        self.in_doubt = None;
        self.closed.clear();
        folder.sync().map_err(ContextError::io("write", &here))?;
        self.remove_unnamed();
        Ok(())
    }

    fn sync_rows(&mut self) -> Result<(), ContextError> {
        for rows in self.closed.iter_mut().chain(&mut self.open) {
            if let Err(error) = rows.file.sync() {
                let path = self.reader.folder.path(&rows.name);
                // The next sync of this file may say that all is well: Linux tells of what it
                // could not write once, and takes it for written.
                self.is_doubtful = true;
                self.closed.clear();
                self.open = None;
                return Err(ContextError::io("write", path)(error));
            }
        }
        Ok(())
    }

    /// Writes all blocks that no commit names to a new file. If the system has dropped some
    /// already, their sums say so.
    fn write_again(&mut self) -> Result<(), ContextError> {
        let first = self.n_durable();
        if first < self.n_blocks {
            self.open_segment(first)?;
        }
        self.is_doubtful = false;
        Ok(())
    }

    /// Blocks that are as the last commit has made them durable.
    fn n_durable(&self) -> usize {
        let named = |id: u32| self.manifest.segments.iter().find(|s| s.id == id);
        for s in self.reader.segments.read().iter().map(|s| s.entry) {
            let durable = named(s.id).map_or(0, |named| named.blocks.min(s.blocks));
            if durable < s.blocks {
                return s.first + durable;
            }
        }
        self.n_blocks
    }

    /// Whether the last commit names a file, or one that may have become the last.
    pub(super) fn is_named(&self, file: &str) -> bool {
        let mut manifests = iter::once(&self.manifest).chain(&self.in_doubt);
        manifests.any(|m| {
            m.segments.iter().any(|s| s.name() == file) || m.parts.iter().any(|p| p.file() == file)
        })
    }

    /// Removes files that the last commit does not name and that are not being
    /// written. What cannot be removed is only in the way.
    pub(super) fn remove_unnamed(&self) {
        let folder = &self.reader.folder;
        let segments = self.reader.segments.read();
        let named = |name: &str| {
            name == "manifest"
                || name == "lock"
                || self.is_named(name)
                || segments.iter().any(|s| s.entry.name() == name)
        };
        let names = folder.names().unwrap_or_default();
        for name in names.iter().filter(|n| is_ours(n) && !named(n)) {
            let _ = folder.remove(name);
        }
    }
}

/// Writes a new file as a whole and syncs it. Nothing is left of one that fails.
fn write_file(folder: &dyn Folder, name: &str, pieces: &[&[u8]]) -> io::Result<()> {
    let mut file = folder.create(name)?;
    let appended = pieces.iter().try_for_each(|piece| file.append(piece));
    appended.and_then(|()| file.sync()).inspect_err(|_| {
        let _ = folder.remove(name);
    })
}

/// The manifest of a folder, if it has one.
pub(crate) fn read_manifest(folder: &dyn Folder) -> Result<Option<Manifest>, ContextError> {
    let path = folder.path("manifest");
    match folder.read("manifest") {
        Ok(bytes) => Manifest::decode(&bytes, &path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ContextError::io("read", &path)(error)),
    }
}

/// Puts a manifest in place of the one that is there. Its name is durable when the
/// folder has been synced.
pub(crate) fn write_manifest(folder: &dyn Folder, manifest: &Manifest) -> io::Result<()> {
    if folder.names()?.iter().any(|n| n == "manifest.new") {
        folder.remove("manifest.new")?;
    }
    write_file(folder, "manifest.new", &[&manifest.encode()])?;
    let renamed = folder.rename("manifest.new", "manifest");
    renamed.inspect_err(|_| {
        let _ = folder.remove("manifest.new");
    })
}
