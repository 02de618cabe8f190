//! Looking at contexts, checking, copying and removing them.

use crate::error::ContextError;
use crate::folder::{DiskFolder, Folder};
use crate::manifest::{Manifest, is_ours};
use crate::prefetch::Reader;
use crate::record::HEADER;
use crate::tier::{lock, open_segments, read_manifest, read_part_file, write_manifest};
use std::fs::{self, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A context, as its manifest tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Its folder.
    pub path: PathBuf,
    /// Its last commit.
    pub manifest: Manifest,
    /// Bytes of its files; those that it shares with forks count in each.
    pub disk_bytes: u64,
}

/// What [`verify`] looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blocks.
    pub blocks: usize,
    /// Bytes, checksums included.
    pub bytes: u64,
    /// What is not as it was written.
    pub faults: Vec<Fault>,
}

/// Damage: where, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub path: PathBuf,
    /// The block, if it is in one.
    pub block: Option<usize>,
    /// In words.
    pub what: String,
}

/// The context in a folder.
///
/// # Errors
/// [`ContextError`]; [`ContextError::Missing`] if there is none.
pub fn info(path: &Path) -> Result<Info, ContextError> {
    let folder = DiskFolder::new(path);
    let manifest = read_manifest(&folder)?.ok_or_else(|| ContextError::Missing {
        path: path.to_owned(),
    })?;
    let names = folder.names().map_err(ContextError::io("read", path))?;
    let sizes = names.iter().filter(|n| is_ours(n)).filter_map(|name| {
        let metadata = fs::metadata(folder.path(name)).ok()?;
        Some(metadata.len())
    });
    Ok(Info {
        path: path.to_owned(),
        disk_bytes: sizes.sum(),
        manifest,
    })
}

/// A part of the last commit of a context, whether somebody has it open or not; `None`
/// if it has none of this name.
///
/// # Errors
/// [`ContextError`] if there is no context, or the part cannot be read or is damaged.
pub fn part(path: &Path, name: &str) -> Result<Option<Vec<u8>>, ContextError> {
    let manifest = info(path)?.manifest;
    let entry = manifest.parts.iter().find(|p| p.name == name);
    let read = |entry| read_part_file(&DiskFolder::new(path), entry);
    entry.map(read).transpose()
}

/// Folders with contexts: this one, and those right below it, by name.
///
/// # Errors
/// [`ContextError::Io`] if the folder cannot be read.
pub fn list(path: &Path) -> Result<Vec<PathBuf>, ContextError> {
    let mut found = Vec::new();
    let is_context = |path: &Path| path.join("manifest").is_file();
    if is_context(path) {
        found.push(path.to_owned());
    }
    let read = ContextError::io("read", path);
    let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut below: Vec<PathBuf> = entries
        .map_err(read)?
        .iter()
        .map(fs::DirEntry::path)
        .collect();
    below.sort();
    found.extend(below.into_iter().filter(|p| is_context(p)));
    Ok(found)
}

/// Checks every byte of a context that nobody has open.
///
/// # Errors
/// [`ContextError`] if it cannot be looked at, its manifest is damaged included;
/// all other damage is told in [`Verified::faults`].
pub fn verify(path: &Path) -> Result<Verified, ContextError> {
    let manifest = info(path)?.manifest;
    let _lock = lock_to_read(path)?;
    verify_in(Arc::new(DiskFolder::new(path)), &manifest)
}

