//! The tiered cache of one sequence: slots on the device, everything sealed
//! in the cold store, and the policy that decides between them.

use crate::bring::Bring;
use crate::cells::CellMap;
use crate::cold::Cold;
use crate::error::Error;
use crate::gpu;
use crate::llama::{CacheTensor, Caches, CellPart, Node, Parts};
use crate::local::Local;
use crate::persist::slots_at_home;
use crate::remap::{Frame, Remap, turn_rows};
use crate::rest;
use crate::slot::{CellRows, Slot, read_rows, turned, write_keys};
use crate::stats::Stats;
use crate::timeline::Recorder;
use kiv_context::DiskTier;
use kiv_cuda::Slots;
use kiv_policy::{
    BlockId, Geometry, LayerGeometry, Phase, Policy, PolicyError, Queries, RowFormat, Rows, RowsOf,
    SealedBlocks, SelectRequest, Selection,
};
use kiv_pool::{NONE, PoolLayout, SlotTable, Swap};
use kiv_store::{ColdTier, Transcoder};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::time::{Duration, Instant};

/// From this on a selection is slow; see [`Tiers::is_slow`].
const SLOW: Duration = Duration::from_micros(300);

/// What is being computed.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub phase: Phase,
    pub step: u64,
    /// Position of each token.
    pub positions: Vec<i32>,
    /// Cell of each token; known once the first rows are stored.
    pub cells: Vec<u32>,
}

impl Batch {
    /// Positions and cells of rows that are older, and of the batch's own.
    pub(crate) fn with_older(
        &self,
        older: impl Iterator<Item = (usize, u32)>,
    ) -> (Vec<i32>, Vec<u32>) {
        let older = older.map(|(position, cell)| (position as i32, cell));
        let own = self.positions.iter().zip(&self.cells);
        older.chain(own.map(|(p, c)| (*p, *c))).unzip()
    }
}

/// Tiered layers of one sequence.
pub(crate) struct Tiers {
    geometry: Geometry,
    layout: PoolLayout,
    policy: Box<dyn Policy>,
    store: Cold,
    /// From the cache's types to the store's and back.
    transcoder: Transcoder,
    /// Where far tokens are seen, if not where they are.
    remap: Option<Remap>,
    /// Learned sinks, `[layer][head]`, none in most models.
    sinks: Vec<Vec<f32>>,
    /// `[layer][kv_head]`.
    slots: Vec<Vec<SlotTable>>,
    /// Blocks that have left the window (kept or, without retrieval, dropped).
    n_sealed: usize,
    /// The policy has been told to forget, and not yet of what may be gone with that.
    is_behind: bool,
    /// Moves every block at every step (the permutation check).
    shuffle: Option<ChaCha8Rng>,
    /// Whether what is not in slots may stand in one of them as if it were one token.
    rests: bool,
    pub(crate) stats: Stats,
    /// Is told what layers' time goes to, while a token's is asked for.
    pub(crate) recorder: Option<Recorder>,
    /// Time of each layer's last selection.
    last_select: Vec<Duration>,
    // Scratch, kept to allocate once.
    queries: Vec<f32>,
    selection: Selection,
    swaps: Vec<Vec<Swap>>,
}

impl Tiers {
    /// `geometry` says what types `store` keeps, `cache` those of the cache.
    pub(crate) fn new(
        geometry: Geometry,
        cache: [RowFormat; 2],
        layout: PoolLayout,
        mut policy: Box<dyn Policy>,
        store: Cold,
        remap: Option<Remap>,
        shuffle: Option<ChaCha8Rng>,
    ) -> Result<Self, Error> {
        policy.start(&geometry).map_err(|source| Error::Policy {
            policy: policy.name().to_owned(),
            il: geometry.layers.first().map_or(0, |l| l.il),
            source,
        })?;
        Ok(Self {
            slots: slots_at_home(&geometry),
            store,
            remap,
            sinks: vec![Vec::new(); geometry.layers.len()],
            transcoder: Transcoder::new(cache, [geometry.key_format, geometry.value_format]),
            last_select: vec![Duration::ZERO; geometry.layers.len()],
            geometry,
            layout,
            policy,
            n_sealed: 0,
            is_behind: false,
            shuffle,
            rests: false,
            stats: Stats::default(),
            recorder: None,
            queries: Vec::new(),
            selection: Selection::default(),
            swaps: Vec::new(),
        })
    }

