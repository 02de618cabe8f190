//! What happens while llama.cpp computes: finding out how a model attends,
//! and serving each layer's attention.

use crate::cells::CellMap;
use crate::error::Error;
use crate::llama::{Caches, Device, GraphHook, Node, Op};
use crate::tap::{Attended, AttentionTap};
use crate::tiers::{Batch, Tiers};
use kiv_numeric::rope::Rotation;
use kiv_policy::LayerGeometry;

/// llama.cpp's tensor of RoPE factors for contexts within the original length.
const SHORT_FACTORS: &str = "rope_factors_short.weight";

/// What the first batch shows of one layer's attention.
#[derive(Clone, Debug)]
pub(crate) struct SeenLayer {
    pub geometry: LayerGeometry,
    /// Cells of its cache.
    pub n_cells: usize,
    /// The list of cells that its rows are stored by; shared by the layers of
    /// one cache.
    pub cell_list: usize,
    /// How its keys are rotated, as far as the graph shows.
    pub rotation: Option<Rotation>,
    /// Learned sinks by query head, if it has any.
    pub sinks: Vec<f32>,
}

/// How a model attends, as its graph shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub layers: Vec<SeenLayer>,
    /// Why the attention cannot be hooked, if so.
    pub obstacle: Option<String>,
    /// Keys are rotated by factors for short contexts (LongRoPE).
    pub short_rope: bool,
    /// Layers, cell lists and rotations of SET_ROWS nodes.
    stores: Vec<(u32, usize, Option<Rotation>)>,
}

/// The rotation that ends a chain of operations: the last one of its first operands.
fn rotation(mut node: Node<'_>) -> Option<Rotation> {
    // Reshapes, norms, at most; longer ways lead out of the layer.
    for _ in 0..8 {
        if node.op() == Op::Rope {
            return node.rotation();
        }
        node = node.source(0)?;
    }
    None
}

impl Seen {
    fn look(&mut self, node: Node<'_>) {
        match node.op() {
            Op::SetRows => {
                if let (Some(il), Some(list)) = (node.root().cache_layer('k'), node.source(1)) {
                    let rotation = node.source(0).and_then(rotation);
                    self.stores.push((il, list.id(), rotation));
                }
            }
            Op::FlashAttention => {
                if let Err(why) = self.look_at_attention(node) {
                    self.obstacle.get_or_insert(why);
                }
            }
            _ if node
                .source(2)
                .is_some_and(|f| f.root().name() == SHORT_FACTORS) =>
            {
                self.short_rope = true;
            }
            Op::SoftMax if self.attends_to_cache(node) => {
                self.obstacle
                    .get_or_insert_with(|| "a layer attends without flash attention".to_owned());
            }
            _ => {}
        }
    }

    /// Whether a softmax belongs to attention: its mask is the attention mask.
    fn attends_to_cache(&self, node: Node<'_>) -> bool {
        let mask = node.source(1).map(|m| m.root().name());
        mask.is_some_and(|name| name.contains("kq_mask"))
    }

    fn look_at_attention(&mut self, node: Node<'_>) -> Result<(), String> {
        let operand = |i| {
            node.source(i)
                .ok_or_else(|| "attention lacks an operand".to_owned())
        };
        let (q, k, v) = (operand(0)?, operand(1)?, operand(2)?);
        let il = k
            .root()
            .cache_layer('k')
            .ok_or("attention reads keys that are not cached")?;
        if v.root().cache_layer('v') != Some(il) {
            return Err(format!(
                "layer {il} keeps no values of its own (latent attention, MLA)"
            ));
        }
        if node.float_param(1) != 0.0 {
            return Err(format!(
                "layer {il} uses ALiBi: attention depends on the cell's position"
            ));
        }
        if self.layers.iter().any(|l| l.geometry.il == il) {
            // A layer that attends to another one's cache.
            return Ok(());
        }
        let [key_dim, _, n_head_kv, _] = k.shape();
        let [_, n_cells, _, _] = k.root().shape();
        let [_, _, n_head, _] = q.shape();
        let soft_cap = node.float_param(2);
        let scale = node.float_param(0);
        let store = self.stores.iter().find(|(layer, ..)| *layer == il);
        let (_, cell_list, rotation) =
            store.ok_or_else(|| format!("layer {il} stores its rows in an unknown way"))?;
        self.layers.push(SeenLayer {
            geometry: LayerGeometry {
                il,
                n_head,
                n_head_kv,
                key_dim,
                value_dim: v.shape()[0],
                scale,
                soft_cap: (soft_cap != 0.0).then_some(soft_cap),
            },
            n_cells,
            cell_list: *cell_list,
            rotation: rotation.clone(),
            sinks: (node.source(4).map(|sinks| sinks.read_f32()))
                .transpose()?
                .unwrap_or_default(),
        });
        Ok(())
    }
}

