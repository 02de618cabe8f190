//! Judges cache policies by what the model then answers.
//!
//! A policy that picks the wrong blocks still writes fluent text, so quality is
//! measured, always on the same prompts for every policy:
//!
//! - tasks with one right answer ([`Task::Needle`] and its kin): the context is
//!   read once, then each question is read token by token, so that it goes
//!   through retrieval, answered greedily, and taken back;
//! - [`Task::Recall`]: the share of the true softmax that the resident rows
//!   cover, and the share of the true best tokens among them, for every layer
//!   and head while questions are read;
//! - [`Task::Kld`]: how far the next-token distribution is from that of full
//!   attention, teacher-forced.
//!
//! Every prompt follows from the seed; records say which prompt they belong to,
//! so that an interrupted evaluation can be taken up again.

mod ask;
mod kld;
mod recall;
mod tasks;

pub use ask::Answered;
pub use kld::{Divergence, kl_divergence};
pub use recall::Recall;
pub use tasks::{Check, Prompt, Question};

use kiv_haystack::HaystackError;
use kiv_runtime::{Model, Progress, SessionBuilder};
use serde::Serialize;
use std::str::FromStr;
use thiserror::Error;

/// What is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// One fact at each depth of a text.
    Needle,
    /// Quest's pass key in repeated filler (arXiv 2406.10774, section 4).
    Passkey,
    /// A list of names and numbers; as many entries as the context holds.
    Phonebook,
    /// Ten facts scattered over the text, all asked for.
    Facts,
    /// How many records of a kind are in the text.
    Count,
    /// Names that stand for names, one to four steps.
    Track,
    /// Attention mass and top-k recall.
    Recall,
    /// KL divergence from full attention.
    Kld,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 8] = [
        Self::Needle,
        Self::Passkey,
        Self::Phonebook,
        Self::Facts,
        Self::Count,
        Self::Track,
        Self::Recall,
        Self::Kld,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Needle => "needle",
            Self::Passkey => "passkey",
            Self::Phonebook => "phonebook",
            Self::Facts => "facts",
            Self::Count => "count",
            Self::Track => "track",
            Self::Recall => "recall",
            Self::Kld => "kld",
        }
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|t| t.name() == name)
            .ok_or_else(|| format!("there are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// What to judge, and on what.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The task.
    pub task: Task,
    /// Policies by name, side by side.
    pub policies: Vec<String>,
    /// Context lengths in tokens.
    pub lengths: Vec<usize>,
    /// Depths of needles, 0 to 1.
    pub depths: Vec<f64>,
    /// Questions per depth, or prompts, by task.
    pub samples: usize,
    /// Seed of everything.
    pub seed: u64,
}

/// Why an evaluation stopped.
#[derive(Debug, Error)]
pub enum EvalError {
    /// The prompt cannot be made.
    #[error("cannot make a prompt of {n_ctx} tokens: {why}")]
    Prompt {
        /// Tokens asked for.
        n_ctx: usize,
        /// What is in the way.
        why: String,
    },
    /// The session failed.
    #[error("policy `{policy}` at {n_ctx} tokens")]
    Session {
        /// The policy.
        policy: String,
        /// Tokens of context.
        n_ctx: usize,
        /// Why.
        source: kiv_runtime::Error,
    },
}

impl EvalError {
    fn haystack(n_ctx: usize) -> impl Fn(HaystackError) -> Self {
        move |e| Self::Prompt {
            n_ctx,
            why: e.to_string(),
        }
    }
}

/// One outcome.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// A question was answered.
    Answered(Answered),
    /// Attention was compared.
    Recall(Recall),
    /// Distributions were compared.
    Divergence(Divergence),
}

/// A line of the evaluation: which case, and the outcome.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// The task.
    pub task: Task,
    /// The policy.
    pub policy: String,
    /// Tokens of context asked for.
    pub n_ctx: usize,
    /// Number of the prompt among those of this task and length.
    pub prompt: usize,
    /// The outcome's own fields.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The last line of a policy and length.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Always true: tells summaries from records.
    pub summary: bool,
    /// The task.
    pub task: Task,
    /// The policy.
    pub policy: String,
    /// Tokens of context.
    pub n_ctx: usize,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Figures of a [`Summary`].
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Figures {
    /// Of tasks with answers.
    Passed {
        /// Questions answered right.
        passed: usize,
        /// Questions.
        total: usize,
    },
    /// Of [`Task::Recall`].
    Recall(Recall),
    /// Of [`Task::Kld`].
    Divergence(Divergence),
}

/// What an evaluation needs from outside.
pub struct Env<'a> {
    /// The model.
    pub model: &'a Model,
    /// Sets a session up for a policy and a number of tokens.
    pub builder: &'a dyn Fn(&str, usize) -> SessionBuilder,
    /// Whether a prompt of a policy and length has been judged before.
    pub done: &'a dyn Fn(&str, usize, usize) -> bool,
    /// Told how far reading has come.
    pub progress: &'a dyn Fn(&str, usize, Progress),
}

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
    for &n_ctx in &plan.lengths {
        for policy in &plan.policies {
            let mut outcomes = Vec::new();
            let n_prompts = tasks::n_prompts(plan);
            for prompt in 0..n_prompts {
                if (env.done)(policy, n_ctx, prompt) {
                    continue;
                }
                let made = tasks::prompt(env.model, plan, n_ctx, prompt)?;
                let failed = |source| EvalError::Session {
                    policy: policy.clone(),
                    n_ctx,
                    source,
                };
                let judged = match plan.task {
                    Task::Recall => vec![Outcome::Recall(
                        recall::judge(env, policy, &made).map_err(failed)?,
                    )],
                    Task::Kld => vec![Outcome::Divergence(
                        kld::judge(env, policy, &made).map_err(failed)?,
                    )],
                    _ => {
                        let answers = ask::judge(env, policy, &made).map_err(failed)?;
                        answers.into_iter().map(Outcome::Answered).collect()
                    }
                };
                for outcome in judged {
                    let line = Record {
                        task: plan.task,
                        policy: policy.clone(),
                        n_ctx,
                        prompt,
                        outcome,
                    };
                    record(&line);
                    outcomes.push(line.outcome);
                }
            }
            if let Some(figures) = figures(&outcomes) {
                summary(&Summary {
                    summary: true,
                    task: plan.task,
                    policy: policy.clone(),
                    n_ctx,
                    figures,
                });
            }
        }
    }
    Ok(())
}

/// What the outcomes of one policy and length come to.
fn figures(outcomes: &[Outcome]) -> Option<Figures> {
    let answers = outcomes.iter().filter_map(|o| {
        if let Outcome::Answered(a) = o {
            Some(a.pass)
        } else {
            None
        }
    });
    let recalls: Vec<Recall> = outcomes
        .iter()
        .filter_map(|o| {
            if let Outcome::Recall(r) = o {
                Some(r.clone())
            } else {
                None
            }
        })
        .collect();
    let divergences: Vec<Divergence> = outcomes
        .iter()
        .filter_map(|o| {
            if let Outcome::Divergence(d) = o {
                Some(d.clone())
            } else {
                None
            }
        })
        .collect();
    match outcomes.first()? {
        Outcome::Answered(_) => Some(Figures::Passed {
            passed: answers.clone().filter(|pass| *pass).count(),
            total: answers.count(),
        }),
        Outcome::Recall(_) => Some(Figures::Recall(Recall::merge(&recalls))),
        Outcome::Divergence(_) => Some(Figures::Divergence(Divergence::merge(&divergences))),
    }
}
