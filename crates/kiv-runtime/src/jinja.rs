//! Jinja as the templates of models know it: what `transformers` adds to the language.

use jiff::{Zoned, fmt::strtime};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
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
    env.set_formatter(show);
    env.add_test("iterable", is_iterable);
    env.add_test("sequence", is_sequence);
    env.add_filter("string", |value: &Value| text(value, false));
    env.add_filter("indent", indent);
    env.add_filter("tojson", tojson);
    env.add_function("strftime_now", strftime_now);
    env.add_function("raise_exception", raise_exception);
    let source = without_marks(source);
    env.render_str(&source, variables)
        .map_err(|e| e.to_string())
}

/// Without the marks around what the assistant says, `generation`, which are for training: as a
/// block that is always taken, so that white space around them is left out as theirs.
fn without_marks(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((inside, after)) = tag.split_once("%}") else {
            break;
        };
        let word = inside.trim_matches(['-', '+']).trim();
        let instead = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        let inside = instead.map_or(inside.to_owned(), |new| inside.replacen(word, new, 1));
        out.extend([before, "{%", &inside, "%}"]);
        rest = after;
    }
    out + rest
}

/// Nothing is no iterable: templates ask that of `tools`.
fn is_iterable(value: &Value) -> bool {
    value.kind() != ValueKind::None && (value.as_str().is_some() || value.try_iter().is_ok())
}

/// What has a length and items, as strings and objects do in Python.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::String | ValueKind::Seq | ValueKind::Map
    )
}

/// What `{{ value }}` writes.
fn show(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Seq | ValueKind::Map => {
            Ok(out.write_str(&text(value, false)?)?)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// A value as Python's `str` writes it, `repr` within lists and objects: models have been trained
/// on that where their templates do not ask for JSON.
fn text(value: &Value, within: bool) -> Result<String, Error> {
    Ok(match (value.kind(), value.as_str()) {
        (ValueKind::None, _) => "None".to_owned(),
        (ValueKind::Bool, _) if value.is_true() => "True".to_owned(),
        (ValueKind::Bool, _) => "False".to_owned(),
        (ValueKind::String, Some(string)) if within => quoted(string),
        (ValueKind::Seq, _) => {
            let all = value.try_iter()?.map(|item| text(&item, true));
            format!("[{}]", all.collect::<Result<Vec<_>, _>>()?.join(", "))
        }
        (ValueKind::Map, _) => {
            let pairs = value.try_iter()?.map(|key| {
                let item = text(&value.get_item(&key)?, true)?;
                Ok(format!("{}: {item}", text(&key, true)?))
            });
            let pairs: Result<Vec<_>, Error> = pairs.collect();
            format!("{{{}}}", pairs?.join(", "))
        }
        _ => value.to_string(),
    })
}

/// A string as Python's `repr` writes it.
fn quoted(string: &str) -> String {
    let quote = if string.contains('\'') && !string.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for c in string.chars() {
        match c {
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            '\\' => out += "\\\\",
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out += &format!("\\x{:02x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
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

/// With spaces before each line but the first and empty ones. minijinja's own loses a line
/// break at the end.
fn indent(
    text: &str,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let width = width.or(options.get("width")?).unwrap_or(4);
    let first = first.or(options.get("first")?).unwrap_or(false);
    let blank = blank.or(options.get("blank")?).unwrap_or(false);
    options.assert_all_used()?;
    let lines = text.split('\n').enumerate().map(|(i, line)| {
        let wants = if i == 0 {
            first
        } else {
            blank || !line.is_empty()
        };
        " ".repeat(if wants { width } else { 0 }) + line
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// As Python's `json.dumps` writes it, which is what models have been trained on: spaces
/// after commas and colons, keys in their order, no characters escaped that need not be,
/// unless `ensure_ascii` wants that.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let ascii = options
        .get::<Option<bool>>("ensure_ascii")?
        .unwrap_or(false);
    options.assert_all_used()?;
    let separators = separators.unwrap_or_else(|| [", ", ": "].map(str::to_owned).into());
    let [between, before_value] = &separators[..] else {
        return Err(refuse("tojson: separators must be two"));
    };
    let json = match indent {
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
    }?;
    Ok(if ascii { escaped(&json) } else { json })
}

/// JSON in ASCII: what is not, is in strings only.
fn escaped(json: &str) -> String {
    let mut out = String::new();
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let units = c.encode_utf16(&mut [0; 2]).to_vec();
            units
                .iter()
                .for_each(|unit| out += &format!("\\u{unit:04x}"));
        }
    }
    out
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
            (
                "{{ 'é \u{1f600}' | tojson(ensure_ascii=true) }}",
                r#""\u00e9 \ud83d\ude00""#,
            ),
        ] {
            assert_eq!(shown(source), expected, "{source}");
        }
        for source in [
            "{{ v | tojson(separators=[]) }}",
            "{{ v | tojson(colour=1) }}",
        ] {
            let why = shown(source);
            assert!(why.contains("two") || why.contains("colour"));
        }
    }

    /// What Python's `str` gives.
    #[test]
    fn values_are_written_as_python_does() {
        for (source, expected) in [
            ("{{ list }}", "['x', 'y']"),
            ("{{ list | string | length }}", "10"),
            (
                "{{ v }}",
                r#"{'z': [1, 2.5, None], 'a': "it's <b> é\n", 'm': {}}"#,
            ),
            ("{{ v.z[2] }} {{ true }} {{ 1 > 2 }}", "None True False"),
            ("{{ v.a[:4] }}{{ [\"'\\\"\\\\\"] }}", r#"it's['\'"\\']"#),
        ] {
            assert_eq!(shown(source), expected, "{source}");
        }
    }

    #[test]
    fn lines_are_indented_as_jinja_does() {
        for (source, expected) in [
            ("{{ 'a\\n\\nb\\n' | indent }}", "a\n\n    b\n"),
            ("{{ '{\\n' | indent(2, first=True) }}", "  {\n"),
            ("{{ 'a\\n\\nb' | indent(width=1, blank=True) }}", "a\n \n b"),
            ("{{ 'a\\nb' | indent(1, True) }}", " a\n b"),
        ] {
            assert_eq!(shown(source), expected, "{source}");
        }
    }

    #[test]
    fn kinds_of_values_are_those_of_python() {
        let asked = "{{ none is iterable }} {{ 'x' is iterable }} {{ 1 is iterable }} \
                     {{ v is iterable }} {{ v is sequence }} {{ list is sequence }} {{ 1 is sequence }}";
        assert_eq!(shown(asked), "False True False True True True False");
    }

    #[test]
    fn marks_for_training_are_left_out() {
        let source =
            "a\n  {%- generation -%}\n {{ list[0] }}\n{%- endgeneration %}\n{% if v %}b{% endif %}";
        assert_eq!(shown(source), "axb");
        assert!(shown("{% generation %}x{% endgeneration %} {%").contains("syntax error"));
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
