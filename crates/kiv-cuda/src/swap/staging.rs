//! Where pageable rows pass through.

use crate::device::{Buffer, Device, DeviceError, Memory, Stream};
use crate::work::At;

/// Two halves of memory that kernels of one stream read: while one is read the other is
/// filled. Page-locked, or on the device if the driver gives no page-locked memory.
#[derive(Debug)]
pub(super) struct Staging {
    halves: [Buffer; 2],
    memory: Memory,
    bytes: usize,
    now: usize,
    used: usize,
}

impl Staging {
    pub(super) fn new<D: Device>(device: &mut D, bytes: usize) -> Result<Self, DeviceError> {
        let both = |device: &mut D, memory| {
            let first = device.alloc(memory, bytes)?;
            match device.alloc(memory, bytes) {
                Ok(second) => Ok([first, second]),
                Err(error) => {
                    device.free(first)?;
                    Err(error)
                }
            }
        };
        let (memory, halves) = match both(device, Memory::Pinned) {
            Ok(halves) => (Memory::Pinned, halves),
            Err(DeviceError::OutOfMemory { .. }) => (Memory::Device, both(device, Memory::Device)?),
            Err(error) => return Err(error),
        };
        Ok(Self {
            halves,
            memory,
            bytes,
            now: 0,
            used: 0,
        })
    }

    /// Bytes that rows take.
    pub(super) fn room(bytes: usize) -> usize {
        bytes.next_multiple_of(16)
    }

    /// Goes on with the other half.
    pub(super) fn turn(&mut self) {
        if self.used > 0 {
            self.now = 1 - self.now;
            self.used = 0;
        }
    }

    /// Whether so much still fits this half.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.used + bytes <= self.bytes
    }

    /// Puts rows where kernels of the stream read them. Those that read this half before
    /// are waited for by whoever writes: the host, or the stream itself.
    pub(super) fn put<D: Device>(
        &mut self,
        device: &mut D,
        stream: Stream,
        rows: &[u8],
    ) -> Result<At, DeviceError> {
        let at = self.halves[self.now].at(self.used);
        match self.memory {
            Memory::Pinned => device.write(at, rows)?,
            Memory::Device => device.upload(stream, at, rows)?,
        }
        self.used += Self::room(rows.len());
        Ok(at)
    }

    pub(super) fn release<D: Device>(self, device: &mut D) -> Result<(), DeviceError> {
        let [first, second] = self.halves;
        device.free(first)?;
        device.free(second)
    }
}
