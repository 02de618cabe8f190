//! Prompts from outside: JSON lines of `context`, `question` and `answer`.

use serde_json::Value;
use thiserror::Error;

/// A context from outside, and what is asked about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The text, as it is.
    pub context: String,
    /// What follows the text, and the right answer: a number if it is all
    /// digits, otherwise the text that the model's answer must begin with.
    pub questions: Vec<(String, String)>,
}

/// A line that is no prompt.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadPrompt {
    /// A line is wrong.
    #[error("line {line}: {why}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// There is no line.
    #[error("there is no prompt in it")]
    Empty,
}

/// Reads JSON lines. Consecutive lines with the same context are one prompt
/// with several questions; empty lines are skipped.
///
/// # Errors
/// [`BadPrompt`] for the first bad line.
pub fn parse_prompts(text: &str) -> Result<Vec<Given>, BadPrompt> {
    let mut all: Vec<Given> = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let [context, question, answer] = fields(line).map_err(|why| BadPrompt::Line {
            line: index + 1,
            why,
        })?;
        let asked = (question, answer);
        match all.last_mut() {
            Some(last) if last.context == context => last.questions.push(asked),
            _ => all.push(Given {
                context,
                questions: vec![asked],
            }),
        }
    }
    if all.is_empty() {
        return Err(BadPrompt::Empty);
    }
    Ok(all)
}

fn fields(line: &str) -> Result<[String; 3], String> {
    let value: Value = serde_json::from_str(line).map_err(|e| {
        // Its own "line 1" would contradict the line of the file.
        let at = e.column();
        let what = e.to_string();
        let what = what.split(" at line ").next().unwrap_or_default();
        format!("not JSON: {what} (column {at})")
    })?;
    if !value.is_object() {
        return Err("not a JSON object".to_owned());
    }
    let field = |name: &str| match value.get(name) {
        None => Err(format!("`{name}` is missing")),
        Some(Value::String(text)) if text.trim().is_empty() => Err(format!("`{name}` is empty")),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("`{name}` is not a text in quotes")),
    };
    Ok([
        field("context")?,
        field("question")?,
        field("answer")?.trim().to_owned(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> String {
        parse_prompts(text).unwrap_err().to_string()
    }

    #[test]
    fn lines_with_the_same_context_are_one_prompt() {
        let line = |c: &str, q: &str| {
            format!(r#"{{"context": "{c}", "question": "{q}", "answer": " 7 ", "id": 1}}"#)
        };
        let text = [
            line("a", "1"),
            line("a", "2"),
            String::new(),
            line("b", "3"),
            line("a", "4"),
        ];
        let all = parse_prompts(&text.join("\r\n")).unwrap();
        let asked: Vec<(&str, usize)> = all
            .iter()
            .map(|g| (g.context.as_str(), g.questions.len()))
            .collect();
        assert_eq!(asked, [("a", 2), ("b", 1), ("a", 1)]);
        assert_eq!(all[0].questions[1], ("2".to_owned(), "7".to_owned()));
    }

    #[test]
    fn bad_lines_are_named() {
        let good = r#"{"context": "c", "question": "q", "answer": "a"}"#;
        assert_eq!(
            why(&format!("{good}\n{{\"context\": ")),
            "line 2: not JSON: EOF while parsing a value (column 12)"
        );
        assert_eq!(why("[1]"), "line 1: not a JSON object");
        assert_eq!(
            why(r#"{"context": "c", "question": "q"}"#),
            "line 1: `answer` is missing"
        );
        assert_eq!(
            why(r#"{"context": "c", "question": "q", "answer": 5}"#),
            "line 1: `answer` is not a text in quotes"
        );
        assert_eq!(
            why(r#"{"context": "c", "question": "  ", "answer": "5"}"#),
            "line 1: `question` is empty"
        );
        assert_eq!(why("\n\n"), "there is no prompt in it");
    }
}
