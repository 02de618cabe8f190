//! The best of very many scores, in one pass.

/// A score and whose it is, in one number: better ones are larger, and of equal ones
/// those with smaller numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Candidate(u64);

impl Candidate {
    fn new(score: f32, id: u32) -> Self {
        // Bits of floats without sign are in their order.
        let bits = score.to_bits();
        let ordered = if bits >> 31 == 0 {
            bits | 1 << 31
        } else {
            !bits
        };
        Self(u64::from(ordered) << 32 | u64::from(!id))
    }

    pub fn score(self) -> f32 {
        let ordered = (self.0 >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 {
            ordered & !(1 << 31)
        } else {
            !ordered
        })
    }

    pub fn id(self) -> u32 {
        !(self.0 as u32)
    }
}

/// The best that have been pushed. What comes is only compared with the worst of the
/// best as of the last thinning, so that few of many are ever moved.
#[derive(Clone, Debug, Default)]
pub(crate) struct Best {
    wanted: usize,
    least: f32,
    found: Vec<Candidate>,
}

impl Best {
    /// Begins anew, to find the best `wanted` that are not below `least`.
    pub fn want(&mut self, wanted: usize, least: f32) {
        self.wanted = wanted;
        self.least = least;
        self.found.clear();
    }

    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Lower scores cannot be among the best.
    pub fn least(&self) -> f32 {
        self.least
    }

    /// Whether there may be more among what is not below `floor`: fewer than wanted were found,
    /// and lower ones were not looked at.
    pub fn is_short(&self, floor: f32) -> bool {
        self.found.len() < self.wanted && self.least > floor
    }

    pub fn push(&mut self, score: f32, id: u32) {
        if score >= self.least {
            self.found.push(Candidate::new(score, id));
        }
    }

    /// Goes on with keys that were found elsewhere, as if `wanted` were and no score below
    /// `least` were among the best.
    pub fn resume(&mut self, wanted: usize, least: f32, keys: impl Iterator<Item = (f32, u32)>) {
        self.want(wanted, least);
        keys.for_each(|(score, id)| self.push(score, id));
        self.settle();
    }

    /// Puts what was found into the order of numbers.
    pub fn sort(&mut self) {
        self.found.sort_unstable_by_key(|key| key.id());
    }

    /// Drops what is not among the best if much has come, or as many as are wanted for the
    /// first time.
    pub fn thin(&mut self) {
        let is_first = self.least == f32::NEG_INFINITY && self.found.len() >= self.wanted;
        if is_first || self.found.len() / 2 > self.wanted {
            self.settle();
        }
    }

    /// Drops what is not among the best.
    pub fn settle(&mut self) {
        if self.wanted == 0 {
            self.found.clear();
            self.least = f32::INFINITY;
        } else if self.found.len() >= self.wanted {
            let at = self.found.len() - self.wanted;
            let (_, worst, _) = self.found.select_nth_unstable(at);
            self.least = worst.score();
            self.found.drain(..at);
        }
    }

    /// In no order before [`Best::sort`]; after [`Best::settle`] the best and no others.
    pub fn found(&self) -> &[Candidate] {
        &self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The same as sorting all.
        #[test]
        fn best_of_all(
            scores in prop::collection::vec(
                prop::sample::select(vec![-1e30f32, -1.5, -0.0, 0.0, 0.5, 2.0, 3.25]),
                0..400,
            ),
            wanted in 0usize..50,
            least in prop::sample::select(vec![f32::NEG_INFINITY, -1.5, 0.25, f32::INFINITY]),
            batch in 1usize..80,
        ) {
            let mut best = Best::default();
            best.want(wanted, least);
            let all: Vec<(f32, u32)> = scores.iter().copied().zip(7..).collect();
            for some in all.chunks(batch) {
                some.iter().for_each(|(score, id)| best.push(*score, *id));
                best.thin();
            }
            best.settle();
            let sort = |all: &mut Vec<(f32, u32)>| {
                all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            };
            let mut sorted = all;
            sorted.retain(|(score, _)| *score >= least);
            sort(&mut sorted);
            sorted.truncate(wanted);
            let mut found: Vec<(f32, u32)> =
                best.found().iter().map(|c| (c.score(), c.id())).collect();
            sort(&mut found);
            prop_assert_eq!(found, sorted);
        }
    }
}
