//! Finding the keys that score highest.

mod elsewhere;

pub use elsewhere::{Finder, Found};

use crate::best::{Best, Candidate};
use crate::head::{HeadIndex, IndexError};
use crate::newest::Newest;
use crate::outliers::OutlierTables;
use kiv_fastscan::{CENTROIDS, GROUP, Isa, Lut, LutError, at_least, scan_groups, scan_many, top_k};
use kiv_numeric::dot;
use std::ops::Range;

/// Marks numbers of keys that are tokens; others are places.
pub(crate) const TOKEN: u32 = 1 << 31;

/// One of so many newest keys is looked at first.
const SAMPLED: usize = 16;

/// One of so many of the best lists is opened at first.
const OPENED_FIRST: usize = 4;

/// Others are opened if keys this much above their score would be among the best, in
/// standard deviations.
const MARGIN: f32 = 0.5;

/// For so many keys that are looked at one list, of the best, is opened whatever the floor is.
const ALWAYS: usize = 160;

/// How far above its list's score a key is at most, nearly: one that a query looks for alone.
const FARTHEST: f32 = 4.5;

/// How far above a query's floor such a key may be that is not found: a hundred times as much
/// of the softmax, and still next to nothing.
const SPARED: f32 = 4.6;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Keys of eras whose lists are opened, per query, about.
    pub probed: usize,
    /// Best keys that are told, per query.
    pub kept: usize,
}

impl Effort {
    /// Best lists that are opened whatever the floor is.
    fn always(self) -> usize {
        self.probed / ALWAYS
    }
}

/// Queries that are searched for together.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// `[n, dim]`.
    pub queries: &'a [f32],
    /// Products with each query from which on a key is worth telling, `[n]`; none at all if
    /// every key is. What a query attends to in any case may leave no room for others.
    pub floors: &'a [f32],
}

impl<'a> From<&'a [f32]> for Asked<'a> {
    fn from(queries: &'a [f32]) -> Self {
        let floors = &[];
        Self { queries, floors }
    }
}

impl Asked<'_> {
    /// From which product on a key is worth telling to a query.
    #[must_use]
    pub fn floor(&self, query: usize) -> f32 {
        let floor = self.floors.get(query).copied();
        floor.unwrap_or(f32::NEG_INFINITY)
    }

    fn check(&self) -> Result<(), IndexError> {
        let is_bad =
            self.queries.iter().any(|v| !v.is_finite()) || self.floors.iter().any(|v| v.is_nan());
        if is_bad {
            return Err(IndexError::BadQuery);
        }
        Ok(())
    }
}

/// What a search found: for every query some keys, best or not, in no order
/// that means anything, each once.
#[derive(Clone, Debug, Default)]
pub struct Hits {
    in_order: bool,
    /// Where each query's hits end.
    ends: Vec<usize>,
    tokens: Vec<u32>,
    /// The same keys' numbers.
    keys: Vec<u32>,
    logits: Vec<f32>,
}

impl Hits {
    /// Tokens that a query scores high, and their approximate products with it.
    ///
    /// # Panics
    /// If there was no such query.
    #[must_use]
    pub fn of(&self, query: usize) -> (&[u32], &[f32]) {
        let hits = self.range(query);
        (&self.tokens[hits.clone()], &self.logits[hits])
    }

    /// Numbers of the same keys, for [`HeadIndex::decode`], as long as the index does not
    /// change.
    ///
    /// # Panics
    /// If there was no such query.
    #[must_use]
    pub fn keys(&self, query: usize) -> &[u32] {
        &self.keys[self.range(query)]
    }

    fn range(&self, query: usize) -> Range<usize> {
        let start = if query == 0 { 0 } else { self.ends[query - 1] };
        start..self.ends[query]
    }

    /// Such that keys are in the order of their numbers: who has found them in which order
    /// then makes no difference to sums over them. It takes a tenth of a short search.
    #[must_use]
    pub fn in_order() -> Self {
        Self {
            in_order: true,
            ..Self::default()
        }
    }

