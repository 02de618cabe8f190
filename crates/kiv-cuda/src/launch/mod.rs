//! Work as kernels are called: which one, on how many threads, with what. Nothing here
//! needs a driver.

mod search;

use crate::device::Kernels;
use crate::work::{At, Cache, Coarse, Rerotate, Scan, Scatter, Scores, Side, Top, Work, WorkError};
use bytemuck::{Pod, Zeroable};
use kiv_numeric::rope::Pairs;
use kiv_policy::RowFormat;

/// Threads of a block, of every kernel.
pub(crate) const THREADS: u32 = 256;

/// Queries that a block finds sums for together, at most: `kiv::PACK` of pq_scan.cuh.
pub(crate) const PACK: u32 = 4;

/// A file of kernels.
pub(crate) type File = (Kernels, &'static str, &'static [&'static str]);

/// Every file of kernels: what it is for, itself, and what it has. The files end with a zero
/// byte, as the driver wants them.
pub(crate) const KERNELS: [File; 6] = [
    (
        Kernels::Swaps,
        concat!(include_str!("../../../../kernels/ptx/scatter.ptx"), "\0"),
        &[
            "kiv_scatter_16",
            "kiv_scatter_8",
            "kiv_scatter_4",
            "kiv_scatter_2",
        ],
    ),
    (
        Kernels::Swaps,
        concat!(
            include_str!("../../../../kernels/ptx/dequant_scatter.ptx"),
            "\0"
        ),
        &["kiv_dequant_scatter"],
    ),
    (
        Kernels::Swaps,
        concat!(include_str!("../../../../kernels/ptx/rerotate.ptx"), "\0"),
        &["kiv_rerotate"],
    ),
    (
        Kernels::Searches,
        concat!(include_str!("../../../../kernels/ptx/pq_scan.ptx"), "\0"),
        &["kiv_pq_scan", "kiv_top_sums"],
    ),
    (
        Kernels::Searches,
        concat!(include_str!("../../../../kernels/ptx/coarse.ptx"), "\0"),
        &["kiv_coarse", "kiv_top_lists"],
    ),
    (
        Kernels::Searches,
        concat!(include_str!("../../../../kernels/ptx/index.ptx"), "\0"),
        &[
            "kiv_index_clear",
            "kiv_index_tables",
            "kiv_index_lists",
            "kiv_index_open",
            "kiv_index_keys",
            "kiv_index_least",
            "kiv_index_newest",
            "kiv_index_sample",
            "kiv_index_outliers",
        ],
    ),
];

/// `kiv::Cache` of moves.cuh.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RawCache {
    base: u64,
    cell_bytes: u32,
    head_bytes: u32,
}

/// `kiv::Side`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RawSide {
    base: u64,
    row_bytes: u32,
    format: u32,
    cache: RawCache,
}

/// `kiv::Move`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RawMove {
    source: [u64; 2],
    cells: u32,
    head: u32,
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Param {
    Number(u32),
    Address(u64),
    /// An address in the lists that go along, from their beginning.
    Listed(usize),
    Cache(RawCache),
    Side(RawSide),
}

impl Param {
    /// Its bytes, where the lists that go along begin at `lists`.
    pub(crate) fn value(&self, lists: u64) -> [u64; 4] {
        let mut value = [0; 4];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut value);
        let mut put = |from: &[u8]| bytes[..from.len()].copy_from_slice(from);
        match self {
            Self::Number(number) => put(bytemuck::bytes_of(number)),
            Self::Address(address) => put(bytemuck::bytes_of(address)),
            Self::Listed(at) => put(bytemuck::bytes_of(&(lists + *at as u64))),
            Self::Cache(cache) => put(bytemuck::bytes_of(cache)),
            Self::Side(side) => put(bytemuck::bytes_of(side)),
        }
        value
    }
}

/// A call of a kernel.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) kernel: &'static str,
    pub(crate) grid: [u32; 3],
    /// Bytes of shared memory beyond what the kernel declares.
    pub(crate) shared: u32,
    pub(crate) params: Vec<Param>,
}

impl Call {
    pub(crate) fn new(kernel: &'static str, grid: [u32; 3], params: Vec<Param>) -> Self {
        Self {
            kernel,
            grid,
            shared: 0,
            params,
        }
    }
}

