//! Kernels' references.
mod device;
pub mod reference;
pub mod work;
pub use device::{Buffer, Device, DeviceError, Memory, Stream};
