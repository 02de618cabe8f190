//! Chat templates: from messages to the text that the model was trained on.

use crate::error::Error;
use crate::jinja;
use crate::markup::{CHANNEL, THINK};
use crate::model::Model;
use llama_cpp_2::model::{LlamaChatMessage, LlamaChatTemplate};
use minijinja::context;
use serde_json::{Map, Value, json};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said.
    pub content: String,
    /// Further fields that templates may look at, such as `tool_calls`.
    pub more: Map<String, Value>,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            more: Map::new(),
        }
    }
}

/// A chat template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatTemplate {
    /// Jinja, as models carry it.
    Jinja(String),
    /// One of those that llama.cpp knows by name, such as `chatml`.
    Named(String),
}

impl ChatTemplate {
    /// What `--chat-template` means: Jinja if it looks like it, a name
    /// otherwise.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text.contains("{%") || text.contains("{{") {
            Self::Jinja(text.to_owned())
        } else {
            Self::Named(text.to_owned())
        }
    }

    /// The model's own template, if it carries one.
    #[must_use]
    pub fn of(model: &Model) -> Option<Self> {
        model.metadata("tokenizer.chat_template").map(Self::Jinja)
    }

    /// The conversation as text, with the opening of the assistant's answer
    /// at its end. For [`Model::tokenize`] with `start`: a start token that many templates
    /// begin with is left out if the model gets one from there.
    ///
    /// # Errors
    /// [`Error::Template`] if the template is unknown or does not render.
    pub fn apply(&self, model: &Model, messages: &[Message]) -> Result<String, Error> {
        self.apply_with(model, messages, &Map::new())
    }

    /// As [`ChatTemplate::apply`], with other variables that Jinja templates look at, such
    /// as `tools` (a list of functions that the model may call) or `enable_thinking`.
    /// Templates that are known by their name only know none.
    ///
    /// # Errors
    /// As [`ChatTemplate::apply`].
    pub fn apply_with(
        &self,
        model: &Model,
        messages: &[Message],
        variables: &Map<String, Value>,
    ) -> Result<String, Error> {
        let text = match self {
            Self::Jinja(source) => render(model, source, messages, variables).or_else(|why| {
                // llama.cpp recognizes common templates without running them, but only
                // roles and texts reach them.
                let is_plain = variables.is_empty() && messages.iter().all(|m| m.more.is_empty());
                let text = builtin(model, source, messages).ok().filter(|_| is_plain);
                text.ok_or(Error::Template(why))
            }),
            Self::Named(_) if messages.iter().any(|m| m.content.contains('\0')) => Err(
                // llama.cpp takes C strings.
                Error::Template("a message with a zero byte in it cannot be taken".to_owned()),
            ),
            Self::Named(name) => builtin(model, name, messages).map_err(|_| {
                Error::Template(format!("`{name}` is neither Jinja nor a known name"))
            }),
        };
        text.map(|text| without_start(model, text))
    }
}

/// Without the start token in front, if the model would get it twice.
fn without_start(model: &Model, mut text: String) -> String {
    let Some((id, start)) = model.special("bos") else {
        return text;
    };
    if text.starts_with(&start) && model.tokenize("", true).first() == Some(&id) {
        text.drain(..start.len());
    }
    text
}

/// Thoughts before an answer, and the answer.
fn thoughts(content: &str) -> Option<(&str, &str)> {
    let rest = content.trim_start().strip_prefix(THINK[0])?;
    let (thoughts, said) = rest.split_once(THINK[1])?;
    Some((thoughts.trim(), said.trim_start()))
}

fn render(
    model: &Model,
    source: &str,
    messages: &[Message],
    variables: &Map<String, Value>,
) -> Result<String, String> {
    let token = |name| model.special(name).map_or(String::new(), |(_, text)| text);
    let messages = messages.iter().map(|m| {
        let mut all = m.more.clone();
        let mut content = &m.content[..];
        // As generated text has them; a template of channels has a place for them.
        if m.role == "assistant"
            && source.contains(CHANNEL)
            && let Some((thoughts, said)) = thoughts(content)
        {
            // gpt-oss's refuses both beside calls.
            if said.is_empty() || !all.contains_key("tool_calls") {
                all.entry("thinking").or_insert(json!(thoughts));
            }
            content = said;
        }
        all.insert("role".to_owned(), json!(m.role));
        all.insert("content".to_owned(), json!(content));
        jinja::map(&all)
    });
    let messages: Vec<_> = messages.collect();
    let own = context! {
        messages,
        add_generation_prompt => true,
        bos_token => token("bos"),
        eos_token => token("eos"),
    };
    let others = jinja::map(variables);
    // Templates ask whether there are any tools; of two values the first one's counts.
    let usual = context! { tools => () };
    jinja::render(source, context! { ..own, ..others, ..usual })
}

fn builtin(model: &Model, template: &str, messages: &[Message]) -> Result<String, String> {
    let template = LlamaChatTemplate::new(template).map_err(|e| e.to_string())?;
    let messages: Result<Vec<_>, _> = messages
        .iter()
        .map(|m| LlamaChatMessage::new(m.role.clone(), m.content.clone()))
        .collect();
    let messages = messages.map_err(|e| e.to_string())?;
    model
        .raw()
        .get()
        .apply_chat_template(&template, &messages, true)
        .map_err(|e| e.to_string())
}
