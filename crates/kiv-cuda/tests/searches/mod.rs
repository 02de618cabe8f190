//! Indices with a history, searched on a device and on the CPU: what is found must be the
//! same, bit by bit.

use kiv_cuda::Device;
use kiv_cuda::search::DeviceFinder;
use kiv_fastscan::Isa;
use kiv_index::{Asked, Effort, Finder, HeadIndex, Hits, Params, Scratch};
use kiv_wire::Take;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Something that happens to the indices of a layer.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// So many keys come.
    Append(usize),
    /// So many thousandths of them are left.
    Cut(usize),
    /// Another process goes on with what this one has saved.
    Reopen,
    /// Work that was left to others is given away, and done at once or never.
    Work(bool),
    /// Both go on with copies.
    Copy,
}

/// What keys are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Like a model's, some of them far from all others.
    Usual,
    /// Like those, none of them far: lists of many keys are short, too.
    Plain,
    /// One and the same, but for a few.
    Alike,
    /// Of few values, so that many have the same score.
    Coarse,
}

/// Indices of a layer's heads, and the keys that they were given.
pub struct Layer {
    pub heads: Vec<HeadIndex>,
    keys: Vec<Vec<f32>>,
    rng: ChaCha8Rng,
    kind: Kind,
    /// Whether some queries are 0, to which all keys are equal.
    pub has_zeros: bool,
}

/// Small eras, of 256 keys.
pub fn params(dim: usize) -> Params {
    Params {
        segment: 32,
        era: 8,
        late: 2,
        list: 4,
        ..Params::new(dim, 0.25)
    }
}

impl Layer {
    pub fn new(params: &Params, n_heads: usize, kind: Kind, seed: u64) -> Self {
        Self {
            heads: vec![HeadIndex::new(params.clone()); n_heads],
            keys: vec![Vec::new(); n_heads],
            rng: ChaCha8Rng::seed_from_u64(seed),
            kind,
            has_zeros: false,
        }
    }

    fn key(&mut self, dim: usize) -> Vec<f32> {
        let rng = &mut self.rng;
        let size = match rng.random_range(0..100) {
            // Beyond all that was seen, and among the rare ones.
            0 => 400.0,
            1..5 => 12.0,
            _ => 1.0,
        };
        let size = if self.kind == Kind::Plain { 1.0 } else { size };
        let kind = rng.random_range(0..12) as f32;
        match self.kind {
            Kind::Alike if size < 100.0 => vec![0.5; dim],
            Kind::Coarse => (0..dim)
                .map(|_| rng.random_range(-1i8..=1).into())
                .collect(),
            Kind::Usual | Kind::Plain | Kind::Alike => (0..dim)
                .map(|d| {
                    let of_kind = (kind * (d + 1) as f32).sin() * 3.0 / (1.0 + d as f32 / 8.0);
                    of_kind + size * rng.random_range(-0.5..0.5)
                })
                .collect(),
        }
    }

    pub fn step(&mut self, step: Step) {
        for head in 0..self.heads.len() {
            let Params { dim, segment, .. } = *self.heads[head].params();
            match step {
                Step::Append(n) => {
                    let new: Vec<f32> = (0..n).flat_map(|_| self.key(dim)).collect();
                    self.keys[head].extend(&new);
                    self.append(head);
                }
                Step::Cut(thousandths) => {
                    let n = self.heads[head].len() * thousandths / 1000;
                    self.heads[head].truncate(n);
                    self.keys[head].truncate(n * dim);
                    // More may be forgotten than was asked for.
                    self.append(head);
                }
                Step::Reopen => {
                    let index = &self.heads[head];
                    let (mut rest, mut eras) = (Vec::new(), Vec::new());
                    index.put_rest(&mut rest);
                    for era in 0..index.n_eras() {
                        let mut bytes = Vec::new();
                        index.put_era(era, &mut bytes);
                        eras.push(bytes);
                    }
                    let mut eras: Vec<Take<'_>> = eras.iter().map(|b| Take::new(b)).collect();
                    let params = index.params().clone();
                    let taken = HeadIndex::take(params, &mut Take::new(&rest), &mut eras);
                    self.heads[head] = taken.unwrap();
                }
                Step::Work(is_done) => {
                    if let Some(work) = self.heads[head].give_away()
                        && is_done
                    {
                        let tokens = work.tokens();
                        let keys = &self.keys[head][tokens.start * dim..tokens.end * dim];
                        assert!(tokens.len() >= segment);
                        work.run(keys.to_vec());
                    }
                }
                Step::Copy => self.heads[head] = self.heads[head].clone(),
            }
        }
    }

