//! Templates, compiled once.
//!
//! A template is text with slots in braces:
//!
//! - `{thing}`, `{thing:s}`, `{vt:d}`: a word of a list, in a form;
//! - `{np}`: another rule, one of its alternatives at random;
//! - `{A}`, `{Bp}`, `{P}`: the paragraph's people, places and topic;
//! - `{an}`: *a* or *an*, whichever the next word wants;
//! - `{^}`: a capital for the next letter (after an opening quote).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::lexicon::{self, Kind};
use crate::morph;
use crate::templates::{RULES, TOPICS, Topic};

/// A person of the paragraph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The one whom the paragraph is about.
    First,
    /// The other one, of the other sex, so that pronouns stay clear.
    Second,
}

/// The grammatical role in which a person is mentioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    /// Name or *she*.
    Subject,
    /// Name or *her*.
    Object,
    /// *Mara's* or *her*.
    Possessive,
    /// *herself*.
    Reflexive,
    /// The first name, never a pronoun.
    Name,
    /// The pronoun, never a name.
    Pronoun,
}

/// Something that stays the same through a paragraph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cast {
    /// A person.
    Person(Who, Case),
    /// The place where it happens.
    Place,
    /// Another place.
    OtherPlace,
    /// A river, moor or height.
    Feature,
    /// The topic, with its article.
    Topic,
    /// The topic, always as *the* old bell.
    TopicDefinite,
    /// The topic's bare noun.
    TopicNoun,
    /// The topic's bare plural.
    TopicPlural,
}

/// One piece of a template.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    Text(&'static str),
    Word {
        list: usize,
        form: usize,
    },
    Rule(usize),
    Cast(Cast),
    Article,
    Capital,
    /// A number of two or three digits.
    Digits(u32),
}

/// A compiled template.
pub(crate) type Template = Vec<Part>;

/// A compiled word list.
pub(crate) struct List {
    pub(crate) words: Vec<[String; morph::FORMS]>,
}

/// A compiled topic.
pub(crate) struct CompiledTopic {
    pub(crate) list: usize,
    pub(crate) adjectives: usize,
    pub(crate) open: Vec<Template>,
    pub(crate) body: Vec<Template>,
    pub(crate) close: Vec<Template>,
}

/// Everything that prose is made from.
pub(crate) struct Grammar {
    pub(crate) lists: Vec<List>,
    pub(crate) rules: Vec<Vec<Template>>,
    pub(crate) topics: Vec<CompiledTopic>,
    /// The rule that may begin a sentence before its first clause.
    pub(crate) front: usize,
}

/// The grammar, compiled at first use.
pub(crate) static GRAMMAR: LazyLock<Grammar> = LazyLock::new(Grammar::compile);

struct Names {
    lists: BTreeMap<&'static str, (usize, Kind)>,
    rules: BTreeMap<&'static str, usize>,
}

impl Grammar {
    /// # Panics
    ///
    /// When a template is malformed or names an unknown slot: templates are
    /// constants of this crate, and its tests compile all of them.
    fn compile() -> Self {
        let names = Names {
            lists: lexicon::LISTS
                .iter()
                .enumerate()
                .map(|(i, l)| (l.0, (i, l.1)))
                .collect(),
            rules: RULES.iter().enumerate().map(|(i, r)| (r.0, i)).collect(),
        };
        let lists = lexicon::LISTS
            .iter()
            .map(|&(_, kind, words)| List {
                words: lexicon::entries(words)
                    .map(|entry| morph::forms(kind, entry))
                    .collect(),
            })
            .collect();
        let all = |texts: &[&'static str]| texts.iter().map(|text| names.template(text)).collect();
        Self {
            lists,
            rules: RULES.iter().map(|(_, texts)| all(texts)).collect(),
            topics: TOPICS
                .iter()
                .map(|topic: &&Topic| CompiledTopic {
                    list: names.lists[topic.list].0,
                    adjectives: names.lists[topic.adjectives].0,
                    open: all(topic.open),
                    body: all(topic.body),
                    close: all(topic.close),
                })
                .collect(),
            front: names.rules["front"],
        }
    }
}

impl Names {
    fn template(&self, text: &'static str) -> Template {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let close = rest
                .find('}')
                .unwrap_or_else(|| panic!("unclosed slot in {text:?}"));
            if open > 0 {
                parts.push(Part::Text(&rest[..open]));
            }
            parts.push(self.slot(&rest[open + 1..close], text));
            rest = &rest[close + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest));
        }
        parts
    }

    fn slot(&self, slot: &'static str, text: &str) -> Part {
        match slot {
            "an" => return Part::Article,
            "^" => return Part::Capital,
            "d2" => return Part::Digits(2),
            "d3" => return Part::Digits(3),
            _ => {}
        }
        if let Some(cast) = cast(slot) {
            return Part::Cast(cast);
        }
        if let Some(&rule) = self.rules.get(slot) {
            return Part::Rule(rule);
        }
        let (name, form) = slot.split_once(':').unwrap_or((slot, ""));
        let &(list, kind) = self
            .lists
            .get(name)
            .unwrap_or_else(|| panic!("unknown slot {slot:?} in {text:?}"));
        let form = match (kind, form) {
            (_, "") => 0,
            (Kind::Noun | Kind::Verb, "s") => 1,
            (Kind::Verb, "d") => 2,
            (Kind::Verb, "n") => 3,
            (Kind::Verb, "g") => 4,
            _ => panic!("unknown form {slot:?} in {text:?}"),
        };
        Part::Word { list, form }
    }
}

fn cast(slot: &str) -> Option<Cast> {
    Some(match slot {
        "P" => Cast::Place,
        "Q" => Cast::OtherPlace,
        "R" => Cast::Feature,
        "T" => Cast::Topic,
        "Td" => Cast::TopicDefinite,
        "Tn" => Cast::TopicNoun,
        "Ts" => Cast::TopicPlural,
        _ => {
            let who = match slot.as_bytes().first()? {
                b'A' => Who::First,
                b'B' => Who::Second,
                _ => return None,
            };
            let case = match &slot[1..] {
                "" => Case::Subject,
                "o" => Case::Object,
                "p" => Case::Possessive,
                "self" => Case::Reflexive,
                "n" => Case::Name,
                "x" => Case::Pronoun,
                _ => return None,
            };
            Cast::Person(who, case)
        }
    })
}
