//! An era: as many keys as can be told apart well, divided into lists of similar ones.
//!
//! This is an inverted file of residuals (IVFADC: Jégou et al., PAMI 2011). A key is
//! coded as its difference from the mean of its list, as that is coded itself, so that a
//! key's score is its list's and its own code's. Lists of about eight keys among tens of
//! thousands hold much more alike keys than lists among some thousand would, and there is
//! an era for every so many tokens because keys rotate with their positions.

use crate::cluster::lists;
use crate::codebook::Codebook;
use crate::head::Params;
use crate::marks::Marks;
use crate::outliers::{ERROR_RATIO, Grid, Outliers};
use crate::packed::{FixedCodes, PackedCodes};
use crate::pages::Pages;
use crate::saved::{Saved, expect};
use crate::space::{QueryMoments, Space};
use crate::stamp::Stamp;
use crate::vectors::{mean, squared_errors, subtract};
use kiv_fastscan::CENTROIDS;
use kiv_wire::{Put, Take, WireError};
use std::ops::Range;

/// Subquantizers of a list's code beyond those of its mean: one for its width, and one
/// to make an even number.
pub(crate) const EXTRA: usize = 2;

/// Keys that a codebook of differences is trained on.
const SAMPLE: usize = 4096;

/// Keys list by list: a key has a *place*, counted from the beginning of the era.
#[derive(Clone, Debug)]
pub(crate) struct Era {
    /// It never changes.
    pub stamp: Stamp,
    /// Its first token.
    pub first: usize,
    pub space: Space,
    /// Of means.
    coarse: Codebook,
    /// Of differences from them.
    pub fine: Codebook,
    pub grid: Grid,
    /// What is subtracted from all keys, their mean.
    pub centre: Vec<f32>,
    /// Root mean squared distances from a list's mean that its code tells apart.
    widths: [f32; CENTROIDS],
    lists: FixedCodes,
    /// The code of each list's width, which is in `lists`, too, but scattered there.
    width_codes: Vec<u8>,
    /// Where each list ends, in places.
    ends: Vec<u32>,
    /// Token of each place, from the first.
    order: Vec<u16>,
    keys: FixedCodes,
    /// By place.
    pub outliers: Outliers,
    /// Which places are theirs.
    pub is_outlier: Marks,
}