    fn clear(&mut self) {
        self.ends.clear();
        self.tokens.clear();
        self.keys.clear();
        self.logits.clear();
    }
}

/// Memory that searches use again and again.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    mapped: Vec<f32>,
    table: Vec<f32>,
    /// Sums of what is being scored, `[n_queries, n]`.
    sums: Vec<u16>,
    ids: Vec<u32>,
    products: Vec<f32>,
    /// Of an era's keys.
    groups: Vec<u32>,
    eras: Vec<EraScratch>,
    newest: Vec<NewestScratch>,
    /// By query.
    best: Vec<Best>,
}

/// One era's part of a search, by query.
#[derive(Clone, Debug, Default)]
struct EraScratch {
    list_luts: Vec<Lut>,
    /// Sums of all lists, `[n_queries, n]`.
    lists: Vec<u16>,
    luts: Vec<Lut>,
    queries: Vec<EraTables>,
    outliers: OutlierTables,
}

/// What one query is to one era.
#[derive(Clone, Debug, Default)]
struct EraTables {
    /// Product with what was subtracted from all keys.
    centre: f32,
    /// What a list's score has for its width.
    above: [f32; CENTROIDS],
}

/// The newest keys' part of a search, by query.
#[derive(Clone, Debug, Default)]
struct NewestScratch {
    luts: Vec<Lut>,
    /// Products with what was subtracted from the keys of each segment, the tail's last.
    centres: Vec<Vec<f32>>,
    outliers: OutlierTables,
}

impl HeadIndex {
    /// Keys that score highest for each of some queries.
    ///
    /// # Errors
    /// [`IndexError::BadQuery`].
    pub fn search(
        &self,
        isa: Isa,
        asked: Asked<'_>,
        effort: Effort,
        scratch: &mut Scratch,
        hits: &mut Hits,
    ) -> Result<(), IndexError> {
        hits.clear();
        asked.check()?;
        self.make_tables(asked.queries, scratch)
            .map_err(|_| IndexError::BadQuery)?;
        self.rank_lists(isa, asked, effort, scratch);
        // The best lists' keys come first: hardly any of the others get past them.
        let mut best = std::mem::take(&mut scratch.best);
        for (query, best) in best.iter_mut().enumerate() {
            self.open_lists(isa, (query, asked.floor(query)), effort, best, scratch);
        }
        self.score_era_outliers(isa, &mut best, scratch);
        self.sample_newest(isa, asked, effort.kept, &mut best, scratch);
        let mut score_rest = |best: &mut [Best]| {
            self.score_newest(isa, best, scratch);
            self.score_tail(isa, asked.queries, best, scratch);
        };
        score_rest(&mut best);
        if let Some(mut again) = begin_again(asked, &best) {
            score_rest(&mut again);
            put_back(&mut best, again);
        }
        self.tell(&mut best, hits);
        scratch.best = best;
        Ok(())
    }

    fn tell(&self, best: &mut [Best], hits: &mut Hits) {
        let era_len = self.params().era_len();
        for best in best {
            best.settle();
            if hits.in_order {
                best.sort();
            }
            hits.tokens.extend(best.found().iter().map(|key| {
                let id = key.id();
                if id & TOKEN == 0 {
                    self.eras[id as usize / era_len].token_at(id as usize % era_len)
                } else {
                    id & !TOKEN
                }
            }));
            hits.keys.extend(best.found().iter().map(|key| key.id()));
            hits.logits
                .extend(best.found().iter().map(|key| key.score()));
            hits.ends.push(hits.tokens.len());
        }
    }

