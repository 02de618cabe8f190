//! Policies against full attention, question by question.

use crate::data::{Contender, Section};
use crate::lines::{Found, Record};
use std::collections::HashMap;

/// Questions that a contender and full attention have both been asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agreement {
    pub both_right: u64,
    /// Full attention's answer alone is right.
    pub lost: u64,
    /// The contender's answer alone is right.
    pub gained: u64,
    /// Both are wrong in the same words.
    pub wrong_alike: u64,
    pub wrong_otherwise: u64,
}

impl Agreement {
    pub fn asked(self) -> u64 {
        self.both_right + self.lost + self.gained + self.wrong_alike + self.wrong_otherwise
    }
}

/// Every contender that has been asked what full attention has, with what came of it.
pub(crate) fn agreements(section: &Section) -> Vec<(Contender, Agreement)> {
    let is_answer = |r: &Record| matches!(r.found, Found::Answer { .. });
    let (full, others): (Vec<_>, Vec<_>) = section
        .contenders(is_answer)
        .into_iter()
        .partition(Contender::is_full);
    let answers = full.iter().flat_map(|c| section.of(c));
    let full: HashMap<&str, &Found> = answers.map(|r| (&*r.question, &r.found)).collect();
    let mut all: Vec<(Contender, Agreement)> = Vec::new();
    for contender in others {
        let mut agreement = Agreement::default();
        for record in section.of(&contender) {
            let Some(full) = full.get(&*record.question) else {
                continue;
            };
            if let Some(count) = agreement.outcome(full, &record.found) {
                *count += 1;
            }
        }
        if agreement.asked() > 0 {
            all.push((contender, agreement));
        }
    }
    all
}

impl Agreement {
    /// The count that a pair of answers belongs to.
    fn outcome(&mut self, full: &Found, found: &Found) -> Option<&mut u64> {
        let Found::Answer {
            pass: in_full,
            said: by_full,
        } = full
        else {
            return None;
        };
        let Found::Answer { pass, said } = found else {
            return None;
        };
        Some(match (in_full, pass) {
            (true, true) => &mut self.both_right,
            (true, false) => &mut self.lost,
            (false, true) => &mut self.gained,
            (false, false) if said.is_some() && said == by_full => &mut self.wrong_alike,
            (false, false) => &mut self.wrong_otherwise,
        })
    }
}
