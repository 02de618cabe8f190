//! Tasks for every kernel, the same for every device: what they give must be the same, bit
//! by bit.

mod swaps;

use kiv_cuda::work::{
    At, Cache, Coarse, Move, Rerotate, Scan, Scatter, Scores, Side, Top, Turn, Work,
};
use kiv_cuda::{Buffer, Device, DeviceError, Memory, Stream};
use kiv_numeric::rope::{Pairs, Rotation};
use kiv_policy::RowFormat::{self, F16, Q4_0, Q8_0};
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// A task's name, what it was given in words, and the bytes that it left.
pub struct Outcome {
    pub name: String,
    pub bytes: Vec<u8>,
}

pub fn floats(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-4.0f32..4.0)).collect()
}

/// A device and a stream to try tasks on.
pub struct Bench<'a, D: Device> {
    pub device: &'a mut D,
    pub stream: Stream,
    pub rng: ChaCha8Rng,
}

impl<'a, D: Device> Bench<'a, D> {
    pub fn new(device: &'a mut D, seed: u64) -> Result<Self, DeviceError> {
        let stream = device.stream(false)?;
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Ok(Self {
            device,
            stream,
            rng,
        })
    }

    /// A buffer of the device that holds these bytes.
    pub fn place(&mut self, bytes: &[u8]) -> Result<Buffer, DeviceError> {
        let buffer = self.device.alloc(Memory::Device, bytes.len())?;
        self.device.upload(self.stream, buffer.at(0), bytes)?;
        Ok(buffer)
    }

    /// Page-locked memory that holds these bytes; the device's if there is none.
    pub fn pin(&mut self, bytes: &[u8]) -> Result<Buffer, DeviceError> {
        match self.device.alloc(Memory::Pinned, bytes.len()) {
            Ok(buffer) => {
                self.device.write(buffer.at(0), bytes)?;
                Ok(buffer)
            }
            Err(DeviceError::OutOfMemory { .. }) => self.place(bytes),
            Err(other) => Err(other),
        }
    }

    pub fn fetch(&mut self, from: At, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        let mut out = vec![0; bytes];
        self.device.read(self.stream, from, &mut out)?;
        Ok(out)
    }

    /// Both caches after moving blocks into them, half from the device's own memory.
    pub fn scatter(
        &mut self,
        stored: [RowFormat; 2],
        cached: [RowFormat; 2],
        dims: [usize; 2],
        n_moves: usize,
    ) -> Result<Vec<u8>, DeviceError> {
        const HEADS: usize = 4;
        const ROWS: usize = 16;
        let n_lists = n_moves.div_ceil(HEADS);
        let n_cells = (n_lists + 2) * ROWS;
        let mut cells: Vec<u32> = (0..n_cells as u32).collect();
        cells.shuffle(&mut self.rng);
        let mut sides = Vec::new();
        let mut sources = vec![Vec::new(); n_moves];
        for s in 0..2 {
            let mut rows = [Vec::new(), Vec::new()];
            let mut places = Vec::new();
            for i in 0..n_moves {
                let to = &mut rows[i % 2];
                places.push(to.len());
                to.extend(stored[s].encode(&floats(&mut self.rng, ROWS * dims[s])));
                to.resize(to.len().next_multiple_of(16), 0);
            }
            let buffers = [
                self.pin(&rows[0])?,
                self.place(&[&rows[1][..], &[0; 16]].concat())?,
            ];
            for (i, place) in places.into_iter().enumerate() {
                sources[i].push(buffers[i % 2].at(place));
            }
            let cell_bytes = HEADS * cached[s].row_bytes(dims[s]);
            let cache = self.place(&vec![0x5a; n_cells * cell_bytes])?;
            sides.push(Side {
                cache: Cache {
                    at: cache.at(0),
                    n_cells: n_cells as u32,
                    n_heads: HEADS as u32,
                    row_len: dims[s] as u32,
                    format: cached[s],
                },
                stored: stored[s],
            });
        }
        let moves: Vec<Move> = (sources.iter().enumerate())
            .map(|(i, sources)| Move {
                sources: [sources[0], sources[1]],
                cells: (i / HEADS * ROWS) as u32,
                head: (i % HEADS) as u32,
            })
            .collect();
        let work = Work::Scatter(Scatter {
            sides: [sides[0], sides[1]],
            moves: &moves,
            cells: &cells,
            n_rows: ROWS as u32,
        });
        self.device.submit(self.stream, &work)?;
        let mut out = Vec::new();
        for side in sides {
            out.extend(self.fetch(side.cache.at, side.cache.bytes())?);
        }
        Ok(out)
    }

