//! A token of each row as a picture: events in the format of Chrome's tracing, which
//! `chrome://tracing` and Perfetto draw.

use anyhow::{Context as _, Result};
use kiv_runtime::{LayerTimes, Timeline};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// What happens at the same time is drawn below each other.
#[derive(Clone, Copy)]
enum Lane {
    /// llama.cpp computes.
    Computing = 1,
    Choosing = 2,
    Bringing = 3,
    /// The GPU's own streams.
    Transfers = 4,
}

impl Lane {
    const ALL: [Self; 4] = [
        Self::Computing,
        Self::Choosing,
        Self::Bringing,
        Self::Transfers,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Computing => "computing",
            Self::Choosing => "choosing",
            Self::Bringing => "bringing",
            Self::Transfers => "transfers of the GPU's streams",
        }
    }
}

/// Tokens that have been timed so far.
#[derive(Default)]
pub(super) struct Drawing {
    events: Vec<Value>,
    rows: usize,
}

impl Drawing {
    /// Adds a row's token.
    pub(super) fn add(&mut self, (policy, n_ctx): (&str, usize), timeline: &Timeline) {
        self.rows += 1;
        let name = format!("{policy}, {n_ctx} tokens");
        self.about("process_name", 0, &name);
        for lane in Lane::ALL {
            self.about("thread_name", lane as u32, lane.name());
        }
        let mut from = Duration::ZERO;
        for layer in &timeline.layers {
            let LayerTimes {
                il,
                stopped,
                chosen,
                brought,
            } = *layer;
            let what = format!("layer {il}");
            self.event(Lane::Computing, &format!("up to {what}"), from, stopped);
            self.event(Lane::Choosing, &what, stopped, chosen);
            self.event(Lane::Bringing, &what, chosen, brought);
            from = brought;
        }
        self.event(Lane::Computing, "up to the logits", from, timeline.total);
        for span in &timeline.transfers {
            self.event(Lane::Transfers, "transfer", span.begin, span.end);
        }
    }

    fn about(&mut self, what: &str, lane: u32, name: &str) {
        self.events.push(json!({
            "ph": "M", "name": what, "pid": self.rows, "tid": lane, "args": { "name": name },
        }));
    }

    fn event(&mut self, lane: Lane, name: &str, from: Duration, to: Duration) {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        self.events.push(json!({
            "ph": "X", "name": name, "cat": lane.name(), "pid": self.rows, "tid": lane as u32,
            "ts": us(from), "dur": us(to.saturating_sub(from)),
        }));
    }

    /// Writes all of it to a file.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let all = json!({ "displayTimeUnit": "ms", "traceEvents": self.events });
        std::fs::write(path, all.to_string())
            .with_context(|| format!("cannot write {} (--timeline)", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token's events follow each other without gaps, and all its time is in them.
    #[test]
    fn all_of_a_token_is_drawn() {
        let ms = Duration::from_millis;
        let layer = |il, times: [u64; 3]| LayerTimes {
            il,
            stopped: ms(times[0]),
            chosen: ms(times[1]),
            brought: ms(times[2]),
        };
        let timeline = Timeline {
            total: ms(30),
            layers: vec![layer(0, [2, 5, 6]), layer(3, [9, 15, 20])],
            transfers: Vec::new(),
        };
        let mut drawing = Drawing::default();
        drawing.add(("pq", 8192), &timeline);
        let of = |lane: Lane| -> Vec<(f64, f64)> {
            let events = drawing.events.iter();
            let own = events.filter(|e| e["ph"] == "X" && e["tid"] == lane as u32);
            own.map(|e| (e["ts"].as_f64().unwrap(), e["dur"].as_f64().unwrap()))
                .collect()
        };
        assert_eq!(of(Lane::Computing), [(0.0, 2e3), (6e3, 3e3), (20e3, 1e4)]);
        assert_eq!(of(Lane::Choosing), [(2e3, 3e3), (9e3, 6e3)]);
        assert_eq!(of(Lane::Bringing), [(5e3, 1e3), (15e3, 5e3)]);
        assert_eq!(of(Lane::Transfers), []);
    }
}
