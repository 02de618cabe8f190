use super::*;
use kiv_policy::{Alone, LocalRows, Phase, Queries, RowFormat};
use kiv_store::{ColdTier, HostStore};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

struct Local(Vec<i32>, Vec<f32>);

impl LocalRows for Local {
    fn positions(&self) -> &[i32] {
        &self.0
    }
    fn keys(&self, _: usize, out: &mut Vec<f32>) {
        out.clone_from(&self.1);
    }
}

/// The same shares by f64 and nothing clever.
fn naive(
    g: &Geometry,
    keys: &[f32],
    r: &SelectRequest<'_>,
    local: &Local,
    n_blocks: usize,
) -> Vec<f64> {
    let l = &g.layers[0];
    let value = |q: &[f32], k: &[f32]| {
        let dot: f64 = q
            .iter()
            .zip(k)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum();
        let s = dot * f64::from(l.scale);
        l.soft_cap
            .map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
            .exp()
    };
    let mut best = vec![0f64; n_blocks];
    for t in 0..r.queries.n_tokens() {
        let mut sum = vec![0f64; n_blocks];
        for h in 0..l.n_head {
            let q = r.queries.get(t, h);
            let cold: Vec<f64> = keys.chunks_exact(l.key_dim).map(|k| value(q, k)).collect();
            let visible = local
                .0
                .iter()
                .filter(|p| **p <= r.queries.positions[t])
                .count();
            let near: f64 = local
                .1
                .chunks_exact(l.key_dim)
                .take(visible)
                .map(|k| value(q, k))
                .sum();
            let sink = r.sinks.get(h).map_or(0.0, |sink| f64::from(*sink).exp());
            let total = near + sink + cold.iter().sum::<f64>();
            for (b, keys) in cold.chunks_exact(g.block).enumerate() {
                sum[b] += keys.iter().sum::<f64>() / total;
            }
        }
        for (b, s) in best.iter_mut().zip(sum) {
            *b = b.max(s);
        }
    }
    best
}

#[test]
fn shares_are_the_softmax() {
    for (seed, block, n_tokens, soft_cap, sinks) in [
        (1, 32, 1, None, vec![]),
        (2, 5, 9, None, vec![]),
        (3, 40, 6, Some(3.0), vec![]),
        // Of learned sinks the last takes nearly all of its head's attention.
        (4, 32, 3, None, vec![-1.0, 2.0, 12.0]),
    ] {
        let layer = LayerGeometry {
            il: 0,
            n_head: 3,
            n_head_kv: 1,
            key_dim: 48,
            value_dim: 16,
            scale: 0.3,
            soft_cap,
        };
        let g = Geometry {
            layers: vec![layer],
            block,
            n_slots: 3,
            first_position: 4,
            key_format: RowFormat::F32,
            value_format: RowFormat::F16,
            n_threads: 2,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut random =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.5..1.5)).collect() };
        let n_blocks = 150;
        let keys = random(n_blocks * block * 48);
        let mut store = HostStore::new(&g);
        let values = vec![0; n_blocks * block * 32];
        store
            .append(0, 0, &RowFormat::F32.encode(&keys), &values)
            .unwrap();
        store.publish(n_blocks).unwrap();
        let local = Local((1000..1020).collect(), random(20 * 48));
        let positions: Vec<i32> = (1010..).take(n_tokens).collect();
        let values = random(n_tokens * 3 * 48);
        let request = SelectRequest {
            layer: 0,
            phase: Phase::Prefill,
            step: 0,
            runners: 0,
            queries: Queries {
                values: &values,
                n_head: 3,
                dim: 48,
                positions: &positions,
            },
            cold: &store,
            local: &local,
            takes_rest: false,
            resident: &[],
            sinks: &sinks,
            helpers: &Alone,
        };
        let head = Head {
            layer: &g.layers[0],
            block,
            kv_head: 0,
            request: &request,
        };
        let got = head.block_shares::<true>(&mut Vec::new()).unwrap();
        assert_eq!(got, head.block_shares::<false>(&mut Vec::new()).unwrap());
        let want = naive(&g, &keys, &request, &local, n_blocks);
        for (b, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!(
                (f64::from(*got) - want).abs() <= 1e-4 * want + 1e-7,
                "block {b}: {got} for {want}"
            );
        }
    }
}
