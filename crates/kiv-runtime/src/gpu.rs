//! Blocks brought into slots by a GPU's own streams, where the cache is in its memory.
//!
//! Sealed rows are in host memory that the GPU reads ([`kiv_cuda::DeviceTier`]). Before a
//! layer's attention one kernel brings what is missing; while the layer is computed, what
//! the next one may want is fetched ahead. llama.cpp stops for the hook and waits for all
//! it has computed before, so that slots may be written as soon as the hook is called; it
//! does not know of the streams here, so that the host waits for them before it goes on.
//!
//! Whatever cannot be had - a driver, rows of such types, memory - leaves everything to
//! ggml's own copies.

use crate::error::Error;
use crate::llama::{CacheTensor, Caches, cuda_missing};
use kiv_cuda::search::{DeviceFinder, FinderConfig};
use kiv_cuda::work::{Cache, Side};
use kiv_cuda::{
    Absent, CudaDevice, Device, DeviceError, DeviceTier, Kernels, LayerShape, Pager, PinnedPool,
    PredictConfig, Slots, SwapConfig, Swapper, look_or_say, open_or_say,
};
use kiv_policy::{Geometry, Selection};
use kiv_pool::{SlotTable, Swap};
use kiv_store::SEGMENT_TOKENS;
use std::sync::Once;

/// Most bytes that are page-locked at a time.
const CHUNK: usize = 64 << 20;

/// Share of a GPU's free memory that copies of the index may take: ggml wants some, too.
const INDEX_SHARE: usize = 2;

/// Blocks of each KV head that are told to come next: some are fetched ahead.
pub(crate) const RUNNERS: usize = 8;

/// Sealed rows that a GPU reads, and what swaps them in.
pub(crate) type GpuTier = DeviceTier<CudaDevice>;

/// How a session wants its GPU.
pub(crate) struct GpuOptions {
    /// Most bytes of page-locked memory, besides what the system's memory allows.
    pub host_limit: Option<usize>,
    /// Takes cells in host memory for a GPU's, of an emulated driver.
    pub lends_host: bool,
    /// Is told why there is no GPU, once in a process.
    pub warn: fn(&str),
}

/// Why a GPU does not swap, for whoever expects it to.
#[derive(Debug, thiserror::Error)]
enum NoTier {
    #[error(transparent)]
    Absent(#[from] Absent),
    #[error("CUDA: {0}; blocks are copied by ggml")]
    Device(#[from] DeviceError),
}

/// Tells whoever built this for a GPU why none computes, once in a process.
pub(crate) fn say_if_absent(warn: fn(&str)) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| match look_or_say(0) {
        Err(Absent::NotBuilt) => {}
        Err(absent) => warn(&absent.to_string()),
        Ok(()) => {
            if let Some(why) = cuda_missing() {
                warn(&format!(
                    "CUDA: there is a GPU, but ggml's backend for it computes nothing ({why}); kiv \
                     goes on on the CPU"
                ));
            }
        }
    });
}

/// What searches the index on the first GPU; `None` if that cannot be had, which `warn` is told
/// of every time: somebody has asked for it.
pub(crate) fn finder(warn: fn(&str)) -> Option<DeviceFinder<CudaDevice>> {
    let open = || -> Result<_, NoTier> {
        let mut gpu = open_or_say(0)?;
        gpu.prepare(Kernels::Searches)?;
        let max_bytes = gpu.free_memory()? / INDEX_SHARE;
        Ok(DeviceFinder::new(gpu, FinderConfig { max_bytes, warn })?)
    };
    let opened = open();
    if let Err(why) = &opened {
        warn(&format!("the index stays on the host: {why}"));
    }
    opened.ok()
}

/// A tier for these layers, if the cache is in a GPU's memory and all else allows it.
pub(crate) fn open(
    geometry: &Geometry,
    caches: &mut Caches,
    options: &GpuOptions,
) -> Option<GpuTier> {
    static TOLD: Once = Once::new();
    match try_open(geometry, caches, options) {
        Ok(tier) => tier,
        Err(NoTier::Absent(Absent::NotBuilt)) => None,
        Err(why) => {
            TOLD.call_once(|| (options.warn)(&why.to_string()));
            None
        }
    }
}

