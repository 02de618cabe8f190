//! A GPU that is not there: real bytes, virtual time.
//!
//! What is submitted is executed as late as it can be: only once the host waits for it or
//! reads what depends on it, and then with nothing but what streams and events put before
//! it. So whoever forgets a wait sees old bytes; and every two accesses to the same bytes,
//! one of which writes, that nothing puts in order are reported as a [`Race`], whether or
//! not bytes came out right.
//!
//! Time passes as [`SimConfig`] says. Kernels overlap without hindering each other; the bus
//! carries one transfer at a time, the first that is ready first.

mod clock;
mod execute;

pub use clock::{Race, SimEvent};

use crate::device::{Buffer, Device, DeviceError, Memory, Stream};
use crate::work::{Access, At, Work, WorkError, inside};
use clock::{Bus, Clock, Order, Spans};
use std::collections::VecDeque;
use std::time::Duration;

/// How fast and how large a simulated device is.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Bytes per second over the bus, from page-locked memory.
    pub bus: f64,
    /// Bytes per second over the bus from pageable memory, and of the host when it writes
    /// page-locked memory. The host is busy meanwhile.
    pub host: f64,
    /// Bytes per second within the device.
    pub memory: f64,
    /// What any call costs the host.
    pub call: Duration,
    /// What any kernel or copy takes at least.
    pub kernel: Duration,
    /// Bytes of device memory.
    pub device_bytes: usize,
    /// Bytes that may be page-locked.
    pub pinned_bytes: usize,
}

impl Default for SimConfig {
    /// A card of the middle class on PCIe 4, roughly.
    fn default() -> Self {
        Self {
            bus: 24e9,
            host: 8e9,
            memory: 300e9,
            call: Duration::from_micros(2),
            kernel: Duration::from_micros(4),
            device_bytes: 1 << 30,
            pinned_bytes: 1 << 30,
        }
    }
}

/// Calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Page-locked memory: refused from then on, until [`SimDevice::repair`].
    Pinned,
    /// Device memory: likewise.
    Alloc,
    /// The next upload or copy.
    Transfer,
    /// The next kernel.
    Submit,
}

type Task = Box<dyn FnOnce(&mut Vec<Vec<u8>>, &mut Vec<Vec<u8>>) + Send + Sync>;

/// Something submitted and not yet executed.
struct Op {
    stream: usize,
    /// Its number in its stream, from 1 on.
    number: u64,
    /// All that is to be executed before it, itself included.
    after: Clock,
    spans: Vec<(Buffer, Spans)>,
    end: Duration,
    task: Task,
}

struct Room {
    memory: Memory,
    /// 0 once it has been given back.
    len: usize,
    alive: bool,
}

#[derive(Default)]
struct Queue {
    submitted: u64,
    /// What comes next in it is after all of these.
    after: Clock,
    ready: Duration,
}

/// The device. All of it is deterministic.
pub struct SimDevice {
    config: SimConfig,
    now: Duration,
    rooms: Vec<Room>,
    bytes: Vec<Vec<u8>>,
    queues: Vec<Queue>,
    pending: VecDeque<Op>,
    /// What the host has waited for.
    host: Clock,
    bus: Bus,
    order: Order,
    broken: Vec<(Call, usize)>,
    seen: Vec<Vec<u8>>,
}

impl SimDevice {
    /// A device with nothing on it.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        Self {
            config,
            now: Duration::ZERO,
            rooms: Vec::new(),
            bytes: Vec::new(),
            queues: Vec::new(),
            pending: VecDeque::new(),
            host: Clock::default(),
            bus: Bus::default(),
            order: Order::default(),
            broken: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// Lets a call fail after so many more that succeed.
    pub fn breaks(&mut self, call: Call, after: usize) {
        self.broken.push((call, after));
    }

    /// Everything works again.
    pub fn repair(&mut self) {
        self.broken.clear();
    }

