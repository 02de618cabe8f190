//! The file that an evaluation is written to, and taken up again from.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Cases that an earlier run has finished, and the file to append to.
///
/// A prompt's last line may be missing if a run was cut off, so the very last
/// case of each is judged again, and half a line is taken away. A whole one that only lacks its
/// end, or is of some other file, stays.
pub(super) fn open(path: &Path) -> Result<(HashSet<String>, File)> {
    let shown = path.display();
    // Others hold no earlier lines, and might have no end.
    let is_file_or_new = path
        .metadata()
        .map_or(true, |found| found.is_file() || found.is_dir());
    let read = if is_file_or_new {
        std::fs::read(path)
    } else {
        Ok(Vec::new())
    };
    let text = match read {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown} (--out)")),
    };
    let first = text.split(|b| *b == b'\n').find(|line| !line.is_empty());
    let is_ours = |line: &[u8]| line.starts_with(b"{");
    if !first.is_none_or(is_ours) {
        bail!("{shown} holds other things than lines of an evaluation (--out): give another file");
    }
    let whole = text
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    let cannot = || format!("cannot write {shown} (--out)");
    let mut file = options.open(path).with_context(cannot)?;
    let last = &text[whole..];
    let is_cut_off = |line: &[u8]| match serde_json::from_slice::<Value>(line) {
        Ok(_) => false,
        Err(error) => error.is_eof() && line.starts_with(b"{"),
    };
    if is_cut_off(last) {
        file.set_len(whole as u64).with_context(cannot)?;
    } else if !last.is_empty() {
        writeln!(file).with_context(cannot)?;
    }
    Ok((finished(&String::from_utf8_lossy(&text)), file))
}

fn finished(text: &str) -> HashSet<String> {
    let (mut done, mut last) = (HashSet::new(), None);
    for line in text.lines() {
        let Ok(value) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        if value["header"] == true {
            // Another run begins: the one before may have been cut off.
            if let Some(case) = last.take() {
                done.remove(&case);
            }
        } else if value["summary"] == true {
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
    fn a_case_that_a_run_was_cut_off_in_is_not_done_after_the_next_run() {
        let header = r#"{"header":true}"#;
        let line = |case: &str| format!(r#"{{"case":"{case}"}}"#);
        let summary = r#"{"summary":true}"#.to_owned();
        let first = [header.to_owned(), line("a"), summary.clone(), line("b")];
        let second = [header.to_owned(), line("c"), summary];
        let text = [first.as_slice(), second.as_slice()].concat().join("\n");
        let want = ["a", "c"].map(str::to_owned);
        assert_eq!(finished(&text), HashSet::from(want.clone()));
        // Judged again, it is done.
        let again = [header.to_owned(), line("b"), line("d"), header.to_owned()];
        let text = text + "\n" + &again.join("\n");
        let want = want.into_iter().chain(["b".to_owned()]);
        assert_eq!(finished(&text), want.collect());
    }

    #[test]
    fn a_whole_line_without_its_end_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        for text in ["{\"case\":\"a\"}\n{\"case\":\"b\"}", "{\"mine\": 1}"] {
            std::fs::write(&path, text).unwrap();
            let (_, mut file) = open(&path).unwrap();
            file.write_all(b"{}\n").unwrap();
            let now = std::fs::read_to_string(&path).unwrap();
            assert_eq!(now, format!("{text}\n{{}}\n"));
        }
        // What is no evaluation's is left alone.
        std::fs::write(&path, "a note").unwrap();
        let refused = open(&path).unwrap_err().to_string();
        assert!(refused.contains("(--out)"), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a note");
    }

    #[test]
    fn a_file_that_is_not_there_is_begun() {
        let dir = tempfile::tempdir().unwrap();
        let (done, _) = open(&dir.path().join("out.jsonl")).unwrap();
        assert!(done.is_empty());
    }
}
