//! A few tokens of two layers, half of whose rows are page-locked, with blocks fetched
//! ahead.

use super::{Bench, Outcome, floats};
use kiv_cuda::work::{Cache, Side};
use kiv_cuda::{
    Device, DeviceError, LayerShape, Pager, PinnedPool, PoolError, PredictConfig, Row, Slots,
    SwapConfig, Swapper,
};
use kiv_numeric::rope::{Pairs, Rotation};
use kiv_policy::{RowFormat, Selection};
use kiv_pool::SlotTable;
use rand::seq::index;

const ROWS: u32 = 16;
const SLOTS: usize = 8;
const BLOCKS: u32 = 48;
const HEADS: u32 = 4;

fn told(error: PoolError) -> DeviceError {
    match error {
        PoolError::Device(error) => error,
        other => DeviceError::Failed(other.to_string()),
    }
}

fn selection(n: usize, bench: &mut Bench<'_, impl Device>) -> Selection {
    let mut selection = Selection::default();
    selection.reset(HEADS as usize);
    for blocks in selection.heads_mut() {
        let some = index::sample(&mut bench.rng, BLOCKS as usize, n);
        blocks.extend(some.into_iter().map(|b| b as u32));
    }
    selection
}

pub fn run<D: Device>(device: &mut D) -> Result<Vec<Outcome>, DeviceError> {
    let mut all = Vec::new();
    for stored in [RowFormat::F16, RowFormat::Q8_0] {
        let bench = &mut Bench::new(device, 11)?;
        let shapes = [[64, 128], [128, 128]].map(|row_len| LayerShape {
            n_heads: HEADS,
            row_len,
            stored: [stored; 2],
        });
        let n_cells = SLOTS as u32 * ROWS;
        let mut sides = Vec::new();
        for shape in &shapes {
            let mut of_layer = Vec::new();
            for row_len in shape.row_len {
                let bytes = RowFormat::F16.row_bytes(row_len as usize) * (HEADS * n_cells) as usize;
                let cache = Cache {
                    at: bench.place(&vec![0; bytes])?.at(0),
                    n_cells,
                    n_heads: HEADS,
                    row_len,
                    format: RowFormat::F16,
                };
                of_layer.push(Side { cache, stored });
            }
            sides.push([of_layer[0], of_layer[1]]);
        }
        let cells: Vec<u32> = (0..n_cells).rev().collect();
        let chunk = 8
            * HEADS as usize
            * shapes
                .iter()
                .map(|s| s.bytes(0, ROWS) + s.bytes(1, ROWS))
                .sum::<usize>();
        let mut pool = PinnedPool::new(shapes.to_vec(), ROWS, 8, 3 * chunk);
        pool.grow(bench.device, BLOCKS as usize).map_err(told)?;
        assert!(pool.taken().pageable >= 3 * chunk);
        for block in 0..BLOCKS {
            for (layer, shape) in shapes.iter().enumerate() {
                for (head, side) in (0..HEADS).flat_map(|h| [(h, 0), (h, 1)]) {
                    let values = floats(&mut bench.rng, (shape.row_len[side] * ROWS) as usize);
                    let row = Row {
                        layer,
                        head,
                        block,
                        side,
                    };
                    pool.put(bench.device, row, &stored.encode(&values))
                        .map_err(told)?;
                }
            }
        }
        // Staging for a few blocks only.
        let config = SwapConfig {
            landing: 16,
            staging: 40_000,
        };
        let swapper = Swapper::new(bench.device, bench.stream, sides.clone(), ROWS, config)?;
        let mut tables = vec![vec![SlotTable::new(SLOTS); HEADS as usize]; shapes.len()];
        let predict = PredictConfig {
            per_head: 4,
            left: 4,
            earlier: 1,
        };
        let mut pager = Pager::new(pool, swapper, predict);
        pager.publish(BLOCKS);
        // Caches are cleared on the stream that attention runs on.
        for layer in 0..shapes.len() {
            pager.attended(bench.device, layer)?;
        }
        let rotation = Rotation::plain(Pairs::Halves, 32, 1e4);
        // Sealed rows are at the first positions of a block.
        let turn = rotation.turn((0..ROWS as i32).map(|i| (i, i + 77_777)));
        let slots = Slots {
            cells: &cells,
            turn: Some(&turn).filter(|_| stored == RowFormat::Q8_0),
        };
        for step in 0..6u64 {
            for (layer, sides) in sides.iter().enumerate() {
                let (mut wanted, runners) = (selection(SLOTS / 2, bench), selection(6, bench));
                for head in 0..HEADS as usize {
                    wanted.ranked_mut(head).1.extend(runners.head(head));
                }
                let at = (layer, step);
                pager
                    .fetch(bench.device, at, &tables[layer])
                    .map_err(told)?;
                let swapped = pager.ensure(bench.device, at, &mut tables[layer], &wanted, slots);
                swapped.map_err(|e| told(e.source))?;
                let mut bytes = Vec::new();
                for side in sides {
                    bytes.extend(bench.fetch(side.cache.at, side.cache.bytes())?);
                }
                pager.attended(bench.device, layer)?;
                all.push(Outcome {
                    name: format!("swap, {stored:?}, token {step}, layer {layer}"),
                    bytes,
                });
            }
        }
        let counters = pager.swapper_mut().counters();
        assert!(
            counters.landed > 0 && counters.wasted > 0 && counters.staged > 0,
            "{counters:?}"
        );
        pager.release(bench.device).map_err(told)?;
    }
    Ok(all)
}
