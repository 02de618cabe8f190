//! LM Studio's folder: `publisher/repository/file.gguf`.

use crate::files::{self, entries, name};
use crate::{Listing, Source};
use std::path::Path;

pub(crate) fn list(root: &Path, listing: &mut Listing) {
    for publisher in entries(root) {
        for repository in entries(&publisher) {
            for file in files::models_in(&repository) {
                let tag = files::tag(&files::stem(&file));
                let name = format!("{}/{}:{tag}", name(&publisher), name(&repository));
                let model = files::found(&file, name.clone(), Source::LmStudio, |_| None);
                listing.add(name, model);
            }
        }
    }
}
