//! What a GPU has to do for the KV cache, without one.
//!
//! Kernels are in `kernels/`, with a table of what each does. [`reference`](mod@reference)
//! does the same on the CPU, bit by bit; [`work`] describes a kernel's task and checks that it
//! fits the memory that it names; [`Device`] is what a swapper needs of a GPU. Nothing here
//! runs on a GPU yet, and nothing knows of llama.cpp.

mod absent;
mod device;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(not(feature = "cuda"))]
#[path = "no_driver.rs"]
mod driver;
mod pager;
mod pool;
mod predict;
pub mod reference;
pub mod sim;
mod swap;
pub mod work;
pub use absent::Absent;
pub use device::{Buffer, Device, DeviceError, Memory, Stream};
pub use driver::{CudaDevice, open_or_say};
pub use pager::Pager;
pub use pool::{LayerShape, PinnedPool, Place, PoolError, PoolUse, Row};
pub use predict::{PredictConfig, Predictor};
pub use swap::{Counters, Overlap, SwapConfig, SwapError, Swapper};
