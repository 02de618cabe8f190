//! Which contexts there are, and which tasks share them.

use crate::{EvalError, Plan, Task, tasks};
use kiv_runtime::Model;

/// Numbers of records that are counted.
const RECORDS: [usize; 2] = [4, 47];

/// Where a context comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Source {
    /// Prose with needles and facts.
    Haystack,
    /// Filler with a key at a depth, 0 to 1.
    Passkey { depth: f64 },
    /// A phone book of a size, or of the context's length.
    Phonebook { entries: Option<usize> },
    /// Prose with so many records.
    Count { records: usize },
    /// Prose with chains of aliases.
    Track,
    /// A prompt from outside.
    Given,
}

impl Source {
    /// Tasks that such a context is for; divergence, which reads on, is last.
    pub(crate) fn tasks(self) -> &'static [Task] {
        match self {
            Self::Haystack => &[Task::Needle, Task::Facts, Task::Recall, Task::Kld],
            Self::Passkey { .. } => &[Task::Passkey],
            Self::Phonebook { .. } => &[Task::Phonebook],
            Self::Count { .. } => &[Task::Count],
            Self::Track => &[Task::Track],
            Self::Given => &[Task::Prompts],
        }
    }
}

/// One context.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub source: Source,
    /// Tokens.
    pub n_ctx: usize,
    /// Number among those of this source and length.
    pub number: usize,
}

/// Contexts that are summed up together.
#[derive(Clone, Debug)]
pub(crate) struct Station {
    /// Tokens of the longest.
    pub n_ctx: usize,
    pub contexts: Vec<Spec>,
}

/// Every context of the plan.
pub(crate) fn stations(model: &Model, plan: &Plan) -> Result<Vec<Station>, EvalError> {
    let mut stations = Vec::new();
    for &n_ctx in &plan.lengths {
        let spec = |(number, source)| Spec {
            source,
            n_ctx,
            number,
        };
        let contexts: Vec<Spec> = sources(plan).into_iter().map(spec).collect();
        stations.push(Station { n_ctx, contexts });
    }
    if plan.tasks.contains(&Task::Phonebook) {
        for &entries in &plan.entries {
            let n_ctx = tasks::phonebook_tokens(model, plan, entries)?;
            let source = Source::Phonebook {
                entries: Some(entries),
            };
            let contexts = vec![Spec {
                source,
                n_ctx,
                number: 0,
            }];
            stations.push(Station { n_ctx, contexts });
        }
    }
    let given = plan.prompts.iter().enumerate().map(|(number, given)| Spec {
        source: Source::Given,
        n_ctx: model.tokenize(&given.context, true).len(),
        number,
    });
    let contexts: Vec<Spec> = given.collect();
    let n_ctx = contexts.iter().map(|c| c.n_ctx).max().unwrap_or(0);
    stations.push(Station { n_ctx, contexts });
    stations.retain(|s| !s.contexts.is_empty());
    Ok(stations)
}

/// Numbered sources of one length.
fn sources(plan: &Plan) -> Vec<(usize, Source)> {
    let mut all = Vec::new();
    let wanted = |source: Source| source.tasks().iter().any(|t| plan.tasks.contains(t));
    let mut add = |sources: Vec<Source>| {
        all.extend(sources.into_iter().enumerate().filter(|s| wanted(s.1)));
    };
    add(vec![Source::Haystack]);
    let depths = (0..plan.samples).flat_map(|_| plan.depths.iter().copied());
    add(depths.map(|depth| Source::Passkey { depth }).collect());
    if plan.entries.is_empty() {
        add(vec![Source::Phonebook { entries: None }]);
    }
    let records = (0..plan.samples).flat_map(|_| RECORDS);
    add(records.map(|records| Source::Count { records }).collect());
    add(vec![Source::Track; plan.samples]);
    all
}

/// Tokens of the longest context of the plan.
///
/// # Errors
/// [`EvalError::Phonebook`] for a phone book that cannot be made.
pub fn longest(model: &Model, plan: &Plan) -> Result<usize, EvalError> {
    let all = stations(model, plan)?;
    Ok(all.iter().map(|s| s.n_ctx).max().unwrap_or(0))
}
