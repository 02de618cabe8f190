//! Finding the keys that score highest.

use crate::best::Best;
use crate::head::{HeadIndex, IndexError};
use crate::outliers::OutlierTables;
use crate::packed::PackedCodes;
use kiv_fastscan::{GROUP, Isa, Lut, LutError, at_least, scan_groups, scan_many};
use kiv_numeric::dot;

/// Marks numbers of keys that are tokens, those of outliers and of the tail; others
/// are places.
const OTHERS: u32 = 1 << 31;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Parts of 32 clusters whose clusters are scored, per query.
    pub parts: usize,
    /// Tokens whose clusters are opened, per query, if these are of the usual size.
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
    room: Room,
    /// Bit set of an era's groups.
    groups: Vec<u64>,
    eras: Vec<EraScratch>,
    /// By query.
    best: Vec<Best>,
    products: Vec<f32>,
}

impl Scratch {
    fn split(&mut self) -> (&mut [Best], &mut Room, &[EraScratch]) {
        (&mut self.best, &mut self.room, &self.eras)
    }
}

/// One era's part of a search.
#[derive(Clone, Debug, Default)]
struct EraScratch {
    /// By query.
    parts_luts: Vec<Lut>,
    coarse_luts: Vec<Lut>,
    fine_luts: Vec<Lut>,
    queries: Vec<Tables>,
    /// Groups that are looked at, ascending: of clusters, then of keys.
    clusters: Vec<u32>,
    keys: Vec<u32>,
}

