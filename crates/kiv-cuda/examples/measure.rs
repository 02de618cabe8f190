//! What swapping costs on this GPU: bandwidths, kernels' times, and how much of a swap is
//! hidden behind computing.
//!
//! ```sh
//! cargo run --release -p kiv-cuda --features cuda --example measure
//! cargo run --release -p kiv-cuda --example measure -- --simulated   # small; not a measurement
//! cargo run --release -p kiv-cuda --features cuda --example measure -- --probe   # or --small
//! ```

use kiv_cuda::sim::{SimConfig, SimDevice};
use kiv_cuda::work::{Cache, Coarse, Move, Rerotate, Scan, Scatter, Scores, Side, Top, Turn, Work};
use kiv_cuda::{
    Buffer, Device, DeviceError, LayerShape, Memory, Pager, PinnedPool, Place, PoolError,
    PredictConfig, Row, Slots, Stream, SwapConfig, SwapError, Swapper, open_or_say,
};
use kiv_numeric::rope::{Pairs, Rotation};
use kiv_policy::{RowFormat, Selection};
use kiv_pool::SlotTable;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Sizes of a model's cache, of its index, and of what is asked.
#[derive(Clone)]
struct Shape {
    layers: usize,
    heads: u32,
    dim: u32,
    rows: u32,
    slots: usize,
    /// Blocks that there are rows of.
    blocks: u32,
    /// Blocks per KV head that a token wants and the one before did not.
    new: usize,
    tokens: usize,
    /// Keys of the index.
    keys: usize,
    /// Bytes of a plain copy.
    copy: usize,
    /// How long a device works before it is measured, and how often it is.
    busy: Duration,
    times: usize,
}

/// A 3 B model's (Llama 3.2): slots for 2048 tokens.
const REAL: Shape = Shape {
    layers: 28,
    heads: 8,
    dim: 128,
    rows: 32,
    slots: 64,
    blocks: 256,
    new: 6,
    tokens: 40,
    keys: 1 << 20,
    copy: 256 << 20,
    busy: Duration::from_millis(300),
    times: 21,
};

const SMALL: Shape = Shape {
    layers: 3,
    heads: 2,
    dim: 64,
    rows: 8,
    slots: 8,
    blocks: 24,
    new: 2,
    tokens: 6,
    keys: 1 << 10,
    copy: 1 << 20,
    busy: Duration::ZERO,
    times: 3,
};

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Swap(#[from] SwapError),
}