    fn make_tables(&self, queries: &[f32], s: &mut Scratch) -> Result<(), LutError> {
        let params = self.params();
        let n_queries = queries.len() / params.dim;
        s.best.resize_with(n_queries, Best::default);
        s.eras.resize_with(self.eras.len(), EraScratch::default);
        for (era, of_era) in self.eras.iter().zip(&mut s.eras) {
            s.mapped.clear();
            era.space.map_queries(queries, &mut s.mapped);
            let list_lut = || Lut::new(params.lists_m());
            of_era.list_luts.resize_with(n_queries, list_lut);
            of_era.luts.resize_with(n_queries, || Lut::new(params.fine));
            of_era.queries.resize_with(n_queries, EraTables::default);
            for (i, query) in s.mapped.chunks_exact(params.dim).enumerate() {
                let tables = &mut of_era.queries[i];
                s.table.clear();
                era.lists_table(query, &mut s.table);
                of_era.list_luts[i].quantize(&s.table)?;
                s.table.clear();
                era.fine.table(query, &mut s.table);
                of_era.luts[i].quantize(&s.table)?;
                tables.centre = dot(query, &era.centre);
                tables.above = era.above(query);
            }
            let outliers = &mut of_era.outliers;
            outliers.fill(&era.grid, &s.mapped, params.dim, &mut s.table)?;
        }
        s.newest
            .resize_with(self.newest_parts().count(), NewestScratch::default);
        for (newest, of_part) in self.newest_parts().zip(&mut s.newest) {
            of_part.fill(newest, queries, &mut s.mapped, &mut s.table)?;
        }
        Ok(())
    }

    /// Keys in no era: those that the next one is made of, and those after them.
    pub(crate) fn newest_parts(&self) -> impl Iterator<Item = &Newest> {
        let dividing = self.dividing.iter().map(|dividing| &dividing.newest);
        dividing.chain(&self.newest)
    }

    /// Scores the means of all lists: `scratch.best` are the best of each query,
    /// numbered by era and list. Of those below its floor only the first are among them.
    fn rank_lists(&self, isa: Isa, asked: Asked<'_>, effort: Effort, scratch: &mut Scratch) {
        let wanted = (effort.probed / self.params().list).max(1);
        let Scratch {
            best, ids, eras, ..
        } = scratch;
        for (query, best) in best.iter_mut().enumerate() {
            // No list of any width has keys worth telling if it scores less.
            let widest = eras.iter().flat_map(|era| era.queries[query].above);
            let most = reach(widest.fold(0.0, f32::max));
            let floor = asked.floor(query);
            // However it is rounded.
            let least = floor - most - 4.0 * f32::EPSILON * (floor.abs() + most);
            best.want(wanted, least);
        }
        for (number, (era, s)) in self.eras.iter().zip(&mut *eras).enumerate() {
            let n = era.lists().n_sums();
            s.lists.resize(s.luts.len() * n, 0);
            scan_many(isa, &s.list_luts, era.lists().groups(), &mut s.lists);
            for (query, best) in best.iter_mut().enumerate() {
                self.enter_lists(isa, number, s, query, best, ids);
            }
        }
        for (query, best) in best.iter_mut().enumerate() {
            best.settle();
            let always = effort.always();
            if best.found().len() < always {
                best.want(always, f32::NEG_INFINITY);
                for (number, s) in eras.iter().enumerate() {
                    self.enter_lists(isa, number, s, query, best, ids);
                }
                best.settle();
            }
        }
    }

    /// Enters the lists of an era, which have been scored, for a query.
    fn enter_lists(
        &self,
        isa: Isa,
        number: usize,
        scored: &EraScratch,
        query: usize,
        best: &mut Best,
        ids: &mut Vec<u32>,
    ) {
        let lists = self.eras[number].lists();
        let first = (number * self.params().era_len()) as u32;
        let scores = Scores {
            lut: &scored.list_luts[query],
            offset: scored.queries[query].centre,
            sums: &scored.lists[query * lists.n_sums()..][..lists.len()],
        };
        scores.compete(isa, best, ids, |list| Some(first + list));
    }

