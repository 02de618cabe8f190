//! Paragraphs without end.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::grammar::{Case, Cast, GRAMMAR, Grammar, Part, Template, Who};
use crate::lexicon::{FEATURE_FORMS, MEN, PLACE_ENDS, PLACE_STARTS, SURNAMES, WOMEN, entries};
use crate::morph;

/// From this depth on a rule takes its first alternative, which is plain.
const DEPTH: usize = 3;

/// Names of people and places, split once per [`Prose`].
struct Proper {
    women: Vec<&'static str>,
    men: Vec<&'static str>,
    surnames: Vec<&'static str>,
    place_starts: Vec<&'static str>,
    place_ends: Vec<&'static str>,
}

/// An endless iterator of English paragraphs, the same for a seed everywhere.
///
/// Each paragraph has a topic, a place and one or two people who recur, by name
/// or by pronoun. A paragraph holds no line break and no run of four digits.
///
/// ```
/// let mut prose = kiv_haystack::Prose::new(7);
/// let first = prose.next().unwrap();
/// assert_eq!(kiv_haystack::Prose::new(7).next().unwrap(), first);
/// ```
pub struct Prose {
    rng: Dice,
    proper: Proper,
    /// The latest topics, which the next paragraph avoids.
    recent_topics: [usize; 3],
}

impl Prose {
    /// Prose for `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Dice(ChaCha8Rng::seed_from_u64(seed)),
            proper: Proper {
                women: entries(WOMEN).collect(),
                men: entries(MEN).collect(),
                surnames: entries(SURNAMES).collect(),
                place_starts: entries(PLACE_STARTS).collect(),
                place_ends: entries(PLACE_ENDS).collect(),
            },
            recent_topics: [usize::MAX; 3],
        }
    }

    /// The next paragraph as its sentences, for callers that put something
    /// between them; [`Iterator::next`] joins them with spaces.
    pub fn next_sentences(&mut self) -> Vec<String> {
        let grammar: &Grammar = &GRAMMAR;
        let mut topic = self.rng.below(grammar.topics.len());
        while self.recent_topics.contains(&topic) {
            topic = self.rng.below(grammar.topics.len());
        }
        self.recent_topics.rotate_right(1);
        self.recent_topics[0] = topic;
        let topic = &grammar.topics[topic];

        let scene = Scene::draw(&mut self.rng, &self.proper, topic.list, topic.adjectives);
        let mut writer = Writer {
            grammar,
            rng: &mut self.rng,
            scene,
            used: Vec::new(),
            line: Line::default(),
        };

        let n_body = 2 + writer.rng.below(4) + writer.rng.below(4);
        let mut body: Vec<&Template> = topic.body.iter().collect();
        let mut sentences = Vec::with_capacity(n_body + 2);
        let open = writer.rng.pick(&topic.open);
        sentences.push(writer.sentence(open, false));
        for _ in 0..n_body.min(body.len()) {
            let template = body.swap_remove(writer.rng.below(body.len()));
            sentences.push(writer.sentence(template, true));
        }
        if writer.rng.below(4) > 0 {
            let close = writer.rng.pick(&topic.close);
            sentences.push(writer.sentence(close, false));
        }
        sentences
    }
}

impl Iterator for Prose {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        Some(self.next_sentences().join(" "))
    }
}

/// The random numbers. Not `rand`'s ranges: their algorithm may change between
/// versions, and a seed has to mean the same text for good.
pub(crate) struct Dice(pub(crate) ChaCha8Rng);

impl Dice {
    /// A number below `n`, which must not be 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// One of `from`, which must not be empty.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

struct Person {
    first: &'static str,
    last: &'static str,
    woman: bool,
    /// The sentence of the latest mention.
    mentioned: Option<usize>,
}

/// What stays the same through a paragraph.
struct Scene {
    people: [Person; 2],
    place: String,
    other_place: String,
    feature: String,
    topic: (usize, usize),
    topic_adjective: (usize, usize),
    topic_mentioned: bool,
    /// Where each list's recurring words begin.
    palette: usize,
    sentence: usize,
}

impl Scene {
    fn draw(rng: &mut Dice, proper: &Proper, list: usize, adjectives: usize) -> Self {
        // The second person is of the other sex, so that "she" is never in doubt.
        let woman_first = rng.below(2) == 0;
        let mut person = |woman| Person {
            first: rng.pick::<&str>(if woman { &proper.women } else { &proper.men }),
            last: rng.pick::<&str>(&proper.surnames),
            woman,
            mentioned: None,
        };
        let people = [person(woman_first), person(!woman_first)];
        let mut place = || {
            let start = rng.pick(&proper.place_starts);
            format!("{start}{}", rng.pick(&proper.place_ends))
        };
        let (home, mut other) = (place(), place());
        while other == home {
            other = place();
        }
        let mut stem = place();
        while stem == home || stem == other {
            stem = place();
        }
        let feature = rng.pick(FEATURE_FORMS).replace('#', &stem);
        let noun = rng.below(GRAMMAR.lists[list].words.len());
        let adjective = rng.below(GRAMMAR.lists[adjectives].words.len());
        Self {
            people,
            place: home,
            other_place: other,
            feature,
            topic: (list, noun),
            topic_adjective: (adjectives, adjective),
            topic_mentioned: false,
            palette: rng.below(1 << 16),
            sentence: 0,
        }
    }
}

/// The sentence in the making.
#[derive(Default)]
struct Line {
    text: String,
    capital: bool,
    lower: bool,
    article: bool,
}

impl Line {
    fn push(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if std::mem::take(&mut self.article) {
            self.push(morph::article(text));
        }
        let lower = std::mem::take(&mut self.lower);
        // A quotation mark leaves the capital to what follows it.
        let letter = text.find(|c: char| c.is_ascii_alphabetic());
        match letter {
            Some(at) if lower || self.capital => {
                let first = text.as_bytes()[at] as char;
                let upper = std::mem::take(&mut self.capital);
                self.text.push_str(&text[..at]);
                self.text.push(if upper {
                    first.to_ascii_uppercase()
                } else {
                    first.to_ascii_lowercase()
                });
                self.text.push_str(&text[at + 1..]);
            }
            _ => self.text.push_str(text),
        }
    }
}

struct Writer<'a> {
    grammar: &'static Grammar,
    rng: &'a mut Dice,
    scene: Scene,
    /// Words of the current sentence, which are not drawn again.
    used: Vec<(usize, usize)>,
    line: Line,
}

