//! What the kernels of a search find together, on the CPU: from the bytes that a device has,
//! for simulated ones. It is as plain as can be, and no faster.

use super::{EXTRA, Layout, Part, Search, Section};
use crate::reference::{entered, scan, unordered};
use crate::work::At;
use kiv_fastscan::{CENTROIDS, GROUP, Lut, MAX_M};
use kiv_numeric::{TILE, dot, tile_logits};

/// Why a row is left to the CPU.
pub(crate) const NO_TABLES: u32 = 1;
pub(crate) const NO_ROOM: u32 = 2;

/// Finds what a search finds: the bytes of [`Layout::found_bytes`]. `read` gives bytes of
/// buffers.
pub(crate) fn search<'a>(work: &Search<'_>, read: impl Fn(At, usize) -> &'a [u8]) -> Vec<u8> {
    let layout = Layout::new(work);
    let copies: Vec<Copied<'_>> = (work.parts.iter())
        .map(|part| Copied::new(part, read(part.at, part.room.bytes())))
        .collect();
    let n_told = layout.told.out();
    let (mut scores, mut ids, mut status) = (Vec::new(), Vec::new(), Vec::new());
    for (row, query) in work.queries.chunks_exact(work.dim).enumerate() {
        let copies = &copies[work.parts_of(row / work.group())];
        let found = find(work, &layout, copies, (query, work.floors[row]));
        let failed = found.as_ref().err().copied().unwrap_or(0);
        let (mut keys, least) = found.unwrap_or_default();
        keys.resize(n_told, (0, 0));
        scores.extend(keys.iter().map(|(score, _)| *score));
        ids.extend(keys.iter().map(|(_, id)| *id));
        status.extend([failed, least.to_bits()]);
    }
    let mut bytes = vec![0; layout.found_bytes()];
    let parts = [
        (layout.found_scores, scores),
        (layout.found_ids, ids),
        (layout.status, status),
    ];
    for (at, words) in parts {
        let words: &[u8] = bytemuck::cast_slice(&words);
        bytes[at..at + words.len()].copy_from_slice(words);
    }
    bytes
}

/// Keys' scores and numbers, and what was learnt from a sample.
type Keys = (Vec<(u32, u32)>, f32);

