//! Finding the keys that score highest.

use crate::era::Era;
use crate::head::{HeadIndex, IndexError};
use crate::outliers::OutlierTables;
use crate::packed::PackedCodes;
use kiv_fastscan::{GROUP, Isa, Lut, LutError, at_least, scan, scan_groups, scan_many};
use kiv_numeric::dot;
use std::ops::Range;

/// Scores looked at to find out where the best few begin.
const SAMPLE: usize = 1024;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Parts of 32 clusters whose clusters are scored, per query, about.
    pub parts: usize,
    /// Tokens whose clusters are opened, per query, about.
    pub probed: usize,
    /// Best keys that are told, per query, about.
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

    fn push(&mut self, token: usize, logit: f32) {
        self.tokens.push(token as u32);
        self.logits.push(logit);
    }
}

/// Memory that searches use again and again.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    mapped: Vec<f32>,
    table: Vec<f32>,
    sample: Vec<f32>,
    sums: Vec<u16>,
    ids: Vec<u32>,
    /// Bit set of an era's groups.
    groups: Vec<u64>,
    eras: Vec<EraScratch>,
    /// Products with the keys of the tail that are in no codes, or outliers:
    /// by query, token of the tail and product.
    tail: Vec<Vec<(u32, f32)>>,
    /// Sums of the tail, `[n_queries, n]`.
    tail_sums: Vec<u16>,
}

