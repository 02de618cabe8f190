//! What can go wrong, and what to do then.

use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why there is no model.
#[derive(Debug, Error)]
pub enum HubError {
    /// No repository can have this name.
    #[error("{name} is no repository's name: give user/model or user/model:quant (-hf)")]
    BadName {
        /// What was given.
        name: String,
    },
    /// No file of a repository can have this name.
    #[error("{name} is no file's name in a repository: give one as its page shows it (-hff)")]
    BadFile {
        /// What was given.
        name: String,
    },
    /// Nowhere to put downloads.
    #[error("there is no home folder to keep downloads in: set HF_HOME")]
    NoCache,
    /// Not the address of a hub.
    #[error("{endpoint:?} is no address of a hub: set HF_ENDPOINT to https://… or unset it")]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// What is given as a token cannot be one.
    #[error("{from} holds no token: it is one word, without spaces or line breaks in it")]
    Token {
        /// The variable or file.
        from: String,
    },
    /// Nobody answered, and the cache does not help.
    #[error(
        "the hub cannot be reached: {why}{}. Check the network, or HF_ENDPOINT if it is set",
        missing.as_deref().unwrap_or_default()
    )]
    Unreachable {
        /// Why.
        why: String,
        /// What the cache does not have.
        missing: Option<String>,
    },
    /// Downloads are forbidden, and it is not in the cache.
    #[error(
        "{what} is not in the cache {}, and HF_HUB_OFFLINE forbids to download it: unset that, or \
         give a file with -m",
        cache.display()
    )]
    Offline {
        /// What was asked for.
        what: String,
        /// The cache.
        cache: PathBuf,
    },
    /// Somebody answered something else.
    #[error("the hub's answer about {what} cannot be understood: {why}. Check HF_ENDPOINT")]
    Answer {
        /// Repository, file or address.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Not without a token, or not with this one.
    #[error(
        "{what} is not open to everybody (HTTP {status}): accept its terms on {page} and {}",
        if *with_token {
            "check that HF_TOKEN (or the token of `hf auth login`) is of that account"
        } else {
            "set HF_TOKEN to a token of your account"
        }
    )]
    Forbidden {
        /// Repository or file.
        what: String,
        /// 401 or 403.
        status: u16,
        /// Its page.
        page: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// No such repository, or none that this token may see.
    #[error("there is no {what} on the hub: check the spelling (of a private one, set HF_TOKEN)")]
    NotFound {
        /// Repository or file.
        what: String,
    },
    /// The hub failed.
    #[error("the hub answered HTTP {status} for {what}: try again later")]
    Status {
        /// Repository or file.
        what: String,
        /// The status.
        status: u16,
    },
    /// No GGUF file at all.
    #[error("{repo} has no GGUF file: look for a conversion of it (often called …-GGUF)")]
    NoModel {
        /// The repository.
        repo: String,
    },
    /// None of this name or tag.
    #[error("{repo} has no {wanted}; it has {}", there.join(", "))]
    NoSuchFile {
        /// The repository.
        repo: String,
        /// Tag or file.
        wanted: String,
        /// Its models.
        there: Vec<String>,
    },
    /// A split model that is not whole.
    #[error("{repo} lacks {file}, a part of the model: take another quantization")]
    MissingPart {
        /// The repository.
        repo: String,
        /// The part.
        file: String,
    },
    /// The file is not what the hub says it is.
    #[error(
        "the SHA-256 of {file} is {found}, not {expected}: what was downloaded has been removed, \
         try again"
    )]
    Checksum {
        /// The file.
        file: String,
        /// As the hub says.
        expected: String,
        /// As it is.
        found: String,
    },
    /// The connection broke, and again.
    #[error(
        "the download of {file} was cut off at {done} of {bytes} bytes: {why}. The same command \
         goes on with it"
    )]
    CutOff {
        /// The file.
        file: String,
        /// Bytes that are there.
        done: u64,
        /// Bytes of it all.
        bytes: u64,
        /// Why.
        why: String,
    },
    /// It would not fit.
    #[error(
        "{what} needs {needs} more bytes, but {} has room for {free}: free some, or set HF_HOME to \
         a folder on another disk",
        folder.display()
    )]
    NoRoom {
        /// What was asked for.
        what: String,
        /// Bytes that are missing of it.
        needs: u64,
        /// Bytes that are free.
        free: u64,
        /// Where.
        folder: PathBuf,
    },
    /// It did not fit.
    #[error(
        "the disk is full: {} has no room. Free some: what has come is kept, and the same command \
         goes on with it",
        path.display()
    )]
    Full {
        /// The file that was written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The cache could not be read or written.
    #[error(
        "cannot write {} in the cache: see that it is yours, or set HF_HOME to another folder",
        path.display()
    )]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl HubError {
    /// What a failure of the system at a file means.
    pub(crate) fn disk(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| {
            let path = path.clone();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Self::Full { path, source }
                }
                _ => Self::Disk { path, source },
            }
        }
    }

    /// Why nothing can be written to the cache, if that is so.
    pub(crate) fn unwritable(&self) -> Option<String> {
        match self {
            Self::Disk { path, source }
                if [
                    io::ErrorKind::PermissionDenied,
                    io::ErrorKind::ReadOnlyFilesystem,
                ]
                .contains(&source.kind()) =>
            {
                Some(format!("cannot write {}: {source}", path.display()))
            }
            _ => None,
        }
    }

    pub(crate) fn unreachable(why: String) -> Self {
        Self::Unreachable { why, missing: None }
    }

    /// Why the hub is of no use now, if it is for a reason that passes.
    pub(crate) fn passing(&self) -> Option<String> {
        match self {
            Self::Unreachable { why, .. } => Some(format!("the hub cannot be reached: {why}")),
            Self::Status { status, .. } if *status >= 500 || *status == 429 => {
                Some(format!("the hub answered HTTP {status}"))
            }
            _ => None,
        }
    }
}
