//! A decoded token's searches on a device that has copies of the indices.

use super::Head;
use super::ask::{Ask, DECODE, TOGETHER};
use kiv_index::{Finder, Found, HeadIndex};
use kiv_policy::Phase;

/// What a device finds for the heads of the layer that `ask` is about; `None` for those that
/// are searched here.
pub(super) fn find(finder: &mut dyn Finder, ask: &Ask<'_>, heads: &[Head]) -> Vec<Option<Found>> {
    let mut found = vec![None; heads.len()];
    let request = ask.request;
    let is_one = request.phase == Phase::Decode && request.queries.n_tokens() == 1;
    if !is_one || ask.layer.group() > TOGETHER {
        return found;
    }
    let of_head = |kv_head| Ask { kv_head, ..*ask }.of_token(0).queries;
    let queries: Vec<f32> = (0..heads.len()).flat_map(of_head).collect();
    // What is no number is told of by the search here.
    if queries.iter().all(|v| v.is_finite()) {
        let indices: Vec<&HeadIndex> = heads.iter().map(|head| &head.index).collect();
        finder.find(request.layer, &indices, &queries, DECODE, &mut found);
    }
    found
}
