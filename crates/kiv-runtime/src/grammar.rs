//! What generated text must be, in a form that llama.cpp can read without harm.
//!
//! Grammars and schemas come from whoever may ask a server. llama.cpp reads them with functions
//! that call themselves, for each group, rule and reference, and stops at no depth of its own: a
//! few bytes that refer to themselves would end the process. So what goes too deep or in circles
//! is refused first, and the rest is read on a stack that has room for it.

use crate::error::Error;
use crate::model::Model;
use llama_cpp_2::sampling::LlamaSampler;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Bytes of a grammar or schema at most. llama.cpp uses up to some 15 KB of stack for the
/// shortest rule that refers to the next one, which takes about 40 bytes here.
const MOST_BYTES: usize = 128 << 10;

/// Stack to read one with. Only what is used of it becomes memory.
const STACK: usize = 128 << 20;

/// Groups within groups.
const DEEPEST: usize = 200;

/// Properties of an object at most. llama.cpp's work grows with the cube of how many there are.
const MOST_PROPERTIES: usize = 512;

/// Bytes of a property's name. llama.cpp looks for bytes that no rule's name may have with a
/// regular expression that calls itself for each of them.
const LONGEST_NAME: usize = 4096;

/// References that lead to nothing but another one.
const MOST_REFERENCES: usize = 64;

/// What generated text must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// A grammar in llama.cpp's notation (GBNF), of which `root` is the whole text.
    Gbnf(String),
    /// A JSON document of this schema (itself a JSON document), as far as llama.cpp
    /// turns schemas into grammars.
    JsonSchema(String),
    /// What [`Grammar::checked`] gave.
    Checked(Checked),
}

/// A grammar that llama.cpp has read once, and can again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked(Arc<str>);

impl Grammar {
    /// Any JSON object.
    #[must_use]
    pub fn json_object() -> Self {
        Self::JsonSchema(r#"{"type":"object"}"#.to_owned())
    }

    /// The same, once llama.cpp has taken it: to make a grammar of a large schema needs a second
    /// of computing, which is done then.
    ///
    /// # Errors
    /// [`Error::Grammar`].
    pub fn checked(&self, model: &Model) -> Result<Self, Error> {
        let (_, read) = self.read(model)?;
        Ok(Self::Checked(Checked(read)))
    }

    pub(crate) fn sampler(&self, model: &Model) -> Result<LlamaSampler, Error> {
        self.read(model).map(|(sampler, _)| sampler)
    }

    /// What llama.cpp makes of it, and the text that it has read.
    fn read(&self, model: &Model) -> Result<(LlamaSampler, Arc<str>), Error> {
        self.harmless().map_err(|why| Error::Grammar { why })?;
        stacker::grow(STACK, || {
            let gbnf: Arc<str> = match self {
                Self::Gbnf(gbnf) => gbnf.as_str().into(),
                Self::Checked(Checked(gbnf)) => gbnf.clone(),
                Self::JsonSchema(schema) => {
                    let made = llama_cpp_2::json_schema_to_grammar(schema);
                    let made = made.map_err(|_| Error::Grammar {
                        why: "llama.cpp cannot make a grammar of the JSON schema".to_owned(),
                    })?;
                    made.into()
                }
            };
            if let Some(repetition) = reversed(&gbnf) {
                let why = format!("the repetition {{{repetition}}} ends before it begins");
                return Err(Error::Grammar { why });
            }
            let made = LlamaSampler::grammar(model.raw().get(), &gbnf, "root");
            let made = made.map_err(|e| Error::Grammar { why: e.to_string() })?;
            Ok((made, gbnf))
        })
    }

    /// Why llama.cpp had better not see it.
    fn harmless(&self) -> Result<(), String> {
        let (Self::Gbnf(text) | Self::JsonSchema(text)) = self else {
            return Ok(());
        };
        if text.len() > MOST_BYTES {
            let n = text.len();
            return Err(format!("it has {n} bytes, {MOST_BYTES} are the most"));
        }
        match self {
            Self::Gbnf(gbnf) if depth(gbnf) > DEEPEST => {
                Err(format!("more than {DEEPEST} groups are in one another"))
            }
            Self::Gbnf(_) | Self::Checked(_) => Ok(()),
            Self::JsonSchema(schema) => {
                let root = serde_json::from_str(schema);
                let root: Value = root.map_err(|e| format!("the JSON schema is no JSON: {e}"))?;
                Schema(&root).check(&root)
            }
        }
    }
}

/// How many groups are in one another, at most.
fn depth(gbnf: &str) -> usize {
    let (mut now, mut most) = (0_usize, 0);
    for byte in signs(gbnf) {
        match byte {
            b'(' => now += 1,
            b')' => now = now.saturating_sub(1),
            _ => {}
        }
        most = most.max(now);
    }
    most
}

/// A repetition of at least so many and at most fewer, for which llama.cpp would make rules
/// until there is no memory: it counts how many more from 0 on, downwards.
fn reversed(gbnf: &str) -> Option<String> {
    let mut signs = signs(gbnf).filter(|byte| !byte.is_ascii_whitespace());
    while signs.any(|byte| byte == b'{') {
        let times: Vec<u8> = signs.by_ref().take_while(|byte| *byte != b'}').collect();
        let times = String::from_utf8_lossy(&times);
        let number = |text: &str| text.parse::<u64>().ok();
        let bounds = times.split_once(',');
        let bounds = bounds.and_then(|(least, most)| Some((number(least)?, number(most)?)));
        if bounds.is_some_and(|(least, most)| most < least) {
            return Some(times.into_owned());
        }
    }
    None
}

/// What is neither in literals, nor in sets of characters or comments.
fn signs(gbnf: &str) -> impl Iterator<Item = u8> {
    let mut bytes = gbnf.bytes();
    std::iter::from_fn(move || {
        loop {
            let byte = bytes.next()?;
            match byte {
                b'"' => skip(&mut bytes, b'"'),
                b'[' => skip(&mut bytes, b']'),
                b'#' => {
                    bytes.find(|b| matches!(b, b'\r' | b'\n'));
                    continue;
                }
                _ => {}
            }
            return Some(byte);
        }
    })
}

/// Leaves a literal, or a set of characters, whose end may stand in it after a backslash.
fn skip(bytes: &mut std::str::Bytes, end: u8) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            _ if byte == end => return,
            _ => {}
        }
    }
}

