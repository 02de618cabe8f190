//! Prose of a given number of tokens with needles at given depths.

use crate::needle::{NameSet, Needle};
use crate::prose::Prose;

/// How many more sentences are tried for the room that is left at the end.
const LAST_TRIES: usize = 64;

/// What a haystack should be.
#[derive(Clone, Debug, PartialEq)]
pub struct HaystackSpec {
    /// The same seed, spec and tokenizer give the same haystack.
    pub seed: u64,
    /// The most tokens that it may have.
    pub n_tokens: usize,
    /// Where needles go: 0.0 is the beginning, 1.0 the end. In any order.
    pub depths: Vec<f64>,
    /// Needles for each depth, a sentence or more apart where there is room.
    pub needles_per_depth: usize,
    /// The half of the name words that needles are named from.
    pub names: NameSet,
}

impl HaystackSpec {
    /// One needle at each depth, with names for evaluation.
    pub fn new(seed: u64, n_tokens: usize, depths: Vec<f64>) -> Self {
        Self {
            seed,
            n_tokens,
            depths,
            needles_per_depth: 1,
            names: NameSet::Eval,
        }
    }
}

/// A needle and where it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedNeedle {
    /// The needle.
    pub needle: Needle,
    /// The depth that was asked for.
    pub depth: f64,
    /// Byte offset in the text of the needle's sentence.
    pub offset: usize,
    /// Tokens before the sentence, as counted piece by piece.
    pub token: usize,
}

/// Why there is no haystack.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum HaystackError {
    /// The needles alone are longer than the haystack.
    #[error("{n_tokens} tokens cannot hold the needles, which need {needed}")]
    TooSmall {
        /// The length asked for.
        n_tokens: usize,
        /// Tokens of all needles.
        needed: usize,
    },
    /// A depth is not a fraction.
    #[error("depth {depth} is not between 0 and 1")]
    Depth {
        /// The depth asked for.
        depth: f64,
    },
    /// There are fewer names than needles.
    #[error("{wanted} needles asked for, but there are names for {available} only")]
    TooManyNeedles {
        /// Needles asked for.
        wanted: usize,
        /// Distinct names.
        available: usize,
    },
}

/// Generated prose with needles in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Haystack {
    /// The text: paragraphs with an empty line between them.
    pub text: String,
    /// The needles, in the order of the text.
    pub needles: Vec<PlacedNeedle>,
    /// The sum of what the caller's tokenizer counted for the pieces.
    pub n_tokens: usize,
}

impl Haystack {
    /// Builds a haystack.
    ///
    /// `count` tells how many tokens a piece of text has. It is called once for
    /// each sentence, together with the space or empty line before it, so that
    /// the work grows with the length and no faster. The sum never exceeds
    /// `n_tokens`, and is below it by less than a sentence. A tokenizer may join
    /// the end of a piece to the beginning of the next, so the count of the
    /// whole text can differ by a little: who needs an exact bound counts again.
    ///
    /// # Errors
    ///
    /// - [`HaystackError::Depth`] for a depth outside 0..=1 (or not a number).
    /// - [`HaystackError::TooManyNeedles`] if the names do not suffice.
    /// - [`HaystackError::TooSmall`] if the needles do not fit into `n_tokens`.
    pub fn build(
        spec: &HaystackSpec,
        count: &mut dyn FnMut(&str) -> usize,
    ) -> Result<Self, HaystackError> {
        if let Some(&depth) = spec.depths.iter().find(|d| !(0.0..=1.0).contains(*d)) {
            return Err(HaystackError::Depth { depth });
        }
        let mut depths = spec.depths.clone();
        depths.sort_by(f64::total_cmp);
        let wanted = depths.len().saturating_mul(spec.needles_per_depth);
        let needles = Needle::generate(spec.seed, spec.names, wanted)?;
        let mut pending: Vec<Pending> = Vec::with_capacity(wanted);
        for (i, needle) in needles.into_iter().enumerate() {
            let depth = depths[i / spec.needles_per_depth];
            let mut piece = format!(" {}", needle.sentence);
            let mut cost = count(&piece);
            if i == 0 {
                // The first may open the text, where no space comes before it.
                cost = cost.max(count(&needle.sentence));
            }
            piece.remove(0);
            let target = (depth * spec.n_tokens as f64) as usize;
            pending.push(Pending {
                needle,
                depth,
                cost,
                target,
            });
        }
        let reserved: usize = pending.iter().map(|p| p.cost).sum();
        if reserved > spec.n_tokens {
            return Err(HaystackError::TooSmall {
                n_tokens: spec.n_tokens,
                needed: reserved,
            });
        }
        let mut builder = Builder {
            text: String::new(),
            placed: Vec::with_capacity(wanted),
            used: 0,
            reserved,
            n_tokens: spec.n_tokens,
            has_prose: false,
        };
        builder.fill(spec.seed, pending, count);
        Ok(Self {
            text: builder.text,
            needles: builder.placed,
            n_tokens: builder.used,
        })
    }
}

/// A needle that waits for its place.
struct Pending {
    needle: Needle,
    depth: f64,
    cost: usize,
    target: usize,
}

struct Builder {
    text: String,
    placed: Vec<PlacedNeedle>,
    used: usize,
    /// Tokens that the waiting needles will take.
    reserved: usize,
    n_tokens: usize,
    /// Needles that open the text belong to its first paragraph.
    has_prose: bool,
}

impl Builder {
    fn fill(&mut self, seed: u64, pending: Vec<Pending>, count: &mut dyn FnMut(&str) -> usize) {
        let mut prose = Prose::new(seed);
        let mut pending = pending.into_iter().peekable();
        let mut failures = 0;
        let mut piece = String::new();
        'text: loop {
            let mut new_paragraph = self.has_prose;
            for sentence in prose.next_sentences() {
                let mut fresh = true;
                while let Some(next) = pending.next_if(|next| self.is_due(next, fresh)) {
                    self.place(next);
                    fresh = false;
                }
                piece.clear();
                piece.push_str(match (self.text.is_empty(), new_paragraph) {
                    (true, _) => "",
                    (_, true) => "\n\n",
                    (_, false) => " ",
                });
                piece.push_str(&sentence);
                let cost = count(&piece);
                if self.used + self.reserved + cost > self.n_tokens {
                    failures += 1;
                    if failures == LAST_TRIES {
                        break 'text;
                    }
                    continue;
                }
                self.text.push_str(&piece);
                self.used += cost;
                self.has_prose = true;
                new_paragraph = false;
            }
        }
        for next in pending {
            self.place(next);
        }
    }

    /// Whether `next` belongs here. Of several at one boundary only the first
    /// (`fresh`) goes at once; others wait for the next sentence unless they
    /// would drift away from their depth.
    fn is_due(&self, next: &Pending, fresh: bool) -> bool {
        let slack = if fresh { 0 } else { self.n_tokens / 400 };
        self.used + next.cost / 2 >= next.target + slack
    }

    fn place(&mut self, next: Pending) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.placed.push(PlacedNeedle {
            depth: next.depth,
            offset: self.text.len(),
            token: self.used,
            needle: next.needle,
        });
        let needle = &self.placed[self.placed.len() - 1].needle;
        self.text.push_str(&needle.sentence);
        self.used += next.cost;
        self.reserved -= next.cost;
    }
}
