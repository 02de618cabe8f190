//! Calls of functions in what a model has written, in the forms of the widespread families.

mod literals;

use kiv_runtime::TOOL_CALL;
use serde_json::{Value, json};

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub name: String,
    /// A JSON object.
    pub arguments: Value,
}

/// What calls stand between.
const AROUND: [[&str; 2]; 4] = [
    TOOL_CALL,
    // Phi-4 and Granite, where it is text.
    ["<|tool_call|>", "<|/tool_call|>"],
    // Nemotron.
    ["<TOOLCALL>", "</TOOLCALL>"],
    // MiniMax.
    ["<minimax:tool_call>", "</minimax:tool_call>"],
];
/// What a call and an argument begin with where they are tags, up to their names, and what
/// ends the name.
const TAGS: [[&str; 3]; 2] = [
    ["<function=", "<parameter=", ">"],
    ["<invoke name=\"", "<parameter name=\"", "\">"],
];
/// What a list of calls begins with (Mistral, where it is text).
const LISTED: &str = "[TOOL_CALLS]";

/// What calls begin with that are not all there is.
pub(crate) fn marks() -> impl Iterator<Item = &'static str> {
    let around = AROUND.iter().map(|[open, _]| *open);
    around.chain(TAGS.iter().map(|[call, ..]| *call))
}

/// Where the first call begins.
pub(crate) fn starts(text: &str) -> Option<usize> {
    marks().filter_map(|mark| text.find(mark)).min()
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
        let after = inner.trim_start_matches(literals::is_of_name).trim_start();
        return object(inner) || inner.is_empty() || after.is_empty() || after.starts_with('(');
    }
    object(begins)
}

/// Calls of these functions in an answer, and the text before them.
pub(crate) fn read(text: &str, tools: &[Value]) -> (String, Vec<Call>) {
    if let Some(start) = starts(text) {
        let said = &text[start..];
        let around = AROUND.iter().find(|[open, _]| said.contains(open));
        let mut calls = Vec::new();
        if let Some([open, close]) = around {
            let mut rest = said;
            while let Some((_, body)) = rest.split_once(open) {
                let inner;
                (inner, rest) = body.split_once(close).unwrap_or((body, ""));
                match listed(inner.trim(), tools) {
                    Some(more) => calls.extend(more),
                    None => match tagged(inner, tools) {
                        none if none.is_empty() => calls.extend(pairs(inner, tools)),
                        more => calls.extend(more),
                    },
                }
            }
        }
        if calls.is_empty() {
            calls = tagged(said, tools);
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

/// `{"name": …, "arguments": {…}}`, a list of these, or calls whose arguments are literals
/// (Llama 4, LFM2, Gemma 4).
fn listed(text: &str, tools: &[Value]) -> Option<Vec<Call>> {
    let one = |value: &Value| {
        // The second names are Cohere's and Llama 3's.
        let either =
            |name: &str, other: &str| value.get(name).or_else(|| value.get(other)).cloned();
        let Some(Value::String(name)) = either("name", "tool_name") else {
            return None;
        };
        let arguments = match either("arguments", "parameters") {
            None => json!({}),
            // Written as OpenAI's clients see it.
            Some(Value::String(text)) => arguments_of(&text)?,
            Some(other) => other,
        };
        arguments.is_object().then_some(Call { name, arguments })
    };
    let calls = match parsed(text) {
        Some(Value::Array(all)) if !all.is_empty() => all.iter().map(one).collect(),
        Some(value) => one(&value).map(|call| vec![call]),
        None => literals::python(text).or_else(|| Some(vec![literals::gemma(text)?])),
    };
    let are_known = |calls: &Vec<Call>| calls.iter().all(|call| find(tools, &call.name).is_some());
    calls.filter(are_known)
}

/// The JSON document that a text begins with, if it is an object or a list.
fn parsed(text: &str) -> Option<Value> {
    if !text.starts_with(['{', '[']) {
        return None;
    }
    let mut all = serde_json::Deserializer::from_str(text).into_iter();
    all.next()?.ok()
}

/// `<function=name>{…}</function>`, or with `<parameter=key>value</parameter>` inside; the
/// same with `<invoke name="name">`.
fn tagged(text: &str, tools: &[Value]) -> Vec<Call> {
    let mut calls = Vec::new();
    for [call, parameter, end] in TAGS {
        for part in text.split(call).skip(1) {
            let Some((name, body)) = part.split_once(end) else {
                continue;
            };
            let Some(tool) = find(tools, name.trim()) else {
                continue;
            };
            let body = ["</function>", "</invoke>"]
                .iter()
                .find_map(|close| body.split_once(close))
                .map_or(body, |(body, _)| body);
            let parameters = || {
                let parts = body.split(parameter).skip(1);
                let pairs = parts.filter_map(|part| {
                    let (key, value) = part.split_once(end)?;
                    Some((key, value.split("</parameter>").next()?))
                });
                arguments(pairs, tool)
            };
            let arguments = parsed(body.trim()).unwrap_or_else(parameters);
            if arguments.is_object() {
                calls.push(Call {
                    name: name.trim().to_owned(),
                    arguments,
                });
            }
        }
    }
    calls
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
            "<tool_call>call:weather{city:<|\"|>Ulm<|\"|>,days:3}</tool_call>".to_owned(),
            format!("<|tool_call|>[{json}]<|/tool_call|>"),
            format!("<|tool_call|>[{json}]"),
            format!("<TOOLCALL>[{json}]</TOOLCALL>"),
            format!("<tool_call>[{}]</tool_call>", json.replace("name", "tool_name").replace("arguments", "parameters")),
            "<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">Ulm</parameter>\n\
             <parameter name=\"days\">3</parameter>\n</invoke>\n</minimax:tool_call>"
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
