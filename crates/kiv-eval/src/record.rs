//! Lines of an evaluation.

use crate::{Answered, Contender, Divergence, Recall, Task};
use serde::Serialize;

/// One outcome.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// The task.
    pub task: Task,
    /// Policy and budget.
    #[serde(flatten)]
    pub contender: Contender,
    /// Tokens of context.
    pub n_ctx: usize,
    /// Number of the prompt among those of this task and length.
    pub prompt: usize,
    /// Number of the question among those of this task and prompt.
    pub question: usize,
    /// The outcome's own fields.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The last line of a policy and length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Always true: tells summaries from records.
    pub summary: bool,
    /// The task.
    pub task: Task,
    /// Policy and budget.
    #[serde(flatten)]
    pub contender: Contender,
    /// Tokens of context; of prompts from outside the longest's.
    pub n_ctx: usize,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Figures of a [`Summary`].
#[derive(Clone, Debug, PartialEq, Serialize)]
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

impl Figures {
    /// What the outcomes of one task, policy and length come to.
    pub(crate) fn of(outcomes: &[Outcome]) -> Option<Self> {
        let (mut passed, mut recalls, mut divergences) = (Vec::new(), Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                Outcome::Answered(a) => passed.push(a.pass),
                Outcome::Recall(r) => recalls.push(r.clone()),
                Outcome::Divergence(d) => divergences.push(d.clone()),
            }
        }
        Some(match outcomes.first()? {
            Outcome::Answered(_) => Self::Passed {
                passed: passed.iter().filter(|pass| **pass).count(),
                total: passed.len(),
            },
            Outcome::Recall(_) => Self::Recall(Recall::merge(&recalls)),
            Outcome::Divergence(_) => Self::Divergence(Divergence::merge(&divergences)),
        })
    }
}
