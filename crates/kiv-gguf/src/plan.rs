//! What a context costs in memory.

use kiv_policy::RowFormat;
use kiv_pool::PoolLayout;

use crate::layers::{LayerInfo, LayerKind};
use crate::model::ModelFile;

/// llama.cpp rounds contexts and sliding windows up to this many cells.
const CELL_STEP: u64 = 256;

impl LayerKind {
    /// Whether the layer's cache grows with the context.
    #[must_use]
    pub const fn grows(self) -> bool {
        matches!(self, Self::Global | Self::GlobalRecurrent | Self::KeyOnly)
    }
}

impl LayerInfo {
    /// Whether the layer keeps a window of tokens.
    #[must_use]
    pub const fn is_sliding(&self) -> bool {
        matches!(self.kind, LayerKind::SlidingWindow { .. })
    }

    /// Bytes of one cell of this layer: `[n_head_kv, key_dim]` of `k` and
    /// `[n_head_kv, value_dim]` of `v`. 0 if the layer has no cells.
    #[must_use]
    pub fn cell_bytes(&self, k: RowFormat, v: RowFormat) -> u64 {
        if !(self.kind.grows() || self.is_sliding()) {
            return 0;
        }
        // Rounded up: `check_cache_types` tells of types that do not fit.
        let row = |format: RowFormat, dim: usize| {
            let groups = (self.n_head_kv as u64 * dim as u64).div_ceil(format.group_len() as u64);
            groups * format.group_bytes() as u64
        };
        row(k, self.key_dim) + row(v, self.value_dim)
    }

    /// Bytes of this layer's cache with so many cells for the whole context,
    /// recurrent state included.
    fn cache_bytes(&self, cells: u64, ubatch: usize, k: RowFormat, v: RowFormat) -> u64 {
        let cells = match self.kind {
            LayerKind::SlidingWindow { n_swa } => {
                step((n_swa as u64).saturating_add(ubatch as u64).min(cells))
            }
            _ => cells,
        };
        self.cell_bytes(k, v)
            .saturating_mul(cells)
            .saturating_add(self.state_bytes())
    }

    /// Bytes of its recurrent state.
    const fn state_bytes(&self) -> u64 {
        (self.state_len as u64).saturating_mul(4)
    }
}

impl ModelFile {
    /// Bytes that one token of context takes in the tiered layers.
    #[must_use]
    pub fn kv_bytes_per_token(&self, k: RowFormat, v: RowFormat) -> u64 {
        self.tiered_layers().map(|l| l.cell_bytes(k, v)).sum()
    }

    /// Bytes of the caches that are not tiered, next to `n_ctx` tokens:
    /// sliding windows (`swa_full` off), recurrent states, and caches of kinds
    /// that kiv leaves to llama.cpp.
    #[must_use]
    pub fn other_kv_bytes(&self, n_ctx: usize, k: RowFormat, v: RowFormat, ubatch: usize) -> u64 {
        let cells = step(n_ctx as u64);
        self.layers.iter().fold(0, |sum: u64, l| {
            sum.saturating_add(if l.kind.is_tiered() {
                l.state_bytes()
            } else {
                l.cache_bytes(cells, ubatch, k, v)
            })
        })
    }

    /// Bytes of the caches that stock llama.cpp allocates for one sequence of
    /// `n_ctx` tokens with its command line's defaults (`swa_full` off).
    /// Caches of sparse-attention indexers (DeepSeek 3.2 and the like) are not
    /// counted.
    #[must_use]
    pub fn stock_kv_bytes(&self, n_ctx: usize, k: RowFormat, v: RowFormat, ubatch: usize) -> u64 {
        self.kv_bytes_per_token(k, v)
            .saturating_mul(step(n_ctx as u64))
            .saturating_add(self.other_kv_bytes(n_ctx, k, v, ubatch))
    }

    /// An estimate of llama.cpp's working memory on the CPU for one
    /// micro-batch. It counts
    /// - the logits of `n_outputs` rows, `[n_vocab, n_outputs]` f32, twice (in
    ///   the graph and in the context's output buffer);
    /// - the activations that live at the graph's widest point,
    ///   `[.., ubatch]` f32: three of `n_embd`, and either Q, K, V and the
    ///   attention's output or three of `n_ff_used`;
    /// - one attention mask `[cells, ubatch]` f16 for the pool, and one for
    ///   the sliding window;
    /// - the scratch copy of the widest matrix operand, `[.., ubatch]` f16.
    ///
    /// Not counted: flash attention's tiles (below a MB per thread), what
    /// single architectures add, and llama.cpp's fixed few MB.
    #[must_use]
    pub fn compute_bytes(&self, n_cells: usize, ubatch: usize, n_outputs: usize) -> u64 {
        let mul = |a: usize, b: usize| (a as u64).saturating_mul(b as u64);
        let attention = self.layers.iter().map(|l| {
            let q = l.n_head * (l.key_dim + l.value_dim.max(1));
            q + l.n_head_kv * (l.key_dim + l.value_dim)
        });
        let wide = attention.max().unwrap_or(0).max(3 * self.n_ff_used);
        let activations = mul(3 * self.n_embd + wide, ubatch).saturating_mul(4);
        let scratch = mul(self.n_embd.max(self.n_ff_used), ubatch).saturating_mul(2);
        let logits = mul(self.n_vocab, n_outputs).saturating_mul(2 * 4);
        let window = self.layers.iter().filter_map(|l| match l.kind {
            LayerKind::SlidingWindow { n_swa } => Some(n_swa.saturating_add(ubatch).min(n_cells)),
            _ => None,
        });
        let masked = n_cells.saturating_add(window.max().unwrap_or(0));
        let masks = mul(masked, ubatch).saturating_mul(2);
        [scratch, logits, masks]
            .into_iter()
            .fold(activations, u64::saturating_add)
    }
}

