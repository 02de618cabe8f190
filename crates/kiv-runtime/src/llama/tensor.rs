//! Reading and writing cells of the KV cache.

use kiv_cuda::{Buffer, CudaDevice, Device, DeviceError};
use kiv_policy::RowFormat;
use llama_cpp_sys_2 as sys;
use parking_lot::Mutex;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::ops::Range;

/// What the emulated driver of the tests calls its GPU, whose memory is the host's.
const EMULATED: &str = "emulated GPU";

/// Held by who writes to memory that is not the host's: not every backend lets several.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

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
    /// ([`super::GraphHook::release`]). From then on they are a device's, wherever they are:
    /// the host reads and writes them by ggml's calls alone.
    ///
    /// # Errors
    /// If cells are in no GPU's memory, or at a place that kernels cannot use.
    pub(crate) fn lend(&mut self, gpu: &mut CudaDevice) -> Result<Buffer, DeviceError> {
        let emulated = self.is_host() && gpu.name() == EMULATED;
        if self.cuda_device().is_none() && !emulated {
            let why = "the cache is not in a GPU's memory".to_owned();
            return Err(DeviceError::Failed(why));
        }
        // SAFETY: the tensor is valid.
        let address = unsafe { (*self.tensor).data }.addr() as u64;
        // SAFETY: all cells are there, in memory that ggml has of the GPU's primary context,
        // until the context is freed; the hook drops the GPU before.
        let lent = unsafe { gpu.adopt(address, self.bytes()) }?;
        self.host = None;
        Ok(lent)
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
            #[cfg(test)]
            test_cache::ASKED.with(|asked| asked.set(asked.get() + 1));
            let at = out.len();
            out.resize(at + n * len, 0);
            let to = out[at..].as_mut_ptr().cast();
            // SAFETY: `out` has room for n rows of `len`; the tensor's side is
            // inside by `check`.
            unsafe {
                if len == self.cell_bytes {
                    sys::ggml_backend_tensor_get(self.tensor, to, start, n * len);
                    return;
                }
                sys::ggml_backend_tensor_get_2d(
                    self.tensor,
                    to,
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
        self.part(offset, len).write(first, rows);
    }

    /// One KV head's rows, of `dim` values, of all cells.
    pub(crate) fn of_head(&mut self, kv_head: usize, dim: usize) -> CellPart<'_> {
        let len = self.format.row_bytes(dim);
        self.part(kv_head * len, len)
    }

    /// The rows of each of `n` KV heads, which can be written at the same time.
    pub(crate) fn by_head(&mut self, n: usize, dim: usize) -> Vec<CellPart<'_>> {
        let len = self.format.row_bytes(dim);
        let all = self.part(0, n * len);
        let parts = (0..n).map(|head| CellPart {
            // None of them has a byte in common with another one.
            offset: head * len,
            len,
            cells: all.cells.clone(),
            ..all
        });
        parts.collect()
    }

    /// Bytes `offset..offset + len` of all cells.
    fn part(&mut self, offset: usize, len: usize) -> CellPart<'_> {
        self.check(0, self.n_cells, offset, len);
        CellPart {
            tensor: self.tensor,
            host: self.host,
            format: self.format,
            cell_bytes: self.cell_bytes,
            offset,
            len,
            cells: 0..self.n_cells,
            lent: PhantomData,
        }
    }
}

/// The same bytes of some cells, which nobody else writes or reads meanwhile.
pub(crate) struct CellPart<'a> {
    tensor: *mut sys::ggml_tensor,
    host: Option<*mut u8>,
    format: RowFormat,
    cell_bytes: usize,
    offset: usize,
    len: usize,
    cells: Range<usize>,
    lent: PhantomData<&'a mut CacheTensor>,
}

// SAFETY: parts of one tensor have no byte in common, and are written by whoever has them;
// memory that is not the host's, through ggml, by one thread at a time.
unsafe impl Send for CellPart<'_> {}

impl CellPart<'_> {
    /// Type of the rows.
    pub(crate) fn format(&self) -> RowFormat {
        self.format
    }

    /// The cells before this one, and the others.
    ///
    /// # Panics
    /// If it is none of them.
    pub(crate) fn split_at(self, cell: usize) -> (Self, Self) {
        let Range { start, end } = self.cells;
        assert!(
            (start..end).contains(&cell),
            "cell {cell} of {start}..{end}"
        );
        let before = Self {
            cells: start..cell,
            ..self
        };
        let others = Self {
            cells: cell..end,
            ..self
        };
        (before, others)
    }

    /// Writes `rows`, one after another, to the cells from `first` on.
    ///
    /// # Panics
    /// If they are not among these.
    pub(crate) fn write(&mut self, first: usize, rows: &[u8]) {
        let (cell_bytes, len) = (self.cell_bytes, self.len);
        let n = rows.len() / len;
        assert!(
            self.cells.start <= first && first + n <= self.cells.end,
            "cells {first}+{n} of {:?}",
            self.cells
        );
        let start = first * cell_bytes + self.offset;
        if let Some(host) = self.host {
            for (i, row) in rows.chunks_exact(len).enumerate() {
                // SAFETY: a cell of the tensor, as just checked, and bytes of it, as `part` has
                // checked; they are this part's alone, and the graph waits.
                unsafe {
                    let cell = host.add(start + i * cell_bytes);
                    std::ptr::copy_nonoverlapping(row.as_ptr(), cell, len);
                }
            }
        } else {
            let _one = ONE_AT_A_TIME.lock();
            let from = rows.as_ptr().cast();
            // SAFETY: `rows` holds n rows of `len`; the tensor's side is inside, as above.
            unsafe {
                if len == cell_bytes {
                    sys::ggml_backend_tensor_set(self.tensor, from, start, n * len);
                    return;
                }
                sys::ggml_backend_tensor_set_2d(self.tensor, from, start, len, n, cell_bytes, len);
            }
        }
    }
}

