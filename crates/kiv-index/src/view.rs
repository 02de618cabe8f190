//! What a search reads of an index, for whoever keeps a copy of it elsewhere
//! ([`crate::Finder`]).
//!
//! Only what is whole is shown: eras, and the newest keys segment by segment. The tail
//! changes with every block, and is searched here.

use crate::codebook::Codebook;
use crate::era::Era;
use crate::head::HeadIndex;
use crate::newest::Newest;
use crate::search::TOKEN;
use crate::stamp::Stamp;
use kiv_fastscan::CENTROIDS;

/// Keys that were coded together: an era, or newest ones under one codebook.
#[derive(Clone, Debug)]
pub struct PartView<'a> {
    /// Of all that does not change while keys come.
    pub stamp: &'a Stamp,
    /// One of each whole segment of newest keys, with its centre and outliers; none of an
    /// era, which never changes.
    pub segments: &'a [Stamp],
    /// What its first key is called.
    pub id: u32,
    /// Values in a key.
    pub dim: usize,
    /// Maps queries: value `d` of 32 rows of the matrix side by side, `[n_tiles, dim, 32]`.
    pub query_map: &'a [f32],
    /// Of keys.
    pub fine: BookView<'a>,
    /// What was subtracted from all keys, or from those of each segment, `[n, dim]`.
    pub centres: &'a [f32],
    /// Packed codes of keys.
    pub keys: &'a [u8],
    /// Keys.
    pub n_keys: usize,
    /// A bit for each key, set of outliers.
    pub marks: &'a [u64],
    /// Keys that are coded by themselves.
    pub outliers: OutliersView<'a>,
    /// Of an era.
    pub lists: Option<ListsView<'a>>,
}

/// A codebook.
#[derive(Clone, Copy, Debug)]
pub struct BookView<'a> {
    /// Axes, subquantizer by subquantizer.
    pub axes: &'a [u16],
    /// Where each subquantizer's end.
    pub ends: &'a [u16],
    /// Centroids along each of the axes.
    pub centroids: &'a [[f32; CENTROIDS]],
}

/// Outliers, oldest first.
#[derive(Clone, Debug)]
pub struct OutliersView<'a> {
    /// Width of the grid's cells.
    pub step: f32,
    /// Those on the grid, counted from the part's first key.
    pub on: &'a [u32],
    /// Packed codes of `2 dim` subquantizers, by runs of at most 256.
    pub codes: Vec<&'a [u8]>,
    /// Those beyond it.
    pub beyond: &'a [u32],
    /// Their vectors, `[n, dim]`.
    pub vectors: &'a [f32],
}

/// The lists of an era.
#[derive(Clone, Copy, Debug)]
pub struct ListsView<'a> {
    /// Of means.
    pub coarse: BookView<'a>,
    /// Widths that codes of them stand for.
    pub widths: &'a [f32; CENTROIDS],
    /// Packed codes of means, widths and nothing.
    pub codes: &'a [u8],
    /// Of each list.
    pub width_codes: &'a [u8],
    /// Where each list ends, in keys.
    pub ends: &'a [u32],
}

impl HeadIndex {
    /// All keys but the tail's, oldest first.
    pub fn parts(&self) -> impl Iterator<Item = PartView<'_>> {
        let era_len = self.params.era_len();
        let eras = (self.eras.iter().enumerate())
            .map(move |(number, era)| of_era(era, (number * era_len) as u32));
        let newest = self.newest_parts().filter(|newest| newest.keys().len() > 0);
        eras.chain(newest.map(of_newest))
    }
}

fn of_era(era: &Era, id: u32) -> PartView<'_> {
    let (coarse, widths, width_codes, ends) = era.list_parts();
    PartView {
        stamp: &era.stamp,
        segments: &[],
        id,
        dim: era.centre.len(),
        query_map: era.space.query_map().tiles().as_flattened(),
        fine: of_book(&era.fine),
        centres: &era.centre,
        keys: era.keys().groups(),
        n_keys: era.keys().len(),
        marks: era.is_outlier.words(),
        outliers: era.outliers.view(&era.grid),
        lists: Some(ListsView {
            coarse: of_book(coarse),
            widths,
            codes: era.lists().groups(),
            width_codes,
            ends,
        }),
    }
}

fn of_newest(newest: &Newest) -> PartView<'_> {
    let (stamp, segments) = newest.stamps();
    PartView {
        stamp,
        segments,
        id: TOKEN | newest.first as u32,
        dim: newest.centre(0).len(),
        query_map: newest.space.query_map().tiles().as_flattened(),
        fine: of_book(&newest.fine),
        centres: newest.centres_of_segments(),
        keys: newest.keys().groups(),
        n_keys: newest.keys().len(),
        marks: newest.is_outlier.words(),
        outliers: newest.outliers.view(&newest.grid),
        lists: None,
    }
}

fn of_book(book: &Codebook) -> BookView<'_> {
    let (split, centroids) = book.parts();
    let (axes, ends) = split.parts();
    BookView {
        axes,
        ends,
        centroids,
    }
}
