//! Prompts: a context, and questions about it.

use crate::{EvalError, Plan, Task};
use kiv_haystack::{Haystack, HaystackSpec, NameSet, Needle, Prose};
use kiv_runtime::Model;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How an answer is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The first number in the answer must be this one.
    Number(String),
    /// The answer must begin with this text, whatever its case.
    Words(String),
}

impl Check {
    /// The right answer.
    #[must_use]
    pub fn expected(&self) -> &str {
        match self {
            Self::Number(text) | Self::Words(text) => text,
        }
    }

    /// Whether `answer` is right.
    #[must_use]
    pub fn passes(&self, answer: &str) -> bool {
        match self {
            Self::Number(number) => {
                let digits = answer.trim_start_matches(|c: char| !c.is_ascii_digit());
                let end = digits
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(digits.len());
                digits[..end] == **number
            }
            Self::Words(words) => answer
                .trim_start()
                .to_lowercase()
                .starts_with(&words.to_lowercase()),
        }
    }
}

/// A question about a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Where its answer is, in parts per million of the context, if anywhere.
    pub depth_ppm: Option<u32>,
    /// The text that follows the context.
    pub text: String,
    /// How the answer is judged.
    pub check: Check,
}

/// A context and its questions.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The text.
    pub context: String,
    /// What is asked, each time of the bare context.
    pub questions: Vec<Question>,
    /// Text for teacher forcing (`kld`): what follows the context.
    pub continuation: String,
}

/// Prompts per policy and length.
pub(crate) fn n_prompts(plan: &Plan) -> usize {
    match plan.task {
        // One context holds all needles of all depths.
        Task::Needle | Task::Phonebook | Task::Recall | Task::Kld => 1,
        Task::Passkey => plan.samples * plan.depths.len(),
        Task::Facts | Task::Count | Task::Track => plan.samples,
    }
}

/// Prompt number `number` of a length.
pub(crate) fn prompt(
    model: &Model,
    plan: &Plan,
    n_ctx: usize,
    number: usize,
) -> Result<Prompt, EvalError> {
    let seed = plan
        .seed
        .wrapping_mul(1_000_003)
        .wrapping_add(number as u64);
    let mut maker = Maker {
        model,
        n_ctx,
        rng: ChaCha8Rng::seed_from_u64(seed),
        seed,
    };
    match plan.task {
        Task::Needle => maker.needles(&plan.depths, plan.samples),
        Task::Passkey => Ok(maker.passkey(plan.depths[number % plan.depths.len()])),
        Task::Phonebook => maker.phonebook(plan.samples * 10),
        Task::Facts => maker.needles(
            &(0..10)
                .map(|i| 0.05 + 0.1 * f64::from(i))
                .collect::<Vec<_>>(),
            1,
        ),
        Task::Count => maker.count(if number.is_multiple_of(2) { 4 } else { 47 }),
        Task::Track => maker.track(1 + number % 4),
        Task::Recall => maker.needles(&plan.depths, 1),
        Task::Kld => maker.continuation(&plan.depths),
    }
}

struct Maker<'a> {
    model: &'a Model,
    n_ctx: usize,
    rng: ChaCha8Rng,
    seed: u64,
}

fn ppm(depth: f64) -> Option<u32> {
    Some((depth * 1e6).round() as u32)
}

