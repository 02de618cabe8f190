//! Functions that a model may call: what clients say of them, and what the model is told.
//!
//! Templates that know of tools get them; to others they are described in a system
//! message, in the form that Hermes and Qwen models use.

use crate::ask::Params;
use crate::calls::{self, Call, name_of};
use crate::fault::Fault;
use kiv_runtime::{ChatTemplate, Grammar, Message, TOOL_CALL};
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
        let n = self.all.iter().filter(wanted).count();
        let wanted = self.all.iter().filter(wanted).enumerate();
        let calls = wanted.map(|(i, tool)| {
            let parameters = tool["function"].get("parameters").filter(|p| p.is_object());
            let mut parameters = parameters.cloned().unwrap_or(json!({"type": "object"}));
            let call = if n == 1 {
                "#".to_owned()
            } else {
                format!("#/anyOf/{i}")
            };
            move_references(&mut parameters, &format!("{call}/properties/arguments/"));
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
        let [open, close] = TOOL_CALL;
        format!(
            "You can call these functions:\n<tools>\n{}\n</tools>\nTo call one, answer with\n\
             {open}\n{{\"name\": \"the function\", \"arguments\": {{…}}}}\n{close}\n\
             and nothing else.",
            lines.join("\n")
        )
    }

    /// Calls in an answer, whole or cut off, and the text before them.
    pub fn read(&self, text: &str, is_whole: bool) -> (String, Vec<Call>) {
        if self.is_empty() {
            return (text.to_owned(), Vec::new());
        }
        let (text, mut calls) = calls::read(text, &self.all, is_whole);
        if self.one_only {
            calls.truncate(1);
        }
        (text, calls)
    }

    #[cfg(test)]
    pub fn of(all: Vec<Value>) -> Self {
        Self {
            all,
            ..Self::default()
        }
    }
}

/// References are from the root of a schema, which parameters are not once they are part of
/// another one.
fn move_references(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(to) if key == "$ref" => {
                        if let Some(path) = to.strip_prefix("#/") {
                            *to = format!("{place}{path}");
                        }
                    }
                    // Values, whatever they look like.
                    _ if matches!(key.as_str(), "const" | "enum" | "default" | "examples") => {}
                    value => move_references(value, place),
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|one| move_references(one, place)),
        _ => {}
    }
}

/// A message for templates that know nothing of tools.
fn without_calls(message: Message) -> Message {
    let [open, close] = TOOL_CALL;
    let calls = message.more.get("tool_calls").and_then(Value::as_array);
    let calls = calls.into_iter().flatten().map(|call| {
        let call = json!({
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
        });
        format!("{open}\n{call}\n{close}")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Tools {
        Tools::of(calls::tests::tools())
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
    fn one_call_only() {
        let one_only = Tools {
            one_only: true,
            ..tools()
        };
        for (tools, expected) in [(tools(), 2), (one_only, 1)] {
            assert_eq!(tools.read("[time(), time()]", true).1.len(), expected);
        }
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

    #[test]
    fn references_of_parameters_stay_theirs() {
        let tool = |name: &str| {
            json!({"type": "function", "function": {"name": name, "parameters": {
                "type": "object",
                "$defs": {"Unit": {"enum": ["c", "f"]}},
                "properties": {
                    "unit": {"$ref": "#/$defs/Unit"},
                    "$ref": {"type": "string", "default": {"$ref": "#/a"}},
                },
            }}})
        };
        let of = |names: &[&str], choice| {
            let all = names.iter().map(|name| tool(name)).collect();
            let tools = Tools {
                choice,
                ..Tools::of(all)
            };
            let Some(Grammar::JsonSchema(schema)) = tools.grammar() else {
                panic!("no grammar");
            };
            serde_json::from_str::<Value>(&schema).unwrap()
        };
        for (names, choice, parameters) in [
            (&["a"][..], Choice::Required, "/properties/arguments"),
            (
                &["a", "b"],
                Choice::Named("b".into()),
                "/properties/arguments",
            ),
            (
                &["a", "b"],
                Choice::Required,
                "/anyOf/1/properties/arguments",
            ),
        ] {
            let schema = of(names, choice);
            let properties = &schema.pointer(parameters).unwrap()["properties"];
            let unit = properties["unit"]["$ref"].as_str().unwrap();
            let found = schema.pointer(unit.strip_prefix('#').unwrap());
            assert_eq!(found, Some(&json!({"enum": ["c", "f"]})), "{unit}");
            assert_eq!(properties["$ref"]["default"]["$ref"], "#/a");
        }
    }
}
