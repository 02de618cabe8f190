//! The cold tier on disk.

mod commit;

pub use commit::Commit;
pub(crate) use commit::{read_manifest, write_manifest};

use crate::error::ContextError;
use crate::folder::{Appendable, DiskFolder, Folder};
use crate::manage::lock_to_read;
use crate::manifest::{Identity, Manifest, PART_HEADER, PartEntry, SegmentEntry, is_ours};
use crate::overlay::Overlay;
use crate::prefetch::{Job, Reader, Segment};
use crate::record::{HEADER, SUM, header, sum};
use crossbeam_channel::{SendError, Sender};
use kiv_policy::{BlockId, ColdError, ColdRows, ColdRun, RowsOf};
use kiv_store::{ColdTier, ReadStats, StoreError};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use xxhash_rust::xxh3::xxh3_64;

/// Threads that read ahead. They do nothing but wait: disks get faster the more they are
/// asked for at once.
const WORKERS: usize = 32;

/// A last file of rows up to this size is copied into the next one, so that
/// short sessions do not leave one small file each. No more is copied at once.
const SMALL: usize = 64 << 20;

/// Where a context is and how much of it may be in memory.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// The folder; made if it is not there.
    pub folder: PathBuf,
    /// Most bytes of rows in memory.
    pub host_limit: Option<usize>,
}

/// A file of rows being written.
struct RowsFile {
    name: String,
    file: Box<dyn Appendable>,
}

/// A context on disk, opened for writing or only to go on from.
pub struct DiskTier {
    reader: Arc<Reader>,
    /// The last commit.
    manifest: Manifest,
    n_blocks: usize,
    next_id: u32,
    /// The file that blocks are appended to, the last of the segments.
    open: Option<RowsFile>,
    /// Files that are not appended to any more but hold blocks that no commit
    /// has made durable.
    closed: Vec<RowsFile>,
    /// A file of rows could not be synced: nothing in it that no commit names is safe.
    is_doubtful: bool,
    /// A commit's manifest of which the system has not said whether it is there.
    in_doubt: Option<Manifest>,
    /// Blocks appended but not published: records, and how far each part is.
    pending: Vec<u8>,
    filled: Vec<usize>,
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
    /// What is written goes to memory.
    is_borrowed: bool,
    /// Held while the context is open.
    _lock: Option<File>,
}

impl DiskTier {
    /// Opens the context of a folder as of its last commit, or begins one.
    /// Files that no commit names are removed.
    ///
    /// # Errors
    /// [`ContextError`]: the folder is in use, holds something else, or a
    /// context that is damaged or not of this identity.
    pub fn open(options: &DiskOptions, identity: Identity) -> Result<Self, ContextError> {
        let path = &options.folder;
        std::fs::create_dir_all(path).map_err(ContextError::io("make the folder", path))?;
        let folder = Arc::new(DiskFolder::new(path));
        // Nothing is left in a folder of somebody else's, a lock neither.
        look(&*folder)?;
        let lock = lock(path)?;
        let mut tier = Self::open_in(folder, identity, options.host_limit)?;
        tier._lock = Some(lock);
        Ok(tier)
    }

    /// As [`DiskTier::open`], but the folder stays as it is, and may be one that cannot be
    /// written to: what is sealed from now on is kept in memory, whatever the limit, and so is
    /// what is committed. Others may borrow the context at the same time.
    ///
    /// # Errors
    /// As [`DiskTier::open`]. A folder that is not there holds nothing yet.
    pub fn borrow(options: &DiskOptions, identity: Identity) -> Result<Self, ContextError> {
        let path = &options.folder;
        let lock = lock_to_read(path)?;
        let folder = Arc::new(Overlay::new(DiskFolder::new(path)));
        let mut tier = Self::open_in(folder, identity, options.host_limit)?;
        tier.is_borrowed = true;
        tier._lock = lock;
        Ok(tier)
    }

