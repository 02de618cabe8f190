//! Inflection: enough English to keep plurals, tenses and articles right.

use crate::lexicon::Kind;

/// Most forms that an entry can have (a verb's).
pub(crate) const FORMS: usize = 5;

/// The forms of one entry of a word list: singular and plural of a noun; base,
/// third person, past, participle and -ing of a verb; the word itself otherwise.
pub(crate) fn forms(kind: Kind, entry: &str) -> [String; FORMS] {
    let entry = entry.replace('_', " ");
    let mut given = entry.split('/');
    let base = given.next().unwrap_or_default().to_owned();
    let mut out: [String; FORMS] = Default::default();
    match kind {
        Kind::Plain => out[0] = base,
        Kind::Noun => {
            out[1] = given.next().map_or_else(|| add_s(&base), str::to_owned);
            out[0] = base;
        }
        Kind::Verb => {
            // Only the first word of "set aside" inflects.
            let (head, rest) = match base.split_once(' ') {
                Some((head, rest)) => (head.to_owned(), format!(" {rest}")),
                None => (base, String::new()),
            };
            let (head, doubles) = match head.strip_suffix('*') {
                Some(head) => (head.to_owned(), true),
                None => (head, false),
            };
            let past = given.next().map_or_else(
                || format!("{}{rest}", regular_past(&head, doubles)),
                str::to_owned,
            );
            let participle = given.next().map_or_else(|| past.clone(), str::to_owned);
            let third = if head == "go" {
                "goes".to_owned()
            } else {
                add_s(&head)
            };
            out = [
                format!("{head}{rest}"),
                format!("{third}{rest}"),
                past,
                participle,
                format!("{}{rest}", gerund(&head, doubles)),
            ];
        }
    }
    out
}

fn is_vowel(letter: u8) -> bool {
    matches!(letter, b'a' | b'e' | b'i' | b'o' | b'u')
}

/// Whether a final y follows a consonant, and so turns into i.
fn has_soft_y(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() > 1 && bytes.ends_with(b"y") && !is_vowel(bytes[bytes.len() - 2])
}

fn add_s(word: &str) -> String {
    if has_soft_y(word) {
        format!("{}ies", &word[..word.len() - 1])
    } else if ["s", "x", "z", "ch", "sh"]
        .iter()
        .any(|end| word.ends_with(end))
    {
        format!("{word}es")
    } else {
        format!("{word}s")
    }
}

fn doubled(word: &str) -> String {
    format!("{word}{}", &word[word.len() - 1..])
}

fn regular_past(word: &str, doubles: bool) -> String {
    if doubles {
        format!("{}ed", doubled(word))
    } else if has_soft_y(word) {
        format!("{}ied", &word[..word.len() - 1])
    } else if word.ends_with('e') {
        format!("{word}d")
    } else {
        format!("{word}ed")
    }
}

fn gerund(word: &str, doubles: bool) -> String {
    if doubles {
        format!("{}ing", doubled(word))
    } else if let Some(stem) = word.strip_suffix("ie") {
        format!("{stem}ying")
    } else if word.ends_with('e') && !word.ends_with("ee") {
        format!("{}ing", &word[..word.len() - 1])
    } else {
        // Two-syllable verbs that double in -ing but have an irregular past.
        match word {
            "set" | "sit" | "forget" | "begin" | "get" | "put" | "cut" | "reset" | "run" => {
                format!("{}ing", doubled(word))
            }
            _ => format!("{word}ing"),
        }
    }
}

/// The indefinite article, with its space, for what follows. It goes by sound:
/// *an hour*, *a useful lamp*.
pub(crate) fn article(next: &str) -> &'static str {
    const AN: &[&str] = &["hour", "honest", "heir", "honour"];
    const A: &[&str] = &["uni", "use", "usu", "one", "eu", "once"];
    let starts = |list: &[&str]| list.iter().any(|start| next.starts_with(start));
    let vowel = next
        .bytes()
        .next()
        .is_some_and(|b| is_vowel(b.to_ascii_lowercase()));
    // "unimpressed" and the like are words of un-, not of uni-.
    if starts(AN) || (vowel && !starts(A)) || next.starts_with("unim") || next.starts_with("unin") {
        "an "
    } else {
        "a "
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verb(entry: &str) -> String {
        forms(Kind::Verb, entry).join(",")
    }

    #[test]
    fn verbs_inflect() {
        assert_eq!(verb("carry"), "carry,carries,carried,carried,carrying");
        assert_eq!(verb("wrap*"), "wrap,wraps,wrapped,wrapped,wrapping");
        assert_eq!(verb("give/gave/given"), "give,gives,gave,given,giving");
        assert_eq!(
            verb("set_aside/set_aside"),
            "set aside,sets aside,set aside,set aside,setting aside"
        );
        assert_eq!(
            verb("turn_away/turned_away"),
            "turn away,turns away,turned away,turned away,turning away"
        );
        assert_eq!(
            verb("forget*/forgot/forgotten"),
            "forget,forgets,forgot,forgotten,forgetting"
        );
        assert_eq!(verb("agree"), "agree,agrees,agreed,agreed,agreeing");
    }

    #[test]
    fn nouns_take_plurals() {
        assert_eq!(forms(Kind::Noun, "brush")[1], "brushes");
        assert_eq!(forms(Kind::Noun, "knife/knives")[1], "knives");
        assert_eq!(forms(Kind::Noun, "valley")[1], "valleys");
        assert_eq!(forms(Kind::Noun, "bakery")[1], "bakeries");
    }

    #[test]
    fn articles_go_by_sound() {
        for (word, want) in [
            ("hour", "an "),
            ("useful", "a "),
            ("ugly", "an "),
            ("unfinished", "an "),
            ("old", "an "),
            ("house", "a "),
            ("unimpressed", "an "),
            ("uniform", "a "),
        ] {
            assert_eq!(article(word), want, "{word}");
        }
    }
}
