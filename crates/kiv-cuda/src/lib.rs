//! What a GPU has to do for the KV cache, without one.
//!
//! Kernels are in `kernels/`, with a table of what each does. [`reference`](mod@reference)
//! does the same on the CPU, bit by bit; [`work`] describes a kernel's task and checks that it
//! fits the memory that it names; [`Device`] is what a swapper needs of a GPU. Nothing here
//! runs on a GPU yet, and nothing knows of llama.cpp.

mod device;
mod pool;
pub mod reference;
pub mod sim;
pub mod work;
pub use device::{Buffer, Device, DeviceError, Memory, Stream};
pub use pool::{LayerShape, PinnedPool, Place, PoolError, PoolUse, Row};