    pub fn rerotate(
        &mut self,
        dim: usize,
        n_rot: usize,
        pairing: Pairs,
    ) -> Result<Vec<u8>, DeviceError> {
        const ROWS: usize = 16;
        let values = floats(&mut self.rng, 80 * 3 * dim);
        let cache = Cache {
            at: self.place(&F16.encode(&values))?.at(0),
            n_cells: 80,
            n_heads: 3,
            row_len: dim as u32,
            format: F16,
        };
        let mut cells: Vec<u32> = (0..80).collect();
        cells.shuffle(&mut self.rng);
        let rotation = Rotation {
            freq_scale: 0.5,
            ..Rotation::plain(pairing, n_rot, 5e5)
        };
        let moved = rotation.turn([(999_999, 0), (0, 17), (5, 5)].into_iter());
        let turn = |i: u32| Turn {
            cells: i / 3 * ROWS as u32,
            head: i % 3,
            angle: i % 3,
        };
        let turns: Vec<Turn> = (0..10).map(turn).collect();
        let work = Work::Rerotate(Rerotate {
            cache,
            turns: &turns,
            cells: &cells,
            table: moved.table(),
            n_rows: ROWS as u32,
            n_rot: n_rot as u32,
            pairing,
        });
        self.device.submit(self.stream, &work)?;
        self.fetch(cache.at, cache.bytes())
    }

    /// Sums of packed keys, then the best of them over two rounds.
    pub fn scan(
        &mut self,
        (packed, m): (&[u8], usize),
        listed: Option<&[u32]>,
        tables: &[u8],
        (tile, k): (usize, usize),
    ) -> Result<[Vec<u8>; 3], DeviceError> {
        let at = self.place(packed)?;
        let n_packed = packed.len() / (16 * m);
        let n = 32 * listed.map_or(n_packed, <[u32]>::len);
        let n_queries = tables.len() / (16 * m);
        let sums = self.device.alloc(Memory::Device, 2 * n * n_queries)?;
        let work = Work::Scan(Scan {
            packed: at.at(0),
            n_packed: n_packed as u32,
            listed,
            tables,
            m: m as u32,
            sums: sums.at(0),
        });
        self.device.submit(self.stream, &work)?;
        let [best, names] = self.top(Scores::Sums, sums.at(0), [n_queries, n], (tile, k))?;
        Ok([self.fetch(sums.at(0), 2 * n * n_queries)?, best, names])
    }

    /// The best of tiles, again until one tile is left.
    fn top(
        &mut self,
        scores: Scores,
        mut from: At,
        [n_queries, mut n]: [usize; 2],
        (tile, k): (usize, usize),
    ) -> Result<[Vec<u8>; 2], DeviceError> {
        let mut names = None;
        loop {
            let mut top = Top {
                scores,
                from,
                names,
                n_queries: n_queries as u32,
                n: n as u32,
                row_stride: n as u32,
                tile: tile as u32,
                k: k as u32,
                to: from,
                to_names: from,
            };
            let n_out = top.n_out() as usize;
            let room = n_queries * n_out;
            top.to = self
                .device
                .alloc(Memory::Device, room * scores.bytes())?
                .at(0);
            top.to_names = self.device.alloc(Memory::Device, room * 4)?.at(0);
            self.device.submit(self.stream, &Work::Top(top))?;
            if top.n_tiles() == 1 {
                let best = self.fetch(top.to, room * scores.bytes())?;
                return Ok([best, self.fetch(top.to_names, room * 4)?]);
            }
            assert!(n_out < n, "each round leaves fewer");
            (from, names, n) = (top.to, Some(top.to_names), n_out);
        }
    }