    /// As [`DiskTier::open`], in any folder and without a lock.
    ///
    /// # Errors
    /// As [`DiskTier::open`].
    pub fn open_in(
        folder: Arc<dyn Folder>,
        identity: Identity,
        host_limit: Option<usize>,
    ) -> Result<Self, ContextError> {
        let here = folder.path("");
        let (names, manifest) = look(&*folder)?;
        let manifest = match manifest {
            Some(manifest) => {
                manifest.identity.check(&identity, &here)?;
                // Its name may not be safe yet, if the sync after it failed. What
                // only an older one names must not be removed before it is.
                folder.sync().map_err(ContextError::io("write to", &here))?;
                manifest
            }
            None => Manifest::new(identity),
        };
        let reader = Reader::new(folder, &manifest.identity, host_limit);
        let segments = open_segments(&reader, &manifest)?;
        *reader.segments.write() = segments;
        let n_blocks = manifest.n_blocks();
        reader.cache.lock().grow(n_blocks);
        let reader = Arc::new(reader);
        // Files that came after the last commit have other numbers than those
        // to come even where they cannot be removed.
        let numbers = names
            .iter()
            .filter(|n| is_ours(n))
            .filter_map(|n| number(n));
        let next_id = numbers.map(|n| n + 1).fold(manifest.next_id, u32::max);
        let mut tier = Self {
            n_blocks,
            next_id,
            open: None,
            closed: Vec::new(),
            is_doubtful: false,
            in_doubt: None,
            pending: Vec::new(),
            filled: vec![0; reader.layout.parts.len()],
            jobs: None,
            workers: Vec::new(),
            is_borrowed: false,
            _lock: None,
            manifest,
            reader,
        };
        tier.start_workers();
        tier.remove_unnamed();
        Ok(tier)
    }

    fn start_workers(&mut self) {
        let (sender, receiver) = crossbeam_channel::unbounded::<Job>();
        for n in 0..WORKERS {
            let (receiver, reader) = (receiver.clone(), Arc::clone(&self.reader));
            let work = move || receiver.iter().for_each(|job| reader.serve(job));
            let thread = std::thread::Builder::new().name(format!("kiv-read-{n}"));
            // Without threads everything is read when it is wanted.
            self.workers.extend(thread.spawn(work));
        }
        self.jobs = Some(sender).filter(|_| !self.workers.is_empty());
    }

