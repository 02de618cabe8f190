//! The index against plain inner products.

use kiv_fastscan::Isa;
use kiv_index::{Asked, Effort, HeadIndex, Hits, IndexError, Params, Scratch};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const EFFORT: Effort = Effort {
    probed: 1024,
    kept: 256,
};

/// Keys like a model's: some hundred kinds that recur, each time a little
/// different, in few of the dimensions, turning slowly with their positions.
struct Source {
    rng: ChaCha8Rng,
    dim: usize,
    kinds: Vec<Vec<f32>>,
}

impl Source {
    fn new(dim: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let kinds = (0..300).map(|_| vector(&mut rng, dim, 3.0)).collect();
        Self { rng, dim, kinds }
    }

    /// Key number `at`.
    fn key(&mut self, at: usize) -> Vec<f32> {
        let kind = self.rng.random_range(0..self.kinds.len());
        let noise = vector(&mut self.rng, self.dim, 0.7);
        let mut key: Vec<f32> = self.kinds[kind]
            .iter()
            .zip(noise)
            .map(|(k, n)| k + n)
            .collect();
        // One slow pair, and one that turns within a segment.
        for (pair, speed) in [(0, 1e-5f32), (2, 1e-3)] {
            let (sin, cos) = (at as f32 * speed).sin_cos();
            let (a, b) = (key[pair] + 5.0, key[pair + 1]);
            (key[pair], key[pair + 1]) = (a * cos - b * sin, a * sin + b * cos);
        }
        key
    }

    fn keys(&mut self, from: usize, n: usize) -> Vec<f32> {
        (from..from + n).flat_map(|at| self.key(at)).collect()
    }
}

fn vector(rng: &mut ChaCha8Rng, dim: usize, size: f32) -> Vec<f32> {
    // Later dimensions carry less and less.
    let at = |d: usize| size / (1.0 + d as f32 / 4.0);
    (0..dim)
        .map(|d| rng.random_range(-1.0..1.0) * at(d))
        .collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn params(dim: usize) -> Params {
    Params {
        segment: 1024,
        era: 3,
        late: 1,
        ..Params::new(dim, 1.0)
    }
}

/// Appends all of `keys`, some at a time, as far as they are not in yet.
fn append(index: &mut HeadIndex, keys: &[f32], at_once: usize) -> Result<(), IndexError> {
    let Params { dim, segment, .. } = *index.params();
    let mut read = |first: usize, out: &mut Vec<f32>| {
        out.extend_from_slice(&keys[first * dim..(first + segment) * dim]);
        true
    };
    for more in keys[index.len() * dim..].chunks(at_once * dim) {
        index.append(more, &mut read)?;
    }
    Ok(())
}

fn search(index: &HeadIndex, queries: &[f32], effort: Effort) -> Hits {
    let mut hits = Hits::default();
    let isa = Isa::detect();
    index
        .search(
            isa,
            queries.into(),
            effort,
            &mut Scratch::default(),
            &mut hits,
        )
        .unwrap();
    hits
}

#[test]
fn rare_keys_are_found_and_logits_are_near() {
    let (mut found, mut rare_keys) = (0, 0);
    for dim in [32, 64, 128] {
        let mut source = Source::new(dim, dim as u64);
        let mut keys = source.keys(0, 10_000);
        // Rare keys: like nothing else.
        let rare: Vec<(usize, Vec<f32>)> = [5, 1500, 4096, 7777, 9990]
            .into_iter()
            .map(|token| (token, vector(&mut source.rng, dim, 6.0)))
            .collect();
        for (token, key) in &rare {
            keys[token * dim..(token + 1) * dim].copy_from_slice(key);
        }
        let mut index = HeadIndex::new(params(dim));
        for _ in 0..200 {
            index.observe(&vector(&mut source.rng, dim, 12.0));
        }
        append(&mut index, &keys, 500).unwrap();
        for (token, key) in &rare {
            let query: Vec<f32> = key.iter().map(|v| v * 2.0).collect();
            let size = dot(&query, key);
            let better = keys.chunks(dim).filter(|k| dot(&query, k) > size).count();
            if better > EFFORT.kept / 8 {
                // Not so rare after all.
                continue;
            }
            rare_keys += 1;
            let hits = search(&index, &query, EFFORT);
            let (tokens, logits) = hits.of(0);
            let mut seen = tokens.to_vec();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), tokens.len(), "every token once");
            assert!(seen.len() >= EFFORT.kept / 2 && seen.len() < EFFORT.kept * 2);
            let at = tokens.iter().position(|t| *t as usize == *token);
            found += usize::from(at.is_some());
            for (token, logit) in tokens.iter().zip(logits) {
                let exact = dot(&query, &keys[*token as usize * dim..][..dim]);
                assert!(
                    (logit - exact).abs() < 0.5 * size,
                    "dim {dim}: {logit} for {exact}"
                );
            }
            if let Some(at) = at {
                assert!((logits[at] - size).abs() < 0.35 * size);
            }
        }
    }
    assert!(rare_keys >= 10, "{rare_keys} of 15 keys are rare");
    // A tenth of the keys is looked at: one may hide in a cluster of others.
    assert!(found + 1 >= rare_keys, "{found} of {rare_keys} rare keys");
}

