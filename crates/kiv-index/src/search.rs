//! Finding the keys that score highest.

use crate::best::{Best, Candidate};
use crate::head::{HeadIndex, IndexError};
use crate::marks::Marks;
use crate::outliers::OutlierTables;
use kiv_fastscan::{CENTROIDS, GROUP, Isa, Lut, LutError, at_least, scan_groups, scan_many};
use kiv_numeric::dot;

/// Marks numbers of keys that are tokens; others are places.
const TOKEN: u32 = 1 << 31;

/// One of so many newest keys is looked at first.
const SAMPLED: usize = 16;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Keys of eras whose lists are opened, per query, about.
    pub probed: usize,
    /// Best keys that are told, per query.
    pub kept: usize,
}

/// What a search found: for every query some keys, best or not, in no order
/// that means anything, each once.
#[derive(Clone, Debug, Default)]
pub struct Hits {
    /// Where each query's hits end.
    ends: Vec<usize>,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

impl Hits {
    /// Tokens that a query scores high, and their approximate products with it.
    ///
    /// # Panics
    /// If there was no such query.
    #[must_use]
    pub fn of(&self, query: usize) -> (&[u32], &[f32]) {
        let start = if query == 0 { 0 } else { self.ends[query - 1] };
        let hits = start..self.ends[query];
        (&self.tokens[hits.clone()], &self.logits[hits])
    }

    fn clear(&mut self) {
        self.ends.clear();
        self.tokens.clear();
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
    /// An era's lists, or its groups of keys.
    marks: Marks,
    lists: Vec<u32>,
    groups: Vec<u32>,
    eras: Vec<EraScratch>,
    newest: Vec<NewestTables>,
    newest_luts: Vec<Lut>,
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
}

/// What one query is to one era.
#[derive(Clone, Debug, Default)]
struct EraTables {
    /// Product with what was subtracted from all keys.
    centre: f32,
    /// What a list's score has for its width.
    above: [f32; CENTROIDS],
    outliers: OutlierTables,
}

/// What one query is to the newest keys.
#[derive(Clone, Debug, Default)]
struct NewestTables {
    /// Product with what was subtracted from the keys of each segment, the tail's last.
    centres: Vec<f32>,
    outliers: OutlierTables,
}

impl HeadIndex {
    /// Keys that score highest for queries `[n_queries, dim]`. What one of them
    /// has opened is looked at for all, so they had better be alike: the heads
    /// of one group, or neighbours.
    ///
    /// # Errors
    /// [`IndexError::BadQuery`].
    pub fn search(
        &self,
        isa: Isa,
        queries: &[f32],
        effort: Effort,
        scratch: &mut Scratch,
        hits: &mut Hits,
    ) -> Result<(), IndexError> {
        hits.clear();
        if queries.iter().any(|v| !v.is_finite()) {
            return Err(IndexError::BadQuery);
        }
        self.make_tables(queries, scratch)
            .map_err(|_| IndexError::BadQuery)?;
        self.rank_lists(isa, effort.probed / self.params().list, scratch);
        // The best lists' keys come first: hardly any of the others get past them.
        let mut best = std::mem::take(&mut scratch.best);
        let opened = best
            .iter()
            .map(|best| self.lists_to_open(best, effort.probed));
        let opened: Vec<Vec<u32>> = opened.collect();
        best.iter_mut().for_each(|best| best.want(effort.kept));
        self.score_eras(isa, &opened, &mut best, scratch);
        self.score_newest(isa, effort.kept, &mut best, scratch);
        self.score_tail(isa, queries, &mut best, scratch);
        let era_len = self.params().era_len();
        for best in &mut best {
            best.settle();
            hits.tokens.extend(best.found().iter().map(|key| {
                let id = key.id();
                if id & TOKEN == 0 {
                    self.eras[id as usize / era_len].token_at(id as usize % era_len)
                } else {
                    id & !TOKEN
                }
            }));
            hits.logits
                .extend(best.found().iter().map(|key| key.score()));
            hits.ends.push(hits.tokens.len());
        }
        scratch.best = best;
        Ok(())
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
                tables.outliers.fill(&era.grid, query, &mut s.table)?;
            }
        }
        let Some(newest) = &self.newest else {
            return Ok(());
        };
        s.mapped.clear();
        newest.space.map_queries(queries, &mut s.mapped);
        s.newest.resize_with(n_queries, NewestTables::default);
        s.newest_luts
            .resize_with(n_queries, || Lut::new(params.fine));
        for (i, query) in s.mapped.chunks_exact(params.dim).enumerate() {
            s.table.clear();
            newest.fine.table(query, &mut s.table);
            s.newest_luts[i].quantize(&s.table)?;
            let tables = &mut s.newest[i];
            tables.centres.clear();
            let centres = (0..=newest.n_segments()).map(|i| dot(query, newest.centre(i)));
            tables.centres.extend(centres);
            tables.outliers.fill(&newest.grid, query, &mut s.table)?;
        }
        Ok(())
    }

