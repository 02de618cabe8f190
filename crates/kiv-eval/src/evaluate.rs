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
        // Those for whom one of them reads are judged on one reading.
        let together = |a: &Contender, b: &Contender| a.reader() == b.reader();
        for contenders in contenders.chunk_by(together) {
            let mut told = Vec::new();
            for (spec, shared) in station.contexts.iter().zip(&mut shared) {
                let wanted: Vec<_> = contenders
                    .iter()
                    .map(|contender| (contender, wanted(env, plan, contender, spec)))
                    .filter(|(_, wanted)| !wanted.is_empty())
                    .collect();
                if wanted.is_empty() {
                    continue;
                }
                let mut tell = |contender: &Contender, task, question, outcome: Outcome| {
                    told.push((contender.clone(), task, outcome.clone()));
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
                let judged = judge(env, &prompt, spec.n_ctx, &wanted, shared, &mut tell);
                shared.prompt = Some(prompt);
                judged?;
            }
            for contender in contenders {
                for task in Task::ALL.into_iter().chain([Task::Prompts]) {
                    let of_task = told.iter().filter(|t| t.0 == *contender && t.1 == task);
                    let outcomes: Vec<Outcome> = of_task.map(|t| t.2.clone()).collect();
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

/// Judges contenders by the tasks wanted of them, on one context, read once.
fn judge(
    env: &Env<'_>,
    prompt: &Prompt,
    n_ctx: usize,
    wanted: &[(&Contender, Vec<Task>)],
    shared: &mut Shared,
    tell: &mut dyn FnMut(&Contender, Task, usize, Outcome),
) -> Result<(), EvalError> {
    let mut reader: Option<Reader<'_>> = None;
    for (contender, tasks) in wanted {
        let failed = |source| EvalError::Session {
            policy: contender.policy.clone(),
            n_ctx,
            source,
        };
        let is_full = contender.policy == "full";
        if tasks.contains(&Task::Kld) && shared.reference.is_none() && !is_full {
            let full = Contender {
                policy: "full".to_owned(),
                budget: None,
                read_by: None,
                own_block: None,
            };
            let logits = Reader::open(env, &full, prompt).and_then(|mut r| kld::logits(&mut r));
            shared.reference = Some(logits.map_err(failed)?);
        }
        let reader = match &mut reader {
            Some(reader) => {
                reader.pass_to(contender).map_err(failed)?;
                reader
            }
            none => none.insert(Reader::open(env, contender, prompt).map_err(failed)?),
        };
        judge_one(reader, tasks, shared, &mut |task, number, outcome| {
            tell(contender, task, number, outcome);
        })
        .map_err(failed)?;
    }
    Ok(())
}

/// Judges who has the reader.
fn judge_one(
    reader: &mut Reader<'_>,
    tasks: &[Task],
    shared: &mut Shared,
    tell: &mut dyn FnMut(Task, usize, Outcome),
) -> Result<(), Error> {
    for &task in tasks {
        match task {
            Task::Recall => {
                if let Some(recall) = recall::judge(reader)? {
                    tell(task, 0, Outcome::Recall(recall));
                }
            }
            Task::Kld => {
                let got = kld::logits(reader)?;
                let want = shared.reference.get_or_insert_with(|| got.clone());
                tell(task, 0, Outcome::Divergence(kld::compare(want, &got)));
            }
            _ => {
                let of_task = reader.prompt.questions.iter().filter(|q| q.task == task);
                for (number, question) in of_task.enumerate() {
                    tell(task, number, Outcome::Answered(reader.ask(question)?));
                }
            }
        }
    }
    Ok(())
}
