//! Blocks that come into the slots of a layer, by the CPU: by several threads at once where
//! there is much to copy, those that wait for it to go on.

use crate::cells::CellMap;
use crate::error::Error;
use crate::llama::{CacheTensor, CellPart};
use crate::slot::Slot;
use kiv_numeric::rope::Turn;
use kiv_policy::{Helpers, LayerGeometry};
use kiv_pool::{PoolLayout, SlotTable, Swap};
use kiv_store::{ColdTier, Transcoder};
use parking_lot::Mutex;

/// Bytes that one thread has copied before another one has begun.
const ALONE: usize = 64 << 10;

/// What is copied, and from where to where.
pub(crate) struct Bring<'a> {
    pub layer: usize,
    pub geometry: &'a LayerGeometry,
    pub layout: &'a PoolLayout,
    pub cells: &'a CellMap,
    pub store: &'a dyn ColdTier,
    pub transcoder: &'a Transcoder,
    /// Where keys are turned to, if they are.
    pub turn: Option<&'a Turn>,
}

/// Swaps of one KV head, and cells that hold all of their slots.
struct Part<'a> {
    kv_head: usize,
    swaps: Vec<(Swap, Slot)>,
    both: [CellPart<'a>; 2],
}

impl Bring<'_> {
    /// Copies blocks into slots, by KV head, whose tables say already that they are there.
    ///
    /// # Errors
    /// The first that is met; tables say then of all slots what is in them.
    pub(crate) fn bring(
        &self,
        (k, v): (&mut CacheTensor, &mut CacheTensor),
        swaps: &[Vec<Swap>],
        tables: &mut [SlotTable],
        helpers: &dyn Helpers,
    ) -> Result<(), Error> {
        let LayerGeometry {
            n_head_kv,
            key_dim,
            value_dim,
            ..
        } = *self.geometry;
        let row = k.format().row_bytes(key_dim) + v.format().row_bytes(value_dim);
        let n_swaps: usize = swaps.iter().map(Vec::len).sum();
        let is_much = n_swaps * self.layout.block * row > ALONE;
        // Other devices' memory is written to by one thread at a time.
        let several = is_much && k.is_host() && v.is_host() && helpers.n() > 1;
        let n_parts = if several {
            // Some have more to copy than others.
            (2 * helpers.n()).div_ceil(n_head_kv)
        } else {
            1
        };
        let both = k
            .by_head(n_head_kv, key_dim)
            .into_iter()
            .zip(v.by_head(n_head_kv, value_dim));
        let mut parts = Vec::new();
        for (kv_head, (swaps, (k, v))) in swaps.iter().zip(both).enumerate() {
            let swaps = swaps.iter().map(|swap| {
                let slot = Slot::new(self.layout, self.cells, swap.slot as usize);
                (*swap, slot)
            });
            let whole = Part {
                kv_head,
                swaps: swaps.collect(),
                both: [k, v],
            };
            whole.split(n_parts, &mut parts);
        }
        let queue = Mutex::new(parts.into_iter());
        let failed = Mutex::new((None, Vec::new()));
        let copy = || {
            let mut transcoder = self.transcoder.another();
            loop {
                let next = queue.lock().next();
                let Some(mut part) = next else { return };
                let (done, result) = self.fill(&mut part, &mut transcoder);
                if let Err(error) = result {
                    let (first, undone) = &mut *failed.lock();
                    first.get_or_insert(error);
                    let left = part.swaps[done..].iter();
                    undone.extend(left.map(|(swap, _)| (part.kv_head, *swap)));
                }
            }
        };
        if several {
            helpers.run(&copy);
        } else {
            copy();
        }
        let (error, undone) = failed.into_inner();
        for (kv_head, swap) in undone {
            // The slot still holds what it held.
            tables[kv_head].put(swap.slot, swap.leaving);
        }
        error.map_or(Ok(()), Err)
    }

    /// Copies a part's blocks, and says how many it has.
    fn fill(&self, part: &mut Part<'_>, transcoder: &mut Transcoder) -> (usize, Result<(), Error>) {
        for (done, (swap, slot)) in part.swaps.iter().enumerate() {
            let at = (self.layer, part.kv_head, swap.block);
            let result = slot.fill(self.store, transcoder, at, &mut part.both, self.turn);
            if result.is_err() {
                return (done, result);
            }
        }
        (part.swaps.len(), Ok(()))
    }
}

