//! A model of a few layers on a simulated device, whose attention reads its slots.

use kiv_cuda::sim::{Call, SimConfig, SimDevice};
use kiv_cuda::work::{Cache, Side};
use kiv_cuda::{
    Counters, Device, DeviceError, LayerShape, Memory, Overlap, Pager, PinnedPool, PoolError,
    PoolUse, PredictConfig, Row, Slots, Span, Stream, SwapConfig, Swapper, reference,
};
use kiv_numeric::rope::{Pairs, Rotation, Turn};
use kiv_policy::{RowFormat, Selection};
use kiv_pool::SlotTable;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::time::Duration;

pub const ROWS: u32 = 4;
pub const SLOTS: usize = 6;
pub const BLOCKS: u32 = 40;

/// What the policy says came next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runners {
    Silent,
    /// What will be wanted for the next token.
    Right,
    /// What will not.
    Wrong,
}

#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub n_steps: usize,
    pub runners: Runners,
    pub predict: PredictConfig,
    pub swap: SwapConfig,
    pub max_pinned: usize,
    pub sim: SimConfig,
    /// Rows stored in fewer bits.
    pub converts: bool,
    /// Keys turned in slots.
    pub turned: bool,
    /// Whether the host waits for queries; else events alone keep the order.
    pub host_waits: bool,
    /// Share of calls that fail once.
    pub failures: f64,
    /// Step after which the driver gives no page-locked memory, and blocks are forgotten
    /// and others take their numbers.
    pub cut: Option<usize>,
    /// Time of a layer without attention, and of attention.
    pub times: [Duration; 2],
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            seed: 1,
            n_steps: 12,
            runners: Runners::Silent,
            predict: PredictConfig {
                per_head: 4,
                left: 2,
                earlier: 1,
            },
            swap: SwapConfig {
                landing: 8,
                staging: 0,
            },
            max_pinned: usize::MAX,
            sim: SimConfig::default(),
            converts: false,
            turned: false,
            host_waits: true,
            failures: 0.0,
            cut: None,
            times: [Duration::from_micros(60), Duration::from_micros(30)],
        }
    }
}

/// What came of it.
pub struct Outcome {
    /// What attention read, by step and layer.
    pub seen: Vec<Vec<u8>>,
    /// What it should have.
    pub expected: Vec<Vec<u8>>,
    pub overlap: Overlap,
    /// All transfers.
    pub spans: Vec<Span>,
    pub counters: Counters,
    pub n_failed: usize,
    pub n_torn: usize,
    pub n_races: usize,
    pub taken: PoolUse,
}

pub struct World {
    pub setup: Setup,
    pub d: SimDevice,
    pub compute: Stream,
    pub pager: Pager<SimDevice>,
    pub tables: Vec<Vec<SlotTable>>,
    pub shapes: Vec<LayerShape>,
    pub sides: Vec<[Side; 2]>,
    pub cells: Vec<u32>,
    /// Which text a block is from.
    pub versions: Vec<u64>,
    pub n_torn: usize,
    /// What has been made of rows.
    pub known: HashMap<(usize, u32, u32, usize, u64), Vec<u8>>,
}

pub fn rows(shape: &LayerShape, row: Row, version: u64) -> Vec<u8> {
    let name = [
        row.layer as u64,
        row.head.into(),
        row.block.into(),
        row.side as u64,
        version,
    ];
    let seed = name.iter().fold(17, |seed, n| seed * 1009 + n);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n = shape.row_len[row.side] * ROWS;
    let values: Vec<f32> = (0..n).map(|_| rng.random_range(-3.0..3.0)).collect();
    shape.stored[row.side].encode(&values)
}

