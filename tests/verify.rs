//! The bundled model passes every check, in every weight type it commonly
//! comes in.

mod support;

use kiv::policy::RowFormat;
use kiv::{Model, QuantizeType};
use kiv_verify::{Line, Plan, verify};
use support::{bundled_path, model};

fn run(model: &Model, plan: &Plan) {
    let mut lines: Vec<Line> = Vec::new();
    let all = verify(model, plan, |line| lines.push(line.clone())).unwrap();
    for line in &lines {
        assert!(line.pass, "{line:?}");
        assert!(line.compared > 0, "{line:?}");
    }
    assert!(all);
    // Four kinds of checks, none skipped.
    let expected = plan.cache_types.len() * (2 * plan.ubatches.len() + 2);
    assert_eq!(lines.len(), expected);
}

#[test]
fn all_cache_types_and_micro_batches() {
    run(
        &model(),
        &Plan {
            threads: 1,
            ..Plan::default()
        },
    );
}

#[test]
fn all_weight_types() {
    let folder = tempfile::tempdir().unwrap();
    for to in QuantizeType::ALL {
        let path = folder.path().join(format!("{to:?}.gguf"));
        kiv::quantize(&bundled_path(), &path, to, 1).unwrap();
        let plan = Plan {
            cache_types: vec![RowFormat::F16, RowFormat::Q8_0],
            ubatches: vec![7],
            swaps: 1000,
            threads: 1,
            seed: 2,
            ..Plan::default()
        };
        run(&Model::load(&path).unwrap(), &plan);
    }
}
