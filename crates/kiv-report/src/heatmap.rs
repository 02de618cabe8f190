//! Shares on a grid, with the number printed in each cell.

use crate::colour;
use crate::svg::{Drawing, n, slug, text};
use maud::html;

/// A share of 0 to 1.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub share: f64,
    /// What is printed in it.
    pub text: String,
    /// What pointing at it tells.
    pub tip: String,
}

/// A grid. A cell that is `None` was not measured.
#[derive(Clone, Debug)]
pub(crate) struct Heatmap {
    pub title: String,
    pub subtitle: String,
    pub x: &'static str,
    pub y: &'static str,
    pub columns: Vec<String>,
    pub rows: Vec<String>,
    /// `[row][column]`.
    pub cells: Vec<Vec<Option<Cell>>>,
}

const LEFT: f64 = 58.0;
const TOP: f64 = 40.0;
const HEIGHT: f64 = 20.0;

impl Heatmap {
    pub fn draw(&self) -> Drawing {
        let texts = self.cells.iter().flatten().flatten().map(|c| c.text.len());
        let longest = texts.chain(self.columns.iter().map(String::len)).max();
        let w = (longest.unwrap_or(0) as f64 * 6.2 + 8.0).max(34.0);
        let (columns, rows) = (self.columns.len() as f64, self.rows.len() as f64);
        // The title may be wider than a grid of few columns.
        let title = self.title.len().max(self.subtitle.len()) as f64 * 6.8;
        let under = LEFT + (columns * w + self.x.len() as f64 * 5.6) / 2.0;
        let width = [LEFT + columns * w, title, under]
            .into_iter()
            .fold(0.0, f64::max)
            + 6.0;
        let bottom = TOP + rows * HEIGHT;
        let body = html! {
            (text(4.0, 14.0, "title", &self.title))
            (text(4.0, 30.0, "soft", &self.subtitle))
            @for (i, (name, cells)) in self.rows.iter().zip(&self.cells).enumerate() {
                @let y = TOP + i as f64 * HEIGHT;
                (text(LEFT - 5.0, y + 14.0, "end", name))
                @for (j, cell) in cells.iter().enumerate() {
                    @let x = LEFT + j as f64 * w;
                    @match cell {
                        Some(cell) => {
                            @let (fill, ink) = colour::fill(cell.share);
                            g {
                                title { (cell.tip) }
                                rect x=(n(x + 0.5)) y=(n(y + 0.5)) width=(n(w - 1.0)) height=(n(HEIGHT - 1.0)) fill=(fill) {}
                                text x=(n(x + w / 2.0)) y=(n(y + 13.5)) class="cell" style={ "fill:" (ink) } { (cell.text) }
                            }
                        }
                        None => g {
                            title { "not measured" }
                            rect class="none" x=(n(x + 1.5)) y=(n(y + 1.5)) width=(n(w - 3.0)) height=(n(HEIGHT - 3.0)) {}
                            text x=(n(x + w / 2.0)) y=(n(y + 13.5)) class="cell soft" { "–" }
                        },
                    }
                }
            }
            @for (j, name) in self.columns.iter().enumerate() {
                (text(LEFT + (j as f64 + 0.5) * w, bottom + 14.0, "mid", name))
            }
            (text(LEFT + columns * w / 2.0, bottom + 29.0, "mid soft", self.x))
            text class="mid soft" transform={ "translate(11 " (n(TOP + rows * HEIGHT / 2.0)) ") rotate(-90)" } { (self.y) }
        };
        Drawing {
            name: slug(&format!("{} {}", self.title, self.subtitle)),
            label: format!(
                "{}, {}: {} by {}",
                self.title, self.subtitle, self.y, self.x
            ),
            width,
            height: bottom + 36.0,
            body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_was_not_measured_is_no_zero() {
        let cell = |share: f64| Cell {
            share,
            text: crate::numbers::percent(share),
            tip: "3 < 4 & more".to_owned(),
        };
        let heatmap = Heatmap {
            title: "Needle".to_owned(),
            subtitle: "exact, budget 1 K".to_owned(),
            x: "context",
            y: "depth, %",
            columns: vec!["4 K".to_owned(), "16 K".to_owned()],
            rows: vec!["0".to_owned(), "50".to_owned()],
            cells: vec![
                vec![Some(cell(0.0)), Some(cell(1.0))],
                vec![Some(cell(0.5)), None],
            ],
        };
        let drawing = heatmap.draw();
        assert_eq!(drawing.name, "needle-exact-budget-1-k");
        insta::assert_snapshot!(drawing.standalone().replace("><", ">\n<"));
    }
}