    pub fn coarse(
        &mut self,
        queries: &[f32],
        centroids: &[f32],
        dim: usize,
        (tile, k): (usize, usize),
    ) -> Result<[Vec<u8>; 3], DeviceError> {
        let n_lists = centroids.len() / dim;
        let n_queries = queries.len() / dim;
        let bytes: Vec<u8> = centroids.iter().flat_map(|f| f.to_le_bytes()).collect();
        let at = self.place(&bytes)?;
        let scores = self.device.alloc(Memory::Device, 4 * n_lists * n_queries)?;
        let work = Work::Coarse(Coarse {
            queries,
            centroids: at.at(0),
            n_lists: n_lists as u32,
            dim: dim as u32,
            scores: scores.at(0),
        });
        self.device.submit(self.stream, &work)?;
        let [best, names] = self.top(
            Scores::Products,
            scores.at(0),
            [n_queries, n_lists],
            (tile, k),
        )?;
        Ok([
            self.fetch(scores.at(0), 4 * n_lists * n_queries)?,
            best,
            names,
        ])
    }

    fn bytes(&mut self, n: usize, below: u8) -> Vec<u8> {
        (0..n).map(|_| self.rng.random_range(0..below)).collect()
    }
}

/// Runs every kernel over several shapes.
pub fn run_all<D: Device>(device: &mut D) -> Result<Vec<Outcome>, DeviceError> {
    let bench = &mut Bench::new(device, 7)?;
    let mut all = Vec::new();
    let mut keep = |name: String, bytes| all.push(Outcome { name, bytes });
    // Units of 16, 8, 4 and 2 bytes.
    for (dims, unit) in [
        ([128, 128], 16),
        ([64, 36], 8),
        ([66, 64], 4),
        ([33, 64], 2),
    ] {
        for n_moves in [1, 37] {
            let bytes = bench.scatter([F16; 2], [F16; 2], dims, n_moves)?;
            keep(
                format!("kiv_scatter_{unit}, {n_moves} blocks of f16"),
                bytes,
            );
        }
    }
    let bytes = bench.scatter([Q8_0, Q4_0], [Q8_0, Q4_0], [128, 64], 20)?;
    keep("kiv_scatter, q8_0 and q4_0 as they are".to_owned(), bytes);
    for stored in [[Q8_0, Q4_0], [Q4_0, Q8_0], [F16, Q8_0], [Q4_0, F16]] {
        let bytes = bench.scatter(stored, [F16; 2], [128, 96], 33)?;
        keep(format!("kiv_dequant_scatter, {stored:?}"), bytes);
    }
    for (dim, n_rot) in [(128, 128), (80, 32)] {
        for pairing in [Pairs::Neighbours, Pairs::Halves] {
            let bytes = bench.rerotate(dim, n_rot, pairing)?;
            keep(
                format!("kiv_rerotate, {n_rot} of {dim}, {pairing:?}"),
                bytes,
            );
        }
    }
    // The last takes all the shared memory that a block has, and the highest sums there are.
    for (m, n_groups, n_queries) in [(16, 1, 1), (64, 700, 3), (32, 33, 24), (256, 9, 5)] {
        let packed = bench.bytes(16 * m * n_groups, 255);
        let tables = match m {
            256 => vec![255; 16 * m * n_queries],
            _ => bench.bytes(16 * m * n_queries, 200),
        };
        let listed: Vec<u32> = (0..n_groups as u32).step_by(3).collect();
        for listed in [None, Some(&listed[..])] {
            let kinds = ["kiv_pq_scan", "kiv_top_sums", "kiv_top_sums (names)"];
            // Tiles of several chunks, too.
            let tile = if n_groups == 700 { 1 << 15 } else { 1024 };
            let outcomes = bench.scan((&packed, m), listed, &tables, (tile, 50))?;
            for (kind, bytes) in kinds.iter().zip(outcomes) {
                let listed = listed.map_or("all", |_| "listed");
                keep(
                    format!("{kind}, {n_queries} queries, m {m}, {listed} of {n_groups} groups"),
                    bytes,
                );
            }
        }
    }
    for (dim, n_lists, n_queries) in [(64, 5, 1), (128, 4096, 8)] {
        let queries = floats(&mut bench.rng, dim * n_queries);
        let mut centroids = floats(&mut bench.rng, dim * n_lists);
        // A product that is no number, whose bits a GPU chooses.
        centroids[dim + 3] = f32::NAN;
        let outcomes = bench.coarse(&queries, &centroids, dim, (2048, 32))?;
        let kinds = ["kiv_coarse", "kiv_top_lists", "kiv_top_lists (names)"];
        for (kind, bytes) in kinds.iter().zip(outcomes) {
            keep(
                format!("{kind}, {n_queries} queries, {n_lists} lists of {dim}"),
                bytes,
            );
        }
    }
    all.extend(swaps::run(device)?);
    Ok(all)
}