    /// Accesses that nothing puts in order.
    #[must_use]
    pub fn races(&self) -> &[Race] {
        self.order.races()
    }

    /// Bytes that are allocated.
    #[must_use]
    pub fn used(&self, memory: Memory) -> usize {
        let of_kind = self.rooms.iter().filter(|r| r.alive && r.memory == memory);
        of_kind.map(|r| r.len).sum()
    }

    /// The host is busy with something else.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Computes for some time on a stream, reading these bytes: what others than kiv do.
    /// [`SimDevice::seen`] has what it read, under the number that is returned.
    ///
    /// # Errors
    /// [`DeviceError::Work`].
    pub fn compute(
        &mut self,
        stream: Stream,
        reads: &[(At, usize)],
        time: Duration,
    ) -> Result<usize, DeviceError> {
        let mut accesses = Vec::new();
        for &(at, bytes) in reads {
            self.inside(at, bytes)?;
            accesses.push(Access {
                at,
                bytes,
                writes: false,
            });
        }
        let id = self.seen.len();
        self.seen.push(Vec::new());
        let reads = reads.to_vec();
        let task = move |memory: &mut Vec<Vec<u8>>, seen: &mut Vec<Vec<u8>>| {
            for (at, bytes) in reads {
                seen[id].extend_from_slice(execute::slice(memory, at, bytes));
            }
        };
        self.enqueue(stream, &accesses, time, Box::new(task))?;
        Ok(id)
    }

    /// What a computation read, once it has been executed; nothing before.
    #[must_use]
    pub fn seen(&self, computation: usize) -> &[u8] {
        self.seen.get(computation).map_or(&[], |seen| seen)
    }

    fn call(&mut self) {
        self.now += self.config.call;
    }

    /// Whether a call fails now.
    fn fails(&mut self, call: Call) -> bool {
        let Some(i) = self.broken.iter().position(|(c, _)| *c == call) else {
            return false;
        };
        if self.broken[i].1 > 0 {
            self.broken[i].1 -= 1;
            return false;
        }
        if matches!(call, Call::Transfer | Call::Submit) {
            self.broken.remove(i);
        }
        true
    }

    fn room(&self, buffer: Buffer) -> Option<&Room> {
        self.rooms.get(buffer.0 as usize).filter(|room| room.alive)
    }

    fn inside(&self, at: At, bytes: usize) -> Result<Memory, WorkError> {
        inside(at, bytes, |b| self.room(b).map(|r| (r.memory, r.len)))
    }

    fn queue(&self, stream: Stream) -> Result<&Queue, WorkError> {
        self.queues
            .get(stream.0 as usize)
            .ok_or(WorkError::NoStream)
    }

    /// Time for bytes at a rate.
    fn at_rate(bytes: usize, rate: f64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / rate)
    }

    /// Puts something into a stream. It takes `least`, and what its bytes take.
    fn enqueue(
        &mut self,
        stream: Stream,
        accesses: &[Access],
        least: Duration,
        task: Task,
    ) -> Result<(), DeviceError> {
        self.queue(stream)?;
        let over_bus = |a: &&Access| self.inside(a.at, a.bytes) == Ok(Memory::Pinned);
        let bus: usize = accesses.iter().filter(over_bus).map(|a| a.bytes).sum();
        let all: usize = accesses.iter().map(|a| a.bytes).sum();
        let carried = Self::at_rate(bus, self.config.bus);
        let took = least + carried.max(Self::at_rate(all - bus, self.config.memory));
        let queue = &mut self.queues[stream.0 as usize];
        queue.submitted += 1;
        queue.after.join(&self.host);
        queue.after.reach(stream.0 as usize, queue.submitted);
        let ready = queue.ready.max(self.now);
        let start = if bus == 0 {
            ready
        } else {
            self.bus.take(ready, took)
        };
        queue.ready = start + took;
        let op = Op {
            stream: stream.0 as usize,
            number: queue.submitted,
            after: queue.after.clone(),
            spans: clock::spans(accesses),
            end: queue.ready,
            task,
        };
        self.order
            .check(op.stream, op.number, &op.after, accesses, &self.host);
        self.pending.push_back(op);
        Ok(())
    }

    /// Executes all that a clock includes, and lets the host know.
    fn run(&mut self, until: &Clock) {
        let mut rest = VecDeque::new();
        for op in std::mem::take(&mut self.pending) {
            if until.includes(op.stream, op.number) {
                (op.task)(&mut self.bytes, &mut self.seen);
            } else {
                rest.push_back(op);
            }
        }
        self.pending = rest;
        self.host.join(until);
        self.bus.forget(self.now);
    }

    /// Waits for whatever uses these bytes.
    fn settle(&mut self, at: At, bytes: usize) {
        let spans = clock::spans(&[Access {
            at,
            bytes,
            writes: true,
        }]);
        let mut until = Clock::default();
        for op in &self.pending {
            let uses = |(buffer, s): &(Buffer, Spans)| {
                *buffer == at.buffer && spans.iter().any(|(_, wanted)| s.meets(wanted))
            };
            if op.spans.iter().any(uses) {
                until.join(&op.after);
                self.now = self.now.max(op.end);
            }
        }
        self.run(&until);
    }
}

