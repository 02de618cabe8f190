//! The Hugging Face cache: `models--org--repo/snapshots/commit/file.gguf`, each file a
//! link to a blob that is named by its checksum.

use crate::files::{self, entries, name};
use crate::{Listing, Source};
use std::path::{Path, PathBuf};

pub(crate) fn list(root: &Path, listing: &mut Listing) {
    for folder in entries(root) {
        let Some(repository) = name(&folder).strip_prefix("models--").map(str::to_owned) else {
            continue;
        };
        let repository = repository.replacen("--", "/", 1);
        let Some(snapshot) = newest(&folder) else {
            continue;
        };
        for file in files::models_in(&snapshot) {
            let name = format!("{repository}:{}", files::tag(&files::stem(&file)));
            let model = files::found(&file, name.clone(), Source::HuggingFace, checksum(&file));
            listing.add(name, model);
        }
    }
}

/// The snapshot that `main` points to, or the one changed last.
fn newest(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    let main = std::fs::read_to_string(folder.join("refs/main")).ok();
    let main = main.map(|commit| snapshots.join(commit.trim()));
    main.filter(|path| path.is_dir()).or_else(|| {
        let changed = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        entries(&snapshots).into_iter().max_by_key(changed)
    })
}

/// The SHA-256 that a large file's blob is named by; small ones have shorter names.
fn checksum(file: &Path) -> Option<String> {
    let blob = std::fs::read_link(file).ok()?;
    let name = name(&blob).to_lowercase();
    crate::is_sha256(&name).then_some(name)
}
