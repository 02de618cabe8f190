//! Messages of a conversation, from clients of OpenAI's chats and of ollama to what templates
//! take.

use crate::calls::arguments_of;
use crate::fault::Fault;
use kiv_runtime::Message;
use serde::Deserialize;
use serde_json::Value;

/// A message as clients send it.
#[derive(Deserialize)]
pub(crate) struct Sent {
    role: String,
    /// A text or parts of one.
    #[serde(default)]
    content: Option<Value>,
    #[serde(default)]
    tool_calls: Option<Vec<Value>>,
    #[serde(default)]
    tool_call_id: Option<String>,
    /// Of a function, in messages of role `tool`; the second is ollama's name of it.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    tool_name: Option<String>,
    /// What the assistant thought before it, by the names that clients have for it: some send
    /// it by two.
    #[serde(default)]
    reasoning_content: Option<Value>,
    #[serde(default)]
    reasoning: Option<Value>,
    #[serde(default)]
    thinking: Option<Value>,
    #[serde(default)]
    images: Option<Vec<Value>>,
}

/// Messages of text only.
pub(crate) fn messages(sent: Vec<Sent>) -> Result<Vec<Message>, Fault> {
    if sent.is_empty() {
        return Err(Fault::param("messages", "messages is empty"));
    }
    let all = sent.into_iter().enumerate().map(|(i, sent)| {
        message(sent).map_err(|why| Fault::param("messages", format!("messages[{i}]{why}")))
    });
    let mut all = all.collect::<Result<Vec<Message>, Fault>>()?;
    name_calls(&mut all);
    Ok(all)
}

/// A message; an error goes on after the message's name.
fn message(sent: Sent) -> Result<Message, String> {
    if sent.images.is_some_and(|images| !images.is_empty()) {
        return Err(" with images is not supported".to_owned());
    }
    let content = match &sent.content {
        None => String::new(),
        Some(content) => text_of(content).map_err(|why| format!(".content {why}"))?,
    };
    // `developer` is OpenAI's newer name.
    let role = match sent.role.as_str() {
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => &sent.role,
        other => return Err(format!(": there is no role {other:?}")),
    };
    let mut message = Message::new(role, content);
    if let Some(calls) = sent.tool_calls.filter(|calls| !calls.is_empty()) {
        let calls = calls.into_iter().map(call_for_templates);
        let calls = calls.collect::<Option<Vec<Value>>>();
        let calls = calls.ok_or(": a tool call lacks its function's name")?;
        message.more.insert("tool_calls".to_owned(), calls.into());
    }
    let thoughts = [sent.reasoning_content, sent.reasoning, sent.thinking];
    let thoughts = thoughts.iter().flatten().filter_map(Value::as_str);
    let thoughts = thoughts.map(str::to_owned).find(|text| !text.is_empty());
    think(&mut message, thoughts.unwrap_or_default());
    let name = sent.name.or(sent.tool_name);
    for (key, value) in [("tool_call_id", sent.tool_call_id), ("name", name)] {
        if let Some(value) = value {
            message.more.insert(key.to_owned(), value.into());
        }
    }
    Ok(message)
}

/// The text of a content, which may be a list of parts.
pub(crate) fn text_of(content: &Value) -> Result<String, String> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        other => return Err(format!("must be a text or a list of parts, not {other}")),
    };
    let text = |part: &Value| {
        let name = match part["type"].as_str() {
            Some("input_text" | "output_text" | "text") => "text",
            Some("refusal") => "refusal",
            _ => {
                return Err(format!(
                    "with a part of type {} is not supported",
                    part["type"]
                ));
            }
        };
        let text = part[name].as_str().map(str::to_owned);
        text.ok_or_else(|| format!("has a part without {name}"))
    };
    let texts: Result<Vec<String>, String> = parts.iter().map(text).collect();
    texts.map(|texts| texts.join("\n"))
}

/// What the assistant thought before a message, or before the next part of it. Templates know
/// it by either name.
pub(crate) fn think(message: &mut Message, thoughts: String) {
    if thoughts.is_empty() {
        return;
    }
    for name in ["thinking", "reasoning_content"] {
        let before = message.more.get(name).and_then(Value::as_str);
        let all = before.map_or_else(
            || thoughts.clone(),
            |before| format!("{before}\n{thoughts}"),
        );
        message.more.insert(name.to_owned(), all.into());
    }
}

/// A call with its arguments as an object: clients of OpenAI's protocol send them as
/// text, and templates would quote that.
pub(crate) fn call_for_templates(mut call: Value) -> Option<Value> {
    let function = call.get_mut("function")?.as_object_mut()?;
    function.get("name")?.as_str()?;
    // ollama's number of a call, which no model has written.
    function.shift_remove("index");
    if let Some(Value::String(text)) = function.get("arguments")
        && let Some(arguments @ Value::Object(_)) = arguments_of(text)
    {
        function.insert("arguments".to_owned(), arguments);
    }
    Some(call)
}

