//! Figures: inside the page, and by themselves.

use maud::{Markup, html};

/// Concrete colours for a figure by itself; the page has its own for the same
/// classes.
const ALONE: &str = "text{font-family:Helvetica,Arial,sans-serif;font-size:11px;fill:#1c1c1c}\
.title{font-size:13px;font-weight:bold}.soft{fill:#5a5a5a}.mid{text-anchor:middle}.end{text-anchor:end}\
.cell{font-size:10px;text-anchor:middle}.axis{stroke:#8a8a8a;fill:none}.grid{stroke:#dedede;fill:none}\
.none{fill:none;stroke:#b5b5b5;stroke-dasharray:2 2}.full{stroke:#1c1c1c;stroke-dasharray:5 3;fill:none}\
.s0{stroke:#0072b2;fill:#0072b2}.s1{stroke:#d55e00;fill:#d55e00}.s2{stroke:#009e73;fill:#009e73}\
.s3{stroke:#b0568c;fill:#b0568c}.s4{stroke:#b77b00;fill:#b77b00}.s5{stroke:#3a8fc4;fill:#3a8fc4}\
.line{fill:none;stroke-width:2}";

/// A drawing of a size.
#[derive(Clone, Debug)]
pub(crate) struct Drawing {
    /// Lower-case letters, digits and hyphens.
    pub name: String,
    /// What it shows, for those who cannot see it.
    pub label: String,
    pub width: f64,
    pub height: f64,
    pub body: Markup,
}

impl Drawing {
    /// For the page.
    pub fn inline(&self) -> Markup {
        let (w, h) = (n(self.width), n(self.height));
        html! {
            svg width=(w) height=(h) viewBox={ "0 0 " (w) " " (h) } role="img" aria-label=(self.label) {
                (self.body)
            }
        }
    }

    /// A document.
    pub fn standalone(&self) -> String {
        let (w, h) = (n(self.width), n(self.height));
        let svg = html! {
            svg xmlns="http://www.w3.org/2000/svg" width=(w) height=(h)
                viewBox={ "0 0 " (w) " " (h) } role="img" aria-label=(self.label) {
                style { (ALONE) }
                rect width=(w) height=(h) fill="#fff" {}
                (self.body)
            }
        };
        svg.into_string() + "\n"
    }
}

/// A coordinate, to a tenth.
pub(crate) fn n(x: f64) -> String {
    let text = format!("{x:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Text at a place.
pub(crate) fn text(x: f64, y: f64, class: &str, words: &str) -> Markup {
    html! { text x=(n(x)) y=(n(y)) class=(class) { (words) } }
}

/// A line between two places.
pub(crate) fn line(class: &str, from: (f64, f64), to: (f64, f64)) -> Markup {
    html! { line class=(class) x1=(n(from.0)) y1=(n(from.1)) x2=(n(to.0)) y2=(n(to.1)) {} }
}

/// A name for a file: lower-case letters, digits and single hyphens.
pub(crate) fn slug(words: &str) -> String {
    let mut out = String::new();
    for c in words.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c.to_ascii_lowercase());
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    out.trim_end_matches('-').to_owned()
}
