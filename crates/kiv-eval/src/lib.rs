//! Judges cache policies by what the model then answers.
//!
//! A policy that picks the wrong blocks still writes fluent text, so quality is
//! measured, always on the same prompts for every policy:
//!
//! - tasks with one right answer ([`Task::Needle`] and its kin): each question
//!   is read token by token, so that it goes through retrieval, answered
//!   greedily, and taken back;
//! - [`Task::Recall`]: the share of the true softmax that the resident rows
//!   cover, and the share of the true best tokens among them, for every layer
//!   and head while questions are read;
//! - [`Task::Kld`]: how far the next-token distribution is from that of full
//!   attention, teacher-forced.
//!
//! Reading a long context is what takes time, so a context is read once per
//! policy, budget and length for all tasks that can share it: needles, facts,
//! recall and divergence live on one haystack, which is the same whichever of
//! them are judged. Between questions the session is set back to a state that
//! does not depend on what was asked before ([`kiv_runtime::Session::rewind`]),
//! so a task's figures are the same alone and together with others.
//!
//! Every prompt follows from the seed; records say which prompt they belong to,
//! so that an interrupted evaluation can be taken up again.

mod ask;
mod evaluate;
mod given;
mod kld;
mod recall;
mod record;
mod stations;
mod tasks;

pub use ask::Answered;
pub use evaluate::evaluate;
pub use given::{BadPrompt, Given, parse_prompts};
pub use kld::{Divergence, kl_divergence};
pub use recall::Recall;
pub use record::{Figures, Outcome, Record, Summary};
pub use stations::longest;
pub use tasks::{Check, Prompt, Question, Sizes};

use kiv_haystack::HaystackError;
use kiv_runtime::{Model, Progress, SessionBuilder};
use serde::Serialize;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use thiserror::Error;

/// What is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// One fact at each depth of a text.
    Needle,
    /// Quest's pass key in repeated filler (arXiv 2406.10774, section 4).
    Passkey,
    /// A list of names and numbers: of stated sizes, or as long as the context.
    Phonebook,
    /// Ten facts scattered over the text, all asked for.
    Facts,
    /// How many records of a kind are in the text: 4 and 47.
    Count,
    /// Names that stand for names, one to four steps.
    Track,
    /// Attention mass and top-k recall; of policies that keep every row.
    Recall,
    /// KL divergence from full attention.
    Kld,
    /// Prompts from outside ([`Given`]).
    Prompts,
}

impl Task {
    /// Every task that needs nothing from outside.
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
            Self::Prompts => "prompts",
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
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The tasks; [`Task::Prompts`] follows from `prompts`.
    pub tasks: Vec<Task>,
    /// Policies by name, side by side.
    pub policies: Vec<String>,
    /// The policy under which contexts are read, once for all that can take over
    /// from it; the others, and all if this is `None`, read for themselves.
    pub read_policy: Option<String>,
    /// Tokens of a block, as sessions have them unless a policy wants others.
    pub block: Option<usize>,
    /// Tokens in slots, side by side; `full` has no budget.
    pub budgets: Vec<usize>,
    /// Context lengths in tokens.
    pub lengths: Vec<usize>,
    /// Sizes of phone books; none: one of each context length.
    pub entries: Vec<usize>,
    /// Prompts from outside.
    pub prompts: Vec<Given>,
    /// Depths of needles, 0 to 1.
    pub depths: Vec<f64>,
    /// Questions per depth, or prompts, by task.
    pub samples: usize,
    /// Seed of everything.
    pub seed: u64,
}

impl Plan {
    /// Policies with budgets, in the order in which they are judged: `full`
    /// first, because the others are compared with it.
    #[must_use]
    pub fn contenders(&self) -> Vec<Contender> {
        let is_full = |p: &&String| *p == "full";
        let full = self.policies.iter().find(is_full).map(|_| Contender {
            policy: "full".to_owned(),
            budget: None,
            read_by: None,
            own_block: None,
        });
        let others = self.policies.iter().filter(|p| !is_full(p));
        let tiered = others.flat_map(|policy| {
            self.budgets.iter().map(|budget| Contender {
                policy: policy.clone(),
                budget: Some(*budget),
                read_by: self.read_policy.clone().filter(|by| takes_over(by, policy)),
                own_block: kiv_policies::by_name(policy)
                    .and_then(|p| p.block())
                    .filter(|own| Some(*own) != self.block),
            })
        });
        let mut tiered: Vec<Contender> = tiered.collect();
        if self.read_policy.is_some() {
            // One reader's next to each other, itself first: it has seen queries
            // that it cannot be told of again.
            let place = |c: &Contender| {
                let reader = c.reader();
                let policy = self.policies.iter().position(|p| *p == reader.policy);
                let budget = self.budgets.iter().position(|b| Some(*b) == c.budget);
                (policy, budget, c.own_block, c.read_by.is_some())
            };
            tiered.sort_by_key(place);
        }
        full.into_iter().chain(tiered).collect()
    }
}

/// Whether a policy can answer about what another has read: both keep every row, and
/// the other one does so in blocks of any size.
fn takes_over(reader: &str, policy: &str) -> bool {
    let policy = kiv_policies::by_name(policy);
    reads_for_others(reader) && policy.is_some_and(|p| p.retrieves() && p.name() != reader)
}

/// Whether others can answer about what this policy has read: it keeps every row, in blocks
/// of any size.
#[must_use]
pub fn reads_for_others(policy: &str) -> bool {
    kiv_policies::by_name(policy).is_some_and(|p| p.retrieves() && p.block().is_none())
}

/// A policy with a budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contender {
    /// The policy's name.
    pub policy: String,
    /// Tokens in slots; `None` for `full`, which has none.
    #[serde(rename = "kv_budget")]
    pub budget: Option<usize>,
    /// The policy under which the context was read, if that is another's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_by: Option<String>,
    /// Tokens of a block, if the policy wants others than the rest.
    #[serde(skip)]
    pub own_block: Option<usize>,
}

impl Contender {
    /// Who reads for this one.
    fn reader(&self) -> Self {
        Self {
            policy: self.read_by.clone().unwrap_or_else(|| self.policy.clone()),
            budget: self.budget,
            read_by: None,
            own_block: self.own_block,
        }
    }
}

/// What is judged in one go, and either is finished or is not.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The task.
    pub task: Task,
    /// Policy and budget.
    pub contender: &'a Contender,
    /// Tokens of context.
    pub n_ctx: usize,
    /// Size of the phone book, if that was stated.
    pub entries: Option<usize>,
    /// Number of the prompt among those of this task and length.
    pub prompt: usize,
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
    /// The phone book cannot be made.
    #[error("cannot make a phone book of {entries} entries: {why}")]
    Phonebook {
        /// Entries asked for.
        entries: usize,
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

/// What an evaluation needs from outside.
pub struct Env<'a> {
    /// The model.
    pub model: &'a Model,
    /// Sets a session up for a policy and a number of tokens.
    pub builder: &'a dyn Fn(&Contender, usize) -> SessionBuilder,
    /// Whether a case has been judged before.
    pub done: &'a dyn Fn(&Case<'_>) -> bool,
    /// Told how far reading has come, of how many tokens.
    pub progress: &'a dyn Fn(&Contender, usize, Progress),
    /// Ends the evaluation once it is set, with [`kiv_runtime::Error::Interrupted`].
    pub interrupt: Arc<AtomicBool>,
}