/// A schema, by its root, which references are from.
struct Schema<'a>(&'a Value);

impl<'a> Schema<'a> {
    /// Looks at everything in it, as JSON: how deep that goes is limited by its parser.
    fn check(&self, value: &'a Value) -> Result<(), String> {
        let object = match value {
            Value::Object(object) => object,
            Value::Array(all) => return all.iter().try_for_each(|one| self.check(one)),
            _ => return Ok(()),
        };
        self.target(value)?;
        if self.properties(value)? > MOST_PROPERTIES {
            return Err(format!(
                "an object has more than {MOST_PROPERTIES} properties"
            ));
        }
        if let Some(name) = object.keys().find(|name| name.len() > LONGEST_NAME) {
            let n = name.len();
            return Err(format!("a name has {n} bytes, {LONGEST_NAME} are the most"));
        }
        object.values().try_for_each(|one| self.check(one))
    }

    /// Where references lead from here: what is no reference, if there is such.
    fn target(&self, from: &'a Value) -> Result<Option<&'a Value>, String> {
        let mut at = from;
        for _ in 0..MOST_REFERENCES {
            let Some(Value::String(reference)) = at.get("$ref") else {
                return Ok(Some(at));
            };
            match self.named(reference) {
                Some(next) => at = next,
                // llama.cpp says so.
                None => return Ok(None),
            }
        }
        let from = &from["$ref"];
        Err(format!("the $ref {from} leads to references alone"))
    }

    /// What llama.cpp takes a reference for, which knows no escapes.
    fn named(&self, reference: &str) -> Option<&'a Value> {
        let mut at = self.0;
        for part in reference.strip_prefix("#/")?.split('/') {
            at = match at {
                Value::Object(object) => object.get(part)?,
                Value::Array(all) => all.get(part.parse::<usize>().ok()?)?,
                _ => return None,
            };
        }
        Some(at)
    }

