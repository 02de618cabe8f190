//! Results by setup, and what they come to.

use crate::lines::{Divergence, Found, Header, Line, Recall, Record};
use std::collections::HashMap;

/// Runs that can be compared: the same model, run the same way. Seeds are
/// pooled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Section {
    /// Different headers, in order.
    pub headers: Vec<Header>,
    pub records: Vec<Record>,
    /// Index of each question's record.
    by_key: HashMap<String, usize>,
}

/// A policy with a budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contender {
    pub policy: String,
    pub budget: Option<u64>,
    /// The policy under which it got its contexts, if that is another's.
    pub read_by: Option<String>,
}

impl Contender {
    /// Full attention.
    pub fn full() -> Self {
        Self {
            policy: "full".to_owned(),
            budget: None,
            read_by: None,
        }
    }

    pub fn is_full(&self) -> bool {
        self.policy == "full"
    }

    /// `exact, budget 1 K`.
    pub fn name(&self) -> String {
        match self.budget {
            Some(budget) => format!("{}, budget {}", self.policy, crate::numbers::tokens(budget)),
            None => self.policy.clone(),
        }
    }

    /// Whether it is the other one, or differs from it in its budget alone.
    pub fn differs_in_budget(&self, other: &Self) -> bool {
        self.policy == other.policy && self.read_by == other.read_by
    }

    /// `read by pq`, if another policy read.
    pub fn reader(&self) -> Option<String> {
        Some(format!("read by {}", self.read_by.as_ref()?))
    }
}

/// Questions of the same kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub task: String,
    /// Records or hops.
    pub size: Option<u64>,
}

impl Kind {
    pub fn name(&self) -> String {
        match self.size_name() {
            Some(size) => format!("{} {size}", self.task),
            None => self.task.clone(),
        }
    }

    /// `47 records`, `1 hop`.
    pub fn size_name(&self) -> Option<String> {
        let n = self.size?;
        let unit = if self.task == "track" {
            "hop"
        } else {
            "record"
        };
        Some(format!("{n} {unit}{}", if n == 1 { "" } else { "s" }))
    }
}

/// Answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rate {
    pub passed: u64,
    pub total: u64,
}

impl Rate {
    pub fn share(self) -> f64 {
        self.passed as f64 / self.total as f64
    }
}

/// Adds a file's lines to the sections that they belong to.
pub(crate) fn add(sections: &mut Vec<Section>, lines: Vec<Line>) {
    // Lines before any header: from a program that used the library.
    let mut header = Header::default();
    for line in lines {
        match line {
            Line::Header(next) => header = *next,
            Line::Record(record) => {
                let same = sections.iter().position(|s| s.is_of(&header));
                let section = match same {
                    Some(at) => &mut sections[at],
                    None => {
                        sections.push(Section::default());
                        sections.last_mut().expect("just added")
                    }
                };
                if !section.headers.contains(&header) {
                    section.headers.push(header.clone());
                }
                section.add(*record);
            }
        }
    }
}

/// What must be equal for figures to be comparable.
fn setup(h: &Header) -> Header {
    Header {
        kiv_version: None,
        cpu: None,
        os: None,
        threads: None,
        threads_batch: None,
        gpu_layers: None,
        ctx_size: None,
        samples: None,
        seed: None,
        // What was read by another policy is told apart by contender.
        kv_read_policy: None,
        // The bytes are what counts; a file may have been renamed.
        model_file: h.model_file.clone().filter(|_| h.model_sha256.is_none()),
        // Files from before these could be chosen do not name them.
        kv_pos: h.kv_pos.clone().filter(|_| h.is_remapped()),
        kv_rest: Some(h.has_rest()),
        kv_store_k: h.store().map(|[k, _]| k.to_owned()),
        kv_store_v: h.store().map(|[_, v]| v.to_owned()),
        ..h.clone()
    }
}

impl Section {
    fn is_of(&self, header: &Header) -> bool {
        self.headers
            .first()
            .is_some_and(|h| setup(h) == setup(header))
    }

    /// Adds a record; of those about the same question the last counts.
    fn add(&mut self, record: Record) {
        match self.by_key.get(&record.key) {
            Some(&at) => self.records[at] = record,
            None => {
                self.by_key.insert(record.key.clone(), self.records.len());
                self.records.push(record);
            }
        }
    }

    /// The first header: what all have in common.
    pub fn header(&self) -> Header {
        self.headers.first().cloned().unwrap_or_default()
    }

    /// Policies in the order in which they come, `full` first; budgets rise.
    pub fn policies(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for record in &self.records {
            if !all.contains(&record.policy) {
                all.push(record.policy.clone());
            }
        }
        all.sort_by_key(|p| p != "full");
        all
    }

    /// Policies with budgets of the records that pass.
    pub fn contenders(&self, keep: impl Fn(&Record) -> bool) -> Vec<Contender> {
        let mut all: Vec<Contender> = Vec::new();
        for policy in self.policies() {
            let of_policy = self
                .records
                .iter()
                .filter(|r| r.policy == policy && keep(r));
            let mut variants: Vec<_> = of_policy.map(|r| (r.budget, &r.read_by)).collect();
            variants.sort_unstable();
            variants.dedup();
            all.extend(variants.into_iter().map(|(budget, read_by)| Contender {
                policy: policy.clone(),
                budget,
                read_by: read_by.clone(),
            }));
        }
        all
    }

