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

/// A list of cells that rows are stored by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CellList {
    /// The device that it was copied to, if it was.
    pub device: String,
    /// Tells lists of a device apart.
    pub id: usize,
}

/// What the first batch shows of one layer's attention.
#[derive(Clone, Debug)]
pub(crate) struct SeenLayer {
    pub geometry: LayerGeometry,
    /// Cells of its cache.
    pub n_cells: usize,
    /// The list of cells that its rows are stored by; shared by the layers of
    /// one cache on one device.
    pub cell_list: CellList,
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
    stores: Vec<(u32, CellList, Option<Rotation>)>,
    /// Queries have been reordered that no reordered V has followed yet.
    queries: bool,
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
                    let list = CellList {
                        device: list.copied_to().to_owned(),
                        id: list.id(),
                    };
                    self.stores.push((il, list, rotation));
                }
            }
            Op::Permute => match node.root().cache_layer('v') {
                Some(il) => self.look_before_attention(il),
                None => self.queries |= node.root().cache_layer('k').is_none(),
            },
            Op::FlashAttention => {
                if let Err(why) = self.look_at_attention(node) {
                    self.obstacle.get_or_insert(why);
                }
            }
            _ if node
                .source(2)
                .is_some_and(|f| f.root().original_name() == SHORT_FACTORS) =>
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

    /// Where a layer will be served, its queries and new keys must be there. Backends may
    /// reorder a graph: CUDA's does if `GGML_CUDA_GRAPH_OPT` is set.
    fn look_before_attention(&mut self, il: u32) {
        let stored = self.stores.iter().any(|(layer, ..)| *layer == il);
        if !std::mem::take(&mut self.queries) || !stored {
            self.obstacle.get_or_insert_with(|| {
                format!("layer {il} has its values in order before its queries and keys")
            });
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
            cell_list: cell_list.clone(),
            rotation: rotation.clone(),
            sinks: (node.source(4).map(|sinks| sinks.read_f32()))
                .transpose()?
                .unwrap_or_default(),
        });
        Ok(())
    }

    /// The layers to be tiered: those of the one cache that spans the context.
    /// Sliding-window layers have a smaller cache of their own and are left to
    /// llama.cpp.
    pub(crate) fn global_layers(self, n_swa: usize) -> Result<Vec<SeenLayer>, Error> {
        let unhookable = |reason: &str| Error::Unhookable {
            reason: reason.to_owned(),
        };
        let mut sizes: Vec<usize> = self.layers.iter().map(|l| l.n_cells).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let Some(&largest) = sizes.last() else {
            return Err(unhookable("no layer keeps a KV cache"));
        };
        // Caches of one size are told apart by their lists of cells, of which every device
        // that has some of the layers has a copy.
        let apart = |a: &SeenLayer, b: &SeenLayer| {
            a.n_cells == b.n_cells
                && a.cell_list.device == b.cell_list.device
                && a.cell_list.id != b.cell_list.id
        };
        let several = |a: &SeenLayer| self.layers.iter().any(|b| apart(a, b));
        if sizes.len() > 1 + usize::from(n_swa > 0) || self.layers.iter().any(several) {
            return Err(unhookable("it keeps several caches of different kinds"));
        }
        let global = self.layers.into_iter().filter(|l| l.n_cells == largest);
        Ok(global.collect())
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
    /// Layers stop before their attention although there is nothing to do.
    pub stops: bool,
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
        // Rows there would be lost, or this is not the list.
        if self
            .cells
            .as_ref()
            .is_some_and(|c| !c.are_free(&batch.cells))
        {
            return Err(Error::CellsInUse {
                cells: batch.cells.clone(),
            });
        }
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
                tiers.before_attention(layer, query, device.parts(), cells, batch)
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
                // Inputs are set before the graph runs, and copied to a device before
                // anything of it that the device computes: nothing has to wait.
                let is_there = |list: Node<'_>| list.is_host() || !list.copied_to().is_empty();
                if node.source(1).is_some_and(is_there) {
                    self.error = self.learn_cells(node).err();
                    false
                } else {
                    true
                }
            }
            Op::Permute if self.stops => node.root().cache_layer('v').is_some(),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers with caches of so many cells, whose lists are on a device and have a number.
    fn seen(layers: &[(usize, &str, usize)]) -> Seen {
        let layers = (0..)
            .zip(layers)
            .map(|(il, &(n_cells, device, id))| SeenLayer {
                geometry: LayerGeometry {
                    il,
                    n_head: 1,
                    n_head_kv: 1,
                    key_dim: 32,
                    value_dim: 32,
                    scale: 1.0,
                    soft_cap: None,
                },
                n_cells,
                cell_list: CellList {
                    device: device.to_owned(),
                    id,
                },
                rotation: None,
                sinks: Vec::new(),
            });
        Seen {
            layers: layers.collect(),
            ..Seen::default()
        }
    }

    fn global(layers: &[(usize, &str, usize)], n_swa: usize) -> Option<Vec<u32>> {
        let global = seen(layers).global_layers(n_swa).ok()?;
        Some(global.iter().map(|l| l.geometry.il).collect())
    }

    #[test]
    fn layers_of_one_cache_may_be_on_several_devices() {
        let split = [
            (512, "", 1),
            (512, "CUDA0", 2),
            (512, "CUDA1", 3),
            (512, "CUDA1", 3),
        ];
        assert_eq!(global(&split, 0), Some(vec![0, 1, 2, 3]));
        let sliding = [
            (512, "", 1),
            (256, "", 2),
            (512, "CUDA0", 3),
            (256, "CUDA0", 4),
        ];
        assert_eq!(global(&sliding, 128), Some(vec![0, 2]));
    }

    #[test]
    fn several_caches_are_refused() {
        assert_eq!(global(&[], 0), None);
        assert_eq!(global(&[(512, "", 1), (512, "", 2)], 128), None);
        assert_eq!(global(&[(512, "", 1), (256, "", 2)], 0), None);
        let three = [(512, "", 1), (256, "", 2), (128, "", 3)];
        assert_eq!(global(&three, 128), None);
    }
}
