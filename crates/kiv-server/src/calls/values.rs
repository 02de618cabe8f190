//! Arguments that are written as texts, each alone: what they are is for the function's schema
//! to say.

use serde_json::Value;

/// Most parts of a schema that are looked at for one value: it may refer to itself.
const MOST: usize = 256;

/// Names and values as an object.
pub(super) fn arguments(pairs: Vec<(&str, &str)>, tool: &Value) -> Value {
    let root = &tool["function"]["parameters"];
    let typed = pairs.into_iter().map(|(key, text)| {
        let key = key.trim();
        let value = value(text, &root["properties"][key], root);
        (key.to_owned(), value)
    });
    Value::Object(typed.collect())
}

/// Text stays text where it may be one. Else it is JSON, or what Python has for it.
fn value(text: &str, schema: &Value, root: &Value) -> Value {
    let may_be = |kind: &str| {
        let mut left = MOST;
        allows(schema, kind, root, &mut left)
    };
    let bare = text.trim();
    if may_be("string") {
        // Templates write an optional text that is not there as either.
        let is_none = matches!(bare, "null" | "None") && may_be("null");
        return if is_none { Value::Null } else { text.into() };
    }
    match bare {
        "True" => true.into(),
        "False" => false.into(),
        "None" => Value::Null,
        bare => serde_json::from_str(bare).unwrap_or_else(|_| text.into()),
    }
}

/// Whether a schema says of a type, `string` or `null`, that a value may be of it.
fn allows(schema: &Value, kind: &str, root: &Value, left: &mut usize) -> bool {
    if *left == 0 {
        return false;
    }
    *left -= 1;
    let is_of_kind = |value: &Value| match kind {
        "string" => value.is_string(),
        _ => value.is_null(),
    };
    let is_said = match &schema["type"] {
        Value::Array(all) => all.iter().any(|one| one == kind),
        // It may be told by its values only.
        Value::Null => {
            let values = schema["enum"].as_array().into_iter().flatten();
            values.chain(schema.get("const")).any(is_of_kind)
        }
        one => one == kind,
    };
    let name = schema["$ref"].as_str().and_then(|to| to.strip_prefix('#'));
    let mut parts = ["anyOf", "oneOf", "allOf"]
        .iter()
        .filter_map(|name| schema[name].as_array())
        .flatten()
        .chain(name.and_then(|name| root.pointer(name)));
    is_said || parts.any(|part| allows(part, kind, root, left))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_what_their_schema_says() {
        let optional = json!({"anyOf": [{"type": "string"}, {"type": "null"}]});
        let list = json!({"type": ["string", "null"]});
        let number = json!({"oneOf": [{"type": "integer"}, {"type": "null"}]});
        for (schema, text, expected) in [
            (json!({"type": "string"}), " 123\n", json!(" 123\n")),
            (json!({"type": "string"}), "None", json!("None")),
            (optional.clone(), "123", json!("123")),
            (optional.clone(), "true", json!("true")),
            (optional, "null", Value::Null),
            (list.clone(), "[1]", json!("[1]")),
            (list, "None", Value::Null),
            (json!({"$ref": "#/$defs/Name"}), "1", json!("1")),
            (json!({"$ref": "#/$defs/Loop"}), "1", json!(1)),
            (json!({"$ref": "#/$defs/Missing"}), "1", json!(1)),
            (json!({"enum": ["1", "2"]}), "1", json!("1")),
            (json!({"const": "1"}), "1", json!("1")),
            (json!({"enum": [1, 2]}), "1", json!(1)),
            (number.clone(), " 12\n", json!(12)),
            (number, "None", Value::Null),
            (json!({"type": "boolean"}), "True", json!(true)),
            (json!({"type": "boolean"}), "False", json!(false)),
            (json!({"type": "array"}), "\n[\"a\"] ", json!(["a"])),
            (json!({"type": "integer"}), " three", json!(" three")),
            (json!({}), "1", json!(1)),
            (json!({}), "Ulm", json!("Ulm")),
        ] {
            let all: Vec<Value> = (0..99).map(|_| json!({"$ref": "#/$defs/Loop"})).collect();
            let tool = json!({"function": {"parameters": {
                "$defs": {"Name": {"allOf": [{"type": "string"}]}, "Loop": {"anyOf": all}},
                "properties": {"it": schema},
            }}});
            let found = arguments(vec![(" it ", text)], &tool);
            assert_eq!(found, json!({"it": expected}), "{schema} {text}");
        }
        let unknown = arguments(vec![("other", "x")], &json!({"function": {}}));
        assert_eq!(unknown, json!({"other": "x"}));
    }
}