fn main() -> ExitCode {
    let word = std::env::args().nth(1);
    let measured = match word.as_deref() {
        Some("--simulated") => {
            let mut device = SimDevice::new(SimConfig::default());
            println!("simulated: what follows is computed from SimConfig, not measured");
            measure(&mut device, &SMALL)
        }
        None | Some("--probe" | "--small") => match open_or_say(0) {
            Ok(mut device) if word.as_deref() == Some("--small") => measure(&mut device, &SMALL),
            Ok(device) if word.is_some() => {
                println!("{}", device.name());
                return ExitCode::SUCCESS;
            }
            Ok(mut device) => measure(&mut device, &REAL),
            Err(absent) => {
                println!("{absent}");
                return ExitCode::from(3);
            }
        },
        Some(other) => {
            eprintln!("error: unknown option {other}");
            return ExitCode::from(2);
        }
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure<D: Device>(device: &mut D, shape: &Shape) -> Result<(), Failure> {
    println!("{}", device.name());
    let stream = device.stream(true)?;
    let plain = copies(device, stream, shape)?;
    row(
        "plain copy from page-locked memory",
        &gbs(shape.copy * COPIES, plain),
    );
    moves(device, stream, shape)?;
    kernels(device, stream, shape)?;
    overlaps(device, shape)
}

fn row(what: &str, result: &str) {
    println!("{what:<58} {result}");
}

fn gbs(bytes: usize, time: Duration) -> String {
    format!("{:8.2} GB/s", bytes as f64 / time.as_secs_f64() / 1e9)
}

fn us(time: Duration) -> String {
    format!("{:8.1} µs", time.as_secs_f64() * 1e6)
}

/// Time that a stream takes for what `task` gives it: the median of several, when the device has
/// been busy for a while. An idle one's clocks are low, and rise while it works.
fn timed<D: Device>(
    device: &mut D,
    stream: Stream,
    shape: &Shape,
    mut task: impl FnMut(&mut D) -> Result<(), DeviceError>,
) -> Result<Duration, DeviceError> {
    let started = Instant::now();
    let mut times = Vec::new();
    while times.len() < shape.times {
        // What is measured waits for this, and not for the host that gives it.
        task(device)?;
        let begin = device.record(stream)?;
        task(device)?;
        let end = device.record(stream)?;
        device.sync(&end)?;
        if started.elapsed() >= shape.busy {
            times.push(device.between(&begin, &end)?);
        }
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

const COPIES: usize = 4;

fn copies<D: Device>(
    device: &mut D,
    stream: Stream,
    shape: &Shape,
) -> Result<Duration, DeviceError> {
    let from = device.alloc(Memory::Pinned, shape.copy)?;
    let to = device.alloc(Memory::Device, shape.copy)?;
    let time = timed(device, stream, shape, |d| {
        (0..COPIES).try_for_each(|_| d.copy(stream, from.at(0), to.at(0), shape.copy))
    })?;
    device.free(from)?;
    device.free(to)?;
    Ok(time)
}

fn cache<D: Device>(device: &mut D, shape: &Shape) -> Result<Cache, DeviceError> {
    let n_cells = shape.slots as u32 * shape.rows;
    let row = RowFormat::F16.row_bytes(shape.dim as usize);
    let buffer = device.alloc(Memory::Device, row * (n_cells * shape.heads) as usize)?;
    Ok(Cache {
        at: buffer.at(0),
        n_cells,
        n_heads: shape.heads,
        row_len: shape.dim,
        format: RowFormat::F16,
    })
}

fn pool<D: Device>(
    device: &mut D,
    shape: &Shape,
    stored: RowFormat,
) -> Result<PinnedPool, PoolError> {
    let layer = LayerShape {
        n_heads: shape.heads,
        row_len: [shape.dim; 2],
        stored: [stored; 2],
    };
    let mut pool = PinnedPool::new(vec![layer; shape.layers], shape.rows, 16, usize::MAX);
    pool.grow(device, shape.blocks as usize)?;
    Ok(pool)
}

/// Swaps of a layer, from page-locked memory to cells in no order.
fn moves<D: Device>(device: &mut D, stream: Stream, shape: &Shape) -> Result<(), Failure> {
    for stored in [RowFormat::F16, RowFormat::Q8_0, RowFormat::Q4_0] {
        let mut pool = pool(device, shape, stored)?;
        if pool.taken().pageable > 0 {
            row(
                "swaps from page-locked memory",
                "not measured: too little of it",
            );
            pool.truncate(device, 0)?;
            continue;
        }
        let caches = [cache(device, shape)?, cache(device, shape)?];
        let sides = caches.map(|cache| Side { cache, stored });
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut slots: Vec<u32> = (0..shape.slots as u32).collect();
        rand::seq::SliceRandom::shuffle(&mut slots[..], &mut rng);
        let cells: Vec<u32> = slots
            .iter()
            .flat_map(|s| (0..shape.rows).map(move |r| s * shape.rows + r))
            .collect();
        for per_head in [1, shape.new, shape.slots] {
            let mut layers = Vec::new();
            for layer in 0..shape.layers {
                let mut moves = Vec::new();
                for (head, i) in (0..shape.heads).flat_map(|h| (0..per_head).map(move |i| (h, i))) {
                    let block = rng.random_range(0..shape.blocks);
                    let at = |side| match pool.find(Row {
                        layer,
                        head,
                        block,
                        side,
                    }) {
                        Ok(Place::Pinned(at)) => Ok(at),
                        Ok(Place::Pageable(_)) => unreachable!("there is none"),
                        Err(error) => Err(error),
                    };
                    moves.push(Move {
                        sources: [at(0)?, at(1)?],
                        cells: i as u32 * shape.rows,
                        head,
                    });
                }
                layers.push(moves);
            }
            let work = |moves| Scatter {
                sides,
                moves,
                cells: &cells,
                n_rows: shape.rows,
            };
            let time = timed(device, stream, shape, |d| {
                layers
                    .iter()
                    .try_for_each(|moves| d.submit(stream, &Work::Scatter(work(moves))))
            })?;
            let bytes: usize = layers.iter().map(|moves| work(moves).bytes()).sum();
            let what = format!(
                "swap of {per_head} blocks for each KV head, {}",
                stored.name()
            );
            let each = us(time / shape.layers as u32);
            row(&what, &format!("{}, {each} a layer", gbs(bytes, time)));
        }
        for cache in caches {
            device.free(cache.at.buffer)?;
        }
        pool.truncate(device, 0)?;
    }
    Ok(())
}

fn zeros<D: Device>(device: &mut D, stream: Stream, bytes: usize) -> Result<Buffer, DeviceError> {
    let buffer = device.alloc(Memory::Device, bytes)?;
    device.upload(stream, buffer.at(0), &vec![0; bytes])?;
    Ok(buffer)
}

/// The index of one layer and KV head over all keys, and keys that turn.
fn kernels<D: Device>(device: &mut D, stream: Stream, shape: &Shape) -> Result<(), Failure> {
    const M: usize = 64;
    const QUERIES: usize = 3;
    let n_groups = shape.keys / 32;
    let packed = zeros(device, stream, n_groups * 16 * M)?;
    let sums = zeros(device, stream, QUERIES * shape.keys * 2)?;
    let scan = Scan {
        packed: packed.at(0),
        n_packed: n_groups as u32,
        listed: None,
        tables: &[1; 16 * M * QUERIES],
        m: M as u32,
        sums: sums.at(0),
    };
    let time = timed(device, stream, shape, |d| {
        d.submit(stream, &Work::Scan(scan))
    })?;
    let rate = gbs(n_groups * 16 * M, time);
    row(
        &format!("sums of {} keys, {QUERIES} queries", shape.keys),
        &format!("{} ({rate})", us(time)),
    );
    let mut top = Top {
        scores: Scores::Sums,
        from: sums.at(0),
        names: None,
        n_queries: QUERIES as u32,
        n: shape.keys as u32,
        row_stride: shape.keys as u32,
        tile: 8192,
        k: 64,
        to: sums.at(0),
        to_names: sums.at(0),
    };
    let n_out = top.n_out() as usize * QUERIES;
    let outs = [2, 4].map(|bytes| device.alloc(Memory::Device, n_out * bytes));
    let [to, names] = outs;
    (top.to, top.to_names) = (to?.at(0), names?.at(0));
    let time = timed(device, stream, shape, |d| d.submit(stream, &Work::Top(top)))?;
    row(
        &format!("best 64 of each 8192 of them, {QUERIES} queries"),
        &us(time),
    );
    let n_lists = (shape.keys / 256) as u32;
    let centroids = zeros(device, stream, (4 * n_lists * shape.dim) as usize)?;
    let scores = zeros(device, stream, 4 * n_lists as usize * QUERIES)?;
    let coarse = Coarse {
        queries: &vec![0.5; QUERIES * shape.dim as usize],
        centroids: centroids.at(0),
        n_lists,
        dim: shape.dim,
        scores: scores.at(0),
    };
    let time = timed(device, stream, shape, |d| {
        d.submit(stream, &Work::Coarse(coarse))
    })?;
    row(
        &format!("products with {n_lists} centroids, {QUERIES} queries"),
        &us(time),
    );
    let keys = cache(device, shape)?;
    let cells: Vec<u32> = (0..keys.n_cells).collect();
    let turns = |head| (0..shape.slots as u32).map(move |slot| (head, slot));
    let turns: Vec<Turn> = (0..shape.heads)
        .flat_map(turns)
        .map(|(head, slot)| Turn {
            cells: slot * shape.rows,
            head,
            angle: 0,
        })
        .collect();
    let rotation = Rotation::plain(Pairs::Halves, shape.dim as usize, 5e5);
    let moved = rotation.turn([(1000, 0)].into_iter());
    let rerotate = Rerotate {
        cache: keys,
        turns: &turns,
        cells: &cells,
        table: moved.table(),
        n_rows: shape.rows,
        n_rot: shape.dim,
        pairing: Pairs::Halves,
    };
    let time = timed(device, stream, shape, |d| {
        d.submit(stream, &Work::Rerotate(rerotate))
    })?;
    row(&format!("{} blocks of keys turned", turns.len()), &us(time));
    let used = [
        packed,
        sums,
        top.to.buffer,
        top.to_names.buffer,
        centroids,
        scores,
    ];
    for buffer in used.into_iter().chain([keys.at.buffer]) {
        device.free(buffer)?;
    }
    Ok(())
}

/// What the layers of a token are computed with here: products, of about the time that a
/// layer of such a model takes.
struct StandIn {
    centroids: Buffer,
    scores: Buffer,
    queries: Vec<f32>,
    n_lists: u32,
    dim: u32,
    times: usize,
}

impl StandIn {
    fn new<D: Device>(
        device: &mut D,
        stream: Stream,
        shape: &Shape,
        layer: Duration,
    ) -> Result<Self, DeviceError> {
        let n_lists = (shape.keys / 64) as u32;
        let queries = vec![0.5; 8 * shape.dim as usize];
        let mut work = Self {
            centroids: zeros(device, stream, (4 * n_lists * shape.dim) as usize)?,
            scores: zeros(device, stream, 4 * 8 * n_lists as usize)?,
            queries,
            n_lists,
            dim: shape.dim,
            times: 1,
        };
        let once = timed(device, stream, shape, |d| work.submit(d, stream))?;
        work.times = (layer.as_secs_f64() / once.as_secs_f64().max(1e-9)).ceil() as usize;
        work.times = work.times.clamp(1, 1000);
        Ok(work)
    }

    fn submit<D: Device>(&self, device: &mut D, stream: Stream) -> Result<(), DeviceError> {
        let work = Work::Coarse(Coarse {
            queries: &self.queries,
            centroids: self.centroids.at(0),
            n_lists: self.n_lists,
            dim: self.dim,
            scores: self.scores.at(0),
        });
        (0..self.times).try_for_each(|_| device.submit(stream, &work))
    }
}

/// Tokens of a whole model, whose layers want some new blocks each, predicted to some
/// share.
fn overlaps<D: Device>(device: &mut D, shape: &Shape) -> Result<(), Failure> {
    let compute = device.stream(false)?;
    let stand_in = StandIn::new(device, compute, shape, Duration::from_micros(300))?;
    for (share, pinned) in [
        (None, true),
        (Some(0.0), true),
        (Some(0.7), true),
        (Some(1.0), true),
        (Some(1.0), false),
    ] {
        let mut sides = Vec::new();
        for _ in 0..shape.layers {
            let both = [cache(device, shape)?, cache(device, shape)?];
            sides.push(both.map(|cache| Side {
                cache,
                stored: RowFormat::F16,
            }));
        }
        let pool = if pinned {
            pool(device, shape, RowFormat::F16)?
        } else {
            let layers = pool(
                device,
                &Shape {
                    blocks: 0,
                    ..shape.clone()
                },
                RowFormat::F16,
            )?
            .layers()
            .to_vec();
            let mut pool = PinnedPool::new(layers, shape.rows, 16, 0);
            pool.grow(device, shape.blocks as usize)?;
            pool
        };
        let config = SwapConfig {
            landing: shape.heads * 2 * shape.new as u32,
            ..SwapConfig::default()
        };
        let swapper = Swapper::new(device, compute, sides.clone(), shape.rows, config)?;
        let predict = PredictConfig {
            per_head: shape.new,
            left: 0,
            earlier: 0,
        };
        let mut pager = Pager::new(pool, swapper, predict);
        pager.publish(shape.blocks);
        let time = tokens(device, compute, &stand_in, &mut pager, shape, share)?;
        let overlap = pager.swapper_mut().overlap(device)?;
        let counters = pager.swapper_mut().counters();
        let kind = if pinned { "page-locked" } else { "pageable" };
        let what = match share {
            None => "a token, nothing swapped".to_owned(),
            Some(share) => format!("a token, {kind}, {:.0} % predicted", 100.0 * share),
        };
        let result = match share {
            None => us(time),
            Some(_) => format!(
                "{}; {:.0} % of {} hidden, {} MB/token, {} of {} blocks had landed",
                us(time),
                100.0 * overlap.share(),
                us(overlap.moved / shape.tokens as u32).trim(),
                (counters.bytes + counters.bytes_ahead) / 1_000_000 / shape.tokens as u64,
                counters.landed,
                counters.blocks
            ),
        };
        row(&what, &result);
        pager.release(device)?;
        for side in sides.into_iter().flatten() {
            device.free(side.cache.at.buffer)?;
        }
    }
    device.free(stand_in.centroids)?;
    device.free(stand_in.scores)?;
    Ok(())
}

/// Time of a token.
fn tokens<D: Device>(
    device: &mut D,
    compute: Stream,
    stand_in: &StandIn,
    pager: &mut Pager<D>,
    shape: &Shape,
    share: Option<f64>,
) -> Result<Duration, Failure> {
    let cells: Vec<u32> = (0..shape.slots as u32 * shape.rows).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let slots = Slots {
        cells: &cells,
        turn: None,
    };
    let heads = shape.heads as usize;
    let mut tables = vec![vec![SlotTable::new(shape.slots); heads]; shape.layers];
    // [layer][head]: what is wanted now, and what will be next.
    let first: Vec<u32> = (0..shape.slots as u32).collect();
    let mut now = vec![vec![first; heads]; shape.layers];
    let mut next = vec![vec![Vec::new(); heads]; shape.layers];
    let mut wanted = Selection::default();
    let begin = device.now();
    for step in 0..shape.tokens as u64 {
        for layer in 0..shape.layers {
            stand_in.submit(device, compute)?;
            // Queries are there, as the hook of llama.cpp sees it.
            let queries = device.record(compute)?;
            device.sync(&queries)?;
            if let Some(share) = share {
                wanted.reset(heads);
                for head in 0..heads {
                    let (now, next) = (&mut now[layer][head], &mut next[layer][head]);
                    for block in std::mem::take(next) {
                        let leaves = rng.random_range(0..now.len());
                        now[leaves] = block;
                    }
                    while next.len() < shape.new {
                        let block = rng.random_range(0..shape.blocks);
                        if !now.contains(&block) && !next.contains(&block) {
                            next.push(block);
                        }
                    }
                    wanted.head_mut(head).extend(now.iter());
                    for block in next.iter() {
                        let said = if rng.random_bool(share) {
                            *block
                        } else {
                            rng.random_range(0..shape.blocks)
                        };
                        wanted.ranked_mut(head).1.push(said);
                    }
                }
                pager.ensure(device, (layer, step), &mut tables[layer], &wanted, slots)?;
                pager.attended(device, layer)?;
                let (next, step) = (
                    (layer + 1) % shape.layers,
                    step + (layer as u64 + 1) / shape.layers as u64,
                );
                stand_in.submit(device, compute)?;
                pager.fetch(device, (next, step), &tables[next])?;
            } else {
                stand_in.submit(device, compute)?;
            }
        }
    }
    let end = device.record(compute)?;
    device.sync(&end)?;
    Ok((device.now() - begin) / shape.tokens as u32)
}
