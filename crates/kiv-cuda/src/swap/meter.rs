//! How much of the time of transfers somebody waited for.

use crate::device::{Device, DeviceError};
use std::time::Duration;

/// Measurements that are kept before they are read: reading asks the device.
const KEPT: usize = 512;

/// Time of transfers, and how much of it was waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlap {
    /// What transfers to slots and landing places took.
    pub moved: Duration,
    /// How long the compute stream stood still for them.
    pub waited: Duration,
}

impl Overlap {
    /// Time of transfers that passed while something was computed.
    #[must_use]
    pub fn hidden(&self) -> Duration {
        self.moved.saturating_sub(self.waited)
    }

    /// [`Overlap::hidden`] as a share of all, from 0 to 1; 1 if nothing was moved.
    #[must_use]
    pub fn share(&self) -> f64 {
        if self.moved.is_zero() {
            return 1.0;
        }
        self.hidden().as_secs_f64() / self.moved.as_secs_f64()
    }
}

/// When a transfer has begun and ended, from a moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it has begun.
    pub begin: Duration,
    /// When it has ended.
    pub end: Duration,
}

/// One transfer.
struct Transfer<E> {
    begin: E,
    end: E,
    /// When the compute stream came to where it waits for the end.
    reached: Option<E>,
}

pub(super) struct Meter<D: Device> {
    pending: Vec<Transfer<D::Event>>,
    overlap: Overlap,
    /// The moment that transfers are listed from, if they are, and those since.
    listed: Option<(D::Event, Vec<Span>)>,
}

impl<D: Device> Default for Meter<D> {
    fn default() -> Self {
        Self {
            pending: Vec::new(),
            overlap: Overlap::default(),
            listed: None,
        }
    }
}

impl<D: Device> Meter<D> {
    /// A transfer from `begin` to `end`; `reached` is when the compute stream came to where
    /// it waits for it, if it does.
    pub(super) fn add(
        &mut self,
        device: &mut D,
        [begin, end]: [D::Event; 2],
        reached: Option<D::Event>,
    ) -> Result<(), DeviceError> {
        self.pending.push(Transfer {
            begin,
            end,
            reached,
        });
        self.tidy(device)
    }

    /// Reads the older half of what is kept. It is so old that it is over long since.
    fn tidy(&mut self, device: &mut D) -> Result<(), DeviceError> {
        if self.pending.len() >= KEPT {
            self.take(device, KEPT / 2)?;
        }
        Ok(())
    }

    fn take(&mut self, device: &mut D, n: usize) -> Result<(), DeviceError> {
        for t in self.pending.drain(..n) {
            device.sync(&t.end)?;
            self.overlap.moved += device.between(&t.begin, &t.end)?;
            if let Some((from, spans)) = &mut self.listed {
                spans.push(Span {
                    begin: device.between(from, &t.begin)?,
                    end: device.between(from, &t.end)?,
                });
            }
            if let Some(reached) = t.reached {
                device.sync(&reached)?;
                self.overlap.waited += device.between(&reached, &t.end)?;
            }
        }
        Ok(())
    }

    /// Begins a list of transfers: of those from `from` on.
    pub(super) fn list(&mut self, device: &mut D, from: D::Event) -> Result<(), DeviceError> {
        self.read(device)?;
        device.sync(&from)?;
        self.listed = Some((from, Vec::new()));
        Ok(())
    }

    /// Ends it, after waiting for all of them.
    pub(super) fn listed(&mut self, device: &mut D) -> Result<Vec<Span>, DeviceError> {
        self.read(device)?;
        Ok(self.listed.take().map_or_else(Vec::new, |(_, spans)| spans))
    }

    pub(super) fn read(&mut self, device: &mut D) -> Result<Overlap, DeviceError> {
        self.take(device, self.pending.len())?;
        Ok(self.overlap)
    }
}
