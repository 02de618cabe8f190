//! An index as bytes: the same one comes back, and nothing else does.

use kiv_fastscan::Isa;
use kiv_index::{Effort, HeadIndex, Hits, Params, Scratch};
use kiv_wire::Take;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DIM: usize = 32;

const EFFORT: Effort = Effort {
    probed: 300,
    kept: 40,
};

fn params() -> Params {
    Params {
        segment: 256,
        era: 2,
        late: 1,
        ..Params::new(DIM, 0.2)
    }
}

fn random(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// An index of `n` keys, some of them rare.
fn index(n: usize, seed: u64) -> (HeadIndex, Vec<f32>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut keys = random(&mut rng, 2000 * DIM);
    for (i, key) in keys.chunks_mut(DIM).enumerate() {
        if i % 97 == 0 {
            key.iter_mut().for_each(|v| *v *= 9.0);
        }
        if i % 301 == 0 {
            key[i % DIM] += 500.0;
        }
    }
    let mut index = HeadIndex::new(params());
    append(&mut index, &keys, n);
    (index, keys)
}

fn append(index: &mut HeadIndex, keys: &[f32], n: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    while index.len() < n {
        index.observe(&random(&mut rng, DIM));
        append_unseen(index, keys, (index.len() + 100).min(n));
    }
}

/// Appends keys up to number `n` while no queries come.
fn append_unseen(index: &mut HeadIndex, keys: &[f32], n: usize) {
    while index.len() < n {
        let end = (index.len() + 100).min(n);
        let mut read = |first: usize, out: &mut Vec<f32>| {
            out.extend_from_slice(&keys[first * DIM..(first + 256) * DIM]);
            true
        };
        let new = &keys[index.len() * DIM..end * DIM];
        index.append(new, &mut read).unwrap();
    }
}

fn save(index: &HeadIndex) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut rest = Vec::new();
    index.put_rest(&mut rest);
    let era = |i| {
        let mut bytes = Vec::new();
        index.put_era(i, &mut bytes);
        bytes
    };
    (rest, (0..index.n_eras()).map(era).collect())
}

fn load(rest: &[u8], eras: &[Vec<u8>]) -> Option<HeadIndex> {
    let mut rest = Take::new(rest);
    let mut eras: Vec<_> = eras.iter().map(|bytes| Take::new(bytes)).collect();
    let index = HeadIndex::take(params(), &mut rest, &mut eras).ok()?;
    rest.end().ok()?;
    Some(index)
}

fn search(index: &HeadIndex, queries: &[f32]) -> Vec<(Vec<u32>, Vec<u32>)> {
    search_with(index, queries, EFFORT)
}

fn search_with(index: &HeadIndex, queries: &[f32], effort: Effort) -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut hits = Hits::default();
    let found = index.search(
        Isa::Scalar,
        queries.into(),
        effort,
        &mut Scratch::default(),
        &mut hits,
    );
    found.unwrap();
    (0..queries.len() / DIM)
        .map(|i| {
            let (tokens, logits) = hits.of(i);
            let bits = logits.iter().map(|l| l.to_bits()).collect();
            (tokens.to_vec(), bits)
        })
        .collect()
}

#[test]
fn the_same_index_comes_back_and_goes_on() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let queries = random(&mut rng, 5 * DIM);
    for (n, cut) in [
        (0, 0),
        (100, 60),
        (255, 255),
        (256, 256),
        (600, 600),
        (700, 700),
        (767, 500),
        (1500, 1100),
        (600, 520),
        (600, 3),
    ] {
        let (mut index, keys) = index(n, 1);
        index.truncate(cut);
        let (rest, eras) = save(&index);
        let mut loaded = load(&rest, &eras).unwrap();
        assert_eq!(save(&loaded), (rest, eras), "{n} keys cut to {cut}");
        assert_eq!((loaded.len(), loaded.bytes()), (index.len(), index.bytes()));
        assert!(index.len() <= cut);
        for end in [cut, cut + 37, 1900] {
            append(&mut index, &keys, end);
            append(&mut loaded, &keys, end);
            assert_eq!(search(&index, &queries), search(&loaded, &queries));
            assert_eq!(save(&index), save(&loaded));
        }
    }
}

/// What was cut off leaves no trace where codebooks are none of its making.
#[test]
fn a_cut_index_is_one_that_never_had_more() {
    let queries = random(&mut ChaCha8Rng::seed_from_u64(3), 5 * DIM);
    let everything = Effort {
        probed: usize::MAX / 2,
        kept: usize::MAX / 2,
    };
    let (_, keys) = index(0, 1);
    let params = || Params { era: 4, ..params() };
    for (n, cut) in [
        // In the tail, in the last segment, in one before.
        (700, 520),
        (900, 700),
        (900, 300),
        // In an era in the making.
        (1100, 700),
        // After an era.
        (1900, 1600),
        (1999, 1536),
    ] {
        let mut index = HeadIndex::new(params());
        append_unseen(&mut index, &keys, n);
        index.truncate(cut);
        assert!(index.len() <= cut);
        let mut other = HeadIndex::new(params());
        for end in [index.len(), cut, cut + 37, 1999] {
            append_unseen(&mut index, &keys, end);
            append_unseen(&mut other, &keys, end);
            for effort in [EFFORT, everything] {
                let both = [&index, &other].map(|index| search_with(index, &queries, effort));
                assert!(both[0] == both[1], "{n} cut to {cut}, at {end}");
            }
        }
    }
}

/// Eras that are whole stay what they are: they need not be written again.
#[test]
fn whole_eras_do_not_change() {
    let (mut index, keys) = index(1300, 2);
    let before = save(&index).1;
    append(&mut index, &keys, 1900);
    let after = save(&index).1;
    assert_eq!(before[..2], after[..2]);
    assert!(before[2..] != after[2..]);
}

/// Damage is refused, or harmless: what is loaded can be searched, cut and
/// appended to.
#[test]
fn damaged_bytes_never_harm() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (index, keys) = index(1300, 1);
    let (rest, eras) = save(&index);
    let queries = random(&mut rng, 2 * DIM);
    let (mut refused, mut loaded) = (0, 0);
    for _ in 0..3000 {
        let (mut rest, mut eras) = (rest.clone(), eras.clone());
        let n = eras.len();
        let bytes = match rng.random_range(0..=n) {
            0 => &mut rest,
            era => &mut eras[era - 1],
        };
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..4) {
                0 => bytes.truncate(at + 1),
                1 => bytes[at] = 0xff,
                _ => bytes[at] ^= 1 << rng.random_range(0..8),
            }
        }
        match load(&rest, &eras) {
            None => refused += 1,
            Some(mut index) => {
                loaded += 1;
                let mut hits = Hits::default();
                let _ = index.search(
                    Isa::detect(),
                    queries[..].into(),
                    EFFORT,
                    &mut Scratch::default(),
                    &mut hits,
                );
                if loaded % 20 == 0 {
                    append(&mut index, &keys, 1400);
                    index.truncate(1200);
                    index.truncate(700);
                }
            }
        }
    }
    assert!(
        refused > 300 && loaded > 300,
        "{refused} refused, {loaded} loaded"
    );
}
