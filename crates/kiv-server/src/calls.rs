//! Calls of functions in what a model has written, in the forms of the widespread families.

mod python;

use kiv_runtime::TOOL_CALL;
use serde_json::{Value, json};

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub name: String,
    /// A JSON object.
    pub arguments: Value,
}

const CALL: &str = TOOL_CALL[0];
const CALL_END: &str = TOOL_CALL[1];
const FUNCTION: &str = "<function=";
/// What a list of calls begins with (Mistral, where it is text).
const LISTED: &str = "[TOOL_CALLS]";

/// What calls begin with that are not all there is.
pub(crate) const MARKS: [&str; 2] = [CALL, FUNCTION];

/// Where the first call begins.
pub(crate) fn starts(text: &str) -> Option<usize> {
    MARKS.into_iter().filter_map(|mark| text.find(mark)).min()
}

/// Whether all of a text that begins so may be a call.
pub(crate) fn may_be(text: &str) -> bool {
    let begins = text.trim_start();
    if begins.starts_with(LISTED) || LISTED.starts_with(begins) {
        return true;
    }
    let object = |text: &str| match text.strip_prefix('{') {
        Some(inner) => inner.trim_start().is_empty() || inner.trim_start().starts_with('"'),
        None => false,
    };
    if let Some(inner) = begins.strip_prefix('[') {
        let inner = inner.trim_start();
        // One that Python calls, or will.
        let after = inner.trim_start_matches(python::is_of_name).trim_start();
        return object(inner) || inner.is_empty() || after.is_empty() || after.starts_with('(');
    }
    object(begins)
}

/// Calls of these functions in an answer, and the text before them.
pub(crate) fn read(text: &str, tools: &[Value]) -> (String, Vec<Call>) {
    if let Some(start) = starts(text) {
        let mut calls = Vec::new();
        let mut rest = &text[start..];
        while let Some(at) = rest.find(CALL) {
            let body = &rest[at + CALL.len()..];
            let end = body.find(CALL_END);
            let inner = &body[..end.unwrap_or(body.len())];
            match listed(inner.trim(), tools) {
                Some(more) => calls.extend(more),
                None if inner.contains(FUNCTION) => calls.extend(functions(inner, tools)),
                None => calls.extend(pairs(inner, tools)),
            }
            rest = end.map_or("", |end| &body[end + CALL_END.len()..]);
        }
        if calls.is_empty() {
            calls = functions(&text[start..], tools);
        }
        if !calls.is_empty() {
            return (text[..start].trim_end().to_owned(), calls);
        }
    }
    let bare = text.trim();
    let bare = bare.strip_prefix(LISTED).unwrap_or(bare).trim();
    match listed(bare, tools) {
        Some(calls) => (String::new(), calls),
        None => (text.to_owned(), Vec::new()),
    }
}

/// The name in `{"type": "function", "function": {"name": …}}`.
pub(crate) fn name_of(tool: &Value) -> Option<&str> {
    let is_function = tool.get("type").is_none_or(|kind| kind == "function");
    tool.get("function")?
        .get("name")?
        .as_str()
        .filter(|_| is_function)
}

/// Arguments as OpenAI's protocol has them, a text, of which nothing is no arguments.
pub(crate) fn arguments_of(text: &str) -> Option<Value> {
    if text.trim().is_empty() {
        return Some(json!({}));
    }
    serde_json::from_str(text).ok()
}

fn find<'t>(tools: &'t [Value], name: &str) -> Option<&'t Value> {
    tools.iter().find(|tool| name_of(tool) == Some(name))
}

/// `{"name": …, "arguments": {…}}`, a list of these, or `[name(key=value), …]`, as Python
/// has it (Llama, LFM2).
fn listed(text: &str, tools: &[Value]) -> Option<Vec<Call>> {
    let one = |value: &Value| {
        let name = value.get("name")?.as_str()?;
        let arguments = value.get("arguments").or_else(|| value.get("parameters"));
        let arguments = match arguments {
            None => json!({}),
            // Written as OpenAI's clients see it.
            Some(Value::String(text)) => arguments_of(text)?,
            Some(other) => other.clone(),
        };
        find(tools, name)?;
        arguments.is_object().then(|| Call {
            name: name.to_owned(),
            arguments,
        })
    };
    match parsed(text) {
        Some(Value::Array(all)) if !all.is_empty() => all.iter().map(one).collect(),
        Some(value) => Some(vec![one(&value)?]),
        None => {
            let calls = python::calls(text)?;
            let are_known = calls.iter().all(|call| find(tools, &call.name).is_some());
            are_known.then_some(calls)
        }
    }
}

/// The JSON document that a text begins with, if it is an object or a list.
fn parsed(text: &str) -> Option<Value> {
    if !text.starts_with(['{', '[']) {
        return None;
    }
    let mut all = serde_json::Deserializer::from_str(text).into_iter();
    all.next()?.ok()
}