    /// Opens the best lists for a query: `best`, which are lists, become keys.
    ///
    /// Some at first, and then those of the others whose keys may be as good as the worst
    /// that are wanted: of lists that are far below not even codes are read. Nor are they of
    /// lists whose keys are below the query's floor, even one that is far from the others.
    fn open_lists(
        &self,
        isa: Isa,
        (query, floor): (usize, f32),
        effort: Effort,
        best: &mut Best,
        scratch: &mut Scratch,
    ) {
        let mut lists = best.found().to_vec();
        let always = effort.always().min(lists.len());
        if always < lists.len() {
            lists.select_nth_unstable_by(always, |a, b| b.cmp(a));
        }
        let mut others = lists.split_off(always);
        let above = |eras: &[EraScratch], list: &Candidate| {
            let era_len = self.params().era_len();
            let (number, of_era) = (list.id() as usize / era_len, list.id() as usize % era_len);
            eras[number].queries[query].above[self.eras[number].width(of_era)]
        };
        others.retain(|list| list.score() + reach(above(&scratch.eras, list)) >= floor);
        lists.append(&mut others);
        self.limit(&mut lists, effort.probed);
        best.want(effort.kept, floor);
        let first = lists.len() / OPENED_FIRST;
        if first > 0 {
            lists.select_nth_unstable_by(first, |a, b| b.cmp(a));
        }
        let (first, others) = lists.split_at_mut(first);
        self.score_lists(isa, query, first, best, scratch);
        best.settle();
        let mut others = others.to_vec();
        // Otherwise there is room for all.
        if best.least() > floor {
            let margin = |list: &Candidate| MARGIN * above(&scratch.eras, list);
            others.retain(|list| list.score() + margin(list) >= best.least());
        }
        self.score_lists(isa, query, &mut others, best, scratch);
    }

    /// Leaves out the worst lists where they are long, as with keys that are all alike.
    fn limit(&self, lists: &mut Vec<Candidate>, probed: usize) {
        let era_len = self.params().era_len() as u32;
        let size = |list: &Candidate| {
            let era = &self.eras[(list.id() / era_len) as usize];
            era.places((list.id() % era_len) as usize).len()
        };
        if lists.iter().map(size).sum::<usize>() > probed + probed / 2 {
            lists.sort_unstable_by(|a, b| b.cmp(a));
            let mut keys = 0;
            let end = lists.iter().position(|list| {
                keys += size(list);
                keys >= probed
            });
            lists.truncate(end.map_or(lists.len(), |end| end + 1));
        }
    }

    /// Scores the keys of some lists for one query.
    fn score_lists(
        &self,
        isa: Isa,
        query: usize,
        lists: &mut [Candidate],
        best: &mut Best,
        scratch: &mut Scratch,
    ) {
        let Scratch {
            sums, groups, eras, ..
        } = scratch;
        // In the order of memory, era by era.
        lists.sort_unstable_by_key(|list| list.id());
        let era_len = self.params().era_len() as u32;
        for lists in lists.chunk_by(|a, b| a.id() / era_len == b.id() / era_len) {
            let number = (lists[0].id() / era_len) as usize;
            let first = number as u32 * era_len;
            let (era, s) = (&self.eras[number], &eras[number]);
            groups.clear();
            for list in lists {
                let places = era.places((list.id() - first) as usize);
                let end = places.end.div_ceil(GROUP) as u32;
                let start = groups.last().map_or(0, |last| last + 1);
                groups.extend(start.max((places.start / GROUP) as u32)..end);
            }
            let sums = first_sums(sums, groups.len() * GROUP);
            let lut = &s.luts[query];
            scan_groups(
                isa,
                std::slice::from_ref(lut),
                era.keys().groups(),
                groups,
                sums,
            );
            let tables = &s.queries[query];
            let mut group = 0;
            for list in lists {
                let number = (list.id() - first) as usize;
                let places = era.places(number);
                // Groups that follow each other in the era do so here.
                while (groups[group] as usize) < places.start / GROUP {
                    group += 1;
                }
                let at = group * GROUP + places.start % GROUP;
                // A list's score is above its mean, and has the centre in it.
                let offset = list.score() - tables.above[era.width(number)];
                let wanted = below(best.least(), offset, lut);
                // Rounded down: what remains is looked at closely.
                let least = ((wanted - lut.bias()) / lut.scale() - 1.0) as u16;
                let sums = &sums[at..][..places.len()];
                for (place, sum) in places.zip(sums) {
                    // Outliers are told apart.
                    if *sum >= least && !era.is_outlier.has(place) {
                        best.push(lut.score(*sum) + offset, first + place as u32);
                    }
                }
                best.thin();
            }
        }
    }