/// Calls of kernels, one after another.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) calls: Vec<Call>,
    /// Lists that go along, to memory of the device.
    pub(crate) lists: Vec<u8>,
}

impl Launch {
    pub(crate) fn of_lists() -> Self {
        Self {
            calls: Vec::new(),
            lists: Vec::new(),
        }
    }

    fn new(kernel: &'static str, grid: [u32; 3]) -> Self {
        Self {
            calls: vec![Call::new(kernel, grid, Vec::new())],
            lists: Vec::new(),
        }
    }

    /// Adds to the last call.
    fn push(&mut self, param: Param) {
        let call = self
            .calls
            .last_mut()
            .expect("there is one from the beginning");
        call.params.push(param);
    }

    fn number(&mut self, number: u32) {
        self.push(Param::Number(number));
    }

    fn address(&mut self, address: u64) {
        self.push(Param::Address(address));
    }

    /// Takes a list along.
    pub(crate) fn put<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> Param {
        self.lists.resize(self.lists.len().next_multiple_of(16), 0);
        let at = self.lists.len();
        self.lists.extend_from_slice(bytemuck::cast_slice(values));
        Param::Listed(at)
    }

    fn list<T: bytemuck::NoUninit>(&mut self, values: &[T]) {
        let list = self.put(values);
        self.push(list);
    }
}

/// How checked work is called, if there is anything to do; `address` tells where places are
/// for the device.
///
/// # Errors
/// [`WorkError::Unsupported`] if it is more than a grid has blocks.
pub(crate) fn plan(
    work: &Work<'_>,
    address: impl Fn(At) -> u64,
) -> Result<Option<Launch>, WorkError> {
    let mut launch = match work {
        Work::Scatter(work) => scatter(work, address),
        Work::Rerotate(work) => rerotate(work, address),
        Work::Scan(work) => scan(work, address),
        Work::Coarse(work) => coarse(work, address),
        Work::Top(work) => top(work, address),
        Work::Search(work) => search::plan(work, address),
    };
    launch.calls.retain(|call| !call.grid.contains(&0));
    let too_large = |call: &Call| {
        let [x, y, z] = call.grid;
        y.max(z) > u32::from(u16::MAX) || x > i32::MAX as u32
    };
    if launch.calls.iter().any(too_large) {
        return Err(WorkError::Unsupported("so much at a time"));
    }
    Ok(Some(launch).filter(|launch| !launch.calls.is_empty()))
}

/// Blocks of threads for so many units, each thread taking at least one; more than some
/// give nothing, since there are others for every move.
fn parts(units: usize) -> u32 {
    (units as u32).div_ceil(THREADS).clamp(1, 64)
}

fn cache(cache: &Cache, base: u64) -> RawCache {
    RawCache {
        base,
        cell_bytes: cache.cell_bytes() as u32,
        head_bytes: cache.head_bytes() as u32,
    }
}

fn scatter(work: &Scatter<'_>, address: impl Fn(At) -> u64) -> Launch {
    let (kernel, unit) = match (work.converts(), work.unit()) {
        // A thread makes two values.
        (true, _) => ("kiv_dequant_scatter", 4),
        (false, 16) => ("kiv_scatter_16", 16),
        (false, 8) => ("kiv_scatter_8", 8),
        (false, 4) => ("kiv_scatter_4", 4),
        (false, _) => ("kiv_scatter_2", 2),
    };
    let side = |side: &Side| {
        let row_bytes = side.row_bytes();
        let format = match side.stored {
            RowFormat::Q8_0 if side.converts() => 1,
            RowFormat::Q4_0 if side.converts() => 2,
            _ => 0,
        };
        Param::Side(RawSide {
            // Moves have whole addresses: their sources are in different buffers.
            base: 0,
            row_bytes: row_bytes as u32,
            format,
            cache: cache(&side.cache, address(side.cache.at)),
        })
    };
    let moves: Vec<RawMove> = (work.moves.iter())
        .map(|m| RawMove {
            source: m.sources.map(&address),
            cells: m.cells,
            head: m.head,
        })
        .collect();
    let row = work.sides.iter().map(|s| s.cache.head_bytes()).max();
    let units = row.unwrap_or(0) / unit * work.n_rows as usize;
    let mut launch = Launch::new(kernel, [moves.len() as u32, parts(units), 2]);
    work.sides.iter().for_each(|s| launch.push(side(s)));
    launch.list(&moves);
    launch.list(work.cells);
    launch.number(work.n_rows);
    launch
}

