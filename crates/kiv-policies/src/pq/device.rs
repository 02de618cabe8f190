//! A decoded token's searches on a device that has copies of the indices.

use super::ask::{Ask, DECODE, TOGETHER};
use super::head::Head;
use kiv_index::{Asked, Finder, Found, HeadIndex};
use kiv_policy::Phase;

/// What a device finds for the heads of the layer that `ask` is about, whose local keys are
/// brought up to date for it; `None` for those that are searched here, and at all if it is not
/// asked.
pub(super) fn find(
    finder: &mut dyn Finder,
    ask: &Ask<'_>,
    heads: &mut [Head],
) -> Option<Vec<Option<Found>>> {
    let request = ask.request;
    let is_one = request.phase == Phase::Decode && request.queries.n_tokens() == 1;
    if !is_one || ask.layer.group() > TOGETHER {
        return None;
    }
    let mut found = vec![None; heads.len()];
    let (mut queries, mut floors) = (Vec::new(), Vec::new());
    for (kv_head, head) in heads.iter_mut().enumerate() {
        let ask = Ask { kv_head, ..*ask };
        head.local.update(request, kv_head);
        let batch = ask.of_token(0, ask.query_heads());
        let products = &mut head.parts[0].products;
        floors.extend(ask.floors(&head.local, products, &batch));
        queries.extend(batch.queries);
    }
    // What is no number is told of by the search here.
    if queries.iter().all(|v| v.is_finite()) {
        let indices: Vec<&HeadIndex> = heads.iter().map(|head| &head.index).collect();
        let (queries, floors) = (&queries[..], &floors[..]);
        let asked = Asked { queries, floors };
        finder.find(request.layer, &indices, asked, DECODE, &mut found);
    }
    Some(found)
}