    /// Scores the means of all lists: `scratch.best` are the best of each query,
    /// numbered by era and list.
    fn rank_lists(&self, isa: Isa, wanted: usize, scratch: &mut Scratch) {
        let Scratch {
            best, ids, eras, ..
        } = scratch;
        best.iter_mut().for_each(|best| best.want(wanted.max(1)));
        for (number, (era, s)) in self.eras.iter().zip(eras).enumerate() {
            let n = era.lists().n_sums();
            s.lists.resize(s.luts.len() * n, 0);
            scan_many(isa, &s.list_luts, era.lists().groups(), &mut s.lists);
            let first = (number * self.params().era_len()) as u32;
            for (query, best) in best.iter_mut().enumerate() {
                let scores = Scores {
                    lut: &s.list_luts[query],
                    offset: s.queries[query].centre,
                    sums: &s.lists[query * n..][..era.lists().len()],
                };
                scores.compete(isa, best, ids, |list| Some(first + list));
            }
        }
        best.iter_mut().for_each(Best::settle);
    }

    /// The best lists, numbered by era and list: fewer where they are long, as with keys
    /// that are all alike.
    fn lists_to_open(&self, best: &Best, probed: usize) -> Vec<u32> {
        let era_len = self.params().era_len() as u32;
        let size = |list: &Candidate| {
            let era = &self.eras[(list.id() / era_len) as usize];
            era.places((list.id() % era_len) as usize).len()
        };
        let mut lists = best.found().to_vec();
        if lists.iter().map(size).sum::<usize>() > probed + probed / 2 {
            lists.sort_unstable_by(|a, b| b.cmp(a));
            let mut keys = 0;
            let end = lists.iter().position(|list| {
                keys += size(list);
                keys >= probed
            });
            lists.truncate(end.map_or(lists.len(), |end| end + 1));
        }
        lists.iter().map(|list| list.id()).collect()
    }

    /// Scores the keys of the lists that any query has opened, and outliers.
    fn score_eras(&self, isa: Isa, opened: &[Vec<u32>], best: &mut [Best], scratch: &mut Scratch) {
        let Scratch {
            sums,
            marks,
            lists,
            groups,
            eras,
            products,
            ..
        } = scratch;
        let era_len = self.params().era_len() as u32;
        for (number, (era, s)) in self.eras.iter().zip(&*eras).enumerate() {
            let first = number as u32 * era_len;
            marks.clear(era.lists().len());
            for list in opened.iter().flatten() {
                // Those of earlier eras wrap around.
                let list = list.wrapping_sub(first);
                if list < era_len {
                    marks.mark(list as usize);
                }
            }
            marks.collect(lists);
            marks.clear(era.keys().n_sums() / GROUP);
            for list in &*lists {
                let places = era.places(*list as usize);
                (places.start / GROUP..places.end.div_ceil(GROUP)).for_each(|g| marks.mark(g));
            }
            marks.collect(groups);
            let n = groups.len() * GROUP;
            let sums_of_keys = first_sums(sums, s.luts.len() * n);
            scan_groups(isa, &s.luts, era.keys().groups(), groups, sums_of_keys);
            let (mut group, n_lists) = (0, era.lists().n_sums());
            for list in &*lists {
                let places = era.places(*list as usize);
                // Groups that follow each other in the era do so here.
                while (groups[group] as usize) < places.start / GROUP {
                    group += 1;
                }
                let at = group * GROUP + places.start % GROUP;
                let width = era.width(*list as usize);
                for (query, best) in best.iter_mut().enumerate() {
                    let list_sum = s.lists[query * n_lists + *list as usize];
                    let tables = &s.queries[query];
                    let mean = s.list_luts[query].score(list_sum) - tables.above[width];
                    let offset = tables.centre + mean;
                    let (lut, least) = (&s.luts[query], best.least());
                    let sums = &sums_of_keys[query * n + at..][..places.len()];
                    for (place, sum) in places.clone().zip(sums) {
                        let score = lut.score(*sum) + offset;
                        // Outliers are told apart.
                        if score >= least && !era.is_outlier.has(place) {
                            best.push(score, first + place as u32);
                        }
                    }
                    best.thin();
                }
            }
            for (tables, best) in s.queries.iter().zip(&mut *best) {
                products.clear();
                era.outliers.score(isa, &tables.outliers, sums, products);
                for (place, product) in era.outliers.tokens().zip(&*products) {
                    best.push(*product + tables.centre, first + place);
                }
                best.thin();
            }
        }
    }