impl World {
    pub fn new(setup: Setup) -> Self {
        let mut d = SimDevice::new(setup.sim.clone());
        let compute = d.stream(false).unwrap();
        let stored = if setup.converts {
            [RowFormat::Q8_0, RowFormat::Q4_0]
        } else {
            [RowFormat::F16; 2]
        };
        let shapes = [(2, [32, 64]), (3, [64, 64]), (1, [96, 32])];
        let shapes = shapes.map(|(n_heads, row_len)| LayerShape {
            n_heads,
            row_len,
            stored,
        });
        let mut rng = ChaCha8Rng::seed_from_u64(setup.seed);
        let n_cells = SLOTS as u32 * ROWS + 9;
        let mut cells: Vec<u32> = (0..n_cells).collect();
        cells.shuffle(&mut rng);
        cells.truncate(SLOTS * ROWS as usize);
        let mut sides = Vec::new();
        for shape in &shapes {
            sides.push([0, 1].map(|s| {
                let mut cache = Cache {
                    at: kiv_cuda::work::At {
                        buffer: d.alloc(Memory::Device, 1).unwrap(),
                        offset: 0,
                    },
                    n_cells,
                    n_heads: shape.n_heads,
                    row_len: shape.row_len[s],
                    format: RowFormat::F16,
                };
                cache.at = d.alloc(Memory::Device, cache.bytes()).unwrap().at(0);
                Side {
                    cache,
                    stored: shape.stored[s],
                }
            }));
        }
        let pool = PinnedPool::new(shapes.to_vec(), ROWS, 7, setup.max_pinned);
        let swapper = Swapper::new(&mut d, compute, sides.clone(), ROWS, setup.swap).unwrap();
        let mut world = Self {
            pager: Pager::new(pool, swapper, setup.predict),
            tables: home(&shapes),
            setup,
            d,
            compute,
            shapes: shapes.to_vec(),
            sides,
            cells,
            versions: Vec::new(),
            n_torn: 0,
            known: HashMap::new(),
        };
        world.fill(0, 0);
        world.slots_go_home();
        world
    }

    /// Seals blocks from `first` on.
    fn fill(&mut self, first: u32, version: u64) {
        self.versions.truncate(first as usize);
        self.versions.resize(BLOCKS as usize, version);
        let pool = self.pager.pool_mut();
        pool.grow(&mut self.d, BLOCKS as usize).unwrap();
        for block in first..BLOCKS {
            for (layer, shape) in self.shapes.iter().enumerate() {
                for (head, side) in (0..shape.n_heads).flat_map(|h| [(h, 0), (h, 1)]) {
                    let row = Row {
                        layer,
                        head,
                        block,
                        side,
                    };
                    pool.put(&mut self.d, row, &rows(shape, row, version))
                        .unwrap();
                }
            }
        }
        self.pager.publish(BLOCKS);
    }

    /// How a layer's keys are turned in slots.
    fn turn(&self, layer: usize) -> Turn {
        let n_rot = self.shapes[layer].row_len[0] as usize / 2;
        let rotation = Rotation::plain(Pairs::Halves, n_rot, 1e4);
        let base = 77_777 - 100 * layer as i32;
        // Not by the same angle: positions are rounded.
        rotation.turn((0..ROWS as i32).map(|i| (i, base + i)))
    }

    /// A block's rows as the cache has them, cell by cell.
    fn cached(&mut self, row: Row) -> Vec<u8> {
        let name = (
            row.layer,
            row.head,
            row.block,
            row.side,
            self.versions[row.block as usize],
        );
        if let Some(rows) = self.known.get(&name) {
            return rows.clone();
        }
        let shape = &self.shapes[row.layer];
        let stored = rows(shape, row, self.versions[row.block as usize]);
        let len = RowFormat::F16.row_bytes(shape.row_len[row.side] as usize);
        let mut out = vec![0; len * ROWS as usize];
        let cells: Vec<u32> = (0..ROWS).collect();
        let to = (&mut out[..], len, 0);
        reference::scatter(&stored, shape.stored[row.side], RowFormat::F16, to, &cells);
        if self.setup.turned && row.side == 0 {
            let turn = self.turn(row.layer);
            let angles = turn.table().chunks_exact(turn.n_dims() / 2);
            for (row, angles) in out.chunks_exact_mut(len).zip(angles) {
                reference::rerotate(row, angles, turn.pairs());
            }
        }
        self.known.insert(name, out.clone());
        out
    }

