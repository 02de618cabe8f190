//! A GPU through CUDA's driver.
//!
//! The only module of this crate with unsafe code. The driver's library is loaded when a
//! device is opened; building needs nothing of CUDA.
//!
//! What makes it safe to call: work and copies are checked against the buffers that they
//! name, memory that is given back has been waited for, lists that go along with a kernel
//! are copied first, and host memory that a copy reads later belongs to this device.

#![allow(unsafe_code)]

mod raw;

pub use raw::Event;

use crate::absent::Absent;
use crate::device::{Buffer, Device, DeviceError, Kernels, Memory, Stream};
use crate::launch::{self, File, KERNELS, Launch, THREADS};
use crate::work::{At, Work, WorkError, inside};
use cudarc::driver::result;
use raw::{Block, Context, Kernel, Module, Queue, failed};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Passages of each kind that there may be: more calls than that are not under way at once.
const PASSAGES: usize = 64;

/// Bytes of an upload that go at a time.
const UPLOAD: usize = 1 << 20;

/// Memory, and who may still read it if it is page-locked.
#[derive(Debug)]
struct Room {
    block: Block,
    /// The last of each stream.
    readers: Vec<(Stream, Event)>,
}

/// Memory for something that is on its way, until the event.
#[derive(Debug)]
struct Passage {
    block: Block,
    busy: Option<Event>,
}

/// A GPU through CUDA's driver, in its primary context: the one that ggml's CUDA backend
/// uses.
#[derive(Debug)]
pub struct CudaDevice {
    name: String,
    started: Instant,
    // Fields are dropped in this order; all streams are waited for before.
    rooms: Vec<Option<Room>>,
    /// Page-locked, for what is uploaded.
    uploads: Vec<Passage>,
    /// The device's, for lists that kernels are given.
    lists: Vec<Passage>,
    queues: Vec<Queue>,
    /// Those of the modules.
    kernels: HashMap<&'static str, Kernel>,
    /// The files of kernels that something was wanted of: compiling takes time.
    modules: Vec<Module>,
    context: Arc<Context>,
}

/// Whether there is a GPU of that number, without opening it: nothing of its memory is taken.
///
/// # Errors
/// [`Absent`].
pub fn look_or_say(ordinal: u32) -> Result<(), Absent> {
    raw::find(ordinal).map(|_| ())
}

/// The GPU of that number, or why there is none.
///
/// # Errors
/// [`Absent`].
pub fn open_or_say(ordinal: u32) -> Result<CudaDevice, Absent> {
    let (context, name) = Context::open(ordinal)?;
    let mut device = CudaDevice {
        name,
        started: Instant::now(),
        rooms: Vec::new(),
        uploads: Vec::new(),
        lists: Vec::new(),
        queues: Vec::new(),
        kernels: HashMap::new(),
        modules: Vec::new(),
        context,
    };
    // A driver that does not take one of the files takes none.
    device.load(&KERNELS[0])?;
    Ok(device)
}

impl CudaDevice {
    fn load(&mut self, (_, ptx, names): &File) -> Result<(), Absent> {
        let module = Module::load(&self.context, ptx)?;
        let found = names
            .iter()
            .map(|name| Ok((*name, module.kernel(name)?)))
            .collect::<Result<Vec<_>, Absent>>()?;
        // All or none: they go with their module.
        self.kernels.extend(found);
        self.modules.push(module);
        Ok(())
    }

