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
//!
//! With a folder nothing is lost: a session that must go gives its context to the
//! [`Library`], from where it comes back, in the next process too; and what a request
//! shares with a context that goes on otherwise, or is in use, is shared on disk.

mod room;

pub use room::Room;

use crate::library::{Library, shared};
use crate::retrieved::{Heat, Retrieved};
use kiv_runtime::{Chosen, Error, Finish, GenerateOptions, Generation, Model, Session, Token};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
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

/// Fewer tokens are not worth a context of their own on disk.
const WORTH: usize = 512;

/// Most tokens that are given up to go on with a context, if it can be copied instead.
const GIVEN_UP: usize = 4096;

/// A request.
pub struct Request {
    /// What to read; the session's own start token included.
    pub prompt: Vec<Token>,
    /// How to go on.
    pub options: GenerateOptions,
    /// Whether to tell where in the prompt the answer came from.
    pub retrieved: bool,
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
    Text {
        /// The text.
        text: String,
        /// The tokens that begin in it, if it was asked how likely they were.
        chosen: Vec<Chosen>,
    },
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
    /// Where the answer came from, if that was asked.
    pub retrieved: Option<Retrieved>,
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
    /// Contexts on disk that no session holds.
    pub stored: AtomicUsize,
    /// Times that a context could not be made durable.
    pub unsaved: AtomicUsize,
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
    /// Bytes of cold rows on disk.
    pub disk_bytes: usize,
    /// Whether a request uses it.
    pub busy: bool,
}

/// Contexts that outlive the process.
#[derive(Clone, Debug)]
pub struct KeptContexts {
    /// The folder below which they are.
    pub folder: PathBuf,
    /// Most of them that no session holds; those that were not used for longest are
    /// removed.
    pub most: usize,
    /// Told why a context could not be kept or taken up.
    pub warn: fn(&str),
}

/// Sizes.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Sessions at most.
    pub sessions: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Contexts on disk, if they are to be kept.
    pub kept: Option<KeptContexts>,
    /// Memory for contexts, if it is limited.
    pub room: Option<Room>,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many requests wait.
    Full,
    /// The thread has ended, which it does not while there is an [`Engine`] unless kiv or
    /// llama.cpp has a fault.
    Ended,
}

/// The thread's end that others talk to.
pub struct Engine {
    sender: Option<mpsc::Sender<Request>>,
    thread: Option<std::thread::JoinHandle<()>>,
    counters: Arc<Counters>,
    slots: Arc<Mutex<Vec<SlotState>>>,
    stop: Arc<AtomicBool>,
    most: usize,
    room: Option<Room>,
}

impl Engine {
    /// Starts the thread. `open` makes a session, with its context in a folder if it is
    /// given one; the first is made at once.
    ///
    /// # Errors
    /// The first session's [`Error`], or that of the folder of contexts.
    pub fn start(
        model: Model,
        options: EngineOptions,
        open: impl Fn(&Model, Option<&Path>) -> Result<Session, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let (sender, receiver) = mpsc::channel();
        let (told, first) = mpsc::channel();
        let counters = Arc::new(Counters::default());
        let slots = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let worker = (Arc::clone(&counters), Arc::clone(&slots), Arc::clone(&stop));
        let room = options.room.clone();
        let thread = std::thread::spawn(move || {
            let (counters, slots, stop) = worker;
            let open = move |folder: Option<&Path>| {
                let mut session = open(&model, folder)?;
                session.set_interrupt_flag(Arc::clone(&stop));
                Ok(session)
            };
            match first_slot(&open, options.kept.as_ref()) {
                Ok((slot, library)) => {
                    let _ = told.send(Ok(()));
                    let mut worker = Worker {
                        open,
                        limit: options.sessions.max(1),
                        slots: vec![slot],
                        waiting: VecDeque::new(),
                        counters,
                        shown: slots,
                        library,
                        room: options.room,
                        warn: options.kept.map_or(|_| {}, |kept| kept.warn),
                    };
                    worker.show();
                    worker.work(&receiver);
                    worker.end();
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
            room,
        })
    }

    /// Memory for contexts, if it is limited.
    #[must_use]
    pub fn room(&self) -> Option<&Room> {
        self.room.as_ref()
    }

    /// Hands a request over.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn submit(&self, request: Request) -> Result<(), Refused> {
        if !self.is_running() {
            return Err(Refused::Ended);
        }
        let open = &self.counters.open;
        if open.fetch_add(1, Ordering::SeqCst) >= self.most {
            open.fetch_sub(1, Ordering::SeqCst);
            return Err(Refused::Full);
        }
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let sender = self.sender.as_ref();
        let is_sent = sender.is_some_and(|sender| sender.send(request).is_ok());
        if !is_sent {
            open.fetch_sub(1, Ordering::SeqCst);
            return Err(Refused::Ended);
        }
        Ok(())
    }

    /// Whether requests are answered.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
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
    /// Where its context is, if it is kept.
    folder: Option<PathBuf>,
    job: Option<Job>,
    used: Instant,
}

impl Slot {
    fn new(session: Session, folder: Option<PathBuf>) -> Self {
        Self {
            session,
            folder,
            job: None,
            used: Instant::now(),
        }
    }

