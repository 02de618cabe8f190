//! The sentences: phrase rules that all topics share, and the topics.

mod craft;
mod nature;
mod people;
mod places;
mod rules;
mod writing;

pub(crate) use rules::RULES;

/// What a paragraph can be about.
///
/// Opening sentences introduce the people that they speak of; the body is drawn
/// without repetition.
pub(crate) struct Topic {
    /// The word list from which the paragraph's recurring object comes.
    pub(crate) list: &'static str,
    /// The adjectives that suit it.
    pub(crate) adjectives: &'static str,
    pub(crate) open: &'static [&'static str],
    pub(crate) body: &'static [&'static str],
    pub(crate) close: &'static [&'static str],
}

/// All topics.
pub(crate) const TOPICS: &[&Topic] = &[
    &places::VILLAGE,
    &places::JOURNEY,
    &places::HARBOUR,
    &places::HOUSE,
    &nature::WEATHER,
    &nature::GARDEN,
    &nature::FARM,
    &craft::WORKSHOP,
    &craft::ENGINE,
    &craft::SURVEY,
    &writing::LETTER,
    &writing::LEDGER,
    &writing::LIBRARY,
    &writing::COUNCIL,
    &people::TALK,
    &people::MEMORY,
    &people::MARKET,
    &people::MUSIC,
    &people::DREAM,
    &people::PORTRAIT,
];
