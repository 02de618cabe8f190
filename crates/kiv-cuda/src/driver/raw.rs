//! What the driver gives, each thing owned by a value that gives it back.
//!
//! Everything holds on to the context that it is of, so that it outlives nothing that it
//! needs; and every call makes that context current on its thread, so that threads do not
//! matter.

use crate::absent::Absent;
use crate::device::{DeviceError, Memory};
use cudarc::driver::result::{self, DriverError, stream::StreamKind};
use cudarc::driver::sys::{self, CUresult};
use std::collections::VecDeque;
use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// The driver's words for what went wrong.
pub(super) fn words(what: &str, error: DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy());
    name.map_or_else(
        |_| format!("{what}: {:?}", error.0),
        |name| format!("{what}: {name}"),
    )
}

pub(super) fn failed(what: &str) -> impl Fn(DriverError) -> DeviceError {
    move |error| DeviceError::Failed(words(what, error))
}

/// The GPU of that number, which nothing is asked of yet.
pub(super) fn find(ordinal: u32) -> Result<sys::CUdevice, Absent> {
    // SAFETY: loads a library, which is the driver's, or what somebody put in its place.
    if !unsafe { sys::is_culib_present() } {
        return Err(Absent::NoDriver);
    }
    let missing = |error: DriverError| match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_INVALID_DEVICE => {
            Absent::NoDevice { ordinal }
        }
        _ => Absent::Failed(words("no driver to talk to", error)),
    };
    result::init().map_err(missing)?;
    result::device::get(ordinal as i32).map_err(missing)
}

/// A GPU's primary context: the one that ggml's CUDA backend uses, so that its memory can be
/// named here.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    /// Events that nobody has any more: some hundreds are wanted for each token.
    events: Mutex<VecDeque<sys::CUevent>>,
}

// SAFETY: the driver's functions may be called from any thread; what is here are names.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The GPU's context and name.
    pub(super) fn open(ordinal: u32) -> Result<(Arc<Self>, String), Absent> {
        let failed = |what: &'static str| move |error| Absent::Failed(words(what, error));
        let device = find(ordinal)?;
        let name = result::device::get_name(device).map_err(failed("no name"))?;
        // SAFETY: the device is one that the driver has just named.
        let raw = unsafe { result::primary_ctx::retain(device) };
        let raw = raw.map_err(failed("no context"))?;
        let events = Mutex::default();
        let context = Self {
            device,
            raw,
            events,
        };
        Ok((Arc::new(context), name))
    }

    /// Makes it current on this thread.
    pub(super) fn bind(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained until this is dropped.
        unsafe { result::ctx::set_current(self.raw) }.map_err(failed("no context"))
    }
}

impl Context {
    /// The event that has been left for longest, if it has been reached.
    fn event_left(&self) -> Option<sys::CUevent> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let raw = *events.front()?;
        // SAFETY: made in `Queue::record`, and nobody has it.
        unsafe { result::event::query(raw) }.ok()?;
        events.pop_front()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.bind().is_ok() {
            let events = self
                .events
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner);
            for event in events.drain(..) {
                // SAFETY: made in `Queue::record`, and nobody has it.
                let _ = unsafe { result::event::destroy(event) };
            }
        }
        // SAFETY: retained once, in `open`; all that is of it has been dropped before.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// CUDA's version that the driver has.
pub(super) fn driver_version() -> u32 {
    let mut version = 0;
    // SAFETY: writes to a number that lives long enough.
    let result = unsafe { sys::cuDriverGetVersion(&mut version) };
    u32::try_from(version).unwrap_or(0) * u32::from(result == CUresult::CUDA_SUCCESS)
}

/// Kernels of one file.
#[derive(Debug)]
pub(super) struct Module {
    raw: sys::CUmodule,
    context: Arc<Context>,
}

// SAFETY: as for `Context`.
unsafe impl Send for Module {}
// SAFETY: as for `Context`.
unsafe impl Sync for Module {}

