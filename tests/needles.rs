//! Needles in a text longer than the resident pool: found by true scores,
//! lost without retrieval.

mod support;

use kiv_haystack::{Haystack, HaystackSpec};
use support::{answers, model};

const DEPTHS: [f64; 6] = [0.05, 0.2, 0.35, 0.5, 0.65, 0.97];

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