#[cfg(test)]
pub(crate) use test_cache::TestCache;

#[cfg(test)]
mod test_cache {
    use super::{CacheTensor, RowFormat, sys};
    use crate::llama::ggml_type;
    use std::cell::Cell;

    thread_local! {
        /// How often a device was asked for rows.
        pub(super) static ASKED: Cell<usize> = const { Cell::new(0) };
    }

    /// A cache of its own, of cells that are all zeros.
    pub(crate) struct TestCache {
        pub(crate) tensor: CacheTensor,
        context: *mut sys::ggml_context,
        buffer: *mut sys::ggml_backend_buffer,
    }

    impl TestCache {
        /// `n_cells` cells of `len` values.
        pub(crate) fn new(format: RowFormat, len: usize, n_cells: usize) -> Self {
            // SAFETY: plain sizes; the context has room for the tensor, and the buffer gives it
            // its memory. Both are freed with this, which owns all that points to them.
            unsafe {
                let context = sys::ggml_init(sys::ggml_init_params {
                    mem_size: 2 * sys::ggml_tensor_overhead(),
                    mem_buffer: std::ptr::null_mut(),
                    no_alloc: true,
                });
                let (len, n) = (len as i64, n_cells as i64);
                let tensor = sys::ggml_new_tensor_2d(context, ggml_type(format), len, n);
                let kind = sys::ggml_backend_cpu_buffer_type();
                let buffer = sys::ggml_backend_alloc_ctx_tensors_from_buft(context, kind);
                assert!(!buffer.is_null(), "no memory");
                sys::ggml_backend_buffer_clear(buffer, 0);
                let tensor = CacheTensor::new(tensor).unwrap();
                Self {
                    tensor,
                    context,
                    buffer,
                }
            }
        }

        /// As if it were in a device's memory: read and written by ggml's calls.
        pub(crate) fn of_device(mut self) -> Self {
            self.tensor.host = None;
            self
        }

        /// How often this thread has asked a device for rows.
        pub(crate) fn asked() -> usize {
            ASKED.with(Cell::get)
        }
    }

    impl Drop for TestCache {
        fn drop(&mut self) {
            // SAFETY: made in `new`, and nobody has borrowed the tensor any more.
            unsafe {
                sys::ggml_backend_buffer_free(self.buffer);
                sys::ggml_free(self.context);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_written_at_once() {
        let mut cache = TestCache::new(RowFormat::F32, 3 * 2, 10);
        let mut parts = Vec::new();
        for part in cache.tensor.by_head(3, 2) {
            let (before, others) = part.split_at(4);
            parts.extend([(0, 4, before), (4, 6, others)]);
        }
        let row = |part: usize, cell: usize| [part as f32, cell as f32].map(f32::to_le_bytes);
        std::thread::scope(|scope| {
            for (number, (first, n, part)) in parts.iter_mut().enumerate() {
                scope.spawn(move || {
                    let rows = (*first..*first + *n).flat_map(|cell| row(number / 2, cell));
                    part.write(*first, &rows.flatten().collect::<Vec<u8>>());
                });
            }
        });
        let mut all = Vec::new();
        cache.tensor.read(0, 10, (0, 24), &mut all);
        let wanted = (0..10).flat_map(|cell| (0..3).flat_map(move |head| row(head, cell)));
        assert_eq!(all, wanted.flatten().collect::<Vec<u8>>());
    }

    #[test]
    #[should_panic(expected = "cells 3+2 of 0..4")]
    fn a_part_keeps_to_its_cells() {
        let mut cache = TestCache::new(RowFormat::F32, 2, 10);
        let (mut before, _others) = cache.tensor.of_head(0, 2).split_at(4);
        before.write(3, &[0; 16]);
    }

    #[test]
    #[should_panic(expected = "bytes 8+8 of a cell")]
    fn there_are_no_more_heads() {
        TestCache::new(RowFormat::F32, 2, 10).tensor.of_head(1, 2);
    }
}
