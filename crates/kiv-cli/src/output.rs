//! What goes to the terminal.

use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};
use kiv_runtime::Progress;
use serde::Serialize;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// A line on standard output. What nobody takes is an error, where `println!` panics.
macro_rules! say {
    () => {
        $crate::output::show(format_args!("\n"))
    };
    ($($text:tt)*) => {
        $crate::output::show(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// A line on standard error. Where nobody takes it, it is lost, where `eprintln!` panics: a
/// full disk below a log must not end a server.
macro_rules! note {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Standard output does not take what is written to it.
#[derive(Debug)]
pub(crate) struct Unwritten(std::io::Error);

impl Unwritten {
    /// Whether its reader has read enough, as `head` does.
    pub fn reader_is_gone(&self) -> bool {
        self.0.kind() == std::io::ErrorKind::BrokenPipe
    }
}

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to standard output")
    }
}

impl std::error::Error for Unwritten {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// Writes to standard output, at once.
pub(crate) fn show(text: fmt::Arguments<'_>) -> Result<(), Unwritten> {
    let mut out = std::io::stdout().lock();
    let shown = out.write_fmt(text).and_then(|()| out.flush());
    shown.map_err(Unwritten)
}

/// Generated text: collected, and shown as it comes unless `quiet`. That nobody takes it is
/// told in the end: what has been read is kept all the same.
pub(crate) struct Generated {
    pub text: String,
    pub told: Result<(), Unwritten>,
    quiet: bool,
}

impl Generated {
    pub fn new(quiet: bool) -> Self {
        Self {
            text: String::new(),
            told: Ok(()),
            quiet,
        }
    }

    /// Whether more is of use.
    pub fn take(&mut self, piece: &str) -> bool {
        self.text += piece;
        if self.told.is_ok() && !self.quiet {
            self.told = show(format_args!("{piece}"));
        }
        self.told.is_ok()
    }
}

/// Prints an error with its causes on standard error, a line each.
pub(crate) fn print_error(error: &anyhow::Error) {
    note!("error: {}", one_line(error));
    for cause in error.chain().skip(1) {
        note!("  caused by: {}", one_line(cause));
    }
}

/// What others say, a chat template for one, may have line breaks in it.
fn one_line(text: &dyn fmt::Display) -> String {
    let text = text.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// Prints what the user should know, on standard error.
pub(crate) fn print_warning(what: &str) {
    note!("warning: {what}");
}

/// Prints one JSON document on a line of its own.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let document = serde_json::to_string(value)?;
    Ok(say!("{document}")?)
}

/// A path for a JSON document, which cannot hold what is not UTF-8.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
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
            "reading {bar:24} {human_pos}/{human_len} tokens  {speed}  {eta} left  {msg}";
        // Its own `per_sec` has four decimals.
        let speed = |state: &ProgressState, out: &mut dyn fmt::Write| {
            let speed = HumanCount(state.per_sec() as u64);
            // Nothing is shown of what cannot be written.
            let _ = write!(out, "{speed}/s");
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.with_key("speed", speed));
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
            note!("downloading {name}, {}", bytes(length));
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
            None => note!("{note}"),
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
