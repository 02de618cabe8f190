//! `pq`: the blocks that the product-quantized K-index says hold the most
//! attention mass. The default.
//!
//! What `exact` does by scoring every key, this does by asking the index
//! (`kiv-index`) for the best keys of every query: their approximate logits are
//! turned into shares of the softmax, local keys included, summed by block and
//! over the query group.
//!
//! In prefill the queries of a micro-batch are grouped by k-means, head by
//! head, the index is asked for each group's mean, and each query weighs what
//! its mean has found: every micro-batch sees the whole past, at a cost that
//! hardly grows with its length.

mod ask;
mod crew;
mod device;
mod head;
mod read;
mod rest;
mod split;
mod work;

use crate::top::{next_of, top_of};
use ask::Ask;
use crew::Crew;
use head::Head;
use kiv_fastscan::Isa;
use kiv_index::{Finder, HeadIndex, IndexError, Params};
use kiv_policy::{
    BlockId, ColdRows, DeviceUse, FindPart, Geometry, KeepPart, LayerGeometry, Phase, Policy,
    PolicyError, Rows, SelectRequest, Selection,
};
use kiv_wire::{Put, Take};
use rayon::prelude::*;
use rest::Leavings;
use std::ops::Range;
use work::{Job, Workers};

/// Share of a query's softmax that a block must have over one that is in a slot already to
/// be copied instead of it: what is left out for so little is in the rest.
const HEAD_START: f32 = 1.5e-4;

/// Cold keys that a query takes as much time as, whatever their number: for local keys, for
/// what has been found, and for the rest.
const ANYWAY: usize = 1 << 15;

/// The policy; see the module's description.
pub struct Pq {
    state: Option<State>,
    /// Sizes of an index of keys of so many values, under a scale.
    sizes: fn(usize, f32) -> Params,
    /// Done before work that an index gives away.
    before_each: fn(),
    /// A device that searches for decoded tokens.
    finder: Option<Box<dyn Finder>>,
    /// Whether what is found is added up in the order of keys.
    in_order: bool,
}

impl Default for Pq {
    fn default() -> Self {
        Self {
            state: None,
            sizes: Params::new,
            before_each: || (),
            finder: None,
            in_order: false,
        }
    }
}

struct State {
    geometry: Geometry,
    threads: rayon::ThreadPool,
    workers: Workers,
    /// Whether some index may have work to give away.
    undone: bool,
    isa: Isa,
    /// `[layer][kv_head]`.
    heads: Vec<Vec<Head>>,
}

