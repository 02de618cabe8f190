//! Needles and where they are put.

use std::collections::BTreeSet;

use kiv_haystack::{Haystack, HaystackError, HaystackSpec, NameSet, Needle};

fn whitespace(text: &str) -> usize {
    text.split_whitespace().count()
}

fn build(spec: &HaystackSpec) -> Result<Haystack, HaystackError> {
    Haystack::build(spec, &mut whitespace)
}

#[test]
fn needles_have_the_agreed_form() {
    let needle = Needle::new("Amber Falcon", "48213");
    assert_eq!(needle.sentence, "The secret code of Amber Falcon is 48213.");
    assert_eq!(
        needle.question,
        "\nWhat is the secret code of Amber Falcon? The secret code of Amber Falcon is"
    );
    assert!(needle.is_answered_by(" 48213.\nThe"));
    assert!(!needle.is_answered_by(" 482134"));
    assert!(!needle.is_answered_by(" 4821"));
}

#[test]
fn needles_are_distinct_and_some_share_a_word() {
    for count in [2, 20, 1_000] {
        let needles = Needle::generate(11, NameSet::Eval, count).unwrap();
        let names: BTreeSet<&str> = needles.iter().map(|n| n.name.as_str()).collect();
        let codes: BTreeSet<&str> = needles.iter().map(|n| n.code.as_str()).collect();
        assert_eq!((names.len(), codes.len()), (count, count));
        assert!(codes.iter().all(|c| c.len() == 5 && !c.starts_with('0')));
        let confusable = needles
            .iter()
            .filter(|a| {
                let shares = |b: &&Needle| {
                    a.name != b.name && a.name.split(' ').any(|w| b.name.split(' ').any(|v| v == w))
                };
                needles.iter().find(shares).is_some()
            })
            .count();
        assert!(confusable * 10 >= count * 4, "{confusable} of {count}");
        if count == 20 {
            assert!(confusable < count);
        }
    }
}

#[test]
fn all_names_can_be_used() {
    let capacity = NameSet::Train.capacity();
    assert_eq!(
        Needle::generate(1, NameSet::Train, capacity).unwrap().len(),
        capacity
    );
    assert_eq!(
        Needle::generate(1, NameSet::Train, capacity + 1),
        Err(HaystackError::TooManyNeedles {
            wanted: capacity + 1,
            available: capacity
        })
    );
}

#[test]
fn name_sets_share_no_word() {
    let mut seen = BTreeSet::new();
    for names in [NameSet::Train, NameSet::Eval] {
        assert!(names.capacity() > 5_000, "{}", names.capacity());
        for word in names.first_words().chain(names.second_words()) {
            assert!(word.chars().all(|c| c.is_ascii_alphabetic()), "{word}");
            assert!(word.starts_with(|c: char| c.is_ascii_uppercase()), "{word}");
            assert!(seen.insert(word), "{word} twice");
        }
    }
}

#[test]
fn length_and_depths_are_met() {
    let depths: Vec<f64> = (0..=20).map(|i| f64::from(i) / 20.0).collect();
    for (n_tokens, needles_per_depth) in [(4_000, 1), (16_384, 1), (100_000, 5), (1_000_000, 3)] {
        let spec = HaystackSpec {
            needles_per_depth,
            ..HaystackSpec::new(12, n_tokens, depths.clone())
        };
        let haystack = build(&spec).unwrap();
        assert_eq!(haystack.n_tokens, whitespace(&haystack.text));
        assert!(haystack.n_tokens <= n_tokens);
        assert!(
            haystack.n_tokens * 100 >= n_tokens * 98,
            "{} of {n_tokens}",
            haystack.n_tokens
        );
        assert_eq!(haystack.needles.len(), depths.len() * needles_per_depth);
        let mut before = 0;
        let mut at = 0;
        for placed in &haystack.needles {
            assert!(haystack.text[placed.offset..].starts_with(&placed.needle.sentence));
            before += whitespace(&haystack.text[at..placed.offset]);
            at = placed.offset;
            assert_eq!(before, placed.token);
            let off = (before as f64 / n_tokens as f64 - placed.depth).abs();
            assert!(off < 0.01, "{off} at {} of {n_tokens}", placed.depth);
        }
        assert_eq!(
            haystack.text.matches("The secret code of").count(),
            haystack.needles.len()
        );
        assert_eq!(haystack.needles[0].offset, 0);
        let last = &haystack.needles[haystack.needles.len() - 1];
        assert!(haystack.text.ends_with(&last.needle.sentence));
    }
}

#[test]
fn each_piece_is_counted_once() {
    let mut counted = 0;
    let mut count = |text: &str| {
        counted += text.len();
        whitespace(text)
    };
    let spec = HaystackSpec::new(13, 50_000, vec![0.5, 0.5, 0.25]);
    let haystack = Haystack::build(&spec, &mut count).unwrap();
    // The last tries and the first needle's second count come on top.
    assert!(
        counted < haystack.text.len() + 20_000,
        "{counted} of {}",
        haystack.text.len()
    );
    assert!(haystack.needles.is_sorted_by(|a, b| a.offset < b.offset));
}

#[test]
fn a_spec_means_one_text() {
    let spec = HaystackSpec::new(14, 5_000, vec![0.3]);
    assert_eq!(build(&spec), build(&spec));
    assert_ne!(
        build(&spec).unwrap().text,
        build(&HaystackSpec { seed: 15, ..spec }).unwrap().text
    );
}

#[test]
fn impossible_specs_are_refused() {
    for depth in [-0.1, 1.1, f64::NAN] {
        let spec = HaystackSpec::new(1, 1_000, vec![0.5, depth]);
        assert!(matches!(build(&spec), Err(HaystackError::Depth { .. })));
    }
    // A needle is eight words.
    let small = HaystackSpec::new(1, 15, vec![0.0, 1.0]);
    assert_eq!(
        build(&small),
        Err(HaystackError::TooSmall {
            n_tokens: 15,
            needed: 16
        })
    );
    let exact = build(&HaystackSpec {
        n_tokens: 16,
        ..small
    })
    .unwrap();
    assert_eq!((exact.n_tokens, exact.needles.len()), (16, 2));
    assert_eq!(build(&HaystackSpec::new(1, 0, vec![])).unwrap().text, "");
    let many = HaystackSpec {
        needles_per_depth: usize::MAX,
        ..HaystackSpec::new(1, 1_000, vec![0.5])
    };
    assert!(matches!(
        build(&many),
        Err(HaystackError::TooManyNeedles { .. })
    ));
    let none = HaystackSpec {
        needles_per_depth: 0,
        ..HaystackSpec::new(1, 1_000, vec![0.5])
    };
    assert!(build(&none).unwrap().needles.is_empty());
}
