//! The words that the grammar draws from.
//!
//! Every list is a whitespace-separated string, so that a word costs a word to
//! add. Irregular forms follow the base after slashes: `knife/knives` for a
//! noun, `find/found` or `give/gave/given` for a verb; `*` marks a verb whose
//! last consonant doubles (`stop*`). A `_` stands for a space in an entry.

mod needle_names;
mod nouns;
mod proper;
mod verbs;
mod words;

pub(crate) use needle_names::{EVAL_FIRST, EVAL_SECOND, TRAIN_FIRST, TRAIN_SECOND};
pub(crate) use proper::{FEATURE_FORMS, MEN, PLACE_ENDS, PLACE_STARTS, SURNAMES, WOMEN};

/// How the entries of a list inflect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Singular and plural.
    Noun,
    /// Base, third person, past, participle, -ing.
    Verb,
    /// One form only.
    Plain,
}

/// All lists by the name that templates use for them.
pub(crate) const LISTS: &[(&str, Kind, &str)] = &[
    ("thing", Kind::Noun, nouns::THINGS),
    ("site", Kind::Noun, nouns::SITES),
    ("role", Kind::Noun, nouns::ROLES),
    ("part", Kind::Noun, nouns::PARTS),
    ("beast", Kind::Noun, nouns::BEASTS),
    ("plant", Kind::Noun, nouns::PLANTS),
    ("paper", Kind::Noun, nouns::PAPERS),
    ("kin", Kind::Noun, nouns::KIN),
    ("vessel", Kind::Noun, nouns::VESSELS),
    ("tune", Kind::Noun, nouns::TUNES),
    ("mass", Kind::Plain, nouns::MASSES),
    ("food", Kind::Plain, nouns::FOODS),
    ("drink", Kind::Plain, nouns::DRINKS),
    ("mood", Kind::Plain, nouns::MOODS),
    ("small", Kind::Noun, nouns::SMALL),
    ("gauge", Kind::Noun, nouns::INSTRUMENTS),
    ("abs", Kind::Plain, nouns::ABSTRACTS),
    ("nat", Kind::Plain, nouns::NATURE),
    ("measure", Kind::Noun, nouns::MEASURES),
    ("vt", Kind::Verb, verbs::HANDLE),
    ("make", Kind::Verb, verbs::MAKE),
    ("see", Kind::Verb, verbs::PERCEIVE),
    ("vi", Kind::Verb, verbs::PERSON),
    ("mv", Kind::Verb, verbs::MOVE),
    ("natv", Kind::Verb, verbs::NATURE),
    ("say", Kind::Verb, verbs::SAY),
    ("think", Kind::Verb, verbs::THINK),
    ("machv", Kind::Verb, verbs::MACHINE),
    ("adj", Kind::Plain, words::ADJ_THING),
    ("adjs", Kind::Plain, words::ADJ_SITE),
    ("adjp", Kind::Plain, words::ADJ_PERSON),
    ("adjm", Kind::Plain, words::ADJ_MACHINE),
    ("adjn", Kind::Plain, words::ADJ_NATURE),
    ("adjb", Kind::Plain, words::ADJ_BEAST),
    ("adjf", Kind::Plain, words::ADJ_FEELING),
    ("adv", Kind::Plain, words::ADV_MANNER),
    ("advm", Kind::Plain, words::ADV_MOTION),
    ("freq", Kind::Plain, words::FREQUENCY),
    ("season", Kind::Plain, words::SEASONS),
    ("month", Kind::Plain, words::MONTHS),
    ("day", Kind::Plain, words::DAYS),
    ("num", Kind::Plain, words::NUMBERS),
    ("ord", Kind::Plain, words::ORDINALS),
    ("prep", Kind::Plain, words::PREPOSITIONS),
    ("colour", Kind::Plain, words::COLOURS),
    ("stuff", Kind::Plain, words::STUFFS),
];

/// The words of a list, in order.
pub(crate) fn entries(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.split_ascii_whitespace()
}