impl Policy for Pq {
    fn name(&self) -> &'static str {
        "pq"
    }

    fn takes_help(&self) -> bool {
        true
    }

    fn start(&mut self, geometry: &Geometry) -> Result<(), PolicyError> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(geometry.n_threads)
            .build()
            .map_err(|e| PolicyError(format!("cannot start index threads: {e}")))?;
        let isa = match Isa::from_env() {
            Ok(forced) => forced.unwrap_or_else(Isa::detect),
            Err(error) => return Err(PolicyError(error.to_string())),
        };
        let in_order = self.in_order;
        let heads = geometry.layers.iter().map(|layer| {
            let params = (self.sizes)(layer.key_dim, layer.scale);
            params
                .check()
                .map_err(|why| PolicyError(format!("layer {}: {why}", layer.il)))?;
            let head = |_| Head::new(HeadIndex::new(params.clone()), in_order);
            Ok((0..layer.n_head_kv).map(head).collect())
        });
        self.state = Some(State {
            geometry: geometry.clone(),
            threads,
            workers: Workers::new(geometry.n_threads, self.before_each)?,
            undone: false,
            isa,
            heads: heads.collect::<Result<_, PolicyError>>()?,
        });
        Ok(())
    }

    fn sealed(&mut self, cold: &dyn ColdRows) -> Result<(), PolicyError> {
        let state = self.state()?;
        let geometry = &state.geometry;
        let indices: Vec<_> = indices(&mut state.heads).collect();
        // Whatever comes of it.
        state.undone = true;
        // All of them, also after an error: each may have one of its own to tell, and none
        // should come up later.
        let taken_up: Vec<_> = state.threads.install(|| {
            indices
                .into_par_iter()
                .with_max_len(1)
                .map(|(at, index)| take_up(index, cold, geometry, at))
                .collect()
        });
        taken_up.into_iter().collect::<Result<(), _>>()?;
        state.catch_up(cold)?;
        state.give_out(cold)
    }

    fn truncate(&mut self, n_blocks: usize) -> Result<(), PolicyError> {
        let state = self.state()?;
        let n_tokens = n_blocks * state.geometry.block;
        for head in state.heads.iter_mut().flatten() {
            if n_blocks > 0 {
                head.index.truncate(n_tokens);
            } else {
                // What another text's queries were like is forgotten, too.
                head.index = HeadIndex::new(head.index.params().clone());
            }
        }
        Ok(())
    }

    fn select(
        &mut self,
        request: &SelectRequest<'_>,
        selection: &mut Selection,
    ) -> Result<(), PolicyError> {
        let Self { state, finder, .. } = self;
        let state = state.as_mut().ok_or_else(unstarted)?;
        state.give_out(request.cold)?;
        let layer = &state.geometry.layers[request.layer];
        let (block, n_slots) = (state.geometry.block, state.geometry.n_slots);
        let n_blocks = request.cold.n_blocks();
        let first = Ask {
            request,
            layer,
            kv_head: 0,
            isa: state.isa,
            block,
        };
        let heads = &mut state.heads[request.layer];
        let is_searched = n_blocks > n_slots && n_slots > 0;
        let finder = finder.as_deref_mut().filter(|_| is_searched);
        let found = finder.and_then(|finder| device::find(finder, &first, heads));
        let is_asked = found.is_some();
        let found = found.unwrap_or_else(|| vec![None; heads.len()]);
        let n_queries = request.queries.n_tokens() * layer.n_head;
        let work = if is_searched {
            (n_blocks * block + ANYWAY) * n_queries * layer.key_dim
        } else {
            0
        };
        let crew = Crew {
            own: &state.threads,
            helpers: request.helpers,
            work,
        };
        let (wanted, rests) = selection.parts_mut();
        let sizes = (n_blocks, n_slots);
        let n_parts = if is_searched && !is_asked {
            split::n_parts(&crew, &first, heads.len())
        } else {
            1
        };
        if n_parts > 1 {
            split::select(&crew, &first, n_parts, heads, sizes, (wanted, rests))?;
        } else {
            let answers = wanted.iter_mut().zip(rests);
            let heads = heads.iter_mut().zip(found).zip(answers).enumerate();
            // What is read from a disk for one head comes while others are searched for.
            crew.all(
                heads.collect(),
                |(kv_head, ((head, found), (wanted, rest)))| {
                    let ask = Ask { kv_head, ..first };
                    ask.observe(&mut head.index);
                    if !is_searched {
                        if n_blocks <= n_slots {
                            wanted.extend(0..n_blocks as BlockId);
                        }
                        return Ok(None);
                    }
                    if !is_asked {
                        head.local.update(request, kv_head);
                    }
                    let (known, parts) = head.parts(1);
                    let queries = ask.query_heads();
                    parts[0].look(&ask, known, queries, found.as_ref(), n_blocks)?;
                    let leavings = ask.choose(head, sizes, wanted);
                    Ok(leavings.map(|left| (ask, &head.totals, left, rest)))
                },
                |left| match left {
                    Some((ask, totals, leavings, rest)) => {
                        ask.rest(totals, 0..totals.len(), leavings, rest)
                    }
                    None => Ok(()),
                },
            )?;
        }
        // Of what was looked at, where something was.
        if is_searched {
            for (kv_head, head) in state.heads[request.layer].iter().enumerate() {
                let (wanted, runners) = selection.ranked_mut(kv_head);
                let touched = head.touched.iter().copied();
                next_of(&head.shares, touched, wanted, request.runners, runners);
            }
        }
        Ok(())
    }

    fn save(&self, keep: &mut KeepPart<'_>) -> Result<bool, PolicyError> {
        let state = self.state.as_ref().ok_or_else(unstarted)?;
        let heads = || state.heads.iter().flatten().map(|head| &head.index);
        let mut bytes = Vec::new();
        let n_eras = heads().map(HeadIndex::n_eras).max().unwrap_or(0);
        if heads().any(|index| index.n_eras() != n_eras) {
            // Taking up has failed in between: better made anew than half.
            return Ok(false);
        }
        bytes.put_u64(n_eras as u64);
        heads().for_each(|index| index.put_rest(&mut bytes));
        keep("rest", &bytes)?;
        for era in 0..n_eras {
            bytes.clear();
            heads().for_each(|index| index.put_era(era, &mut bytes));
            keep(&format!("era {era}"), &bytes)?;
        }
        Ok(true)
    }

    fn load(&mut self, part: &mut FindPart<'_>) -> Result<bool, PolicyError> {
        let state = self.state()?;
        let Some(rest) = part("rest")? else {
            return Ok(false);
        };
        let mut rest = Take::new(&rest);
        let mut eras = Vec::new();
        // Their number is only believed as far as they are there.
        for era in 0..rest.u64().unwrap_or(0) {
            match part(&format!("era {era}"))? {
                Some(bytes) => eras.push(bytes),
                None => return Ok(false),
            }
        }
        let mut eras: Vec<Take<'_>> = eras.iter().map(|bytes| Take::new(bytes)).collect();
        let mut indices = Vec::new();
        for head in state.heads.iter().flatten() {
            let params = head.index.params().clone();
            match HeadIndex::take(params, &mut rest, &mut eras) {
                Ok(index) => indices.push(index),
                Err(_) => return Ok(false),
            }
        }
        let left = eras
            .into_iter()
            .chain([rest])
            .any(|take| take.end().is_err());
        if left {
            return Ok(false);
        }
        for (head, index) in state.heads.iter_mut().flatten().zip(indices) {
            head.index = index;
        }
        state.undone = true;
        Ok(true)
    }

    fn index_bytes(&self) -> usize {
        let heads = self.state.iter().flat_map(|s| s.heads.iter().flatten());
        heads.map(|head| head.index.bytes()).sum()
    }

    fn device_use(&self) -> Option<DeviceUse> {
        let finder = self.finder.as_ref()?;
        Some(DeviceUse {
            bytes: finder.bytes(),
            searches: finder.searches(),
        })
    }

    fn planned_index_bytes(&self, geometry: &Geometry, n_tokens: usize) -> usize {
        let of = |l: &LayerGeometry| {
            l.n_head_kv * (self.sizes)(l.key_dim, l.scale).planned_bytes(n_tokens)
        };
        geometry.layers.iter().map(of).sum()
    }

    fn planned_work_bytes(&self, geometry: &Geometry, n_tokens: usize) -> usize {
        let layers = geometry.layers.iter();
        let of = |l: &LayerGeometry| (self.sizes)(l.key_dim, l.scale).planned_work_bytes(n_tokens);
        let n_heads: usize = layers.clone().map(|l| l.n_head_kv).sum();
        // Threads of its own, and those that help these out.
        let n = work::n_threads(geometry.n_threads) + geometry.n_threads;
        layers.map(of).max().unwrap_or(0) * n.min(n_heads)
    }
}

