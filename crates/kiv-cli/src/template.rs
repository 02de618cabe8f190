//! From flags to a chat template that can be used.

use crate::args::TemplateArgs;
use crate::bundled;
use crate::model::Opened;
use anyhow::{Context, Result};
use kiv_runtime::{ChatTemplate, Message, Model};

/// A chat template.
pub(crate) struct Template {
    pub template: ChatTemplate,
    /// Texts that end an answer.
    pub stop: Vec<String>,
}

/// The template that the flags name, or the model's if it carries one.
pub(crate) fn choose(
    args: &TemplateArgs,
    opened: &Opened,
    model: &Model,
) -> Result<Option<Template>> {
    let mut stop = Vec::new();
    let template = match (&args.chat_template, &args.chat_template_file) {
        (Some(text), _) => Some(ChatTemplate::parse(text)),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).with_context(|| {
                format!("cannot read {} (--chat-template-file)", path.display())
            })?;
            Some(ChatTemplate::parse(text.trim_end()))
        }
        (None, None) if opened.bundled => {
            // This model goes on with questions of its own.
            stop.push("\n".to_owned());
            Some(ChatTemplate::parse(bundled::CHAT_TEMPLATE))
        }
        (None, None) => ChatTemplate::of(model),
    };
    if let Some(template) = &template {
        // Told now, not after the first question.
        template.apply(model, &[Message::new("user", "?")]).context(
            "this chat template cannot be used: give another with --chat-template (Jinja, or a name such as chatml)",
        )?;
    }
    Ok(template.map(|template| Template { template, stop }))
}
