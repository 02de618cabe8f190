//! The KV cache's blocks on a GPU.
//!
//! [`Pager`] brings blocks that a layer wants into its slots, on streams of its own, and
//! fetches ahead what it may want next; [`PinnedPool`] keeps cold rows where kernels read
//! them; [`DeviceTier`] is both as a tier for sealed rows; [`search::DeviceFinder`] searches the
//! index. They ask nothing but a [`Device`]: [`CudaDevice`], through CUDA's driver (feature
//! `cuda`; [`open_or_say`]), or [`sim::SimDevice`], which is not there at all and which tests
//! use.
//!
//! Kernels are in `kernels/`, with a table of what each does. [`reference`](mod@reference)
//! does the same on the CPU, bit by bit; [`work`] describes a kernel's task and checks that it
//! fits the memory that it names. `docs/cuda.md` says how all of it plays together, and what
//! no GPU has confirmed. Nothing here knows of llama.cpp.

mod absent;
mod device;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(not(feature = "cuda"))]
#[path = "no_driver.rs"]
mod driver;
#[cfg(any(feature = "cuda", test))]
#[cfg_attr(
    not(feature = "cuda"),
    expect(dead_code, reason = "only the driver calls what is planned")
)]
mod launch;
mod pager;
mod pool;
mod predict;
pub mod reference;
pub mod search;
pub mod sim;
mod swap;
mod tier;
pub mod work;
pub use absent::Absent;
pub use device::{Buffer, Device, DeviceError, Kernels, Memory, Stream};
pub use driver::{CudaDevice, look_or_say, open_or_say};
pub use pager::Pager;
pub use pool::{LayerShape, PinnedPool, Place, PoolError, PoolUse, Row};
pub use predict::{PredictConfig, Predictor};
pub use swap::{Counters, Overlap, Slots, Span, SwapConfig, SwapError, Swapper};
pub use tier::DeviceTier;
