//! Which parts of which blocks are in memory.

use std::sync::Arc;

/// Neither in memory nor being read.
const ABSENT: u32 = u32::MAX;
/// A worker is reading it.
const READING: u32 = u32::MAX - 1;

/// A part of a block, as far as memory knows.
pub(crate) enum Found {
    Here(Arc<[u8]>),
    Reading,
    Absent,
}

/// Parts of blocks in memory, up to a limit. What is over goes by the clock
/// rule (second chance): the hand passes over what was used since it last came
/// by, and takes the first that was not.
#[derive(Debug)]
pub(crate) struct Cache {
    /// `[part][block]`: index into `entries`, or one of the states above.
    table: Vec<Vec<u32>>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    hand: usize,
    bytes: usize,
    limit: Option<usize>,
    /// Changes when blocks are cut off: what was being read then is not kept.
    epoch: u64,
}

#[derive(Debug)]
struct Entry {
    part: u32,
    block: u32,
    bytes: Arc<[u8]>,
    used: bool,
}

impl Cache {
    pub fn new(n_parts: usize, limit: Option<usize>) -> Self {
        Self {
            table: vec![Vec::new(); n_parts],
            entries: Vec::new(),
            free: Vec::new(),
            hand: 0,
            bytes: 0,
            limit,
            epoch: 0,
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Room for blocks up to `n_blocks`.
    pub fn grow(&mut self, n_blocks: usize) {
        for row in &mut self.table {
            row.resize(n_blocks, ABSENT);
        }
    }

    /// Forgets blocks from `n_blocks` on.
    pub fn truncate(&mut self, n_blocks: usize) {
        self.epoch += 1;
        for part in 0..self.table.len() {
            for block in n_blocks..self.table[part].len() {
                self.evict(self.table[part][block]);
            }
            self.table[part].truncate(n_blocks);
            let row = self.table[part].iter_mut();
            row.filter(|state| **state == READING)
                .for_each(|state| *state = ABSENT);
        }
    }

    pub fn find(&mut self, part: usize, block: usize) -> Found {
        match self.table[part][block] {
            ABSENT => Found::Absent,
            READING => Found::Reading,
            at => {
                let Some(entry) = &mut self.entries[at as usize] else {
                    return Found::Absent;
                };
                entry.used = true;
                Found::Here(Arc::clone(&entry.bytes))
            }
        }
    }

    /// Marks a part as being read, if it is absent.
    pub fn claim(&mut self, part: usize, block: usize) -> bool {
        let state = &mut self.table[part][block];
        let absent = *state == ABSENT;
        if absent {
            *state = READING;
        }
        absent
    }

    /// Gives a claim back.
    pub fn release(&mut self, part: usize, block: usize) {
        let state = &mut self.table[part][block];
        if *state == READING {
            *state = ABSENT;
        }
    }

    /// Keeps a part, if there is room for it at all. `used`: not to be taken
    /// the next time that the hand comes by.
    pub fn insert(&mut self, part: usize, block: usize, bytes: Arc<[u8]>, used: bool) {
        self.evict(self.table[part][block]);
        self.table[part][block] = ABSENT;
        if let Some(limit) = self.limit {
            if bytes.len() > limit {
                return;
            }
            while self.bytes + bytes.len() > limit {
                self.turn();
            }
        }
        self.bytes += bytes.len();
        let entry = Some(Entry {
            part: part as u32,
            block: block as u32,
            bytes,
            used,
        });
        let at = match self.free.pop() {
            Some(at) => {
                self.entries[at as usize] = entry;
                at
            }
            None => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        };
        self.table[part][block] = at;
    }

    /// Moves the hand by one.
    fn turn(&mut self) {
        self.hand = (self.hand + 1) % self.entries.len().max(1);
        if let Some(Some(entry)) = self.entries.get_mut(self.hand) {
            if entry.used {
                entry.used = false;
            } else {
                self.evict(self.hand as u32);
            }
        }
    }

    fn evict(&mut self, at: u32) {
        if let Some(entry) = self.entries.get_mut(at as usize).and_then(Option::take) {
            self.bytes -= entry.bytes.len();
            self.table[entry.part as usize][entry.block as usize] = ABSENT;
            self.free.push(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize) -> Arc<[u8]> {
        vec![n as u8; 10].into()
    }

    #[test]
    fn the_limit_holds_and_what_is_used_stays() {
        let mut cache = Cache::new(2, Some(35));
        cache.grow(10);
        for block in 0..10 {
            cache.insert(0, block, bytes(block), false);
            assert!(cache.bytes() <= 35);
            // Block 0 is asked for all the time.
            assert!(matches!(cache.find(0, 0), Found::Here(b) if b == bytes(0)));
        }
        let here: Vec<usize> = (0..10)
            .filter(|b| matches!(cache.find(0, *b), Found::Here(_)))
            .collect();
        assert_eq!((here.len(), here[0], here[2]), (3, 0, 9));
        cache.insert(1, 3, vec![0; 36].into(), true);
        assert!(matches!(cache.find(1, 3), Found::Absent));
        cache.truncate(1);
        assert_eq!(cache.bytes(), 10);
        cache.grow(5);
        assert!(matches!(cache.find(0, 4), Found::Absent));
    }

    #[test]
    fn claims_end_with_what_they_were_for() {
        let mut cache = Cache::new(1, None);
        cache.grow(4);
        assert!(cache.claim(0, 2));
        assert!(!cache.claim(0, 2));
        assert!(matches!(cache.find(0, 2), Found::Reading));
        cache.release(0, 2);
        assert!(matches!(cache.find(0, 2), Found::Absent));
        assert!(cache.claim(0, 2) && cache.claim(0, 3));
        let epoch = cache.epoch();
        cache.truncate(3);
        assert!(cache.epoch() != epoch && matches!(cache.find(0, 2), Found::Absent));
        assert!(cache.claim(0, 2));
        cache.insert(0, 2, bytes(2), true);
        cache.release(0, 2);
        assert!(matches!(cache.find(0, 2), Found::Here(_)));
    }
}
