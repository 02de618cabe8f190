//! GGUF files in folders: names, quantization tags, split models.

use crate::{FileName, FoundModel, Problem, Source};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Entries of a folder, sorted; none if it cannot be read.
pub(crate) fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// A file's or folder's own name.
pub(crate) fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Models in a folder and those below: GGUF files but for those that go with a model, and
/// of split models the first.
pub(crate) fn models_in(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    add_models(folder, &mut HashSet::new(), &mut found);
    found
}

/// `seen` are the folders that have been looked at: a link may lead back to one of them.
fn add_models(folder: &Path, seen: &mut HashSet<PathBuf>, found: &mut Vec<PathBuf>) {
    if !folder
        .canonicalize()
        .is_ok_and(|folder| seen.insert(folder))
    {
        return;
    }
    for path in entries(folder) {
        if path.is_dir() {
            add_models(&path, seen, found);
            continue;
        }
        let is_first = |file: FileName| file.part.is_none_or(|(number, _)| number == 1);
        if FileName::parse(&name(&path)).is_some_and(is_first) {
            found.push(path);
        }
    }
}

/// The name without what says that it is a GGUF file, or a part of one.
pub(crate) fn stem(path: &Path) -> String {
    let name = name(path);
    match part(&name) {
        Some((stem, _, _)) => stem.to_owned(),
        None => name[..name.len() - ".gguf".len()].to_owned(),
    }
}

/// `stem-00001-of-00003.gguf` in parts: stem, number, count.
pub(crate) fn part(name: &str) -> Option<(&str, usize, usize)> {
    let name = name.get(..name.len().checked_sub(5)?)?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(count) || !digits(number) {
        return None;
    }
    Some((stem, number.parse().ok()?, count.parse().ok()?))
}

/// What in a file's name says how it is quantized, such as `Q4_K_M`; the whole stem
/// if nothing does.
pub(crate) fn tag(stem: &str) -> String {
    let is_tag = |piece: &str| {
        let upper = piece.to_uppercase();
        let of_bits = |prefix: &str| {
            let rest = upper.strip_prefix(prefix);
            rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        of_bits("Q")
            || of_bits("IQ")
            || of_bits("TQ")
            || ["F16", "BF16", "F32", "MXFP4"].contains(&upper.as_str())
    };
    let pieces: Vec<&str> = stem.split(['-', '.']).collect();
    let found = pieces.iter().rposition(|piece| is_tag(piece));
    match found {
        // Unsloth's own mixes are told apart from the usual ones.
        Some(i) if i > 0 && pieces[i - 1].eq_ignore_ascii_case("UD") => {
            format!("UD-{}", pieces[i].to_uppercase())
        }
        Some(i) => pieces[i].to_uppercase(),
        None => stem.to_owned(),
    }
}

/// The model of a file, whose other parts must be there if it is split; `checksum` tells
/// what a file's SHA-256 should be.
pub(crate) fn found(
    path: &Path,
    name: String,
    source: Source,
    checksum: impl Fn(&Path) -> Option<String>,
) -> Result<FoundModel, Problem> {
    let problem = |path: &Path, why: &str| Problem {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let size = |path: &Path| {
        std::fs::metadata(path)
            .map(|found| found.len())
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    problem(path, "it is missing: the download is not complete")
                }
                _ => problem(path, &format!("it cannot be read: {error}")),
            })
    };
    let mut bytes = size(path)?;
    let mut parts = Vec::new();
    if let Some((stem, 1, count)) = part(&self::name(path)) {
        for number in 2..=count {
            let other = format!("{stem}-{number:05}-of-{count:05}.gguf");
            let other = path.with_file_name(other);
            bytes += size(&other)?;
            let sha256 = checksum(&other);
            parts.push((other, sha256));
        }
    }
    if bytes == 0 {
        return Err(problem(path, "it is empty: the download is not complete"));
    }
    Ok(FoundModel {
        name,
        source,
        path: path.to_owned(),
        bytes,
        sha256: checksum(path),
        parts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        for (stem, expected) in [
            ("Llama-3.2-3B-Instruct-Q4_K_M", "Q4_K_M"),
            ("qwen2.5-3b-instruct-q4_k_m", "Q4_K_M"),
            ("gemma-3-4b-it-UD-Q4_K_XL", "UD-Q4_K_XL"),
            ("phi-3.5.IQ4_XS", "IQ4_XS"),
            ("gpt-oss-20b-mxfp4", "MXFP4"),
            ("model-f16", "F16"),
            ("Quill-7B", "Quill-7B"),
        ] {
            assert_eq!(tag(stem), expected, "{stem}");
        }
    }

    #[test]
    fn parts() {
        assert_eq!(part("a-b-00002-of-00003.gguf"), Some(("a-b", 2, 3)));
        assert_eq!(part("a-2-of-3.gguf"), None);
        assert_eq!(part("a.gguf"), None);
        assert_eq!(part(""), None);
    }
}