/// What the planner cannot know from the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Whether the policy keeps the rows that have left the pool.
    pub cold_rows: bool,
    /// Bytes of the policy's index at this context length.
    pub index_bytes: u64,
    /// Bytes that making it takes besides, for a time.
    pub indexing_bytes: u64,
    /// Types of cold K and V rows, if not the cache's.
    pub store_types: Option<(RowFormat, RowFormat)>,
    /// Bytes that a sealed block takes on disk, if rows go there.
    pub disk_bytes_per_block: Option<u64>,
    /// Most bytes of cold rows in memory, if they are on disk.
    pub host_limit: Option<u64>,
    /// Rows of logits that are kept of a micro-batch.
    pub n_outputs: usize,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            cold_rows: true,
            index_bytes: 0,
            indexing_bytes: 0,
            store_types: None,
            disk_bytes_per_block: None,
            host_limit: None,
            n_outputs: 1,
        }
    }
}

/// Bytes that a context takes, by place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// llama.cpp's own caches: the pool's cells and
    /// [`MemoryPlan::other_kv_bytes`]. Constant in the context's length.
    pub resident_kv_bytes: u64,
    /// Of those, the caches that are not tiered (sliding windows, states).
    pub other_kv_bytes: u64,
    /// Cold rows in host memory.
    pub host_kv_bytes: u64,
    /// The policy's index.
    pub index_bytes: u64,
    /// What making it takes besides, for a time.
    pub indexing_bytes: u64,
    /// Cold rows on disk.
    pub disk_bytes: u64,
    /// Weights, which llama.cpp maps from the file.
    pub weights_bytes: u64,
    /// [`ModelFile::compute_bytes`].
    pub compute_bytes: u64,
    /// [`ModelFile::stock_kv_bytes`], to compare with.
    pub stock_kv_bytes: u64,
    /// All of it but the disk, if nothing is offloaded to another device.
    pub total_host_bytes: u64,
}

impl MemoryPlan {
    /// Plans a context of `n_ctx` tokens in this pool, with caches of types
    /// `k` and `v`.
    #[must_use]
    pub fn new(
        model: &ModelFile,
        layout: &PoolLayout,
        n_ctx: usize,
        k: RowFormat,
        v: RowFormat,
        options: &PlanOptions,
    ) -> Self {
        let per_token = model.kv_bytes_per_token(k, v);
        let other_kv_bytes = if model
            .layers
            .iter()
            .all(|l| l.kind.is_tiered() || !l.kind.grows())
        {
            model.other_kv_bytes(layout.n_cells, k, v, layout.ubatch)
        } else {
            // Those need a cell for every token.
            model.other_kv_bytes(n_ctx, k, v, layout.ubatch)
        };
        let resident_kv_bytes = per_token
            .saturating_mul(layout.n_cells as u64)
            .saturating_add(other_kv_bytes);
        let cold = if options.cold_rows {
            layout.cold_tokens(n_ctx) as u64
        } else {
            0
        };
        let (store_k, store_v) = options.store_types.unwrap_or((k, v));
        let cold_bytes = cold.saturating_mul(model.kv_bytes_per_token(store_k, store_v));
        let on_disk = options.disk_bytes_per_block;
        let blocks = cold / layout.block.max(1) as u64;
        let disk_bytes = on_disk.map_or(0, |bytes| bytes.saturating_mul(blocks));
        let limit = options.host_limit.filter(|_| on_disk.is_some());
        let host_kv_bytes = limit.map_or(cold_bytes, |limit| limit.min(cold_bytes));
        let compute_bytes = model.compute_bytes(layout.n_cells, layout.ubatch, options.n_outputs);
        let parts = [
            resident_kv_bytes,
            host_kv_bytes,
            options.index_bytes,
            options.indexing_bytes,
            model.weights_bytes,
            compute_bytes,
        ];
        Self {
            resident_kv_bytes,
            other_kv_bytes,
            host_kv_bytes,
            index_bytes: options.index_bytes,
            indexing_bytes: options.indexing_bytes,
            disk_bytes,
            weights_bytes: model.weights_bytes,
            compute_bytes,
            stock_kv_bytes: model.stock_kv_bytes(n_ctx, k, v, layout.ubatch),
            total_host_bytes: parts.into_iter().fold(0, u64::saturating_add),
        }
    }
}

/// Cells, rounded up as llama.cpp does.
const fn step(cells: u64) -> u64 {
    cells.div_ceil(CELL_STEP).saturating_mul(CELL_STEP)
}