#[test]
fn the_best_keys_are_found() {
    let dim = 64;
    let mut source = Source::new(dim, 9);
    let keys = source.keys(0, 9000);
    let mut index = HeadIndex::new(params(dim));
    append(&mut index, &keys, 777).unwrap();
    let (mut found, mut wanted) = (0, 0);
    for i in 0..40 {
        // A query near a kind, as attention's are.
        let kind = source.kinds[i * 7].clone();
        let noise = vector(&mut source.rng, dim, 1.0);
        let query: Vec<f32> = kind.iter().zip(noise).map(|(a, b)| a + b).collect();
        let mut best: Vec<usize> = (0..9000).collect();
        best.sort_by(|a, b| {
            let of = |t: &usize| dot(&query, &keys[t * dim..(t + 1) * dim]);
            of(b).total_cmp(&of(a))
        });
        let hits = search(&index, &query, EFFORT);
        let (tokens, _) = hits.of(0);
        found += best[..32]
            .iter()
            .filter(|t| tokens.contains(&(**t as u32)))
            .count();
        wanted += 32;
    }
    assert!(
        found * 100 >= wanted * 97,
        "{found} of the {wanted} best keys"
    );
}

#[test]
fn what_is_below_a_floor_is_not_told() {
    let dim = 64;
    let mut source = Source::new(dim, 12);
    // Newest keys alone, few and many; eras, newest keys and a tail.
    for n in [700, 5000, 21_300] {
        let keys = source.keys(0, n);
        let mut index = HeadIndex::new(params(dim));
        append(&mut index, &keys, 500).unwrap();
        let (mut wanted, mut found) = (0, 0);
        for _ in 0..20 {
            let queries = vector(&mut source.rng, 3 * dim, 2.0);
            let all = search(&index, &queries, EFFORT);
            let told = |hits: &Hits, query| -> Vec<(u32, u32)> {
                let (tokens, logits) = hits.of(query);
                let logits = logits.iter().map(|l| l.to_bits());
                let mut told: Vec<_> = tokens.iter().copied().zip(logits).collect();
                told.sort_unstable();
                told
            };
            let some = all.of(1).1[source.rng.random_range(0..200)];
            let floors = [f32::NEG_INFINITY, some, f32::INFINITY];
            let asked = Asked {
                queries: &queries,
                floors: &floors,
            };
            let (mut scratch, mut hits) = (Scratch::default(), Hits::default());
            let isa = Isa::detect();
            (index.search(isa, asked, EFFORT, &mut scratch, &mut hits)).unwrap();
            assert_eq!(told(&hits, 0), told(&all, 0), "each query has its own");
            assert_eq!(told(&hits, 2), []);
            let above = told(&hits, 1);
            assert!(
                above
                    .iter()
                    .all(|(_, logit)| f32::from_bits(*logit) >= some)
            );
            // Whether one that is not far above is found depends on its list.
            let mut before = told(&all, 1);
            before.sort_by(|a, b| f32::from_bits(b.1).total_cmp(&f32::from_bits(a.1)));
            let n_above = before.iter().filter(|key| f32::from_bits(key.1) >= some);
            before.truncate(n_above.count() / 2);
            wanted += before.len();
            found += before.iter().filter(|key| above.contains(key)).count();
        }
        assert!(
            wanted > 500 && found * 100 >= wanted * 85,
            "{found} of {wanted}"
        );
    }
}