/// A call whose result has not come.
struct Open {
    id: String,
    function: String,
}

/// Gives calls and their results names where the client has none, as ollama's clients: Mistral's
/// templates demand nine letters or digits. A name follows from how many calls were before it,
/// so that a conversation that goes on begins as it did.
fn name_calls(messages: &mut [Message]) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut before = 0;
    let mut open = Vec::new();
    for message in messages {
        // What was not answered until then is not any more.
        if message.role == "user" {
            open.clear();
        }
        let calls = message.more.get_mut("tool_calls");
        for call in calls.and_then(Value::as_array_mut).into_iter().flatten() {
            if text(&call["id"]).is_empty() {
                call["id"] = format!("call{before:05}").into();
            }
            before += 1;
            open.push(Open {
                id: text(&call["id"]),
                function: text(&call["function"]["name"]),
            });
        }
        if message.role == "tool" {
            name_result(message, &mut open);
        }
    }
}

/// A result without the name of its call is that of the first one of its function; where it
/// does not tell that either, of the first.
fn name_result(message: &mut Message, open: &mut Vec<Open>) {
    let field = |name: &str| {
        let text = message.more.get(name).and_then(Value::as_str);
        text.filter(|text| !text.is_empty())
    };
    let place = match (field("tool_call_id"), field("name")) {
        (Some(id), _) => open.iter().position(|call| call.id == id),
        (None, name) => open
            .iter()
            .position(|call| name == Some(&call.function))
            .or((!open.is_empty()).then_some(0)),
    };
    if let Some(place) = place {
        let id = open.remove(place).id;
        message.more.insert("tool_call_id".to_owned(), id.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(sent: Value) -> Result<Vec<Message>, Fault> {
        messages(serde_json::from_value(sent).unwrap())
    }

    #[test]
    fn calls_without_names_get_some() {
        let call = |name: &str| json!({"function": {"name": name, "index": 4, "arguments": {}}});
        let mut named = call("a");
        named["id"] = json!("abc");
        let conversation = json!([
            {"role": "user", "content": "?"},
            {"role": "assistant", "tool_calls": [call("a"), call("b"), named, call("a")]},
            {"role": "tool", "tool_name": "b", "content": "1"},
            {"role": "tool", "tool_call_id": "abc", "content": "2"},
            {"role": "tool", "name": "a", "tool_name": "a", "content": "3"},
            {"role": "tool", "content": "4"},
            {"role": "tool", "content": "of none"},
            {"role": "assistant", "tool_calls": [call("a")]},
            {"role": "user", "content": "?"},
            {"role": "assistant", "tool_calls": [call("b")]},
            {"role": "tool", "tool_name": "a", "content": "5"},
        ]);
        let all = of(conversation.clone()).unwrap();
        let names = all.iter().filter_map(|m| m.more.get("tool_calls"));
        let names = names.flat_map(|calls| calls.as_array().unwrap());
        let names: Vec<&Value> = names.map(|call| &call["id"]).collect();
        let expected = [
            "call00000",
            "call00001",
            "abc",
            "call00003",
            "call00004",
            "call00005",
        ];
        assert_eq!(names, expected);
        let results = all.iter().filter(|m| m.role == "tool");
        let results: Vec<&str> = results
            .map(|m| {
                m.more
                    .get("tool_call_id")
                    .map_or("", |id| id.as_str().unwrap())
            })
            .collect();
        let expected = [
            "call00001",
            "abc",
            "call00000",
            "call00003",
            "",
            "call00005",
        ];
        assert_eq!(results, expected);
        let call = &all[1].more["tool_calls"][0]["function"];
        assert_eq!(*call, json!({"name": "a", "arguments": {}}));
        // What was said before is said as it was.
        let begun = conversation.as_array().unwrap()[..4].to_vec();
        assert_eq!(of(begun.into()).unwrap(), all[..4]);
    }

    #[test]
    fn contents() {
        let text = |content: Value| of(json!([{"role": "assistant", "content": content}]));
        for (content, expected) in [
            (json!("x"), "x"),
            (json!(null), ""),
            (json!([]), ""),
            (
                json!([{"type": "text", "text": "x"}, {"type": "refusal", "refusal": "no"}]),
                "x\nno",
            ),
        ] {
            assert_eq!(text(content).unwrap()[0].content, expected);
        }
        for (content, why) in [
            (
                json!([{"type": "text", "text": null}]),
                "has a part without text",
            ),
            (json!([{"type": "refusal"}]), "has a part without refusal"),
            (
                json!([{"type": "image_url"}]),
                "\"image_url\" is not supported",
            ),
            (json!(5), "not 5"),
        ] {
            let fault = text(content).unwrap_err();
            assert_eq!(fault.param, Some("messages"));
            let message = fault.message;
            assert!(
                message.starts_with("messages[0].content ") && message.contains(why),
                "{message}"
            );
        }
    }
}
