//! Several threads for each head, where there are more than heads: each looks for some of its
//! queries. What is chosen is the same, bit by bit.

use super::ask::Ask;
use super::crew::Crew;
use super::head::{Head, Part};
use super::rest::Leavings;
use kiv_policy::{BlockId, Phase, PolicyError, Rest};
use std::ops::Range;

/// Into how many parts each of so many heads is split, or 1.
pub(super) fn n_parts(crew: &Crew<'_>, ask: &Ask<'_>, n_heads: usize) -> usize {
    let request = ask.request;
    if request.phase == Phase::Decode && request.queries.n_tokens() > 1 {
        return 1;
    }
    (crew.n() / n_heads.max(1)).clamp(1, ask.layer.group())
}

/// The numbers of the group's queries that one of `n` parts is for.
fn queries_of(part: usize, n: usize, group: usize) -> Range<usize> {
    part * group / n..(part + 1) * group / n
}

/// Chooses blocks for all heads of a layer, `sizes` being how many blocks there are and how many
/// may be chosen.
pub(super) fn select(
    crew: &Crew<'_>,
    first: &Ask<'_>,
    n_parts: usize,
    heads: &mut [Head],
    (n_blocks, n_slots): (usize, usize),
    (wanted, rests): (&mut [Vec<BlockId>], &mut [Rest]),
) -> Result<(), PolicyError> {
    let group = first.layer.group();
    let of_head = |kv_head| Ask { kv_head, ..*first };
    let numbered = heads.iter_mut().enumerate().collect();
    let prepare = |(kv_head, head): (usize, &mut Head)| {
        of_head(kv_head).observe(&mut head.index);
        head.local.update(first.request, kv_head);
        Ok(())
    };
    crew.all(numbered, prepare, Ok)?;
    let mut looking = Vec::new();
    for (kv_head, head) in heads.iter_mut().enumerate() {
        let (known, parts) = head.parts(n_parts);
        let parts = parts.iter_mut().enumerate();
        looking.extend(parts.map(|(number, part)| (of_head(kv_head), known, number, part)));
    }
    let look = |(ask, known, number, part): (Ask<'_>, _, _, &mut Part)| {
        let start = ask.query_heads().start;
        let Range { start: from, end } = queries_of(number, n_parts, group);
        part.look(&ask, known, start + from..start + end, None, n_blocks)
    };
    crew.all(looking, look, Ok)?;
    let mut left: Vec<Option<Leavings>> = heads.iter().map(|_| None).collect();
    let choosing = heads.iter_mut().zip(wanted).zip(&mut left).enumerate();
    crew.all(
        choosing.collect(),
        |(kv_head, ((head, wanted), left))| {
            *left = of_head(kv_head).choose(head, (n_blocks, n_slots), wanted);
            Ok(())
        },
        Ok,
    )?;
    let mut pieces = vec![Rest::default(); left.len() * n_parts];
    let mut resting = Vec::new();
    let of_heads = left.iter().zip(pieces.chunks_exact_mut(n_parts));
    for (kv_head, (leavings, pieces)) in of_heads.enumerate() {
        if let Some(leavings) = leavings {
            let pieces = pieces.iter_mut().enumerate();
            resting.extend(pieces.map(|(number, piece)| (kv_head, leavings, number, piece)));
        }
    }
    crew.all(
        resting,
        |(kv_head, leavings, number, piece)| {
            let (ask, queries) = (of_head(kv_head), queries_of(number, n_parts, group));
            let leavings = ask.of_some(leavings, &queries);
            ask.rest(&heads[kv_head].totals, queries, leavings, piece)
        },
        Ok,
    )?;
    for (rest, pieces) in rests.iter_mut().zip(pieces.chunks_exact(n_parts)) {
        // What is not known of one query is not told of any.
        if pieces.iter().all(|piece| !piece.is_empty()) {
            for piece in pieces {
                rest.logits.extend(&piece.logits);
                rest.values.extend(&piece.values);
                rest.totals.extend(&piece.totals);
            }
        }
    }
    Ok(())
}
