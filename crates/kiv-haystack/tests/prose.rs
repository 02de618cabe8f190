//! What the prose promises: the same for a seed, varied, and clean English.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use kiv_haystack::{NameSet, Prose};

/// Paragraphs of at least `bytes`.
fn prose(seed: u64, bytes: usize) -> Vec<Vec<String>> {
    let mut prose = Prose::new(seed);
    let mut total = 0;
    let mut out = Vec::new();
    while total < bytes {
        let sentences = prose.next_sentences();
        total += sentences.iter().map(|s| s.len() + 1).sum::<usize>();
        out.push(sentences);
    }
    out
}

fn joined(paragraphs: &[Vec<String>]) -> String {
    paragraphs
        .iter()
        .map(|p| p.join(" "))
        .collect::<Vec<_>>()
        .join("\n\n")
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The words without the punctuation around them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
        .map(|w| w.trim_matches(|c: char| !c.is_alphanumeric()))
        .filter(|w| !w.is_empty())
}

#[test]
fn a_seed_means_the_same_text_for_good() {
    let text = |seed| Prose::new(seed).take(200).collect::<Vec<_>>().join("\n\n");
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
    // Changes with every word or template; then, put the new value here.
    assert_eq!(
        fnv1a(&text(1)),
        0xbe66_3f37_ee6d_01ae,
        "{:#x}",
        fnv1a(&text(1))
    );
}

#[test]
fn iterator_joins_the_sentences() {
    let sentences = Prose::new(3).next_sentences();
    assert_eq!(Prose::new(3).next(), Some(sentences.join(" ")));
}

#[test]
fn sentences_hardly_recur() {
    let paragraphs = prose(4, 1 << 20);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for sentence in paragraphs.iter().flatten() {
        *counts.entry(sentence).or_default() += 1;
    }
    let (sentence, most) = counts.iter().max_by_key(|(_, n)| **n).unwrap();
    assert!(*most <= 3, "{most} times: {sentence}");

    let text = joined(&paragraphs);
    let all: Vec<&str> = words(&text).collect();
    let distinct: HashSet<&[&str]> = all.windows(8).collect();
    let ratio = distinct.len() as f64 / (all.len() - 7) as f64;
    assert!(ratio > 0.99, "distinct 8-word shingles: {ratio}");
}

#[test]
fn vocabulary_is_large() {
    let text = joined(&prose(5, 1 << 20)).to_lowercase();
    let vocabulary: BTreeSet<&str> = words(&text).collect();
    assert!(vocabulary.len() > 2_500, "{} words", vocabulary.len());
}

#[test]
fn paragraphs_vary_in_length_and_begin() {
    let paragraphs = prose(6, 1 << 18);
    let lengths: BTreeSet<usize> = paragraphs.iter().map(Vec::len).collect();
    assert!(lengths.len() >= 6, "{lengths:?}");
    let starts: BTreeSet<String> = paragraphs
        .iter()
        .map(|p| p[0].chars().take(12).collect())
        .collect();
    assert!(
        starts.len() * 2 > paragraphs.len(),
        "{} of {}",
        starts.len(),
        paragraphs.len()
    );
}

#[test]
fn articles_agree() {
    // Words of this vocabulary that are not spoken as they are written.
    let vowel_sound = |word: &str| {
        let spoken_as_consonant = ["useful", "useless", "uniform", "one-", "union"];
        let spoken_as_vowel = ["hour", "honest", "heir"];
        if spoken_as_consonant.iter().any(|s| word.starts_with(s)) {
            return false;
        }
        spoken_as_vowel.iter().any(|s| word.starts_with(s))
            || word.starts_with(['a', 'e', 'i', 'o', 'u'])
    };
    let text = joined(&prose(7, 1 << 20));
    let mut articles = 0;
    let tokens: Vec<&str> = text.split_whitespace().collect();
    for pair in tokens.windows(2) {
        let article = pair[0].trim_matches('"').to_lowercase();
        if article != "a" && article != "an" {
            continue;
        }
        articles += 1;
        let next = pair[1].to_lowercase();
        assert!(
            next.starts_with(|c: char| c.is_ascii_lowercase()),
            "{} {}",
            pair[0],
            pair[1]
        );
        assert_eq!(
            article == "an",
            vowel_sound(&next),
            "{} {}",
            pair[0],
            pair[1]
        );
    }
    assert!(articles > 5_000);
}

#[test]
fn sentences_are_well_formed() {
    for sentence in prose(8, 1 << 20).iter().flatten() {
        assert!(
            !sentence.contains("  ") && !sentence.contains(['{', '}', '\n', '_', '*', '/']),
            "{sentence}"
        );
        for wrong in [
            " ,",
            " .",
            ",,",
            "..",
            ",.",
            " ;",
            " a a ",
            " the the ",
            " the a ",
            " a the ",
            "?.",
            ";.",
        ] {
            assert!(!sentence.contains(wrong), "{wrong:?} in {sentence}");
        }
        let first = sentence.trim_start_matches('"').chars().next().unwrap();
        assert!(first.is_uppercase() || first.is_ascii_digit(), "{sentence}");
        assert!(sentence.ends_with(['.', '?', '"']), "{sentence}");
        assert_eq!(sentence.matches('"').count() % 2, 0, "{sentence}");
        assert!(words(sentence).count() < 120, "{sentence}");
    }
}

#[test]
fn needles_cannot_be_confused_with_prose() {
    let text = joined(&prose(9, 4 << 20));
    let lower = text.to_lowercase();
    assert!(!lower.contains("secret code"));
    let longest = text
        .split(|c: char| !c.is_ascii_digit())
        .map(str::len)
        .max();
    assert!(longest < Some(4), "{longest:?}");

    // Stricter than names: no word of a name, in any case.
    let vocabulary: BTreeSet<&str> = lower.split(|c: char| !c.is_alphabetic()).collect();
    for names in [NameSet::Train, NameSet::Eval] {
        for word in names.first_words().chain(names.second_words()) {
            assert!(!vocabulary.contains(word.to_lowercase().as_str()), "{word}");
        }
    }
}
