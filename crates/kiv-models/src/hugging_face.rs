//! The Hugging Face cache: `models--org--repo/snapshots/commit/file.gguf`, each file a
//! link to a blob that is named by its checksum.

use crate::files::{self, entries, name};
use crate::{Listing, Source};
use std::cmp::Reverse;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

pub(crate) fn list(root: &Path, listing: &mut Listing) {
    for folder in entries(root) {
        let Some(repository) = name(&folder).strip_prefix("models--").map(str::to_owned) else {
            continue;
        };
        let repository = repository.replacen("--", "/", 1);
        let (mut known, mut broken) = (HashSet::new(), Vec::new());
        for snapshot in snapshots(&folder) {
            let mut names = Vec::new();
            for file in files::models_in(&snapshot) {
                let name = format!("{repository}:{}", files::tag(&files::stem(&file)));
                if known.contains(&name) {
                    continue;
                }
                match files::found(&file, name.clone(), Source::HuggingFace, checksum) {
                    Ok(model) => {
                        listing.models.push(model);
                        names.push(name);
                    }
                    Err(problem) => broken.push((name, problem)),
                }
            }
            // Those of one commit may be called the same.
            known.extend(names);
        }
        // What an earlier commit has whole is no trouble.
        broken.retain(|(name, _)| !known.contains(name));
        listing.broken.extend(broken);
    }
}

/// The snapshot that `main` points to, then the others, those changed last first.
fn snapshots(folder: &Path) -> Vec<PathBuf> {
    let all = folder.join("snapshots");
    let main = std::fs::read_to_string(folder.join("refs/main")).ok();
    let main = main.map(|commit| all.join(commit.trim()));
    let changed = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let mut found = entries(&all);
    found.sort_by_key(|path| Reverse((Some(path) == main.as_ref(), changed(path))));
    found
}

/// The SHA-256 that a large file's blob is named by; small ones have shorter names.
fn checksum(file: &Path) -> Option<String> {
    let blob = std::fs::read_link(file).ok()?;
    let name = name(&blob).to_lowercase();
    crate::is_sha256(&name).then_some(name)
}