    /// Makes the context durable, if it is worth it.
    fn keep(&mut self) -> Result<bool, Error> {
        let worth = self.folder.is_some() && self.session.tokens().len() >= WORTH;
        if worth {
            self.session.commit()?;
        }
        Ok(worth)
    }
}

/// The first session, and what is on disk for such.
fn first_slot(
    open: &impl Fn(Option<&Path>) -> Result<Session, Error>,
    kept: Option<&KeptContexts>,
) -> Result<(Slot, Option<Library>), Error> {
    let Some(kept) = kept else {
        return Ok((Slot::new(open(None)?, None), None));
    };
    let path = Library::free_path(&kept.folder);
    let mut session = open(Some(&path))?;
    let library = Library::open(&kept.folder, kept.most, &mut session)?;
    Ok((Slot::new(session, Some(path)), Some(library)))
}

struct Job {
    request: Request,
    /// Where attention goes, if that was asked.
    heat: Option<Heat>,
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
    library: Option<Library>,
    room: Option<Room>,
    warn: fn(&str),
}

impl<F: Fn(Option<&Path>) -> Result<Session, Error>> Worker<F> {
    fn work(&mut self, receiver: &mpsc::Receiver<Request>) {
        loop {
            let idle = self.slots.iter().all(|slot| slot.job.is_none());
            if idle && self.waiting.is_empty() {
                // Nobody waits: what has been read is made safe.
                self.keep_all();
                self.show();
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
            self.forget_gone();
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
                disk_bytes: memory.disk,
                busy: slot.job.is_some(),
            }
        };
        *self.shown.lock() = self.slots.iter().map(state).collect();
        let stored = self.library.as_ref().map_or(0, Library::len);
        self.counters.stored.store(stored, Ordering::Relaxed);
    }

    /// Makes every context durable.
    fn keep_all(&mut self) {
        for i in 0..self.slots.len() {
            if let Err(error) = self.slots[i].keep() {
                self.unsaved(&error);
            }
        }
    }

    /// Makes every context durable, and leaves no folder of what was not worth it.
    fn end(mut self) {
        self.limit = 0;
        while !self.slots.is_empty() {
            self.slots[0].job = None;
            self.give_up_least();
        }
    }

    fn unsaved(&self, error: &Error) {
        self.counters.unsaved.fetch_add(1, Ordering::Relaxed);
        (self.warn)(&format!("a context could not be kept: {}", told(error)));
    }

    /// A request is over, and its slot has no job any more.
    fn finished(&self) {
        self.counters.open.fetch_sub(1, Ordering::SeqCst);
        self.show();
    }

    /// Whoever has gone waits no longer: there is room for others.
    fn forget_gone(&mut self) {
        let before = self.waiting.len();
        self.waiting.retain(|request| !request.events.is_closed());
        for _ in self.waiting.len()..before {
            self.counters.cancelled.fetch_add(1, Ordering::Relaxed);
            self.finished();
        }
    }