/// A passage that a query looks for has most of a sample: other keys are found all the same.
#[test]
fn a_hot_passage_hides_no_other_keys() {
    let dim = 64;
    let mut source = Source::new(dim, 16);
    let hot = source.kinds[0].clone();
    let mut keys = source.keys(0, 4000);
    // The middle of the second segment, where 64 keys are looked at first, is of one kind.
    source.kinds.truncate(1);
    keys[1500 * dim..1570 * dim].copy_from_slice(&source.keys(1500, 70));
    let other = vector(&mut source.rng, dim, 2.0);
    let queries = [&other[..], &hot, &other].concat();
    let bits = |hits: &Hits, query: usize| -> Vec<(u32, u32)> {
        let (tokens, logits) = hits.of(query);
        let logits = logits.iter().map(|l| l.to_bits());
        tokens.iter().copied().zip(logits).collect()
    };
    // Whole segments and a tail; an era in the making and a tail.
    for n in [2500, 4000] {
        let mut index = HeadIndex::new(params(dim));
        append(&mut index, &keys[..n * dim], 500).unwrap();
        assert_eq!(index.n_eras(), 0);
        let everything = Effort {
            kept: usize::MAX / 2,
            ..EFFORT
        };
        let mut all = bits(&search(&index, &hot, everything), 0);
        all.sort_by(|a, b| {
            let [first, second] = [a, b].map(|key| f32::from_bits(key.1));
            second.total_cmp(&first).then(a.0.cmp(&b.0))
        });
        let mut best = all[..EFFORT.kept].to_vec();
        best.sort_unstable();
        let hits = search(&index, &queries, EFFORT);
        let mut told = bits(&hits, 1);
        told.sort_unstable();
        assert_eq!(told, best);
        // It makes no difference to those who have enough.
        let alone = bits(&search(&index, &other, EFFORT), 0);
        assert_eq!([bits(&hits, 0), bits(&hits, 2)], [alone.clone(), alone]);
        // What is below a floor is not looked for again.
        let floor = f32::from_bits(all[100].1);
        let floors = [f32::NEG_INFINITY, floor, f32::INFINITY];
        let asked = Asked {
            queries: &queries,
            floors: &floors,
        };
        let (mut scratch, mut hits) = (Scratch::default(), Hits::default());
        (index.search(Isa::detect(), asked, EFFORT, &mut scratch, &mut hits)).unwrap();
        let mut told = bits(&hits, 1);
        told.sort_unstable();
        all.retain(|key| f32::from_bits(key.1) >= floor);
        all.sort_unstable();
        assert!((101..EFFORT.kept).contains(&all.len()));
        assert_eq!((told, bits(&hits, 2)), (all, vec![]));
    }
}

/// A query that looks for one key by what tells it apart from all keys like it: its list's mean
/// promises little of it. This one points to nothing else, so one in seven may be lost; without
/// lists that are opened whatever the floor is one in three is, and without room above lists'
/// scores one in five.
#[test]
fn a_floor_hides_no_key_that_is_far_above_it() {
    // As for a decoded token.
    let effort = Effort {
        probed: 10_240,
        ..EFFORT
    };
    let (mut found, mut lost) = (0, 0);
    for apart in [1.5, 4.0] {
        let dim = 64;
        let mut source = Source::new(dim, 15);
        let mut keys = source.keys(0, 21_300);
        for token in (0..15_000).step_by(50) {
            let more = vector(&mut source.rng, dim, apart);
            let key = keys[token * dim..][..dim].iter_mut();
            key.zip(more).for_each(|(k, m)| *k += m);
        }
        let mut index = HeadIndex::new(params(dim));
        append(&mut index, &keys, 500).unwrap();
        for token in (0..15_000).step_by(50) {
            let query = query_for(&keys, dim, token);
            let all = search(&index, &query, effort);
            let (tokens, logits) = all.of(0);
            let Some(at) = tokens.iter().position(|t| *t as usize == token) else {
                continue;
            };
            // The key has three thousand times what is worth telling.
            let floors = [logits[at] - 8.0];
            let asked = Asked {
                queries: &query,
                floors: &floors,
            };
            let (mut scratch, mut hits) = (Scratch::default(), Hits::default());
            (index.search(Isa::detect(), asked, effort, &mut scratch, &mut hits)).unwrap();
            found += 1;
            lost += usize::from(!hits.of(0).0.contains(&(token as u32)));
        }
    }
    assert!(
        found > 300 && lost * 7 <= found,
        "{lost} of {found} keys are lost"
    );
}