fn rerotate(work: &Rerotate<'_>, address: impl Fn(At) -> u64) -> Launch {
    let units = work.n_rows as usize * work.n_rot as usize / 2;
    let grid = [work.turns.len() as u32, parts(units), 1];
    let mut launch = Launch::new("kiv_rerotate", grid);
    let base = address(work.cache.at);
    launch.push(Param::Cache(cache(&work.cache, base)));
    launch.list(work.turns);
    launch.list(work.cells);
    launch.list(work.table);
    launch.number(work.n_rows);
    launch.number(work.n_rot);
    launch.number(match work.pairing {
        Pairs::Neighbours => 0,
        Pairs::Halves => 1,
    });
    launch
}

fn scan(work: &Scan<'_>, address: impl Fn(At) -> u64) -> Launch {
    // A warp to a group; each has room for the group's codes, and all share the tables.
    let warps = THREADS / 32;
    let n_groups = work.n_groups() as u32;
    let n_queries = work.n_queries() as u32;
    let grid = [n_groups.div_ceil(warps), n_queries.div_ceil(PACK), 1];
    let mut launch = Launch::new("kiv_pq_scan", grid);
    launch.calls[0].shared = 16 * work.m * (PACK + warps);
    launch.address(address(work.packed));
    match work.listed {
        Some(listed) => launch.list(listed),
        None => launch.address(0),
    }
    launch.number(n_groups);
    launch.list(work.tables);
    launch.number(n_queries);
    launch.number(work.m);
    launch.address(address(work.sums));
    launch
}

fn coarse(work: &Coarse<'_>, address: impl Fn(At) -> u64) -> Launch {
    // 16 threads to a product.
    let lists = work.n_lists.div_ceil(THREADS / 16);
    let mut launch = Launch::new("kiv_coarse", [lists, work.n_queries() as u32, 1]);
    launch.list(work.queries);
    launch.address(address(work.centroids));
    launch.number(work.n_lists);
    launch.number(work.dim);
    launch.address(address(work.scores));
    launch
}

