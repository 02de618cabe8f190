//! Jinja as the templates of models know it: what `transformers` adds to the language.

use jiff::{Zoned, fmt::strtime};
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use serde_json::{Map, Value as Json};
use std::io::{self, Write};

/// A template run with these variables.
pub(crate) fn render(source: &str, variables: Value) -> Result<String, String> {
    let mut env = Environment::new();
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.add_filter("tojson", tojson);
    env.add_function("strftime_now", strftime_now);
    env.add_function("raise_exception", raise_exception);
    env.render_str(source, variables).map_err(|e| e.to_string())
}

fn refuse(why: impl ToString) -> Error {
    Error::new(ErrorKind::InvalidOperation, why.to_string())
}

fn raise_exception(text: String) -> Result<String, Error> {
    Err(refuse(text))
}

/// What JSON is for a template. Not by serde: with serde_json's `arbitrary_precision`, which any
/// crate of a program may turn on, numbers would be maps.
pub(crate) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(yes) => Value::from(*yes),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(n.as_f64()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(all) => all.iter().map(value).collect(),
        Json::Object(all) => map(all),
    }
}

/// The same of an object.
pub(crate) fn map(all: &Map<String, Json>) -> Value {
    let all = all.iter().map(|(key, json)| (key.as_str(), value(json)));
    all.collect()
}

/// The local time.
fn strftime_now(format: &str) -> Result<String, Error> {
    strtime::format(format, &Zoned::now()).map_err(refuse)
}

/// As Python's `json.dumps` writes it, which is what models have been trained on: spaces
/// after commas and colons, keys in their order, no characters escaped that need not be.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(refuse("tojson: ensure_ascii can only be false"));
    }
    options.assert_all_used()?;
    let separators = separators.unwrap_or_else(|| [", ", ": "].map(str::to_owned).into());
    let [between, before_value] = &separators[..] else {
        return Err(refuse("tojson: separators must be two"));
    };
    match indent {
        Some(n) => dump(
            value,
            PrettyFormatter::with_indent(" ".repeat(n).as_bytes()),
        ),
        None => dump(
            value,
            Line {
                between,
                before_value,
            },
        ),
    }
}

fn dump(value: &Value, form: impl Formatter) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let mut to = Serializer::with_formatter(&mut bytes, form);
    value.serialize(&mut to).map_err(refuse)?;
    String::from_utf8(bytes).map_err(refuse)
}

/// JSON in one line.
struct Line<'a> {
    between: &'a str,
    before_value: &'a str,
}

impl Line<'_> {
    fn separate(&self, to: &mut (impl ?Sized + Write), is_first: bool) -> io::Result<()> {
        let between = if is_first { "" } else { self.between };
        to.write_all(between.as_bytes())
    }
}

impl Formatter for Line<'_> {
    fn begin_array_value<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.separate(to, first)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.separate(to, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(self.before_value.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::{render, value};
    use serde_json::{Value as Json, json};

    fn shown(source: &str) -> String {
        let given: Json =
            serde_json::from_str(r#"{"z": [1, 2.5, null], "a": "it's <b> é\n", "m": {}}"#).unwrap();
        let variables = value(&json!({"v": given, "list": ["x", "y"]}));
        render(source, variables).unwrap_or_else(|why| why)
    }

    /// What Python's `json.dumps` gives.
    #[test]
    fn json_is_written_as_python_does() {
        for (source, expected) in [
            (
                "{{ v | tojson }}",
                r#"{"z": [1, 2.5, null], "a": "it's <b> é\n", "m": {}}"#,
            ),
            (
                "{{ v | tojson(separators=(',', ':')) }}",
                r#"{"z":[1,2.5,null],"a":"it's <b> é\n","m":{}}"#,
            ),
            (
                "{{ v.z | tojson(indent=2, ensure_ascii=false) }}",
                "[\n  1,\n  2.5,\n  null\n]",
            ),
            ("{{ (v.z | tojson)[:-1] }}", "[1, 2.5, null"),
        ] {
            assert_eq!(shown(source), expected, "{source}");
        }
        for source in [
            "{{ v | tojson(ensure_ascii=true) }}",
            "{{ v | tojson(separators=[]) }}",
            "{{ v | tojson(colour=1) }}",
        ] {
            let why = shown(source);
            assert!(why.contains("ensure") || why.contains("two") || why.contains("colour"));
        }
    }

    #[test]
    fn what_transformers_adds() {
        let year = shown("{{ strftime_now('%Y') }}");
        assert!(year.parse::<u32>().is_ok_and(|year| year > 2000), "{year}");
        assert_eq!(shown("{{ strftime_now('%d %b %Y') | length }}"), "11");
        assert!(shown("{{ strftime_now('%') }}").contains("invalid operation"));
        assert!(shown("{{ raise_exception('roles!') }}").contains("roles!"));
        let broken = "{% for x in list %}{{ x }}{% break %}{% endfor %}";
        assert_eq!(shown(broken), "x");
    }
}
