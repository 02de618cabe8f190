//! Reading and writing cells of the KV cache.

use kiv_cuda::{Buffer, CudaDevice, Device, DeviceError};
use kiv_policy::RowFormat;
use llama_cpp_sys_2 as sys;
use std::ffi::CStr;

/// What the emulated driver of the tests calls its GPU, whose memory is the host's.
const EMULATED: &str = "emulated GPU";

/// K or V of one layer, all cells: `[n_cells, n_head_kv * dim]` rows in the
/// cache's type.
///
/// Holds a pointer into a llama.cpp context; the owner of the context drops
/// it first.
#[derive(Debug)]
pub(crate) struct CacheTensor {
    tensor: *mut sys::ggml_tensor,
    format: RowFormat,
    /// Bytes of a cell: all KV heads.
    cell_bytes: usize,
    n_cells: usize,
    /// Cells in plain memory, where the backend's buffer is that.
    host: Option<*mut u8>,
}

// SAFETY: the memory behind is only touched through `&self` reads and
// `&mut self` writes, from whichever thread holds the context.
unsafe impl Send for CacheTensor {}
// SAFETY: `&self` only reads; ggml's reads are plain copies.
unsafe impl Sync for CacheTensor {}

impl CacheTensor {
    /// # Safety
    /// `tensor` must be a cache tensor that stays valid while the result lives.
    pub(super) unsafe fn new(tensor: *mut sys::ggml_tensor) -> Result<Self, String> {
        // SAFETY: valid by contract.
        let raw = unsafe { &*tensor };
        let format = RowFormat::ALL
            .into_iter()
            .find(|f| super::ggml_type(*f) == raw.type_)
            .ok_or_else(|| format!("cache type {} is not supported", raw.type_))?;
        let cell_bytes = raw.nb[1];
        let n_cells = usize::try_from(raw.ne[1]).unwrap_or(0);
        // SAFETY: cache tensors have buffers.
        let is_host = unsafe { sys::ggml_backend_buffer_is_host(raw.buffer) };
        Ok(Self {
            tensor,
            format,
            cell_bytes,
            n_cells,
            host: is_host.then_some(raw.data.cast()),
        })
    }

    /// Type of the rows.
    pub(crate) fn format(&self) -> RowFormat {
        self.format
    }

    /// Number of cells.
    pub(crate) fn n_cells(&self) -> usize {
        self.n_cells
    }

    /// Bytes of one cell: all KV heads.
    pub(crate) fn cell_bytes(&self) -> usize {
        self.cell_bytes
    }

    /// Bytes of all cells.
    pub(crate) fn bytes(&self) -> usize {
        self.n_cells * self.cell_bytes
    }

    /// Whether cells are in plain memory.
    pub(crate) fn is_host(&self) -> bool {
        self.host.is_some()
    }

    /// The number of the GPU that cells are in the memory of, if ggml's CUDA backend has
    /// them there.
    pub(crate) fn cuda_device(&self) -> Option<u32> {
        // SAFETY: the tensor is valid and has a buffer; names of buffer types end with a
        // zero byte and stay.
        let name = unsafe {
            let kind = sys::ggml_backend_buffer_get_type((*self.tensor).buffer);
            CStr::from_ptr(sys::ggml_backend_buft_name(kind))
        };
        name.to_str().ok()?.strip_prefix("CUDA")?.parse().ok()
    }

    /// Lends all cells to a GPU: the one that has them, see [`CacheTensor::cuda_device`]. It
    /// is to be given to nobody but a hook of the context, which drops it when it is told to
    /// ([`super::GraphHook::release`]).
    ///
    /// # Errors
    /// If cells are in no GPU's memory, or at a place that kernels cannot use.
    pub(crate) fn lend(&self, gpu: &mut CudaDevice) -> Result<Buffer, DeviceError> {
        let emulated = self.is_host() && gpu.name() == EMULATED;
        if self.cuda_device().is_none() && !emulated {
            let why = "the cache is not in a GPU's memory".to_owned();
            return Err(DeviceError::Failed(why));
        }
        // SAFETY: the tensor is valid.
        let address = unsafe { (*self.tensor).data }.addr() as u64;
        // SAFETY: all cells are there, in memory that ggml has of the GPU's primary context,
        // until the context is freed; the hook drops the GPU before.
        unsafe { gpu.adopt(address, self.bytes()) }
    }

    fn check(&self, first: usize, n: usize, offset: usize, len: usize) {
        assert!(
            first + n <= self.n_cells,
            "cells {first}+{n} of {}",
            self.n_cells
        );
        assert!(
            offset + len <= self.cell_bytes,
            "bytes {offset}+{len} of a cell"
        );
    }

    /// Appends bytes `offset..offset + len` of cells `first..first + n`.
    pub(crate) fn read(
        &self,
        first: usize,
        n: usize,
        (offset, len): (usize, usize),
        out: &mut Vec<u8>,
    ) {
        self.check(first, n, offset, len);
        let start = first * self.cell_bytes + offset;
        if let Some(host) = self.host {
            for i in 0..n {
                // SAFETY: inside the tensor by `check`; nobody writes meanwhile.
                let row = unsafe {
                    std::slice::from_raw_parts(host.add(start + i * self.cell_bytes), len)
                };
                out.extend_from_slice(row);
            }
        } else {
            let at = out.len();
            out.resize(at + n * len, 0);
            // SAFETY: `out` has room for n rows of `len`; the tensor's side is
            // inside by `check`.
            unsafe {
                sys::ggml_backend_tensor_get_2d(
                    self.tensor,
                    out[at..].as_mut_ptr().cast(),
                    start,
                    len,
                    n,
                    self.cell_bytes,
                    len,
                );
            }
        }
    }

    /// Writes `rows`, one after another, to bytes `offset..offset + len` of
    /// the cells from `first` on.
    pub(crate) fn write(&mut self, first: usize, (offset, len): (usize, usize), rows: &[u8]) {
        let n = rows.len() / len;
        self.check(first, n, offset, len);
        let start = first * self.cell_bytes + offset;
        if let Some(host) = self.host {
            for (i, row) in rows.chunks_exact(len).enumerate() {
                // SAFETY: inside the tensor by `check`; `&mut self` and a
                // waiting graph make this the only access.
                unsafe {
                    let cell = host.add(start + i * self.cell_bytes);
                    std::ptr::copy_nonoverlapping(row.as_ptr(), cell, len);
                }
            }
        } else {
            // SAFETY: `rows` holds n rows of `len`; the tensor's side is
            // inside by `check`.
            unsafe {
                sys::ggml_backend_tensor_set_2d(
                    self.tensor,
                    rows.as_ptr().cast(),
                    start,
                    len,
                    n,
                    self.cell_bytes,
                    len,
                );
            }
        }
    }
}
