//! Which of a repository's files is meant.

use crate::{HubError, RemoteFile, Wanted};
use kiv_models::FileName;

/// Taken if nothing is said, the first that is there; llama.cpp's own second choice is Q8_0.
const USUAL: [&str; 2] = ["Q4_K_M", "Q4_0"];

/// The file that is wanted; of a split model all parts, in order. Where only Unsloth's
/// own mix of a quantization is there (`UD-Q4_K_XL`), its plain name will do.
///
/// # Errors
/// [`HubError::NoModel`] if there is no GGUF file, [`HubError::NoSuchFile`] if none is
/// of that name or tag, [`HubError::MissingPart`] of a split model.
pub fn choose(wanted: &Wanted, files: &[RemoteFile]) -> Result<Vec<RemoteFile>, HubError> {
    let name_of = |file: &RemoteFile| {
        let own = file.name.rsplit('/').next().unwrap_or_default();
        FileName::parse(own)
    };
    let models: Vec<(&RemoteFile, FileName)> = files
        .iter()
        .filter_map(|file| Some((file, name_of(file)?)))
        .filter(|(_, name)| (name.part).is_none_or(|(number, count)| number == 1 && count > 0))
        .collect();
    if models.is_empty() {
        return Err(HubError::NoModel {
            repo: wanted.repo.clone(),
        });
    }
    let of_tag = |tag: &str| {
        let mixed = format!("UD-{tag}");
        [tag, &mixed].into_iter().find_map(|tag| {
            let is = |(_, name): &&(_, FileName)| name.tag.eq_ignore_ascii_case(tag);
            models.iter().find(is)
        })
    };
    let found = match (&wanted.file, &wanted.tag) {
        (Some(file), _) => models.iter().find(|(model, name)| match name.part {
            // Any part stands for all.
            Some((_, count)) => (1..=count).any(|n| part_name(&model.name, n, count) == *file),
            None => model.name == *file,
        }),
        (None, Some(tag)) => of_tag(tag),
        (None, None) => {
            let mut usual = USUAL.iter().copied();
            usual.find_map(of_tag).or(models.first())
        }
    };
    let Some((file, name)) = found else {
        return Err(HubError::NoSuchFile {
            repo: wanted.repo.clone(),
            wanted: (wanted.file.clone().or(wanted.tag.clone())).unwrap_or_default(),
            there: models.iter().map(|(file, _)| file.name.clone()).collect(),
        });
    };
    let Some((_, count)) = name.part else {
        return Ok(vec![(*file).clone()]);
    };
    let parts = (1..=count).map(|number| {
        let name = part_name(&file.name, number, count);
        let part = files.iter().find(|file| file.name == name);
        part.cloned().ok_or_else(|| HubError::MissingPart {
            repo: wanted.repo.clone(),
            file: name,
        })
    });
    parts.collect()
}

/// The name of a part of a split model, from the first one's.
fn part_name(first: &str, number: usize, count: usize) -> String {
    let ending = |number| format!("-{number:05}-of-{count:05}.gguf");
    let base = &first[..first.len() - ending(1).len()];
    format!("{base}{}", ending(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<RemoteFile> {
        let file = |name: &&str| RemoteFile {
            name: (*name).to_owned(),
            bytes: None,
            sha256: None,
        };
        names.iter().map(file).collect()
    }

    fn chosen(text: &str, file: Option<&str>, names: &[&str]) -> Result<Vec<String>, String> {
        let wanted = Wanted::parse(text, file).map_err(|e| e.to_string())?;
        let chosen = choose(&wanted, &files(names)).map_err(|e| e.to_string())?;
        Ok(chosen.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn tags_files_and_what_is_usual() {
        let names = [
            "README.md",
            "mmproj-model-f16.gguf",
            "imatrix-model-Q4_K_M.gguf",
            "model-IQ2_M.gguf",
            "model-Q4_0.gguf",
            "model-Q4_K_M.gguf",
            "model-Q4_K_M-extra-UD-Q4_K_XL.gguf",
        ];
        let one = |name: &str| Ok(vec![name.to_owned()]);
        assert_eq!(chosen("a/b", None, &names), one("model-Q4_K_M.gguf"));
        assert_eq!(chosen("a/b:q4_0", None, &names), one("model-Q4_0.gguf"));
        assert_eq!(chosen("a/b", None, &names[..5]), one("model-Q4_0.gguf"));
        assert_eq!(chosen("a/b", None, &names[..4]), one("model-IQ2_M.gguf"));
        let mix = chosen("a/b:q4_k_xl", None, &names);
        assert_eq!(mix, one("model-Q4_K_M-extra-UD-Q4_K_XL.gguf"));
        let named = chosen("a/b", Some("model-IQ2_M.gguf"), &names);
        assert_eq!(named, one("model-IQ2_M.gguf"));
        let error = chosen("a/b:Q8_0", None, &names).unwrap_err();
        assert!(error.contains("Q8_0") && error.contains("model-Q4_0.gguf"));
        let error = chosen("a/b", None, &names[..3]).unwrap_err();
        assert!(error.contains("a/b"), "{error}");
    }

    #[test]
    fn all_parts_of_a_split_model() {
        let names = [
            "big/x-Q4_K_M-00002-of-00003.gguf",
            "big/x-Q4_K_M-00001-of-00003.gguf",
            "big/x-Q4_K_M-00003-of-00003.gguf",
        ];
        let mut sorted: Vec<String> = names.map(str::to_owned).to_vec();
        sorted.sort();
        assert_eq!(chosen("a/b:Q4_K_M", None, &names), Ok(sorted));
        let second = chosen("a/b", Some(names[0]), &names);
        assert_eq!(second.unwrap().len(), 3, "a part stands for all");
        let error = chosen("a/b", None, &names[..2]).unwrap_err();
        assert!(error.contains("00003-of-00003"), "{error}");
        // What no writer of files does.
        assert!(chosen("a/b", None, &["x-00001-of-00000.gguf"]).is_err());
    }

    #[test]
    fn names_that_cannot_be() {
        for (text, file) in [
            ("model", None),
            ("a/b/c", None),
            ("../b", None),
            ("a/b:", None),
            ("a/b?x", None),
            ("a/b", Some("../secret.gguf")),
        ] {
            assert!(Wanted::parse(text, file).is_err(), "{text}");
        }
    }
}
