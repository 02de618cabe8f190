//! The harness tells a good policy from a broken one.

mod support;

use kiv::SessionBuilder;
use kiv::policy::{BlockId, Geometry, Policy, PolicyError, SelectRequest, Selection};
use kiv_eval::{Env, Figures, Plan, Summary, Task, evaluate};
use support::model;

/// Wants the blocks whose best key is worst: retrieval upside down.
#[derive(Default)]
struct Worst(Option<Geometry>);

impl Policy for Worst {
    fn name(&self) -> &'static str {
        "worst"
    }
    fn start(&mut self, geometry: &Geometry) -> Result<(), PolicyError> {
        self.0 = Some(geometry.clone());
        Ok(())
    }
    fn select(&mut self, r: &SelectRequest<'_>, s: &mut Selection) -> Result<(), PolicyError> {
        let g = self.0.as_ref().unwrap();
        let group = g.layers[r.layer].group();
        for (kv_head, wanted) in s.heads_mut().iter_mut().enumerate() {
            let mut keys = Vec::new();
            let mut scores: Vec<(f32, BlockId)> = Vec::new();
            for block in 0..r.cold.n_blocks() as BlockId {
                r.cold
                    .keys(r.layer, kv_head, block, 1)
                    .decode_into(&mut keys);
                let mut best = f32::NEG_INFINITY;
                for token in 0..r.queries.n_tokens() {
                    for head in kv_head * group..(kv_head + 1) * group {
                        let query = r.queries.get(token, head);
                        for key in keys.chunks_exact(query.len()) {
                            let dot: f32 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                            best = best.max(dot);
                        }
                    }
                }
                scores.push((best, block));
            }
            scores.sort_by(|a, b| a.0.total_cmp(&b.0));
            wanted.extend(scores.iter().take(g.n_slots).map(|(_, block)| *block));
        }
        Ok(())
    }
}

fn summaries(task: Task, policies: &[&str]) -> Vec<Summary> {
    let model = model();
    let builder = |policy: &str, n_tokens: usize| -> SessionBuilder {
        let pool = model
            .session()
            .window(256)
            .budget(256)
            .ubatch(128)
            .threads(1, 1);
        match policy {
            "worst" => pool.custom_policy(Box::new(Worst::default())),
            "full" => pool.policy("full").ctx_size(n_tokens),
            name => pool.policy(name),
        }
    };
    let env = Env {
        model: &model,
        builder: &builder,
        done: &|_, _, _| false,
        progress: &|_, _, _| {},
    };
    let plan = Plan {
        task,
        policies: policies.iter().map(|p| (*p).to_owned()).collect(),
        lengths: vec![3000],
        depths: vec![0.1, 0.35, 0.6],
        samples: 1,
        seed: 4,
    };
    let mut all = Vec::new();
    evaluate(&env, &plan, &mut |_| {}, &mut |s| all.push(s.clone())).unwrap();
    assert_eq!(all.len(), policies.len());
    all
}

fn passed(summary: &Summary) -> (usize, usize) {
    match summary.figures {
        Figures::Passed { passed, total } => (passed, total),
        _ => panic!("{summary:?}"),
    }
}

#[test]
fn needles_tell_a_broken_policy() {
    let all = summaries(Task::Needle, &["full", "exact", "worst"]);
    assert_eq!(passed(&all[0]), (3, 3));
    assert_eq!(passed(&all[1]), (3, 3));
    assert!(passed(&all[2]).0 < 3, "{:?}", all[2]);
}

#[test]
fn recall_tells_a_broken_policy() {
    let all = summaries(Task::Recall, &["exact", "worst"]);
    let [Figures::Recall(exact), Figures::Recall(worst)] = [&all[0].figures, &all[1].figures]
    else {
        panic!("{all:?}");
    };
    assert!(
        exact.mass_mean > 0.9 && exact.mass_mean <= 1.0 + 1e-9,
        "{exact:?}"
    );
    assert!(worst.mass_mean < exact.mass_mean - 0.02, "{worst:?}");
    assert!(
        worst.mass_worst < 0.5 * exact.mass_worst,
        "{worst:?} {exact:?}"
    );
    assert!(worst.topk < exact.topk, "{worst:?}");
    // 4 layers of 4 heads, whatever the policy.
    assert_eq!(
        exact.mass_by_head.iter().map(Vec::len).collect::<Vec<_>>(),
        [4; 4]
    );
}

#[test]
fn divergence_tells_a_broken_policy() {
    let all = summaries(Task::Kld, &["full", "exact", "worst"]);
    let kl: Vec<f64> = all
        .iter()
        .map(|s| match &s.figures {
            Figures::Divergence(d) => d.kld_mean,
            _ => panic!("{s:?}"),
        })
        .collect();
    // Full attention against itself is exactly nothing.
    assert_eq!(kl[0], 0.0);
    assert!(kl[1] >= 0.0 && kl[2] > 4.0 * kl[1], "{kl:?}");
}

#[test]
fn every_task_makes_prompts_of_the_length_asked_for_and_repeats_them() {
    for task in [
        Task::Passkey,
        Task::Phonebook,
        Task::Facts,
        Task::Count,
        Task::Track,
    ] {
        let (one, two) = (summaries(task, &["exact"]), summaries(task, &["exact"]));
        assert_eq!(passed(&one[0]), passed(&two[0]), "{task:?}");
        assert!(passed(&one[0]).1 > 0, "{task:?}");
    }
}
