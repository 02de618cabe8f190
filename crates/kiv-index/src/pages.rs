//! Codes that do not change any more, in huge pages where the system gives some.
//!
//! A search opens lists all over an index. At a million keys these are on ten thousand pages
//! of 4 KiB for every head, and finding a page takes longer than reading what is on it. Of
//! pages of 2 MiB there are so few that a core knows where they are.

use memmap2::MmapMut;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Bytes of a huge page, on most machines.
const HUGE: usize = 2 << 20;

/// Some bytes that others may be next to.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    memory: Arc<Memory>,
    range: Range<usize>,
}

#[derive(Debug)]
enum Memory {
    Plain(Vec<u8>),
    Huge { map: MmapMut, start: usize },
}

impl Pages {
    /// Copies of all `parts`, side by side.
    pub fn of<const N: usize>(parts: [&[u8]; N]) -> [Self; N] {
        let n = parts.iter().map(|part| part.len()).sum();
        let memory = Arc::new(Memory::huge(&parts, n).unwrap_or_else(|| {
            // As other memory, and no more than is there.
            Memory::Plain(parts.concat())
        }));
        let mut end = 0;
        parts.map(|part| {
            let start = end;
            end += part.len();
            Self {
                memory: Arc::clone(&memory),
                range: start..end,
            }
        })
    }

    /// Bytes of memory that [`Pages::of`] takes for so many.
    pub fn taken(n_bytes: usize) -> usize {
        match huge_pages(n_bytes) {
            0 => n_bytes,
            n => n_bytes.max(n * HUGE),
        }
    }
}

/// Huge pages that so many bytes are worth: none is taken that would be much less than full.
fn huge_pages(n_bytes: usize) -> usize {
    if cfg!(target_os = "linux") {
        (n_bytes + HUGE / 8) / HUGE
    } else {
        0
    }
}

impl Memory {
    /// `None` if that is not worth it, or not to be had.
    fn huge(parts: &[&[u8]], n: usize) -> Option<Self> {
        if huge_pages(n) == 0 {
            return None;
        }
        let taken = Pages::taken(n);
        // Newer kernels begin where a huge page can; others are given room for that. What is
        // not written takes no memory.
        let mut maps = [0, HUGE].into_iter().filter_map(|room| {
            let map = MmapMut::map_anon(taken + room).ok()?;
            let start = map.as_ptr().align_offset(HUGE);
            (start <= room).then_some((map, start))
        });
        let (mut map, start) = maps.next()?;
        #[cfg(target_os = "linux")]
        map.advise_range(memmap2::Advice::HugePage, start, huge_pages(n) * HUGE)
            .ok()?;
        let mut rest = map.get_mut(start..)?;
        for part in parts {
            let (own, others) = rest.split_at_mut(part.len());
            own.copy_from_slice(part);
            rest = others;
        }
        Some(Self::Huge { map, start })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all = match &*self.memory {
            Memory::Plain(all) => all,
            Memory::Huge { map, start } => &map[*start..],
        };
        &all[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_what_they_were_and_hardly_more_are_taken() {
        for n in [
            0,
            1,
            1000,
            HUGE / 8 * 7 - 1,
            HUGE / 8 * 7,
            HUGE,
            3 * HUGE / 2,
            4 * HUGE - 5,
        ] {
            let bytes: Vec<u8> = (0..n).map(|i| (i * 7 % 251) as u8).collect();
            let parts = bytes.split_at(n / 3);
            let pages = Pages::of([parts.0, parts.1]);
            assert_eq!(&*pages[0], parts.0);
            assert_eq!(&*pages[1], parts.1);
            let [first, _] = pages;
            assert_eq!(&*first.clone(), parts.0);
            let taken = Pages::taken(n);
            assert!(taken >= n && taken - n <= n / 7, "{taken} for {n}");
            if let Memory::Huge { map, start } = &*first.memory {
                assert!(map[*start..].as_ptr().align_offset(HUGE) == 0 && n >= HUGE / 8 * 7);
            }
        }
    }
}