/// One era's part of a search.
#[derive(Clone, Debug, Default)]
struct EraScratch {
    /// By query.
    parts_luts: Vec<Lut>,
    coarse_luts: Vec<Lut>,
    fine_luts: Vec<Lut>,
    queries: Vec<Tables>,
    /// Sums of the parts, `[n_queries, n_parts]`.
    parts: Vec<u16>,
    clusters: Opened,
    keys: Opened,
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

/// Groups of an era's clusters or keys that are looked at.
#[derive(Clone, Debug, Default)]
struct Opened {
    /// Ascending.
    groups: Vec<u32>,
    /// Where each segment's end in `groups`.
    ends: Vec<usize>,
    /// Sums, `[n_queries, 32 * groups]`.
    sums: Vec<u16>,
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
        let n_queries = queries.len() / self.params().dim;
        // Where all parts are opened, which is best makes no difference.
        let n_parts: usize = self.eras.iter().map(|era| era.parts().len()).sum();
        let ranked = effort.parts < n_parts;
        self.make_tables(isa, queries, ranked, scratch)
            .map_err(|_| IndexError::BadQuery)?;
        if ranked {
            self.rank_parts(isa, effort.parts, n_parts, scratch);
        } else {
            for (era, s) in self.eras.iter().zip(&mut scratch.eras) {
                s.clusters.take_all(era.parts().len());
            }
        }
        self.scan_clusters(isa, scratch);
        self.open_clusters(isa, effort.probed / self.params().cluster, scratch);
        self.scan_tail(isa, queries, scratch);
        for query in 0..n_queries {
            self.keep_best(isa, query, effort.kept, scratch, hits);
            hits.ends.push(hits.tokens.len());
        }
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
        for (era, part) in self.eras.iter().zip(&mut s.eras) {
            s.mapped.clear();
            era.space.map_queries(queries, &mut s.mapped);
            let coarse = || Lut::new(params.coarse_m());
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
                    .score(isa, &tables.outliers, &mut s.sums, products);
                for (product, token) in products.iter_mut().zip(era.outliers.tokens()) {
                    *product += tables.centres[token as usize / params.segment];
                }
            }
        }
        Ok(())
    }

    /// Scores all parts, and takes those that promise most to any query.
    fn rank_parts(&self, isa: Isa, wanted: usize, n_parts: usize, scratch: &mut Scratch) {
        let n_queries = scratch.eras.first().map_or(0, |s| s.queries.len());
        for (era, s) in self.eras.iter().zip(&mut scratch.eras) {
            s.parts.resize(n_queries * era.parts().n_sums(), 0);
            scan_many(isa, &s.parts_luts, era.parts().groups(), &mut s.parts);
        }
        let thresholds: Vec<f32> = (0..n_queries)
            .map(|query| {
                let scores = self.eras.iter().zip(&scratch.eras);
                let scores = scores.flat_map(|(era, s)| part_scores(era, s, query));
                let scores = scores.map(|(_, scores)| scores);
                threshold(scores, n_parts, wanted, &mut scratch.sample)
            })
            .collect();
        for (era, s) in self.eras.iter().zip(&mut scratch.eras) {
            let marks = &mut scratch.groups;
            marks.clear();
            marks.resize(era.parts().len().div_ceil(64), 0);
            for (query, threshold) in thresholds.iter().enumerate() {
                for (segment, scores) in part_scores(era, s, query) {
                    scratch.ids.clear();
                    scores.at_least(isa, *threshold, &mut scratch.ids);
                    let first = era.clusters_of(segment).start / GROUP;
                    for id in &scratch.ids {
                        mark(marks, first + *id as usize);
                    }
                }
            }
            s.clusters.take(marks);
        }
    }

    /// Scores the clusters of all parts that were taken.
    fn scan_clusters(&self, isa: Isa, scratch: &mut Scratch) {
        for (era, s) in self.eras.iter().zip(&mut scratch.eras) {
            let ends = (0..era.n_segments()).map(|i| era.clusters_of(i).end / GROUP);
            s.clusters.divide(ends);
            s.clusters.scan(isa, &s.coarse_luts, era.clusters());
        }
    }

    /// Scores the keys of all groups in which the best clusters of any query lie.
    fn open_clusters(&self, isa: Isa, wanted: usize, scratch: &mut Scratch) {
        let n_scored: usize = scratch.eras.iter().map(|s| s.clusters.n_keys()).sum();
        let n_queries = scratch.eras.first().map_or(0, |s| s.queries.len());
        let thresholds: Vec<f32> = (0..n_queries)
            .map(|query| {
                let scores = scratch.eras.iter().flat_map(|s| cluster_scores(s, query));
                let scores = scores.map(|(_, scores)| scores);
                threshold(scores, n_scored, wanted, &mut scratch.sample)
            })
            .collect();
        for (era, s) in self.eras.iter().zip(&mut scratch.eras) {
            let in_segment = self.params().segment / GROUP;
            let marks = &mut scratch.groups;
            marks.clear();
            marks.resize((era.n_segments() * in_segment).div_ceil(64), 0);
            for (query, threshold) in thresholds.iter().enumerate() {
                for (segment, scores) in cluster_scores(s, query) {
                    scratch.ids.clear();
                    scores.at_least(isa, *threshold, &mut scratch.ids);
                    for id in &scratch.ids {
                        let cluster = s.clusters.place(segment, *id as usize);
                        let places = era.places(cluster, segment);
                        if !places.is_empty() {
                            for group in places.start / GROUP..=(places.end - 1) / GROUP {
                                mark(marks, group);
                            }
                        }
                    }
                }
            }
            s.keys.take(marks);
            s.keys
                .divide((1..=era.n_segments()).map(|i| i * in_segment));
            s.keys.scan(isa, &s.fine_luts, era.keys());
        }
    }

    /// Scores the tail: by its codes, or by its keys while it has none.
    fn scan_tail(&self, isa: Isa, queries: &[f32], s: &mut Scratch) {
        let dim = self.params().dim;
        let n_sums = self.tail.codes.n_sums();
        s.tail_sums.clear();
        s.tail.resize_with(queries.len() / dim, Vec::new);
        s.tail.iter_mut().for_each(Vec::clear);
        let Some(last) = s.eras.last() else {
            for (query, products) in queries.chunks_exact(dim).zip(&mut s.tail) {
                let keys = self.tail.keys.chunks_exact(dim).map(|key| dot(query, key));
                products.extend((0..).zip(keys));
            }
            return;
        };
        s.tail_sums.resize(queries.len() / dim * n_sums, 0);
        let outs = s.tail_sums.chunks_exact_mut(n_sums.max(1));
        for (lut, out) in last.fine_luts.iter().zip(outs) {
            scan(isa, lut, self.tail.codes.groups(), out);
        }
        let mut products = Vec::new();
        for (tables, tail) in last.queries.iter().zip(&mut s.tail) {
            products.clear();
            let outliers = &self.tail.outliers;
            outliers.score(isa, &tables.outliers, &mut s.sums, &mut products);
            let centre = tables.centres.last().copied().unwrap_or(0.0);
            let products = products.iter().map(|p| p + centre);
            tail.extend(outliers.tokens().zip(products));
        }
    }

    /// Tells the best of everything that was scored for one query.
    fn keep_best(
        &self,
        isa: Isa,
        query: usize,
        wanted: usize,
        scratch: &mut Scratch,
        hits: &mut Hits,
    ) {
        let Scratch {
            eras,
            tail,
            tail_sums,
            sample,
            ids,
            ..
        } = scratch;
        let tail_first = self.tail_first();
        let n_tail = self.tail.codes.len();
        let tail_scores = eras.last().map(|last| Scores {
            lut: &last.fine_luts[query],
            offset: last.queries[query].centres.last().copied().unwrap_or(0.0),
            sums: &tail_sums[query * self.tail.codes.n_sums()..][..n_tail],
        });
        let n_scored = eras.iter().map(|s| s.keys.n_keys()).sum::<usize>() + n_tail;
        let parts = eras.iter().flat_map(|s| key_scores(s, query));
        let parts = parts.map(|(_, scores)| scores).chain(tail_scores);
        let threshold = threshold(parts, n_scored, wanted, sample);
        for (era, s) in self.eras.iter().zip(&*eras) {
            for (segment, scores) in key_scores(s, query) {
                ids.clear();
                scores.at_least(isa, threshold, ids);
                // Places first, then tokens: these lie anywhere in memory, and a
                // loop of nothing else waits for many of them at a time.
                let known = hits.tokens.len();
                let end = era.clustered_end(segment);
                for id in &*ids {
                    let place = s.keys.place(segment, *id as usize);
                    if place < end {
                        hits.push(place, scores.score(*id as usize));
                    }
                }
                era.places_to_tokens(segment, &mut hits.tokens[known..]);
            }
            let products = &s.queries[query].outlier_products;
            for (token, product) in era.outliers.tokens().zip(products) {
                if *product >= threshold {
                    hits.push(era.first + token as usize, *product);
                }
            }
        }
        if let Some(scores) = tail_scores {
            ids.clear();
            scores.at_least(isa, threshold, ids);
            for id in &*ids {
                if !self.tail.outliers.contains(*id as usize) {
                    hits.push(tail_first + *id as usize, scores.score(*id as usize));
                }
            }
        }
        for (token, product) in &tail[query] {
            if *product >= threshold {
                hits.push(tail_first + *token as usize, *product);
            }
        }
    }
}