impl Device for SimDevice {
    type Event = SimEvent;

    fn name(&self) -> String {
        "simulated".to_owned()
    }

    fn now(&self) -> Duration {
        self.now
    }

    fn stream(&mut self, _urgent: bool) -> Result<Stream, DeviceError> {
        self.call();
        self.queues.push(Queue::default());
        Ok(Stream(self.queues.len() as u32 - 1))
    }

    fn alloc(&mut self, memory: Memory, bytes: usize) -> Result<Buffer, DeviceError> {
        self.call();
        let (call, limit) = match memory {
            Memory::Device => (Call::Alloc, self.config.device_bytes),
            Memory::Pinned => (Call::Pinned, self.config.pinned_bytes),
        };
        let full = self.used(memory).saturating_add(bytes) > limit;
        if self.fails(call) || full {
            return Err(DeviceError::OutOfMemory { memory, bytes });
        }
        self.rooms.push(Room {
            memory,
            len: bytes,
            alive: true,
        });
        // Not zeros: those might be what somebody hopes for.
        self.bytes.push(vec![0xcd; bytes]);
        Ok(Buffer(self.rooms.len() as u32 - 1))
    }

    fn free(&mut self, buffer: Buffer) -> Result<(), DeviceError> {
        self.call();
        let len = self.room(buffer).ok_or(WorkError::NoBuffer(buffer))?.len;
        self.settle(buffer.at(0), len);
        let i = buffer.0 as usize;
        self.rooms[i].alive = false;
        self.bytes[i] = Vec::new();
        Ok(())
    }

    fn write(&mut self, to: At, bytes: &[u8]) -> Result<(), DeviceError> {
        self.call();
        if self.inside(to, bytes.len())? != Memory::Pinned {
            return Err(WorkError::WrongMemory(to.buffer).into());
        }
        self.settle(to, bytes.len());
        self.now += Self::at_rate(bytes.len(), self.config.host);
        execute::slice_mut(&mut self.bytes, to, bytes.len()).copy_from_slice(bytes);
        Ok(())
    }

    fn pinned(&self, from: At, bytes: usize) -> Result<&[u8], DeviceError> {
        if self.inside(from, bytes)? != Memory::Pinned {
            return Err(WorkError::WrongMemory(from.buffer).into());
        }
        Ok(execute::slice(&self.bytes, from, bytes))
    }

