//! What can go wrong, and what to do then.

use hf_hub::api::sync::ApiError;
use std::io::ErrorKind;
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
    /// Nowhere to put downloads.
    #[error("there is no home folder to keep downloads in: set HF_HOME")]
    NoCache,
    /// The client could not be made.
    #[error("cannot speak HTTP: {why}")]
    Client {
        /// Why.
        why: String,
    },
    /// Nobody answered.
    #[error("the hub cannot be reached: {why}. Check the network, or HF_ENDPOINT if it is set")]
    Unreachable {
        /// Why.
        why: String,
    },
    /// Somebody answered something else.
    #[error("the hub's answer about {repo} cannot be understood: {why}. Check HF_ENDPOINT")]
    Answer {
        /// The repository.
        repo: String,
        /// What is wrong with it.
        why: String,
    },
    /// Not without a token, or not with this one.
    #[error(
        "{what} is not open to everybody (HTTP {status}): accept its terms on its page and set \
         HF_TOKEN to a token of your account"
    )]
    Forbidden {
        /// Repository or file.
        what: String,
        /// 401 or 403.
        status: u16,
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
    /// A file that the hub keeps without a checksum.
    #[error("the hub tells no SHA-256 of {file}: fetch it yourself and give it with -m")]
    NoChecksum {
        /// The file.
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
    /// The connection broke.
    #[error("the download of {file} was cut off: {why}. The same command goes on with it")]
    CutOff {
        /// The file.
        file: String,
        /// Why.
        why: String,
    },
    /// Another process is at it.
    #[error("{file} is being downloaded by another program: wait for that, then try again")]
    Busy {
        /// The file.
        file: String,
    },
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What a request's failure means.
pub(crate) fn refused(error: ureq::Error, repo: &str, file: Option<&str>) -> HubError {
    let what = file.map_or(repo.to_owned(), |file| format!("{repo}/{file}"));
    match error {
        ureq::Error::StatusCode(status @ (401 | 403)) => HubError::Forbidden { what, status },
        ureq::Error::StatusCode(404) => HubError::NotFound { what },
        ureq::Error::StatusCode(status) => HubError::Status { what, status },
        other => HubError::Unreachable {
            why: other.to_string(),
        },
    }
}

/// What a download's failure means; what has come of the file is in `part`.
pub(crate) fn failed(error: ApiError, repo: &str, file: &str, part: &Path) -> HubError {
    let cut_off = |why: String| HubError::CutOff {
        file: file.to_owned(),
        why,
    };
    match error {
        ApiError::RequestError(error) => match *error {
            ureq::Error::Io(error) => cut_off(error.to_string()),
            error => refused(error, repo, Some(file)),
        },
        ApiError::IoError(source) => match source.kind() {
            ErrorKind::StorageFull
            | ErrorKind::PermissionDenied
            | ErrorKind::NotFound
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::FileTooLarge => HubError::Disk {
                path: part.to_owned(),
                source,
            },
            _ => cut_off(source.to_string()),
        },
        ApiError::LockAcquisition(_) => HubError::Busy {
            file: file.to_owned(),
        },
        other => HubError::Answer {
            repo: repo.to_owned(),
            why: other.to_string(),
        },
    }
}
