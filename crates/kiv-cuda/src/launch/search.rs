//! The kernels of a search, as they are called.

use super::{Call, Launch, PACK, Param, THREADS};
use crate::search::{Choice, Layout, Part, Search, Section, TILE};
use crate::work::At;
use bytemuck::{Pod, Zeroable};
use kiv_fastscan::GROUP;
use kiv_numeric::FUSES;

/// `kiv::Book` of index.cuh.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RawBook {
    axes: u64,
    ends: u64,
    centroids: u64,
    m: u32,
    unused: u32,
}

/// `kiv::Part`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RawPart {
    query_map: u64,
    books: [RawBook; 2],
    centres: u64,
    widths: u64,
    lists: u64,
    width_codes: u64,
    ends: u64,
    keys: u64,
    marks: u64,
    on: u64,
    beyond: u64,
    codes: u64,
    vectors: u64,
    n_lists: u32,
    n_keys: u32,
    n_centres: u32,
    segment: u32,
    outliers: [u32; 2],
    on_groups: u32,
    id: u32,
    head: u32,
    places: [u32; 2],
    step: f32,
}

/// `kiv::Shape`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RawShape {
    tables: u64,
    list_scores: u64,
    ranked_scores: u64,
    ranked_names: u64,
    opened: u64,
    first_from: u64,
    first_scores: u64,
    first_names: u64,
    key_scores: u64,
    key_ids: u64,
    least: u64,
    status: u64,
    dim: u32,
    group: u32,
    n_rows: u32,
    table_bytes: u32,
    max_centres: u32,
    strides: [u32; 2],
    n_ranked: u32,
    room: u32,
    probed: u32,
    kept: u32,
    sample: [u32; 4],
    fuses: u32,
}

/// How a checked search is called.
pub(crate) fn plan(work: &Search<'_>, address: impl Fn(At) -> u64) -> Launch {
    let layout = Layout::new(work);
    let at = |offset: usize| address(work.memory.plus(offset));
    let mut launch = Launch::of_lists();
    let heads = (0..work.n_heads()).flat_map(|head| work.parts_of(head).map(move |_| head));
    let raw: Vec<RawPart> = (work.parts.iter().zip(heads).zip(&layout.places))
        .map(|((part, head), places)| raw_part(part, head, *places, &address))
        .collect();
    let parts = launch.put(&raw);
    let shape = launch.put(&[raw_shape(work, &layout, &at)]);
    let bounds = launch.put(work.heads);
    let queries = launch.put(work.queries);
    let floors = launch.put(work.floors);
    let (n_parts, group) = (raw.len() as u32, work.group() as u32);
    let n_rows = layout.n_rows as u32;
    let number = |n: usize| Param::Number(n as u32);
    let place = |offset: usize| Param::Address(at(offset));
    // Blocks for the largest of all parts.
    let blocks = |of: &dyn Fn(&RawPart) -> u32| {
        let most = raw.iter().map(of).max().unwrap_or(0);
        most.div_ceil(THREADS)
    };
    let is_era = |part: &RawPart| part.books[1].m > 0;
    let mut call = |kernel, grid, params: Vec<Param>| {
        launch.calls.push(Call::new(kernel, grid, params));
    };
    let cleared = layout.cleared();
    let words = cleared.len() / 4;
    call(
        "kiv_index_clear",
        [words.div_ceil(THREADS as usize).min(1024) as u32, 1, 1],
        vec![place(cleared.start), number(words)],
    );
    call(
        "kiv_index_tables",
        [n_parts, group, 1],
        vec![parts, shape, queries],
    );
    if layout.ranked.n > 0 {
        let lists = blocks(&|part| part.n_lists);
        call(
            "kiv_index_lists",
            [lists, n_parts, group.div_ceil(PACK)],
            vec![parts, shape],
        );
        let out = [layout.ranked_scores, layout.ranked_names];
        for (grid, params) in choose(&layout, layout.ranked, [layout.list_scores, 0], out, &at) {
            call("kiv_top_lists", grid, params);
        }
        call(
            "kiv_index_open",
            [n_rows, 1, 1],
            vec![parts, shape, bounds, floors],
        );
        let warps = THREADS / GROUP as u32;
        let grid = [(layout.ranked.out() as u32).div_ceil(warps), n_rows, 1];
        call("kiv_index_keys", grid, vec![parts, shape, Param::Number(1)]);
        call("kiv_index_least", [n_rows, 1, 1], vec![shape, floors]);
        call("kiv_index_keys", grid, vec![parts, shape, Param::Number(2)]);
    }
    let newest = blocks(&|part| if is_era(part) { 0 } else { part.n_keys });
    call(
        "kiv_index_newest",
        [newest, n_parts, group.div_ceil(PACK)],
        vec![parts, shape],
    );
    call(
        "kiv_index_sample",
        [n_rows, 1, 1],
        vec![parts, shape, bounds],
    );
    let outliers = blocks(&|part| {
        let [on, beyond] = part.outliers;
        on.next_multiple_of(GROUP as u32) + beyond
    });
    call(
        "kiv_index_outliers",
        [outliers, n_parts, group],
        vec![parts, shape],
    );
    let from = [layout.key_scores, layout.key_ids];
    let out = [layout.found_scores, layout.found_ids];
    for (grid, params) in choose(&layout, layout.told, from, out, &at) {
        call("kiv_top_lists", grid, params);
    }
    launch
}