    fn upload(&mut self, stream: Stream, to: At, bytes: &[u8]) -> Result<(), DeviceError> {
        self.call();
        self.queue(stream)?;
        if self.inside(to, bytes.len())? != Memory::Device {
            return Err(WorkError::WrongMemory(to.buffer).into());
        }
        if self.fails(Call::Transfer) {
            return Err(DeviceError::Failed("an upload, as asked for".to_owned()));
        }
        let taken = Self::at_rate(bytes.len(), self.config.host);
        let access = Access {
            at: to,
            bytes: bytes.len(),
            writes: true,
        };
        let bytes = bytes.to_vec();
        let task = move |memory: &mut Vec<Vec<u8>>, _: &mut Vec<Vec<u8>>| {
            execute::slice_mut(memory, to, bytes.len()).copy_from_slice(&bytes);
        };
        self.enqueue(
            stream,
            &[access],
            self.config.kernel + taken,
            Box::new(task),
        )?;
        self.now += taken;
        Ok(())
    }

    fn copy(&mut self, stream: Stream, from: At, to: At, bytes: usize) -> Result<(), DeviceError> {
        self.call();
        self.queue(stream)?;
        self.inside(from, bytes)?;
        if self.inside(to, bytes)? != Memory::Device {
            return Err(WorkError::WrongMemory(to.buffer).into());
        }
        if self.fails(Call::Transfer) {
            return Err(DeviceError::Failed("a copy, as asked for".to_owned()));
        }
        let accesses = [(from, false), (to, true)].map(|(at, writes)| Access { at, bytes, writes });
        let task = move |memory: &mut Vec<Vec<u8>>, _: &mut Vec<Vec<u8>>| {
            let moved = execute::slice(memory, from, bytes).to_vec();
            execute::slice_mut(memory, to, bytes).copy_from_slice(&moved);
        };
        self.enqueue(stream, &accesses, self.config.kernel, Box::new(task))
    }

    fn read(&mut self, stream: Stream, from: At, out: &mut [u8]) -> Result<(), DeviceError> {
        self.inside(from, out.len())?;
        let access = Access {
            at: from,
            bytes: out.len(),
            writes: false,
        };
        self.enqueue(stream, &[access], self.config.kernel, Box::new(|_, _| ()))?;
        let event = self.record(stream)?;
        self.sync(&event)?;
        out.copy_from_slice(execute::slice(&self.bytes, from, out.len()));
        Ok(())
    }

    fn submit(&mut self, stream: Stream, work: &Work<'_>) -> Result<(), DeviceError> {
        self.call();
        self.queue(stream)?;
        work.check(|b| self.room(b).map(|r| (r.memory, r.len)))?;
        let accesses = work.rows()?;
        if self.fails(Call::Submit) {
            return Err(DeviceError::Failed("a kernel, as asked for".to_owned()));
        }
        let task = execute::task(work);
        let task = move |memory: &mut Vec<Vec<u8>>, _: &mut Vec<Vec<u8>>| task(memory);
        self.enqueue(stream, &accesses, self.config.kernel, Box::new(task))
    }

    fn record(&mut self, stream: Stream) -> Result<SimEvent, DeviceError> {
        self.call();
        let now = self.now;
        let queue = self.queue(stream)?;
        Ok(SimEvent {
            after: queue.after.clone(),
            at: queue.ready.max(now),
        })
    }

    fn wait(&mut self, stream: Stream, event: &SimEvent) -> Result<(), DeviceError> {
        self.call();
        self.queue(stream)?;
        let queue = &mut self.queues[stream.0 as usize];
        queue.after.join(&event.after);
        queue.ready = queue.ready.max(event.at);
        Ok(())
    }

    fn is_done(&mut self, event: &SimEvent) -> Result<bool, DeviceError> {
        self.call();
        let done = event.at <= self.now;
        if done {
            self.run(&event.after);
        }
        Ok(done)
    }

    fn sync(&mut self, event: &SimEvent) -> Result<(), DeviceError> {
        self.call();
        self.now = self.now.max(event.at);
        self.run(&event.after);
        Ok(())
    }

    fn between(&mut self, from: &SimEvent, to: &SimEvent) -> Result<Duration, DeviceError> {
        Ok(to.at.saturating_sub(from.at))
    }
}
