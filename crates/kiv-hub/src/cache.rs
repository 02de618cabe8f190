//! The hub's cache on disk, as its own client lays it out: `blobs` by their ETags,
//! `refs/main` with a commit, and `snapshots/commit` with links to blobs.

use crate::{HubError, RemoteFile};
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// A repository's folder in the cache.
pub(crate) struct Folder {
    root: PathBuf,
    locks: PathBuf,
}

impl Folder {
    pub fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self {
            locks: cache.join(".locks").join(&name),
            root: cache.join(name),
        }
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// What has come of a blob.
    pub fn part(&self, etag: &str) -> PathBuf {
        self.blob(&format!("{etag}.incomplete"))
    }

    pub fn place(&self, commit: &str, name: &str) -> PathBuf {
        self.snapshot(commit).join(name)
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Makes the folder of blobs.
    pub fn create(&self) -> Result<PathBuf, HubError> {
        let folder = self.root.join("blobs");
        std::fs::create_dir_all(&folder).map_err(HubError::disk(&folder))?;
        Ok(folder)
    }

    /// Takes the lock of a blob; `wait` is called if another process has it.
    pub fn lock(&self, etag: &str, wait: impl FnOnce()) -> Result<File, HubError> {
        std::fs::create_dir_all(&self.locks).map_err(HubError::disk(&self.locks))?;
        let path = self.locks.join(format!("{etag}.lock"));
        let file = File::create(&path).map_err(HubError::disk(&path))?;
        let locked = match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                wait();
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
        };
        match locked {
            // Some network file systems have no locks: one must not need two processes.
            Err(error) if error.kind() != io::ErrorKind::Unsupported => {
                Err(HubError::disk(&path)(error))
            }
            _ => Ok(file),
        }
    }

    /// Gives a blob its name in a commit.
    pub fn link(&self, etag: &str, commit: &str, name: &str) -> Result<(), HubError> {
        let (blob, place) = (self.blob(etag), self.place(commit, name));
        let made = || {
            if let Some(parent) = place.parent() {
                std::fs::create_dir_all(parent)?;
            }
            // A link to what is no more, or to what is of another length.
            match std::fs::remove_file(&place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            link(&blob, &place, name)
        };
        made().map_err(HubError::disk(&place))
    }

    /// Says that `main` is at a commit, whose files are there now.
    pub fn set_main(&self, commit: &str) -> Result<(), HubError> {
        let path = self.root.join("refs/main");
        if std::fs::read_to_string(&path).is_ok_and(|text| text.trim() == commit) {
            return Ok(());
        }
        let set = || {
            std::fs::create_dir_all(self.root.join("refs"))?;
            let new = path.with_file_name(format!("main.{}", std::process::id()));
            std::fs::write(&new, commit)?;
            std::fs::rename(new, &path)
        };
        set().map_err(HubError::disk(&path))
    }

    /// Commits of which there is something, that of `main` first, then the newest.
    pub fn commits(&self) -> Vec<String> {
        let main = std::fs::read_to_string(self.root.join("refs/main"));
        let main = main.unwrap_or_default().trim().to_owned();
        let entries = std::fs::read_dir(self.root.join("snapshots"));
        let mut found: Vec<(bool, std::time::SystemTime, String)> = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                let changed = entry.metadata().and_then(|found| found.modified());
                let changed = changed.unwrap_or(std::time::UNIX_EPOCH);
                (name == main, changed, name)
            })
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        found.into_iter().map(|(_, _, name)| name).collect()
    }

    /// Files of a commit that are there.
    pub fn files(&self, commit: &str) -> Vec<RemoteFile> {
        let mut files = Vec::new();
        walk(&self.snapshot(commit), "", &mut files);
        files
    }
}

/// Files below a folder by their paths in it.
fn walk(folder: &Path, prefix: &str, files: &mut Vec<RemoteFile>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // Of what the link leads to.
        match entry.path().metadata() {
            Ok(found) if found.is_dir() => walk(&entry.path(), &format!("{name}/"), files),
            Ok(found) => files.push(RemoteFile {
                name,
                bytes: Some(found.len()),
                sha256: None,
            }),
            Err(_) => {}
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
}

/// Whether a file, or what a link leads to, is there and this long.
pub(crate) fn has_length(path: &Path, bytes: u64) -> bool {
    path.metadata().is_ok_and(|found| found.len() == bytes)
}

/// Makes `place`, where a snapshot has `name`, another name of a blob of the same
/// repository.
fn link(blob: &Path, place: &Path, name: &str) -> io::Result<()> {
    #[cfg(unix)]
    {
        // The cache may be moved as a whole.
        let mut way: PathBuf = name.split('/').map(|_| "..").collect();
        way.extend(["..", "blobs"]);
        way.extend(blob.file_name());
        if std::os::unix::fs::symlink(way, place).is_ok() {
            return Ok(());
        }
    }
    let _ = name;
    std::fs::hard_link(blob, place).or_else(|_| std::fs::copy(blob, place).map(|_| ()))
}
