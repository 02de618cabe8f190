//! Functions that a model may call: what clients say of them, how models write calls,
//! and what is made of that.
//!
//! Templates that know of tools get them; to others they are described in a system
//! message, in the form that Hermes and Qwen models use. Calls are recognised in the
//! forms of the widespread families, whichever the model writes.

use crate::ask::Params;
use crate::fault::Fault;
use kiv_runtime::{ChatTemplate, Grammar, Message};
use serde_json::{Value, json};

/// Functions and whether they must be called.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    /// As clients sent them: `{"type": "function", "function": {…}}`.
    all: Vec<Value>,
    choice: Choice,
    /// Whether an answer may have several calls.
    one_only: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Choice {
    #[default]
    Auto,
    Required,
    /// This one.
    Named(String),
}

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub name: String,
    /// A JSON object.
    pub arguments: Value,
}

impl Tools {
    /// From the parameters `tools`, `tool_choice` and `parallel_tool_calls`.
    pub fn take(params: &mut Params) -> Result<Self, Fault> {
        let all: Vec<Value> = params.take("tools")?.unwrap_or_default();
        let choice: Option<Value> = params.take("tool_choice")?;
        for (i, tool) in all.iter().enumerate() {
            let name = name_of(tool).unwrap_or_default();
            let known = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
            if name.is_empty() || !name.bytes().all(known) {
                let why = format!(
                    "tools[{i}] must be {{\"type\": \"function\", \"function\": {{\"name\": …}}}}"
                );
                return Err(Fault::param("tools", why));
            }
        }
        let unknown = |why: String| Fault::param("tool_choice", format!("tool_choice {why}"));
        let choice = match &choice {
            None => Choice::Auto,
            Some(Value::String(word)) => match word.as_str() {
                "auto" => Choice::Auto,
                "none" => return Ok(Self::default()),
                "required" => Choice::Required,
                other => return Err(unknown(format!("cannot be {other:?}"))),
            },
            Some(one) => match name_of(one) {
                Some(name) => Choice::Named(name.to_owned()),
                None => return Err(unknown(format!("cannot be {one}"))),
            },
        };
        if let Choice::Named(name) = &choice
            && !all.iter().any(|tool| name_of(tool) == Some(name))
        {
            return Err(unknown(format!("names {name:?}, which is not among tools")));
        }
        if all.is_empty() && choice != Choice::Auto {
            return Err(unknown("needs tools".to_owned()));
        }
        let parallel = params.take::<bool>("parallel_tool_calls")?;
        Ok(Self {
            all,
            choice,
            one_only: parallel == Some(false),
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What an answer must be, if a function must be called.
    pub fn grammar(&self) -> Option<Grammar> {
        let wanted = |tool: &&Value| match &self.choice {
            Choice::Named(name) => name_of(tool) == Some(name),
            Choice::Required => true,
            Choice::Auto => false,
        };
        let calls = self.all.iter().filter(wanted).map(|tool| {
            let parameters = tool["function"].get("parameters").filter(|p| p.is_object());
            let parameters = parameters.cloned().unwrap_or(json!({"type": "object"}));
            json!({
                "type": "object",
                "properties": {
                    "name": {"const": name_of(tool)},
                    "arguments": parameters,
                },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        });
        let calls: Vec<Value> = calls.collect();
        match calls.len() {
            0 => None,
            1 => Some(Grammar::JsonSchema(calls[0].to_string())),
            _ => Some(Grammar::JsonSchema(json!({"anyOf": calls}).to_string())),
        }
    }

    /// Messages as a template takes them, and the tools for it.
    pub fn prepare(
        &self,
        template: &ChatTemplate,
        messages: Vec<Message>,
    ) -> (Vec<Message>, Value) {
        let knows = matches!(template, ChatTemplate::Jinja(source) if source.contains("tools"));
        if knows {
            let tools = if self.is_empty() {
                Value::Null
            } else {
                Value::Array(self.all.clone())
            };
            return (messages, tools);
        }
        let mut plain: Vec<Message> = messages.into_iter().map(without_calls).collect();
        if !self.is_empty() {
            let told = self.described();
            match plain.first_mut().filter(|first| first.role == "system") {
                Some(first) => first.content = format!("{}\n\n{told}", first.content),
                None => plain.insert(0, Message::new("system", told)),
            }
        }
        (plain, Value::Null)
    }

    /// What the model is told of the tools if its template has no place for them.
    fn described(&self) -> String {
        let lines: Vec<String> = self.all.iter().map(Value::to_string).collect();
        format!(
            "You can call these functions:\n<tools>\n{}\n</tools>\nTo call one, answer with\n\
             <tool_call>\n{{\"name\": \"the function\", \"arguments\": {{…}}}}\n</tool_call>\n\
             and nothing else.",
            lines.join("\n")
        )
    }

    /// Calls in an answer and the text before them.
    pub fn read(&self, text: &str) -> (String, Vec<Call>) {
        let (text, mut calls) = self.read_all(text);
        if self.one_only {
            calls.truncate(1);
        }
        (text, calls)
    }

    fn read_all(&self, text: &str) -> (String, Vec<Call>) {
        if self.is_empty() {
            return (text.to_owned(), Vec::new());
        }
        let calls_of = |value: &Value| -> Option<Vec<Call>> {
            let one = |value: &Value| {
                let name = value.get("name")?.as_str()?;
                let arguments = value.get("arguments").or_else(|| value.get("parameters"));
                let arguments = match arguments {
                    None => json!({}),
                    // Written as OpenAI's clients see it.
                    Some(Value::String(text)) => arguments_of(text)?,
                    Some(other) => other.clone(),
                };
                let known = self.all.iter().any(|tool| name_of(tool) == Some(name));
                (known && arguments.is_object()).then(|| Call {
                    name: name.to_owned(),
                    arguments,
                })
            };
            match value {
                Value::Array(all) if !all.is_empty() => all.iter().map(one).collect(),
                one_value => Some(vec![one(one_value)?]),
            }
        };
        if let Some(start) = starts(text) {
            let mut calls = Vec::new();
            let mut rest = &text[start..];
            while let Some(at) = rest.find(CALL) {
                let body = &rest[at + CALL.len()..];
                let end = body.find(CALL_END);
                let inner = &body[..end.unwrap_or(body.len())];
                match parsed(inner.trim()).as_ref().and_then(calls_of) {
                    Some(more) => calls.extend(more),
                    None if inner.contains(FUNCTION) => calls.extend(functions(inner, self)),
                    None => calls.extend(pairs(inner, self)),
                }
                rest = end.map_or("", |end| &body[end + CALL_END.len()..]);
            }
            if calls.is_empty() {
                calls = functions(&text[start..], self);
            }
            if !calls.is_empty() {
                return (text[..start].trim_end().to_owned(), calls);
            }
        }
        let bare = text.trim();
        let bare = bare.strip_prefix("[TOOL_CALLS]").unwrap_or(bare).trim();
        match parsed(bare).as_ref().and_then(calls_of) {
            Some(calls) => (String::new(), calls),
            None => (text.to_owned(), Vec::new()),
        }
    }
}

/// Arguments as OpenAI's protocol has them, a text, of which nothing is no arguments.
pub(crate) fn arguments_of(text: &str) -> Option<Value> {
    if text.trim().is_empty() {
        return Some(json!({}));
    }
    serde_json::from_str(text).ok()
}

const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";
const FUNCTION: &str = "<function=";

/// Where the first call begins.
fn starts(text: &str) -> Option<usize> {
    [CALL, FUNCTION]
        .into_iter()
        .filter_map(|mark| text.find(mark))
        .min()
}

/// The name in `{"type": "function", "function": {"name": …}}`.
fn name_of(tool: &Value) -> Option<&str> {
    let is_function = tool.get("type").is_none_or(|kind| kind == "function");
    tool.get("function")?
        .get("name")?
        .as_str()
        .filter(|_| is_function)
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
fn functions(text: &str, tools: &Tools) -> Vec<Call> {
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
        let Some(tool) = tools.all.iter().find(|tool| name_of(tool) == Some(name)) else {
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
fn pairs(text: &str, tools: &Tools) -> Option<Call> {
    let mut parts = text.split("<arg_key>");
    let name = parts.next()?.trim();
    let tool = tools.all.iter().find(|tool| name_of(tool) == Some(name))?;
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

/// A message for templates that know nothing of tools.
fn without_calls(message: Message) -> Message {
    let calls = message.more.get("tool_calls").and_then(Value::as_array);
    let calls = calls.into_iter().flatten().map(|call| {
        let call = json!({
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
        });
        format!("{CALL}\n{call}\n{CALL_END}")
    });
    let said = Some(message.content.clone()).filter(|text| !text.is_empty());
    let content: Vec<String> = said.into_iter().chain(calls).collect();
    let content = content.join("\n");
    if message.role == "tool" {
        let told = format!("<tool_response>\n{content}\n</tool_response>");
        return Message::new("user", told);
    }
    let mut more = message.more;
    more.remove("tool_calls");
    Message {
        role: message.role,
        content,
        more,
    }
}

/// Takes an answer as it comes and tells what of it can be shown at once: text that can
/// be part of no call.
#[derive(Default)]
pub(crate) struct Listener {
    tools: Tools,
    text: String,
    shown: usize,
}

impl Listener {
    /// Of an answer that may call these.
    pub fn new(tools: Tools) -> Self {
        Self {
            tools,
            ..Self::default()
        }
    }

    /// More of the answer has come; what can be shown now.
    pub fn hear(&mut self, more: &str) -> String {
        if self.tools.is_empty() {
            return more.to_owned();
        }
        self.text += more;
        let begins = self.text.trim_start();
        // A call may be all there is.
        if begins.is_empty() || begins.starts_with(['{', '[']) {
            return String::new();
        }
        let end = starts(&self.text).unwrap_or_else(|| {
            // A mark may be about to come.
            let text = &self.text;
            let begun = |mark: &str| (1..mark.len()).rev().find(|n| text.ends_with(&mark[..*n]));
            let held = [CALL, FUNCTION].into_iter().filter_map(begun).max();
            text.len() - held.unwrap_or(0)
        });
        let shown = self.shown;
        self.shown = end.max(shown);
        self.text[shown..self.shown].to_owned()
    }

    /// The answer is complete: text that has not been shown, and calls.
    pub fn end(self) -> (String, Vec<Call>) {
        let (text, calls) = self.tools.read(&self.text);
        let rest = if calls.is_empty() {
            self.text[self.shown..].to_owned()
        } else {
            text.get(self.shown..).unwrap_or_default().to_owned()
        };
        (rest, calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Tools {
        let function = |name: &str| {
            json!({"type": "function", "function": {
                "name": name,
                "parameters": {"type": "object", "properties": {
                    "city": {"type": "string"}, "days": {"type": "integer"}}},
            }})
        };
        Tools {
            all: vec![function("weather"), function("time")],
            choice: Choice::Auto,
            one_only: false,
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
        ] {
            assert_eq!(
                tools().read(&text),
                (String::new(), vec![one.clone()]),
                "{text}"
            );
        }
        let two =
            format!("Let me see. <tool_call>{json}</tool_call>\n<tool_call>{json}</tool_call>");
        let (text, calls) = tools().read(&two);
        assert_eq!((text.as_str(), calls.len()), ("Let me see.", 2));
        let one_only = Tools {
            one_only: true,
            ..tools()
        };
        let (text, calls) = one_only.read(&two);
        assert_eq!((text.as_str(), calls), ("Let me see.", vec![one]));
        let (_, calls) = tools().read(r#"{"name": "time", "arguments": ""}"#);
        assert_eq!(calls[0].arguments, json!({}));
        for text in [
            "It is 3 degrees.",
            r#"{"name": "launch", "arguments": {}}"#,
            r#"{"answer": 42}"#,
            "<tool_call>nonsense</tool_call>",
            "{",
            "[]",
        ] {
            assert_eq!(tools().read(text), (text.to_owned(), vec![]), "{text}");
        }
    }

    /// However the answer is cut into pieces, nothing of a call is shown, and nothing else
    /// is lost.
    #[test]
    fn what_is_shown_while_it_comes() {
        let json = r#"{"name": "time", "arguments": {}}"#;
        for (text, shown, calls) in [
            (
                format!("I look. <tool_call>{json}</tool_call>"),
                "I look. ",
                1,
            ),
            (json.to_owned(), "", 1),
            ("a < b and <tool> too".to_owned(), "a < b and <tool> too", 0),
            ("{not a call}".to_owned(), "{not a call}", 0),
        ] {
            for size in 1..text.len() {
                let mut listener = Listener::new(tools());
                let mut said = String::new();
                let bytes = text.as_bytes();
                for piece in bytes.chunks(size) {
                    said += &listener.hear(std::str::from_utf8(piece).unwrap());
                }
                let (rest, found) = listener.end();
                said += &rest;
                assert_eq!((said.as_str(), found.len()), (shown, calls), "{size}");
            }
        }
    }

    #[test]
    fn templates_without_tools_are_told_in_words() {
        let call = json!([{"type": "function", "function": {"name": "time", "arguments": {}}}]);
        let mut asked = Message::new("assistant", "");
        asked.more.insert("tool_calls".to_owned(), call);
        let all = vec![
            Message::new("user", "What time is it?"),
            asked,
            Message::new("tool", "noon"),
        ];
        let plain = ChatTemplate::parse("{{ messages }}");
        let (messages, given) = tools().prepare(&plain, all.clone());
        assert!(given.is_null());
        assert_eq!(messages[0].role, "system");
        assert!(messages[0].content.contains("\"weather\""));
        assert!(messages[2].content.contains("<tool_call>"));
        assert!(messages[3].role == "user" && messages[3].content.contains("noon"));
        let knowing = ChatTemplate::parse("{{ messages }}{{ tools }}");
        let (messages, given) = tools().prepare(&knowing, all.clone());
        assert_eq!((messages, given.as_array().unwrap().len()), (all, 2));
    }

    #[test]
    fn a_call_that_must_be_has_a_grammar() {
        assert_eq!(tools().grammar(), None);
        let named = Tools {
            choice: Choice::Named("time".to_owned()),
            ..tools()
        };
        let Some(Grammar::JsonSchema(schema)) = named.grammar() else {
            panic!("no grammar");
        };
        assert!(schema.contains("time") && !schema.contains("weather"));
    }
}
