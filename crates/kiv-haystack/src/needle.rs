//! Facts to hide and to ask for.

use std::collections::BTreeSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::haystack::HaystackError;
use crate::lexicon::{EVAL_FIRST, EVAL_SECOND, TRAIN_FIRST, TRAIN_SECOND, entries};
use crate::prose::Dice;

/// Which half of the name words needles are named from. The halves share no
/// word, so that names asked for in an evaluation were never trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameSet {
    /// For training a model.
    Train,
    /// For demonstrations and evaluations.
    #[default]
    Eval,
}

impl NameSet {
    /// The first words of names (colours, gems, adjectives).
    pub fn first_words(self) -> impl Iterator<Item = &'static str> {
        entries(match self {
            Self::Train => TRAIN_FIRST,
            Self::Eval => EVAL_FIRST,
        })
    }

    /// The second words of names (animals, things).
    pub fn second_words(self) -> impl Iterator<Item = &'static str> {
        entries(match self {
            Self::Train => TRAIN_SECOND,
            Self::Eval => EVAL_SECOND,
        })
    }

    /// How many different names there are.
    pub fn capacity(self) -> usize {
        self.first_words().count() * self.second_words().count()
    }
}

/// A fact, and the question that asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needle {
    /// Two capitalised words, such as `Amber Falcon`.
    pub name: String,
    /// Five digits, the first of them not 0.
    pub code: String,
    /// What goes into the text: `The secret code of Amber Falcon is 48213.`
    pub sentence: String,
    /// What follows the text; the answer is then a space and the code.
    pub question: String,
}

impl Needle {
    /// The needle that gives `name` the `code`.
    pub fn new(name: impl Into<String>, code: impl Into<String>) -> Self {
        let (name, code) = (name.into(), code.into());
        Self {
            sentence: format!("The secret code of {name} is {code}."),
            // A model may be trained on these exact words.
            question: format!("\nWhat is the secret code of {name}? The secret code of {name} is"),
            name,
            code,
        }
    }

    /// `count` needles with distinct names and distinct codes.
    ///
    /// Two in five share one word with another needle (more once the words run
    /// out): whoever answers must have read the whole name.
    ///
    /// # Errors
    ///
    /// [`HaystackError::TooManyNeedles`] above [`NameSet::capacity`].
    pub fn generate(seed: u64, names: NameSet, count: usize) -> Result<Vec<Self>, HaystackError> {
        let capacity = names.capacity();
        if count > capacity {
            return Err(HaystackError::TooManyNeedles {
                wanted: count,
                available: capacity,
            });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Apart from the prose of the same seed.
        rng.set_stream(1);
        let mut dice = Dice(rng);
        let words: [Vec<&str>; 2] = [
            names.first_words().collect(),
            names.second_words().collect(),
        ];
        let mut unused = words.clone();
        let mut pairs: Vec<[&str; 2]> = Vec::with_capacity(count);
        let mut taken = BTreeSet::new();
        while pairs.len() < count {
            let shares = matches!(pairs.len() % 5, 1 | 3);
            let mut pair = [0, 1].map(|side| {
                let from = if unused[side].is_empty() {
                    &words[side]
                } else {
                    &unused[side]
                };
                from[dice.below(from.len())]
            });
            if shares {
                let side = dice.below(2);
                pair[side] = pairs[dice.below(pairs.len())][side];
            }
            if taken.insert(pair) {
                for side in 0..2 {
                    unused[side].retain(|word| *word != pair[side]);
                }
                pairs.push(pair);
            }
        }
        // Otherwise those that share a word would often be neighbours.
        for last in (1..pairs.len()).rev() {
            pairs.swap(last, dice.below(last + 1));
        }
        let mut codes = BTreeSet::new();
        Ok(pairs
            .into_iter()
            .map(|[first, second]| {
                let mut code = 10_000 + dice.below(90_000);
                while !codes.insert(code) {
                    code = 10_000 + dice.below(90_000);
                }
                Self::new(format!("{first} {second}"), code.to_string())
            })
            .collect())
    }

    /// Whether `answer`, what a model wrote after the question, begins with the
    /// code and no further digit.
    pub fn is_answered_by(&self, answer: &str) -> bool {
        answer
            .trim_start()
            .strip_prefix(self.code.as_str())
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
    }
}
