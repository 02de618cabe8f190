//! What a swapper needs of a GPU.

use crate::work::{At, Work, WorkError};
use std::time::Duration;

/// Memory that a device owns or was lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buffer(pub(crate) u32);

/// A queue of work: in order within itself, in none with others unless an event
/// says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream(pub(crate) u32);

/// Kernels that are compiled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// What swaps blocks.
    Swaps,
    /// What searches the index.
    Searches,
}

/// Where memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// On the device.
    Device,
    /// On the host, page-locked and mapped: kernels read it over the bus.
    Pinned,
}

/// Why a device did not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no memory left.
    #[error("no {} memory for {bytes} bytes", match .memory { Memory::Device => "device", Memory::Pinned => "page-locked" })]
    OutOfMemory {
        /// Of which kind.
        memory: Memory,
        /// What was asked for.
        bytes: usize,
    },
    /// Work that does not fit the memory it names. Nothing was done.
    #[error("work for the device does not fit its memory")]
    Work(#[from] WorkError),
    /// The device reports an error of its own, after which it may be unusable.
    #[error("the device failed: {0}")]
    Failed(String),
}

/// A GPU, or something like it.
///
/// Whatever is submitted is checked first: nothing that safe code says can make
/// a device read or write outside of the buffers that are named.
pub trait Device {
    /// A point in a stream.
    type Event: Clone + std::fmt::Debug;

    /// What it calls itself.
    fn name(&self) -> String;

    /// The host's clock.
    fn now(&self) -> Duration;

    /// A new stream. Where priorities exist, work of `urgent` ones goes first.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn stream(&mut self, urgent: bool) -> Result<Stream, DeviceError>;

    /// Memory that holds nothing in particular.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`]: the device is as it was.
    fn alloc(&mut self, memory: Memory, bytes: usize) -> Result<Buffer, DeviceError>;

    /// Gives memory back, once nothing uses it any more.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn free(&mut self, buffer: Buffer) -> Result<(), DeviceError>;

    /// Writes page-locked memory from the host, after waiting for whatever still
    /// reads what is overwritten.
    ///
    /// # Errors
    /// [`DeviceError::Work`] if it is not there or not page-locked.
    fn write(&mut self, to: At, bytes: &[u8]) -> Result<(), DeviceError>;

    /// What page-locked memory holds. Only [`Device::write`] ever changes it.
    ///
    /// # Errors
    /// [`DeviceError::Work`] if it is not there or not page-locked.
    fn pinned(&self, from: At, bytes: usize) -> Result<&[u8], DeviceError>;

    /// Copies pageable memory into a buffer of the device; `bytes` may be used
    /// again on return.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn upload(&mut self, stream: Stream, to: At, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Copies `bytes` bytes from any buffer to one of the device.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn copy(&mut self, stream: Stream, from: At, to: At, bytes: usize) -> Result<(), DeviceError>;

    /// Reads what a buffer holds after all work that `stream` has been given.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn read(&mut self, stream: Stream, from: At, out: &mut [u8]) -> Result<(), DeviceError>;

    /// Starts a kernel.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn submit(&mut self, stream: Stream, work: &Work<'_>) -> Result<(), DeviceError>;

    /// The point in a stream after all that it has been given.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn record(&mut self, stream: Stream) -> Result<Self::Event, DeviceError>;

    /// Lets what a stream is given from now on wait for a point in another.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn wait(&mut self, stream: Stream, event: &Self::Event) -> Result<(), DeviceError>;

    /// Whether a stream has come to that point.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also if work before it failed.
    fn is_done(&mut self, event: &Self::Event) -> Result<bool, DeviceError>;

    /// Waits on the host until a stream has come to that point.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also if work before it failed.
    fn sync(&mut self, event: &Self::Event) -> Result<(), DeviceError>;

    /// Time from one point to another, both of which have been reached; zero if the other
    /// came first.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn between(&mut self, from: &Self::Event, to: &Self::Event) -> Result<Duration, DeviceError>;
}