impl Maker<'_> {
    fn count_tokens(&self, text: &str) -> usize {
        self.model.tokenize(text, false).len()
    }

    fn haystack(&self, depths: &[f64], per_depth: usize) -> Result<Haystack, EvalError> {
        // One token is the start of text.
        let mut spec = HaystackSpec::new(self.seed, self.n_ctx.saturating_sub(1), depths.to_vec());
        spec.needles_per_depth = per_depth;
        Haystack::build(&spec, &mut |text| self.count_tokens(text))
            .map_err(EvalError::haystack(self.n_ctx))
    }

    fn needles(&mut self, depths: &[f64], per_depth: usize) -> Result<Prompt, EvalError> {
        let haystack = self.haystack(depths, per_depth)?;
        let questions = haystack.needles.iter().map(|placed| Question {
            depth_ppm: ppm(placed.depth),
            text: placed.needle.question.clone(),
            check: Check::Number(placed.needle.code.clone()),
        });
        Ok(Prompt {
            questions: questions.collect(),
            context: haystack.text,
            continuation: String::new(),
        })
    }

    /// Repeated filler with one key, as Quest's protocol has it.
    fn passkey(&mut self, depth: f64) -> Prompt {
        let filler = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";
        let key = self.rng.random_range(10_000..=50_000).to_string();
        let task = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. ";
        let fact = format!("The pass key is {key}. Remember it. {key} is the pass key. ");
        let room = self
            .n_ctx
            .saturating_sub(self.count_tokens(&(task.to_owned() + &fact)) + 1);
        let repeats = room / self.count_tokens(filler).max(1);
        let before = (repeats as f64 * depth).round() as usize;
        let context = task.to_owned()
            + &filler.repeat(before)
            + &fact
            + &filler.repeat(repeats - before.min(repeats));
        let question = Question {
            depth_ppm: ppm(depth),
            text: "\nWhat is the pass key? The pass key is".to_owned(),
            check: Check::Number(key),
        };
        Prompt {
            context,
            questions: vec![question],
            continuation: String::new(),
        }
    }

    /// As many entries as fit.
    fn phonebook(&mut self, asked: usize) -> Result<Prompt, EvalError> {
        let entry = |n: &Needle| format!("The phone number of {} is {}.\n", n.name, n.code);
        let too_small = || EvalError::Prompt {
            n_ctx: self.n_ctx,
            why: "no entry fits".to_owned(),
        };
        let capacity = NameSet::Eval.capacity().min(80_000);
        let sample = Needle::generate(self.seed, NameSet::Eval, 8)
            .map_err(EvalError::haystack(self.n_ctx))?;
        let longest = sample
            .iter()
            .map(|n| self.count_tokens(&entry(n)))
            .max()
            .unwrap_or(1);
        let most = (self.n_ctx / longest * 2).clamp(1, capacity);
        let entries = Needle::generate(self.seed, NameSet::Eval, most)
            .map_err(EvalError::haystack(self.n_ctx))?;
        let (mut context, mut used, mut kept) = (String::new(), 1, 0);
        for needle in &entries {
            let line = entry(needle);
            used += self.count_tokens(&line);
            if used > self.n_ctx {
                break;
            }
            context += &line;
            kept += 1;
        }
        if kept == 0 {
            return Err(too_small());
        }
        let mut order: Vec<usize> = (0..kept).collect();
        order.shuffle(&mut self.rng);
        let questions = order.into_iter().take(asked).map(|i| Question {
            depth_ppm: ppm(i as f64 / kept as f64),
            text: format!(
                "\nWhat is the phone number of {0}? The phone number of {0} is",
                entries[i].name
            ),
            check: Check::Number(entries[i].code.clone()),
        });
        Ok(Prompt {
            questions: questions.collect(),
            context,
            continuation: String::new(),
        })
    }

    /// Prose with lines scattered evenly through it.
    fn scattered(&mut self, lines: &[String]) -> String {
        let lines_len: usize = lines.iter().map(|l| self.count_tokens(l) + 1).sum();
        let room = self.n_ctx.saturating_sub(lines_len + 1);
        let mut sentences = Vec::new();
        let mut prose = Prose::new(self.seed);
        let mut used = 0;
        'fill: loop {
            for sentence in prose.next_sentences() {
                used += self.count_tokens(&sentence) + 1;
                if used > room {
                    break 'fill;
                }
                sentences.push(sentence);
            }
        }
        // Each line has its own stretch of the text, at a random place in it.
        let stretch = sentences.len() / lines.len().max(1);
        for (i, line) in lines.iter().enumerate().rev() {
            let at = i * stretch + self.rng.random_range(0..stretch.max(1));
            sentences.insert(at.min(sentences.len()), line.clone());
        }
        sentences.join(" ")
    }

    fn count(&mut self, n: usize) -> Result<Prompt, EvalError> {
        let records = Needle::generate(self.seed, NameSet::Eval, n)
            .map_err(EvalError::haystack(self.n_ctx))?;
        let lines: Vec<String> = (1..)
            .zip(&records)
            .map(|(i, r)| format!("Record {i}: {} paid {}.", r.name, r.code))
            .collect();
        let question = Question {
            depth_ppm: None,
            text: "\nHow many records are in the text? The number of records is".to_owned(),
            check: Check::Number(n.to_string()),
        };
        Ok(Prompt {
            context: self.scattered(&lines),
            questions: vec![question],
            continuation: String::new(),
        })
    }

    /// A chain of aliases that ends at a name with a code.
    fn track(&mut self, hops: usize) -> Result<Prompt, EvalError> {
        let names = Needle::generate(self.seed, NameSet::Eval, hops + 1)
            .map_err(EvalError::haystack(self.n_ctx))?;
        let mut lines: Vec<String> = names
            .windows(2)
            .map(|pair| format!("The alias of {} is {}.", pair[0].name, pair[1].name))
            .collect();
        let last = &names[hops];
        lines.push(last.sentence.clone());
        lines.shuffle(&mut self.rng);
        // The chain is asked for step by step, as the model was taught: each
        // answer is the next question's name.
        let mut text = format!(
            "\nWhat is the secret code of the alias of {}?",
            names[0].name
        );
        for pair in names.windows(2) {
            text += &format!(" The alias of {} is {}.", pair[0].name, pair[1].name);
        }
        text += &format!(" The secret code of {} is", last.name);
        let mut questions: Vec<Question> = names
            .windows(2)
            .map(|pair| Question {
                depth_ppm: None,
                text: format!(
                    "\nWhat is the alias of {0}? The alias of {0} is",
                    pair[0].name
                ),
                check: Check::Words(pair[1].name.clone()),
            })
            .collect();
        questions.push(Question {
            depth_ppm: None,
            text,
            check: Check::Number(last.code.clone()),
        });
        Ok(Prompt {
            context: self.scattered(&lines),
            questions,
            continuation: String::new(),
        })
    }

    /// Needles, and a text after them that needs them: prose, then every
    /// question with its right answer.
    fn continuation(&mut self, depths: &[f64]) -> Result<Prompt, EvalError> {
        let mut prompt = self.needles(depths, 1)?;
        let mut text = String::new();
        for (paragraph, question) in Prose::new(self.seed ^ 0x5bd1).zip(&prompt.questions) {
            let first = paragraph.split_inclusive(". ").next().unwrap_or_default();
            text += &format!("\n{first}{} {}.", question.text, question.check.expected());
        }
        prompt.continuation = text;
        Ok(prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_whole() {
        let number = Check::Number("4821".to_owned());
        assert!(number.passes(" 4821."));
        assert!(number.passes(" is 4821"));
        assert!(!number.passes(" 48213"));
        assert!(!number.passes(" 482"));
        assert!(!number.passes(""));
        let words = Check::Words("Amber Falcon".to_owned());
        assert!(words.passes(" amber falcon."));
        assert!(!words.passes(" Amber"));
    }
}