    /// Compiles kernels before they are wanted, so that nobody waits for that then.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn prepare(&mut self, kernels: Kernels) -> Result<(), DeviceError> {
        let mut files = KERNELS.iter().filter(|(of, ..)| *of == kernels);
        files.try_for_each(|(_, _, names)| self.kernel(names[0]).map(|_| ()))
    }

    fn kernel(&mut self, name: &str) -> Result<Kernel, DeviceError> {
        if !self.kernels.contains_key(name)
            && let Some(file) = KERNELS.iter().find(|(_, _, names)| names.contains(&name))
        {
            let loaded = self.load(file);
            loaded.map_err(|absent| DeviceError::Failed(absent.to_string()))?;
        }
        let kernel = self.kernels.get(name).copied();
        kernel.ok_or_else(|| DeviceError::Failed(name.to_owned()))
    }

    /// Somebody else's device memory, such as a cache tensor of ggml's, as a buffer.
    /// [`Device::free`] forgets it, and gives nothing back.
    ///
    /// # Errors
    /// [`DeviceError::Work`] if it does not begin at a multiple of 16 bytes, which kernels
    /// count on.
    ///
    /// # Safety
    /// At `address` there are `len` bytes of memory of this GPU, of its primary context, until
    /// the buffer is freed or the device dropped.
    pub unsafe fn adopt(&mut self, address: u64, len: usize) -> Result<Buffer, DeviceError> {
        if !address.is_multiple_of(16) {
            return Err(WorkError::Unsupported("memory at such odd places").into());
        }
        // SAFETY: the caller's promise.
        let block = unsafe { Block::adopt(&self.context, address, len) };
        Ok(self.keep(block))
    }

    /// Somebody else's stream, such as the one that ggml computes on; null is the default
    /// stream.
    ///
    /// # Safety
    /// It is a `CUstream` of the primary context of this GPU until the device is dropped.
    pub unsafe fn adopt_stream(&mut self, raw: *mut c_void) -> Stream {
        // SAFETY: the caller's promise.
        let queue = unsafe { Queue::adopt(&self.context, raw.cast()) };
        self.queues.push(queue);
        Stream(self.queues.len() as u32 - 1)
    }

    /// Bytes of its memory that nobody has.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn free_memory(&self) -> Result<usize, DeviceError> {
        self.context.bind()?;
        let (free, _) = result::mem_get_info().map_err(failed("no memory to tell of"))?;
        Ok(free)
    }

    fn keep(&mut self, block: Block) -> Buffer {
        self.rooms.push(Some(Room {
            block,
            readers: Vec::new(),
        }));
        Buffer(self.rooms.len() as u32 - 1)
    }

    fn room(&self, buffer: Buffer) -> Option<&Room> {
        self.rooms.get(buffer.0 as usize).and_then(Option::as_ref)
    }

    fn look_up(&self, buffer: Buffer) -> Option<(Memory, usize)> {
        self.room(buffer).map(|r| (r.block.memory, r.block.len))
    }

    /// Where a place that is there is for the device.
    fn address(&self, at: At) -> u64 {
        let base = self.room(at.buffer).map_or(0, |room| room.block.address);
        base + at.offset as u64
    }

    fn queue(&self, stream: Stream) -> Result<&Queue, DeviceError> {
        let queue = self.queues.get(stream.0 as usize);
        Ok(queue.ok_or(WorkError::NoStream)?)
    }

    /// Waits for all streams.
    fn settle(&self) -> Result<(), DeviceError> {
        self.queues.iter().try_for_each(Queue::sync)
    }

    /// Remembers that a stream reads page-locked memory until an event.
    fn read_by(&mut self, buffer: Buffer, stream: Stream, until: &Event) {
        let room = self.rooms.get_mut(buffer.0 as usize);
        if let Some(room) = room.and_then(Option::as_mut)
            && room.block.memory == Memory::Pinned
        {
            room.readers.retain(|(of, _)| *of != stream);
            room.readers.push((stream, until.clone()));
        }
    }

    /// Copies to the device's memory, in the order of a stream.
    ///
    /// # Safety
    /// There is that much memory at `to`.
    unsafe fn send(&mut self, stream: Stream, to: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let raw = self.queue(stream)?.raw;
        let way = passage(
            &mut self.uploads,
            &self.context,
            Memory::Pinned,
            bytes.len(),
        );
        let way = match way {
            Ok(way) => way,
            Err(DeviceError::OutOfMemory { .. }) => {
                self.context.bind()?;
                // SAFETY: the caller's promise; the bytes are there until the stream has
                // been waited for.
                unsafe { result::memcpy_htod_async(to, bytes, raw) }
                    .map_err(failed("an upload"))?;
                return self.queue(stream)?.sync();
            }
            Err(other) => return Err(other),
        };
        let memory = self.uploads[way].block.bytes_mut().unwrap_or_default();
        memory[..bytes.len()].copy_from_slice(bytes);
        self.context.bind()?;
        let from = &memory[..bytes.len()];
        // SAFETY: the caller's promise; the passage is not written to before the event.
        unsafe { result::memcpy_htod_async(to, from, raw) }.map_err(failed("an upload"))?;
        self.uploads[way].busy = Some(self.queue(stream)?.record()?);
        Ok(())
    }

    /// Starts a kernel whose work has been checked.
    fn start(&mut self, stream: Stream, launch: &Launch) -> Result<Event, DeviceError> {
        let context = self.context.clone();
        let kernels = launch.calls.iter().map(|call| self.kernel(call.kernel));
        let kernels = kernels.collect::<Result<Vec<Kernel>, _>>()?;
        let len = launch.lists.len();
        let way = passage(&mut self.lists, &context, Memory::Device, len)?;
        let lists = self.lists[way].block.address;
        // SAFETY: the passage is as long as that.
        unsafe { self.send(stream, lists, &launch.lists)? };
        let queue = self.queue(stream)?;
        context.bind()?;
        let calls = launch.calls.iter().zip(kernels);
        let started = calls.into_iter().try_for_each(|(call, kernel)| {
            let mut values: Vec<[u64; 4]> = call.params.iter().map(|p| p.value(lists)).collect();
            let values = values.iter_mut().map(|value| value.as_mut_ptr().cast());
            let mut values: Vec<*mut c_void> = values.collect();
            let [x, y, z] = call.grid;
            // SAFETY: the kernel is one of a loaded module; it gets what it declares (see the
            // tests of `launch`), reads and writes what `Work::check` has found to be there,
            // and its lists, which stay until the event below.
            let started = unsafe {
                let (grid, block) = ((x, y, z), (THREADS, 1, 1));
                let (raw, shared) = (queue.raw, call.shared);
                result::launch_kernel(kernel.0, grid, block, shared, raw, &mut values)
            };
            started.map_err(failed(call.kernel))
        });
        // Also after a failure: the lists are on their way.
        let event = queue.record()?;
        self.lists[way].busy = Some(event.clone());
        started?;
        Ok(event)
    }
}

