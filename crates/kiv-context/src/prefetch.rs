//! Reading parts of blocks, at once or ahead of time.

use crate::cache::{Cache, Found};
use crate::error::ContextError;
use crate::folder::{Folder, Readable};
use crate::manifest::{Identity, SegmentEntry};
use crate::record::{HEADER, Part, RecordLayout, SUM, checked, sum};
use kiv_policy::{ColdError, Rows};
use kiv_store::ReadStats;
use parking_lot::{Condvar, Mutex, RwLock};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// A file of rows and how much of it is used.
#[derive(Clone)]
pub(crate) struct Segment {
    pub entry: SegmentEntry,
    pub file: Arc<dyn Readable>,
}

/// What the tier and its workers share.
pub(crate) struct Reader {
    pub folder: Arc<dyn Folder>,
    pub layout: RecordLayout,
    block: usize,
    first_position: usize,
    /// llama.cpp's layer indices, for messages.
    il: Vec<u32>,
    pub segments: RwLock<Vec<Segment>>,
    pub cache: Mutex<Cache>,
    /// A part that was being read is there, or is not coming.
    arrived: Condvar,
    pub stats: Mutex<ReadStats>,
}

/// Parts of a block, side by side, that a worker is to read at once.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub parts: Range<usize>,
    pub block: usize,
    pub epoch: u64,
}

impl Reader {
    pub fn new(folder: Arc<dyn Folder>, identity: &Identity, limit: Option<usize>) -> Self {
        let layout = RecordLayout::new(identity);
        Self {
            cache: Mutex::new(Cache::new(layout.parts.len(), limit)),
            folder,
            layout,
            block: identity.block,
            first_position: identity.first_position,
            il: identity.layers.iter().map(|l| l.il).collect(),
            segments: RwLock::default(),
            arrived: Condvar::new(),
            stats: Mutex::default(),
        }
    }

    /// Rows of a block's part; the caller waits as long as it takes.
    pub fn get(&self, part: usize, block: usize) -> Result<Arc<[u8]>, ColdError> {
        let mut started = None;
        let mut cache = self.cache.lock();
        loop {
            match cache.find(part, block) {
                Found::Here(bytes) => {
                    drop(cache);
                    let mut stats = self.stats.lock();
                    match started {
                        None => stats.hits += 1,
                        Some(at) => stats.waited += Instant::elapsed(&at),
                    }
                    return Ok(bytes);
                }
                Found::Reading => {
                    started.get_or_insert_with(Instant::now);
                    self.arrived.wait(&mut cache);
                }
                Found::Absent => break,
            }
        }
        drop(cache);
        let started = started.unwrap_or_else(Instant::now);
        let bytes = self.read(part, block)?;
        self.cache
            .lock()
            .insert(part, block, Arc::clone(&bytes), true);
        self.stats.lock().waited += started.elapsed();
        Ok(bytes)
    }

    /// What a worker does.
    pub fn serve(&self, job: Job) {
        let Job {
            parts,
            block,
            epoch,
        } = job;
        let read = self.read_together(parts.clone(), block);
        let mut cache = self.cache.lock();
        if cache.epoch() == epoch {
            match read {
                Some(read) => {
                    for (part, bytes) in parts.zip(read) {
                        cache.insert(part, block, bytes, true);
                    }
                }
                // Whoever wants it tries again, and hears why.
                None => parts.for_each(|part| cache.release(part, block)),
            }
        }
        drop(cache);
        self.arrived.notify_all();
    }

    /// Wakes all who wait: what they wait for may not be coming.
    pub fn wake(&self) {
        self.arrived.notify_all();
    }

    fn read(&self, part: usize, block: usize) -> Result<Arc<[u8]>, ColdError> {
        let (segment, offset) = self
            .place(part, block)
            .ok_or_else(|| ColdError(format!("block {block} is in no file")))?;
        let bytes = self
            .read_part(&segment, part, block, offset)
            .map_err(|why| ColdError(format!("{}: {why} (--kv-dir)", self.path(&segment))))?;
        self.count(std::slice::from_ref(&bytes));
        Ok(bytes)
    }