fn unstarted() -> PolicyError {
    PolicyError("used before start".to_owned())
}

impl Pq {
    /// Lets a device search for decoded tokens. What is found is the same, and sums over it
    /// are those of [`Pq::in_order`].
    #[must_use]
    pub fn with_finder(self, finder: Box<dyn Finder>) -> Self {
        let finder = Some(finder);
        Self { finder, ..self }.in_order()
    }

    /// Adds up what is found in the order of keys, whoever has found it: with a device and
    /// without one answers are then the same bit by bit. It takes a twentieth of a short
    /// token of a tiny model.
    #[must_use]
    pub fn in_order(self) -> Self {
        let in_order = true;
        Self { in_order, ..self }
    }

    /// With indices of other sizes, by values of a key and the scale: for experiments.
    #[must_use]
    pub fn with_sizes(self, sizes: fn(usize, f32) -> Params) -> Self {
        Self { sizes, ..self }
    }

    fn state(&mut self) -> Result<&mut State, PolicyError> {
        self.state.as_mut().ok_or_else(unstarted)
    }
}

impl State {
    /// Does some of what is left to others, if these are late with it.
    fn catch_up(&mut self, cold: &dyn ColdRows) -> Result<(), PolicyError> {
        let geometry = &self.geometry;
        // All heads have the same tokens.
        let time_over = indices(&mut self.heads).find_map(|(_, index)| index.time_over());
        let Some(time_over) = time_over else {
            return Ok(());
        };
        let n_heads = self.heads.iter().map(Vec::len).sum();
        let is_undone = |(_, index): &(_, &mut HeadIndex)| index.undone().is_some();
        let undone: Vec<_> = indices(&mut self.heads).filter(is_undone).collect();
        let n_threads = self.threads.current_num_threads();
        let n = work::behind(time_over, n_heads, undone.len(), n_threads);
        let now: Vec<_> = undone.into_iter().take(n).collect();
        self.threads.install(|| {
            let now = now.into_par_iter().with_max_len(1);
            now.try_for_each(|(at, index)| {
                while let Some(job) = Job::of(index, cold, geometry, at)? {
                    job.run();
                }
                Ok(())
            })
        })
    }