    /// llama.cpp computes the first tokens into the slots' own cells.
    fn slots_go_home(&mut self) {
        for layer in 0..self.shapes.len() {
            for head in 0..self.shapes[layer].n_heads {
                for (block, side) in (0..SLOTS as u32).flat_map(|b| [(b, 0), (b, 1)]) {
                    let rows = self.cached(Row {
                        layer,
                        head,
                        block,
                        side,
                    });
                    let cache = self.sides[layer][side].cache;
                    let cells = &self.cells[(block * ROWS) as usize..][..ROWS as usize];
                    for (cell, row) in cells.iter().zip(rows.chunks(cache.head_bytes())) {
                        self.d
                            .upload(self.compute, cache.row(*cell, head), row)
                            .unwrap();
                    }
                }
            }
            self.pager.attended(&mut self.d, layer).unwrap();
        }
    }

    /// All rows in slots of a layer: where they are, and what they should be.
    pub fn attention(&mut self, layer: usize) -> (Vec<(kiv_cuda::work::At, usize)>, Vec<u8>) {
        let (mut reads, mut expected) = (Vec::new(), Vec::new());
        for head in 0..self.shapes[layer].n_heads {
            let blocks = self.tables[layer][head as usize].blocks().to_vec();
            for (slot, block) in blocks.into_iter().enumerate() {
                for side in 0..2 {
                    let cache = self.sides[layer][side].cache;
                    let cells = &self.cells[slot * ROWS as usize..][..ROWS as usize];
                    reads.extend(
                        cells
                            .iter()
                            .map(|c| (cache.row(*c, head), cache.head_bytes())),
                    );
                    expected.extend(self.cached(Row {
                        layer,
                        head,
                        block,
                        side,
                    }));
                }
            }
        }
        (reads, expected)
    }

    /// Whatever fails is tried again once it works again.
    pub fn ensure(&mut self, layer: usize, step: usize, wanted: &Selection) -> usize {
        let turn = self.turn(layer);
        let slots = Slots {
            cells: &self.cells,
            turn: self.setup.turned.then_some(&turn),
        };
        for n_failed in 0.. {
            let at = (layer, step as u64);
            match self
                .pager
                .ensure(&mut self.d, at, &mut self.tables[layer], wanted, slots)
            {
                Ok(()) => return n_failed,
                Err(error) => {
                    assert!(matches!(
                        error.source,
                        PoolError::Device(DeviceError::Failed(_))
                    ));
                    self.d.repair();
                    self.n_torn += error.torn.len();
                    let mut again = vec![Vec::new(); self.tables[layer].len()];
                    for (head, swap) in error.torn {
                        again[head as usize].push(swap);
                    }
                    let filled = self.pager.fill(&mut self.d, layer, &again, slots);
                    filled.expect("everything works again");
                }
            }
        }
        unreachable!("it ends");
    }

