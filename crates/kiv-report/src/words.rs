//! What the figures come to, in words.

use crate::data::{Kind, Rate, Section};
use crate::numbers::{list, percent, tokens, wilson};

/// From this share on a task counts as something that the model can do.
const ENOUGH: f64 = 0.95;

/// What the model cannot do under full attention: one sentence each.
pub(crate) fn cannot(section: &Section) -> Vec<String> {
    let contenders = section.contenders(|_| true);
    let Some(full) = contenders.iter().find(|c| c.is_full()) else {
        return vec![
            "Full attention was not measured: what a policy misses cannot be told from what \
             the model cannot do."
                .to_owned(),
        ];
    };
    let (mut sentences, mut able, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for kind in section.kinds() {
        let rate = |n_ctx: u64| section.rate(full, |r| r.kind() == kind && r.n_ctx == n_ctx);
        let lengths = section.values(|r| (r.kind() == kind).then_some(r.n_ctx));
        let rates: Vec<(u64, Option<Rate>)> = lengths.iter().map(|n| (*n, rate(*n))).collect();
        let known: Vec<(u64, Rate)> = rates.iter().filter_map(|r| Some((r.0, r.1?))).collect();
        if known.is_empty() {
            unknown.push(kind.name());
            continue;
        }
        let poor: Vec<&(u64, Rate)> = known.iter().filter(|r| r.1.share() < ENOUGH).collect();
        if poor.is_empty() {
            able.push(kind.name());
        } else {
            sentences.push(sentence(&kind, &poor, known.len()));
        }
    }
    if !sentences.is_empty() {
        sentences.push("What a policy scores on these says little about what it finds.".to_owned());
    }
    if !able.is_empty() {
        let share = percent(ENOUGH);
        sentences.push(format!(
            "At least {share} % right at every length measured: {}.",
            list(&able)
        ));
    }
    if !unknown.is_empty() {
        sentences.push(format!(
            "Not measured under full attention: {}.",
            list(&unknown)
        ));
    }
    sentences
}

/// `count, 47 records: 0 of 3 right at 8 K and 1 of 3 at 16 K.`
fn sentence(kind: &Kind, poor: &[&(u64, Rate)], measured: usize) -> String {
    let at = |(i, (n_ctx, rate)): (usize, &&(u64, Rate))| {
        let right = if i == 0 { " right" } else { "" };
        format!(
            "{} of {}{right} at {}",
            rate.passed,
            rate.total,
            tokens(*n_ctx)
        )
    };
    let places: Vec<String> = poor.iter().enumerate().map(at).collect();
    let others = match measured - poor.len() {
        0 => String::new(),
        _ => "; better at its other lengths".to_owned(),
    };
    format!("{}: {}{others}.", kind.name(), list(&places))
}

/// What pointing at a rate tells.
pub(crate) fn rate_tip(what: &str, rate: Rate) -> String {
    let (low, high) = wilson(rate.passed, rate.total);
    format!(
        "{what}: {} of {}, 95 % interval {} to {} %",
        rate.passed,
        rate.total,
        percent((low * 1000.0).round() / 1000.0),
        percent((high * 1000.0).round() / 1000.0),
    )
}