/// Takes the lock together with others who only read. Without a lock file nobody writes.
pub(crate) fn lock_to_read(path: &Path) -> Result<Option<fs::File>, ContextError> {
    use std::io::ErrorKind::{NotFound, PermissionDenied};
    let name = path.join("lock");
    let file = match fs::File::open(&name) {
        Err(error) if [NotFound, PermissionDenied].contains(&error.kind()) => return Ok(None),
        file => file.map_err(ContextError::io("read", &name))?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(ContextError::Locked {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(ContextError::io("lock", &name)(error)),
    }
}

/// As [`verify`], in any folder.
pub(crate) fn verify_in(
    folder: Arc<dyn Folder>,
    manifest: &Manifest,
) -> Result<Verified, ContextError> {
    let mut verified = Verified {
        bytes: manifest.encode().len() as u64,
        ..Verified::default()
    };
    for entry in &manifest.parts {
        verified.bytes += entry.len;
        if let Err(error) = read_part_file(&*folder, entry) {
            verified.faults.push(Fault {
                path: folder.path(&entry.file()),
                block: None,
                what: told(&error),
            });
        }
    }
    let reader = Reader::new(Arc::clone(&folder), &manifest.identity, Some(0));
    let record = reader.layout.record_bytes();
    for entry in &manifest.segments {
        let path = folder.path(&entry.name());
        let alone = Manifest {
            segments: vec![*entry],
            ..manifest.clone()
        };
        let segment = match open_segments(&reader, &alone) {
            Ok(segments) => segments.into_iter().next(),
            Err(error) => {
                verified.faults.push(Fault {
                    path: path.clone(),
                    block: None,
                    what: told(&error),
                });
                // The blocks themselves may be whole.
                folder
                    .open(&entry.name())
                    .ok()
                    .map(|file| crate::prefetch::Segment {
                        entry: *entry,
                        file,
                    })
            }
        };
        let Some(segment) = segment else {
            continue;
        };
        for block in entry.first..entry.first + entry.blocks {
            let start = HEADER + (block - entry.first) * record;
            for (part, p) in reader.layout.parts.iter().enumerate() {
                let offset = (start + p.offset) as u64;
                if let Err(what) = reader.read_part(&segment, part, block, offset) {
                    verified.faults.push(Fault {
                        path: path.clone(),
                        block: Some(block),
                        what,
                    });
                }
            }
            verified.blocks += 1;
            verified.bytes += record as u64;
        }
    }
    Ok(verified)
}

/// An error with its cause.
fn told(error: &ContextError) -> String {
    use std::error::Error;
    match error {
        ContextError::Damaged { what, .. } => what.clone(),
        other => match other.source() {
            Some(cause) => format!("{other}: {cause}"),
            None => other.to_string(),
        },
    }
}

/// Makes a copy of a context that nobody has open in another folder, which must
/// be new or empty. Files are shared where the file system can (hard links), and
/// copied otherwise; neither context ever changes them.
///
/// # Errors
/// [`ContextError`].
pub fn fork(from: &Path, to: &Path) -> Result<(), ContextError> {
    let manifest = info(from)?.manifest;
    let _lock = lock_to_read(from)?;
    link(from, to, &manifest)
}

/// Makes a copy of a commit in another folder. Nothing is left of one that fails.
pub(crate) fn link(from: &Path, to: &Path, manifest: &Manifest) -> Result<(), ContextError> {
    if is_within(to, from) {
        return Err(ContextError::Within {
            path: to.to_owned(),
        });
    }
    // The folder, and those that it is in.
    let made: Vec<&Path> = to.ancestors().take_while(|path| !path.exists()).collect();
    let linked = link_into(from, to, manifest);
    if linked.is_err() {
        for path in made {
            // Fails if there is something else in it.
            let _ = fs::remove_dir(path);
        }
    }
    linked
}

fn link_into(from: &Path, to: &Path, manifest: &Manifest) -> Result<(), ContextError> {
    fs::create_dir_all(to).map_err(ContextError::io("make the folder", to))?;
    let folder = DiskFolder::new(to);
    let is_empty = |names: &[String]| match names.iter().all(|name| name == "lock") {
        true => Ok(()),
        false => Err(ContextError::NotEmpty {
            path: to.to_owned(),
        }),
    };
    let names = || folder.names().map_err(ContextError::io("read", to));
    // Nothing is left in a folder of somebody else's, a lock neither.
    is_empty(&names()?)?;
    let lock = lock(to)?;
    // Another copy may have become whole before.
    is_empty(&names()?)?;
    let linked = link_files(from, &folder, manifest);
    if linked.is_err() {
        // Without a manifest nobody would know what these files are.
        let _ = remove_files(&folder, lock);
    }
    linked
}

/// Links the files of a commit into a folder, its manifest last.
fn link_files(from: &Path, folder: &DiskFolder, manifest: &Manifest) -> Result<(), ContextError> {
    let rows = manifest.segments.iter().map(|s| s.name());
    for name in rows.chain(manifest.parts.iter().map(|p| p.file())) {
        let (source, target) = (from.join(&name), folder.path(&name));
        if fs::hard_link(&source, &target).is_err() {
            copy(&source, &target)?;
        }
    }
    let path = folder.path("manifest");
    let write = || -> std::io::Result<()> {
        folder.sync()?;
        write_manifest(folder, manifest)?;
        folder.sync()
    };
    write().map_err(ContextError::io("write", path))
}

/// Copies a file, but never into one that is there: it may be the same by another name.
fn copy(source: &Path, target: &Path) -> Result<(), ContextError> {
    let mut from = fs::File::open(source).map_err(ContextError::io("copy", source))?;
    let copied = fs::File::create_new(target).and_then(|mut to| {
        std::io::copy(&mut from, &mut to)?;
        to.sync_all()
    });
    copied.map_err(ContextError::io("write", target))
}

/// Whether a folder that may not be there yet is another one or below it.
fn is_within(path: &Path, other: &Path) -> bool {
    let path = std::path::absolute(path).unwrap_or_default();
    let found = path.ancestors().find_map(|path| path.canonicalize().ok());
    match (found, other.canonicalize()) {
        (Some(found), Ok(other)) => found.starts_with(other),
        _ => false,
    }
}

/// Removes a context that nobody has open, and its folder if nothing else is in
/// it.
///
/// # Errors
/// [`ContextError`].
pub fn remove(path: &Path) -> Result<(), ContextError> {
    // One that is damaged can be removed, too; other programs also call files `manifest`.
    let name = path.join("manifest");
    let is_context = name.is_file() && {
        let manifest = fs::read(&name).map_err(ContextError::io("read", &name))?;
        Manifest::may_be(&manifest)
    };
    if !is_context {
        return Err(ContextError::Missing {
            path: path.to_owned(),
        });
    }
    let lock = lock(path)?;
    remove_files(&DiskFolder::new(path), lock)?;
    // Fails if there is something else.
    let _ = fs::remove_dir(path);
    Ok(())
}

/// Removes a folder of rows that was to go with a process that ended otherwise: nothing but
/// rows is in it, and a lock that nobody has any more. Whether it was one.
#[must_use]
pub fn remove_left(path: &Path) -> bool {
    let folder = DiskFolder::new(path);
    let Ok(names) = folder.names() else {
        return false;
    };
    // What is meant to stay has a manifest.
    let is_rows = |n: &String| n == "lock" || n.starts_with("rows-") && is_ours(n);
    if !names.iter().all(is_rows) || !is_older(&path.join("lock"), MADE) {
        return false;
    }
    let removed = lock(path).and_then(|lock| remove_files(&folder, lock));
    removed.is_ok() && fs::remove_dir(path).is_ok()
}

/// A lock that is younger may be one that its process is about to take.
const MADE: Duration = Duration::from_secs(60);

/// Whether a file is there, and has not been written for so long.
fn is_older(path: &Path, age: Duration) -> bool {
    let written = fs::metadata(path).and_then(|found| found.modified());
    written.is_ok_and(|at| at.elapsed().is_ok_and(|since| since >= age))
}

/// Removes a context's files, and no others.
fn remove_files(folder: &DiskFolder, lock: fs::File) -> Result<(), ContextError> {
    let here = folder.path("");
    let mut names = folder.names().map_err(ContextError::io("read", here))?;
    names.retain(|n| is_ours(n) && n != "lock");
    // The manifest first: half a context is none.
    names.sort_by_key(|n| n != "manifest");
    for name in names {
        let removed = folder.remove(&name);
        removed.map_err(ContextError::io("remove", folder.path(&name)))?;
    }
    // Whoever opens it now sees that it is no more.
    let _ = folder.remove("lock");
    drop(lock);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_not_copied_onto_itself() {
        let folder = tempfile::tempdir().unwrap();
        let [source, same, new] = ["source", "same", "new"].map(|name| folder.path().join(name));
        fs::write(&source, "rows").unwrap();
        fs::hard_link(&source, &same).unwrap();
        assert!(copy(&source, &same).is_err());
        copy(&source, &new).unwrap();
        assert_eq!(
            [&source, &new].map(|path| fs::read(path).unwrap()),
            [b"rows"; 2]
        );
    }

    /// Whoever waited for the lock of a context that has been removed has none.
    #[cfg(unix)]
    #[test]
    fn a_lock_goes_with_its_context() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..200 {
            let held = lock(folder.path()).unwrap();
            std::thread::scope(|scope| {
                let other = scope.spawn(|| {
                    loop {
                        match lock(folder.path()) {
                            Ok(lock) => return lock,
                            Err(ContextError::Locked { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
                remove_files(&DiskFolder::new(folder.path()), held).unwrap();
                let _other = other.join().unwrap();
                let again = lock(folder.path());
                assert!(matches!(again, Err(ContextError::Locked { .. })));
            });
        }
    }
}