    /// Kinds of questions, in the order of the tasks.
    pub fn kinds(&self) -> Vec<Kind> {
        const ORDER: [&str; 7] = [
            "needle",
            "passkey",
            "phonebook",
            "facts",
            "track",
            "count",
            "prompts",
        ];
        let mut all: Vec<Kind> = Vec::new();
        for record in self
            .records
            .iter()
            .filter(|r| matches!(r.found, Found::Answer { .. }))
        {
            let kind = record.kind();
            if !all.contains(&kind) {
                all.push(kind);
            }
        }
        let place = |task: &str| ORDER.iter().position(|t| *t == task).unwrap_or(ORDER.len());
        all.sort_by_key(|k| (place(&k.task), k.size));
        all
    }

    /// Distinct values of the records that pass, rising.
    pub fn values(&self, keep: impl Fn(&Record) -> Option<u64>) -> Vec<u64> {
        let mut all: Vec<u64> = self.records.iter().filter_map(keep).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// How many of the records that pass are right; `None` if there are none.
    pub fn rate(&self, contender: &Contender, keep: impl Fn(&Record) -> bool) -> Option<Rate> {
        let mut rate = Rate::default();
        for record in self.of(contender).filter(|r| keep(r)) {
            if let Found::Answer { pass, .. } = record.found {
                rate.passed += u64::from(pass);
                rate.total += 1;
            }
        }
        Some(rate).filter(|r| r.total > 0)
    }

    /// Attention recall at a length.
    pub fn recall(&self, contender: &Contender, n_ctx: u64) -> Option<Recall> {
        let all: Vec<&Recall> = self
            .of(contender)
            .filter(|r| r.n_ctx == n_ctx)
            .filter_map(|r| match &r.found {
                Found::Recall(recall) => Some(recall),
                _ => None,
            })
            .collect();
        let weights: Vec<f64> = all.iter().map(|r| r.queries.max(1) as f64).collect();
        let total: f64 = weights.iter().sum();
        let mean = |get: &dyn Fn(&Recall) -> f64| {
            all.iter()
                .zip(&weights)
                .map(|(r, w)| get(r) * w)
                .sum::<f64>()
                / total
        };
        let first = all.first()?;
        let same_shape = |r: &&Recall| {
            r.mass_by_head
                .iter()
                .map(Vec::len)
                .eq(first.mass_by_head.iter().map(Vec::len))
        };
        let mass_by_head: Vec<Vec<f64>> = if all.iter().all(same_shape) {
            let head = |layer: usize, head: usize| mean(&|r: &Recall| r.mass_by_head[layer][head]);
            let heads = first.mass_by_head.iter().map(Vec::len).enumerate();
            heads
                .map(|(layer, n)| (0..n).map(|h| head(layer, h)).collect())
                .collect()
        } else {
            Vec::new()
        };
        let worst = mass_by_head.iter().flatten().copied().reduce(f64::min);
        Some(Recall {
            mass_mean: mean(&|r| r.mass_mean),
            mass_p5: mean(&|r| r.mass_p5),
            mass_worst: worst.unwrap_or_else(|| mean(&|r| r.mass_worst)),
            topk: mean(&|r| r.topk),
            mass_by_head,
            queries: all.iter().map(|r| r.queries).sum(),
        })
    }

    /// Divergence at a length.
    pub fn divergence(&self, contender: &Contender, n_ctx: u64) -> Option<Divergence> {
        let all: Vec<&Divergence> = self
            .of(contender)
            .filter(|r| r.n_ctx == n_ctx)
            .filter_map(|r| match &r.found {
                Found::Divergence(divergence) => Some(divergence),
                _ => None,
            })
            .collect();
        all.first()?;
        let total: f64 = all.iter().map(|d| d.tokens.max(1) as f64).sum();
        let mean = |get: fn(&Divergence) -> f64| {
            all.iter()
                .map(|d| get(d) * d.tokens.max(1) as f64)
                .sum::<f64>()
                / total
        };
        Some(Divergence {
            kld_mean: mean(|d| d.kld_mean),
            kld_max: all.iter().map(|d| d.kld_max).fold(0.0, f64::max),
            same_top1: mean(|d| d.same_top1),
            tokens: all.iter().map(|d| d.tokens).sum(),
        })
    }

    pub fn of<'a>(&'a self, contender: &'a Contender) -> impl Iterator<Item = &'a Record> {
        self.records.iter().filter(|r| r.is_of(contender))
    }
}

impl Record {
    pub fn is_of(&self, contender: &Contender) -> bool {
        self.policy == contender.policy
            && self.budget == contender.budget
            && self.read_by == contender.read_by
    }

    pub fn kind(&self) -> Kind {
        Kind {
            task: self.task.clone(),
            size: self.records.or(self.hops),
        }
    }
}
