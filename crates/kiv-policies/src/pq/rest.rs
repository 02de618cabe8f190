//! What keys in no slot add to the attention of a decoded token.

use super::ask::Ask;
use super::head::Head;
use kiv_fastscan::prefetch;
use kiv_numeric::{dot, exp_nonpositive, log_sum_exp};
use kiv_policy::{BlockId, ColdError, ColdRun, PolicyError, Rest, Rows, RowsOf};
use std::ops::Range;

/// Keys outside of the wanted blocks whose values are read, for each query of a decoded
/// token: what they add is known then without their being swapped in.
const RESTING: usize = 256;

/// Share of a query's softmax below which a key is not worth it. Where the local keys alone
/// show that it has no more, it is not even sought.
pub(super) const LEAST: f32 = 1e-5;

/// Share of a query's softmax from which on a key's logit has to be true.
const MATTERS: f32 = 2e-4;

/// A key that is in no wanted block.
#[derive(Clone, Copy)]
struct Left {
    token: u32,
    query: usize,
    logit: f32,
}

/// Keys outside of the wanted blocks that are worth it, and their blocks.
pub(super) struct Leavings {
    /// In the order of tokens.
    all: Vec<Left>,
    of_all: Vec<BlockId>,
    /// Those whose logits have to be true.
    few: Vec<Left>,
    of_few: Vec<BlockId>,
}

/// Whether a key's logit has to be true.
fn matters(totals: &[f32]) -> impl Fn(&Left) -> bool {
    |key| key.logit >= totals[key.query] + MATTERS.ln()
}

/// Keys of one token together.
fn by_token(keys: &[Left]) -> impl Iterator<Item = &[Left]> {
    keys.chunk_by(|a, b| a.token == b.token)
}

impl Ask<'_> {
    /// The best keys outside of the wanted blocks, for the token that has just been searched
    /// for. Whatever of them, and of the wanted blocks, has to come from a disk is on its way
    /// from now on.
    pub fn leave(&self, head: &mut Head, wanted: &[BlockId]) -> Leavings {
        let Head { parts, totals, .. } = head;
        let mut one = std::mem::take(&mut parts[0].one);
        wanted.iter().for_each(|b| one[*b as usize] = 1.0);
        // Of every query the best.
        let mut left = Vec::new();
        let of_parts = parts
            .iter()
            .flat_map(|part| (0..part.totals.len()).map(|query| part.told(query)));
        for ((query, all), (tokens, products)) in totals.iter().enumerate().zip(of_parts) {
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
        // Together, so that every row is read once.
        left.sort_unstable_by_key(|key| (key.token, key.query));
        let few: Vec<Left> = left.iter().copied().filter(matters(totals)).collect();
        let leavings = Leavings {
            of_few: self.blocks(&few),
            few,
            of_all: self.blocks(&left),
            all: left,
        };
        // It is all 0 between searches.
        let resident = self.request.resident.get(self.kv_head).copied();
        for block in resident.unwrap_or_default() {
            // Empty slots have a number, too.
            if let Some(mark) = one.get_mut(*block as usize) {
                *mark = 0.0;
            }
        }
        let mut absent = wanted.to_vec();
        absent.retain(|b| std::mem::take(&mut one[*b as usize]) > 0.0);
        parts[0].one = one;
        let (layer, cold) = (self.request.layer, self.request.cold);
        cold.expect(layer, self.kv_head, RowsOf::Keys, &leavings.of_few);
        cold.expect(layer, self.kv_head, RowsOf::Values, &leavings.of_all);
        cold.expect(layer, self.kv_head, RowsOf::Both, &absent);
        leavings
    }

    /// Those of some queries alone.
    pub fn of_some(&self, leavings: &Leavings, queries: &Range<usize>) -> Leavings {
        let some = |keys: &[Left]| -> Vec<Left> {
            let theirs = keys.iter().filter(|key| queries.contains(&key.query));
            theirs.copied().collect()
        };
        let (all, few) = (some(&leavings.all), some(&leavings.few));
        Leavings {
            of_all: self.blocks(&all),
            all,
            of_few: self.blocks(&few),
            few,
        }
    }

    /// What keys outside of the wanted blocks add to the attention of some of the token's
    /// queries: nothing of it is known if `rest` is empty then. The keys are these queries'.
    pub fn rest(
        &self,
        totals: &[f32],
        queries: Range<usize>,
        leavings: Leavings,
        rest: &mut Rest,
    ) -> Result<(), PolicyError> {
        let dim = self.layer.value_dim;
        let (layer, cold) = (self.request.layer, self.request.cold);
        let Leavings {
            all: mut left,
            of_all,
            few,
            of_few,
        } = leavings;
        rest.values.resize(queries.len() * dim, 0.0);
        rest.totals.extend(&totals[queries.clone()]);
        // Logits of keys in slots are true, so those that matter here have to be: one that is
        // too high would take what is theirs.
        let (first, mut logits) = (self.query_heads().start, Vec::new());
        let keys = |block| cold.keys(layer, self.kv_head, block, 1);
        self.each_row((&few, &of_few), self.layer.key_dim, keys, |key, row| {
            let query = self.request.queries.get(0, first + key.query);
            logits.push(self.capped(dot(query, row) * self.layer.scale));
        })?;
        let matters = matters(totals);
        let there = left.iter_mut().filter(|key| matters(key));
        there
            .zip(&logits)
            .for_each(|(key, logit)| key.logit = *logit);
        for query in queries.clone() {
            logits.clear();
            let keys = left.iter().filter(|key| key.query == query);
            logits.extend(keys.map(|key| key.logit));
            rest.logits.push(log_sum_exp(&logits));
        }
        let values = |block| cold.values(layer, self.kv_head, block, 1);
        self.each_row((&left, &of_all), dim, values, |key, row| {
            let query = key.query - queries.start;
            let share = exp_nonpositive((key.logit - rest.logits[query]).min(0.0));
            let value = &mut rest.values[query * dim..(query + 1) * dim];
            value.iter_mut().zip(row).for_each(|(v, r)| *v += share * r);
        })?;
        if !rest.values.iter().all(|v| v.is_finite()) {
            // Values that the model cannot attend to either; they are left out.
            *rest = Rest::default();
        }
        Ok(())
    }

    /// Shows each key and its row, of `len` values, which is in the run that `read` gives of its
    /// block. Keys are in the order of tokens, and `blocks` are theirs.
    fn each_row<'c>(
        &self,
        (keys, blocks): (&[Left], &[BlockId]),
        len: usize,
        read: impl Fn(BlockId) -> Result<ColdRun<'c>, ColdError>,
        mut each: impl FnMut(&Left, &[f32]),
    ) -> Result<(), PolicyError> {
        let runs: Vec<ColdRun<'c>> = blocks.iter().map(|b| read(*b)).collect::<Result<_, _>>()?;
        let of_blocks = || self.by_block(keys).zip(&runs);
        // Rows are everywhere: all of them are on their way before the first is used.
        for (keys, run) in of_blocks() {
            let rows = run.rows();
            by_token(keys).for_each(|same| prefetch(self.row(rows, same[0].token)));
        }
        let mut row = vec![0f32; len];
        for (keys, run) in of_blocks() {
            let rows = run.rows();
            for same in by_token(keys) {
                rows.format.decode(self.row(rows, same[0].token), &mut row);
                same.iter().for_each(|key| each(key, &row));
            }
        }
        Ok(())
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
        let mut heads = self.query_heads();
        queries.n_tokens() == 1 && heads.all(|h| self.shrink(queries.get(0, h)) == 1.0)
    }
}