    /// With learned sinks, `[layer][head]`.
    pub(crate) fn with_sinks(self, sinks: Vec<Vec<f32>>) -> Self {
        Self { sinks, ..self }
    }

    /// Takes rests, if slots hold rows as they are.
    pub(crate) fn with_rests(self, rests: bool) -> Self {
        let rests = rests && self.shuffle.is_none() && self.remap.is_none();
        Self { rests, ..self }
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(crate) fn policy(&self) -> &dyn Policy {
        &*self.policy
    }

    pub(crate) fn store(&self) -> &dyn ColdTier {
        &*self.store
    }

    /// The tier on disk, if rows go there.
    pub(crate) fn disk(&mut self) -> Option<&mut DiskTier> {
        self.store.disk()
    }

    /// Slot tables, `[layer][kv_head]`.
    pub(crate) fn all_slots(&self) -> &[Vec<SlotTable>] {
        &self.slots
    }

    /// Counters, those of the store included.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            reads: self.store.read_stats(),
            ..self.stats.clone()
        }
    }

    /// Counters of the GPU's streams, if they swap.
    pub(crate) fn gpu_counters(&self) -> Option<kiv_cuda::Counters> {
        match &self.store {
            Cold::Gpu(gpu) => Some(gpu.swapper().counters()),
            Cold::Host(_) | Cold::Disk(_) => None,
        }
    }

    /// The tier that a GPU reads, if rows are there.
    pub(crate) fn gpu(&mut self) -> Option<&mut gpu::GpuTier> {
        self.store.gpu()
    }

    /// Makes the store, the policy's index and these parts durable.
    pub(crate) fn commit(&mut self, parts: &[(&str, &[u8])], n_tokens: usize) -> Result<(), Error> {
        self.catch_up()?;
        let (policy, il) = (
            &self.policy,
            self.geometry.layers.first().map_or(0, |l| l.il),
        );
        let Some(disk) = self.store.disk() else {
            return Ok(());
        };
        let mut commit = disk.commit();
        for (name, bytes) in parts {
            commit.part(name, bytes)?;
        }
        let prefix = format!("index {}", policy.name());
        let mut failed = None;
        let saved = policy.save(&mut |name, bytes| {
            commit
                .part(&format!("{prefix} {name}"), bytes)
                .map_err(|error| {
                    let told = PolicyError(error.to_string());
                    failed = Some(error);
                    told
                })
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        saved.map_err(|source| Error::Policy {
            policy: policy.name().to_owned(),
            il,
            source,
        })?;
        commit.finish(n_tokens)?;
        Ok(())
    }

    /// Takes up the blocks that the store holds from an earlier process: slots as
    /// they were then, and the policy's index, which is made anew if it was not
    /// kept.
    pub(crate) fn resume(&mut self, slots: Vec<Vec<SlotTable>>) -> Result<(), Error> {
        let prefix = format!("index {}", self.policy.name());
        let mut failed = None;
        let disk = self.store.disk();
        let loaded = self.policy.load(&mut |name| {
            let part = disk
                .as_ref()
                .map(|disk| disk.part(&format!("{prefix} {name}")));
            part.transpose().map(Option::flatten).map_err(|error| {
                let told = PolicyError(error.to_string());
                failed = Some(error);
                told
            })
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        if !loaded.map_err(|source| self.policy_error(source))? {
            self.index_again()?;
        }
        self.n_sealed = self.store.n_blocks();
        self.slots = slots;
        Ok(())
    }

    /// Tells the policy of all blocks of the store.
    fn index_again(&mut self) -> Result<(), Error> {
        for first in 0..self.store.n_blocks() {
            for (layer, l) in self.geometry.layers.iter().enumerate() {
                for kv_head in 0..l.n_head_kv {
                    let first = first as BlockId;
                    let keys = self.store.keys(layer, kv_head, first, 1)?;
                    let values = self.store.values(layer, kv_head, first, 1)?;
                    let blocks = SealedBlocks {
                        layer,
                        kv_head,
                        first,
                        count: 1,
                        keys: keys.rows(),
                        values: values.rows(),
                    };
                    let told = self.policy.seal(&blocks);
                    told.map_err(|source| self.policy_error(source))?;
                }
            }
        }
        let told = self.policy.sealed(&*self.store);
        told.map_err(|source| self.policy_error(source))
    }

    /// Lets another policy choose from now on, told of all blocks of the store.
    pub(crate) fn set_policy(&mut self, policy: Box<dyn Policy>) -> Result<(), Error> {
        self.policy = policy;
        let started = self.policy.start(&self.geometry);
        started.map_err(|source| self.policy_error(source))?;
        self.index_again()
    }

    /// Forgets blocks from `n_blocks` on; slots are at home again.
    pub(crate) fn cut(&mut self, n_blocks: usize) -> Result<(), Error> {
        self.store.truncate(n_blocks);
        self.n_sealed = self.n_sealed.min(n_blocks);
        self.slots = slots_at_home(&self.geometry);
        if let Some(remap) = &mut self.remap {
            remap.forget();
        }
        self.tell_cut()
    }

    /// Has the policy forget what is no longer sealed. It may forget more than that, and is
    /// told of the rest again: later, if that fails now.
    fn tell_cut(&mut self) -> Result<(), Error> {
        self.is_behind = true;
        let told = self.policy.truncate(self.n_sealed);
        let told = told.and_then(|()| self.policy.sealed(&*self.store));
        told.map_err(|source| self.policy_error(source))?;
        self.is_behind = false;
        Ok(())
    }

    /// Makes up for a [`Tiers::tell_cut`] that failed, before the policy is asked anything.
    fn catch_up(&mut self) -> Result<(), Error> {
        if self.is_behind {
            self.tell_cut()
        } else {
            Ok(())
        }
    }

    /// Rows of a block as the cache wants them: K (`which` 0) or V.
    pub(crate) fn read_block(
        &mut self,
        (layer, kv_head, block): (usize, usize, BlockId),
        which: usize,
        format: RowFormat,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let run = if which == 0 {
            self.store.keys(layer, kv_head, block, 1)?
        } else {
            self.store.values(layer, kv_head, block, 1)?
        };
        let rows = self.transcoder.decode(run.rows(), format);
        out.clear();
        out.extend_from_slice(rows.bytes);
        let first = self.layout.sinks + block as usize * self.layout.block;
        let remap = self.remap.as_ref().filter(|_| which == 0);
        if let Some(turn) = remap.and_then(|r| r.seal_turn(layer, first, self.layout.block, true)) {
            turn_rows(&turn, format, self.geometry.layers[layer].key_dim, out);
        }
        Ok(())
    }

    fn policy_error(&self, source: PolicyError) -> Error {
        Error::Policy {
            policy: self.policy.name().to_owned(),
            il: self.geometry.layers.first().map_or(0, |l| l.il),
            source,
        }
    }

    pub(crate) fn slots(&self, layer: usize, kv_head: usize) -> &SlotTable {
        &self.slots[layer][kv_head]
    }

    /// Whether this layer's last selection took long enough for idle compute
    /// threads to be in its way, if they do not help: waking them costs some tens of
    /// microseconds and more.
    pub(crate) fn is_slow(&self, layer: usize) -> bool {
        !self.policy.takes_help() && self.last_select[layer] > SLOW
    }

    /// Whether blocks are moved without need.
    pub(crate) fn shuffles(&self) -> bool {
        self.shuffle.is_some()
    }

    /// Blocks that left the window.
    pub(crate) fn n_sealed(&self) -> usize {
        self.n_sealed
    }

    /// Whether a layer's attention waits for a selection.
    pub(crate) fn selects(&self) -> bool {
        self.store.n_blocks() > 0 && self.layout.n_slots > 0
    }

    /// Whether a layer's attention waits for anything.
    pub(crate) fn serves(&self) -> bool {
        self.selects() || self.moves()
    }

    /// Whether far tokens are seen somewhere else than where they are.
    pub(crate) fn moves(&self) -> bool {
        self.remap.is_some() && self.n_sealed > 0
    }

    /// How a layer's rows are shown to policies, if not as they are.
    pub(crate) fn frame(&self, layer: usize, cells: &CellMap) -> Option<Frame<'_>> {
        let remap = self.remap.as_ref().filter(|_| self.moves())?;
        remap.frame(layer, cells)
    }

    /// Puts sinks back to where they were read.
    pub(crate) fn sinks_go_home(
        &mut self,
        caches: &mut Caches,
        cells: &CellMap,
    ) -> Result<(), Error> {
        if let Some(remap) = &mut self.remap {
            for (layer, geometry) in self.geometry.layers.iter().enumerate() {
                remap.go_home(layer, layer_caches(caches, geometry.il)?.0, cells);
            }
        }
        Ok(())
    }

    /// Index of llama.cpp's layer `il`.
    pub(crate) fn layer_of(&self, il: u32) -> Option<usize> {
        self.geometry.layers.iter().position(|l| l.il == il)
    }

    /// Seals blocks at positions `from..to`, whose rows are in `cells`.
    ///
    /// Rows are copied out first; the caller frees the cells when all is well.
    pub(crate) fn seal(&mut self, cells: &[u32], caches: &mut Caches) -> Result<(), Error> {
        let count = cells.len() / self.layout.block;
        if !self.policy.retrieves() {
            self.n_sealed += count;
            return Ok(());
        }
        self.catch_up()?;
        let started = Instant::now();
        let mut result = self.copy_out(cells, count, caches);
        self.stats.seal += started.elapsed();
        let indexing = Instant::now();
        if result.is_ok() {
            result = self.store.publish(count).map_err(Error::from);
        }
        if result.is_ok() {
            let told = self.policy.sealed(&*self.store);
            result = told.map_err(|source| self.policy_error(source));
        }
        if result.is_ok() {
            self.n_sealed += count;
        } else {
            // What one has heard of and the other has not would make block
            // numbers drift.
            self.store.truncate(self.n_sealed);
            // An error that stays comes up when it is made up for.
            let _ = self.tell_cut();
        }
        self.stats.index += indexing.elapsed();
        result
    }

    fn copy_out(&mut self, cells: &[u32], count: usize, caches: &mut Caches) -> Result<(), Error> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let first = self.layout.sinks + self.n_sealed * self.layout.block;
        for (index, layer) in self.geometry.layers.iter().enumerate() {
            let (k, v) = layer_caches(caches, layer.il)?;
            let remap = self.remap.as_ref();
            let turn = remap.and_then(|r| r.seal_turn(index, first, cells.len(), false));
            let (k_rows, v_rows) = (CellRows::new(k, cells), CellRows::new(v, cells));
            let lens = [
                k.format().row_bytes(layer.key_dim),
                v.format().row_bytes(layer.value_dim),
            ];
            for kv_head in 0..layer.n_head_kv {
                for (of, len, rows) in [
                    (&k_rows, lens[0], &mut keys),
                    (&v_rows, lens[1], &mut values),
                ] {
                    rows.clear();
                    of.part((kv_head * len, len), rows);
                }
                if let Some(turn) = &turn {
                    turn_rows(turn, k.format(), layer.key_dim, &mut keys);
                }
                let [keys, values] = self.transcoder.encode(&keys, &values);
                self.store.append(index, kv_head, keys, values)?;
                let rows = |format, row_len, bytes| Rows {
                    format,
                    row_len,
                    bytes,
                };
                let blocks = SealedBlocks {
                    layer: index,
                    kv_head,
                    first: self.n_sealed as u32,
                    count,
                    keys: rows(self.geometry.key_format, layer.key_dim, keys),
                    values: rows(self.geometry.value_format, layer.value_dim, values),
                };
                self.policy.seal(&blocks).map_err(|source| Error::Policy {
                    policy: self.policy.name().to_owned(),
                    il: layer.il,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Chooses and swaps in the blocks that this layer's queries want.
    pub(crate) fn before_attention(
        &mut self,
        layer: usize,
        query: Node<'_>,
        Parts { caches, helpers }: Parts<'_>,
        cells: &CellMap,
        batch: &Batch,
    ) -> Result<(), Error> {
        let started = Instant::now();
        self.catch_up()?;
        let geometry = &self.geometry.layers[layer];
        let broken = |reason| Error::Unhookable { reason };
        query.read_queries(&mut self.queries).map_err(broken)?;
        if query.shape()[..3] != [geometry.key_dim, batch.positions.len(), geometry.n_head] {
            return Err(broken(format!(
                "unexpected queries of shape {:?}",
                query.shape()
            )));
        }
        let (k, v) = layer_caches(caches, geometry.il)?;
        let (moves, selects) = (self.moves(), self.selects());
        let remap = self.remap.as_mut().filter(|_| moves);
        let moved = remap.is_some_and(|remap| remap.follow(layer, k, geometry, cells));
        if !selects {
            return Ok(());
        }
        let remap = self.remap.as_ref().filter(|_| moves);
        let frame = remap.and_then(|remap| remap.frame(layer, cells));
        if let Some(frame) = &frame {
            frame.show_queries(&batch.positions, &mut self.queries, geometry.key_dim);
        }
        let local = Local::new(k, geometry, &self.layout, cells, batch, frame);
        self.selection.reset(geometry.n_head_kv);
        let runners = self.store.gpu().map_or(0, |_| gpu::RUNNERS);
        let slots = self.slots[layer].iter().map(SlotTable::blocks);
        let resident: Vec<&[BlockId]> = slots.collect();
        let request = SelectRequest {
            layer,
            phase: batch.phase,
            step: batch.step,
            runners,
            queries: Queries {
                values: &self.queries,
                n_head: geometry.n_head,
                dim: geometry.key_dim,
                positions: &batch.positions,
            },
            cold: &*self.store,
            local: &local,
            takes_rest: self.rests
                && batch.phase == Phase::Decode
                && batch.positions.len() == 1
                && rest::fits(geometry, k.format(), &self.layout),
            resident: &resident,
            sinks: &self.sinks[layer],
            helpers,
        };
        let il = geometry.il;
        self.policy
            .select(&request, &mut self.selection)
            .map_err(|source| Error::Policy {
                policy: self.policy.name().to_owned(),
                il,
                source,
            })?;
        if self.selection.n_heads() != geometry.n_head_kv {
            return Err(broken("a selection for another number of heads".to_owned()));
        }
        self.selection
            .validate(self.layout.n_slots, self.store.n_blocks())
            .map_err(|source| Error::Selection {
                policy: self.policy.name().to_owned(),
                il,
                source,
            })?;
        let selected = Instant::now();
        self.last_select[layer] = selected - started;
        self.stats.select += selected - started;
        self.stats.selections += 1;
        self.swaps.resize_with(geometry.n_head_kv, Vec::new);
        let mut rests = Vec::new();
        for kv_head in 0..geometry.n_head_kv {
            let wanted = self.selection.head(kv_head);
            let rest = self.selection.rest(kv_head);
            let rest = rest::rows(
                geometry,
                k.format(),
                &self.queries,
                kv_head,
                rest,
                self.layout.block,
            );
            let (table, swaps) = (&mut self.slots[layer][kv_head], &mut self.swaps[kv_head]);
            if let Some(rng) = &mut self.shuffle {
                let mut blocks = table.blocks().to_vec();
                blocks.shuffle(rng);
                table.place_all(&blocks, swaps);
            } else {
                if rest.is_some() {
                    table.give_up_last();
                }
                table.want(wanted, batch.step, swaps);
                if rest.is_none() {
                    swaps.extend(table.take_back_last());
                }
            }
            rests.push(rest);
            self.stats.blocks_wanted += wanted.len() as u64;
            self.stats.blocks_swapped += swaps.len() as u64;
        }
        // Reading of all heads' blocks begins at once, and goes on while the
        // first are copied.
        for (kv_head, swaps) in self.swaps.iter().enumerate() {
            let blocks: Vec<BlockId> = swaps.iter().map(|swap| swap.block).collect();
            self.store.expect(layer, kv_head, RowsOf::Both, &blocks);
        }
        let turn = self.remap.as_ref().and_then(|r| r.slot_turn(layer));
        let mut result = if let Some(gpu) = self.store.gpu() {
            let cells = &cells.cells(self.layout.sinks, self.layout.window_start());
            let slots = Slots { cells, turn };
            let (at, tables) = ((layer, batch.step), &mut self.slots);
            gpu::bring(gpu, at, &self.selection, &self.swaps, tables, slots)
        } else {
            let bring = Bring {
                layer,
                geometry,
                layout: &self.layout,
                cells,
                store: &*self.store,
                transcoder: &self.transcoder,
                turn,
            };
            let tables = &mut self.slots[layer];
            bring.bring((&mut *k, &mut *v), &self.swaps, tables, helpers)
        };
        // While a GPU is bringing blocks to other slots.
        let last = Slot::new(&self.layout, cells, self.layout.n_slots - 1);
        rest::write([&mut *k, &mut *v], &last.cells, &rests);
        if let Some(gpu) = self.store.gpu() {
            result = result.and(gpu::settle(gpu, (layer, batch.step), &self.slots));
        }
        if moved && result.is_ok() {
            result = self.turn_slots(layer, k, cells);
        }
        if let (Some(remap), Ok(())) = (&mut self.remap, &result) {
            remap.slots_followed(layer);
        }
        let brought = Instant::now();
        self.stats.swap += brought - selected;
        if let Some(recorder) = &mut self.recorder {
            recorder.layer(il, [started, selected, brought]);
        }
        result
    }

    /// Fills the slots of a layer with keys that are turned to where slots are now.
    fn turn_slots(
        &mut self,
        layer: usize,
        k: &mut CacheTensor,
        cells: &CellMap,
    ) -> Result<(), Error> {
        let turn = self.remap.as_ref().and_then(|r| r.slot_turn(layer));
        if let Some(gpu) = self.store.gpu() {
            let cells = &cells.cells(self.layout.sinks, self.layout.window_start());
            return gpu::fill(gpu, layer, &self.slots[layer], Slots { cells, turn });
        }
        let dim = self.geometry.layers[layer].key_dim;
        for (kv_head, table) in self.slots[layer].iter().enumerate() {
            let mut part = k.of_head(kv_head, dim);
            for (number, block) in table.blocks().iter().enumerate() {
                let slot = Slot::new(&self.layout, cells, number);
                let run = self.store.keys(layer, kv_head, *block, 1)?;
                let rows = self.transcoder.decode(run.rows(), part.format());
                write_keys(&mut part, &slot.cells, rows, turn);
            }
        }
        Ok(())
    }

    /// Puts into every slot the block that was there first.
    pub(crate) fn reset_slots(
        &mut self,
        caches: &mut Caches,
        cells: &CellMap,
    ) -> Result<(), Error> {
        let home = SlotTable::new(self.layout.n_slots);
        for (layer, geometry) in self.geometry.layers.iter().enumerate() {
            let (k, v) = layer_caches(caches, geometry.il)?;
            let turn = self.remap.as_ref().and_then(|r| r.slot_turn(layer));
            for (kv_head, table) in self.slots[layer].iter_mut().enumerate() {
                let mut both = both_of_head((k, v), geometry, kv_head);
                let moved = table.blocks().iter().zip(home.blocks()).enumerate();
                let moved: Vec<(usize, BlockId)> = moved
                    .filter(|(_, (is, home))| is != home)
                    .map(|(slot, (_, home))| (slot, *home))
                    .collect();
                for (number, block) in moved {
                    let slot = Slot::new(&self.layout, cells, number);
                    let at = (layer, kv_head, block);
                    slot.fill(&*self.store, &mut self.transcoder, at, &mut both, turn)?;
                    table.put(number as u32, block);
                }
                *table = home.clone();
            }
        }
        Ok(())
    }

    /// Compares every slot's bytes with the cold rows of its block; returns
    /// the number of slots compared and of those that differ.
    pub(crate) fn compare_slots(
        &mut self,
        caches: &mut Caches,
        cells: &CellMap,
    ) -> Result<(usize, usize), Error> {
        let (mut compared, mut wrong) = (0, 0);
        for (layer, geometry) in self.geometry.layers.iter().enumerate() {
            let (k, v) = layer_caches(caches, geometry.il)?;
            let turn = self.remap.as_ref().and_then(|r| r.slot_turn(layer));
            for kv_head in 0..geometry.n_head_kv {
                let blocks = self.slots[layer][kv_head].blocks().iter().enumerate();
                for (slot, block) in blocks.filter(|(_, block)| **block != NONE) {
                    let slot = Slot::new(&self.layout, cells, slot);
                    let keys = self.store.keys(layer, kv_head, *block, 1)?;
                    let values = self.store.values(layer, kv_head, *block, 1)?;
                    let mut differ = false;
                    for (cache, run, turn) in [(&*k, keys, turn), (&*v, values, None)] {
                        let rows = self.transcoder.decode(run.rows(), cache.format());
                        let is = read_rows(cache, kv_head, &slot.cells, rows);
                        differ |= is[..] != turned(rows, turn)[..];
                    }
                    compared += 1;
                    wrong += usize::from(differ);
                }
            }
        }
        Ok((compared, wrong))
    }

    /// Overwrites the slots' own first tokens, which have just been sealed, with
    /// what the store will give back for them, where that is not the same: a
    /// block is the same from then on, wherever it is and however often it moves.
    fn settle_slots(&mut self, caches: &mut Caches, cells: &CellMap) -> Result<(), Error> {
        for (layer, geometry) in self.geometry.layers.iter().enumerate() {
            let (k, v) = layer_caches(caches, geometry.il)?;
            for kv_head in 0..geometry.n_head_kv {
                let mut both = both_of_head((k, v), geometry, kv_head);
                for slot in 0..self.layout.n_slots {
                    let at = (layer, kv_head, slot as BlockId);
                    let slot = Slot::new(&self.layout, cells, slot);
                    slot.fill(&*self.store, &mut self.transcoder, at, &mut both, None)?;
                }
            }
        }
        Ok(())
    }

    /// Seals the slots' own first tokens, so that slots can be overwritten.
    pub(crate) fn seal_slots(&mut self, caches: &mut Caches, cells: &CellMap) -> Result<(), Error> {
        let PoolLayout {
            sinks,
            block,
            n_slots,
            ..
        } = self.layout;
        self.seal(&cells.cells(sinks, sinks + n_slots * block), caches)?;
        if self.transcoder.converts() && self.policy.retrieves() {
            self.settle_slots(caches, cells)?;
        }
        Ok(())
    }
}

fn layer_caches(
    caches: &mut Caches,
    il: u32,
) -> Result<(&mut CacheTensor, &mut CacheTensor), Error> {
    caches.layer(il).ok_or_else(|| Error::Unhookable {
        reason: format!("layer {il} has no K and V cache"),
    })
}

/// One KV head's K and V rows.
fn both_of_head<'a>(
    (k, v): (&'a mut CacheTensor, &'a mut CacheTensor),
    geometry: &LayerGeometry,
    kv_head: usize,
) -> [CellPart<'a>; 2] {
    [
        k.of_head(kv_head, geometry.key_dim),
        v.of_head(kv_head, geometry.value_dim),
    ]
}