impl Opened {
    /// Takes the groups that are marked.
    fn take(&mut self, marks: &[u64]) {
        self.groups.clear();
        for (i, word) in marks.iter().enumerate() {
            let mut word = *word;
            while word != 0 {
                self.groups.push((i * 64) as u32 + word.trailing_zeros());
                word &= word - 1;
            }
        }
    }

    /// Takes all `n` groups.
    fn take_all(&mut self, n: usize) {
        self.groups.clear();
        self.groups.extend(0..n as u32);
    }

    /// Notes where segments end: before these groups.
    fn divide(&mut self, ends: impl Iterator<Item = usize>) {
        self.ends.clear();
        let groups = &self.groups;
        self.ends
            .extend(ends.map(|end| groups.partition_point(|group| (*group as usize) < end)));
    }

    fn scan(&mut self, isa: Isa, luts: &[Lut], codes: &PackedCodes) {
        self.sums.resize(luts.len() * self.n_keys(), 0);
        scan_groups(isa, luts, codes.groups(), &self.groups, &mut self.sums);
    }

    /// Sums for each query.
    fn n_keys(&self) -> usize {
        self.groups.len() * GROUP
    }

    /// A segment's part of `groups`.
    fn of(&self, segment: usize) -> Range<usize> {
        let start = if segment == 0 {
            0
        } else {
            self.ends[segment - 1]
        };
        start..self.ends[segment]
    }