/// A query whose product with the keys nearest to one is 15, and with that one 30.
fn query_for(keys: &[f32], dim: usize, token: usize) -> Vec<f32> {
    let key = &keys[token * dim..][..dim];
    let mut others: Vec<&[f32]> = keys.chunks(dim).collect();
    let distance = |other: &[f32]| -> f32 {
        let pairs = key.iter().zip(other);
        pairs.map(|(a, b)| (a - b) * (a - b)).sum()
    };
    others.select_nth_unstable_by(8, |a, b| distance(a).total_cmp(&distance(b)));
    let mean = |d: usize| others[..8].iter().map(|other| other[d]).sum::<f32>() / 8.0;
    let mean: Vec<f32> = (0..dim).map(mean).collect();
    let apart: Vec<f32> = key.iter().zip(&mean).map(|(k, m)| k - m).collect();
    let [of_mean, of_apart] = [&mean, &apart].map(|v| 15.0 / dot(v, v));
    let both = mean.iter().zip(&apart);
    both.map(|(m, a)| m * of_mean + a * of_apart).collect()
}

#[test]
fn decoded_keys_score_what_was_told() {
    for dim in [32, 40, 64] {
        let mut source = Source::new(dim, 14);
        let mut keys = source.keys(0, 9000);
        // Outliers in an era, among the newest keys and in the tail, on a grid and beyond.
        let outliers = [
            (1500, 12.0),
            (7300, 12.0),
            (7800, 1e4),
            (8800, 1e4),
            (8900, 12.0),
        ];
        for (token, size) in outliers {
            let far = vector(&mut source.rng, dim, size);
            keys[token * dim..(token + 1) * dim].copy_from_slice(&far);
        }
        let mut index = HeadIndex::new(params(dim));
        for _ in 0..200 {
            index.observe(&vector(&mut source.rng, dim, 12.0));
        }
        // Keys themselves; a codebook and a tail; an era, newest keys and a tail.
        for n in [500, 2500, 9000] {
            append(&mut index, &keys[..n * dim], 500).unwrap();
            let everything = Effort {
                probed: usize::MAX / 2,
                kept: usize::MAX / 2,
            };
            let query = vector(&mut source.rng, dim, 2.0);
            let hits = search(&index, &query, everything);
            let (tokens, logits) = hits.of(0);
            let mut decoded = Vec::new();
            index.decode(hits.keys(0), &mut decoded);
            assert_eq!(decoded.len(), n * dim);
            let (mut off, mut mean_apart) = (0.0, 0.0);
            for ((token, logit), decoded) in tokens.iter().zip(logits).zip(decoded.chunks(dim)) {
                let key = &keys[*token as usize * dim..][..dim];
                // Tables have steps of the longest keys' size.
                let size = dot(key, key).sqrt().max(8.0) * dot(&query, &query).sqrt();
                let apart = (dot(&query, decoded) - logit).abs() / size;
                assert!(apart < 0.8, "dim {dim}, {n} keys, {token}: {apart}");
                mean_apart += apart / n as f32;
                let error: Vec<f32> = key.iter().zip(decoded).map(|(a, b)| a - b).collect();
                off += (dot(&error, &error) / dot(key, key)).sqrt() / n as f32;
            }
            assert!(mean_apart < 0.03, "dim {dim}, {n} keys: {mean_apart}");
            assert!(off < 0.4, "dim {dim}, {n} keys: {off} of their lengths off");
            // In whatever order, and some of them.
            let some: Vec<u32> = hits.keys(0).iter().rev().step_by(7).copied().collect();
            let mut again = Vec::new();
            index.decode(&some, &mut again);
            let before = decoded.chunks(dim).rev().step_by(7).flatten();
            assert!(again.iter().eq(before));
        }
    }
}

