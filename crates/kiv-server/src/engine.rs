//! One thread that owns the sessions and serves all requests, a bit of each in turn.
//!
//! llama.cpp's contexts belong to one thread, and a computation uses all cores, so
//! requests do not run side by side but in turn: a turn is a micro-batch of one that
//! reads, or some tokens of one that generates. A short chat goes on while a long text is
//! being read.
//!
//! Sessions outlive requests. The next request goes to the idle session with which it
//! shares most tokens from the beginning, if that is worth anything; otherwise to an
//! empty one, or to the one that holds least: a long document is not pushed out by a
//! client's small helper calls.

use kiv_runtime::{Error, Finish, GenerateOptions, Generation, Model, Session, Token};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// Tokens read in a turn.
const CHUNK: usize = 512;

/// Tokens generated in a turn.
const TOKENS: usize = 8;

/// The last tokens of a prompt are read one by one, each with a retrieval of its
/// own: a question decides what is looked up.
const QUESTION: usize = 64;

/// A request.
pub struct Request {
    /// What to read; the session's own start token included.
    pub prompt: Vec<Token>,
    /// How to go on.
    pub options: GenerateOptions,
    /// Where to tell. If nobody listens any more the request is given up.
    pub events: UnboundedSender<Event>,
}

/// What becomes of a request, in this order; nothing after `Done` or `Failed`.
#[derive(Clone, Debug)]
pub enum Event {
    /// So many tokens of the prompt are read, of so many; some were known before.
    Reading {
        /// Tokens read, known ones included.
        read: usize,
        /// Tokens of the prompt.
        total: usize,
        /// Tokens that a session knew already.
        reused: usize,
    },
    /// More text.
    Text(String),
    /// The end.
    Done(Summary),
    /// It cannot be done.
    Failed(String),
}

/// Figures of a request that is done.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Of these, tokens that a session knew already.
    pub reused: usize,
    /// Tokens generated.
    pub generated: usize,
    /// Time reading.
    pub reading: Duration,
    /// Time generating.
    pub generating: Duration,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests taken.
    pub requests: AtomicUsize,
    /// Requests that were given up by their client.
    pub cancelled: AtomicUsize,
    /// Requests that failed.
    pub failed: AtomicUsize,
    /// Tokens read.
    pub read: AtomicUsize,
    /// Tokens that need not be read.
    pub reused: AtomicUsize,
    /// Tokens generated.
    pub generated: AtomicUsize,
    /// Requests that wait or run.
    pub open: AtomicUsize,
}

/// What a session holds just now.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotState {
    /// Tokens.
    pub tokens: usize,
    /// Bytes of KV cache on the device.
    pub resident_bytes: usize,
    /// Bytes of cold rows in host memory.
    pub host_bytes: usize,
    /// Whether a request uses it.
    pub busy: bool,
}

/// Sizes.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Sessions at most.
    pub sessions: usize,
    /// Requests that may wait.
    pub queue: usize,
}

/// Too many requests wait.
#[derive(Clone, Copy, Debug)]
pub struct Full;

/// The thread's end that others talk to.
pub struct Engine {
    sender: Option<mpsc::Sender<Request>>,
    thread: Option<std::thread::JoinHandle<()>>,
    counters: Arc<Counters>,
    slots: Arc<Mutex<Vec<SlotState>>>,
    stop: Arc<AtomicBool>,
    most: usize,
}