impl Era {
    /// Divides and codes keys, `[n, dim]`, whose first token is `first`.
    pub fn new(params: &Params, moments: &QueryMoments, keys: Vec<f32>, first: usize) -> Self {
        let dim = params.dim;
        let space = Space::new(moments, &keys);
        let mut mapped = Vec::new();
        space.map_keys(&keys, &mut mapped);
        drop(keys);
        let length = mapped.iter().map(|v| v * v).sum::<f32>();
        let centre = mean(&mapped, dim);
        subtract(&mut mapped, &centre);
        let sets = lists(&mapped, dim, params.list);
        let order: Vec<u32> = sets.iter().flatten().copied().collect();
        let mut rests = Vec::with_capacity(mapped.len());
        for token in &order {
            rests.extend_from_slice(vector(&mapped, dim, *token));
        }
        let mut means = Vec::with_capacity(sets.len() * dim);
        let mut members = &rests[..];
        for set in &sets {
            let (of_set, others) = members.split_at(set.len() * dim);
            means.extend(mean(of_set, dim));
            members = others;
        }
        let coarse = Codebook::train(&means, space.split(params.coarse));
        let (mut codes, mut decoded) = (Vec::new(), Vec::new());
        coarse.encode(&means, &mut codes);
        coarse.decode(&codes, &mut decoded);

        let mut spreads = Vec::with_capacity(sets.len());
        let mut members = &mut rests[..];
        for (set, centre) in sets.iter().zip(decoded.chunks_exact(dim)) {
            let (of_set, others) = members.split_at_mut(set.len() * dim);
            subtract(of_set, centre);
            let squares = of_set.iter().map(|v| v * v).sum::<f32>();
            spreads.push((squares / set.len() as f32).sqrt());
            members = others;
        }
        let widths = quantiles(spreads.clone());
        let coded = codes.chunks_exact(params.coarse).zip(&spreads);
        let coded = coded.flat_map(|(mean, spread)| {
            let extra = [nearest(&widths, *spread), 0];
            mean.iter().copied().chain(extra)
        });
        let mut packed = PackedCodes::new(params.lists_m());
        packed.push(&coded.collect::<Vec<u8>>());

        let step = (order.len() / SAMPLE).max(1);
        let sample: Vec<f32> = (rests.chunks_exact(dim).step_by(step).flatten())
            .copied()
            .collect();
        let fine = Codebook::train(&sample, space.split(params.fine));
        let mut codes = Vec::new();
        fine.encode(&rests, &mut codes);
        // Some at a time: all of them take as much memory as the keys.
        let (mut errors, mut decoded) = (Vec::with_capacity(order.len()), Vec::new());
        let some = rests.chunks(SAMPLE * dim);
        for (rests, codes) in some.zip(codes.chunks(SAMPLE * params.fine)) {
            decoded.clear();
            fine.decode(codes, &mut decoded);
            errors.extend(squared_errors(rests, &decoded, dim));
        }
        // Keys that are all alike have no error but rounding.
        let total = errors.iter().sum::<f32>().max(length * 1e-9);
        let most = total / errors.len().max(1) as f32 * ERROR_RATIO;
        let grid = Grid::new(&mapped);
        let mut outliers = Outliers::new(dim);
        for (place, (error, token)) in errors.iter().zip(&order).enumerate() {
            if *error > most {
                outliers.push(&grid, place, vector(&mapped, dim, *token));
            }
        }
        let mut keys = PackedCodes::with_capacity(params.fine, order.len());
        keys.push(&codes);
        let [keys, packed] = keys.fixed(packed);
        let ends = sets.iter().scan(0, |end, set| {
            *end += set.len() as u32;
            Some(*end)
        });
        Self {
            stamp: Stamp::default(),
            first,
            space,
            coarse,
            fine,
            grid,
            centre,
            widths,
            width_codes: width_codes(&packed),
            lists: packed,
            ends: ends.collect(),
            order: order.iter().map(|t| *t as u16).collect(),
            keys,
            is_outlier: outliers.marks(order.len()),
            outliers,
        }
    }

    pub fn lists(&self) -> &FixedCodes {
        &self.lists
    }

    pub fn keys(&self) -> &FixedCodes {
        &self.keys
    }

    /// Places of a list.
    pub fn places(&self, list: usize) -> Range<usize> {
        let start = if list == 0 { 0 } else { self.ends[list - 1] };
        start as usize..self.ends[list] as usize
    }

    /// The list that a place is in.
    pub fn list_of(&self, place: usize) -> usize {
        self.ends.partition_point(|end| *end as usize <= place)
    }

    /// Means of lists as coded, appended to `out`.
    pub fn decode_means(&self, lists: impl Iterator<Item = usize>, out: &mut Vec<f32>) {
        let (m, mut codes) = (self.coarse.m(), Vec::new());
        for (i, list) in lists.enumerate() {
            self.lists.unpack_into(list, &mut codes);
            codes.truncate((i + 1) * m);
        }
        self.coarse.decode(&codes, out);
    }

    /// The token at a place, counted from the first in the index.
    pub fn token_at(&self, place: usize) -> u32 {
        self.first as u32 + u32::from(self.order[place])
    }

    /// Table of how high a list's keys score, about: one standard deviation above its
    /// mean (the space is such that directions count alike).
    pub fn lists_table(&self, query: &[f32], table: &mut Vec<f32>) {
        self.coarse.table(query, table);
        table.extend(self.above(query));
        table.extend([0.0; CENTROIDS]);
    }

    /// How much of a list's score is for its width, by the code of that.
    pub fn above(&self, query: &[f32]) -> [f32; CENTROIDS] {
        let square = query.iter().map(|v| v * v).sum::<f32>() / query.len() as f32;
        self.widths.map(|width| width * square.sqrt())
    }

    /// The code of a list's width.
    pub fn width(&self, list: usize) -> usize {
        usize::from(self.width_codes[list])
    }