impl Module {
    /// Compiles kernels for the GPU.
    ///
    /// # Panics
    /// If `ptx` does not end with a zero byte.
    pub(super) fn load(context: &Arc<Context>, ptx: &str) -> Result<Self, Absent> {
        assert!(ptx.ends_with('\0'), "the driver looks for a zero byte");
        let told = |error: DeviceError| Absent::Failed(error.to_string());
        context.bind().map_err(told)?;
        // SAFETY: the text ends with a zero byte and lives for the call.
        let raw = unsafe { result::module::load_data(ptx.as_ptr().cast()) };
        let raw = raw.map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Absent::OldDriver {
                driver: driver_version(),
            },
            _ => Absent::Failed(words("kernels do not load", error)),
        })?;
        Ok(Self {
            raw,
            context: context.clone(),
        })
    }

    /// A kernel, to be launched while the module is there.
    pub(super) fn kernel(&self, name: &str) -> Result<Kernel, Absent> {
        let c_name = CString::new(name).map_err(|e| Absent::Failed(e.to_string()))?;
        // SAFETY: the module is loaded.
        let raw = unsafe { result::module::get_function(self.raw, c_name) };
        let raw = raw.map_err(|error| Absent::Failed(words(name, error)))?;
        Ok(Kernel(raw))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: loaded once, in `load`; its kernels have ended, see `CudaDevice`.
            let _ = unsafe { result::module::unload(self.raw) };
        }
    }
}

/// A kernel of a module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel(pub(super) sys::CUfunction);

// SAFETY: as for `Context`.
unsafe impl Send for Kernel {}
// SAFETY: as for `Context`.
unsafe impl Sync for Kernel {}

/// A stream, or the name of somebody else's.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) raw: sys::CUstream,
    owned: bool,
    context: Arc<Context>,
}

// SAFETY: as for `Context`.
unsafe impl Send for Queue {}
// SAFETY: as for `Context`.
unsafe impl Sync for Queue {}

impl Queue {
    pub(super) fn new(context: &Arc<Context>, urgent: bool) -> Result<Self, DeviceError> {
        context.bind()?;
        let range = result::stream::get_priority_range().map_err(failed("no priorities"))?;
        let priority = if urgent { range.1 } else { range.0 };
        let raw = result::stream::create_with_priority(StreamKind::NonBlocking, priority);
        Ok(Self {
            raw: raw.map_err(failed("no stream"))?,
            owned: true,
            context: context.clone(),
        })
    }

    /// Somebody else's.
    ///
    /// # Safety
    /// It is a stream of this context for as long as this value lives.
    pub(super) unsafe fn adopt(context: &Arc<Context>, raw: sys::CUstream) -> Self {
        Self {
            raw,
            owned: false,
            context: context.clone(),
        }
    }

    /// Waits on the host for all that it was given.
    pub(super) fn sync(&self) -> Result<(), DeviceError> {
        self.context.bind()?;
        // SAFETY: the stream is there while this value is.
        unsafe { result::stream::synchronize(self.raw) }.map_err(failed("work failed"))
    }

    pub(super) fn record(&self) -> Result<Event, DeviceError> {
        self.context.bind()?;
        let raw = match self.context.event_left() {
            Some(raw) => raw,
            None => {
                // With times, unlike what most others want.
                let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
                result::event::create(flags).map_err(failed("no event"))?
            }
        };
        let event = Event(Arc::new(Point {
            raw,
            context: self.context.clone(),
        }));
        // SAFETY: stream and event are there, of one context.
        unsafe { result::event::record(raw, self.raw) }.map_err(failed("no event"))?;
        Ok(event)
    }

