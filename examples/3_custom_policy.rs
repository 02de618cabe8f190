//! A cache policy of one's own, complete: blocks are ranked by the largest
//! inner product of any query with their mean key and their two most distant
//! keys. It builds without llama.cpp but for the last function, which uses it.
//!
//! ```sh
//! cargo run --release --example 3_custom_policy
//! ```

use kiv::Model;
use kiv::policy::{
    BlockId, Geometry, Policy, PolicyError, SealedBlocks, SelectRequest, Selection, conformance,
};

/// Digests of every block, by layer and KV head.
#[derive(Default)]
struct MeanAndExtremes {
    geometry: Option<Geometry>,
    /// `[layer][kv_head][block]`: a few keys that stand for the block.
    digests: Vec<Vec<Vec<[Vec<f32>; 3]>>>,
}

impl Policy for MeanAndExtremes {
    fn name(&self) -> &str {
        "mean-and-extremes"
    }

    fn start(&mut self, geometry: &Geometry) -> Result<(), PolicyError> {
        let heads = geometry
            .layers
            .iter()
            .map(|l| vec![Vec::new(); l.n_head_kv]);
        self.digests = heads.collect();
        self.geometry = Some(geometry.clone());
        Ok(())
    }

    fn seal(&mut self, blocks: &SealedBlocks<'_>) -> Result<(), PolicyError> {
        let mut keys = Vec::new();
        blocks.keys.decode_into(&mut keys);
        let dim = blocks.keys.row_len;
        for block in keys.chunks_exact(keys.len() / blocks.count) {
            let n = (block.len() / dim) as f32;
            let mean: Vec<f32> = (0..dim)
                .map(|d| block.iter().skip(d).step_by(dim).sum::<f32>() / n)
                .collect();
            let farthest = |from: &[f32]| {
                let distance = |key: &&[f32]| -> f32 {
                    key.iter().zip(from).map(|(a, b)| (a - b).powi(2)).sum()
                };
                let keys = block.chunks_exact(dim);
                keys.max_by(|a, b| distance(a).total_cmp(&distance(b)))
                    .unwrap_or(from)
                    .to_vec()
            };
            let first = farthest(&mean);
            let second = farthest(&first);
            self.digests[blocks.layer][blocks.kv_head].push([mean, first, second]);
        }
        Ok(())
    }

    fn truncate(&mut self, n_blocks: usize) -> Result<(), PolicyError> {
        self.digests
            .iter_mut()
            .flatten()
            .for_each(|blocks| blocks.truncate(n_blocks));
        Ok(())
    }

    fn select(
        &mut self,
        request: &SelectRequest<'_>,
        selection: &mut Selection,
    ) -> Result<(), PolicyError> {
        let Some(geometry) = &self.geometry else {
            return Err(PolicyError("not started".to_owned()));
        };
        let group = geometry.layers[request.layer].group();
        for (kv_head, wanted) in selection.heads_mut().iter_mut().enumerate() {
            let queries = (0..request.queries.n_tokens()).flat_map(|token| {
                (kv_head * group..(kv_head + 1) * group).map(move |head| (token, head))
            });
            let queries: Vec<&[f32]> = queries.map(|(t, h)| request.queries.get(t, h)).collect();
            let score = |digest: &[Vec<f32>; 3]| -> f32 {
                let pairs = digest
                    .iter()
                    .flat_map(|key| queries.iter().map(move |q| (key, q)));
                let dot = |(key, query): (&Vec<f32>, &&[f32])| -> f32 {
                    key.iter().zip(query.iter()).map(|(a, b)| a * b).sum()
                };
                pairs.map(dot).fold(f32::NEG_INFINITY, f32::max)
            };
            let scores: Vec<f32> = self.digests[request.layer][kv_head]
                .iter()
                .map(score)
                .collect();
            let mut order: Vec<BlockId> = (0..scores.len() as BlockId).collect();
            order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
            wanted.extend(order.into_iter().take(geometry.n_slots));
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The kit checks what every policy must hold to.
    conformance::check(|| Box::new(MeanAndExtremes::default()))?;

    let model = Model::load("models/tiny-f16.gguf")?;
    let mut session = model
        .session()
        .window(256)
        .budget(256)
        .custom_policy(Box::new(MeanAndExtremes::default()))
        .build()?;
    let text: Vec<String> = kiv_haystack::Prose::new(2).take(120).collect();
    session.read(&model.tokenize(&text.join("\n"), true))?;
    let stats = session.stats();
    println!(
        "{} tokens read by {}",
        session.tokens().len(),
        session.policy_name()
    );
    println!(
        "{} blocks wanted, {} of them swapped in",
        stats.blocks_wanted, stats.blocks_swapped
    );
    Ok(())
}