    /// Gives waiting requests their sessions.
    fn admit(&mut self) {
        while let Some(request) = self.waiting.pop_front() {
            let Some(choice) = self.choose_with_room(&request.prompt) else {
                self.waiting.push_front(request);
                return;
            };
            let ready = self.make_ready(choice);
            let ready = ready.or_else(|error| self.without(choice, error));
            let ready = ready.and_then(|i| {
                let reused = self.slots[i].session.reuse(&request.prompt)?;
                Ok((&mut self.slots[i], reused))
            });
            match ready {
                Ok((slot, reused)) => {
                    slot.used = Instant::now();
                    self.counters.reused.fetch_add(reused, Ordering::Relaxed);
                    let until = question(&request.prompt);
                    let watch = request.retrieved;
                    slot.job = Some(Job {
                        heat: watch.then(|| Heat::watch(&mut slot.session, until)),
                        read: reused,
                        reused,
                        request,
                        generation: None,
                        reading: Duration::ZERO,
                        generating: Duration::ZERO,
                    });
                }
                Err(error) => {
                    self.counters.failed.fetch_add(1, Ordering::Relaxed);
                    self.finished();
                    let _ = request.events.send(Event::Failed(told(&error)));
                }
            }
        }
    }

    /// What to do for a prompt; nothing while every session is in use.
    fn choose(&self, prompt: &[Token]) -> Option<Choice> {
        let free = self.slots.iter().any(|slot| slot.job.is_none());
        if !free && self.slots.len() >= self.limit {
            return None;
        }
        let holds = |slot: &Slot| slot.session.tokens().len();
        let shares = |slot: &Slot| shared(slot.session.tokens(), prompt);
        let slots = self.slots.iter().enumerate();
        let idle = slots.clone().filter(|(_, slot)| slot.job.is_none());
        let idle = idle.max_by_key(|(_, slot)| shares(slot));
        let Some(library) = &self.library else {
            // Worth it if half of what the session holds stays, so that it is the same
            // text.
            let same_text = |(_, slot): &(usize, &Slot)| 2 * shares(slot) >= holds(slot);
            return Some(
                idle.filter(same_text)
                    .map_or(Choice::New, |(i, _)| Choice::Slot(i)),
            );
        };
        let stored = library.best(prompt);
        let any = slots.max_by_key(|(_, slot)| shares(slot));
        let of_slots = any.map_or(0, |(_, slot)| shares(slot));
        let of_stored = stored.map_or(0, |(_, shared)| shared);
        if let Some((i, slot)) = idle
            && shares(slot) >= of_stored.max(of_slots)
            && holds(slot) - shares(slot) <= GIVEN_UP.min(holds(slot) / 2)
        {
            return Some(Choice::Slot(i));
        }
        Some(if of_stored.max(of_slots) < WORTH {
            Choice::New
        } else if of_stored >= of_slots {
            let (i, shared) = stored?;
            let given_up = library.get(i).tokens.len() - shared;
            if given_up <= GIVEN_UP {
                Choice::Stored(i)
            } else {
                Choice::CopyOfStored(i)
            }
        } else {
            Choice::CopyOfSlot(any?.0)
        })
    }

    /// A session as chosen: its number.
    fn make_ready(&mut self, choice: Choice) -> Result<usize, Error> {
        let Some(library) = &mut self.library else {
            return match choice {
                Choice::Slot(i) => Ok(i),
                _ if self.slots.len() < self.limit => {
                    self.slots.push(Slot::new((self.open)(None)?, None));
                    Ok(self.slots.len() - 1)
                }
                _ => Ok(self.least().expect("one is free, or could be made")),
            };
        };
        let path = match choice {
            Choice::Slot(i) => return Ok(i),
            Choice::New => library.new_path(),
            Choice::Stored(i) => library.take(i).path,
            Choice::CopyOfStored(i) => {
                let path = library.new_path();
                if let Err(error) = kiv_context::fork(&library.get(i).path, &path) {
                    // Not to be tried by every request that begins like it.
                    library.take(i);
                    return Err(error.into());
                }
                path
            }
            Choice::CopyOfSlot(i) => {
                let path = library.new_path();
                self.slots[i].session.fork(&path)?;
                path
            }
        };
        if self.slots.len() >= self.limit {
            self.give_up_least();
        }
        let opened = (self.open)(Some(&path));
        if opened.is_err() && matches!(choice, Choice::CopyOfStored(_) | Choice::CopyOfSlot(_)) {
            discard(&path);
        }
        self.slots.push(Slot::new(opened?, Some(path)));
        Ok(self.slots.len() - 1)
    }

    /// A session for a prompt whose context cannot be taken up: another server has it, or it
    /// is damaged. The text is read again, and the context left alone.
    fn without(&mut self, choice: Choice, error: Error) -> Result<usize, Error> {
        if matches!(choice, Choice::Slot(_) | Choice::New) {
            return Err(error);
        }
        (self.warn)(&format!(
            "a context could not be taken up: {}",
            told(&error)
        ));
        self.make_ready(Choice::New)
    }

