//! Kernels' tasks on the bytes of a simulated device, by the CPU references.

use crate::reference;
use crate::search::{self, Search};
use crate::work::{At, Coarse, Rerotate, Scan, Scatter, Scores, Top, Work};

type Bytes = Vec<Vec<u8>>;

pub(super) fn slice(bytes: &Bytes, at: At, len: usize) -> &[u8] {
    &bytes[at.buffer.0 as usize][at.offset..at.offset + len]
}

pub(super) fn slice_mut(bytes: &mut Bytes, at: At, len: usize) -> &mut [u8] {
    &mut bytes[at.buffer.0 as usize][at.offset..at.offset + len]
}

/// What checked work does, to be done later.
pub(super) fn task(work: &Work<'_>) -> Box<dyn FnOnce(&mut Bytes) + Send + Sync> {
    match *work {
        Work::Scatter(work) => {
            let (moves, cells) = (work.moves.to_vec(), work.cells.to_vec());
            let (sides, n_rows) = (work.sides, work.n_rows);
            Box::new(move |bytes| {
                scatter(
                    bytes,
                    &Scatter {
                        sides,
                        moves: &moves,
                        cells: &cells,
                        n_rows,
                    },
                );
            })
        }
        Work::Rerotate(work) => {
            let (turns, cells, table) = (
                work.turns.to_vec(),
                work.cells.to_vec(),
                work.table.to_vec(),
            );
            let Rerotate {
                cache,
                n_rows,
                n_rot,
                pairing,
                ..
            } = work;
            Box::new(move |bytes| {
                rerotate(
                    bytes,
                    &Rerotate {
                        cache,
                        turns: &turns,
                        cells: &cells,
                        table: &table,
                        n_rows,
                        n_rot,
                        pairing,
                    },
                );
            })
        }
        Work::Scan(work) => {
            let (listed, tables) = (work.listed.map(<[u32]>::to_vec), work.tables.to_vec());
            let Scan {
                packed,
                n_packed,
                m,
                sums,
                ..
            } = work;
            Box::new(move |bytes| {
                scan(
                    bytes,
                    &Scan {
                        packed,
                        n_packed,
                        listed: listed.as_deref(),
                        tables: &tables,
                        m,
                        sums,
                    },
                );
            })
        }
        Work::Coarse(work) => {
            let queries = work.queries.to_vec();
            let Coarse {
                centroids,
                n_lists,
                dim,
                scores,
                ..
            } = work;
            Box::new(move |bytes| {
                coarse(
                    bytes,
                    &Coarse {
                        queries: &queries,
                        centroids,
                        n_lists,
                        dim,
                        scores,
                    },
                );
            })
        }
        Work::Top(work) => Box::new(move |bytes| top(bytes, &work)),
        Work::Search(work) => {
            let (parts, heads) = (work.parts.to_vec(), work.heads.to_vec());
            let (queries, floors) = (work.queries.to_vec(), work.floors.to_vec());
            let Search {
                dim,
                list,
                effort,
                memory,
                ..
            } = work;
            Box::new(move |bytes| {
                let work = Search {
                    parts: &parts,
                    heads: &heads,
                    queries: &queries,
                    floors: &floors,
                    dim,
                    list,
                    effort,
                    memory,
                };
                let found = search::reference::search(&work, |at, len| slice(bytes, at, len));
                slice_mut(bytes, memory, found.len()).copy_from_slice(&found);
            })
        }
    }
}

fn scatter(bytes: &mut Bytes, work: &Scatter<'_>) {
    let n_rows = work.n_rows as usize;
    for from in work.moves {
        let cells = &work.cells[from.cells as usize..][..n_rows];
        for (side, source) in work.sides.iter().zip(from.sources) {
            let rows = slice(bytes, source, side.row_bytes() * n_rows).to_vec();
            let cache = side.cache;
            let at = from.head as usize * cache.head_bytes();
            let all = slice_mut(bytes, cache.at, cache.bytes());
            let cells_at = (all, cache.cell_bytes(), at);
            reference::scatter(&rows, side.stored, cache.format, cells_at, cells);
        }
    }
}

fn rerotate(bytes: &mut Bytes, work: &Rerotate<'_>) {
    let half = work.n_rot as usize / 2;
    for turn in work.turns {
        let angles = &work.table[turn.angle as usize * half..][..half];
        for cell in &work.cells[turn.cells as usize..][..work.n_rows as usize] {
            let at = work.cache.row(*cell, turn.head);
            let row = slice_mut(bytes, at, work.cache.head_bytes());
            reference::rerotate(row, angles, work.pairing);
        }
    }
}

fn scan(bytes: &mut Bytes, work: &Scan<'_>) {
    let len = 16 * work.m as usize;
    let all: Vec<u32> = (0..work.n_packed).collect();
    let mut sums = Vec::new();
    for table in work.tables.chunks_exact(len) {
        for group in work.listed.unwrap_or(&all) {
            let group = slice(bytes, work.packed.plus(*group as usize * len), len);
            let of_group = reference::scan(group, table);
            sums.extend(of_group.iter().flat_map(|sum| sum.to_le_bytes()));
        }
    }
    slice_mut(bytes, work.sums, sums.len()).copy_from_slice(&sums);
}

fn coarse(bytes: &mut Bytes, work: &Coarse<'_>) {
    let dim = work.dim as usize;
    let centroids = words(slice(
        bytes,
        work.centroids,
        4 * dim * work.n_lists as usize,
    ));
    let centroids: Vec<f32> = centroids.into_iter().map(f32::from_bits).collect();
    let mut scores = Vec::new();
    for query in work.queries.chunks_exact(dim) {
        for centroid in centroids.chunks_exact(dim) {
            let product = reference::dot(query, centroid);
            scores.extend(reference::entered(product).to_le_bytes());
        }
    }
    slice_mut(bytes, work.scores, scores.len()).copy_from_slice(&scores);
}

fn top(bytes: &mut Bytes, work: &Top) {
    let (n, stride) = (work.n as usize, work.row_stride as usize);
    let width = work.scores.bytes();
    let (mut scores, mut names) = (Vec::new(), Vec::new());
    for query in 0..work.n_queries as usize {
        let from = slice(bytes, work.from.plus(query * stride * width), n * width);
        let numbers: Vec<u32> = match work.scores {
            Scores::Sums => halfwords(from),
            Scores::Products => words(from),
        };
        let called = work
            .names
            .map(|at| words(slice(bytes, at.plus(query * stride * 4), n * 4)));
        for place in reference::top_of_tiles(&numbers, work.tile as usize, work.k as usize) {
            let score = numbers[place as usize].to_le_bytes();
            scores.extend_from_slice(&score[..width]);
            let name = called.as_ref().map_or(place, |names| names[place as usize]);
            names.extend(name.to_le_bytes());
        }
    }
    slice_mut(bytes, work.to, scores.len()).copy_from_slice(&scores);
    slice_mut(bytes, work.to_names, names.len()).copy_from_slice(&names);
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let words = bytes.as_chunks::<4>().0;
    words.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

fn halfwords(bytes: &[u8]) -> Vec<u32> {
    let halves = bytes.as_chunks::<2>().0;
    halves
        .iter()
        .map(|b| u16::from_le_bytes(*b).into())
        .collect()
}
