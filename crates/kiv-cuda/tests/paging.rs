//! Slots hold what was wanted, whatever was predicted, whatever memory there was and
//! whatever failed; and what was predicted well costs no time.

use kiv_cuda::sim::{Call, SimConfig, SimDevice};
use kiv_cuda::work::{Cache, Side};
use kiv_cuda::{
    Counters, Device, DeviceError, LayerShape, Memory, Overlap, Pager, PinnedPool, PoolError,
    PoolUse, PredictConfig, Row, Stream, SwapConfig, Swapper, reference,
};
use kiv_policy::{RowFormat, Selection};
use kiv_pool::SlotTable;
use proptest::prelude::*;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::time::Duration;

const ROWS: u32 = 4;
const SLOTS: usize = 6;
const BLOCKS: u32 = 40;

/// What the policy says came next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runners {
    Silent,
    /// What will be wanted for the next token.
    Right,
    /// What will not.
    Wrong,
}

#[derive(Clone, Debug)]
struct Setup {
    seed: u64,
    n_steps: usize,
    runners: Runners,
    predict: PredictConfig,
    swap: SwapConfig,
    max_pinned: usize,
    sim: SimConfig,
    /// Rows stored in fewer bits.
    converts: bool,
    /// Whether the host waits for queries; else events alone keep the order.
    host_waits: bool,
    /// Share of calls that fail once.
    failures: f64,
    /// Step after which the driver gives no page-locked memory, and blocks are forgotten
    /// and others take their numbers.
    cut: Option<usize>,
    /// Time of a layer without attention, and of attention.
    times: [Duration; 2],
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
            host_waits: true,
            failures: 0.0,
            cut: None,
            times: [Duration::from_micros(60), Duration::from_micros(30)],
        }
    }
}

/// What came of it.
struct Outcome {
    /// What attention read, by step and layer.
    seen: Vec<Vec<u8>>,
    /// What it should have.
    expected: Vec<Vec<u8>>,
    overlap: Overlap,
    counters: Counters,
    n_failed: usize,
    n_races: usize,
    taken: PoolUse,
}

struct World {
    setup: Setup,
    d: SimDevice,
    compute: Stream,
    pager: Pager<SimDevice>,
    tables: Vec<Vec<SlotTable>>,
    shapes: Vec<LayerShape>,
    sides: Vec<[Side; 2]>,
    cells: Vec<u32>,
    /// Which text a block is from.
    versions: Vec<u64>,
    /// What has been made of rows.
    known: HashMap<(usize, u32, u32, usize, u64), Vec<u8>>,
}

