//! The file that an evaluation is written to, and taken up again from.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::path::Path;

/// Cases that an earlier run has finished, and the file to append to.
///
/// A prompt's last line may be missing if the run was cut off, so the very last
/// case is judged again, and half a line is taken away.
pub(super) fn open(path: &Path) -> Result<(HashSet<String>, File)> {
    let shown = path.display();
    let text = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown} (--out)")),
    };
    let whole = text
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    let cannot = || format!("cannot write {shown} (--out)");
    let file = options.open(path).with_context(cannot)?;
    if whole < text.len() && text[whole..].starts_with(b"{") {
        file.set_len(whole as u64).with_context(cannot)?;
    }
    Ok((finished(&String::from_utf8_lossy(&text[..whole])), file))
}

fn finished(text: &str) -> HashSet<String> {
    let (mut done, mut last) = (HashSet::new(), None);
    for line in text.lines() {
        let Ok(value) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        if value["summary"] == true {
            last = None;
        } else if let Some(case) = value["case"].as_str() {
            done.insert(case.to_owned());
            last = Some(case.to_owned());
        }
    }
    if let Some(case) = last {
        done.remove(&case);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn half_a_line_is_taken_away_and_its_case_judged_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let whole = "{\"header\":true}\n{\"case\":\"a\"}\n{\"summary\":true}\n{\"case\":\"b\"}\n";
        std::fs::write(&path, format!("{whole}{{\"case\":\"c")).unwrap();
        let (done, mut file) = open(&path).unwrap();
        assert_eq!(done, HashSet::from(["a".to_owned()]));
        file.write_all(b"{}\n").unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            format!("{whole}{{}}\n")
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_begun() {
        let dir = tempfile::tempdir().unwrap();
        let (done, _) = open(&dir.path().join("out.jsonl")).unwrap();
        assert!(done.is_empty());
    }
}
