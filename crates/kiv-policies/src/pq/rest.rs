//! What keys in no slot add to the attention of a decoded token.

use super::Head;
use super::ask::{Ask, TOGETHER};
use kiv_fastscan::prefetch;
use kiv_numeric::{dot, exp_nonpositive, log_sum_exp};
use kiv_policy::{BlockId, ColdError, ColdRun, PolicyError, Rest, Rows};

/// Keys outside of the wanted blocks whose values are read, for each query of a decoded
/// token: what they add is known then without their being swapped in.
const RESTING: usize = 256;

/// Share of a query's softmax below which a key is not worth it.
const LEAST: f32 = 1e-5;

/// Share of a query's softmax from which on a key's logit has to be true.
const MATTERS: f32 = 2e-4;

/// A key that is in no wanted block.
#[derive(Clone, Copy)]
struct Left {
    token: u32,
    query: usize,
    logit: f32,
}

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
        // Of every query the best.
        let mut left = Vec::new();
        for (query, all) in totals.iter().enumerate() {
            let (tokens, products) = hits.of(query);
            let least = all + LEAST.ln();
            let first = left.len();
            for (token, product) in tokens.iter().zip(products) {
                let (token, logit) = (*token, self.capped(*product));
                if logit >= least && one[token as usize / self.block] == 0.0 {
                    left.push(Left {
                        token,
                        query,
                        logit,
                    });
                }
            }
            let best = &mut left[first..];
            if best.len() > RESTING {
                best.select_nth_unstable_by(RESTING, |a, b| {
                    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
                });
                left.truncate(first + RESTING);
            }
        }
        // Before anything can fail: it is all 0 between searches.
        wanted.iter().for_each(|b| one[*b as usize] = 0.0);
        // Together, so that every row is read once.
        left.sort_unstable_by_key(|key| (key.token, key.query));
        self.rescore(totals, &mut left)?;
        let mut logits = Vec::new();
        for query in 0..totals.len() {
            logits.clear();
            let keys = left.iter().filter(|key| key.query == query);
            logits.extend(keys.map(|key| key.logit));
            rest.logits.push(log_sum_exp(&logits));
        }
        let runs = self.runs(&left, |blocks| {
            let (layer, cold) = (self.request.layer, self.request.cold);
            let run = |block: &BlockId| cold.values(layer, self.kv_head, *block, 1);
            blocks.iter().map(run).collect()
        })?;
        let mut row = vec![0f32; dim];
        for (keys, run) in &runs {
            let rows = run.rows();
            for of_token in keys.chunk_by(|a, b| a.token == b.token) {
                rows.format
                    .decode(self.row(rows, of_token[0].token), &mut row);
                for key in of_token {
                    let share = exp_nonpositive((key.logit - rest.logits[key.query]).min(0.0));
                    let value = &mut rest.values[key.query * dim..(key.query + 1) * dim];
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

    /// Replaces the logits that matter by the true ones. Those of keys in slots are true, so
    /// these have to be: one that is too high would take what is theirs.
    fn rescore(&self, totals: &[f32], left: &mut [Left]) -> Result<(), PolicyError> {
        let matters = |key: &Left| key.logit >= totals[key.query] + MATTERS.ln();
        let some: Vec<Left> = left.iter().copied().filter(matters).collect();
        // Values, too: whatever has to come from a disk is on its way before any of it is waited
        // for.
        let (layer, cold) = (self.request.layer, self.request.cold);
        cold.expect_keys(layer, self.kv_head, &self.blocks(&some));
        cold.expect_values(layer, self.kv_head, &self.blocks(left));
        let runs = self.runs(&some, |blocks| {
            let run = |block: &BlockId| cold.keys(layer, self.kv_head, *block, 1);
            blocks.iter().map(run).collect()
        })?;
        let first = self.query_heads().start;
        let (mut row, mut logits) = (vec![0f32; self.layer.key_dim], Vec::new());
        for (keys, run) in &runs {
            let rows = run.rows();
            for of_token in keys.chunk_by(|a, b| a.token == b.token) {
                rows.format
                    .decode(self.row(rows, of_token[0].token), &mut row);
                for key in of_token {
                    let query = self.request.queries.get(0, first + key.query);
                    logits.push(self.capped(dot(query, &row) * self.layer.scale));
                }
            }
        }
        let there = left.iter_mut().filter(|key| matters(key));
        there.zip(logits).for_each(|(key, logit)| key.logit = logit);
        Ok(())
    }

    /// Keys in the order of tokens block by block, each with its block's rows, which `read`
    /// gets. Rows are everywhere: all of them are on their way before the first is used.
    fn runs<'k, 'c>(
        &self,
        keys: &'k [Left],
        read: impl FnOnce(&[BlockId]) -> Result<Vec<ColdRun<'c>>, ColdError>,
    ) -> Result<Vec<(&'k [Left], ColdRun<'c>)>, PolicyError> {
        let read = read(&self.blocks(keys))?;
        let runs: Vec<_> = self.by_block(keys).zip(read).collect();
        for (keys, run) in &runs {
            let of_tokens = keys.chunk_by(|a, b| a.token == b.token);
            of_tokens.for_each(|of_token| prefetch(self.row(run.rows(), of_token[0].token)));
        }
        Ok(runs)
    }

    /// Keys in the order of tokens block by block.
    fn by_block<'k>(&self, keys: &'k [Left]) -> impl Iterator<Item = &'k [Left]> {
        let block = self.block as u32;
        keys.chunk_by(move |a, b| a.token / block == b.token / block)
    }

    /// Blocks of keys in the order of tokens, each once.
    fn blocks(&self, keys: &[Left]) -> Vec<BlockId> {
        let of_block = |keys: &[Left]| keys[0].token as BlockId / self.block as BlockId;
        self.by_block(keys).map(of_block).collect()
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