/// A passage that is free and large enough.
fn passage(
    passages: &mut Vec<Passage>,
    context: &Arc<Context>,
    memory: Memory,
    len: usize,
) -> Result<usize, DeviceError> {
    let fits = |p: &Passage| p.block.len >= len;
    for (i, passage) in passages.iter_mut().enumerate().filter(|(_, p)| fits(p)) {
        let busy = passage.busy.as_ref();
        if busy.map_or(Ok(true), Event::is_done)? {
            passage.busy = None;
            return Ok(i);
        }
    }
    if passages.len() < PASSAGES || !passages.iter().any(fits) {
        let wanted = len.next_power_of_two().max(1 << 16);
        match Block::new(context, memory, wanted) {
            Ok(block) => {
                passages.push(Passage { block, busy: None });
                return Ok(passages.len() - 1);
            }
            // One that is under way will do.
            Err(DeviceError::OutOfMemory { .. }) if passages.iter().any(fits) => {}
            Err(error) => return Err(error),
        }
    }
    let first = passages.iter().position(fits).unwrap_or(0);
    if let Some(busy) = passages[first].busy.take() {
        busy.sync()?;
    }
    // The next to wait waits for another.
    let passage = passages.remove(first);
    passages.push(passage);
    Ok(passages.len() - 1)
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // Memory and kernels go next.
        let _ = self.settle();
    }
}

impl Device for CudaDevice {
    type Event = Event;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn stream(&mut self, urgent: bool) -> Result<Stream, DeviceError> {
        self.queues.push(Queue::new(&self.context, urgent)?);
        Ok(Stream(self.queues.len() as u32 - 1))
    }

    fn alloc(&mut self, memory: Memory, bytes: usize) -> Result<Buffer, DeviceError> {
        let block = Block::new(&self.context, memory, bytes)?;
        Ok(self.keep(block))
    }

    fn free(&mut self, buffer: Buffer) -> Result<(), DeviceError> {
        self.room(buffer).ok_or(WorkError::NoBuffer(buffer))?;
        self.settle()?;
        self.rooms[buffer.0 as usize] = None;
        Ok(())
    }

