//! Calls of functions in what a model has written, in the forms of the widespread families.

mod literals;
mod values;

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
/// Calls and arguments that are tags.
struct Tags {
    /// What a call begins with, up to its name.
    call: &'static str,
    /// The same of an argument.
    argument: &'static str,
    /// What follows either name.
    named: &'static str,
    /// What a call ends with.
    end: &'static str,
    /// Whether templates write values on lines of their own.
    lines: bool,
}

const TAGS: [Tags; 2] = [
    // Qwen-Coder; Seed-OSS has no lines.
    Tags {
        call: "<function=",
        argument: "<parameter=",
        named: ">",
        end: "</function>",
        lines: true,
    },
    // MiniMax.
    Tags {
        call: "<invoke name=\"",
        argument: "<parameter name=\"",
        named: "\">",
        end: "</invoke>",
        lines: false,
    },
];
/// What a list of calls begins with (Mistral, where it is text).
const LISTED: &str = "[TOOL_CALLS]";

/// What calls begin with that are not all there is.
pub(crate) fn marks() -> impl Iterator<Item = &'static str> {
    let around = AROUND.iter().map(|[open, _]| *open);
    around.chain(TAGS.iter().map(|tags| tags.call))
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

/// Calls of these functions in an answer, and the text before them. Of an answer that was cut
/// off, and is not whole, a call without its closing mark is none: it would lack arguments, or
/// the end of one.
pub(crate) fn read(text: &str, tools: &[Value], is_whole: bool) -> (String, Vec<Call>) {
    if let Some(start) = starts(text) {
        let said = &text[start..];
        let mut calls = enclosed(said, tools, is_whole);
        if calls.is_empty() {
            calls = tagged(said, tools, is_whole);
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

/// Calls between marks, in any form.
fn enclosed(text: &str, tools: &[Value], is_whole: bool) -> Vec<Call> {
    let mut calls = Vec::new();
    let Some([open, close]) = AROUND.iter().find(|[open, _]| text.contains(open)) else {
        return calls;
    };
    let mut rest = text;
    while let Some((_, body)) = rest.split_once(open) {
        let Some(inner) = closed(body, close, is_whole) else {
            break;
        };
        rest = &body[inner.len()..];
        match listed(inner.trim(), tools) {
            Some(more) => calls.extend(more),
            None => match tagged(inner, tools, is_whole) {
                none if none.is_empty() => calls.extend(pairs(inner, tools, is_whole)),
                more => calls.extend(more),
            },
        }
    }
    calls
}

/// What comes before a closing mark; without one all of it, unless it was cut off.
fn closed<'t>(text: &'t str, mark: &str, is_whole: bool) -> Option<&'t str> {
    match text.split_once(mark) {
        Some((inner, _)) => Some(inner),
        None => is_whole.then_some(text),
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
fn tagged(text: &str, tools: &[Value], is_whole: bool) -> Vec<Call> {
    let of = |tags: &'static Tags| {
        let parts = text.split(tags.call).skip(1);
        parts.filter_map(move |part| tagged_call(part, tags, tools, is_whole))
    };
    TAGS.iter().flat_map(of).collect()
}

/// A call from its name on.
fn tagged_call(text: &str, tags: &Tags, tools: &[Value], is_whole: bool) -> Option<Call> {
    let (name, body) = text.split_once(tags.named)?;
    let tool = find(tools, name.trim())?;
    let body = closed(body, tags.end, is_whole)?;
    let arguments = match parsed(body.trim()) {
        Some(arguments) => arguments,
        None => {
            let parts = body.split(tags.argument).skip(1);
            let pairs = parts.map(|part| {
                let (key, value) = part.split_once(tags.named)?;
                let value = closed(value, "</parameter>", is_whole)?;
                Some((key, if tags.lines { of_lines(value) } else { value }))
            });
            values::arguments(pairs.collect::<Option<Vec<_>>>()?, tool)
        }
    };
    arguments.is_object().then(|| Call {
        name: name.trim().to_owned(),
        arguments,
    })
}

/// A value without the line breaks around it, of which the second is there with the first
/// only.
fn of_lines(value: &str) -> &str {
    match value.strip_prefix('\n') {
        Some(inner) => inner.strip_suffix('\n').unwrap_or(inner),
        None => value,
    }
}

/// `name<arg_key>key</arg_key><arg_value>value</arg_value>` (GLM)
fn pairs(text: &str, tools: &[Value], is_whole: bool) -> Option<Call> {
    let mut parts = text.split("<arg_key>");
    let name = parts.next()?.trim();
    let tool = find(tools, name)?;
    let pairs = parts.map(|part| {
        let (key, value) = part.split_once("</arg_key>")?;
        let (_, value) = value.split_once("<arg_value>")?;
        Some((key, closed(value, "</arg_value>", is_whole)?))
    });
    let arguments = values::arguments(pairs.collect::<Option<Vec<_>>>()?, tool);
    Some(Call {
        name: name.to_owned(),
        arguments,
    })
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
            assert_eq!(read(&text, &tools(), true), expected, "{text}");
        }
        let two =
            format!("Let me see. <tool_call>{json}</tool_call>\n<tool_call>{json}</tool_call>");
        let (text, calls) = read(&two, &tools(), true);
        assert_eq!((text.as_str(), calls.len()), ("Let me see.", 2));
        let (_, calls) = read("[time(), weather(city='Ulm')]", &tools(), true);
        assert_eq!(calls.len(), 2);
        let (_, calls) = read(r#"{"name": "time", "arguments": ""}"#, &tools(), true);
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
            let expected = (text.to_owned(), vec![]);
            assert_eq!(read(text, &tools(), true), expected, "{text}");
        }
    }

    /// Wherever an answer is cut off, there is no call with less than its model was about to
    /// write, and one that was whole before stays.
    #[test]
    fn half_a_call_is_none() {
        let json = r#"{"name": "weather", "arguments": {"city": "Ulm", "days": 3}}"#;
        for (call, end) in [
            (format!("<tool_call>{json}</tool_call>"), "</tool_call>"),
            (format!("<|tool_call|>[{json}]<|/tool_call|>"), "<|/tool_call|>"),
            (json.to_owned(), "}"),
            ("[weather(city='Ulm', days=3)]".to_owned(), "]"),
            (format!("<function=weather>{json}</function>"), "</function>"),
            (
                "<tool_call>\n<function=weather>\n<parameter=city>\nUlm\n</parameter>\n\
                 <parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
                    .to_owned(),
                "</function>",
            ),
            (
                "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Ulm</arg_value>\n\
                 <arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
                    .to_owned(),
                "</tool_call>",
            ),
            (
                "<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">Ulm</parameter>\n\
                 </invoke>\n</minimax:tool_call>"
                    .to_owned(),
                "</invoke>",
            ),
        ] {
            let whole = read(&call, &tools(), false).1;
            assert_eq!(whole, read(&call, &tools(), true).1, "{call}");
            assert_eq!(whole.len(), 1, "{call}");
            let needed = call.rfind(end).unwrap() + end.len();
            for cut in 0..call.len() {
                let (text, calls) = read(&call[..cut], &tools(), false);
                let expected = if cut < needed { &[][..] } else { &whole };
                assert_eq!(calls, expected, "{}", &call[..cut]);
                // What is no call is told as it is.
                assert!(!calls.is_empty() || text == call[..cut]);
                if call.starts_with('<') {
                    let two = format!("{call}{}", &call[..cut]);
                    let calls = read(&two, &tools(), false).1;
                    assert!((1..=2).contains(&calls.len()), "{two}");
                    assert!(calls.iter().all(|call| *call == whole[0]), "{two}");
                }
            }
        }
        // The model has ended it, without its marks.
        let open = "<tool_call>\n<function=weather>\n<parameter=city>\nUlm";
        let (_, calls) = read(open, &tools(), true);
        assert_eq!(calls[0].arguments, json!({"city": "Ulm"}));
    }

    /// Texts are what the model wrote between what its template writes around them.
    #[test]
    fn texts_keep_their_space() {
        let text = "\n  fn main() {\n  }\n";
        for call in [
            format!("<function=weather><parameter=city>\n{text}\n</parameter></function>"),
            "<function=weather>\n<parameter=city>\n\n  fn main() {\n  }\n\n</parameter>\n</function>".to_owned(),
            format!("<invoke name=\"weather\"><parameter name=\"city\">{text}</parameter></invoke>"),
            format!(
                "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>{text}</arg_value>\n</tool_call>"
            ),
        ] {
            let (_, calls) = read(&call, &tools(), true);
            assert_eq!(calls[0].arguments, json!({"city": text}), "{call}");
        }
        // Seed-OSS, whose template has values without lines.
        let call = "<function=weather><parameter=city>  Ulm\n</parameter></function>";
        let (_, calls) = read(call, &tools(), true);
        assert_eq!(calls[0].arguments, json!({"city": "  Ulm\n"}));
    }
}
