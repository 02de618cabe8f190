//! `kiv eval report`: a page from the lines of evaluations.

use crate::args::ReportArgs;
use anyhow::{Context, Result, bail};
use kiv_report::Report;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn run(args: &ReportArgs) -> Result<ExitCode> {
    keep_input(&args.output, args, "-o")?;
    let mut report = Report::default();
    for path in &args.files {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        report.add(&shown, &text)?;
    }
    let page = report.page()?;
    let shown = args.output.display();
    std::fs::write(&args.output, page).with_context(|| format!("cannot write {shown} (-o)"))?;
    note!("wrote {shown}");
    if let Some(dir) = &args.figures {
        let cannot = |path: &Path| format!("cannot write {} (--figures)", path.display());
        std::fs::create_dir_all(dir).with_context(|| cannot(dir))?;
        let figures = report.figures();
        for figure in &figures {
            let path = dir.join(format!("{}.svg", figure.name));
            keep_input(&path, args, "--figures")?;
            std::fs::write(&path, &figure.svg).with_context(|| cannot(&path))?;
        }
        note!("wrote {} figures to {}", figures.len(), dir.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses to write over a file that is read.
fn keep_input(path: &Path, args: &ReportArgs, flag: &str) -> Result<()> {
    // What is not there is none of them.
    let Ok(real) = path.canonicalize() else {
        return Ok(());
    };
    if args
        .files
        .iter()
        .any(|file| file.canonicalize().is_ok_and(|file| file == real))
    {
        let shown = path.display();
        bail!(
            "{shown} is one of the files that the report is made of: give another place ({flag})"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_takes_the_place_of_none_of_its_lines() {
        let dir = tempfile::tempdir().unwrap();
        let lines = dir.path().join("out.jsonl");
        std::fs::write(&lines, "{}").unwrap();
        let args = ReportArgs {
            files: vec![lines.clone()],
            output: dir.path().join(".").join("out.jsonl"),
            figures: None,
        };
        let why = run(&args).unwrap_err().to_string();
        assert!(why.contains("out.jsonl is one of the files"), "{why}");
        assert_eq!(std::fs::read_to_string(&lines).unwrap(), "{}");
        let beside = dir.path().join("report.html");
        assert!(keep_input(&beside, &args, "-o").is_ok());
    }
}
