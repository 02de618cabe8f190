//! What keys in no slot add to the attention of a decoded token.

use super::Head;
use super::ask::{Ask, TOGETHER};
use kiv_fastscan::prefetch;
use kiv_numeric::{exp_nonpositive, log_sum_exp};
use kiv_policy::{BlockId, PolicyError, Rest, Rows};

/// Keys outside of the wanted blocks whose values are read, for each query of a decoded
/// token: what they add is known then without their being swapped in.
const RESTING: usize = 512;

/// Share of a query's softmax below which a key is not worth it.
const LEAST: f32 = 1e-5;

impl Ask<'_> {
    /// What the best keys outside of the wanted blocks add to the attention of the token
    /// that has just been searched for.
    pub fn rest(
        &self,
        head: &mut Head,
        wanted: &[BlockId],
        rest: &mut Rest,
    ) -> Result<(), PolicyError> {
        let (group, dim) = (self.layer.group(), self.layer.value_dim);
        let Head {
            hits, one, totals, ..
        } = head;
        wanted.iter().for_each(|b| one[*b as usize] = 1.0);
        rest.values.resize(group * dim, 0.0);
        // Of every query the best, as (token, query, logit).
        let (mut left, mut logits) = (Vec::new(), Vec::new());
        for (query, all) in totals.iter().enumerate() {
            let (tokens, products) = hits.of(query);
            let least = all + LEAST.ln();
            let first = left.len();
            for (token, product) in tokens.iter().zip(products) {
                let logit = self.capped(*product);
                if logit >= least && one[*token as usize / self.block] == 0.0 {
                    left.push((*token, query, logit));
                }
            }
            let best = &mut left[first..];
            if best.len() > RESTING {
                best.select_nth_unstable_by(RESTING, |a, b| {
                    b.2.total_cmp(&a.2).then(a.0.cmp(&b.0))
                });
                left.truncate(first + RESTING);
            }
            logits.clear();
            logits.extend(left[first..].iter().map(|(_, _, logit)| *logit));
            rest.logits.push(log_sum_exp(&logits));
        }
        // Before anything can fail: it is all 0 between searches.
        wanted.iter().for_each(|b| one[*b as usize] = 0.0);
        // Together, so that every row is read once.
        left.sort_unstable_by_key(|(token, query, _)| (*token, *query));
        let block_of = |token: u32| token as BlockId / self.block as BlockId;
        let of_blocks = || left.chunk_by(|a, b| block_of(a.0) == block_of(b.0));
        let (layer, cold) = (self.request.layer, self.request.cold);
        let blocks: Vec<BlockId> = of_blocks().map(|keys| block_of(keys[0].0)).collect();
        cold.expect_values(layer, self.kv_head, &blocks);
        let mut runs = Vec::new();
        for (of_block, block) in of_blocks().zip(blocks) {
            let run = cold.values(layer, self.kv_head, block, 1)?;
            let of_tokens = of_block.chunk_by(|a, b| a.0 == b.0);
            // Rows are everywhere: all of them are on their way before the first is used.
            of_tokens.for_each(|of_token| prefetch(self.row(run.rows(), of_token[0].0)));
            runs.push((of_block, run));
        }
        let mut row = vec![0f32; dim];
        for (of_block, run) in runs {
            let rows = run.rows();
            for of_token in of_block.chunk_by(|a, b| a.0 == b.0) {
                rows.format.decode(self.row(rows, of_token[0].0), &mut row);
                for (_, query, logit) in of_token {
                    let share = exp_nonpositive((logit - rest.logits[*query]).min(0.0));
                    let value = &mut rest.values[query * dim..(query + 1) * dim];
                    value
                        .iter_mut()
                        .zip(&row)
                        .for_each(|(v, r)| *v += share * r);
                }
            }
        }
        if !rest.values.iter().all(|v| v.is_finite()) {
            // Values that the model cannot attend to either; they are left out.
            *rest = Rest::default();
        }
        Ok(())
    }

    /// A token's row among those of its block.
    fn row<'a>(&self, rows: Rows<'a>, token: u32) -> &'a [u8] {
        rows.slice(token as usize % self.block, 1).bytes
    }

    /// Whether what a search has told are the queries' own products.
    pub fn is_plain(&self) -> bool {
        let queries = &self.request.queries;
        let heads = self.query_heads();
        heads.len() <= TOGETHER
            && queries.n_tokens() == 1
            && heads
                .into_iter()
                .all(|h| self.shrink(queries.get(0, h)) == 1.0)
    }
}
