//! The model that comes with the program.

use anyhow::{Context, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

const NAME: &str = "tiny-f16.gguf";
const BYTES: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../models/tiny-f16.gguf"
));

/// The template of the bundled model, which knows questions and answers but
/// no chat: a question in its own form.
pub(crate) const CHAT_TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
{{ m.content }}{% elif m.role == 'system' %}{{ m.content }}{% else %}
Question: {{ m.content }}
Answer:{% endif %}{% endfor %}";

/// A file with the bundled model, for llama.cpp to map: in the user's cache
/// folder, or the system's temporary one.
pub(crate) fn path() -> Result<PathBuf> {
    let mut failure = None;
    for folder in cache_folders() {
        match place(&folder) {
            Ok(path) => return Ok(path),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.expect("the temporary folder is always tried"))
        .context("cannot unpack the bundled model; give a model with -m")
}

/// Where kiv keeps models of its own making, the best place first.
pub(crate) fn cache_folders() -> impl Iterator<Item = PathBuf> {
    let folders = [
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from),
        std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")),
    ];
    // An empty variable is none: it would be the folder that one happens to be in.
    let folders = folders.into_iter().flatten().filter(|f| f.is_absolute());
    let folders = folders.map(|f| f.join("kiv"));
    folders.chain([std::env::temp_dir().join(own_name())])
}

/// The name of a folder where other users may have theirs.
fn own_name() -> String {
    #[cfg(unix)]
    return format!("kiv-{}", rustix::process::getuid().as_raw());
    #[cfg(not(unix))]
    "kiv".to_owned()
}

fn place(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(NAME);
    if std::fs::read(&path).is_ok_and(|there| there == BYTES) {
        return Ok(path);
    }
    std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    // Written beside and renamed, so that nobody sees half of it.
    let mut file =
        tempfile::NamedTempFile::new_in(folder).with_context(|| format!("{}", folder.display()))?;
    file.write_all(BYTES)
        .with_context(|| format!("{}", path.display()))?;
    file.persist(&path)
        .with_context(|| format!("{}", path.display()))?;
    Ok(path)
}