/// What one query is to one era.
#[derive(Clone, Debug, Default)]
struct Tables {
    outliers: OutlierTables,
    /// Product with what was subtracted from the keys of each segment, the
    /// tail's last.
    centres: Vec<f32>,
    /// Products with the outliers.
    outlier_products: Vec<f32>,
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
        // Where all parts are opened, which is best makes no difference.
        let n_parts: usize = self.eras.iter().map(|era| era.parts().len()).sum();
        let ranked = effort.parts < n_parts;
        self.make_tables(isa, queries, ranked, scratch)
            .map_err(|_| IndexError::BadQuery)?;
        if ranked {
            self.rank_parts(isa, effort.parts, scratch);
        } else {
            for (era, s) in self.eras.iter().zip(&mut scratch.eras) {
                s.clusters.clear();
                s.clusters.extend(0..era.parts().len() as u32);
            }
        }
        self.open_clusters(isa, effort.probed / self.params().cluster, scratch);
        self.keep_best(isa, queries, effort.kept, scratch, hits);
        Ok(())
    }

    fn make_tables(
        &self,
        isa: Isa,
        queries: &[f32],
        ranked: bool,
        s: &mut Scratch,
    ) -> Result<(), LutError> {
        let params = self.params();
        let n_queries = queries.len() / params.dim;
        s.eras.resize_with(self.eras.len(), EraScratch::default);
        s.best.resize_with(n_queries, Best::default);
        for (era, part) in self.eras.iter().zip(&mut s.eras) {
            s.mapped.clear();
            era.space.map_queries(queries, &mut s.mapped);
            let coarse = || Lut::with_highest(params.coarse_m(), 63);
            part.parts_luts
                .resize_with(n_queries, || Lut::new(params.parts_m()));
            part.coarse_luts.resize_with(n_queries, coarse);
            part.fine_luts
                .resize_with(n_queries, || Lut::new(params.fine));
            part.queries.resize_with(n_queries, Tables::default);
            for (i, query) in s.mapped.chunks_exact(params.dim).enumerate() {
                if ranked {
                    s.table.clear();
                    era.parts_table(query, &mut s.table);
                    part.parts_luts[i].quantize(&s.table)?;
                }
                s.table.clear();
                era.coarse_table(query, &mut s.table);
                part.coarse_luts[i].quantize(&s.table)?;
                s.table.clear();
                era.fine.table(query, &mut s.table);
                part.fine_luts[i].quantize(&s.table)?;
                let tables = &mut part.queries[i];
                tables.centres.clear();
                let centres = (0..=era.n_segments()).map(|i| dot(query, era.centre(i)));
                tables.centres.extend(centres);
                tables.outliers.fill(&era.grid, query, &mut s.table)?;
                tables.outlier_products.clear();
                let products = &mut tables.outlier_products;
                era.outliers
                    .score(isa, &tables.outliers, &mut s.room.sums, products);
                for (product, token) in products.iter_mut().zip(era.outliers.tokens()) {
                    *product += tables.centres[token as usize / params.segment];
                }
            }
        }
        Ok(())
    }

    /// Scores all parts, and takes those that promise most to any query.
    fn rank_parts(&self, isa: Isa, wanted: usize, scratch: &mut Scratch) {
        let Scratch {
            best,
            room,
            groups: marks,
            eras,
            ..
        } = scratch;
        best.iter_mut().for_each(|best| best.want(wanted));
        // Parts are numbered through all eras, and clusters below as well.
        let mut first = 0;
        for (era, s) in self.eras.iter().zip(&*eras) {
            for segment in 0..era.n_segments() {
                let clusters = era.clusters_of(segment);
                let parts = clusters.start / GROUP..clusters.end / GROUP;
                // Sums are of whole groups of parts, which two segments may share.
                let groups = parts.start / GROUP..parts.end.div_ceil(GROUP);
                let n = groups.len() * GROUP;
                let own = parts.start - groups.start * GROUP..parts.end - groups.start * GROUP;
                let sums = first_sums(&mut room.sums, s.queries.len() * n);
                scan_many(isa, &s.parts_luts, era.parts().some(groups), sums);
                for (query, best) in best.iter_mut().enumerate() {
                    let scores = Scores {
                        lut: &s.parts_luts[query],
                        offset: s.queries[query].centres[segment],
                        sums: &sums[query * n..][own.clone()],
                    };
                    let id = |i: u32| Some(first + parts.start as u32 + i);
                    scores.compete(isa, best, &mut room.ids, id);
                }
            }
            first += era.parts().len() as u32;
        }
        best.iter_mut().for_each(Best::settle);
        let mut first = 0;
        for (era, s) in self.eras.iter().zip(eras) {
            let n = era.parts().len() as u32;
            clear_marks(marks, n as usize);
            for part in best.iter().flat_map(|best| best.found()) {
                // Those of earlier eras wrap around.
                let part = part.id().wrapping_sub(first);
                if part < n {
                    mark(marks, part as usize);
                }
            }
            marked(marks, &mut s.clusters);
            first += n;
        }
    }

    /// Scores the clusters of all parts that were taken, and takes the groups of
    /// keys in which the best clusters of any query lie.
    fn open_clusters(&self, isa: Isa, wanted: usize, scratch: &mut Scratch) {
        let n_groups = scratch.eras.iter().map(|s| s.clusters.len()).sum();
        in_passes(n_groups, wanted, scratch, |stride, scratch| {
            let (best, room, eras) = scratch.split();
            let mut first = 0;
            for (era, s) in self.eras.iter().zip(&*eras) {
                let clusters = Level {
                    luts: &s.coarse_luts,
                    codes: era.clusters(),
                    groups: &s.clusters,
                    queries: &s.queries,
                };
                let end = |segment| era.clusters_of(segment).end / GROUP;
                let number = |_, cluster| Some(first + cluster);
                clusters.compete(
                    isa,
                    stride,
                    (0..era.n_segments()).map(end),
                    number,
                    best,
                    room,
                );
                first += era.clusters().len() as u32;
            }
        });
        scratch.best.iter_mut().for_each(Best::settle);
        let Scratch {
            best,
            groups: marks,
            eras,
            ..
        } = scratch;
        let in_segment = self.params().segment / GROUP;
        let mut first = 0;
        for (era, s) in self.eras.iter().zip(eras) {
            let n = era.clusters().len() as u32;
            clear_marks(marks, era.n_segments() * in_segment);
            for cluster in best.iter().flat_map(|best| best.found()) {
                let cluster = cluster.id().wrapping_sub(first);
                if cluster < n {
                    let places = era.places(cluster as usize);
                    if !places.is_empty() {
                        for group in places.start / GROUP..=(places.end - 1) / GROUP {
                            mark(marks, group);
                        }
                    }
                }
            }
            marked(marks, &mut s.keys);
            first += n;
        }
    }

    /// Scores the keys of all groups that were taken, outliers and the tail, and
    /// tells the best for each query.
    fn keep_best(
        &self,
        isa: Isa,
        queries: &[f32],
        wanted: usize,
        scratch: &mut Scratch,
        hits: &mut Hits,
    ) {
        self.score_keys(isa, wanted, scratch);
        self.score_tail(isa, queries, scratch);
        for (query, best) in scratch.best.iter_mut().enumerate() {
            for (era, s) in self.eras.iter().zip(&scratch.eras) {
                let products = &s.queries[query].outlier_products;
                for (token, product) in era.outliers.tokens().zip(products) {
                    best.push(*product, OTHERS | (era.first as u32 + token));
                }
                best.thin();
            }
            best.settle();
            let era_len = self.params().era * self.params().segment;
            hits.tokens.extend(best.found().iter().map(|key| {
                if key.id() & OTHERS == 0 {
                    self.eras[key.id() as usize / era_len].token_at(key.id())
                } else {
                    key.id() & !OTHERS
                }
            }));
            hits.logits
                .extend(best.found().iter().map(|key| key.score()));
            hits.ends.push(hits.tokens.len());
        }
    }

    fn score_keys(&self, isa: Isa, wanted: usize, scratch: &mut Scratch) {
        let in_segment = self.params().segment / GROUP;
        let n_groups = scratch.eras.iter().map(|s| s.keys.len()).sum();
        in_passes(n_groups, wanted, scratch, |stride, scratch| {
            let (best, room, eras) = scratch.split();
            for (era, s) in self.eras.iter().zip(&*eras) {
                let keys = Level {
                    luts: &s.fine_luts,
                    codes: era.keys(),
                    groups: &s.keys,
                    queries: &s.queries,
                };
                let ends = (1..=era.n_segments()).map(|n| n * in_segment);
                // Outliers lie behind a segment's others, and are told apart.
                let number = |segment, place: u32| {
                    let inside = (place as usize) < era.clustered_end(segment);
                    inside.then_some(era.first as u32 + place)
                };
                keys.compete(isa, stride, ends, number, best, room);
            }
        });
    }

    /// Scores the tail: by its codes, or by its keys while it has none.
    fn score_tail(&self, isa: Isa, queries: &[f32], scratch: &mut Scratch) {
        let Scratch {
            best,
            room,
            eras,
            products,
            ..
        } = scratch;
        let dim = self.params().dim;
        let first = OTHERS | self.tail_first() as u32;
        let Some(last) = eras.last() else {
            for (query, best) in queries.chunks_exact(dim).zip(best) {
                for (token, key) in (0..).zip(self.tail.keys.chunks_exact(dim)) {
                    best.push(dot(query, key), first + token);
                }
                best.thin();
            }
            return;
        };
        let (codes, outliers) = (&self.tail.codes, &self.tail.outliers);
        let n = codes.n_sums();
        let sums = first_sums(&mut room.sums, best.len() * n);
        scan_many(isa, &last.fine_luts, codes.groups(), sums);
        for (query, best) in best.iter_mut().enumerate() {
            let scores = Scores {
                lut: &last.fine_luts[query],
                offset: last.queries[query].tail_centre(),
                sums: &sums[query * n..][..codes.len()],
            };
            scores.compete(isa, best, &mut room.ids, |i| {
                (!outliers.contains(i as usize)).then(|| first + i)
            });
        }
        for (tables, best) in last.queries.iter().zip(best) {
            products.clear();
            outliers.score(isa, &tables.outliers, &mut room.sums, products);
            for (token, product) in outliers.tokens().zip(&*products) {
                best.push(*product + tables.tail_centre(), first + token);
            }
            best.thin();
        }
    }
}