#[test]
fn every_instruction_set_finds_the_same() {
    let dim = 40;
    let mut source = Source::new(dim, 3);
    let keys = source.keys(0, 3000);
    let mut index = HeadIndex::new(params(dim));
    append(&mut index, &keys, 3000).unwrap();
    let queries: Vec<f32> = (0..3)
        .flat_map(|_| vector(&mut source.rng, dim, 2.0))
        .collect();
    let mut all = Isa::available().into_iter().map(|isa| {
        let mut hits = Hits::default();
        let mut scratch = Scratch::default();
        index
            .search(isa, queries[..].into(), EFFORT, &mut scratch, &mut hits)
            .unwrap();
        let of = |q: usize| (hits.of(q).0.to_vec(), hits.of(q).1.to_vec());
        [of(0), of(1), of(2)]
    });
    let first = all.next().expect("portable code runs everywhere");
    assert!(all.all(|other| other == first));
}

#[test]
fn pieces_do_not_matter_and_cuts_are_forgotten() {
    let dim = 32;
    let mut source = Source::new(dim, 4);
    let keys = source.keys(0, 8000);
    let query = vector(&mut source.rng, dim, 2.0);
    let everything = Effort {
        probed: usize::MAX / 2,
        kept: usize::MAX / 2,
    };
    let tokens = |index: &HeadIndex| {
        let hits = search(index, &query, everything);
        let mut tokens = hits.of(0).0.to_vec();
        tokens.sort_unstable();
        tokens
    };
    let all = |n: usize| (0..n as u32).collect::<Vec<_>>();
    let mut whole = HeadIndex::new(params(dim));
    append(&mut whole, &keys, 8000).unwrap();
    let mut pieces = HeadIndex::new(params(dim));
    append(&mut pieces, &keys, 33).unwrap();
    assert_eq!(whole.bytes(), pieces.bytes());
    for effort in [everything, EFFORT] {
        let (a, b) = (
            search(&whole, &query, effort),
            search(&pieces, &query, effort),
        );
        assert_eq!(a.of(0), b.of(0));
    }
    assert!(tokens(&whole) == all(8000));
    // Within the tail, within a segment, at an era's end, nearly all, all.
    for (cut, again) in [
        (7990, 8000),
        (6500, 6501),
        (3 * 1024, 5000),
        (10, 2000),
        (0, 8000),
    ] {
        whole.truncate(cut);
        // What was coded together with what is cut off has to be given again.
        let left = whole.len();
        assert!(left <= cut && tokens(&whole) == all(left));
        append(&mut whole, &keys[..cut * dim], 100).unwrap();
        assert_eq!(whole.len(), cut);
        assert!(tokens(&whole) == all(cut));
        append(&mut whole, &keys[..again * dim], 100).unwrap();
        assert!(whole.len() == again && tokens(&whole) == all(again));
    }
    // After a cut to nothing there is no trace of the past.
    for effort in [everything, EFFORT] {
        let (a, b) = (
            search(&whole, &query, effort),
            search(&pieces, &query, effort),
        );
        assert_eq!(a.of(0), b.of(0));
    }
}

/// Keys that cannot be read again are not there, and not half.
#[test]
fn what_could_not_be_read_again_can_be_given_again() {
    let dim = 32;
    let mut source = Source::new(dim, 17);
    let keys = source.keys(0, 4000);
    let query = vector(&mut source.rng, dim, 2.0);
    // Within the first segment of these, after it, and where an era would take its place.
    for (n, unread, left) in [(1500, 1024, 1500), (1500, 2048, 1024), (4000, 0, 3072)] {
        let mut index = HeadIndex::new(params(dim));
        append(&mut index, &keys[..n * dim], 500).unwrap();
        let mut more = keys[..n * dim].to_vec();
        more.extend(source.keys(n, 2000));
        let mut read = |first: usize, out: &mut Vec<f32>| {
            out.extend_from_slice(&more[first * dim..(first + 1024) * dim]);
            first != unread
        };
        let failed = index.append(&more[n * dim..], &mut read);
        assert_eq!((failed, index.len()), (Err(IndexError::Unread), left));
        append(&mut index, &more, 500).unwrap();
        let mut whole = HeadIndex::new(params(dim));
        append(&mut whole, &more, 500).unwrap();
        let [got, want] = [&index, &whole].map(|index| search(index, &query, EFFORT));
        assert_eq!(got.of(0), want.of(0));
    }
}