/// `<function=name>{…}</function>`, or with `<parameter=key>value</parameter>` inside.
fn functions(text: &str, tools: &[Value]) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(FUNCTION) {
        rest = &rest[at + FUNCTION.len()..];
        let Some((name, body)) = rest.split_once('>') else {
            break;
        };
        let (inner, after) = body.split_once("</function>").unwrap_or((body, ""));
        rest = after;
        let name = name.trim();
        let Some(tool) = find(tools, name) else {
            continue;
        };
        let arguments = parsed(inner.trim()).unwrap_or_else(|| parameters(inner, tool));
        if arguments.is_object() {
            calls.push(Call {
                name: name.to_owned(),
                arguments,
            });
        }
    }
    calls
}

/// `<parameter=key>value</parameter>`
fn parameters(text: &str, tool: &Value) -> Value {
    let parts = text.split("<parameter=").skip(1);
    let pairs = parts.filter_map(|part| {
        let (key, value) = part.split_once('>')?;
        Some((key, value.split("</parameter>").next()?))
    });
    arguments(pairs, tool)
}

/// `name<arg_key>key</arg_key><arg_value>value</arg_value>` (GLM)
fn pairs(text: &str, tools: &[Value]) -> Option<Call> {
    let mut parts = text.split("<arg_key>");
    let name = parts.next()?.trim();
    let tool = find(tools, name)?;
    let pairs = parts.filter_map(|part| {
        let (key, value) = part.split_once("</arg_key>")?;
        let (_, value) = value.split_once("<arg_value>")?;
        Some((key, value.split("</arg_value>").next()?))
    });
    Some(Call {
        name: name.to_owned(),
        arguments: arguments(pairs, tool),
    })
}

/// Values are JSON where the schema does not say that they are text.
fn arguments<'t>(pairs: impl Iterator<Item = (&'t str, &'t str)>, tool: &Value) -> Value {
    let typed = pairs.map(|(key, value)| {
        let (key, value) = (key.trim(), value.trim());
        let kind = &tool["function"]["parameters"]["properties"][key]["type"];
        let value = match serde_json::from_str(value) {
            Ok(json) if kind != "string" => json,
            _ => Value::String(value.to_owned()),
        };
        (key.to_owned(), value)
    });
    Value::Object(typed.collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn tools() -> Vec<Value> {
        let function = |name: &str| {
            json!({"type": "function", "function": {
                "name": name,
                "parameters": {"type": "object", "properties": {
                    "city": {"type": "string"}, "days": {"type": "integer"}}},
            }})
        };
        vec![function("weather"), function("time")]
    }

    #[test]
    fn what_may_be_a_call() {
        for text in [
            "",
            " ",
            "{",
            "{ \"name",
            "[",
            "[{",
            "[weath",
            "[a.b (",
            "[TOOL",
            "[TOOL_CALLS] [",
        ] {
            assert!(may_be(text), "{text}");
        }
        for text in ["No", "{n", "[a link]", "[1, 2]", "[a, b", "[]", "(x"] {
            assert!(!may_be(text), "{text}");
        }
    }

    #[test]
    fn calls_of_every_family() {
        let one = Call {
            name: "weather".to_owned(),
            arguments: json!({"city": "Ulm", "days": 3}),
        };
        let json = r#"{"name": "weather", "arguments": {"city": "Ulm", "days": 3}}"#;
        let llama = json.replace("arguments", "parameters");
        let quoted = r#"{"name": "weather", "arguments": "{\"city\": \"Ulm\", \"days\": 3}"}"#;
        for text in [
            format!("<tool_call>\n{json}\n</tool_call>"),
            format!("<tool_call>{json}"),
            json.to_owned(),
            llama,
            format!("[TOOL_CALLS][{json}]"),
            quoted.to_owned(),
            r#"<function=weather>{"city": "Ulm", "days": 3}</function>"#.to_owned(),
            "<tool_call>\n<function=weather>\n<parameter=city>\nUlm\n</parameter>\n\
             <parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
                .to_owned(),
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Ulm</arg_value>\n\
             <arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
                .to_owned(),
            "[weather(city='Ulm', days=3)]".to_owned(),
            "<tool_call>[weather(city=\"Ulm\", days=3)]</tool_call>Looking.".to_owned(),
        ] {
            let expected = (String::new(), vec![one.clone()]);
            assert_eq!(read(&text, &tools()), expected, "{text}");
        }
        let two =
            format!("Let me see. <tool_call>{json}</tool_call>\n<tool_call>{json}</tool_call>");
        let (text, calls) = read(&two, &tools());
        assert_eq!((text.as_str(), calls.len()), ("Let me see.", 2));
        let (_, calls) = read("[time(), weather(city='Ulm')]", &tools());
        assert_eq!(calls.len(), 2);
        let (_, calls) = read(r#"{"name": "time", "arguments": ""}"#, &tools());
        assert_eq!(calls[0].arguments, json!({}));
        for text in [
            "It is 3 degrees.",
            r#"{"name": "launch", "arguments": {}}"#,
            r#"{"answer": 42}"#,
            "<tool_call>nonsense</tool_call>",
            "{",
            "[]",
            "[launch()]",
            "[time()] is how I would ask.",
        ] {
            assert_eq!(read(text, &tools()), (text.to_owned(), vec![]), "{text}");
        }
    }
}