    /// Properties of an object, those of all that it is made of included.
    fn properties(&self, object: &'a Value) -> Result<usize, String> {
        let own = |value: &Value| {
            let properties = value.get("properties").and_then(Value::as_object);
            properties.map_or(0, Map::len)
        };
        let mut all = own(object);
        for part in list(object.get("allOf")) {
            let choices = list(part.get("anyOf")).chain(list(part.get("oneOf")));
            for choice in choices.chain([part]) {
                all += self.target(choice)?.map_or(0, own);
            }
        }
        Ok(all)
    }
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What has been read is read again, although it is longer than what may be asked for.
    #[test]
    fn what_was_checked_is_not_made_again() {
        let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let model = Model::load(models.join("tiny-f16.gguf")).unwrap();
        let names = (0..200).map(|i| (format!("{i:0300}"), json!({"type": "string"})));
        let properties = Value::Object(names.collect());
        let schema = json!({"type": "object", "properties": properties}).to_string();
        let checked = Grammar::JsonSchema(schema).checked(&model).unwrap();
        let Grammar::Checked(Checked(gbnf)) = &checked else {
            panic!("{checked:?}");
        };
        assert!(gbnf.len() > MOST_BYTES && gbnf.contains("root ::="));
        checked.sampler(&model).unwrap();
        assert_eq!(checked.checked(&model).unwrap(), checked);
        let wrong = Grammar::Gbnf("root ::= none".to_owned());
        assert!(wrong.checked(&model).is_err());
    }

    fn harmless(schema: &Value) -> Result<(), String> {
        Grammar::JsonSchema(schema.to_string()).harmless()
    }

    #[test]
    fn groups_are_counted_where_they_are_some() {
        assert_eq!(depth(r#"root ::= "((((\"(" ([(\](] | a) # (((("#), 1);
        assert_eq!(depth("root ::= ((a) (b (c)))\n"), 3);
        assert_eq!(depth("root ::= \"\\"), 0);
        let deep = format!("root ::= {}\"a\"{}", "(".repeat(9000), ")".repeat(9000));
        let refused = Grammar::Gbnf(deep).harmless().unwrap_err();
        assert!(refused.contains("groups"), "{refused}");
        let long = Grammar::Gbnf(format!("root ::= \"{}\"", "a".repeat(MOST_BYTES)));
        assert!(long.harmless().unwrap_err().contains("bytes"));
    }

    #[test]
    fn repetitions_end_after_they_begin() {
        for (gbnf, found) in [
            ("root ::= \"a\"{5,2}", Some("5,2")),
            ("root ::= a{1,2} (b { 30 , # more\n 4 } )", Some("30,4")),
            (
                "root ::= a{2} b{2,} c{2,2} d{0,7} \"{5,2}\" [{5,2}] # {5,2}",
                None,
            ),
            ("root ::= a{99999999999999999999,1} {", None),
        ] {
            assert_eq!(reversed(gbnf).as_deref(), found, "{gbnf}");
        }
        let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let model = Model::load(models.join("tiny-f16.gguf")).unwrap();
        for schema in [
            json!({"type": "string", "minLength": 5, "maxLength": 2}),
            json!({"type": "string", "pattern": "^a{5,2}$"}),
        ] {
            let refused = Grammar::JsonSchema(schema.to_string()).checked(&model);
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("{5,2}"), "{refused}");
        }
    }

    #[test]
    fn references_must_lead_somewhere() {
        let circle = json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            "allOf": [{"$ref": "#/$defs/a"}]});
        assert!(harmless(&circle).unwrap_err().contains("$ref"));
        // A tree refers to itself by way of its branches.
        let tree = json!({"$defs": {"tree": {"type": "object", "properties": {
            "branches": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}},
            "$ref": "#/$defs/tree"});
        assert_eq!(harmless(&tree), Ok(()));
        let missing = json!({"$ref": "#/$defs/none"});
        assert_eq!(harmless(&missing), Ok(()), "llama.cpp tells of it");
    }

    #[test]
    fn objects_have_as_many_properties_as_can_be_worked_with() {
        let object = |n: usize, of: usize| {
            let all = (0..n).map(|i| (format!("p{of}_{i}"), json!({"type": "string"})));
            json!({"type": "object", "properties": Value::Object(all.collect())})
        };
        assert_eq!(harmless(&object(512, 0)), Ok(()));
        assert!(harmless(&object(513, 0)).is_err());
        let parts: Vec<Value> = (0..3).map(|of| object(200, of)).collect();
        assert!(harmless(&json!({"allOf": parts})).is_err());
        assert_eq!(harmless(&json!({"anyOf": parts})), Ok(()));
        let name = "é".repeat(LONGEST_NAME);
        assert!(harmless(&json!({"properties": {name: {}}})).is_err());
    }
}
