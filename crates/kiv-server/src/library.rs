//! Contexts on disk, each in a folder of its own, found again by what they begin with.
//!
//! A context is either in the library or in a session's hands. A session that gives its
//! context back has made it durable.

use kiv_runtime::{Error, Session, Token, stored_tokens};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Folders that are ours begin with this.
const PREFIX: &str = "context-";

/// Contexts that nobody has open.
pub(crate) struct Library {
    folder: PathBuf,
    most: usize,
    stored: Vec<Stored>,
}

/// How many tokens two texts have in common from the beginning.
pub(crate) fn shared(a: &[Token], b: &[Token]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// One of them.
pub(crate) struct Stored {
    pub path: PathBuf,
    pub tokens: Vec<Token>,
    used: SystemTime,
}

impl Library {
    /// The contexts of a folder that a session like `like` can take up.
    pub fn open(folder: &Path, most: usize, like: &mut Session) -> Result<Self, Error> {
        let mut stored = Vec::new();
        for path in kiv_context::list(folder)? {
            let name = path.file_name().unwrap_or_default();
            // Others' folders are left alone, and contexts of other models and settings
            // are left to servers of theirs.
            if name.to_string_lossy().starts_with(PREFIX)
                && like.could_resume(&path).is_ok()
                && let Ok(tokens) = stored_tokens(&path)
            {
                let changed = std::fs::metadata(path.join("manifest")).and_then(|m| m.modified());
                let used = changed.unwrap_or(SystemTime::UNIX_EPOCH);
                stored.push(Stored { path, tokens, used });
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            most,
            stored,
        })
    }

    /// A folder below `folder` for the first context.
    pub fn free_path(folder: &Path) -> PathBuf {
        let mut numbers = 0u64..;
        let free = numbers.find_map(|n| {
            let path = folder.join(format!("{PREFIX}{n:06}"));
            (!path.exists()).then_some(path)
        });
        free.expect("there are fewer folders than numbers")
    }

    /// Contexts.
    pub fn len(&self) -> usize {
        self.stored.len()
    }

    /// A folder for another one.
    pub fn new_path(&self) -> PathBuf {
        Self::free_path(&self.folder)
    }

    /// The context that begins with most of `prompt`, and how much that is.
    pub fn best(&self, prompt: &[Token]) -> Option<(usize, usize)> {
        let shared = self.stored.iter().map(|s| shared(&s.tokens, prompt));
        shared.enumerate().max_by_key(|(_, shared)| *shared)
    }

    /// The `i`-th context.
    pub fn get(&self, i: usize) -> &Stored {
        &self.stored[i]
    }

    /// Gives the `i`-th context away.
    pub fn take(&mut self, i: usize) -> Stored {
        self.stored.swap_remove(i)
    }

    /// Takes a context that has been made durable, and removes those that have not been
    /// used for longest if there are too many.
    pub fn put(&mut self, path: PathBuf, tokens: Vec<Token>) {
        let used = SystemTime::now();
        self.stored.push(Stored { path, tokens, used });
        while self.stored.len() > self.most {
            let ages = self.stored.iter().enumerate();
            let Some((oldest, _)) = ages.min_by_key(|(_, s)| s.used) else {
                return;
            };
            let _ = kiv_context::remove(&self.stored.swap_remove(oldest).path);
        }
    }
}