fn rows(shape: &LayerShape, row: Row, version: u64) -> Vec<u8> {
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
    fn new(setup: Setup) -> Self {
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
    fn attention(&mut self, layer: usize) -> (Vec<(kiv_cuda::work::At, usize)>, Vec<u8>) {
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
    fn ensure(
        &mut self,
        layer: usize,
        step: usize,
        wanted: &Selection,
        runners: Option<&Selection>,
    ) -> usize {
        for n_failed in 0.. {
            let at = (layer, step as u64);
            match self.pager.ensure(
                &mut self.d,
                at,
                &mut self.tables[layer],
                wanted,
                runners,
                &self.cells,
            ) {
                Ok(()) => return n_failed,
                Err(error) => {
                    assert!(matches!(
                        error.source,
                        PoolError::Device(DeviceError::Failed(_))
                    ));
                    self.d.repair();
                }
            }
        }
        unreachable!("it ends");
    }

    fn run(mut self) -> Outcome {
        let setup = self.setup.clone();
        let mut rng = ChaCha8Rng::seed_from_u64(setup.seed + 1);
        let trace = trace(&mut rng, &self.shapes, setup.n_steps + 1);
        let n_layers = self.shapes.len();
        let (mut n_failed, mut ids, mut expected) = (0, Vec::new(), Vec::new());
        let mut runners = Selection::default();
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
                runners.reset(next.n_heads());
                for head in 0..next.n_heads() {
                    let right = next.head(head);
                    let wrong = (0..BLOCKS).filter(|b| !right.contains(b));
                    *runners.head_mut(head) = match setup.runners {
                        Runners::Right => right.to_vec(),
                        _ => wrong.collect(),
                    };
                }
                let said = Some(&runners).filter(|_| setup.runners != Runners::Silent);
                n_failed += self.ensure(layer, step, wanted, said);
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
            counters,
            n_failed,
            n_races: self.d.races().len(),
            taken,
        }
    }
}

fn home(shapes: &[LayerShape]) -> Vec<Vec<SlotTable>> {
    let of_layer = |s: &LayerShape| vec![SlotTable::new(SLOTS); s.n_heads as usize];
    shapes.iter().map(of_layer).collect()
}

/// What every layer wants at every step: some of what it wanted before.
fn trace(rng: &mut ChaCha8Rng, shapes: &[LayerShape], n_steps: usize) -> Vec<Vec<Selection>> {
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

fn run(setup: Setup) -> Outcome {
    World::new(setup).run()
}

fn setups() -> impl Strategy<Value = Setup> {
    let runners = prop_oneof![
        Just(Runners::Silent),
        Just(Runners::Right),
        Just(Runners::Wrong)
    ];
    let predict = (0usize..6, 0usize..4, 0usize..3);
    let sizes = (
        0u32..12,
        0usize..8000,
        prop_oneof![Just(usize::MAX), 0usize..60_000],
    );
    let more = (
        any::<bool>(),
        any::<bool>(),
        prop_oneof![Just(0.0), Just(0.3)],
    );
    let cut = proptest::option::of(0usize..8);
    // The caches and staging fit; landing places and page-locked memory may not.
    let memory = (
        prop_oneof![Just(1 << 30), 90_000usize..200_000],
        prop_oneof![Just(1 << 30), 0usize..100_000],
    );
    (any::<u32>(), runners, predict, sizes, more, cut, memory).prop_map(
        |(seed, runners, (per_head, left, earlier), sizes, more, cut, memory)| Setup {
            seed: seed.into(),
            n_steps: 8,
            runners,
            predict: PredictConfig {
                per_head,
                left,
                earlier,
            },
            swap: SwapConfig {
                landing: sizes.0,
                staging: sizes.1,
            },
            max_pinned: sizes.2,
            sim: SimConfig {
                device_bytes: memory.0,
                pinned_bytes: memory.1,
                ..SimConfig::default()
            },
            converts: more.0,
            host_waits: more.1,
            failures: more.2,
            cut,
            ..Setup::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn attention_sees_what_was_wanted(setup in setups()) {
        let outcome = run(setup);
        prop_assert_eq!(outcome.n_races, 0);
        prop_assert!(outcome.seen == outcome.expected);
    }

    #[test]
    fn nothing_that_is_predicted_changes_what_is_seen(setup in setups()) {
        let same = Setup { failures: 0.0, host_waits: true, ..setup.clone() };
        let none = Setup {
            runners: Runners::Silent,
            predict: PredictConfig { per_head: 0, left: 0, earlier: 0 },
            max_pinned: usize::MAX,
            sim: SimConfig::default(),
            ..same.clone()
        };
        prop_assert!(run(same).seen == run(none).seen);
    }
}

fn slow_bus() -> Setup {
    Setup {
        n_steps: 40,
        predict: PredictConfig {
            per_head: SLOTS,
            left: 0,
            earlier: 0,
        },
        swap: SwapConfig {
            landing: 3 * SLOTS as u32,
            staging: 1 << 16,
        },
        // Longer than what it costs to ask for anything.
        sim: SimConfig {
            bus: 3e7,
            kernel: Duration::from_micros(1),
            ..SimConfig::default()
        },
        times: [Duration::from_micros(150), Duration::from_micros(150)],
        ..Setup::default()
    }
}

#[test]
fn what_is_predicted_well_is_hidden() {
    let right = run(Setup {
        runners: Runners::Right,
        ..slow_bus()
    });
    let silent = run(slow_bus());
    let wrong = run(Setup {
        runners: Runners::Wrong,
        ..slow_bus()
    });
    for outcome in [&right, &silent, &wrong] {
        assert!(outcome.seen == outcome.expected && outcome.n_races == 0);
    }
    assert!(right.seen == silent.seen && right.seen == wrong.seen);
    // All but the first token's.
    let c = right.counters;
    assert!(c.landed * 10 > c.blocks * 9, "{c:?}");
    assert!(right.overlap.share() > 0.5, "{:?}", right.overlap);
    assert!(right.overlap.waited * 2 < silent.overlap.waited);
    assert_eq!(silent.overlap.hidden(), Duration::ZERO);
    assert_eq!((silent.counters.fetched, silent.counters.landed), (0, 0));
    // What is in no slot stays where it landed, and may be wanted some tokens later.
    assert!(wrong.counters.landed * 3 < c.landed, "{:?}", wrong.counters);
    assert!(wrong.counters.wasted > 0);
    assert_eq!(right.counters.blocks, silent.counters.blocks);
}

#[test]
fn a_swap_is_one_launch_if_rows_are_page_locked() {
    let silent = run(slow_bus());
    let c = silent.counters;
    // A layer may have wanted nothing new.
    assert!(c.launches <= 3 * 40 && c.launches > 2 * 40, "{c:?}");
    assert_eq!(c.staged, 0);
    let pageable = run(Setup {
        max_pinned: 0,
        ..slow_bus()
    });
    assert_eq!(pageable.taken.pinned, 0);
    assert_eq!(
        pageable.counters.launches, c.launches,
        "staging is large enough"
    );
    assert_eq!(
        (pageable.counters.staged, pageable.counters.bytes),
        (c.bytes, c.bytes)
    );
    assert!(pageable.seen == silent.seen);
    // Staging that is too small for a layer costs launches.
    let mut small = Setup {
        max_pinned: 0,
        ..slow_bus()
    };
    small.swap.staging = 0;
    let small = run(small);
    assert!(small.counters.launches > c.launches && small.seen == silent.seen);
}

#[test]
fn without_page_locked_memory_everything_goes_through_the_device() {
    let mut setup = slow_bus();
    setup.sim.pinned_bytes = 0;
    let outcome = run(Setup {
        runners: Runners::Right,
        ..setup
    });
    assert_eq!(outcome.taken.pinned, 0);
    assert!(outcome.counters.staged > 0 && outcome.counters.landed > 0);
    assert!(outcome.seen == outcome.expected && outcome.n_races == 0);
}

#[test]
fn memory_that_runs_out_half_way_changes_nothing() {
    let cut = Setup {
        cut: Some(20),
        runners: Runners::Right,
        ..slow_bus()
    };
    let outcome = run(cut);
    assert!(outcome.taken.pinned > 0 && outcome.taken.pageable > 0);
    assert!(outcome.counters.staged > 0);
    assert!(outcome.seen == outcome.expected && outcome.n_races == 0);
}

#[test]
fn failures_leave_slots_as_they_were() {
    let outcome = run(Setup {
        failures: 0.5,
        max_pinned: 20_000,
        ..slow_bus()
    });
    assert!(outcome.n_failed > 10);
    assert!(outcome.seen == outcome.expected);
}

/// The tests see mistakes: without word of its attention, a layer's slots change under it.
#[test]
fn an_attention_that_is_kept_secret_is_a_race() {
    let setup = Setup {
        host_waits: false,
        ..Setup::default()
    };
    let mut world = World::new(setup);
    let mut wanted = Selection::default();
    wanted.reset(2);
    for (step, block) in [(0, 20), (1, 30)] {
        for head in 0..2 {
            *wanted.head_mut(head) = (block..block + SLOTS as u32).collect();
        }
        world.ensure(0, step, &wanted, None);
        let (reads, _) = world.attention(0);
        world
            .d
            .compute(world.compute, &reads, Duration::from_millis(1))
            .unwrap();
    }
    assert!(!world.d.races().is_empty());
}