    fn write(&mut self, to: At, bytes: &[u8]) -> Result<(), DeviceError> {
        inside(to, bytes.len(), |b| self.look_up(b))?;
        let room = self.rooms[to.buffer.0 as usize].as_mut();
        let room = room.ok_or(WorkError::NoBuffer(to.buffer))?;
        for (_, event) in room.readers.drain(..) {
            event.sync()?;
        }
        let memory = room
            .block
            .bytes_mut()
            .ok_or(WorkError::WrongMemory(to.buffer))?;
        memory[to.offset..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn pinned(&self, from: At, bytes: usize) -> Result<&[u8], DeviceError> {
        inside(from, bytes, |b| self.look_up(b))?;
        let memory = self.room(from.buffer).and_then(|room| room.block.bytes());
        let memory = memory.ok_or(WorkError::WrongMemory(from.buffer))?;
        Ok(&memory[from.offset..][..bytes])
    }

    fn upload(&mut self, stream: Stream, to: At, bytes: &[u8]) -> Result<(), DeviceError> {
        if inside(to, bytes.len(), |b| self.look_up(b))? != Memory::Device {
            return Err(WorkError::WrongMemory(to.buffer).into());
        }
        let to = self.address(to);
        for (i, part) in bytes.chunks(UPLOAD).enumerate() {
            // SAFETY: the buffer has all of it.
            unsafe { self.send(stream, to + (i * UPLOAD) as u64, part)? };
        }
        Ok(())
    }

    fn copy(&mut self, stream: Stream, from: At, to: At, bytes: usize) -> Result<(), DeviceError> {
        inside(from, bytes, |b| self.look_up(b))?;
        if inside(to, bytes, |b| self.look_up(b))? != Memory::Device {
            return Err(WorkError::WrongMemory(to.buffer).into());
        }
        if bytes == 0 {
            return Ok(());
        }
        let queue = self.queue(stream)?;
        self.context.bind()?;
        let (source, to) = (self.address(from), self.address(to));
        let host = self.room(from.buffer).and_then(|room| room.block.bytes());
        // SAFETY: both buffers have the bytes, and are not given back before all streams
        // have been waited for; page-locked ones are not written to before the event.
        unsafe {
            match host {
                Some(host) => {
                    let from = &host[from.offset..][..bytes];
                    result::memcpy_htod_async(to, from, queue.raw)
                }
                None => result::memcpy_dtod_async(to, source, bytes, queue.raw),
            }
        }
        .map_err(failed("a copy"))?;
        let event = queue.record()?;
        self.read_by(from.buffer, stream, &event);
        Ok(())
    }

    fn read(&mut self, stream: Stream, from: At, out: &mut [u8]) -> Result<(), DeviceError> {
        let memory = inside(from, out.len(), |b| self.look_up(b))?;
        let queue = self.queue(stream)?;
        if memory == Memory::Device && !out.is_empty() {
            self.context.bind()?;
            let address = self.address(from);
            // SAFETY: the buffer has the bytes; `out` is there until the stream has been
            // waited for.
            unsafe { result::memcpy_dtoh_async(out, address, queue.raw) }
                .map_err(failed("a read"))?;
        }
        queue.sync()?;
        if memory == Memory::Pinned {
            out.copy_from_slice(self.pinned(from, out.len())?);
        }
        Ok(())
    }

    fn submit(&mut self, stream: Stream, work: &Work<'_>) -> Result<(), DeviceError> {
        self.queue(stream)?;
        let accesses = work.check(|b| self.look_up(b))?;
        if let Some(launch) = launch::plan(work, |at| self.address(at))? {
            let event = self.start(stream, &launch)?;
            let mut read: Vec<Buffer> = accesses.iter().map(|a| a.at.buffer).collect();
            read.sort_unstable();
            read.dedup();
            for buffer in read {
                self.read_by(buffer, stream, &event);
            }
        }
        Ok(())
    }

    fn record(&mut self, stream: Stream) -> Result<Event, DeviceError> {
        self.queue(stream)?.record()
    }

    fn wait(&mut self, stream: Stream, event: &Event) -> Result<(), DeviceError> {
        self.queue(stream)?.wait(event)
    }

    fn is_done(&mut self, event: &Event) -> Result<bool, DeviceError> {
        event.is_done()
    }

    fn sync(&mut self, event: &Event) -> Result<(), DeviceError> {
        event.sync()
    }

    fn between(&mut self, from: &Event, to: &Event) -> Result<Duration, DeviceError> {
        let ms = f64::from(to.since(from)?).max(0.0);
        Ok(Duration::from_secs_f64(ms / 1000.0))
    }
}
