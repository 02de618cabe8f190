//! Needles in a text longer than the resident pool: found by true scores,
//! lost without retrieval.

mod support;

use kiv::{GenerateOptions, Sampling, Session};
use kiv_haystack::{Haystack, HaystackSpec};
use support::model;

const DEPTHS: [f64; 6] = [0.05, 0.2, 0.35, 0.5, 0.65, 0.97];

fn answers(session: &mut Session, haystack: &Haystack) -> Vec<bool> {
    let model = session.model().clone();
    session.read(&model.tokenize(&haystack.text, true)).unwrap();
    let n = session.tokens().len();
    let ask = |needle: &kiv_haystack::Needle| {
        session
            .read_one_by_one(&model.tokenize(&needle.question, false))
            .unwrap();
        let options = GenerateOptions {
            max_tokens: Some(6),
            sampling: Sampling::greedy(),
            ..GenerateOptions::default()
        };
        let text: String = session.generate(options).map(|p| p.unwrap().text).collect();
        session.truncate(n).unwrap();
        needle.is_answered_by(&text)
    };
    haystack
        .needles
        .iter()
        .map(|placed| &placed.needle)
        .map(ask)
        .collect()
}

#[test]
fn exact_finds_what_full_attention_finds_and_window_does_not() {
    let model = model();
    let spec = HaystackSpec::new(3, 6000, DEPTHS.to_vec());
    let haystack = Haystack::build(&spec, &mut |t| model.tokenize(t, false).len()).unwrap();
    let builder = || {
        model
            .session()
            .window(512)
            .budget(512)
            .ubatch(256)
            .threads(1, 1)
    };
    let by = |policy| answers(&mut builder().policy(policy).build().unwrap(), &haystack);
    let full = answers(
        &mut builder().policy("full").ctx_size(8192).build().unwrap(),
        &haystack,
    );
    assert_eq!(full, [true; 6], "the model itself finds them");
    assert_eq!(by("exact"), full);
    let window = by("window");
    // Only the one inside the window is left.
    assert_eq!(window, [false, false, false, false, false, true]);
}