/// The best of all rows: of each tile, and of those; names are places if they are at 0.
fn choose(
    layout: &Layout,
    choice: Choice,
    from: [usize; 2],
    to: [usize; 2],
    at: &impl Fn(usize) -> u64,
) -> Vec<([u32; 3], Vec<Param>)> {
    let round = |n: usize, tile: usize, [scores, names]: [usize; 2], out: [usize; 2], n_out| {
        let names = if names == 0 { 0 } else { at(names) };
        let mut params = vec![Param::Address(at(scores)), Param::Address(names)];
        params.extend([n, n, tile, choice.k, n_out].map(|n| Param::Number(n as u32)));
        params.extend(out.map(|out| Param::Address(at(out))));
        let grid = [n.div_ceil(tile.max(1)) as u32, layout.n_rows as u32, 1];
        (grid, params)
    };
    if choice.is_one_round() {
        return vec![round(choice.n, TILE, from, to, choice.out())];
    }
    let tiles = [layout.tile_scores, layout.tile_names];
    let n = choice.first_out();
    vec![
        round(choice.n, TILE, from, tiles, n),
        round(n, n, tiles, to, choice.out()),
    ]
}

fn raw_part(part: &Part, head: usize, places: [usize; 2], address: &impl Fn(At) -> u64) -> RawPart {
    let at = |section| address(part.section(section));
    let book = |axes, ends, centroids, m: usize| RawBook {
        axes: at(axes),
        ends: at(ends),
        centroids: at(centroids),
        m: m as u32,
        unused: 0,
    };
    use Section::{CoarseAxes, CoarseBook, CoarseEnds, FineAxes, FineBook, FineEnds};
    RawPart {
        query_map: at(Section::QueryMap),
        books: [
            book(FineAxes, FineEnds, FineBook, part.room.fine),
            book(CoarseAxes, CoarseEnds, CoarseBook, part.room.coarse),
        ],
        centres: at(Section::Centres),
        widths: at(Section::Widths),
        lists: at(Section::Lists),
        width_codes: at(Section::WidthCodes),
        ends: at(Section::ListEnds),
        keys: at(Section::Keys),
        marks: at(Section::Marks),
        on: at(Section::On),
        beyond: at(Section::Beyond),
        codes: at(Section::OutlierCodes),
        vectors: at(Section::Vectors),
        n_lists: part.room.lists as u32,
        n_keys: part.keys as u32,
        n_centres: part.centres() as u32,
        segment: part.segment as u32,
        outliers: part.outliers.map(|n| n as u32),
        on_groups: part.room.on.div_ceil(GROUP) as u32,
        id: part.id,
        head: head as u32,
        places: places.map(|n| n as u32),
        step: part.step,
    }
}

fn raw_shape(work: &Search<'_>, layout: &Layout, at: &impl Fn(usize) -> u64) -> RawShape {
    let newest = work.parts.iter().find(|part| part.room.coarse == 0);
    let (sampled, from, some) = work.sample(newest.map_or(GROUP, |part| part.segment));
    RawShape {
        tables: at(layout.tables),
        list_scores: at(layout.list_scores),
        ranked_scores: at(layout.ranked_scores),
        ranked_names: at(layout.ranked_names),
        opened: at(layout.opened),
        first_from: at(layout.first_from),
        first_scores: at(layout.first_scores),
        first_names: at(layout.first_names),
        key_scores: at(layout.key_scores),
        key_ids: at(layout.key_ids),
        least: at(layout.least),
        status: at(layout.status),
        dim: work.dim as u32,
        group: work.group() as u32,
        n_rows: layout.n_rows as u32,
        table_bytes: layout.table_bytes as u32,
        max_centres: layout.max_centres as u32,
        strides: [layout.ranked.n, layout.told.n].map(|n| n as u32),
        n_ranked: layout.ranked.out() as u32,
        room: layout.room as u32,
        probed: work.effort.probed as u32,
        kept: work.effort.kept as u32,
        sample: [sampled, from, some.start, some.end].map(|n| n as u32),
        fuses: u32::from(FUSES),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::device::Buffer;
    use crate::search::Room;
    use kiv_index::Effort;

    /// Calls of a search with eras and newest keys.
    pub(in crate::launch) fn planned() -> Vec<Call> {
        let room = |coarse: usize| Room {
            dim: 16,
            fine: 14,
            coarse,
            lists: 10 * coarse,
            keys: 256,
            centres: 8,
            on: 5,
            beyond: 1,
        };
        let part = |coarse| Part {
            at: Buffer(0).at(0),
            room: room(coarse),
            keys: 256,
            segment: if coarse > 0 { 256 } else { 32 },
            outliers: [5, 1],
            step: 1.0,
            id: 0,
        };
        let search = Search {
            parts: &[part(8), part(0)],
            heads: &[0, 2],
            queries: &[0.5; 32],
            floors: &[f32::NEG_INFINITY, 1.0],
            dim: 16,
            list: 8,
            effort: Effort {
                probed: 64,
                kept: 16,
            },
            memory: Buffer(1).at(0),
        };
        plan(&search, |at| at.offset as u64).calls
    }
}
