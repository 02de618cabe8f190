//! Calls whose arguments are literals: a list as Python writes it, `[name(key="value",
//! other=[1])]`, and Gemma's `call:name{key:<|"|>value<|"|>,other:[1]}`.

use super::Call;
use serde_json::{Map, Number, Value};

/// How deep lists and dictionaries may be within each other.
const DEEPEST: usize = 64;

/// What Gemma's texts stand between, as they are.
const QUOTE: &str = "<|\"|>";

/// Gemma's call, if the text is one and nothing else.
pub(super) fn gemma(text: &str) -> Option<Call> {
    let mut reader = Reader {
        rest: text.trim().strip_prefix("call:")?.trim_start(),
    };
    let name = reader.word(is_of_name)?;
    let Value::Object(arguments) = reader.value(0)? else {
        return None;
    };
    reader.rest.is_empty().then(|| Call {
        name: name.to_owned(),
        arguments: Value::Object(arguments),
    })
}

/// The calls, if the text is a list of Python's and nothing else.
pub(super) fn python(text: &str) -> Option<Vec<Call>> {
    let mut reader = Reader { rest: text.trim() };
    reader.expect('[')?;
    let calls = reader.all_until(']', Reader::call)?;
    (reader.rest.is_empty() && !calls.is_empty()).then_some(calls)
}

/// Whether a function's name may have this in it.
pub(super) fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || "_.-".contains(c)
}

struct Reader<'t> {
    rest: &'t str,
}

impl<'t> Reader<'t> {
    /// Whether this comes next; then it is passed, with the space after it.
    fn next_is(&mut self, what: &str) -> bool {
        let after = self.rest.strip_prefix(what);
        if let Some(after) = after {
            self.rest = after.trim_start();
        }
        after.is_some()
    }

    fn expect(&mut self, what: char) -> Option<()> {
        self.next_is(what.encode_utf8(&mut [0; 4])).then_some(())
    }

    /// What is separated by commas, up to the end, which is passed.
    fn all_until<T>(
        &mut self,
        end: char,
        mut one: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut all = Vec::new();
        while self.expect(end).is_none() {
            all.push(one(self)?);
            if self.expect(',').is_none() && !self.rest.starts_with(end) {
                return None;
            }
        }
        Some(all)
    }