    /// Rows of some parts of a block, by one read, if they can be read and are whole.
    fn read_together(&self, parts: Range<usize>, block: usize) -> Option<Vec<Arc<[u8]>>> {
        let (segment, offset) = self.place(parts.start, block)?;
        let len = |part: usize| self.layout.parts[part].len + SUM;
        let mut bytes = vec![0; parts.clone().map(len).sum()];
        segment.file.read_scattered_at(&mut bytes, offset).ok()?;
        let mut rest = &bytes[..];
        let mut all = Vec::new();
        for part in parts {
            let (own, after) = rest.split_at(len(part));
            all.push(checked(own, block, part)?.into());
            rest = after;
        }
        self.count(&all);
        Some(all)
    }

    /// Parts that have come from disk.
    fn count(&self, parts: &[Arc<[u8]>]) {
        let mut stats = self.stats.lock();
        stats.misses += parts.len() as u64;
        stats.bytes += parts.iter().map(|rows| rows.len() as u64).sum::<u64>();
    }

    fn path(&self, segment: &Segment) -> String {
        let path = self.folder.path(&segment.entry.name());
        path.display().to_string()
    }

    /// The file of a block, and where in it the part begins.
    fn place(&self, part: usize, block: usize) -> Option<(Segment, u64)> {
        let segments = self.segments.read();
        let after = segments.partition_point(|s| s.entry.first <= block);
        let segment = segments.get(after.checked_sub(1)?)?;
        let record = self.layout.record_bytes() as u64;
        let start = HEADER as u64 + (block - segment.entry.first) as u64 * record;
        Some((
            segment.clone(),
            start + self.layout.parts[part].offset as u64,
        ))
    }

    /// Reads and checks a part.
    ///
    /// # Errors
    /// What is wrong with which block, in words.
    pub fn read_part(
        &self,
        segment: &Segment,
        part: usize,
        block: usize,
        offset: u64,
    ) -> Result<Arc<[u8]>, String> {
        let len = self.layout.parts[part].len;
        let mut bytes = vec![0; len + SUM];
        let read = segment.file.read_exact_at(&mut bytes, offset);
        read.map_err(|e| format!("cannot read {}: {e}", self.name(part, block)))?;
        let rows = checked(&bytes, block, part).ok_or_else(|| {
            format!(
                "{} at offset {offset} is damaged: its checksum does not match",
                self.name(part, block)
            )
        })?;
        Ok(Arc::from(rows))
    }

    /// Whole blocks with their sums, as they lie in a file, each checked. What the file has
    /// lost may still be in memory.
    ///
    /// # Errors
    /// [`ContextError`] if rows are in neither.
    pub fn read_records(
        &self,
        segment: &Segment,
        blocks: Range<usize>,
    ) -> Result<Vec<u8>, ContextError> {
        let record = self.layout.record_bytes();
        let mut bytes = vec![0; blocks.len() * record];
        let offset = HEADER + (blocks.start - segment.entry.first) * record;
        let read = segment.file.read_exact_at(&mut bytes, offset as u64);
        for (block, record) in blocks.zip(bytes.chunks_exact_mut(record)) {
            for (part, p) in self.layout.parts.iter().enumerate() {
                let own = &mut record[p.offset..][..p.len + SUM];
                if checked(own, block, part).is_some() {
                    continue;
                }
                let Found::Here(rows) = self.cache.lock().find(part, block) else {
                    let path = self.folder.path(&segment.entry.name());
                    read.map_err(ContextError::io("read", &path))?;
                    let what = format!("the checksum of {} does not match", self.name(part, block));
                    return Err(ContextError::damaged(path, what));
                };
                own[..p.len].copy_from_slice(&rows);
                own[p.len..].copy_from_slice(&sum(&rows, block, part).to_le_bytes());
            }
        }
        Ok(bytes)
    }

    /// A part of a block in words.
    pub fn name(&self, part: usize, block: usize) -> String {
        let Part {
            layer,
            kv_head,
            which,
            ..
        } = self.layout.parts[part];
        let first = self.first_position + block * self.block;
        format!(
            "block {block} (positions {first} to {}), layer {}, KV head {kv_head}, {}",
            first + self.block - 1,
            self.il[layer],
            ["keys", "values"][which],
        )
    }

    /// Format and row length of a part's rows.
    pub fn kind(&self, part: usize) -> Rows<'static> {
        Rows {
            format: self.layout.parts[part].format,
            row_len: self.layout.parts[part].row_len,
            bytes: &[],
        }
    }
}