/// The hook of a session.
#[derive(Default)]
pub(crate) struct Engine {
    /// Set while the first batch is looked at.
    pub seen: Option<Seen>,
    /// Layer whose stores say which cells a batch got.
    pub cells_from: Option<u32>,
    /// Retrieval, unless everything is resident.
    pub tiers: Option<Tiers>,
    pub cells: Option<CellMap>,
    pub batch: Option<Batch>,
    /// First error of the batch; the rest of it is left alone.
    pub error: Option<Error>,
    pub tap: Option<Box<dyn AttentionTap>>,
}

impl Engine {
    fn wants_cells(&self, node: &Node<'_>) -> bool {
        self.batch.as_ref().is_some_and(|b| b.cells.is_empty())
            && self.cells_from.is_some()
            && node.root().cache_layer('k') == self.cells_from
    }

    fn learn_cells(&mut self, node: Node<'_>) -> Result<(), Error> {
        let (Some(batch), Some(list)) = (&mut self.batch, node.source(1)) else {
            return Ok(());
        };
        let unhookable = |reason| Error::Unhookable { reason };
        let cells = list.read_i64().map_err(unhookable)?;
        if cells.len() != batch.positions.len() {
            return Err(unhookable(format!(
                "{} cells for {} tokens",
                cells.len(),
                batch.positions.len()
            )));
        }
        let cells: Result<Vec<u32>, _> = cells.into_iter().map(u32::try_from).collect();
        batch.cells = cells.map_err(|e| unhookable(e.to_string()))?;
        Ok(())
    }

    fn attention_layer(&self, node: &Node<'_>) -> Option<usize> {
        let tiers = self.tiers.as_ref().filter(|t| t.serves())?;
        tiers.layer_of(node.root().cache_layer('v')?)
    }

    fn serve(
        &mut self,
        node: Node<'_>,
        query: Option<Node<'_>>,
        device: &mut Device,
    ) -> Result<(), Error> {
        match node.op() {
            Op::SetRows => self.learn_cells(node),
            Op::Permute => {
                let layer = self.attention_layer(&node);
                let (Some(tiers), Some(layer)) = (&mut self.tiers, layer) else {
                    return Ok(());
                };
                let (Some(query), Some(batch), Some(cells)) = (query, &self.batch, &self.cells)
                else {
                    return Err(Error::Unhookable {
                        reason: "no queries before attention".to_owned(),
                    });
                };
                if tiers.is_slow(layer) {
                    device.rest_threads();
                }
                tiers.before_attention(layer, query, &mut device.caches, cells, batch)
            }
            Op::FlashAttention => self.show(node, &mut device.caches),
            _ => Ok(()),
        }
    }

    fn show(&mut self, node: Node<'_>, caches: &mut Caches) -> Result<(), Error> {
        let (Some(tap), Some(tiers), Some(batch), Some(cells)) =
            (&mut self.tap, &self.tiers, &self.batch, &self.cells)
        else {
            return Ok(());
        };
        Attended::show(&mut **tap, node, caches, tiers, batch, cells)
            .map_err(|reason| Error::Unhookable { reason })
    }
}

impl GraphHook for Engine {
    fn release(&mut self) {
        // A GPU may have been lent the cache.
        self.tiers = None;
    }

    fn ask(&mut self, node: Node<'_>) -> bool {
        if let Some(seen) = &mut self.seen {
            seen.look(node);
            return false;
        }
        if self.error.is_some() {
            return false;
        }
        match node.op() {
            Op::SetRows if self.wants_cells(&node) => {
                // Inputs are set before the graph runs: where they are in
                // plain memory nothing has to wait.
                if node.source(1).is_some_and(|list| list.is_host()) {
                    self.error = self.learn_cells(node).err();
                    false
                } else {
                    true
                }
            }
            Op::Permute => self.attention_layer(&node).is_some(),
            Op::FlashAttention => self.tap.is_some(),
            _ => false,
        }
    }

    fn ready(&mut self, node: Node<'_>, query: Option<Node<'_>>, device: &mut Device) {
        if self.error.is_none() {
            self.error = self.serve(node, query, device).err();
        }
    }
}