    /// Scores outliers of eras.
    fn score_era_outliers(&self, isa: Isa, best: &mut [Best], scratch: &mut Scratch) {
        let Scratch {
            sums,
            eras,
            products,
            ..
        } = scratch;
        let era_len = self.params().era_len() as u32;
        for (number, (era, s)) in self.eras.iter().zip(&*eras).enumerate() {
            let first = number as u32 * era_len;
            era.outliers.score(isa, &s.outliers, sums, products);
            let products = products.chunks_exact(era.outliers.n().max(1));
            for ((tables, best), products) in s.queries.iter().zip(&mut *best).zip(products) {
                for (place, product) in era.outliers.tokens().zip(products) {
                    best.push(*product + tables.centre, first + place);
                }
                best.thin();
            }
        }
    }

    /// Learns from a few of the newest keys where the best begin, so that few others are moved,
    /// unless eras' keys have told that.
    fn sample_newest(
        &self,
        isa: Isa,
        asked: Asked<'_>,
        kept: usize,
        best: &mut [Best],
        scratch: &mut Scratch,
    ) {
        let Scratch {
            sums, ids, newest, ..
        } = scratch;
        let first = self.newest_parts().zip(newest).next();
        let Some((newest, of_part)) = first.filter(|_| self.eras.is_empty()) else {
            return;
        };
        let segment = self.params().segment;
        let n = newest.n_segments() * segment;
        if n <= kept.saturating_mul(4) {
            return;
        }
        // Half as many more than there should be: the sample is rough.
        let some = kept * 3 / 2 / SAMPLED + GROUP;
        let all = f32::NEG_INFINITY;
        best.iter_mut().for_each(|best| best.want(some, all));
        // From the middle of each segment.
        let half = (segment / SAMPLED / 2).next_multiple_of(GROUP);
        let from = (segment / 2 - half.min(segment / 2)) / GROUP * GROUP;
        let to = (segment / 2 + half).min(segment);
        for first in (0..n).step_by(segment) {
            of_part.score(isa, newest, first + from..first + to, best, sums, ids);
        }
        for (query, best) in best.iter_mut().enumerate() {
            best.settle();
            best.want(kept, best.least().max(asked.floor(query)));
        }
    }

    /// Scores all of the newest keys.
    fn score_newest(&self, isa: Isa, best: &mut [Best], scratch: &mut Scratch) {
        let Scratch {
            sums,
            ids,
            products,
            newest: parts,
            ..
        } = scratch;
        let segment = self.params().segment;
        for (newest, of_part) in self.newest_parts().zip(parts) {
            for first in (0..newest.keys().len()).step_by(segment) {
                of_part.score(isa, newest, first..first + segment, best, sums, ids);
            }
            newest
                .outliers
                .score(isa, &of_part.outliers, sums, products);
            let products = products.chunks_exact(newest.outliers.n().max(1));
            let of_queries = of_part.centres.iter().zip(&mut *best);
            for ((centres, best), products) in of_queries.zip(products) {
                for (token, product) in newest.outliers.tokens().zip(products) {
                    let centre = centres[token as usize / segment];
                    best.push(product + centre, TOKEN | (newest.first as u32 + token));
                }
                best.thin();
            }
        }
    }

