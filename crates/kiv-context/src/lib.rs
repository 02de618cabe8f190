//! Contexts on disk: sealed rows, the index, tokens and the hot window of one
//! sequence, in a folder that outlives the process.
//!
//! [`DiskTier`] is a [`kiv_store::ColdTier`]: sealed blocks are appended to files
//! and cached in memory up to a limit. [`DiskTier::commit`] makes everything so
//! far durable, together with named parts that the caller gives; after a crash
//! a folder opens as it was at its last commit. [`verify`] checks every byte.
//!
//! The format is described byte by byte in `docs/context-format.md`. Files are
//! only ever appended to or replaced as a whole, and never changed once a commit
//! names them: so forks share them by hard links.

mod cache;
mod error;
mod folder;
mod manage;
mod manifest;
mod overlay;
mod prefetch;
mod record;
mod tier;

pub use error::ContextError;
pub use folder::{Appendable, DiskFolder, Folder, Readable};
pub use manage::{Fault, Info, Verified, fork, info, list, part, remove, remove_left, verify};
pub use manifest::{Identity, Manifest, PartEntry, SegmentEntry, VERSION};
pub use record::RecordLayout;
pub use tier::{Commit, DiskOptions, DiskTier};