#[test]
fn degenerate_keys() {
    for dim in [32, 64, 96, 256, 512] {
        let mut index = HeadIndex::new(params(dim));
        let query = vec![0.5; dim];
        assert!(search(&index, &query, EFFORT).of(0).0.is_empty());
        // Fewer than centroids, then all equal, over several segments.
        append(&mut index, &vec![1.0; 3 * dim], 3).unwrap();
        assert_eq!(search(&index, &query, EFFORT).of(0).0, [0, 1, 2]);
        let mut keys = vec![1.0; 2500 * dim];
        append(&mut index, &keys, 600).unwrap();
        let hits = search(&index, &query, EFFORT);
        let (_, logits) = hits.of(0);
        assert!(!logits.is_empty());
        assert!(
            logits
                .iter()
                .all(|l| (l - 0.5 * dim as f32).abs() < 0.01 * dim as f32)
        );
        // One huge outlier, the size of the largest half-precision number.
        keys.extend(std::iter::repeat_n(65504.0, dim));
        keys.extend(vec![1.0; 2000 * dim]);
        append(&mut index, &keys, 600).unwrap();
        let hits = search(&index, &query, EFFORT);
        let (tokens, logits) = hits.of(0);
        let at = tokens
            .iter()
            .position(|t| *t == 2500)
            .expect("the outlier is found");
        assert!(
            logits
                .iter()
                .enumerate()
                .all(|(i, l)| i == at || *l < logits[at])
        );
    }
}

#[test]
fn keys_and_queries_that_are_no_numbers_are_refused() {
    let dim = 32;
    let mut source = Source::new(dim, 5);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut index = HeadIndex::new(params(dim));
        let mut keys = source.keys(0, 1500);
        append(&mut index, &keys, 1500).unwrap();
        let before = index.bytes();
        keys.extend(source.keys(1500, 100));
        keys[1523 * dim + 7] = bad;
        assert_eq!(
            append(&mut index, &keys, 100),
            Err(IndexError::BadKey { token: 1523 })
        );
        assert_eq!((index.len(), index.bytes()), (1500, before));
        let mut query = vec![0.0; dim];
        query[3] = bad;
        let (mut scratch, mut hits) = (Scratch::default(), Hits::default());
        let refused = index.search(
            Isa::detect(),
            query[..].into(),
            EFFORT,
            &mut scratch,
            &mut hits,
        );
        assert_eq!(refused, Err(IndexError::BadQuery));
    }
}

#[test]
fn plans_are_near_the_truth() {
    let dim = 64;
    let mut source = Source::new(dim, 6);
    let params = Params::new(dim, 1.0);
    let mut index = HeadIndex::new(params.clone());
    index.observe(&vector(&mut source.rng, dim, 1.0));
    let keys = source.keys(0, 90_000);
    let mut most = 0;
    for n in [2000, 40_000, 65_536, 81_919, 90_000] {
        append(&mut index, &keys[..n * dim], 512).unwrap();
        if let Some(work) = index.give_away() {
            let tokens = work.tokens();
            work.run(keys[tokens.start * dim..tokens.end * dim].to_vec());
        }
        // What it took for an era in the making is planned for whoever has come further.
        most = index.bytes().max(most);
        let planned = params.planned_bytes(n);
        assert!(
            planned >= most && planned < most * 3 / 2,
            "{n} keys: {planned} planned, {most} taken"
        );
    }
    // Keys in two orders, at least.
    let keys = 65_536 * dim * size_of::<f32>();
    assert_eq!(params.planned_work_bytes(65_535), 0);
    assert!((2 * keys..4 * keys).contains(&params.planned_work_bytes(1 << 20)));
}