    pub fn run(mut self) -> Outcome {
        let setup = self.setup.clone();
        let mut rng = ChaCha8Rng::seed_from_u64(setup.seed + 1);
        let trace = trace(&mut rng, &self.shapes, setup.n_steps + 1);
        let n_layers = self.shapes.len();
        let (mut n_failed, mut ids, mut expected) = (0, Vec::new(), Vec::new());
        self.pager.swapper_mut().list(&mut self.d).unwrap();
        for step in 0..setup.n_steps {
            if setup.cut == Some(step) {
                self.d.repair();
                self.d.breaks(Call::Pinned, 0);
                let keep = rng.random_range(SLOTS as u32..BLOCKS);
                self.pager.truncate(&mut self.d, keep).unwrap();
                self.tables = home(&self.shapes);
                self.fill(keep, step as u64);
                self.slots_go_home();
            }
            for (layer, wanted) in trace[step].iter().enumerate() {
                self.d.compute(self.compute, &[], setup.times[0]).unwrap();
                if setup.host_waits {
                    let queries = self.d.record(self.compute).unwrap();
                    self.d.sync(&queries).unwrap();
                }
                if rng.random_bool(setup.failures) {
                    let call = [Call::Submit, Call::Transfer][rng.random_range(0..2)];
                    self.d.breaks(call, rng.random_range(0..3));
                }
                let next = &trace[step + 1][layer];
                let mut asked = wanted.clone();
                for head in 0..next.n_heads() {
                    let right = next.head(head);
                    let wrong = (0..BLOCKS).filter(|b| !right.contains(b));
                    *asked.ranked_mut(head).1 = match setup.runners {
                        Runners::Silent => Vec::new(),
                        Runners::Right => right.to_vec(),
                        Runners::Wrong => wrong.collect(),
                    };
                }
                n_failed += self.ensure(layer, step, &asked);
                let (reads, want) = self.attention(layer);
                for (head, table) in self.tables[layer].iter().enumerate() {
                    assert!(wanted.head(head).iter().all(|b| table.holds(*b)));
                }
                ids.push(
                    self.d
                        .compute(self.compute, &reads, setup.times[1])
                        .unwrap(),
                );
                expected.push(want);
                self.pager.attended(&mut self.d, layer).unwrap();
                // The next layer's, while this one's attention is computed.
                let (layer, step) = ((layer + 1) % n_layers, step + (layer + 1) / n_layers);
                if self
                    .pager
                    .fetch(&mut self.d, (layer, step as u64), &self.tables[layer])
                    .is_err()
                {
                    n_failed += 1;
                }
            }
        }
        let end = self.d.record(self.compute).unwrap();
        self.d.sync(&end).unwrap();
        let seen = ids.iter().map(|id| self.d.seen(*id).to_vec()).collect();
        let overlap = self.pager.swapper_mut().overlap(&mut self.d).unwrap();
        let spans = self.pager.swapper_mut().listed(&mut self.d).unwrap();
        let counters = self.pager.swapper_mut().counters();
        let taken = self.pager.pool().taken();
        self.pager.release(&mut self.d).unwrap();
        assert_eq!(self.d.used(Memory::Pinned), 0);
        let caches = self.sides.iter().flatten().map(|s| s.cache.bytes() + 1);
        assert_eq!(self.d.used(Memory::Device), caches.sum::<usize>());
        Outcome {
            seen,
            expected,
            overlap,
            spans,
            counters,
            n_failed,
            n_torn: self.n_torn,
            n_races: self.d.races().len(),
            taken,
        }
    }
}

pub fn home(shapes: &[LayerShape]) -> Vec<Vec<SlotTable>> {
    let of_layer = |s: &LayerShape| vec![SlotTable::new(SLOTS); s.n_heads as usize];
    shapes.iter().map(of_layer).collect()
}

/// What every layer wants at every step: some of what it wanted before.
pub fn trace(rng: &mut ChaCha8Rng, shapes: &[LayerShape], n_steps: usize) -> Vec<Vec<Selection>> {
    let mut now: Vec<Selection> = Vec::new();
    for shape in shapes {
        let mut selection = Selection::default();
        selection.reset(shape.n_heads as usize);
        now.push(selection);
    }
    let mut all = Vec::new();
    for _ in 0..n_steps {
        for blocks in now.iter_mut().flat_map(Selection::heads_mut) {
            blocks.retain(|_| rng.random_bool(0.6));
            let n = rng.random_range(0..=SLOTS);
            while blocks.len() < n {
                let block = rng.random_range(0..BLOCKS);
                if !blocks.contains(&block) {
                    blocks.push(block);
                }
            }
        }
        all.push(now.clone());
    }
    all
}