fn try_open(
    geometry: &Geometry,
    caches: &mut Caches,
    options: &GpuOptions,
) -> Result<Option<GpuTier>, NoTier> {
    let Some(number) = gpu_of(geometry, caches, options.lends_host) else {
        return Ok(None);
    };
    let mut gpu = open_or_say(number)?;
    gpu.prepare(Kernels::Swaps)?;
    let sides = sides(geometry, caches, &mut gpu)?;
    if sides.iter().flatten().any(|side| side.check().is_err()) {
        return Ok(None);
    }
    let n_rows = geometry.block as u32;
    let shapes = LayerShape::all(geometry);
    let of_layer = |l: &LayerShape| (l.bytes(0, n_rows) + l.bytes(1, n_rows)) * l.n_heads as usize;
    let block_bytes: usize = shapes.iter().map(of_layer).sum();
    let chunk_blocks = (SEGMENT_TOKENS / geometry.block).min(CHUNK / block_bytes.max(1));
    // Page-locked memory is lost to all others: half of what there is at most.
    let half = kiv_gguf::available_memory().map(|bytes| usize::try_from(bytes / 2));
    let half = half.and_then(Result::ok).unwrap_or(usize::MAX);
    let max_pinned = options.host_limit.unwrap_or(usize::MAX).min(half);
    // What attention is computed on has been waited for, and waits for the host.
    let compute = gpu.stream(false)?;
    let config = SwapConfig::default();
    let swapper = Swapper::new(&mut gpu, compute, sides, n_rows, config)?;
    let pool = PinnedPool::new(shapes, n_rows, chunk_blocks as u32, max_pinned);
    let pager = Pager::new(pool, swapper, PredictConfig::default());
    Ok(Some(DeviceTier::new(gpu, pager)))
}

/// The one GPU that has K and V of all layers.
fn gpu_of(geometry: &Geometry, caches: &mut Caches, lends_host: bool) -> Option<u32> {
    let mut numbers = Vec::new();
    for layer in &geometry.layers {
        let (k, v) = caches.layer(layer.il)?;
        for cache in [k, v] {
            let host = (lends_host && cache.is_host()).then_some(0);
            numbers.push(cache.cuda_device().or(host)?);
        }
    }
    let first = *numbers.first()?;
    numbers.iter().all(|n| *n == first).then_some(first)
}

/// K and V of all layers, lent to the GPU.
fn sides(
    geometry: &Geometry,
    caches: &mut Caches,
    gpu: &mut CudaDevice,
) -> Result<Vec<[Side; 2]>, DeviceError> {
    let mut sides = Vec::new();
    for layer in &geometry.layers {
        let none = || DeviceError::Failed(format!("layer {} has no cache", layer.il));
        let (k, v) = caches.layer(layer.il).ok_or_else(none)?;
        let mut side = |tensor: &mut CacheTensor, row_len: usize, stored| {
            let cache = Cache {
                at: tensor.lend(gpu)?.at(0),
                n_cells: tensor.n_cells() as u32,
                n_heads: layer.n_head_kv as u32,
                row_len: row_len as u32,
                format: tensor.format(),
            };
            if cache.cell_bytes() != tensor.cell_bytes() {
                return Err(DeviceError::Failed(format!(
                    "cells of layer {} are of another size",
                    layer.il
                )));
            }
            Ok(Side { cache, stored })
        };
        sides.push([
            side(k, layer.key_dim, geometry.key_format)?,
            side(v, layer.value_dim, geometry.value_format)?,
        ]);
    }
    Ok(sides)
}

/// Fills all slots of a layer with the blocks that they hold.
pub(crate) fn fill(
    tier: &mut GpuTier,
    layer: usize,
    tables: &[SlotTable],
    slots: Slots<'_>,
) -> Result<(), Error> {
    let of_head = |table: &SlotTable| {
        let blocks = (0..).zip(table.blocks());
        let again = |(slot, block): (u32, &u32)| Swap {
            slot,
            block: *block,
            leaving: *block,
        };
        blocks.map(again).collect()
    };
    let swaps: Vec<Vec<Swap>> = tables.iter().map(of_head).collect();
    let filled = tier.fill(layer, &swaps, slots);
    // Also after a failure: some may be on their way.
    let settled = tier.settle(layer);
    filled.map_err(|error| Error::Gpu(error.source))?;
    settled.map_err(|error| Error::Gpu(error.into()))
}

/// Brings blocks into a layer's slots, whose tables (`[layer][kv_head]`) have been asked.
/// They are there once [`settle`] says so; tables say what slots hold then, also after an
/// error, but for keys that were to turn and may not have.
pub(crate) fn bring(
    tier: &mut GpuTier,
    (layer, step): (usize, u64),
    selection: &Selection,
    swaps: &[Vec<Swap>],
    tables: &mut [Vec<SlotTable>],
    slots: Slots<'_>,
) -> Result<(), Error> {
    let brought = tier.bring((layer, step), selection, swaps, slots);
    brought.map_err(|error| {
        for (kv_head, swap) in &error.undone {
            tables[layer][*kv_head as usize].put(swap.slot, swap.leaving);
        }
        Error::Gpu(error.source)
    })
}

/// Waits for what was brought into a layer's slots, also after a failure, since some may be on
/// their way; and begins to fetch what the next layer may want.
pub(crate) fn settle(
    tier: &mut GpuTier,
    (layer, step): (usize, u64),
    tables: &[Vec<SlotTable>],
) -> Result<(), Error> {
    tier.settle(layer)
        .map_err(|error| Error::Gpu(error.into()))?;
    let next = (layer + 1) % tables.len();
    let step = step + u64::from(next == 0);
    // What fails here costs time only; a GPU that is broken says so at the next swap.
    let _ = tier.fetch((next, step), &tables[next]);
    Ok(())
}
