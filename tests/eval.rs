//! The harness tells a good policy from a broken one.

mod support;

use kiv::SessionBuilder;
use kiv::policy::{BlockId, Geometry, Policy, PolicyError, SelectRequest, Selection};
use kiv_eval::{
    Contender, Env, EvalError, Figures, Given, Outcome, Plan, Record, Summary, Task, evaluate,
};
use std::cell::Cell;
use std::sync::Arc;
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
                    .keys(r.layer, kv_head, block, 1)?
                    .rows()
                    .decode_into(&mut keys);
                let mut best = f32::NEG_INFINITY;
                for token in 0..r.queries.n_tokens() {
                    for head in kv_head * group..(kv_head + 1) * group {
                        let query = r.queries.get(token, head);
                        for key in keys.chunks_exact(query.len()) {
                            best = best.max(kiv_numeric::dot(query, key));
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

/// What an evaluation told, and how many sessions it took.
struct Told {
    records: Vec<Record>,
    summaries: Vec<Summary>,
    sessions: usize,
}

fn plan(tasks: &[Task], policies: &[&str]) -> Plan {
    Plan {
        tasks: tasks.to_vec(),
        policies: policies.iter().map(|p| (*p).to_owned()).collect(),
        budgets: vec![256],
        lengths: vec![2500],
        depths: vec![0.1, 0.35, 0.6],
        samples: 1,
        seed: 4,
        block: Some(32),
        ..Plan::default()
    }
}

fn try_judge(plan: &Plan) -> Result<Told, EvalError> {
    let model = model();
    let sessions = Cell::new(0);
    let builder = |contender: &Contender, n_tokens: usize| -> SessionBuilder {
        sessions.set(sessions.get() + 1);
        let pool = model
            .session()
            .window(256)
            .budget(contender.budget.unwrap_or_default())
            .ubatch(128)
            .threads(1, 1);
        let pool = match contender.own_block {
            Some(own) => pool.block(own),
            None => pool,
        };
        match contender.policy.as_str() {
            "worst" => pool.custom_policy(Box::new(Worst::default())),
            "full" => pool.policy("full").ctx_size(n_tokens),
            name => pool.policy(name),
        }
    };
    let env = Env {
        interrupt: Arc::default(),
        model: &model,
        builder: &builder,
        done: &|_| false,
        progress: &|_, _, _| {},
    };
    let (mut records, mut summaries) = (Vec::new(), Vec::new());
    evaluate(&env, plan, &mut |r| records.push(r.clone()), &mut |s| {
        summaries.push(s.clone())
    })?;
    Ok(Told {
        records,
        summaries,
        sessions: sessions.get(),
    })
}

fn judge(plan: &Plan) -> Told {
    try_judge(plan).unwrap()
}

fn figures<'a>(told: &'a Told, task: Task, policy: &str) -> &'a Figures {
    let mut of_both = told.summaries.iter().filter(|s| s.task == task);
    let summary = of_both.find(|s| s.contender.policy == policy);
    &summary
        .unwrap_or_else(|| panic!("{task:?} of {policy}"))
        .figures
}

fn passed(figures: &Figures) -> (usize, usize) {
    match figures {
        Figures::Passed { passed, total } => (*passed, *total),
        _ => panic!("{figures:?}"),
    }
}

#[test]
fn a_broken_policy_is_caught_by_needles_recall_and_divergence() {
    let tasks = [Task::Needle, Task::Recall, Task::Kld];
    let told = judge(&plan(&tasks, &["exact", "worst", "full"]));
    // Full attention is judged first, and its logits kept for the others.
    assert_eq!(told.summaries[0].contender.policy, "full");
    assert_eq!(told.sessions, 3);

    let needles = |policy| passed(figures(&told, Task::Needle, policy));
    assert_eq!(needles("full"), (3, 3));
    assert_eq!(needles("exact"), (3, 3));
    assert!(needles("worst").0 < 3, "{:?}", needles("worst"));

    let [Figures::Recall(exact), Figures::Recall(worst)] =
        ["exact", "worst"].map(|p| figures(&told, Task::Recall, p))
    else {
        panic!("{:?}", told.summaries);
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

    let kl = ["full", "exact", "worst"].map(|policy| match figures(&told, Task::Kld, policy) {
        Figures::Divergence(d) => d.kld_mean,
        other => panic!("{other:?}"),
    });
    // Full attention against itself is exactly nothing.
    assert_eq!(kl[0], 0.0);
    assert!(kl[1] >= 0.0 && kl[2] > 4.0 * kl[1], "{kl:?}");
}

/// `kiv` wants fewer blocks than there are slots, so what is in the others
/// comes from before: the hardest case for a session that is asked again.
#[test]
fn figures_are_the_same_alone_and_together() {
    let tasks = [Task::Needle, Task::Facts, Task::Recall, Task::Kld];
    let policies = ["exact", "kiv"];
    let of = |tasks: &[Task]| {
        judge(&Plan {
            lengths: vec![1500],
            depths: vec![0.3, 0.6],
            ..plan(tasks, &policies)
        })
    };
    let together = of(&tasks);
    // Each policy read its context once, and full attention for divergence.
    assert_eq!(together.sessions, policies.len() + 1);
    assert!(together.records.iter().any(|r| r.task == Task::Kld));
    for task in tasks {
        let alone = of(&[task]);
        let of_task = together.records.iter().filter(|r| r.task == task);
        assert_eq!(
            of_task.cloned().collect::<Vec<_>>(),
            alone.records,
            "{task:?}"
        );
        for policy in policies {
            assert_eq!(
                figures(&together, task, policy),
                figures(&alone, task, policy),
                "{task:?} {policy}"
            );
        }
    }
}

#[test]
fn one_reading_serves_all_that_can_take_over() {
    let tasks = [Task::Needle, Task::Recall];
    let policies = ["arkvale", "exact", "kiv", "window"];
    let own = judge(&plan(&tasks, &policies));
    let shared = judge(&Plan {
        read_policy: Some("exact".to_owned()),
        ..plan(&tasks, &policies)
    });
    // Blocks of `kiv` are of one token, and it is read for once more.
    assert_eq!((own.sessions, shared.sessions), (4, 3));
    let read_by = |policy: &str| {
        let mut of_policy = shared.records.iter().map(|r| &r.contender);
        let contender = of_policy.find(|c| c.policy == policy).unwrap();
        contender.read_by.as_deref()
    };
    let by = Some("exact");
    assert_eq!(policies.map(read_by), [by, None, by, None]);
    for policy in ["exact", "window"] {
        let needles = |told: &Told| figures(told, Task::Needle, policy).clone();
        assert_eq!(needles(&own), needles(&shared), "{policy}");
    }
    let mass = |policy: &str| match figures(&shared, Task::Recall, policy) {
        Figures::Recall(recall) => recall.mass_mean,
        other => panic!("{other:?}"),
    };
    // On the same rows nothing finds more than what looks at all of them.
    assert!(mass("exact") > mass("arkvale"));
}

/// Also where one slot stands for what is in none.
#[test]
fn an_index_finds_nearly_what_looking_at_all_keys_does() {
    let told = judge(&plan(&[Task::Recall], &["exact", "pq"]));
    let mass = |policy: &str| match figures(&told, Task::Recall, policy) {
        Figures::Recall(recall) => recall.mass_mean,
        other => panic!("{other:?}"),
    };
    let (exact, pq) = (mass("exact"), mass("pq"));
    assert!(pq > 0.9 * exact && exact < 1.0, "pq {pq}, exact {exact}");
}

#[test]
fn rows_that_were_dropped_have_no_recall() {
    let told = judge(&plan(&[Task::Recall], &["window"]));
    assert!(told.records.is_empty() && told.summaries.is_empty());
}

#[test]
fn every_task_makes_its_prompts_and_says_how_large_they_are() {
    let tasks = [Task::Passkey, Task::Phonebook, Task::Count, Task::Track];
    let plan = Plan {
        entries: vec![20, 60],
        depths: vec![0.5],
        lengths: vec![1000],
        ..plan(&tasks, &["full"])
    };
    let told = judge(&plan);
    // A pass key, two counts, all chains in one context, two phone books.
    assert_eq!(told.sessions, 6);
    let sizes = |task: Task| -> Vec<_> {
        let of_task = told.records.iter().filter(|r| r.task == task);
        of_task
            .map(|r| match &r.outcome {
                Outcome::Answered(a) => (r.n_ctx, a.sizes),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(sizes(Task::Passkey).len(), 1);
    let records: Vec<_> = sizes(Task::Count).iter().map(|s| s.1.records).collect();
    assert_eq!(records, [Some(4), Some(47)]);
    let hops: Vec<_> = sizes(Task::Track).iter().filter_map(|s| s.1.hops).collect();
    assert_eq!(hops, [1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]);
    let books = sizes(Task::Phonebook);
    assert_eq!(books.len(), 20);
    let (small, large) = (books[0], books[19]);
    assert_eq!((small.1.entries, large.1.entries), (Some(20), Some(60)));
    assert!(small.0 < large.0 && large.0 < 3000, "{books:?}");
    assert!(passed(figures(&told, Task::Phonebook, "full")).0 > 0);
    // The same again, from the seed.
    assert_eq!(told.records, judge(&plan).records);
}

#[test]
fn a_phone_book_for_which_there_are_no_names() {
    let plan = Plan {
        entries: vec![10_000_000],
        ..plan(&[Task::Phonebook], &["full"])
    };
    let error = try_judge(&plan).err().unwrap().to_string();
    assert!(
        error.starts_with("cannot make a phone book of 10000000 entries"),
        "{error}"
    );
}

#[test]
fn prompts_from_outside_share_a_context_and_are_answered_as_if_they_did_not() {
    let mut context = String::new();
    for (i, paragraph) in kiv_haystack::Prose::new(3).take(14).enumerate() {
        context += &paragraph;
        context += match i {
            3 => " The secret code of Amber Falcon is 48213. ",
            6 => " The secret code of Silver Heron is 77120. ",
            _ => "\n",
        };
    }
    let ask = |name: &str, answer: &str| {
        let question = format!("\nWhat is the secret code of {name}? The secret code of {name} is");
        (question, answer.to_owned())
    };
    let questions = [
        ask("Amber Falcon", "48213"),
        ask("Silver Heron", "77120"),
        ask("Amber Falcon", "Nobody knows"),
    ];
    let of = |prompts: Vec<Given>| {
        judge(&Plan {
            prompts,
            ..plan(&[], &["exact"])
        })
    };
    let given = |questions: &[(String, String)]| Given {
        context: context.clone(),
        questions: questions.to_vec(),
    };
    let answers = |told: &Told| -> Vec<_> {
        let answer = |r: &Record| match &r.outcome {
            Outcome::Answered(a) => (a.got.clone(), a.pass),
            other => panic!("{other:?}"),
        };
        assert!(
            told.records
                .iter()
                .all(|r| r.task == Task::Prompts && r.n_ctx > 1000)
        );
        told.records.iter().map(answer).collect()
    };
    let shared = of(vec![given(&questions)]);
    let apart = of(questions
        .iter()
        .map(|q| given(std::slice::from_ref(q)))
        .collect());
    assert_eq!((shared.sessions, apart.sessions), (1, 3));
    assert_eq!(answers(&shared), answers(&apart));
    let pass: Vec<bool> = answers(&shared).iter().map(|a| a.1).collect();
    assert_eq!(pass, [true, true, false]);
    assert_eq!(passed(figures(&shared, Task::Prompts, "exact")), (2, 3));
}