impl Engine {
    /// Starts the thread. `open` makes a session; the first is made at once.
    ///
    /// # Errors
    /// The first session's [`Error`].
    pub fn start(
        model: Model,
        options: EngineOptions,
        open: impl Fn(&Model) -> Result<Session, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let (sender, receiver) = mpsc::channel();
        let (told, first) = mpsc::channel();
        let counters = Arc::new(Counters::default());
        let slots = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let worker = (Arc::clone(&counters), Arc::clone(&slots), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let (counters, slots, stop) = worker;
            let open = move || {
                let mut session = open(&model)?;
                session.set_interrupt_flag(Arc::clone(&stop));
                Ok(session)
            };
            match open() {
                Ok(session) => {
                    let _ = told.send(Ok(()));
                    let mut worker = Worker {
                        open,
                        limit: options.sessions.max(1),
                        slots: vec![Slot::new(session)],
                        waiting: VecDeque::new(),
                        counters,
                        shown: slots,
                    };
                    worker.show();
                    worker.work(&receiver);
                }
                Err(error) => {
                    let _ = told.send(Err(error));
                }
            }
        });
        match first.recv() {
            Ok(result) => result?,
            Err(_) => return Err(Error::NoLogits),
        }
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
            counters,
            slots,
            stop,
            most: options.queue + options.sessions.max(1),
        })
    }

    /// Hands a request over.
    ///
    /// # Errors
    /// [`Full`].
    pub fn submit(&self, request: Request) -> Result<(), Full> {
        let open = &self.counters.open;
        if open.fetch_add(1, Ordering::SeqCst) >= self.most {
            open.fetch_sub(1, Ordering::SeqCst);
            return Err(Full);
        }
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let sent = self.sender.as_ref().map(|sender| sender.send(request));
        if !matches!(sent, Some(Ok(()))) {
            open.fetch_sub(1, Ordering::SeqCst);
            return Err(Full);
        }
        Ok(())
    }

    /// Counts since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The sessions just now.
    #[must_use]
    pub fn slots(&self) -> Vec<SlotState> {
        self.slots.lock().clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.sender = None;
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A session, and the request that uses it.
struct Slot {
    session: Session,
    job: Option<Job>,
    used: Instant,
}

impl Slot {
    fn new(session: Session) -> Self {
        Self {
            session,
            job: None,
            used: Instant::now(),
        }
    }
}

struct Job {
    request: Request,
    reused: usize,
    /// Tokens of the prompt that are read.
    read: usize,
    generation: Option<Generation>,
    reading: Duration,
    generating: Duration,
}

struct Worker<F> {
    open: F,
    limit: usize,
    slots: Vec<Slot>,
    waiting: VecDeque<Request>,
    counters: Arc<Counters>,
    shown: Arc<Mutex<Vec<SlotState>>>,
}

impl<F: Fn() -> Result<Session, Error>> Worker<F> {
    fn work(&mut self, receiver: &mpsc::Receiver<Request>) {
        loop {
            let idle = self.slots.iter().all(|slot| slot.job.is_none());
            if idle && self.waiting.is_empty() {
                match receiver.recv() {
                    Ok(request) => self.waiting.push_back(request),
                    Err(_) => return,
                }
            }
            loop {
                match receiver.try_recv() {
                    Ok(request) => self.waiting.push_back(request),
                    Err(mpsc::TryRecvError::Empty) => break,
                    // The server stops: nobody listens any more.
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            self.admit();
            for i in 0..self.slots.len() {
                self.turn(i);
            }
            self.show();
        }
    }

    fn show(&self) {
        let state = |slot: &Slot| {
            let memory = slot.session.memory();
            SlotState {
                tokens: slot.session.tokens().len(),
                resident_bytes: memory.resident_kv,
                host_bytes: memory.host_kv,
                busy: slot.job.is_some(),
            }
        };
        *self.shown.lock() = self.slots.iter().map(state).collect();
    }

    fn finished(&self) {
        self.counters.open.fetch_sub(1, Ordering::SeqCst);
    }

    /// Gives waiting requests their sessions.
    fn admit(&mut self) {
        while let Some(request) = self.waiting.pop_front() {
            if request.events.is_closed() {
                self.counters.cancelled.fetch_add(1, Ordering::Relaxed);
                self.finished();
                continue;
            }
            let Some(i) = self.choose(&request.prompt) else {
                self.waiting.push_front(request);
                return;
            };
            let slot = &mut self.slots[i];
            slot.used = Instant::now();
            match slot.session.reuse(&request.prompt) {
                Ok(reused) => {
                    self.counters.reused.fetch_add(reused, Ordering::Relaxed);
                    slot.job = Some(Job {
                        read: reused,
                        reused,
                        request,
                        generation: None,
                        reading: Duration::ZERO,
                        generating: Duration::ZERO,
                    });
                }
                Err(error) => {
                    let _ = request.events.send(Event::Failed(error.to_string()));
                    self.counters.failed.fetch_add(1, Ordering::Relaxed);
                    self.finished();
                }
            }
        }
    }

    /// The session for a prompt, if one is free or can be made.
    fn choose(&mut self, prompt: &[Token]) -> Option<usize> {
        let shared = |slot: &Slot| {
            let pairs = slot.session.tokens().iter().zip(prompt);
            pairs.take_while(|(a, b)| a == b).count()
        };
        let free = |slot: &&(usize, &Slot)| slot.1.job.is_none();
        let slots: Vec<(usize, &Slot)> = self.slots.iter().enumerate().collect();
        let best = slots.iter().filter(free).max_by_key(|(_, s)| shared(s));
        // Worth it if half of what the session holds stays, so that it is the same text.
        if let Some((i, slot)) = best
            && 2 * shared(slot) >= slot.session.tokens().len()
        {
            return Some(*i);
        }
        if self.slots.len() < self.limit
            && let Ok(session) = (self.open)()
        {
            self.slots.push(Slot::new(session));
            return Some(self.slots.len() - 1);
        }
        let least = slots.iter().filter(free);
        let least = least.min_by_key(|(_, s)| (s.session.tokens().len(), s.used));
        least.map(|(i, _)| *i)
    }

    /// A bit of work for one session.
    fn turn(&mut self, i: usize) {
        let slot = &mut self.slots[i];
        let Some(mut job) = slot.job.take() else {
            return;
        };
        if job.request.events.is_closed() {
            self.counters.cancelled.fetch_add(1, Ordering::Relaxed);
            self.finished();
            return;
        }
        let started = Instant::now();
        let result = match &mut job.generation {
            None => read(&mut slot.session, &mut job, &self.counters).map(|()| None),
            Some(generation) => {
                let done = generate(&mut slot.session, generation, &job.request.events);
                let time = started.elapsed();
                job.generating += time;
                match done {
                    Ok(false) => Ok(None),
                    Ok(true) => Ok(Some(Summary {
                        finish: generation.finish().unwrap_or(Finish::Interrupted),
                        prompt: job.request.prompt.len(),
                        reused: job.reused,
                        generated: generation.generated(),
                        reading: job.reading,
                        generating: job.generating,
                    })),
                    Err(error) => Err(error),
                }
            }
        };
        slot.used = Instant::now();
        match result {
            Ok(None) => slot.job = Some(job),
            Ok(Some(summary)) => {
                let generated = &self.counters.generated;
                generated.fetch_add(summary.generated, Ordering::Relaxed);
                let _ = job.request.events.send(Event::Done(summary));
                self.finished();
            }
            Err(error) => {
                let _ = job.request.events.send(Event::Failed(error.to_string()));
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                self.finished();
            }
        }
    }
}

/// Reads the next piece of the prompt.
fn read(session: &mut Session, job: &mut Job, counters: &Counters) -> Result<(), Error> {
    let started = Instant::now();
    let prompt = &job.request.prompt;
    let question = prompt.len().saturating_sub(QUESTION);
    let end = if job.read < question {
        let end = (job.read + CHUNK).min(question);
        session.read(&prompt[job.read..end])?;
        end
    } else {
        // All may be known, the logits after it too.
        if job.read < prompt.len() {
            session.read_one_by_one(&prompt[job.read..])?;
        }
        prompt.len()
    };
    counters.read.fetch_add(end - job.read, Ordering::Relaxed);
    job.read = end;
    job.reading += started.elapsed();
    let _ = job.request.events.send(Event::Reading {
        read: end,
        total: prompt.len(),
        reused: job.reused,
    });
    if end == prompt.len() {
        job.generation = Some(Generation::new(job.request.options.clone()));
    }
    Ok(())
}

/// Generates some tokens; whether that was the end.
fn generate(
    session: &mut Session,
    generation: &mut Generation,
    events: &UnboundedSender<Event>,
) -> Result<bool, Error> {
    let mut is_silent = true;
    for _ in 0..TOKENS {
        match generation.step(session) {
            Some(Ok(piece)) => {
                if !piece.text.is_empty() {
                    is_silent = false;
                    let _ = events.send(Event::Text(piece.text));
                }
            }
            Some(Err(error)) => return Err(error),
            None => {
                let rest = generation.rest();
                if !rest.is_empty() {
                    let _ = events.send(Event::Text(rest));
                }
                return Ok(true);
            }
        }
    }
    // Tokens may have no text. Something must be written all the same: that is how
    // it shows that a client has gone.
    if is_silent {
        let _ = events.send(Event::Text(String::new()));
    }
    Ok(false)
}
