//! What can go wrong with a context on disk.

use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a context cannot be used. Messages name the file and what to do.
#[derive(Debug, Error)]
pub enum ContextError {
    /// Another process has it open.
    #[error("{} is in use by another process (--kv-dir): wait until it is done with it (copies and --kv-no-save have to wait, too)", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// There is no context.
    #[error("{} holds no context (--kv-dir)", path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// There are other files, and no context.
    #[error(
        "{} holds `{name}`, which is no part of a context: give an empty or new folder (--kv-dir)",
        path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// A file in it.
        name: String,
    },
    /// Where a copy should go, there is something.
    #[error("{} is not empty: a copy needs a new or empty folder (--to)", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// A copy would be among the context's own files.
    #[error("{} is within the context itself: a copy needs a folder elsewhere (--to)", path.display())]
    Within {
        /// The folder for the copy.
        path: PathBuf,
    },
    /// It was written by a later version.
    #[error("{} is of format version {found}, this kiv reads up to {known}: use a newer kiv", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The latest that is known.
        known: u32,
    },
    /// Bytes are not what was written.
    #[error(
        "{} is damaged: {what}. `kiv context verify` tells all that is; take a copy, or read the \
         text again into another --kv-dir",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What and where.
        what: String,
    },
    /// It belongs to another model.
    #[error(
        "{} was written with another model ({stored}, not {given}): take that one, or another \
         --kv-dir",
        path.display()
    )]
    OtherModel {
        /// The folder.
        path: PathBuf,
        /// The context's model.
        stored: String,
        /// The model given.
        given: String,
    },
    /// It was written under another setting.
    #[error(
        "{} was written with {key} {stored}, not {given}: give the same, or another --kv-dir",
        path.display()
    )]
    OtherSetting {
        /// The folder.
        path: PathBuf,
        /// What differs; a flag where there is one.
        key: String,
        /// The context's value.
        stored: String,
        /// The value given.
        given: String,
    },
    /// The system failed.
    #[error("cannot {action} {} (--kv-dir)", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl ContextError {
    pub(crate) fn io(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn damaged(path: impl AsRef<Path>, what: impl ToString) -> Self {
        Self::Damaged {
            path: path.as_ref().to_owned(),
            what: what.to_string(),
        }
    }
}