impl Tables {
    fn tail_centre(&self) -> f32 {
        self.centres.last().copied().unwrap_or(0.0)
    }
}

/// Calls `pass` to enter every so many groups of `n_groups`: at first some of many, to
/// learn from which score on the best `wanted` begin; then all.
fn in_passes(
    n_groups: usize,
    wanted: usize,
    scratch: &mut Scratch,
    pass: impl Fn(usize, &mut Scratch),
) {
    const SOME: usize = 16;
    if n_groups > 32 * SOME {
        // Half as many more than there should be: the sample is rough.
        let some = wanted * 3 / 2 / SOME + 16;
        scratch.best.iter_mut().for_each(|best| best.want(some));
        pass(SOME, scratch);
        scratch.best.iter_mut().for_each(|best| {
            best.settle();
            best.want_above(wanted);
        });
    } else {
        scratch.best.iter_mut().for_each(|best| best.want(wanted));
    }
    pass(1, scratch);
}

/// The groups before `end`, taken from those that are left.
fn split_off<'a>(rest: &mut &'a [u32], end: usize) -> &'a [u32] {
    let n = rest.partition_point(|group| (*group as usize) < end);
    let (these, later) = rest.split_at(n);
    *rest = later;
    these
}

/// Clusters or keys of an era.
struct Level<'a> {
    /// By query.
    luts: &'a [Lut],
    codes: &'a PackedCodes,
    /// Which are scored.
    groups: &'a [u32],
    queries: &'a [Tables],
}