    /// The last commit.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether nothing has been committed yet.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.manifest.commit == 0
    }

    /// Whether the folder stays as it is.
    #[must_use]
    pub fn is_borrowed(&self) -> bool {
        self.is_borrowed
    }

    /// A part of the last commit, `None` if it has none of this name.
    ///
    /// # Errors
    /// [`ContextError`] if it cannot be read or is damaged.
    pub fn part(&self, name: &str) -> Result<Option<Vec<u8>>, ContextError> {
        let entry = self.manifest.parts.iter().find(|p| p.name == name);
        entry
            .map(|entry| read_part_file(&*self.reader.folder, entry))
            .transpose()
    }

    /// Makes a copy of the last commit in another folder, which shares all
    /// files with this one where the file system can.
    ///
    /// # Errors
    /// [`ContextError`].
    pub fn fork(&mut self, to: &Path) -> Result<(), ContextError> {
        // The file that is open would grow in both.
        self.closed.extend(self.open.take());
        crate::manage::link(&self.reader.folder.path(""), to, &self.manifest)
    }

    fn new_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Opens a new file of rows for blocks from `first` on; those that are there already
    /// are copied into it. The files that they were in go, unless a commit names them.
    fn open_segment(&mut self, first: usize) -> Result<(), ContextError> {
        let entry = SegmentEntry {
            id: self.new_id(),
            first,
            blocks: self.n_blocks - first,
        };
        let (name, folder) = (entry.name(), Arc::clone(&self.reader.folder));
        let path = folder.path(&name);
        let mut file = folder
            .create(&name)
            .map_err(ContextError::io("create", &path))?;
        let written = self.write_segment(&entry, &mut *file);
        let opened = written.and_then(|()| {
            let opened = folder.open(&name);
            opened.map_err(ContextError::io("open", &path))
        });
        let reader = opened.inspect_err(|_| {
            // One for every try would fill a disk that is nearly full.
            let _ = folder.remove(&name);
        })?;
        let segment = Segment {
            entry,
            file: reader,
        };
        self.replace_segments(first, Some(segment));
        self.open = Some(RowsFile { name, file });
        Ok(())
    }

    /// Writes the header of a new file of rows, and the blocks that it begins with.
    fn write_segment(
        &self,
        entry: &SegmentEntry,
        file: &mut dyn Appendable,
    ) -> Result<(), ContextError> {
        let layout = &self.reader.layout;
        let path = self.reader.folder.path(&entry.name());
        let mut append = |bytes: &[u8]| {
            let appended = file.append(bytes);
            appended.map_err(ContextError::io("write", &path))
        };
        append(&header(entry.id, entry.first, layout))?;
        let at_once = (SMALL / layout.record_bytes().max(1)).max(1);
        let segments = self.reader.segments.read().clone();
        for old in segments {
            let end = old.entry.first + old.entry.blocks;
            for first in (entry.first.max(old.entry.first)..end).step_by(at_once) {
                let blocks = first..end.min(first + at_once);
                append(&self.reader.read_records(&old, blocks)?)?;
            }
        }
        Ok(())
    }

    /// Puts a file of rows in place of all blocks from `first` on, or nothing. Files that no
    /// block is in any more are removed, unless a commit names them.
    fn replace_segments(&mut self, first: usize, by: Option<Segment>) {
        // What a commit names is never written over: new blocks go to a new file.
        self.closed.extend(self.open.take());
        let mut segments = self.reader.segments.write();
        let kept = segments.partition_point(|s| s.entry.first < first);
        let gone = segments.split_off(kept);
        if let Some(last) = segments.last_mut() {
            last.entry.blocks = last.entry.blocks.min(first - last.entry.first);
        }
        segments.extend(by);
        drop(segments);
        for name in gone.iter().map(|s| s.entry.name()) {
            self.closed.retain(|rows| rows.name != name);
            if !self.is_named(&name) {
                let _ = self.reader.folder.remove(&name);
            }
        }
    }

    fn write_pending(&mut self, count: usize) -> Result<(), ContextError> {
        if self.open.is_none() {
            let record = self.reader.layout.record_bytes();
            let last = self.reader.segments.read().last().map(|s| s.entry);
            let small = last.filter(|s| s.blocks * record <= SMALL);
            self.open_segment(small.map_or(self.n_blocks, |s| s.first))?;
        }
        let Some(rows) = &mut self.open else {
            unreachable!("just opened");
        };
        if let Err(error) = rows.file.append(&self.pending) {
            let path = self.reader.folder.path(&rows.name);
            // Some of it may be there; nothing is appended to that.
            self.replace_segments(self.n_blocks, None);
            return Err(ContextError::io("write", path)(error));
        }
        if let Some(segment) = self.reader.segments.write().last_mut() {
            segment.entry.blocks += count;
        }
        Ok(())
    }

    /// Has the workers read parts of blocks, as far as they are not in memory. Parts that lie
    /// side by side and are told one after the other are read at once.
    fn fetch(&self, wanted: impl Iterator<Item = (usize, BlockId)>) {
        let Some(jobs) = &self.jobs else {
            return;
        };
        let mut cache = self.reader.cache.lock();
        let epoch = cache.epoch();
        let absent = wanted.filter(|(part, block)| cache.claim(*part, *block as usize));
        let mut together: Vec<Job> = Vec::new();
        for (part, block) in absent {
            let (parts, block) = (part..part + 1, block as usize);
            match together.last_mut() {
                Some(job) if job.block == block && job.parts.end == part => job.parts.end += 1,
                _ => together.push(Job {
                    parts,
                    block,
                    epoch,
                }),
            }
        }
        for job in together {
            if let Err(SendError(job)) = jobs.send(job) {
                job.parts.for_each(|part| cache.release(part, job.block));
            }
        }
    }

    fn run(&self, part: usize, block: BlockId, max: usize) -> Result<ColdRun<'_>, ColdError> {
        let block = block as usize;
        assert!(block < self.n_blocks, "block {block} is not sealed");
        assert!(max > 0, "a run has at least one block");
        Ok(ColdRun::Shared {
            kind: self.reader.kind(part),
            bytes: self.reader.get(part, block)?,
        })
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl ColdRows for DiskTier {
    fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    fn keys(
        &self,
        layer: usize,
        kv_head: usize,
        first: BlockId,
        max: usize,
    ) -> Result<ColdRun<'_>, ColdError> {
        self.run(self.reader.layout.part(layer, kv_head, 0), first, max)
    }

    fn values(
        &self,
        layer: usize,
        kv_head: usize,
        first: BlockId,
        max: usize,
    ) -> Result<ColdRun<'_>, ColdError> {
        self.run(self.reader.layout.part(layer, kv_head, 1), first, max)
    }

    fn expect(&self, layer: usize, kv_head: usize, rows: RowsOf, blocks: &[BlockId]) {
        let part = |which| self.reader.layout.part(layer, kv_head, which);
        let parts = match rows {
            RowsOf::Keys => part(0)..=part(0),
            RowsOf::Values => part(1)..=part(1),
            RowsOf::Both => part(0)..=part(1),
        };
        let of_block = |block: &BlockId| parts.clone().zip(std::iter::repeat(*block));
        self.fetch(blocks.iter().flat_map(of_block));
    }
}

