//! Quality against budget.

use crate::svg::{Drawing, line, n, slug, text};
use maud::{Markup, html};

/// A policy's points.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    pub name: String,
    /// Number of its colour and marker.
    pub series: usize,
    /// (budget, value, what pointing at it tells), budgets rising.
    pub points: Vec<(u64, f64, String)>,
}

/// What the vertical axis measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// A share, 0 to 100 %.
    Share,
    /// A share from the tenth below the lowest point, because all are high.
    HighShare,
    /// By powers of ten.
    Log,
}

#[derive(Clone, Debug)]
pub(crate) struct Curves {
    pub title: String,
    pub subtitle: String,
    pub y: &'static str,
    pub scale: Scale,
    /// What full attention reaches.
    pub full: Option<f64>,
    pub curves: Vec<Curve>,
}

const WIDTH: f64 = 310.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 44.0;
const HEIGHT: f64 = 150.0;
/// Least value on a logarithmic axis: rounding makes more.
const FLOOR: f64 = 1e-9;

impl Curves {
    pub fn draw(&self) -> Drawing {
        let points = || self.curves.iter().flat_map(|c| &c.points);
        let mut budgets: Vec<u64> = points().map(|p| p.0).collect();
        budgets.sort_unstable();
        budgets.dedup();
        let (low, high) = self.range();
        let right = WIDTH - 14.0;
        let log = |b: u64| (b.max(1) as f64).log2();
        let (first, last) = match budgets.as_slice() {
            [] => (0.0, 1.0),
            [one] => (log(*one) - 1.0, log(*one) + 1.0),
            [first, .., last] => (log(*first), log(*last)),
        };
        let x = |b: u64| LEFT + 8.0 + (log(b) - first) / (last - first) * (right - LEFT - 16.0);
        let y = |v: f64| TOP + HEIGHT * (1.0 - (self.place(v) - low) / (high - low));
        let bottom = TOP + HEIGHT;
        let mut legend = Vec::new();
        let (mut lx, mut ly) = (LEFT, bottom + 50.0);
        let names = self
            .curves
            .iter()
            .map(|c| (c.name.as_str(), Some(c.series)));
        for (name, series) in names.chain(self.full.map(|_| ("full attention", None))) {
            let needed = 38.0 + name.len() as f64 * 6.3;
            if lx > LEFT && lx + needed > WIDTH {
                (lx, ly) = (LEFT, ly + 16.0);
            }
            legend.push((name, series, lx, ly));
            lx += needed;
        }
        let body = html! {
            (text(4.0, 14.0, "title", &self.title))
            (text(4.0, 30.0, "soft", &self.subtitle))
            @for (value, name) in self.ticks(low, high) {
                (line("grid", (LEFT, y(value)), (right, y(value))))
                (text(LEFT - 6.0, y(value) + 4.0, "end", &name))
            }
            @for budget in &budgets {
                (line("axis", (x(*budget), bottom), (x(*budget), bottom + 4.0)))
                (text(x(*budget), bottom + 17.0, "mid", &crate::numbers::tokens(*budget)))
            }
            (line("axis", (LEFT, bottom), (right, bottom)))
            (text((LEFT + right) / 2.0, bottom + 32.0, "mid soft", "budget, tokens"))
            text class="mid soft" transform={ "translate(11 " (n(TOP + HEIGHT / 2.0)) ") rotate(-90)" } { (self.y) }
            @if let Some(full) = self.full {
                (line("full", (LEFT, y(full)), (right, y(full))))
            }
            @for (i, curve) in self.curves.iter().enumerate() {
                // Side by side where they would hide one another.
                @let x = |b: u64| x(b) + (i as f64 - (self.curves.len() - 1) as f64 / 2.0) * 4.0;
                @let path: Vec<String> = curve.points.iter().map(|p| format!("{},{}", n(x(p.0)), n(y(p.1)))).collect();
                polyline class={ "line s" (curve.series) } points=(path.join(" ")) {}
                @for (budget, value, tip) in &curve.points {
                    g { title { (tip) } (marker(curve.series, x(*budget), y(*value))) }
                }
            }
            @for (name, series, lx, ly) in &legend {
                @match series {
                    Some(series) => {
                        (line(&format!("line s{series}"), (*lx, ly - 4.0), (lx + 20.0, ly - 4.0)))
                        (marker(*series, lx + 10.0, ly - 4.0))
                    }
                    None => (line("full", (*lx, ly - 4.0), (lx + 20.0, ly - 4.0))),
                }
                (text(lx + 25.0, *ly, "", name))
            }
        };
        Drawing {
            name: slug(&format!("budget {} {}", self.title, self.subtitle)),
            label: format!("{}, {}: {} by budget", self.title, self.subtitle, self.y),
            width: WIDTH,
            height: ly + 10.0,
            body,
        }
    }

    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Share | Scale::HighShare => value,
            Scale::Log => value.max(FLOOR).log10(),
        }
    }

    fn range(&self) -> (f64, f64) {
        let values = self
            .curves
            .iter()
            .flat_map(|c| c.points.iter().map(|p| self.place(p.1)));
        let lowest = values.clone().fold(f64::INFINITY, f64::min);
        match self.scale {
            Scale::Share => (0.0, 1.0),
            Scale::HighShare => ((lowest * 10.0 - 1e-9).floor().clamp(0.0, 9.0) / 10.0, 1.0),
            Scale::Log => {
                let highest = values.fold(f64::NEG_INFINITY, f64::max);
                let low = lowest.floor();
                (low, highest.ceil().max(low + 1.0))
            }
        }
    }

    /// Values of the grid, and what they are called.
    fn ticks(&self, low: f64, high: f64) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Share | Scale::HighShare => (0..=4)
                .map(|i| low + (high - low) * f64::from(i) / 4.0)
                .map(|v| (v, format!("{} %", crate::numbers::percent(v))))
                .collect(),
            Scale::Log => {
                let step = (((high - low) / 6.0).ceil() as i32).max(1);
                (low as i32..=high as i32)
                    .step_by(step as usize)
                    .map(|power| (10f64.powi(power), format!("1e{power}")))
                    .collect()
            }
        }
    }
}