    /// The free session that holds least.
    fn least(&self) -> Option<usize> {
        let slots = self.slots.iter().enumerate();
        let free = slots.filter(|(_, slot)| slot.job.is_none());
        let least = free.min_by_key(|(_, slot)| (slot.session.tokens().len(), slot.used));
        least.map(|(i, _)| i)
    }

    /// Gives up the free session that holds least.
    fn give_up_least(&mut self) {
        if let Some(i) = self.least() {
            self.give_up(i);
        }
    }

    /// Ends a session; its context goes into the library, if there is one.
    fn give_up(&mut self, i: usize) {
        let mut slot = self.slots.swap_remove(i);
        let kept = slot.keep();
        let Slot {
            session, folder, ..
        } = slot;
        let tokens = session.tokens().to_vec();
        drop(session);
        let (Some(folder), Some(library)) = (folder, &mut self.library) else {
            return;
        };
        match kept {
            Ok(true) => library.put(folder, tokens),
            Ok(false) => discard(&folder),
            Err(error) => self.unsaved(&error),
        }
    }

    /// A bit of work for one session.
    fn turn(&mut self, i: usize) {
        let slot = &mut self.slots[i];
        let Some(mut job) = slot.job.take() else {
            return;
        };
        if job.request.events.is_closed() {
            slot.session.set_tap(None);
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
                        retrieved: (job.heat.as_ref())
                            .map(|heat| heat.told(&slot.session, question(&job.request.prompt))),
                    })),
                    Err(error) => Err(error),
                }
            }
        };
        slot.used = Instant::now();
        if !matches!(result, Ok(None)) && job.heat.is_some() {
            slot.session.set_tap(None);
        }
        match result {
            Ok(None) => slot.job = Some(job),
            Ok(Some(summary)) => {
                let generated = &self.counters.generated;
                generated.fetch_add(summary.generated, Ordering::Relaxed);
                // First: who has the answer finds no trace of the request.
                self.finished();
                let _ = job.request.events.send(Event::Done(summary));
            }
            Err(error) => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                self.finished();
                let _ = job.request.events.send(Event::Failed(told(&error)));
            }
        }
    }
}

/// An error with its causes.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |all, cause| format!("{all}: {cause}"))
}

/// Where a prompt goes.
#[derive(Clone, Copy, Debug)]
enum Choice {
    /// To a session that is free.
    Slot(usize),
    /// To an empty one.
    New,
    /// To a context of the library.
    Stored(usize),
    /// To a copy of one, which goes on otherwise.
    CopyOfStored(usize),
    /// To a copy of a session's.
    CopyOfSlot(usize),
}

/// Removes a folder that was made for a context that was never worth keeping. What has been
/// committed once is somebody's text.
fn discard(folder: &Path) {
    if !folder.join("manifest").exists() {
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// Where the question at the end of a prompt begins, as far as can be told.
fn question(prompt: &[Token]) -> usize {
    prompt.len().saturating_sub(QUESTION)
}

/// Reads the next piece of the prompt.
fn read(session: &mut Session, job: &mut Job, counters: &Counters) -> Result<(), Error> {
    let started = Instant::now();
    let prompt = &job.request.prompt;
    let question = question(prompt);
    let end = if job.read < question {
        let end = (job.read + CHUNK).min(question);
        session.read(&prompt[job.read..end])?;
        if end == question {
            // Another question about the same text may follow.
            session.mark()?;
        }
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
    let mut tell = |text: String, chosen: Vec<Chosen>| {
        if !text.is_empty() || !chosen.is_empty() {
            is_silent = false;
            let _ = events.send(Event::Text { text, chosen });
        }
    };
    for _ in 0..TOKENS {
        match generation.step(session) {
            Some(Ok(piece)) => tell(piece.text, generation.take_chosen()),
            Some(Err(error)) => return Err(error),
            None => {
                let rest = generation.rest();
                tell(rest, generation.take_chosen());
                return Ok(true);
            }
        }
    }
    // Tokens may have no text. Something must be written all the same: that is how
    // it shows that a client has gone.
    if is_silent {
        let _ = events.send(Event::Text {
            text: String::new(),
            chosen: Vec::new(),
        });
    }
    Ok(false)
}
