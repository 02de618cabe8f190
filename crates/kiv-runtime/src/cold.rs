//! Which tier a session's sealed rows go to.

use crate::gpu::GpuTier;
use kiv_context::DiskTier;
use kiv_store::{ColdTier, HostStore};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

/// The tier of a session.
pub(crate) enum Cold {
    /// Host memory.
    Host(HostStore),
    /// Host memory that a GPU reads.
    Gpu(Box<GpuTier>),
    /// A folder, cached in host memory.
    Disk(Box<DiskTier>),
}

impl Cold {
    /// The tier on disk, if it is that.
    pub(crate) fn disk(&mut self) -> Option<&mut DiskTier> {
        match self {
            Self::Host(_) | Self::Gpu(_) => None,
            Self::Disk(disk) => Some(disk),
        }
    }

    /// The tier that a GPU reads, if it is that.
    pub(crate) fn gpu(&mut self) -> Option<&mut GpuTier> {
        match self {
            Self::Gpu(gpu) => Some(gpu),
            Self::Host(_) | Self::Disk(_) => None,
        }
    }
}

impl Deref for Cold {
    type Target = dyn ColdTier;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Host(host) => host,
            Self::Gpu(gpu) => &**gpu,
            Self::Disk(disk) => &**disk,
        }
    }
}

impl DerefMut for Cold {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Host(host) => host,
            Self::Gpu(gpu) => &mut **gpu,
            Self::Disk(disk) => &mut **disk,
        }
    }
}

/// A folder of the session's own, removed with it.
#[derive(Debug)]
pub(crate) struct Scratch(pub PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // It held nothing that anybody wants.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