    /// Scores the tail: by its codes, or by its keys while it has none.
    fn score_tail(&self, isa: Isa, queries: &[f32], best: &mut [Best], scratch: &mut Scratch) {
        let dim = self.params().dim;
        let first = TOKEN | self.tail_first() as u32;
        if self.newest.is_none() {
            for (query, best) in queries.chunks_exact(dim).zip(best) {
                for (token, key) in (0..).zip(self.tail.keys.chunks_exact(dim)) {
                    best.push(dot(query, key), first + token);
                }
                best.thin();
            }
            return;
        }
        let Scratch {
            sums,
            ids,
            products,
            newest: parts,
            ..
        } = scratch;
        // The tail's codebook is the last one's.
        let Some(of_part) = parts.last() else {
            return;
        };
        let NewestScratch { luts, centres, .. } = of_part;
        let centre = |query: usize| centres[query].last().copied().unwrap_or(0.0);
        let codes = &self.tail.codes;
        let outliers = &self.tail.outliers;
        let n = codes.n_sums();
        let sums_of_tail = first_sums(sums, luts.len() * n);
        scan_many(isa, luts, codes.groups(), sums_of_tail);
        for (query, best) in best.iter_mut().enumerate() {
            let scores = Scores {
                lut: &luts[query],
                offset: centre(query),
                sums: &sums_of_tail[query * n..][..codes.len()],
            };
            scores.compete(isa, best, ids, |i| {
                (!outliers.contains(i as usize)).then(|| first + i)
            });
        }
        outliers.score(isa, &of_part.outliers, sums, products);
        let products = products.chunks_exact(outliers.n().max(1));
        for ((query, best), products) in best.iter_mut().enumerate().zip(products) {
            for (token, product) in outliers.tokens().zip(products) {
                best.push(product + centre(query), first + token);
            }
            best.thin();
        }
    }
}

impl NewestScratch {
    /// Makes tables of queries `[n, dim]`; `mapped` and `table` are scratch.
    fn fill(
        &mut self,
        newest: &Newest,
        queries: &[f32],
        mapped: &mut Vec<f32>,
        table: &mut Vec<f32>,
    ) -> Result<(), LutError> {
        let dim = newest.centre(0).len();
        mapped.clear();
        newest.space.map_queries(queries, mapped);
        let n_queries = queries.len() / dim;
        self.centres.resize_with(n_queries, Vec::new);
        self.luts
            .resize_with(n_queries, || Lut::new(newest.fine.m()));
        for (i, query) in mapped.chunks_exact(dim).enumerate() {
            table.clear();
            newest.fine.table(query, table);
            self.luts[i].quantize(table)?;
            let centres = &mut self.centres[i];
            centres.clear();
            centres.extend((0..=newest.n_segments()).map(|i| dot(query, newest.centre(i))));
        }
        self.outliers.fill(&newest.grid, mapped, dim, table)
    }

    /// Scores the usual ones of some keys of a segment, which are counted from the first of
    /// all: those of whole groups.
    fn score(
        &self,
        isa: Isa,
        newest: &Newest,
        keys: Range<usize>,
        best: &mut [Best],
        sums: &mut Vec<u16>,
        ids: &mut Vec<u32>,
    ) {
        let groups = keys.start / GROUP..keys.end / GROUP;
        let n = groups.len() * GROUP;
        let sums = first_sums(sums, self.luts.len() * n);
        scan_many(isa, &self.luts, newest.keys().some(groups), sums);
        for (query, best) in best.iter_mut().enumerate() {
            let scores = Scores {
                lut: &self.luts[query],
                offset: self.centres[query][keys.start / newest.segment_len()],
                sums: &sums[query * n..][..n],
            };
            scores.compete(isa, best, ids, |i| {
                let key = keys.start + i as usize;
                let is_usual = !newest.is_outlier.has(key);
                is_usual.then_some(TOKEN | (newest.first + key) as u32)
            });
        }
    }
}