    /// Scores all of the newest keys.
    fn score_newest(&self, isa: Isa, kept: usize, best: &mut [Best], scratch: &mut Scratch) {
        let Some(newest) = &self.newest else {
            return;
        };
        let Scratch {
            sums,
            ids,
            products,
            newest: tables,
            newest_luts: luts,
            ..
        } = scratch;
        let segment = self.params().segment;
        let mut score = |number: usize, few: bool, best: &mut [Best]| {
            let first = number * segment;
            // Some from the middle of each segment.
            let (from, to) = if few {
                let half = (segment / SAMPLED / 2).next_multiple_of(GROUP);
                (segment / 2 - half.min(segment / 2), segment / 2 + half)
            } else {
                (0, segment)
            };
            let (from, to) = (from / GROUP * GROUP, to.min(segment));
            let groups = (first + from) / GROUP..(first + to) / GROUP;
            let n = groups.len() * GROUP;
            let sums = first_sums(sums, luts.len() * n);
            scan_many(isa, luts, newest.keys().some(groups), sums);
            for (query, best) in best.iter_mut().enumerate() {
                let scores = Scores {
                    lut: &luts[query],
                    offset: tables[query].centres[number],
                    sums: &sums[query * n..][..n],
                };
                scores.compete(isa, best, ids, |i| {
                    let token = first + from + i as usize;
                    let is_usual = !newest.is_outlier.has(token);
                    is_usual.then_some(TOKEN | (newest.first + token) as u32)
                });
            }
        };
        if self.eras.is_empty() && newest.n_segments() * segment > 4 * kept {
            // Where the best begin is learnt from a few, so that few others are moved.
            // Half as many more than there should be: the sample is rough.
            let some = kept * 3 / 2 / SAMPLED + GROUP;
            best.iter_mut().for_each(|best| best.want(some));
            (0..newest.n_segments()).for_each(|number| score(number, true, best));
            for best in &mut *best {
                best.settle();
                best.want_above(kept);
            }
        }
        (0..newest.n_segments()).for_each(|number| score(number, false, best));
        for (tables, best) in tables.iter().zip(best) {
            products.clear();
            newest.outliers.score(isa, &tables.outliers, sums, products);
            for (token, product) in newest.outliers.tokens().zip(&*products) {
                let centre = tables.centres[token as usize / segment];
                best.push(product + centre, TOKEN | (newest.first as u32 + token));
            }
            best.thin();
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
            newest: tables,
            newest_luts: luts,
            ..
        } = scratch;
        let codes = &self.tail.codes;
        let outliers = &self.tail.outliers;
        let n = codes.n_sums();
        let sums_of_tail = first_sums(sums, luts.len() * n);
        scan_many(isa, luts, codes.groups(), sums_of_tail);
        for (query, best) in best.iter_mut().enumerate() {
            let scores = Scores {
                lut: &luts[query],
                offset: tables[query].of_tail(),
                sums: &sums_of_tail[query * n..][..codes.len()],
            };
            scores.compete(isa, best, ids, |i| {
                (!outliers.contains(i as usize)).then(|| first + i)
            });
        }
        for (tables, best) in tables.iter().zip(best) {
            products.clear();
            outliers.score(isa, &tables.outliers, sums, products);
            for (token, product) in outliers.tokens().zip(&*products) {
                best.push(product + tables.of_tail(), first + token);
            }
            best.thin();
        }
    }
}

impl NewestTables {
    fn of_tail(&self) -> f32 {
        self.centres.last().copied().unwrap_or(0.0)
    }
}

/// The first `n` sums, whatever is in them.
fn first_sums(sums: &mut Vec<u16>, n: usize) -> &mut [u16] {
    if sums.len() < n {
        sums.resize(n, 0);
    }
    &mut sums[..n]
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

    /// Enters those that have a number and may be among the best.
    fn compete(
        &self,
        isa: Isa,
        best: &mut Best,
        ids: &mut Vec<u32>,
        number: impl Fn(u32) -> Option<u32>,
    ) {
        let wanted = best.least() - self.offset;
        let least = self.lut.sum_for(wanted);
        // The largest sum may score less than that, too.
        if self.lut.score(least) >= wanted {
            ids.clear();
            at_least(isa, self.sums, least, ids);
            for i in &*ids {
                if let Some(number) = number(*i) {
                    best.push(self.score(*i as usize), number);
                }
            }
            best.thin();
        }
    }
}
