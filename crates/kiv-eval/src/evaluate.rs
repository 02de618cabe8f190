//! The run through all contexts.

use crate::ask::Reader;
use crate::stations::{Source, Spec, stations};
use crate::{
    Case, Contender, Env, EvalError, Figures, Outcome, Plan, Prompt, Record, Summary, Task, kld,
    recall, tasks,
};
use kiv_runtime::Error;

/// Judges, telling every record and summary as it comes. Summaries speak of
/// what was judged in this call.
///
/// # Errors
/// [`EvalError`]; what was told before stands.
pub fn evaluate(
    env: &Env<'_>,
    plan: &Plan,
    record: &mut dyn FnMut(&Record),
    summary: &mut dyn FnMut(&Summary),
) -> Result<(), EvalError> {
    let contenders = plan.contenders();
    for station in stations(env.model, plan)? {
        // What all contenders share: the prompts, and what full attention
        // makes of their continuations.
        let mut shared: Vec<Shared> = Vec::new();
        shared.resize_with(station.contexts.len(), Shared::default);
        for contender in &contenders {
            let mut told = Vec::new();
            for (spec, shared) in station.contexts.iter().zip(&mut shared) {
                let wanted = wanted(env, plan, contender, spec);
                if wanted.is_empty() {
                    continue;
                }
                let mut tell = |task, question, outcome: Outcome| {
                    told.push((task, outcome.clone()));
                    record(&Record {
                        task,
                        contender: contender.clone(),
                        n_ctx: spec.n_ctx,
                        prompt: spec.number,
                        question,
                        outcome,
                    });
                };
                let prompt = match shared.prompt.take() {
                    Some(prompt) => prompt,
                    None => tasks::prompt(env.model, plan, spec)?,
                };
                let judged = judge(env, contender, &prompt, &wanted, shared, &mut tell);
                shared.prompt = Some(prompt);
                judged.map_err(|source| EvalError::Session {
                    policy: contender.policy.clone(),
                    n_ctx: spec.n_ctx,
                    source,
                })?;
            }
            for task in Task::ALL.into_iter().chain([Task::Prompts]) {
                let of_task = told.iter().filter(|t| t.0 == task);
                let outcomes: Vec<Outcome> = of_task.map(|t| t.1.clone()).collect();
                if let Some(figures) = Figures::of(&outcomes) {
                    summary(&Summary {
                        summary: true,
                        task,
                        contender: contender.clone(),
                        n_ctx: station.n_ctx,
                        figures,
                    });
                }
            }
        }
    }
    Ok(())
}

#[derive(Default)]
struct Shared {
    prompt: Option<Prompt>,
    /// Full attention's logits after every token of the continuation.
    reference: Option<Vec<Vec<f32>>>,
}

/// Tasks that are yet to be judged on this context.
fn wanted(env: &Env<'_>, plan: &Plan, contender: &Contender, spec: &Spec) -> Vec<Task> {
    let asked_for = |task: &Task| match task {
        Task::Prompts => true,
        // Everything resident is a recall of 1, and has no tiers to look at.
        Task::Recall if contender.policy == "full" => false,
        task => plan.tasks.contains(task),
    };
    let entries = match spec.source {
        Source::Phonebook { entries } => entries,
        _ => None,
    };
    let is_done = |task: Task| {
        (env.done)(&Case {
            task,
            contender,
            n_ctx: spec.n_ctx,
            entries,
            prompt: spec.number,
        })
    };
    let tasks = spec.source.tasks().iter().copied();
    tasks.filter(|t| asked_for(t) && !is_done(*t)).collect()
}

/// Judges one contender by the wanted tasks of one context, read once.
fn judge(
    env: &Env<'_>,
    contender: &Contender,
    prompt: &Prompt,
    wanted: &[Task],
    shared: &mut Shared,
    tell: &mut dyn FnMut(Task, usize, Outcome),
) -> Result<(), Error> {
    let is_full = contender.policy == "full";
    if wanted.contains(&Task::Kld) && shared.reference.is_none() && !is_full {
        let full = Contender {
            policy: "full".to_owned(),
            budget: None,
        };
        shared.reference = Some(kld::logits(&mut Reader::open(env, &full, prompt)?)?);
    }
    let mut reader = Reader::open(env, contender, prompt)?;
    for &task in wanted {
        match task {
            Task::Recall => {
                if let Some(recall) = recall::judge(&mut reader)? {
                    tell(task, 0, Outcome::Recall(recall));
                }
            }
            Task::Kld => {
                let got = kld::logits(&mut reader)?;
                let want = shared.reference.get_or_insert_with(|| got.clone());
                tell(task, 0, Outcome::Divergence(kld::compare(want, &got)));
            }
            _ => {
                let of_task = prompt.questions.iter().filter(|q| q.task == task);
                for (number, question) in of_task.enumerate() {
                    tell(task, number, Outcome::Answered(reader.ask(question)?));
                }
            }
        }
    }
    Ok(())
}
