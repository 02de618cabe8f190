//! Why there is no GPU to use.

/// Why [`crate::open_or_say`] gave no device: one line for whoever waits for one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// The feature `cuda` is off.
    #[error("CUDA: not built in (feature `cuda`); kiv goes on on the CPU")]
    NotBuilt,
    /// No driver is installed.
    #[error("CUDA: built in, but no driver (libcuda.so.1) was found; kiv goes on on the CPU")]
    NoDriver,
    /// The driver knows no such GPU.
    #[error("CUDA: the driver finds no GPU number {ordinal}; kiv goes on on the CPU")]
    NoDevice {
        /// Its number, from 0 on.
        ordinal: u32,
    },
    /// The driver does not understand the kernels.
    #[error(
        "CUDA: the driver (CUDA {}.{}) is older than the kernels, which are of CUDA 11.0: install a \
         newer one; blocks are copied without it", .driver / 1000, .driver % 1000 / 10
    )]
    OldDriver {
        /// CUDA's version that the driver has, 1000 times major and 10 times minor.
        driver: u32,
    },
    /// Something else.
    #[error("CUDA: {0}; blocks are copied without it")]
    Failed(String),
}