    /// The lists' codebook, widths that are told apart, each list's code of that, and ends.
    pub fn list_parts(&self) -> (&Codebook, &[f32; CENTROIDS], &[u8], &[u32]) {
        (&self.coarse, &self.widths, &self.width_codes, &self.ends)
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.space.bytes()
            + self.coarse.bytes()
            + self.fine.bytes()
            + self.centre.len() * size_of::<f32>()
            + Pages::taken(self.keys.bytes() + self.lists.bytes())
            + self.width_codes.len()
            + self.ends.len() * size_of::<u32>()
            + self.order.len() * size_of::<u16>()
            + self.outliers.bytes()
            + self.is_outlier.bytes()
    }
}

fn vector(vectors: &[f32], dim: usize, number: u32) -> &[f32] {
    &vectors[number as usize * dim..(number as usize + 1) * dim]
}

/// The codes of all lists' widths.
fn width_codes(lists: &FixedCodes) -> Vec<u8> {
    let width = |list| lists.code(list, lists.m() - EXTRA);
    (0..lists.len()).map(width).collect()
}

/// 16 values that stand for `values`.
fn quantiles(mut values: Vec<f32>) -> [f32; CENTROIDS] {
    values.sort_by(f32::total_cmp);
    std::array::from_fn(|i| {
        let at = (2 * i + 1) * values.len() / (2 * CENTROIDS);
        values.get(at).copied().unwrap_or(0.0)
    })
}

fn nearest(values: &[f32; CENTROIDS], value: f32) -> u8 {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if (v - value).abs() < (values[best] - value).abs() {
            best = i;
        }
    }
    best as u8
}

impl Saved for Era {
    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            stamp: _,
            first,
            space,
            coarse,
            fine,
            grid,
            centre,
            widths,
            lists,
            width_codes: _,
            ends,
            order,
            keys,
            outliers,
            is_outlier: _,
        } = self;
        out.put_u64(*first as u64);
        space.put(out);
        coarse.put(out);
        fine.put(out);
        grid.put(out);
        out.put_f32s(centre);
        out.put_f32s(widths);
        lists.put_codes(out);
        out.put_u32s(ends);
        out.put_u16s(order);
        keys.put_codes(out);
        outliers.put(out);
    }

    fn take(params: &Params, take: &mut Take<'_>) -> Result<Self, WireError> {
        let first = usize::try_from(take.u64()?).map_err(|_| WireError::Short)?;
        let (space, coarse, fine, grid) = (
            Saved::take(params, take)?,
            Saved::take(params, take)?,
            Saved::take(params, take)?,
            Saved::take(params, take)?,
        );
        let (centre, widths) = (take.f32s()?, take.f32s()?);
        let wrong = |_| WireError::invalid("another number of widths");
        let lists = PackedCodes::take(params, take)?;
        let (ends, order) = (take.u32s()?, take.u16s()?);
        let [keys, lists] = PackedCodes::take(params, take)?.fixed(lists);
        let mut era = Self {
            stamp: Stamp::default(),
            first,
            space,
            coarse,
            fine,
            grid,
            centre,
            widths: widths.try_into().map_err(wrong)?,
            lists,
            width_codes: Vec::new(),
            ends,
            order,
            keys,
            outliers: Saved::take(params, take)?,
            is_outlier: Marks::default(),
        };
        expect(era.is_whole(params), "an era that does not fit together")?;
        era.width_codes = width_codes(&era.lists);
        era.is_outlier = era.outliers.marks(era.order.len());
        Ok(era)
    }
}

impl Era {
    /// Whether everything that points somewhere points into the era.
    fn is_whole(&self, params: &Params) -> bool {
        let n = params.era * params.segment;
        self.coarse.is_of(params.coarse, params.dim)
            && self.fine.is_of(params.fine, params.dim)
            && self.lists.is_of(params.lists_m())
            && self.keys.is_of(params.fine)
            && self.centre.len() == params.dim
            && self.order.len() == n
            && self.keys.len() == n
            && self.order.iter().all(|t| usize::from(*t) < n)
            && self.lists.len() == self.ends.len()
            && self.ends.is_sorted()
            && self.ends.last().is_some_and(|end| *end as usize == n)
            && self.outliers.are_below(n)
    }
}
