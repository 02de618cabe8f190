//! `kiv eval report`: a page from the lines of evaluations.

use crate::args::ReportArgs;
use anyhow::{Context, Result};
use kiv_report::Report;
use std::process::ExitCode;

pub(super) fn run(args: &ReportArgs) -> Result<ExitCode> {
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
        let cannot =
            |path: &std::path::Path| format!("cannot write {} (--figures)", path.display());
        std::fs::create_dir_all(dir).with_context(|| cannot(dir))?;
        let figures = report.figures();
        for figure in &figures {
            let path = dir.join(format!("{}.svg", figure.name));
            std::fs::write(&path, &figure.svg).with_context(|| cannot(&path))?;
        }
        note!("wrote {} figures to {}", figures.len(), dir.display());
    }
    Ok(ExitCode::SUCCESS)
}
