//! The hub's cache on disk, as its own client lays it out: `blobs` by their ETags,
//! `refs/main` with a commit, and `snapshots/commit` with links to blobs.

use crate::{HubError, RemoteFile};
use std::collections::HashSet;
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
            Err(error) if !kiv_models::has_no_locks(&error) => Err(HubError::disk(&path)(error)),
            _ => Ok(file),
        }
    }

    /// Gives a blob its name in a commit, in place of what had it: a link to what is no more,
    /// or to what is of another length.
    pub fn link(&self, etag: &str, commit: &str, name: &str) -> Result<(), HubError> {
        let (blob, place) = (self.blob(etag), self.place(commit, name));
        replace(&place, |new| link(&blob, new, name)).map_err(HubError::disk(&place))
    }

    /// Says that `main` is at a commit, whose files are there now.
    pub fn set_main(&self, commit: &str) -> Result<(), HubError> {
        let path = self.root.join("refs/main");
        if std::fs::read_to_string(&path).is_ok_and(|text| text.trim() == commit) {
            return Ok(());
        }
        let set = replace(&path, |new| std::fs::write(new, commit));
        set.map_err(HubError::disk(&path))
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
        walk(&self.snapshot(commit), "", &mut HashSet::new(), &mut files);
        files
    }
}

/// Puts what `make` makes where it is told to at `place`, at once: others who do the same see
/// all of one or all of another.
fn replace(place: &Path, make: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let folder = place.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut name = tempfile::Builder::new();
    let made = name.prefix(".new").make_in(folder, make)?;
    Ok(made.into_temp_path().persist(place)?)
}

/// Files below a folder by their paths in it. `seen` are the folders that have been looked at: a
/// link may lead back to one of them.
fn walk(folder: &Path, prefix: &str, seen: &mut HashSet<PathBuf>, files: &mut Vec<RemoteFile>) {
    if !folder
        .canonicalize()
        .is_ok_and(|folder| seen.insert(folder))
    {
        return;
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // Of what the link leads to.
        match entry.path().metadata() {
            Ok(found) if found.is_dir() => walk(&entry.path(), &format!("{name}/"), seen, files),
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

/// Makes `new`, which is in the folder where a snapshot has `name`, another name of a blob of
/// the same repository.
fn link(blob: &Path, new: &Path, name: &str) -> io::Result<()> {
    #[cfg(unix)]
    {
        // The cache may be moved as a whole.
        let mut way: PathBuf = name.split('/').map(|_| "..").collect();
        way.extend(["..", "blobs"]);
        way.extend(blob.file_name());
        match std::os::unix::fs::symlink(way, new) {
            // There are file systems without links.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {}
            made => return made,
        }
    }
    let _ = name;
    std::fs::hard_link(blob, new).or_else(|_| std::fs::copy(blob, new).map(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn links_that_lead_back_end() {
        let cache = tempfile::tempdir().unwrap();
        let folder = Folder::new(cache.path(), "ada/model");
        let place = folder.place("commit", "some/file.gguf");
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(&place, b"model").unwrap();
        for (to, link) in [("..", "some/again"), (".", "here")] {
            std::os::unix::fs::symlink(to, folder.place("commit", link)).unwrap();
        }
        let names: Vec<String> = (folder.files("commit").into_iter())
            .map(|f| f.name)
            .collect();
        assert_eq!(names, ["some/file.gguf"]);
    }

    /// Programs that bring the same model: none takes away what another has begun, or writes
    /// through a link that has come in between.
    #[test]
    fn several_at_once_do_no_harm() {
        let cache = tempfile::tempdir().unwrap();
        let folder = Folder::new(cache.path(), "ada/model");
        folder.create().unwrap();
        let content = vec![7; 4096];
        std::fs::write(folder.blob("etag"), &content).unwrap();
        for commit in 0..200 {
            let commit = commit.to_string();
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        folder.link("etag", &commit, "some/file.gguf").unwrap();
                        folder.set_main(&commit).unwrap();
                    });
                }
            });
            let place = folder.place(&commit, "some/file.gguf");
            assert_eq!(std::fs::read(&place).unwrap(), content);
            assert_eq!(folder.commits()[0], commit);
            let beside = std::fs::read_dir(place.parent().unwrap()).unwrap();
            assert_eq!(beside.count(), 1);
        }
        assert_eq!(std::fs::read(folder.blob("etag")).unwrap(), content);
    }
}