/// Memory for scores.
#[derive(Clone, Debug, Default)]
struct Room {
    /// Sums of what is being scored, `[n_queries, n]`.
    sums: Vec<u16>,
    ids: Vec<u32>,
    some: Vec<u32>,
}

impl Level<'_> {
    /// Enters every `stride`-th group. Segments end before the groups `ends`; `number`
    /// is told a segment and a place.
    fn compete(
        &self,
        isa: Isa,
        stride: usize,
        ends: impl Iterator<Item = usize>,
        number: impl Fn(usize, u32) -> Option<u32>,
        best: &mut [Best],
        room: &mut Room,
    ) {
        let mut rest = self.groups;
        for (segment, end) in ends.enumerate() {
            let mut groups = split_off(&mut rest, end);
            if stride > 1 {
                room.some.clear();
                // Not the same ones everywhere.
                let some = groups.iter().skip(segment * 5 % stride).step_by(stride);
                room.some.extend(some);
                groups = &room.some;
            }
            if groups.is_empty() {
                continue;
            }
            let n = groups.len() * GROUP;
            let sums = first_sums(&mut room.sums, self.luts.len() * n);
            scan_groups(isa, self.luts, self.codes.groups(), groups, sums);
            for (query, best) in best.iter_mut().enumerate() {
                let scores = Scores {
                    lut: &self.luts[query],
                    offset: self.queries[query].centres[segment],
                    sums: &sums[query * n..][..n],
                };
                scores.compete(isa, best, &mut room.ids, |i| {
                    let group = groups[i as usize / GROUP] * GROUP as u32;
                    number(segment, group + i % GROUP as u32)
                });
            }
        }
    }
}

/// The first `n` sums, whatever is in them.
fn first_sums(sums: &mut Vec<u16>, n: usize) -> &mut [u16] {
    if sums.len() < n {
        sums.resize(n, 0);
    }
    &mut sums[..n]
}

fn clear_marks(marks: &mut Vec<u64>, n: usize) {
    marks.clear();
    marks.resize(n.div_ceil(64), 0);
}

fn mark(marks: &mut [u64], group: usize) {
    marks[group / 64] |= 1 << (group % 64);
}

/// The groups that are marked, ascending.
fn marked(marks: &[u64], groups: &mut Vec<u32>) {
    groups.clear();
    for (i, word) in marks.iter().enumerate() {
        let mut word = *word;
        while word != 0 {
            groups.push((i * 64) as u32 + word.trailing_zeros());
            word &= word - 1;
        }
    }
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