/// Each series has a shape of its own: colours alone are not enough.
fn marker(series: usize, x: f64, y: f64) -> Markup {
    let class = format!("s{series}");
    let shape = |corners: &[(f64, f64)]| {
        let corners: Vec<String> = corners
            .iter()
            .map(|(dx, dy)| format!("{},{}", n(x + dx), n(y + dy)))
            .collect();
        html! { polygon class=(class) points=(corners.join(" ")) {} }
    };
    match series {
        0 => html! { circle class=(class) cx=(n(x)) cy=(n(y)) r="4" {} },
        1 => shape(&[(-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)]),
        2 => shape(&[(0.0, -4.5), (4.5, 3.5), (-4.5, 3.5)]),
        3 => shape(&[(0.0, -5.0), (5.0, 0.0), (0.0, 5.0), (-5.0, 0.0)]),
        4 => shape(&[(0.0, 4.5), (4.5, -3.5), (-4.5, -3.5)]),
        _ => shape(&[(-5.0, -1.5), (5.0, -1.5), (5.0, 1.5), (-5.0, 1.5)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_of_two_policies() {
        let curve = |name: &str, series, values: [f64; 2]| Curve {
            name: name.to_owned(),
            series,
            points: vec![
                (512, values[0], "first".to_owned()),
                (2048, values[1], "second".to_owned()),
            ],
        };
        let curves = Curves {
            title: "needle".to_owned(),
            subtitle: "16 K".to_owned(),
            y: "right answers",
            scale: Scale::Share,
            full: Some(1.0),
            curves: vec![
                curve("exact", 0, [0.5, 1.0]),
                curve("window", 1, [0.0, 0.25]),
            ],
        };
        insta::assert_snapshot!(curves.draw().standalone().replace("><", ">\n<"));
        let logarithmic = Curves {
            scale: Scale::Log,
            curves: vec![curve("exact", 0, [0.0, 3e-3])],
            ..curves
        };
        // Nothing falls off the figure.
        assert_eq!(logarithmic.range(), (-9.0, -2.0));
        assert_eq!(logarithmic.ticks(-9.0, -2.0)[0].1, "1e-9");
    }
}
