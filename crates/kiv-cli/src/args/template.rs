//! Flags of the chat template.

use clap::Args;
use std::path::PathBuf;

/// Which chat template is used.
#[derive(Debug, Args)]
pub(crate) struct TemplateArgs {
    /// Chat template: Jinja, or a name that llama.cpp knows [default: the model's]
    #[arg(long, value_name = "TEMPLATE")]
    pub chat_template: Option<String>,
    /// File with the chat template
    #[arg(long, conflicts_with = "chat_template", value_name = "FILE")]
    pub chat_template_file: Option<PathBuf>,
}