impl Writer<'_> {
    fn sentence(&mut self, template: &Template, may_front: bool) -> String {
        self.used.clear();
        self.used.push(self.scene.topic);
        self.line = Line {
            text: String::with_capacity(160),
            capital: true,
            ..Line::default()
        };
        let takes_front = match template.first() {
            Some(Part::Cast(Cast::Person(_, Case::Subject))) => true,
            Some(Part::Text(text)) => text.starts_with("The "),
            _ => false,
        };
        if may_front && takes_front && self.rng.below(4) == 0 {
            self.rule(self.grammar.front, 0);
            self.line.lower = matches!(template.first(), Some(Part::Text(_)));
        }
        self.render(template, 0);
        self.scene.sentence += 1;
        std::mem::take(&mut self.line.text)
    }

    fn rule(&mut self, rule: usize, depth: usize) {
        let grammar = self.grammar;
        let alternatives = &grammar.rules[rule];
        let choice = if depth >= DEPTH {
            0
        } else {
            self.rng.below(alternatives.len())
        };
        self.render(&alternatives[choice], depth + 1);
    }

    fn render(&mut self, template: &Template, depth: usize) {
        for part in template {
            match *part {
                Part::Text(text) => self.line.push(text),
                Part::Word { list, form } => self.word(list, form),
                Part::Rule(rule) => self.rule(rule, depth),
                Part::Cast(cast) => self.cast(cast),
                Part::Article => self.line.article = true,
                Part::Capital => self.line.capital = true,
                Part::Digits(n) => {
                    let least = if n == 2 { 12 } else { 100 };
                    let below = if n == 2 { 100 } else { 1000 };
                    let number = least + self.rng.below(below - least);
                    self.line.capital = false;
                    self.line.push(&number.to_string());
                }
            }
        }
    }

    fn word(&mut self, list: usize, form: usize) {
        let words = &self.grammar.lists[list].words;
        let mut choice = self.rng.below(words.len());
        // A quarter of the words come from a few that the paragraph comes back to.
        if self.rng.below(4) == 0 {
            choice = (self.scene.palette * (list + 1) + choice % 4) % words.len();
        }
        for _ in 0..4 {
            if !self.used.contains(&(list, choice)) {
                break;
            }
            choice = self.rng.below(words.len());
        }
        self.used.push((list, choice));
        self.line.push(&words[choice][form]);
    }

    fn cast(&mut self, cast: Cast) {
        match cast {
            Cast::Person(who, case) => self.person(who, case),
            Cast::Place => self.line.push(&self.scene.place),
            Cast::OtherPlace => self.line.push(&self.scene.other_place),
            Cast::Feature => self.line.push(&self.scene.feature),
            Cast::Topic | Cast::TopicDefinite => {
                let first = !std::mem::replace(&mut self.scene.topic_mentioned, true);
                if first && cast == Cast::Topic {
                    self.line.article = true;
                } else {
                    self.line.push("the ");
                }
                if first || cast == Cast::TopicDefinite || self.rng.below(4) == 0 {
                    let (list, adjective) = self.scene.topic_adjective;
                    self.line
                        .push(&self.grammar.lists[list].words[adjective][0]);
                    self.line.push(" ");
                }
                self.topic(0);
            }
            Cast::TopicNoun => self.topic(0),
            Cast::TopicPlural => self.topic(1),
        }
    }

    fn topic(&mut self, form: usize) {
        let (list, noun) = self.scene.topic;
        self.line.push(&self.grammar.lists[list].words[noun][form]);
    }

    fn person(&mut self, who: Who, case: Case) {
        let sentence = self.scene.sentence;
        let person = &mut self.scene.people[who as usize];
        let pronoun = match case {
            Case::Name => false,
            Case::Pronoun | Case::Reflexive => true,
            // Once named, a pronoun within the sentence and mostly in the next.
            _ => match person.mentioned {
                Some(at) if at == sentence => true,
                Some(at) if at + 1 == sentence => self.rng.below(3) > 0,
                _ => false,
            },
        };
        let first_mention = person.mentioned.is_none();
        person.mentioned = Some(sentence);
        if pronoun {
            let forms = if person.woman {
                ["she", "her", "her", "herself"]
            } else {
                ["he", "him", "his", "himself"]
            };
            self.line.push(match case {
                Case::Object => forms[1],
                Case::Possessive => forms[2],
                Case::Reflexive => forms[3],
                _ => forms[0],
            });
            return;
        }
        self.line.push(person.first);
        if first_mention {
            self.line.push(" ");
            self.line.push(person.last);
        }
        if case == Case::Possessive {
            self.line.push("'s");
        }
    }
}