fn top(work: &Top, address: impl Fn(At) -> u64) -> Launch {
    let kernel = match work.scores {
        Scores::Sums => "kiv_top_sums",
        Scores::Products => "kiv_top_lists",
    };
    let mut launch = Launch::new(kernel, [work.n_tiles(), work.n_queries, 1]);
    launch.address(address(work.from));
    launch.address(work.names.map_or(0, &address));
    launch.number(work.n);
    launch.number(work.row_stride);
    launch.number(work.tile);
    launch.number(work.k);
    launch.number(work.n_out());
    launch.address(address(work.to));
    launch.address(address(work.to_names));
    launch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Buffer;
    use crate::work::{Move, Turn};

    /// Kernels' parameters, as their PTX declares them: bytes of each.
    fn declared(kernel: &str) -> Vec<usize> {
        let (_, ptx, _) = KERNELS
            .iter()
            .find(|(_, _, all)| all.contains(&kernel))
            .unwrap();
        let (_, from) = ptx.split_once(&format!(".entry {kernel}(")).unwrap();
        let (params, _) = from.split_once(')').unwrap();
        let each = params.split(',').map(|param| {
            let words: Vec<&str> = param.split_whitespace().collect();
            match words[..] {
                [".param", ".u64", _] => 8,
                [".param", ".u32", _] => 4,
                [".param", ".align", "8", ".b8", name] => {
                    let (_, len) = name.split_once('[').unwrap();
                    len.trim_end_matches(']').parse().unwrap()
                }
                _ => panic!("{param}"),
            }
        });
        each.collect()
    }

    fn given(call: &Call) -> Vec<usize> {
        let each = call.params.iter().map(|param| match param {
            Param::Number(_) => 4,
            Param::Address(_) | Param::Listed(_) => 8,
            Param::Cache(_) => 16,
            Param::Side(_) => 32,
        });
        each.collect()
    }

    #[test]
    fn kernels_get_what_they_declare() {
        let at = Buffer(0).at(0);
        let side = |row_len, stored| Side {
            cache: Cache {
                at,
                n_cells: 64,
                n_heads: 1,
                row_len,
                format: RowFormat::F16,
            },
            stored,
        };
        let moves = [Move {
            sources: [at; 2],
            cells: 0,
            head: 0,
        }];
        let cells: Vec<u32> = (0..16).collect();
        let mut seen = Vec::new();
        let mut check = |work: Work<'_>, grid: [u32; 3]| {
            let launch = plan(&work, |at| at.offset as u64).unwrap().unwrap();
            let [call] = &launch.calls[..] else {
                panic!("{work:?} is one call");
            };
            assert_eq!(given(call), declared(call.kernel), "{}", call.kernel);
            assert_eq!(call.grid, grid, "{}", call.kernel);
            seen.push(call.kernel);
        };
        let formats = [
            (64, RowFormat::F16),
            (36, RowFormat::F16),
            (34, RowFormat::F16),
        ];
        let formats = formats
            .into_iter()
            .chain([(33, RowFormat::F16), (32, RowFormat::Q8_0)]);
        for (row_len, stored) in formats {
            let work = Scatter {
                sides: [side(row_len, stored); 2],
                moves: &moves,
                cells: &cells,
                n_rows: 16,
            };
            let units = [(64, 1), (36, 1), (34, 2), (33, 3), (32, 1)];
            let (_, parts) = units.into_iter().find(|(len, _)| *len == row_len).unwrap();
            check(Work::Scatter(work), [1, parts, 2]);
        }
        let turn = Turn {
            cells: 0,
            head: 0,
            angle: 0,
        };
        let turns = Rerotate {
            cache: side(64, RowFormat::F16).cache,
            turns: &[turn; 3],
            cells: &cells,
            table: &[[0.0; 2]; 32],
            n_rows: 16,
            n_rot: 64,
            pairing: Pairs::Halves,
        };
        check(Work::Rerotate(turns), [3, 2, 1]);
        let scan = Scan {
            packed: at,
            n_packed: 17,
            listed: None,
            tables: &[0; 320],
            m: 4,
            sums: at,
        };
        check(Work::Scan(scan), [3, 2, 1]);
        let coarse = Coarse {
            queries: &[0.0; 64],
            centroids: at,
            n_lists: 17,
            dim: 32,
            scores: at,
        };
        check(Work::Coarse(coarse), [2, 2, 1]);
        for scores in [Scores::Sums, Scores::Products] {
            let top = Top {
                scores,
                from: at,
                names: None,
                n_queries: 2,
                n: 100,
                row_stride: 128,
                tile: 30,
                k: 4,
                to: at,
                to_names: at,
            };
            check(Work::Top(top), [4, 2, 1]);
        }
        let searched = search::tests::planned();
        for call in &searched {
            assert_eq!(given(call), declared(call.kernel), "{}", call.kernel);
            seen.push(call.kernel);
        }
        seen.sort_unstable();
        seen.dedup();
        let all: Vec<&str> = KERNELS
            .iter()
            .flat_map(|(_, _, all)| all.iter().copied())
            .collect();
        assert_eq!(seen.len(), all.len());
        assert!(all.iter().all(|kernel| seen.contains(kernel)));
    }

    #[test]
    fn nothing_to_do_is_no_launch_and_too_much_is_refused() {
        let at = Buffer(0).at(0);
        let coarse = |n_lists, queries| {
            Work::Coarse(Coarse {
                queries,
                centroids: at,
                n_lists,
                dim: 16,
                scores: at,
            })
        };
        assert!(plan(&coarse(0, &[0.0; 16]), |_| 0).unwrap().is_none());
        let many = vec![0.0; 16 * 65_536];
        assert!(plan(&coarse(1, &many), |_| 0).is_err());
        assert!(plan(&coarse(1, &many[16..]), |_| 0).unwrap().is_some());
    }
}
