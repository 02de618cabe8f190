//! Prompts: a context, and questions about it.

use crate::stations::{Source, Spec};
use crate::{EvalError, Given, Plan, Task};
use kiv_haystack::{Haystack, HaystackSpec, NameSet, Needle, PlacedNeedle, Prose};
use kiv_runtime::Model;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Most tokens of an answer, unless the right one may be longer.
const ANSWER: usize = 16;

/// Facts of the task that scatters them.
const FACTS: u32 = 10;

/// Steps of the longest chain of aliases.
const HOPS: usize = 4;

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

/// How large a task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Entries of the phone book.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<usize>,
    /// Records to be counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<usize>,
    /// Steps of the chain of aliases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hops: Option<usize>,
}

/// A question about a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What it is asked for.
    pub task: Task,
    /// Where its answer is, in parts per million of the context, if anywhere.
    pub depth_ppm: Option<u32>,
    /// How large the task is.
    pub sizes: Sizes,
    /// The text that follows the context.
    pub text: String,
    /// How the answer is judged.
    pub check: Check,
    /// Most tokens of an answer.
    pub answer_tokens: usize,
    /// Whether attention is measured while it is read ([`Task::Recall`]).
    pub probe: bool,
}

impl Question {
    fn new(task: Task, text: String, check: Check) -> Self {
        Self {
            task,
            depth_ppm: None,
            sizes: Sizes::default(),
            text,
            check,
            answer_tokens: ANSWER,
            probe: false,
        }
    }
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

impl Prompt {
    fn new(context: String, questions: Vec<Question>) -> Self {
        Self {
            context,
            questions,
            continuation: String::new(),
        }
    }
}

/// The prompt of a context: the same whichever of its tasks are judged.
pub(crate) fn prompt(model: &Model, plan: &Plan, spec: &Spec) -> Result<Prompt, EvalError> {
    let mut maker = Maker::new(model, plan, spec.n_ctx, spec.number);
    match spec.source {
        Source::Haystack => maker.haystack(&plan.depths, plan.samples),
        Source::Passkey { depth } => Ok(maker.passkey(depth)),
        Source::Phonebook { entries: None } => maker.phonebook(plan.samples * 10),
        Source::Phonebook { entries: Some(n) } => {
            let entries = maker.entries(n)?;
            Ok(maker.ask_phonebook(&entries, plan.samples * 10))
        }
        Source::Count { records } => maker.count(records),
        Source::Track => maker.track(),
        Source::Given => Ok(given(model, &plan.prompts[spec.number])),
    }
}

/// Tokens of a phone book of so many entries.
pub(crate) fn phonebook_tokens(
    model: &Model,
    plan: &Plan,
    entries: usize,
) -> Result<usize, EvalError> {
    let maker = Maker::new(model, plan, 0, 0);
    let lines: Vec<String> = maker.entries(entries)?.iter().map(entry).collect();
    Ok(1 + lines.iter().map(|l| maker.count_tokens(l)).sum::<usize>())
}

fn entry(n: &Needle) -> String {
    format!("The phone number of {} is {}.\n", n.name, n.code)
}

/// A prompt from outside.
fn given(model: &Model, given: &Given) -> Prompt {
    let questions = given.questions.iter().map(|(text, answer)| {
        let is_number = answer.bytes().all(|b| b.is_ascii_digit());
        let check = if is_number {
            Check::Number(answer.clone())
        } else {
            Check::Words(answer.clone())
        };
        let mut question = Question::new(Task::Prompts, text.clone(), check);
        question.answer_tokens = ANSWER.max(model.tokenize(answer, false).len() + 8);
        question
    });
    Prompt::new(given.context.clone(), questions.collect())
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

impl<'a> Maker<'a> {
    fn new(model: &'a Model, plan: &Plan, n_ctx: usize, number: usize) -> Self {
        let seed = plan
            .seed
            .wrapping_mul(1_000_003)
            .wrapping_add(number as u64);
        Self {
            model,
            n_ctx,
            rng: ChaCha8Rng::seed_from_u64(seed),
            seed,
        }
    }

    fn count_tokens(&self, text: &str) -> usize {
        self.model.tokenize(text, false).len()
    }

    /// Prose with needles at `depths`, `samples` of each, and ten times
    /// `samples` facts scattered over it; after it a text that needs the
    /// needles: prose, then questions with their right answers.
    fn haystack(&mut self, depths: &[f64], samples: usize) -> Result<Prompt, EvalError> {
        let scattered = (0..FACTS).map(|i| (f64::from(i) + 0.5) / f64::from(FACTS));
        let mut places: Vec<(f64, Task, bool)> = Vec::new();
        for sample in 0..samples {
            places.extend(depths.iter().map(|d| (*d, Task::Needle, sample == 0)));
            places.extend(scattered.clone().map(|d| (d, Task::Facts, false)));
        }
        places.sort_by(|a, b| a.0.total_cmp(&b.0));
        let at = places.iter().map(|p| p.0).collect();
        // One token is the start of text.
        let spec = HaystackSpec::new(self.seed, self.n_ctx.saturating_sub(1), at);
        let haystack = Haystack::build(&spec, &mut |text| self.count_tokens(text))
            .map_err(EvalError::haystack(self.n_ctx))?;
        let question = |(placed, (_, task, probe)): (&PlacedNeedle, &(f64, Task, bool))| {
            let check = Check::Number(placed.needle.code.clone());
            Question {
                depth_ppm: ppm(placed.depth),
                probe: *probe,
                ..Question::new(*task, placed.needle.question.clone(), check)
            }
        };
        // Needles come in the order of the places.
        let questions: Vec<Question> = haystack.needles.iter().zip(&places).map(question).collect();
        let mut continuation = String::new();
        let probes = questions.iter().filter(|q| q.probe);
        for (paragraph, probe) in Prose::new(self.seed ^ 0x5bd1).zip(probes) {
            let first = paragraph.split_inclusive(". ").next().unwrap_or_default();
            continuation += &format!("\n{first}{} {}.", probe.text, probe.check.expected());
        }
        Ok(Prompt {
            context: haystack.text,
            questions,
            continuation,
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
        let text = "\nWhat is the pass key? The pass key is".to_owned();
        let question = Question {
            depth_ppm: ppm(depth),
            ..Question::new(Task::Passkey, text, Check::Number(key))
        };
        Prompt::new(context, vec![question])
    }

    /// A phone book of as many entries as fit.
    fn phonebook(&mut self, asked: usize) -> Result<Prompt, EvalError> {
        let capacity = NameSet::Eval.capacity().min(80_000);
        let sample = Needle::generate(self.seed, NameSet::Eval, 8)
            .map_err(EvalError::haystack(self.n_ctx))?;
        let lengths = sample.iter().map(|n| self.count_tokens(&entry(n)));
        let longest = lengths.max().unwrap_or(1);
        let most = (self.n_ctx / longest * 2).clamp(1, capacity);
        let mut entries = Needle::generate(self.seed, NameSet::Eval, most)
            .map_err(EvalError::haystack(self.n_ctx))?;
        let mut used = 1;
        let fits = |n: &Needle| {
            used += self.count_tokens(&entry(n));
            used <= self.n_ctx
        };
        let kept = entries.iter().map(fits).take_while(|fits| *fits).count();
        entries.truncate(kept);
        if kept == 0 {
            return Err(EvalError::Prompt {
                n_ctx: self.n_ctx,
                why: "no entry fits".to_owned(),
            });
        }
        Ok(self.ask_phonebook(&entries, asked))
    }

    /// So many entries.
    fn entries(&self, n: usize) -> Result<Vec<Needle>, EvalError> {
        // Numbers have five digits: 90,000 of them.
        let available = NameSet::Eval.capacity().min(80_000);
        if n > available {
            return Err(EvalError::Phonebook {
                entries: n,
                why: format!("there are {available} different names (--entries)"),
            });
        }
        Needle::generate(self.seed, NameSet::Eval, n).map_err(|e| EvalError::Phonebook {
            entries: n,
            why: e.to_string(),
        })
    }

    fn ask_phonebook(&mut self, entries: &[Needle], asked: usize) -> Prompt {
        let n = entries.len();
        let mut order: Vec<usize> = (0..n).collect();
        order.shuffle(&mut self.rng);
        let question = |i: usize| {
            let (name, code) = (&entries[i].name, &entries[i].code);
            let text =
                format!("\nWhat is the phone number of {name}? The phone number of {name} is");
            Question {
                depth_ppm: ppm(i as f64 / n as f64),
                sizes: Sizes {
                    entries: Some(n),
                    ..Sizes::default()
                },
                ..Question::new(Task::Phonebook, text, Check::Number(code.clone()))
            }
        };
        let questions = order.into_iter().take(asked).map(question).collect();
        Prompt::new(entries.iter().map(entry).collect(), questions)
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
        let text = "\nHow many records are in the text? The number of records is".to_owned();
        let question = Question {
            sizes: Sizes {
                records: Some(n),
                ..Sizes::default()
            },
            ..Question::new(Task::Count, text, Check::Number(n.to_string()))
        };
        Ok(Prompt::new(self.scattered(&lines), vec![question]))
    }

    /// Chains of aliases of one to four steps, each ending at a name with a
    /// code.
    fn track(&mut self) -> Result<Prompt, EvalError> {
        let n_names = (1..=HOPS).map(|hops| hops + 1).sum();
        let mut names = Needle::generate(self.seed, NameSet::Eval, n_names)
            .map_err(EvalError::haystack(self.n_ctx))?;
        let (mut lines, mut questions) = (Vec::new(), Vec::new());
        for hops in 1..=HOPS {
            let chain = names.split_off(names.len() - hops - 1);
            lines.extend(
                chain
                    .windows(2)
                    .map(|pair| format!("The alias of {} is {}.", pair[0].name, pair[1].name)),
            );
            lines.push(chain[hops].sentence.clone());
            let sizes = Sizes {
                hops: Some(hops),
                ..Sizes::default()
            };
            questions.extend(
                ask_chain(&chain)
                    .into_iter()
                    .map(|q| Question { sizes, ..q }),
            );
        }
        lines.shuffle(&mut self.rng);
        Ok(Prompt::new(self.scattered(&lines), questions))
    }
}

/// A chain is asked for step by step, as the model was taught: each answer is
/// the next question's name.
fn ask_chain(chain: &[Needle]) -> Vec<Question> {
    let mut questions = Vec::new();
    let mut text = format!(
        "\nWhat is the secret code of the alias of {}?",
        chain[0].name
    );
    for pair in chain.windows(2) {
        let (name, alias) = (&pair[0].name, &pair[1].name);
        text += &format!(" The alias of {name} is {alias}.");
        let step = format!("\nWhat is the alias of {name}? The alias of {name} is");
        let check = Check::Words(alias.clone());
        questions.push(Question::new(Task::Track, step, check));
    }
    let last = &chain[chain.len() - 1];
    text += &format!(" The secret code of {} is", last.name);
    let check = Check::Number(last.code.clone());
    questions.push(Question::new(Task::Track, text, check));
    questions
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
