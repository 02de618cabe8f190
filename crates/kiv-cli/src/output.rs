//! What goes to the terminal.

use indicatif::{ProgressBar, ProgressStyle};
use kiv_runtime::Progress;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Prints an error with its causes on standard error.
pub(crate) fn print_error(error: &anyhow::Error) {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  caused by: {cause}");
    }
}

/// Prints what the user should know, on standard error.
pub(crate) fn print_warning(what: &str) {
    eprintln!("warning: {what}");
}

/// Prints one JSON document on a line of its own.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Bytes in binary units.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A progress bar for reading, on a terminal only.
pub(crate) struct ReadBar {
    bar: ProgressBar,
    resident: u64,
}

impl ReadBar {
    pub fn new(total: usize, resident: u64) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(total as u64)
        } else {
            ProgressBar::hidden()
        };
        let template =
            "reading {bar:24} {human_pos}/{human_len} tokens  {per_sec}  {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar, resident }
    }

    pub fn update(&self, progress: Progress) {
        self.bar.set_position(progress.read as u64);
        let (resident, host) = (bytes(self.resident), bytes(progress.host_bytes as u64));
        self.bar
            .set_message(format!("resident {resident}, host {host}"));
    }
}

impl Drop for ReadBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Progress bars of downloads, on a terminal only.
#[derive(Default)]
pub(crate) struct DownloadBar(Option<ProgressBar>);

impl kiv_hub::Watch for DownloadBar {
    fn begin(&mut self, name: &str, length: u64) {
        if !std::io::stderr().is_terminal() {
            eprintln!("downloading {name}, {}", bytes(length));
            return;
        }
        let bar = ProgressBar::new(length);
        let template = "{msg} {bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        self.0 = Some(bar);
    }

    fn at(&mut self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(bytes);
        }
    }

    fn note(&mut self, note: &kiv_hub::Note) {
        match &self.0 {
            Some(bar) => bar.println(note.to_string()),
            None => eprintln!("{note}"),
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for DownloadBar {
    fn drop(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.abandon();
        }
    }
}

/// Most memory that the process has had resident, in bytes, where the system
/// tells.
pub(crate) fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Starts [`peak_rss`] anew, where the system can.
pub(crate) fn reset_peak_rss() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
