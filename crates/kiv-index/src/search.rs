//! Finding the keys that score highest.

use crate::era::Era;
use crate::head::{HeadIndex, IndexError};
use crate::outliers::OutlierTables;
use kiv_fastscan::{GROUP, Isa, Lut, LutError, at_least, group_bytes, scan};
use kiv_numeric::dot;
use std::ops::Range;

/// Scores looked at to find out where the best few begin.
const SAMPLE: usize = 1024;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
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
    queries: Vec<Tables>,
    /// Sums of the clusters, `[n_queries, n_clusters]`.
    clusters: Vec<u16>,
    /// Groups of keys that are looked at, ascending.
    opened: Vec<u32>,
    /// Where each segment's end in `opened`.
    opened_ends: Vec<usize>,
    /// Sums of their keys, `[n_queries, 32 * opened]`.
    keys: Vec<u16>,
}

/// What one query is to one era.
#[derive(Clone, Debug)]
struct Tables {
    coarse: Lut,
    fine: Lut,
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
        let n_queries = queries.len() / self.params().dim;
        self.make_tables(isa, queries, scratch)
            .map_err(|_| IndexError::BadQuery)?;
        self.open_clusters(isa, effort.probed / self.params().cluster, scratch);
        self.scan_keys(isa, scratch);
        self.scan_tail(isa, queries, scratch);
        for query in 0..n_queries {
            self.keep_best(isa, query, effort.kept, scratch, hits);
            hits.ends.push(hits.tokens.len());
        }
        Ok(())
    }

    fn make_tables(&self, isa: Isa, queries: &[f32], s: &mut Scratch) -> Result<(), LutError> {
        let params = self.params();
        let n_queries = queries.len() / params.dim;
        s.eras.resize_with(self.eras.len(), EraScratch::default);
        for (era, part) in self.eras.iter().zip(&mut s.eras) {
            s.mapped.clear();
            era.space.map_queries(queries, &mut s.mapped);
            part.queries.resize_with(n_queries, || Tables {
                coarse: Lut::new(params.coarse_m()),
                fine: Lut::new(params.fine),
                outliers: OutlierTables::default(),
                centres: Vec::new(),
                outlier_products: Vec::new(),
            });
            part.clusters.clear();
            for (query, tables) in s.mapped.chunks_exact(params.dim).zip(&mut part.queries) {
                s.table.clear();
                era.coarse_table(query, &mut s.table);
                tables.coarse.quantize(&s.table)?;
                s.table.clear();
                era.fine.table(query, &mut s.table);
                tables.fine.quantize(&s.table)?;
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
                let at = part.clusters.len();
                part.clusters.resize(at + era.clusters().n_sums(), 0);
                let out = &mut part.clusters[at..];
                scan(isa, &tables.coarse, era.clusters().groups(), out);
            }
        }
        Ok(())
    }

    /// Marks the groups of keys in which the best clusters of any query lie.
    fn open_clusters(&self, isa: Isa, wanted: usize, scratch: &mut Scratch) {
        let n_clusters: usize = self.eras.iter().map(|era| era.clusters().len()).sum();
        let n_queries = scratch.eras.first().map_or(0, |s| s.queries.len());
        let thresholds: Vec<f32> = (0..n_queries)
            .map(|query| {
                let parts = self.eras.iter().zip(&scratch.eras);
                let parts = parts.flat_map(|(era, s)| cluster_scores(era, s, query));
                let parts = parts.map(|(_, scores)| scores);
                threshold(parts, n_clusters, wanted, &mut scratch.sample)
            })
            .collect();
        for (era, s) in self.eras.iter().zip(&mut scratch.eras) {
            let in_segment = self.params().segment / GROUP;
            scratch.groups.clear();
            let n_groups = era.n_segments() * in_segment;
            scratch.groups.resize(n_groups.div_ceil(64), 0);
            for (query, threshold) in thresholds.iter().enumerate() {
                for (segment, scores) in cluster_scores(era, s, query) {
                    scratch.ids.clear();
                    scores.at_least(isa, *threshold, &mut scratch.ids);
                    let first = era.clusters_of(segment).start;
                    for cluster in &scratch.ids {
                        let places = era.places(first + *cluster as usize, segment);
                        if !places.is_empty() {
                            for group in places.start / GROUP..=(places.end - 1) / GROUP {
                                scratch.groups[group / 64] |= 1 << (group % 64);
                            }
                        }
                    }
                }
            }
            s.opened.clear();
            for (i, word) in scratch.groups.iter().enumerate() {
                let mut word = *word;
                while word != 0 {
                    s.opened.push((i * 64) as u32 + word.trailing_zeros());
                    word &= word - 1;
                }
            }
            s.opened_ends.clear();
            let ends = (1..=era.n_segments()).map(|i| {
                s.opened
                    .partition_point(|group| (*group as usize) < i * in_segment)
            });
            s.opened_ends.extend(ends);
        }
    }

    /// Scores the keys of all opened groups.
    fn scan_keys(&self, isa: Isa, scratch: &mut Scratch) {
        let bytes = group_bytes(self.params().fine);
        for (era, s) in self.eras.iter().zip(&mut scratch.eras) {
            let n = s.opened.len() * GROUP;
            s.keys.resize(s.queries.len() * n, 0);
            let mut at = 0;
            for run in s.opened.chunk_by(|a, b| a + 1 == *b) {
                let first = run[0] as usize * bytes;
                let codes = &era.keys().groups()[first..first + run.len() * bytes];
                for (query, tables) in s.queries.iter().enumerate() {
                    let out = query * n + at;
                    let out = &mut s.keys[out..out + run.len() * GROUP];
                    scan(isa, &tables.fine, codes, out);
                }
                at += run.len() * GROUP;
            }
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
        for (tables, out) in last.queries.iter().zip(outs) {
            scan(isa, &tables.fine, self.tail.codes.groups(), out);
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
            lut: &last.queries[query].fine,
            offset: last.queries[query].centres.last().copied().unwrap_or(0.0),
            sums: &tail_sums[query * self.tail.codes.n_sums()..][..n_tail],
        });
        let n_scored = eras.iter().map(|s| s.opened.len() * GROUP).sum::<usize>() + n_tail;
        let parts = eras.iter().flat_map(|s| key_scores(s, query));
        let parts = parts.map(|(_, scores)| scores).chain(tail_scores);
        let threshold = threshold(parts, n_scored, wanted, sample);
        for (era, s) in self.eras.iter().zip(&*eras) {
            for (segment, scores) in key_scores(s, query) {
                ids.clear();
                scores.at_least(isa, threshold, ids);
                let opened = &s.opened[s.opened_of(segment)];
                for id in &*ids {
                    let id = *id as usize;
                    let place = opened[id / GROUP] as usize * GROUP + id % GROUP;
                    if let Some(token) = era.clustered_token(place, segment) {
                        hits.push(token, scores.score(id));
                    }
                }
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

impl EraScratch {
    /// A segment's part of what was opened.
    fn opened_of(&self, segment: usize) -> Range<usize> {
        let start = if segment == 0 {
            0
        } else {
            self.opened_ends[segment - 1]
        };
        start..self.opened_ends[segment]
    }
}

/// A query's scores of an era's clusters, segment by segment.
fn cluster_scores<'a>(
    era: &'a Era,
    s: &'a EraScratch,
    query: usize,
) -> impl Iterator<Item = (usize, Scores<'a>)> {
    let n = era.clusters().n_sums();
    let tables = &s.queries[query];
    (0..era.n_segments()).map(move |segment| {
        let clusters = era.clusters_of(segment);
        let scores = Scores {
            lut: &tables.coarse,
            offset: tables.centres[segment],
            sums: &s.clusters[query * n..][clusters],
        };
        (segment, scores)
    })
}

/// A query's scores of an era's opened keys, segment by segment.
fn key_scores(s: &EraScratch, query: usize) -> impl Iterator<Item = (usize, Scores<'_>)> {
    let n = s.opened.len() * GROUP;
    let tables = &s.queries[query];
    (0..s.opened_ends.len()).map(move |segment| {
        let opened = s.opened_of(segment);
        let scores = Scores {
            lut: &tables.fine,
            offset: tables.centres[segment],
            sums: &s.keys[query * n..][opened.start * GROUP..opened.end * GROUP],
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