    /// Gives away what heads leave to others, as much as these can take now: what is sooner
    /// done first, as it is wanted sooner.
    fn give_out(&mut self, cold: &dyn ColdRows) -> Result<(), PolicyError> {
        while self.undone && self.workers.is_free() {
            let undone = indices(&mut self.heads)
                .filter_map(|(at, index)| Some((index.undone()?.len(), at, index)));
            match undone.min_by_key(|(n_tokens, ..)| *n_tokens) {
                Some((_, at, index)) => self.workers.give(index, cold, &self.geometry, at)?,
                None => self.undone = false,
            }
        }
        Ok(())
    }
}

/// All indices, each with its layer and KV head.
fn indices(heads: &mut [Vec<Head>]) -> impl Iterator<Item = ((usize, usize), &mut HeadIndex)> {
    let layers = heads.iter_mut().enumerate();
    layers.flat_map(|(layer, heads)| {
        let heads = heads.iter_mut().enumerate();
        heads.map(move |(kv_head, head)| ((layer, kv_head), &mut head.index))
    })
}

impl Ask<'_> {
    /// The blocks that a head wants, of so many and at most so many, once they have been looked
    /// for, and what of the others is worth it.
    fn choose(
        &self,
        head: &mut Head,
        (n_blocks, n_slots): (usize, usize),
        wanted: &mut Vec<BlockId>,
    ) -> Option<Leavings> {
        let Self { request, layer, .. } = self;
        head.conclude(request.phase, n_blocks);
        // Nothing is known of blocks without a hit.
        let gives_rest = request.phase == Phase::Decode
            && request.takes_rest
            && self.is_plain()
            && head.touched.len() > n_slots;
        if gives_rest {
            let start = HEAD_START * layer.group() as f32;
            let resident = request.resident.get(self.kv_head);
            head.prefer(resident.copied().unwrap_or_default(), start);
        }
        let n = n_slots - usize::from(gives_rest);
        let touched = head.touched.iter().copied();
        top_of(&head.shares, touched, n, wanted);
        gives_rest.then(|| self.leave(head, wanted))
    }
}

/// Shows the keys of some tokens to `each`, run by run.
fn keys_of(
    cold: &dyn ColdRows,
    geometry: &Geometry,
    (layer, kv_head): (usize, usize),
    tokens: Range<usize>,
    mut each: impl FnMut(Rows<'_>),
) -> Result<(), PolicyError> {
    let block = geometry.block;
    let mut at = tokens.start;
    while at < tokens.end {
        let (from, skip) = (at / block, at % block);
        let blocks = (tokens.end - from * block).div_ceil(block);
        let run = cold.keys(layer, kv_head, from as BlockId, blocks)?;
        let rows = run.rows();
        let n = (rows.n_rows() - skip).min(tokens.end - at);
        each(rows.slice(skip, n));
        at += n;
    }
    Ok(())
}

/// Brings one index up to date with the cold store.
fn take_up(
    index: &mut HeadIndex,
    cold: &dyn ColdRows,
    geometry: &Geometry,
    (layer, kv_head): (usize, usize),
) -> Result<(), PolicyError> {
    let end = cold.n_blocks() * geometry.block;
    let Params { dim, segment, .. } = *index.params();
    let read = |tokens: Range<usize>, out: &mut Vec<f32>| {
        out.clear();
        keys_of(cold, geometry, (layer, kv_head), tokens, |rows| {
            let start = out.len();
            out.resize(start + rows.n_rows() * dim, 0.0);
            rows.format.decode(rows.bytes, &mut out[start..]);
        })
    };
    let mut keys = Vec::new();
    read(index.len()..end, &mut keys)?;
    let mut unread = None;
    let mut read_back = |first: usize, out: &mut Vec<f32>| {
        let result = read(first..first + segment, out);
        let is_read = result.is_ok();
        unread = unread.take().or(result.err());
        is_read
    };
    index.append(&keys, &mut read_back).map_err(|error| {
        let il = geometry.layers[layer].il;
        if let Some(unread) = unread {
            return unread;
        }
        PolicyError(match error {
            IndexError::BadKey { token } => format!(
                "the key at position {} of layer {il}, KV head {kv_head} is not a number: the \
                 model's computation has gone wrong before",
                geometry.first_position + token
            ),
            other => format!("layer {il}, KV head {kv_head}: {other}"),
        })
    })
}

#[cfg(test)]
mod tests;