    /// Characters of a kind, at least one, and the space after them.
    fn word(&mut self, is: impl Fn(char) -> bool) -> Option<&'t str> {
        let end = self.rest.find(|c| !is(c)).unwrap_or(self.rest.len());
        let (word, after) = self.rest.split_at(end);
        self.rest = after.trim_start();
        (!word.is_empty()).then_some(word)
    }

    fn call(&mut self) -> Option<Call> {
        let name = self.word(is_of_name)?;
        self.expect('(')?;
        let arguments = self.all_until(')', |reader| {
            let key = reader.word(|c| c.is_alphanumeric() || c == '_')?;
            reader.expect('=')?;
            Some((key.to_owned(), reader.value(0)?))
        })?;
        Some(Call {
            name: name.to_owned(),
            arguments: Value::Object(arguments.into_iter().collect()),
        })
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEEPEST {
            return None;
        }
        let first = self.rest.chars().next()?;
        match first {
            '[' | '(' => {
                self.expect(first)?;
                let end = if first == '[' { ']' } else { ')' };
                let all = self.all_until(end, |reader| reader.value(depth + 1))?;
                Some(Value::Array(all))
            }
            '{' => {
                self.expect('{')?;
                let all = self.all_until('}', |reader| {
                    let key = match reader.text() {
                        Some(key) => key,
                        None => reader.word(is_of_name)?.to_owned(),
                    };
                    reader.expect(':')?;
                    Some((key, reader.value(depth + 1)?))
                })?;
                Some(Value::Object(all.into_iter().collect::<Map<_, _>>()))
            }
            '"' | '\'' | '<' => Some(Value::String(self.text()?)),
            _ => match self.word(|c| c.is_alphanumeric() || "_.+-".contains(c))? {
                "True" | "true" => Some(Value::Bool(true)),
                "False" | "false" => Some(Value::Bool(false)),
                "None" | "null" => Some(Value::Null),
                number => number.parse::<Number>().ok().map(Value::Number),
            },
        }
    }

    /// A text in quotes, or in three at each end.
    fn text(&mut self) -> Option<String> {
        if let Some(inner) = self.rest.strip_prefix(QUOTE) {
            let (text, after) = inner.split_once(QUOTE)?;
            self.rest = after.trim_start();
            return Some(text.to_owned());
        }
        let quote = self.rest.chars().next().filter(|c| "\"'".contains(*c))?;
        let three = quote.to_string().repeat(3);
        let end = if self.rest.starts_with(&three) {
            three.as_str()
        } else {
            &three[..1]
        };
        let mut text = String::new();
        let mut rest = &self.rest[end.len()..];
        loop {
            if let Some(after) = rest.strip_prefix(end) {
                self.rest = after.trim_start();
                return Some(text);
            }
            let mut chars = rest.chars();
            match chars.next()? {
                '\\' => {
                    let escape = chars.next()?;
                    let digits = match escape {
                        'x' => 2,
                        'u' => 4,
                        'U' => 8,
                        _ => 0,
                    };
                    if digits > 0 {
                        let code = chars.as_str().get(..digits)?;
                        text.push(char::from_u32(u32::from_str_radix(code, 16).ok()?)?);
                        rest = &chars.as_str()[digits..];
                        continue;
                    }
                    match escape {
                        'n' => text.push('\n'),
                        't' => text.push('\t'),
                        'r' => text.push('\r'),
                        // The line goes on.
                        '\n' => {}
                        '\\' | '\'' | '"' => text.push(escape),
                        // As Python has it.
                        other => text.extend(['\\', other]),
                    }
                }
                other => text.push(other),
            }
            rest = chars.as_str();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_are_those_of_python() {
        let text = r#"[a.b(one = 1, half=-0.5, yes=True, no=False, nothing=None,
            said="it's \"\u00e9\" \n\d", other='', long='''a 'b' c''', list=[1, [2,],],
            pair=(1, "x"), map={"k": {'l': []}},), c()]"#;
        let expected = json!({"one": 1, "half": -0.5, "yes": true, "no": false,
            "nothing": null, "said": "it's \"é\" \n\\d", "other": "", "long": "a 'b' c",
            "list": [1, [2]], "pair": [1, "x"], "map": {"k": {"l": []}}});
        let found = python(text).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((&*found[0].name, &found[0].arguments), ("a.b", &expected));
        assert_eq!((&*found[1].name, &found[1].arguments), ("c", &json!({})));
    }

    #[test]
    fn gemmas_calls() {
        let text = r#"call:turn{way:<|"|>"left", {or} \n<|"|>,by:-1.5,on:true,all:[1,{k:<|"|>v<|"|>}],no:null}"#;
        let expected = json!({"way": "\"left\", {or} \\n", "by": -1.5, "on": true,
            "all": [1, {"k": "v"}], "no": null});
        let call = gemma(text).unwrap();
        assert_eq!((&*call.name, &call.arguments), ("turn", &expected));
        assert_eq!(gemma("call:now{}").unwrap().arguments, json!({}));
        for text in [
            "call:now",
            "call:{}",
            "now{}",
            "call:f{a:<|\"|>x}",
            "call:f{a:1} and",
        ] {
            assert_eq!(gemma(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_list_of_calls() {
        let deep = format!("[f(a={}1)]", "[".repeat(100_000));
        for text in [
            "[]",
            "[f(1)]",
            "[f(a=g())]",
            "[f(a=1]",
            "[f(a=1)",
            "[f(a=1)] and",
            "[f(a='x)]",
            "[f(a='\\u12')]",
            "[f(a=é)]",
            "[f(a=1) g()]",
            "[1, 2]",
            "f()",
            &deep,
        ] {
            assert_eq!(python(text), None, "{text:.40}");
        }
    }
}
