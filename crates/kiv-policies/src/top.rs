//! The best few of many scores.

use kiv_policy::BlockId;
use std::cmp::Ordering;

/// Ids of the `k` highest scores; ties and non-numbers go to the lower id and
/// the end, so that the answer never depends on chance.
pub(crate) fn top_k(scores: &[f32], k: usize, out: &mut Vec<BlockId>) {
    top_of(scores, 0..scores.len() as BlockId, k, out);
}

/// The same of some ids.
pub(crate) fn top_of(
    scores: &[f32],
    ids: impl Iterator<Item = BlockId>,
    k: usize,
    out: &mut Vec<BlockId>,
) {
    let first = out.len();
    out.extend(ids);
    let ids = &mut out[first..];
    let order = |a: &BlockId, b: &BlockId| order(scores, *a, *b);
    if k < ids.len() {
        if k > 0 {
            ids.select_nth_unstable_by(k - 1, order);
        }
        out.truncate(first + k);
    }
}

/// The `k` best of some ids that are not `taken`, best first.
pub(crate) fn next_of(
    scores: &[f32],
    ids: impl Iterator<Item = BlockId>,
    taken: &[BlockId],
    k: usize,
    out: &mut Vec<BlockId>,
) {
    if k == 0 {
        return;
    }
    let mut taken = taken.to_vec();
    taken.sort_unstable();
    let left = ids.filter(|id| taken.binary_search(id).is_err());
    top_of(scores, left, k, out);
    out.sort_unstable_by(|a, b| order(scores, *a, *b));
}

/// Higher scores first, of equal ones the lower id.
fn order(scores: &[f32], a: BlockId, b: BlockId) -> Ordering {
    let key = |id: BlockId| {
        let score = scores[id as usize];
        if score.is_nan() {
            f32::NEG_INFINITY
        } else {
            score
        }
    };
    key(b).total_cmp(&key(a)).then(a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_first_and_ties_to_the_older() {
        let mut out = Vec::new();
        top_k(&[0.0, 2.0, f32::NAN, 2.0, 1.0, -1.0], 3, &mut out);
        out.sort_unstable();
        assert_eq!(out, [1, 3, 4]);
        out.clear();
        top_k(&[0.0; 5], 2, &mut out);
        out.sort_unstable();
        assert_eq!(out, [0, 1]);
        out.clear();
        top_k(&[1.0], 4, &mut out);
        assert_eq!(out, [0]);
        out.clear();
        top_k(&[1.0, 2.0], 0, &mut out);
        assert!(out.is_empty());
        let scores = [0.5, 2.0, f32::NAN, 2.0, 1.0, -1.0, 3.0];
        next_of(&scores, [6, 5, 4, 3, 1].into_iter(), &[6, 3], 3, &mut out);
        assert_eq!(out, [1, 4, 5]);
        out.clear();
        next_of(&scores, 0..7, &[], 3, &mut out);
        assert_eq!(out, [6, 1, 3]);
    }
}