    fn append(&mut self, head: usize) {
        let Params { dim, segment, .. } = *self.heads[head].params();
        let (index, keys) = (&mut self.heads[head], &self.keys[head]);
        let mut read = |first: usize, out: &mut Vec<f32>| {
            out.extend(&keys[first * dim..(first + segment) * dim]);
            true
        };
        while index.append(&keys[index.len() * dim..], &mut read).is_err() {
            // Work that nobody did is done at the next try.
        }
    }

    /// From which product on keys are worth telling to these queries: among what is found,
    /// above and below all of it.
    fn floors(&mut self, queries: &[f32], group: usize, effort: Effort) -> Vec<f32> {
        let (mut scratch, mut hits) = (Scratch::default(), Hits::in_order());
        let mut floors = Vec::new();
        let len = queries.len() / self.heads.len();
        for (index, queries) in self.heads.iter().zip(queries.chunks(len)) {
            let isa = Isa::detect();
            (index.search(isa, queries.into(), effort, &mut scratch, &mut hits)).unwrap();
            for query in 0..group {
                let (_, logits) = hits.of(query);
                let some = self.rng.random_range(0..=logits.len());
                let some = logits.get(some).copied().unwrap_or(f32::INFINITY);
                floors.push(match self.rng.random_range(0..4) {
                    0 => f32::NEG_INFINITY,
                    1 => some - 1.0,
                    _ => some,
                });
            }
        }
        floors
    }

    pub fn queries(&mut self, group: usize) -> Vec<f32> {
        let n = self.heads.len() * group * self.heads[0].params().dim;
        let size = match self.rng.random_range(0..8) {
            0 if self.has_zeros => 0.0,
            0..3 => 0.3,
            3..5 => 2.0,
            // Keys may be far above their lists' scores.
            _ => 8.0,
        };
        let queries: Vec<f32> = (0..n)
            .map(|_| self.rng.random_range(-1.0..1.0) * size)
            .collect();
        self.heads
            .iter_mut()
            .for_each(|head| head.observe(&queries[..n / 2 / group * group]));
        queries
    }
}

/// Bits of everything that was told.
fn told(hits: &Hits, n: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
    let of = |query| {
        let (tokens, logits) = hits.of(query);
        (
            tokens.to_vec(),
            logits.iter().map(|l| l.to_bits()).collect(),
        )
    };
    (0..n).map(of).collect()
}

/// Searches a layer both ways; tells how many heads the device has served.
pub fn compare<D: Device + Send>(
    finder: &mut DeviceFinder<D>,
    number: usize,
    layer: &mut Layer,
    group: usize,
    effort: Effort,
) -> usize {
    let queries = layer.queries(group);
    let floors = layer.floors(&queries, group, effort);
    let heads: Vec<&HeadIndex> = layer.heads.iter().collect();
    let mut found = vec![None; heads.len()];
    let all = Asked {
        queries: &queries,
        floors: &floors,
    };
    finder.find(number, &heads, all, effort, &mut found);
    let (mut scratch, mut hits) = (Scratch::default(), Hits::in_order());
    let len = queries.len() / heads.len();
    let of_heads = queries.chunks(len).zip(floors.chunks(group));
    for (head, (index, (queries, floors))) in heads.iter().zip(of_heads).enumerate() {
        let isa = Isa::detect();
        let asked = Asked { queries, floors };
        (index.search(isa, asked, effort, &mut scratch, &mut hits)).unwrap();
        let wanted = told(&hits, group);
        let Some(found) = &found[head] else {
            continue;
        };
        // In memory of another search, as it comes.
        (index.search_rest(isa, asked, effort, found, &mut scratch, &mut hits)).unwrap();
        let got = told(&hits, group);
        for (query, (wanted, got)) in wanted.iter().zip(&got).enumerate() {
            assert_eq!(
                wanted,
                got,
                "head {head}, query {query} of {} keys, {effort:?}",
                index.len()
            );
        }
    }
    found.iter().flatten().count()
}
