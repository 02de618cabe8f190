//! llama.cpp's compute threads.
//!
//! Between two pieces of a graph they spin, to be there at once for the next.
//! While a policy scores blocks they would take its cores, so they are put to
//! sleep first; the next piece of graph wakes them. (OpenMP's threads, which
//! llama.cpp uses when built with it, cannot be told.)

use llama_cpp_sys_2 as sys;

/// How long idle threads spin before they sleep, in llama.cpp's units of
/// 128 K pauses: some milliseconds.
const POLL: u32 = 1;

/// A set of compute threads.
#[derive(Debug)]
pub(super) struct Threads {
    pool: *mut sys::ggml_threadpool,
}

// SAFETY: ggml's thread pools are locked inside and belong to no thread.
unsafe impl Send for Threads {}

impl Threads {
    /// Starts `n` threads (the caller's counts as one).
    pub(super) fn start(n: i32) -> Option<Self> {
        // SAFETY: plain parameters; null means failure.
        let pool = unsafe {
            let mut params = sys::ggml_threadpool_params_default(n);
            params.poll = POLL;
            calls::new(&raw mut params)
        };
        (!pool.is_null()).then_some(Self { pool })
    }

    /// Makes a context compute on these threads.
    ///
    /// # Safety
    /// `context` must be live and be freed before `self` is dropped.
    pub(super) unsafe fn attach(&self, context: *mut sys::llama_context) {
        // SAFETY: both are live; null is "the same for batches".
        unsafe { sys::llama_attach_threadpool(context, self.pool, std::ptr::null_mut()) };
    }

    /// Puts idle threads to sleep until they are needed.
    pub(super) fn rest(&self) {
        // SAFETY: the pool is live; called while nothing is computed.
        unsafe { calls::pause(self.pool) };
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // SAFETY: made in `start`, and no context uses it any more.
        unsafe { calls::free(self.pool) };
    }
}

/// The CPU backend's functions, linked in.
#[cfg(not(feature = "dynamic-backends"))]
mod calls {
    pub(super) use llama_cpp_sys_2::{
        ggml_threadpool_free as free, ggml_threadpool_new as new, ggml_threadpool_pause as pause,
    };
}

/// The CPU backend's functions, in whichever backend was loaded.
#[cfg(feature = "dynamic-backends")]
mod calls {
    use llama_cpp_sys_2 as sys;
    use std::ffi::CStr;

    // SAFETY (of calling them): the contracts are ggml-cpu.h's.
    type New = unsafe extern "C" fn(*mut sys::ggml_threadpool_params) -> *mut sys::ggml_threadpool;
    type Free = unsafe extern "C" fn(*mut sys::ggml_threadpool);

    /// # Safety
    /// `T` must be the type of the function of this name, or a null pointer's.
    unsafe fn find<T: Copy>(name: &CStr) -> Option<T> {
        const { assert!(size_of::<T>() == size_of::<*mut ()>()) };
        // SAFETY: the backends are loaded before any context is made.
        let address = unsafe {
            let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
            if device.is_null() {
                return None;
            }
            let registry = sys::ggml_backend_dev_backend_reg(device);
            sys::ggml_backend_reg_get_proc_address(registry, name.as_ptr())
        };
        // SAFETY: the contract of `find`; null is ruled out.
        (!address.is_null()).then(|| unsafe { std::mem::transmute_copy(&address) })
    }

    /// # Safety
    /// As ggml's function of the same name.
    pub(super) unsafe fn new(
        params: *mut sys::ggml_threadpool_params,
    ) -> *mut sys::ggml_threadpool {
        // SAFETY: the type is that of ggml-cpu.h.
        let function = unsafe { find::<New>(c"ggml_threadpool_new") };
        // SAFETY: forwarded.
        function.map_or(std::ptr::null_mut(), |f| unsafe { f(params) })
    }

    /// # Safety
    /// As ggml's function of the same name.
    pub(super) unsafe fn free(pool: *mut sys::ggml_threadpool) {
        // SAFETY: the type is that of ggml-cpu.h.
        if let Some(f) = unsafe { find::<Free>(c"ggml_threadpool_free") } {
            // SAFETY: forwarded.
            unsafe { f(pool) };
        }
    }

    /// Loadable backends do not export it: threads spin out their time.
    ///
    /// # Safety
    /// None needed.
    pub(super) unsafe fn pause(_: *mut sys::ggml_threadpool) {}
}
