//! Looking at attention as it happens: for measurements and checks.

use crate::cells::CellMap;
use crate::llama::{CacheTensor, Caches, Node};
use crate::slot::read_part;
use crate::tiers::{Batch, Tiers};
use kiv_policy::{ColdError, ColdRows, LayerGeometry, Phase, Queries, Rows};
use kiv_pool::NONE;

/// Is shown every tiered layer right after its attention.
pub trait AttentionTap: Send {
    /// One layer has attended.
    ///
    /// # Errors
    /// [`ColdError`] of [`Attended::cold`]; it fails the micro-batch.
    fn attended(&mut self, view: &mut Attended<'_>) -> Result<(), ColdError>;
}

/// One layer's attention: what went in and what came out.
pub struct Attended<'a> {
    /// Index among the tiered layers.
    pub layer: usize,
    /// The layer's shape.
    pub geometry: &'a LayerGeometry,
    /// Prefill or decode.
    pub phase: Phase,
    /// The queries.
    pub queries: Queries<'a>,
    /// The queries as they meet sealed keys: others if positions are remapped.
    pub cold_queries: Queries<'a>,
    /// Learned sinks (gpt-oss): a logit for each head that takes its share of the softmax
    /// and has no value. None in most models.
    pub sinks: &'a [f32],
    /// The result, `[n_tokens, n_head, value_dim]`. Changes are written back.
    pub output: &'a mut [f32],
    /// All sealed rows.
    pub cold: &'a dyn ColdRows,
    tiers: &'a Tiers,
    k: &'a CacheTensor,
    v: &'a CacheTensor,
    positions: Vec<i32>,
    cells: Vec<u32>,
}

impl Attended<'_> {
    /// Positions by which the resident rows are masked, sinks and slots first:
    /// a slot shows the position of its own first tokens, whatever it holds.
    #[must_use]
    pub fn positions(&self) -> &[i32] {
        &self.positions
    }

    /// Resident K rows of a KV head, `[positions().len(), key_dim]`.
    #[must_use]
    pub fn keys(&self, kv_head: usize) -> Vec<f32> {
        self.rows(self.k, kv_head, self.geometry.key_dim)
    }

    /// Resident V rows of a KV head, `[positions().len(), value_dim]`.
    #[must_use]
    pub fn values(&self, kv_head: usize) -> Vec<f32> {
        self.rows(self.v, kv_head, self.geometry.value_dim)
    }

    /// Blocks in the slots of a KV head; none before anything was sealed.
    pub fn resident_blocks(&self, kv_head: usize) -> impl Iterator<Item = u32> {
        self.slots(kv_head).into_iter().flatten()
    }

    /// The block in each slot of a KV head, none in one that stands for what is in no
    /// slot; empty before anything was sealed.
    #[must_use]
    pub fn slots(&self, kv_head: usize) -> Vec<Option<u32>> {
        let blocks: &[u32] = if self.tiers.selects() {
            self.tiers.slots(self.layer, kv_head).blocks()
        } else {
            &[]
        };
        let block = |block: &u32| (*block != NONE).then_some(*block);
        blocks.iter().map(block).collect()
    }

    /// Whether a resident row of this position is in a slot: it may then hold
    /// any block's token.
    #[must_use]
    pub fn is_slot(&self, position: i32) -> bool {
        let g = self.tiers.geometry();
        let slots = g.first_position..g.first_position + g.n_slots * g.block;
        usize::try_from(position).is_ok_and(|p| slots.contains(&p))
    }

    /// Tokens in a block.
    #[must_use]
    pub fn block(&self) -> usize {
        self.tiers.geometry().block
    }

    fn rows(&self, cache: &CacheTensor, kv_head: usize, dim: usize) -> Vec<f32> {
        let len = cache.format().row_bytes(dim);
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        read_part(cache, &self.cells, (kv_head * len, len), &mut bytes);
        Rows {
            format: cache.format(),
            row_len: dim,
            bytes: &bytes,
        }
        .decode_into(&mut out);
        out
    }

    /// Shows `tap` the attention node that has just been computed.
    pub(crate) fn show(
        tap: &mut dyn AttentionTap,
        node: Node<'_>,
        caches: &mut Caches,
        tiers: &Tiers,
        batch: &Batch,
        map: &CellMap,
    ) -> Result<(), String> {
        let il = node.source(1).and_then(|k| k.root().cache_layer('k'));
        let Some(layer) = il.and_then(|il| tiers.layer_of(il)) else {
            return Ok(());
        };
        let geometry = &tiers.geometry().layers[layer];
        let mut own = Vec::new();
        node.source(0)
            .ok_or("attention without queries")?
            .read_queries(&mut own)?;
        let (k, v) = caches.layer(geometry.il).ok_or("no cache")?;
        let (positions, cells) = batch.with_older(map.resident());
        let sinks = node.source(4).map(|s| s.read_f32()).transpose()?;
        let sinks = sinks.unwrap_or_default();
        let mut turned = own.clone();
        if let Some(frame) = tiers.frame(layer, map) {
            frame.show_queries(&batch.positions, &mut turned, geometry.key_dim);
        }
        let queries = |values| Queries {
            values,
            n_head: geometry.n_head,
            dim: geometry.key_dim,
            positions: &batch.positions,
        };
        let mut result = Ok(());
        node.edit_f32(|output| {
            result = tap.attended(&mut Attended {
                layer,
                geometry,
                phase: batch.phase,
                queries: queries(&own),
                cold_queries: queries(&turned),
                sinks: &sinks,
                output,
                cold: tiers.store(),
                tiers,
                k,
                v,
                positions,
                cells,
            });
        })?;
        result.map_err(|e| e.to_string())
    }
}