    /// What a segment's `id`-th sum is of.
    fn place(&self, segment: usize, id: usize) -> usize {
        let groups = &self.groups[self.of(segment)];
        groups[id / GROUP] as usize * GROUP + id % GROUP
    }

    /// One query's sums of a segment.
    fn sums(&self, query: usize, segment: usize) -> &[u16] {
        let (n, groups) = (self.n_keys(), self.of(segment));
        &self.sums[query * n..][groups.start * GROUP..groups.end * GROUP]
    }
}

fn mark(marks: &mut [u64], group: usize) {
    marks[group / 64] |= 1 << (group % 64);
}

/// A query's scores of an era's parts, segment by segment.
fn part_scores<'a>(
    era: &'a Era,
    s: &'a EraScratch,
    query: usize,
) -> impl Iterator<Item = (usize, Scores<'a>)> {
    let n = era.parts().n_sums();
    (0..era.n_segments()).map(move |segment| {
        let clusters = era.clusters_of(segment);
        let parts = clusters.start / GROUP..clusters.end / GROUP;
        let scores = Scores {
            lut: &s.parts_luts[query],
            offset: s.queries[query].centres[segment],
            sums: &s.parts[query * n..][parts],
        };
        (segment, scores)
    })
}

/// A query's scores of an era's opened clusters, segment by segment.
fn cluster_scores(s: &EraScratch, query: usize) -> impl Iterator<Item = (usize, Scores<'_>)> {
    (0..s.clusters.ends.len()).map(move |segment| {
        let scores = Scores {
            lut: &s.coarse_luts[query],
            offset: s.queries[query].centres[segment],
            sums: s.clusters.sums(query, segment),
        };
        (segment, scores)
    })
}

/// A query's scores of an era's opened keys, segment by segment.
fn key_scores(s: &EraScratch, query: usize) -> impl Iterator<Item = (usize, Scores<'_>)> {
    (0..s.keys.ends.len()).map(move |segment| {
        let scores = Scores {
            lut: &s.fine_luts[query],
            offset: s.queries[query].centres[segment],
            sums: s.keys.sums(query, segment),
        };
        (segment, scores)
    })
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

    /// Indices of scores of at least `threshold`.
    fn at_least(&self, isa: Isa, threshold: f32, ids: &mut Vec<u32>) {
        let wanted = threshold - self.offset;
        let least = self.lut.sum_for(wanted);
        // The largest sum may score less than that, too.
        if self.lut.score(least) >= wanted {
            at_least(isa, self.sums, least, ids);
        }
    }
}

/// A score that about `wanted` of all `n` exceed, from a sample of them.
fn threshold<'a>(
    parts: impl Iterator<Item = Scores<'a>>,
    n: usize,
    wanted: usize,
    sample: &mut Vec<f32>,
) -> f32 {
    if wanted >= n {
        return f32::NEG_INFINITY;
    }
    // Odd, so that it does not fall in with groups of 32.
    let step = (n / SAMPLE) | 1;
    sample.clear();
    let mut from = 0;
    for part in parts {
        let mut at = from;
        while at < part.sums.len() {
            sample.push(part.score(at));
            at += step;
        }
        from = at - part.sums.len();
    }
    let rank = (sample.len() * wanted).div_ceil(n).clamp(1, sample.len());
    *sample
        .select_nth_unstable_by(rank - 1, |a, b| b.total_cmp(a))
        .1
}
