//! The place of a CUDA device in builds without one.

use crate::absent::Absent;
use crate::device::{Buffer, Device, DeviceError, Kernels, Memory, Stream};
use crate::work::{At, Work};
use std::convert::Infallible;
use std::time::Duration;

/// A GPU through CUDA's driver. There is none without the feature `cuda`.
#[derive(Debug)]
pub enum CudaDevice {}

/// The GPU of that number, or why there is none: always [`Absent::NotBuilt`] here.
///
/// # Errors
/// [`Absent`].
pub fn open_or_say(_ordinal: u32) -> Result<CudaDevice, Absent> {
    Err(Absent::NotBuilt)
}

impl CudaDevice {
    /// Somebody else's device memory as a buffer.
    ///
    /// # Errors
    /// None: there is no device to call this of.
    ///
    /// # Safety
    /// As with the feature `cuda`, so that callers need not know.
    #[allow(unsafe_code)]
    pub unsafe fn adopt(&mut self, _: u64, _: usize) -> Result<Buffer, DeviceError> {
        match *self {}
    }
}

impl CudaDevice {
    /// Compiles kernels before they are wanted.
    ///
    /// # Errors
    /// None: there is no device to call this of.
    pub fn prepare(&mut self, _: Kernels) -> Result<(), DeviceError> {
        match *self {}
    }

    /// Bytes of its memory that nobody has.
    ///
    /// # Errors
    /// None: there is no device to call this of.
    pub fn free_memory(&self) -> Result<usize, DeviceError> {
        match *self {}
    }
}

/// Whether there is a GPU of that number: always [`Absent::NotBuilt`] here.
///
/// # Errors
/// [`Absent`].
pub fn look_or_say(_ordinal: u32) -> Result<(), Absent> {
    Err(Absent::NotBuilt)
}

impl Device for CudaDevice {
    type Event = Infallible;

    fn name(&self) -> String {
        match *self {}
    }

    fn now(&self) -> Duration {
        match *self {}
    }

    fn stream(&mut self, _: bool) -> Result<Stream, DeviceError> {
        match *self {}
    }

    fn alloc(&mut self, _: Memory, _: usize) -> Result<Buffer, DeviceError> {
        match *self {}
    }

    fn free(&mut self, _: Buffer) -> Result<(), DeviceError> {
        match *self {}
    }

    fn write(&mut self, _: At, _: &[u8]) -> Result<(), DeviceError> {
        match *self {}
    }

    fn pinned(&self, _: At, _: usize) -> Result<&[u8], DeviceError> {
        match *self {}
    }

    fn upload(&mut self, _: Stream, _: At, _: &[u8]) -> Result<(), DeviceError> {
        match *self {}
    }

    fn copy(&mut self, _: Stream, _: At, _: At, _: usize) -> Result<(), DeviceError> {
        match *self {}
    }

    fn read(&mut self, _: Stream, _: At, _: &mut [u8]) -> Result<(), DeviceError> {
        match *self {}
    }

    fn submit(&mut self, _: Stream, _: &Work<'_>) -> Result<(), DeviceError> {
        match *self {}
    }

    fn record(&mut self, _: Stream) -> Result<Infallible, DeviceError> {
        match *self {}
    }

    fn wait(&mut self, _: Stream, event: &Infallible) -> Result<(), DeviceError> {
        match *event {}
    }

    fn is_done(&mut self, event: &Infallible) -> Result<bool, DeviceError> {
        match *event {}
    }

    fn sync(&mut self, event: &Infallible) -> Result<(), DeviceError> {
        match *event {}
    }

    fn between(&mut self, from: &Infallible, _: &Infallible) -> Result<Duration, DeviceError> {
        match *from {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_it_says_so() {
        let absent = open_or_say(0).unwrap_err();
        assert_eq!(absent, Absent::NotBuilt);
        assert_eq!(look_or_say(0), Err(Absent::NotBuilt));
        let line = "CUDA: not built in (feature `cuda`); kiv goes on on the CPU";
        assert_eq!(absent.to_string(), line);
    }
}