impl ColdTier for DiskTier {
    fn append(
        &mut self,
        layer: usize,
        kv_head: usize,
        keys: &[u8],
        values: &[u8],
    ) -> Result<(), StoreError> {
        let layout = &self.reader.layout;
        let first = layout.part(layer, kv_head, 0);
        let record = layout.record_bytes();
        let [k, v] = [first, first + 1].map(|part| layout.parts[part]);
        let count = keys.len() / k.len;
        assert_eq!(count, values.len() / v.len, "as many V rows as K rows");
        for (part, p, bytes) in [(first, k, keys), (first + 1, v, values)] {
            assert!(bytes.len().is_multiple_of(p.len), "whole blocks");
            let filled = self.filled[part];
            let end = (filled + count) * record;
            if self.pending.len() < end {
                let more = end - self.pending.len();
                let no_memory = |_| StoreError::NoMemory {
                    bytes: more,
                    stored: self.reader.cache.lock().bytes(),
                };
                self.pending.try_reserve(more).map_err(no_memory)?;
                self.pending.resize(end, 0);
            }
            let records = self.pending[filled * record..].chunks_exact_mut(record);
            let numbers = self.n_blocks + filled..;
            for ((rows, record), block) in bytes.chunks_exact(p.len).zip(records).zip(numbers) {
                let out = &mut record[p.offset..p.offset + p.len + SUM];
                out[..p.len].copy_from_slice(rows);
                out[p.len..].copy_from_slice(&sum(rows, block, part).to_le_bytes());
            }
            self.filled[part] += count;
        }
        Ok(())
    }

    fn publish(&mut self, count: usize) -> Result<(), StoreError> {
        assert!(self.filled.iter().all(|n| *n == count), "streams in step");
        if count == 0 {
            return Ok(());
        }
        let written = self.write_pending(count);
        if let Err(error) = written {
            self.roll_back();
            return Err(match error {
                ContextError::Io { path, source, .. } => StoreError::Write { path, source },
                other => StoreError::Write {
                    path: self.reader.folder.path(""),
                    source: std::io::Error::other(other),
                },
            });
        }
        let layout = &self.reader.layout;
        let mut cache = self.reader.cache.lock();
        cache.grow(self.n_blocks + count);
        let records = self.pending.chunks_exact(layout.record_bytes());
        for (block, record) in (self.n_blocks..).zip(records) {
            for (part, p) in layout.parts.iter().enumerate() {
                let rows = Arc::from(&record[p.offset..p.offset + p.len]);
                cache.insert(part, block, rows, false);
            }
        }
        drop(cache);
        self.n_blocks += count;
        self.roll_back();
        Ok(())
    }

    fn roll_back(&mut self) {
        self.pending.clear();
        self.filled.fill(0);
    }

    fn truncate(&mut self, n_blocks: usize) {
        self.roll_back();
        if n_blocks >= self.n_blocks {
            return;
        }
        self.n_blocks = n_blocks;
        self.replace_segments(n_blocks, None);
        self.reader.cache.lock().truncate(n_blocks);
        self.reader.wake();
    }

    fn host_bytes(&self) -> usize {
        self.reader.cache.lock().bytes()
    }

