//! One page with tables and figures from the JSON lines of `kiv eval`.
//!
//! The page is self-contained: figures are SVG inside it, nothing is loaded,
//! nothing is scripted, and it follows the reader's light or dark colours.
//!
//! What was not measured is shown as missing, never as zero. Of several lines
//! about the same question the last one counts, so a run that was taken up
//! again, or done again, needs no cleaning.
//!
//! ```
//! let lines = r#"
//! {"header": true, "model_name": "tiny"}
//! {"task": "needle", "policy": "full", "n_ctx": 4096, "depth": 50.0, "pass": true}
//! "#;
//! let mut report = kiv_report::Report::default();
//! report.add("out.jsonl", lines)?;
//! assert!(report.page()?.starts_with("<!DOCTYPE html>"));
//! # Ok::<(), kiv_report::ReportError>(())
//! ```

mod agreement;
mod colour;
mod curves;
mod data;
mod heatmap;
mod lines;
mod numbers;
mod page;
mod svg;
mod tables;
mod words;

use data::Section;
use thiserror::Error;

/// Why there is no report.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReportError {
    /// A line that `kiv eval` has not written.
    #[error("{file} line {line}: {why}")]
    Line {
        /// The file.
        file: String,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing to report.
    #[error("there is no result of `kiv eval` in {}: give files that --out wrote", .files.join(", "))]
    Empty {
        /// The files.
        files: Vec<String>,
    },
}

/// A figure by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Its name: lower-case letters, digits and hyphens.
    pub name: String,
    /// An SVG document.
    pub svg: String,
}

/// What evaluations found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    files: Vec<String>,
    sections: Vec<Section>,
}

impl Report {
    /// Adds the lines of a file.
    ///
    /// # Errors
    /// [`ReportError::Line`] for the first line that `kiv eval` has not
    /// written; nothing of the file is added then.
    pub fn add(&mut self, file: &str, text: &str) -> Result<(), ReportError> {
        let lines = lines::parse(file, text)?;
        self.files.push(file.to_owned());
        data::add(&mut self.sections, lines);
        Ok(())
    }

    /// The page.
    ///
    /// # Errors
    /// [`ReportError::Empty`] if no file had a result.
    pub fn page(&self) -> Result<String, ReportError> {
        if self.sections.iter().all(|s| s.records.is_empty()) {
            return Err(ReportError::Empty {
                files: self.files.clone(),
            });
        }
        Ok(page::page(&self.sections))
    }

    /// Every figure of the page by itself, in fixed light colours.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let many = self.sections.len() > 1;
        let mut figures = Vec::new();
        for (number, section) in (1..).zip(&self.sections) {
            for drawing in page::drawings(section) {
                let prefix = if many {
                    format!("setup-{number}-")
                } else {
                    String::new()
                };
                figures.push(Figure {
                    name: prefix + &drawing.name,
                    svg: drawing.standalone(),
                });
            }
        }
        figures
    }
}