/// The best keys of one query.
fn find(
    work: &Search<'_>,
    layout: &Layout,
    copies: &[Copied<'_>],
    (query, floor): (&[f32], f32),
) -> Result<Keys, u32> {
    let all = copies.iter().map(|copy| Tables::new(copy, query));
    let all = all.collect::<Option<Vec<_>>>().ok_or(NO_TABLES)?;
    let both = || copies.iter().zip(&all);
    // Lists, in order: score, part, list.
    let mut lists = Vec::new();
    for (part, (copy, tables)) in both().enumerate() {
        for list in 0..copy.part.room.lists {
            let score = copy.packed(Section::Lists, &tables.lists, list) + tables.centres[0];
            lists.push((entered(score), (part, list)));
        }
    }
    let mut ranked = best(&lists, layout.ranked.k);
    // How much of a list's score is for its width.
    let above = |(_, (part, list)): &Ranked| all[*part].above[copies[*part].width(*list)];
    // One that is far from the list's other keys may reach the floor.
    let reach = |above: f32| (0.5 * above).max(4.5 * above - 4.6);
    let always = best(&ranked, work.effort.probed / 160);
    ranked.retain(|list| always.contains(list) || unordered(list.0) + reach(above(list)) >= floor);
    let opened = limit(work, copies, ranked);
    let n_first = opened.iter().filter(|list| list.0 > 0).count() / 4;
    let first = best(&opened, n_first);
    let mut keys = Vec::new();
    for list in &first {
        open(copies, &all, list, &mut keys);
    }
    let least = kth(keys.iter().map(|(score, _)| *score), work.effort.kept);
    let later = opened.iter().filter(|list| !first.contains(list));
    // Unless there is room for all.
    let is_full = least > floor;
    for list in later.filter(|list| !is_full || unordered(list.0) + 0.5 * above(list) >= least) {
        open(copies, &all, list, &mut keys);
    }
    if sizes(copies, &opened).sum::<usize>() > layout.room {
        return Err(NO_ROOM);
    }
    keys.sort_by_key(|(_, id)| *id);
    let mut sampled = f32::NEG_INFINITY;
    for (number, (copy, tables)) in both().enumerate() {
        let part = copy.part;
        let segment = part.segment;
        let mut newest = vec![(0, 0); if part.is_era() { 0 } else { part.keys }];
        for (key, place) in newest.iter_mut().enumerate() {
            if !copy.is_outlier(key) {
                let product = copy.packed(Section::Keys, &tables.fine, key);
                let score = entered(product + tables.centres[key / segment]);
                *place = (score, part.id + key as u32);
            }
        }
        let (wanted, from, sample) = work.sample(segment);
        if number == 0 && newest.len() > from {
            let of_segments = newest.chunks(segment).flat_map(|s| &s[sample.clone()]);
            sampled = kth(of_segments.map(|(score, _)| *score), wanted);
        }
        for (key, product) in copy.outliers(tables) {
            let score = entered(product + tables.centres[key / segment]);
            let told = (score, part.id + key as u32);
            if part.is_era() {
                keys.push(told);
            } else {
                newest[key] = told;
            }
        }
        keys.extend(newest);
    }
    keys.retain(|(score, _)| *score > 0);
    Ok((best(&keys, layout.told.k), sampled))
}

/// The best of scores that are something, in their order; of equal ones the first.
fn best<T: Copy>(all: &[(u32, T)], k: usize) -> Vec<(u32, T)> {
    let scores: Vec<u32> = all.iter().map(|(score, _)| *score).collect();
    let places = crate::reference::top(&scores, k);
    let best = places.iter().map(|place| all[*place as usize]);
    best.filter(|(score, _)| *score > 0).collect()
}

/// The `k`-th best score, no score at all if there are fewer.
fn kth(scores: impl Iterator<Item = u32>, k: usize) -> f32 {
    let mut scores: Vec<u32> = scores.filter(|score| *score > 0).collect();
    scores.sort_unstable_by(|a, b| b.cmp(a));
    let kth = k.checked_sub(1).and_then(|k| scores.get(k));
    kth.map_or(f32::NEG_INFINITY, |score| unordered(*score))
}

/// A list's score, its part and number.
type Ranked = (u32, (usize, usize));

fn sizes(copies: &[Copied<'_>], lists: &[Ranked]) -> impl Iterator<Item = usize> {
    lists
        .iter()
        .map(|(_, (part, list))| copies[*part].places(*list).len())
}

/// Leaves out the worst lists where they are long.
fn limit(work: &Search<'_>, copies: &[Copied<'_>], ranked: Vec<Ranked>) -> Vec<Ranked> {
    let probed = work.effort.probed;
    if sizes(copies, &ranked).sum::<usize>() <= probed + probed / 2 {
        return ranked;
    }
    let mut sorted = ranked.clone();
    sorted.sort_by_key(|list| std::cmp::Reverse(list.0));
    let mut before = 0;
    let kept = sizes(copies, &sorted).take_while(|size| {
        let is_kept = before < probed;
        before += size;
        is_kept
    });
    let kept = kept.count();
    best(&ranked, kept)
}

/// Scores the keys of a list.
fn open(copies: &[Copied<'_>], all: &[Tables], list: &Ranked, keys: &mut Vec<(u32, u32)>) {
    let (score, (part, list)) = *list;
    let (copy, tables) = (&copies[part], &all[part]);
    let offset = unordered(score) - tables.above[copy.width(list)];
    for key in copy.places(list).filter(|key| !copy.is_outlier(*key)) {
        let score = copy.packed(Section::Keys, &tables.fine, key) + offset;
        keys.push((entered(score), copy.part.id + key as u32));
    }
}

/// A part and its bytes.
struct Copied<'a> {
    part: &'a Part,
    bytes: &'a [u8],
    /// Where each list ends.
    ends: Vec<u32>,
}

impl<'a> Copied<'a> {
    fn new(part: &'a Part, bytes: &'a [u8]) -> Self {
        let mut copy = Self {
            part,
            bytes,
            ends: Vec::new(),
        };
        copy.ends = copy.words(Section::ListEnds);
        copy
    }

    fn section(&self, section: Section) -> &[u8] {
        let room = &self.part.room;
        &self.bytes[room.offset(section)..][..room.section_bytes(section)]
    }

    fn words<T: bytemuck::AnyBitPattern>(&self, section: Section) -> Vec<T> {
        let words = self.section(section).chunks_exact(size_of::<T>());
        words.map(bytemuck::pod_read_unaligned).collect()
    }

    /// What the code of a vector stands for, under a table.
    fn packed(&self, section: Section, table: &Table, i: usize) -> f32 {
        table.score(self.section(section), i)
    }

    fn is_outlier(&self, key: usize) -> bool {
        self.section(Section::Marks)[key / 8] >> (key % 8) & 1 == 1
    }

    fn width(&self, list: usize) -> usize {
        usize::from(self.section(Section::WidthCodes)[list])
    }

    fn places(&self, list: usize) -> std::ops::Range<usize> {
        let start = if list == 0 { 0 } else { self.ends[list - 1] };
        start as usize..self.ends[list] as usize
    }

    /// Keys and their products.
    fn outliers(&self, tables: &Tables) -> Vec<(usize, f32)> {
        let (dim, [n_on, n_beyond]) = (self.part.room.dim, self.part.outliers);
        let [on, beyond]: [Vec<u32>; 2] =
            [Section::On, Section::Beyond].map(|section| self.words(section));
        let mut all = Vec::new();
        for (i, key) in on[..n_on].iter().enumerate() {
            let (mut product, mut codes) = (0.0, self.section(Section::OutlierCodes));
            for table in &tables.outliers {
                let of_run = self.part.room.on.div_ceil(GROUP) * table.bytes.len();
                product += table.score(&codes[..of_run], i);
                codes = &codes[of_run..];
            }
            all.push((*key as usize, product));
        }
        let vectors: Vec<f32> = self.words(Section::Vectors);
        for (key, vector) in beyond[..n_beyond].iter().zip(vectors.chunks_exact(dim)) {
            all.push((*key as usize, dot(&tables.mapped, vector)));
        }
        all
    }

    /// Products of a query with the centroids of a codebook.
    fn table(&self, [axes, ends, book]: [Section; 3], query: &[f32]) -> Vec<f32> {
        let (axes, ends) = (self.words::<u16>(axes), self.words::<u16>(ends));
        let book: Vec<[f32; CENTROIDS]> = self.words(book);
        let (mut table, mut from) = (Vec::new(), 0);
        for end in ends {
            let mut row = [0f32; CENTROIDS];
            for i in from..usize::from(end) {
                let q = query[usize::from(axes[i])];
                row.iter_mut().zip(&book[i]).for_each(|(r, c)| *r += q * c);
            }
            table.extend(row);
            from = usize::from(end);
        }
        table
    }
}

/// A table in bytes.
struct Table {
    lut: Lut,
    bytes: Vec<u8>,
}

impl Table {
    /// `None` if it holds what is no number.
    fn new(floats: &[f32]) -> Option<Self> {
        let mut lut = Lut::new(floats.len() / CENTROIDS);
        lut.quantize(floats).ok()?;
        let entries = (0..lut.m()).flat_map(|s| (0..CENTROIDS).map(move |c| (s, c)));
        let bytes = entries.map(|(s, c)| lut.entry(s, c)).collect();
        Some(Self { lut, bytes })
    }

    /// What the code of a vector stands for.
    fn score(&self, codes: &[u8], i: usize) -> f32 {
        let len = self.bytes.len();
        let sums = scan(&codes[i / GROUP * len..][..len], &self.bytes);
        self.lut.score(sums[i % GROUP])
    }
}

/// What one query is to one part.
struct Tables {
    mapped: Vec<f32>,
    centres: Vec<f32>,
    above: [f32; CENTROIDS],
    lists: Table,
    fine: Table,
    outliers: Vec<Table>,
}

impl Tables {
    /// `None` if they are no numbers.
    fn new(copy: &Copied<'_>, query: &[f32]) -> Option<Self> {
        let dim = query.len();
        let products = |section, with: &[f32]| -> Vec<f32> {
            let rows: Vec<f32> = copy.words(section);
            rows.chunks_exact(dim).map(|row| dot(row, with)).collect()
        };
        let map: Vec<f32> = copy.words(Section::QueryMap);
        let tiles = map.as_chunks::<TILE>().0.chunks_exact(dim);
        let mapped = tiles.flat_map(|tile| tile_logits([query], tile)[0]);
        let mapped: Vec<f32> = mapped.take(dim).collect();
        use Section::{CoarseAxes, CoarseBook, CoarseEnds, FineAxes, FineBook, FineEnds};
        let (mut above, mut lists) = ([0.0; CENTROIDS], vec![0.0; EXTRA * CENTROIDS]);
        if copy.part.is_era() {
            let square = mapped.iter().map(|v| v * v).sum::<f32>() / dim as f32;
            let widths: Vec<f32> = copy.words(Section::Widths);
            above = std::array::from_fn(|i| widths[i] * square.sqrt());
            lists = copy.table([CoarseAxes, CoarseEnds, CoarseBook], &mapped);
            lists.extend(above);
            lists.extend([0.0; CENTROIDS]);
        }
        let levels: [f32; CENTROIDS] = std::array::from_fn(|i| i as f32);
        let step = copy.part.step;
        let high = mapped.iter().flat_map(|q| {
            let zero = q * step * (0.5 - 128.0);
            levels.map(|level| zero + q * step * 16.0 * level)
        });
        let low = mapped
            .iter()
            .flat_map(|q| levels.map(|level| q * step * level));
        let grid: Vec<f32> = high.chain(low).collect();
        Some(Self {
            centres: products(Section::Centres, &mapped),
            above,
            lists: Table::new(&lists)?,
            fine: Table::new(&copy.table([FineAxes, FineEnds, FineBook], &mapped))?,
            outliers: (grid.chunks(MAX_M * CENTROIDS).map(Table::new)).collect::<Option<_>>()?,
            mapped,
        })
    }
}