    fn disk_bytes(&self) -> usize {
        self.n_blocks * self.reader.layout.record_bytes()
    }

    fn read_stats(&self) -> ReadStats {
        *self.reader.stats.lock()
    }
}

/// Names of all files, and the manifest if there is one. Where there is none, files that
/// are no context's say that the folder is somebody else's.
fn look(folder: &dyn Folder) -> Result<(Vec<String>, Option<Manifest>), ContextError> {
    let path = folder.path("");
    let names = folder.names().map_err(ContextError::io("read", &path))?;
    let foreign = names.iter().find(|n| !is_ours(n));
    match (read_manifest(folder), foreign) {
        (Ok(None) | Err(ContextError::Damaged { .. }), Some(name)) => Err(ContextError::Foreign {
            path,
            name: name.clone(),
        }),
        (manifest, _) => Ok((names, manifest?)),
    }
}

/// Takes the lock of a context's folder.
pub(crate) fn lock(path: &Path) -> Result<File, ContextError> {
    let name = path.join("lock");
    loop {
        let open = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&name);
        let file = open.map_err(ContextError::io("write", &name))?;
        match file.try_lock() {
            // Or whoever had it has removed the context, and the next one makes another lock.
            Ok(()) if is_named(&file, &name) => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(ContextError::Locked {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(ContextError::io("lock", &name)(error)),
        }
    }
}

/// Whether a file still has this name.
#[cfg(unix)]
fn is_named(file: &File, name: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |found: std::fs::Metadata| (found.dev(), found.ino());
    let ids = file
        .metadata()
        .and_then(|open| Ok((id(open), id(name.metadata()?))));
    ids.is_ok_and(|(open, named)| open == named)
}

/// Elsewhere a file that is open keeps its name.
#[cfg(not(unix))]
fn is_named(_: &File, _: &Path) -> bool {
    true
}

/// Opens all files of rows and checks their headers.
pub(crate) fn open_segments(
    reader: &Reader,
    manifest: &Manifest,
) -> Result<Vec<Segment>, ContextError> {
    let open = |entry: &SegmentEntry| {
        let path = reader.folder.path(&entry.name());
        let file = reader
            .folder
            .open(&entry.name())
            .map_err(ContextError::io("open", &path))?;
        let mut found = [0; HEADER];
        file.read_exact_at(&mut found, 0)
            .map_err(ContextError::io("read", &path))?;
        if found != header(entry.id, entry.first, &reader.layout) {
            return Err(ContextError::damaged(
                &path,
                "its header is not what it should be",
            ));
        }
        // Room is made for as many blocks as a manifest says: they must be there.
        let record = reader.layout.record_bytes() as u64;
        let end = record.checked_mul(entry.blocks as u64);
        let last = end.and_then(|end| (HEADER as u64 - SUM as u64).checked_add(end));
        let whole = last.is_some_and(|at| file.read_exact_at(&mut [0; SUM], at).is_ok());
        if !whole {
            let what = format!(
                "it ends before its last block, {}",
                entry.first + entry.blocks - 1
            );
            return Err(ContextError::damaged(&path, what));
        }
        Ok(Segment {
            entry: *entry,
            file,
        })
    };
    manifest.segments.iter().map(open).collect()
}

/// A part's bytes, checked.
pub(crate) fn read_part_file(
    folder: &dyn Folder,
    entry: &PartEntry,
) -> Result<Vec<u8>, ContextError> {
    let path = folder.path(&entry.file());
    let mut bytes = folder
        .read(&entry.file())
        .map_err(ContextError::io("read", &path))?;
    let rest = bytes.len().saturating_sub(PART_HEADER) as u64;
    let right = bytes.starts_with(&entry.header()) && rest == entry.len;
    if !right || xxh3_64(&bytes[PART_HEADER..]) != entry.sum {
        let what = format!("the checksum of its part `{}` does not match", entry.name);
        return Err(ContextError::damaged(path, what));
    }
    bytes.drain(..PART_HEADER);
    Ok(bytes)
}

/// The number in a file's name.
fn number(name: &str) -> Option<u32> {
    let digits = name
        .strip_prefix("rows-")
        .or_else(|| name.strip_prefix("part-"))?;
    u32::from_str_radix(digits, 16).ok()
}