    pub(super) fn wait(&self, event: &Event) -> Result<(), DeviceError> {
        self.context.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event are there.
        unsafe { result::stream::wait_event(self.raw, event.0.raw, flags) }
            .map_err(failed("a stream does not wait"))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.owned && self.context.bind().is_ok() {
            // SAFETY: created in `new`. What it was given goes on.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

#[derive(Debug)]
struct Point {
    raw: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: as for `Context`.
unsafe impl Send for Point {}
// SAFETY: as for `Context`.
unsafe impl Sync for Point {}

impl Drop for Point {
    fn drop(&mut self) {
        let events = self.context.events.lock();
        let mut events = events.unwrap_or_else(PoisonError::into_inner);
        events.push_back(self.raw);
    }
}

/// A point in a stream.
#[derive(Clone, Debug)]
pub struct Event(Arc<Point>);

impl Event {
    pub(super) fn is_done(&self) -> Result<bool, DeviceError> {
        self.0.context.bind()?;
        // SAFETY: the event is there.
        match unsafe { result::event::query(self.0.raw) } {
            Ok(()) => Ok(true),
            Err(error) if error.0 == CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(error) => Err(failed("work failed")(error)),
        }
    }

    pub(super) fn sync(&self) -> Result<(), DeviceError> {
        self.0.context.bind()?;
        // SAFETY: the event is there.
        unsafe { result::event::synchronize(self.0.raw) }.map_err(failed("work failed"))
    }

    /// Milliseconds from another.
    pub(super) fn since(&self, from: &Self) -> Result<f32, DeviceError> {
        self.0.context.bind()?;
        // SAFETY: both are there, and made to keep the time.
        unsafe { result::event::elapsed(from.0.raw, self.0.raw) }.map_err(failed("no time"))
    }
}

/// Memory.
#[derive(Debug)]
pub(super) struct Block {
    /// Where it is for the device.
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) memory: Memory,
    /// Where page-locked memory is for the host.
    host: Option<NonNull<u8>>,
    owned: bool,
    context: Arc<Context>,
}

// SAFETY: it owns its memory, as a `Vec` does; the device's is not touched by the host.
unsafe impl Send for Block {}
// SAFETY: as above; `&Block` only reads.
unsafe impl Sync for Block {}

impl Block {
    pub(super) fn new(
        context: &Arc<Context>,
        memory: Memory,
        len: usize,
    ) -> Result<Self, DeviceError> {
        context.bind()?;
        // The driver gives nothing for nothing.
        let bytes = len.max(1);
        let none = |error: DriverError| match (memory, error.0) {
            (_, CUresult::CUDA_ERROR_OUT_OF_MEMORY)
            | (
                Memory::Pinned,
                CUresult::CUDA_ERROR_OPERATING_SYSTEM
                | CUresult::CUDA_ERROR_NOT_PERMITTED
                | CUresult::CUDA_ERROR_NOT_SUPPORTED,
            ) => DeviceError::OutOfMemory { memory, bytes: len },
            _ => failed("no memory")(error),
        };
        let mut block = Self {
            address: 0,
            len,
            memory,
            host: None,
            owned: true,
            context: context.clone(),
        };
        match memory {
            Memory::Device => {
                // SAFETY: only kernels and copies touch it, which take any bytes.
                block.address = unsafe { result::malloc_sync(bytes) }.map_err(none)?;
            }
            Memory::Pinned => {
                let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
                // SAFETY: the driver's pages hold bytes, whichever. They are not filled here,
                // which takes as long as what will be written to them.
                let host = unsafe { result::malloc_host(bytes, flags) }.map_err(none)?;
                let host = NonNull::new(host.cast::<u8>());
                let host = host.ok_or_else(|| DeviceError::Failed("memory at 0".to_owned()))?;
                block.host = Some(host);
                // SAFETY: the memory is mapped; the address goes to a number that is there.
                let mapped = unsafe {
                    sys::cuMemHostGetDevicePointer_v2(&mut block.address, host.as_ptr().cast(), 0)
                };
                mapped.result().map_err(failed("memory is not mapped"))?;
            }
        }
        Ok(block)
    }

    /// Somebody else's memory of the device.
    ///
    /// # Safety
    /// There are `len` bytes of device memory at `address`, of this context, for as long as
    /// this value lives.
    pub(super) unsafe fn adopt(context: &Arc<Context>, address: u64, len: usize) -> Self {
        Self {
            address,
            len,
            memory: Memory::Device,
            host: None,
            owned: false,
            context: context.clone(),
        }
    }

    /// Page-locked memory, as the host sees it.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        // SAFETY: the host's bytes of this block, which the driver's pages are. Others write
        // them through `bytes_mut` only, which borrows the block: the device never does,
        // see `Work::check` and `Device::copy`.
        self.host
            .map(|host| unsafe { std::slice::from_raw_parts(host.as_ptr(), self.len) })
    }

    /// To write to it. What the device reads of it meanwhile is undefined: the caller has
    /// waited.
    pub(super) fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        // SAFETY: as for `bytes`, and nobody else has them.
        self.host
            .map(|host| unsafe { std::slice::from_raw_parts_mut(host.as_ptr(), self.len) })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if !self.owned || self.context.bind().is_err() {
            return;
        }
        // SAFETY: allocated in `new`; whatever used it has ended, see `CudaDevice`.
        let _ = unsafe {
            match self.host {
                Some(host) => result::free_host(host.as_ptr().cast()),
                None if self.address != 0 => result::free_sync(self.address),
                None => Ok(()),
            }
        };
    }
}