/// For queries that a sample has promised too much: from their floors on all is wanted again. A
/// sample may lie in the one passage that a query looks for, and tells nothing of other keys
/// then. What comes for other queries goes nowhere.
fn begin_again(asked: Asked<'_>, best: &[Best]) -> Option<Vec<Best>> {
    let floor = |(query, best): (usize, &Best)| {
        let floor = asked.floor(query);
        best.is_short(floor).then_some(floor)
    };
    let floors = || best.iter().enumerate().map(floor);
    floors().flatten().next()?;
    let mut again = vec![Best::default(); best.len()];
    for ((best, again), floor) in best.iter().zip(&mut again).zip(floors()) {
        let wanted = floor.map_or(0, |_| best.wanted());
        again.want(wanted, floor.unwrap_or(f32::INFINITY));
    }
    Some(again)
}

/// Takes what was found at the second try, where there was one.
fn put_back(best: &mut [Best], again: Vec<Best>) {
    let tried = best.iter_mut().zip(again);
    for (best, again) in tried.filter(|(_, again)| again.wanted() > 0) {
        *best = again;
    }
}

/// How far above a list's score its keys may be for a query's floor, by how much of that score
/// is for the list's width.
///
/// A query that looks for one key alone is long and points to it, and may be the only one of
/// its list that it likes: deviations are of directions that mean nothing to it.
fn reach(above: f32) -> f32 {
    (MARGIN * above).max(FARTHEST * above - SPARED)
}

/// The first `n` sums, whatever is in them.
fn first_sums(sums: &mut Vec<u16>, n: usize) -> &mut [u16] {
    if sums.len() < n {
        sums.resize(n, 0);
    }
    &mut sums[..n]
}

/// What a table's score is at least if it and `offset` are at least `least` together,
/// however sums are rounded: what is found must not depend on the order of looking.
fn below(least: f32, offset: f32, lut: &Lut) -> f32 {
    let size = least.abs() + offset.abs() + lut.bias().abs();
    least - offset - 4.0 * f32::EPSILON * size
}

/// Sums and what they mean.
#[derive(Clone, Copy)]
struct Scores<'a> {
    lut: &'a Lut,
    offset: f32,
    sums: &'a [u16],
}

impl Scores<'_> {
    fn score(&self, i: usize) -> f32 {
        self.lut.score(self.sums[i]) + self.offset
    }

    /// The sum from which on scores may be `least` or more, if there is one.
    fn sum_for(&self, least: f32) -> Option<u16> {
        let wanted = below(least, self.offset, self.lut);
        let sum = self.lut.sum_for(wanted);
        // The largest sum may score less than that, too.
        (self.lut.score(sum) >= wanted).then_some(sum)
    }

    /// How many may be `least` or more.
    fn count(&self, least: f32) -> usize {
        let Some(least) = self.sum_for(least) else {
            return 0;
        };
        self.sums.iter().filter(|sum| **sum >= least).count()
    }

    /// Enters those that have a number and may be among the best.
    fn compete(
        &self,
        isa: Isa,
        best: &mut Best,
        ids: &mut Vec<u32>,
        number: impl Fn(u32) -> Option<u32>,
    ) {
        let mut least = best.least();
        if best.found().is_empty() && self.count(least) > 2 * best.wanted() {
            // The first: no more than are wanted can be among the best, besides those that
            // have no number and take places of theirs.
            let hidden = (0..self.sums.len() as u32).filter(|i| number(*i).is_none());
            let wanted = best.wanted() + hidden.count();
            ids.clear();
            top_k(isa, self.sums, wanted, ids);
            let scores = ids.iter().map(|i| self.score(*i as usize));
            least = least.max(scores.fold(f32::INFINITY, f32::min));
        }
        ids.clear();
        if let Some(least) = self.sum_for(least) {
            at_least(isa, self.sums, least, ids);
        }
        for i in &*ids {
            if let Some(number) = number(*i) {
                best.push(self.score(*i as usize), number);
            }
        }
        best.thin();
    }
}