impl<'a> Part<'a> {
    /// Appends at most `n` parts with as many of the swaps each, if their slots' cells follow
    /// each other.
    fn split(mut self, n: usize, parts: &mut Vec<Self>) {
        self.swaps.sort_unstable_by_key(|(swap, _)| swap.slot);
        for left in (2..=n).rev() {
            let at = self.swaps.len() / left;
            let (before, others) = self.swaps.split_at(at);
            let last = before.iter().flat_map(|(_, slot)| &slot.cells).max();
            let first = others.iter().flat_map(|(_, slot)| &slot.cells).min();
            let (Some(last), Some(&first)) = (last, first) else {
                continue;
            };
            if first <= *last {
                continue;
            }
            let others = self.swaps.split_off(at);
            let [k, v] = self.both;
            let [k, v] = [k, v].map(|part| part.split_at(first as usize));
            parts.push(Self {
                kv_head: self.kv_head,
                swaps: self.swaps,
                both: [k.0, v.0],
            });
            self = Self {
                kv_head: self.kv_head,
                swaps: others,
                both: [k.1, v.1],
            };
        }
        parts.push(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::TestCache;
    use crate::slot::read_rows;
    use kiv_policy::{Alone, BlockId, ColdError, ColdRows, ColdRun, Geometry, RowFormat, Spawned};
    use kiv_pool::PoolConfig;
    use kiv_store::{HostStore, StoreError};
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const BLOCKS: usize = 100;

    /// Rows that are all there, but for one block's.
    struct Without<'a>(&'a HostStore, BlockId);
    impl ColdRows for Without<'_> {
        fn n_blocks(&self) -> usize {
            self.0.n_blocks()
        }
        fn keys(&self, l: usize, h: usize, b: u32, n: usize) -> Result<ColdRun<'_>, ColdError> {
            self.0.keys(l, h, b, n)
        }
        fn values(&self, l: usize, h: usize, b: u32, n: usize) -> Result<ColdRun<'_>, ColdError> {
            if b == self.1 {
                return Err(ColdError("gone".to_owned()));
            }
            self.0.values(l, h, b, n)
        }
    }
    impl ColdTier for Without<'_> {
        fn append(&mut self, _: usize, _: usize, _: &[u8], _: &[u8]) -> Result<(), StoreError> {
            unreachable!()
        }
        fn publish(&mut self, _: usize) -> Result<(), StoreError> {
            unreachable!()
        }
        fn roll_back(&mut self) {}
        fn truncate(&mut self, _: usize) {}
        fn host_bytes(&self) -> usize {
            0
        }
    }

    struct World {
        geometry: Geometry,
        layout: PoolLayout,
        store: HostStore,
        swaps: Vec<Vec<Swap>>,
    }

    /// Random blocks, and random ones of them that are wanted in slots; some heads want more
    /// than others.
    fn world(n_head_kv: usize, rng: &mut ChaCha8Rng) -> World {
        let layer = LayerGeometry {
            il: 0,
            n_head: n_head_kv,
            n_head_kv,
            key_dim: 64,
            value_dim: 32,
            scale: 1.0,
            soft_cap: None,
        };
        let config = PoolConfig {
            sinks: 3,
            window: 64,
            budget: 30 * 32,
            block: 32,
            ubatch: 32,
        };
        let geometry = Geometry {
            layers: vec![layer],
            block: 32,
            n_slots: 30,
            first_position: 3,
            key_format: RowFormat::Q8_0,
            value_format: RowFormat::F16,
            n_threads: 3,
        };
        let mut store = HostStore::new(&geometry);
        let mut swaps = Vec::new();
        for kv_head in 0..n_head_kv {
            let mut rows = |dim: usize, format: RowFormat| {
                let values = (0..BLOCKS * 32 * dim).map(|_| rng.random_range(-1.0..1.0));
                format.encode(&values.collect::<Vec<f32>>())
            };
            let (keys, values) = (rows(64, RowFormat::Q8_0), rows(32, RowFormat::F16));
            store.append(0, kv_head, &keys, &values).unwrap();
            let mut blocks: Vec<u32> = (30..BLOCKS as u32).collect();
            blocks.shuffle(rng);
            let n = [30, 7, 0, 25][kv_head % 4];
            let swaps_of_head = (0..n).zip(blocks).map(|(i, block)| Swap {
                slot: (i * 7) % 30,
                block,
                leaving: (i * 7) % 30,
            });
            swaps.push(swaps_of_head.collect());
        }
        store.publish(BLOCKS).unwrap();
        World {
            geometry,
            layout: PoolLayout::new(&config).unwrap(),
            store,
            swaps,
        }
    }

    impl World {
        /// Slots' tables, which say that blocks are there.
        fn tables(&self) -> Vec<SlotTable> {
            let tables = self.swaps.iter().map(|swaps| {
                let mut table = SlotTable::new(30);
                swaps
                    .iter()
                    .for_each(|swap| table.put(swap.slot, swap.block));
                table
            });
            tables.collect()
        }

        /// Copies them in; checks that slots hold what tables say, or nothing that has come.
        fn bring(&self, store: &dyn ColdTier, cells: &CellMap, helpers: &dyn Helpers) -> usize {
            let layer = &self.geometry.layers[0];
            let n = self.layout.n_cells;
            let mut k = TestCache::new(RowFormat::F16, layer.n_head_kv * 64, n);
            let mut v = TestCache::new(RowFormat::F16, layer.n_head_kv * 32, n);
            let formats = [self.geometry.key_format, self.geometry.value_format];
            let transcoder = Transcoder::new([RowFormat::F16; 2], formats);
            let bring = Bring {
                layer: 0,
                geometry: layer,
                layout: &self.layout,
                cells,
                store,
                transcoder: &transcoder,
                turn: None,
            };
            let mut tables = self.tables();
            let both = (&mut k.tensor, &mut v.tensor);
            let brought = bring.bring(both, &self.swaps, &mut tables, helpers);
            let mut there = 0;
            for (kv_head, swaps) in self.swaps.iter().enumerate() {
                for swap in swaps {
                    let slot = Slot::new(&self.layout, cells, swap.slot as usize);
                    let came = tables[kv_head].blocks()[swap.slot as usize] == swap.block;
                    let run = self.store.keys(0, kv_head, swap.block, 1).unwrap();
                    let mut transcoder = transcoder.another();
                    let keys = transcoder.decode(run.rows(), RowFormat::F16);
                    let got = read_rows(&k.tensor, kv_head, &slot.cells, keys);
                    let nothing = vec![0; keys.bytes.len()];
                    assert_eq!(got, if came { keys.bytes } else { &nothing });
                    let run = self.store.values(0, kv_head, swap.block, 1).unwrap();
                    let got = read_rows(&v.tensor, kv_head, &slot.cells, run.rows());
                    assert_eq!(got == run.rows().bytes, came);
                    there += usize::from(came);
                }
            }
            let all = self.swaps.iter().map(Vec::len).sum::<usize>();
            assert_eq!(brought.is_ok(), there == all);
            there
        }
    }

    #[test]
    fn slots_hold_what_tables_say() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for n_head_kv in [1, 2, 5] {
            let world = world(n_head_kv, &mut rng);
            let start = world.layout.window_start();
            let mut cells: Vec<u32> = (0..start as u32).collect();
            for in_order in [true, false] {
                if !in_order {
                    cells.shuffle(&mut rng);
                }
                let cells = CellMap::restore(&world.layout, cells.clone(), start, Vec::new());
                for helpers in [&Spawned(3) as &dyn Helpers, &Alone] {
                    let there = world.bring(&world.store, &cells, helpers);
                    assert_eq!(there, world.swaps.iter().map(Vec::len).sum::<usize>());
                    for missing in [world.swaps[0][0].block, world.swaps[0][20].block] {
                        let store = Without(&world.store, missing);
                        assert!(world.bring(&store, &cells, helpers) < there);
                    }
                }
            }
        }
    }
}
