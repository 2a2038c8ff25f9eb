//! How a running operation shows itself on standard error: a bar, plain lines, or one JSON object a line.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use penstock_engine::{Progress, Run};
use serde::Serialize;

use super::args::Globals;
use super::{output, units};

/// Rates follow changes with this time constant, so that the figure can be read and the estimate does not jump.
const SMOOTHING_S: f64 = 4.0;

/// What is running; decides which figures matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Source to repository.
    Backup,
    /// Repository to target.
    Restore,
    /// Reading the repository.
    Verify,
    /// Reading it and mending it.
    Repair,
    /// Repository to repository.
    Copy,
    /// Looking at all that is needed.
    Gc,
    /// Extending locks.
    Lock,
}

/// How it is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Not at all.
    Off,
    /// A bar that is redrawn: terminals only.
    Bar,
    /// A line every ten seconds and one at the end.
    Plain,
    /// A JSON object a line, each second and at the end.
    Json,
}

impl Mode {
    /// What fits the options and where standard error goes.
    pub fn of(globals: &Globals) -> Mode {
        match (globals.quiet, globals.json) {
            (true, _) => Mode::Off,
            (false, true) => Mode::Json,
            (false, false) if io::stderr().is_terminal() => Mode::Bar,
            (false, false) => Mode::Plain,
        }
    }

    fn tick(self) -> Duration {
        match self {
            Mode::Bar => Duration::from_millis(120),
            Mode::Json => Duration::from_secs(1),
            Mode::Plain | Mode::Off => Duration::from_secs(10),
        }
    }
}

/// How one of possibly several operations is shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    /// How.
    pub mode: Mode,
    /// Which it is, if there are several.
    pub label: Option<String>,
}

/// The only one.
impl From<Mode> for Shown {
    fn from(mode: Mode) -> Self {
        Self { mode, label: None }
    }
}

impl Shown {
    /// One of several at a time: a bar would be drawn over by the others.
    pub fn among_others(globals: &Globals, label: &str) -> Self {
        let mode = match Mode::of(globals) {
            Mode::Bar => Mode::Plain,
            mode => mode,
        };
        Self { mode, label: Some(label.to_owned()) }
    }
}

/// The thread that polls the counters. Ends with the value, at once.
pub struct Display {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Display {
    /// Starts to show `run`. Without a thread to spare, nothing is shown.
    pub fn start(run: Arc<Run>, kind: Kind, shown: &Shown) -> Self {
        let mode = shown.mode;
        if mode == Mode::Off {
            return Self { stop: None, thread: None };
        }
        let (stop, stopped) = mpsc::channel();
        let label = shown.label.clone();
        let show = move || {
            let mut view = View::new(kind, mode, label);
            let mut meter = Meter::new();
            loop {
                let ended = stopped.recv_timeout(mode.tick()) != Err(RecvTimeoutError::Timeout);
                view.show(&meter.sample(&run.progress), ended);
                if ended {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("progress".into()).spawn(show).ok();
        Self { stop: Some(stop), thread }
    }

    /// Shows the last figures and ends.
    pub fn finish(self) {}
}

impl Drop for Display {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The counters at one moment, and the rates that led there.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    elapsed_ms: u64,
    total: u64,
    done: u64,
    read: u64,
    zero: u64,
    reused: u64,
    new: u64,
    stored: u64,
    problems: usize,
    done_per_s: f64,
    read_per_s: f64,
}

impl Sample {
    /// Seconds to go at this rate; `None` while the size or the rate is unknown.
    fn eta_s(&self) -> Option<u64> {
        (self.total > 0 && self.done_per_s > 0.0)
            .then(|| (self.total.saturating_sub(self.done) as f64 / self.done_per_s).ceil() as u64)
    }
}

/// Takes samples and smooths the rates between them.
struct Meter {
    last: Instant,
    sample: Sample,
}

impl Meter {
    fn new() -> Self {
        Self { last: Instant::now(), sample: Sample::default() }
    }

    fn sample(&mut self, progress: &Progress) -> Sample {
        let now = Instant::now();
        let passed_s = (now - self.last).as_secs_f64();
        let before = self.sample;
        let mut sample = Sample {
            elapsed_ms: progress.started().elapsed().as_millis() as u64,
            total: Progress::get(&progress.total_bytes),
            done: Progress::get(&progress.done_bytes),
            read: Progress::get(&progress.read_bytes),
            zero: Progress::get(&progress.zero_bytes),
            reused: Progress::get(&progress.reused_bytes),
            new: Progress::get(&progress.new_bytes),
            stored: Progress::get(&progress.stored_bytes),
            problems: progress.problems.load(Ordering::Relaxed),
            ..Sample::default()
        };
        sample.done_per_s = smoothed(before.done_per_s, sample.done.saturating_sub(before.done), passed_s);
        sample.read_per_s = smoothed(before.read_per_s, sample.read.saturating_sub(before.read), passed_s);
        self.last = now;
        self.sample = sample;
        sample
    }
}

fn smoothed(before_per_s: f64, bytes: u64, passed_s: f64) -> f64 {
    if passed_s <= 0.0 {
        return before_per_s;
    }
    let now_per_s = bytes as f64 / passed_s;
    if before_per_s == 0.0 {
        return now_per_s;
    }
    let weight = 1.0 - (-passed_s / SMOOTHING_S).exp();
    before_per_s + weight * (now_per_s - before_per_s)
}

/// A line of `--json` progress.
#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    operation: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    elapsed_ms: u64,
    done_bytes: u64,
    total_bytes: Option<u64>,
    read_bytes: u64,
    zero_bytes: u64,
    reused_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    problems: usize,
    done_bytes_per_s: u64,
    read_bytes_per_s: u64,
    eta_s: Option<u64>,
}

/// Where samples go.
struct View {
    kind: Kind,
    mode: Mode,
    label: Option<String>,
    bar: Option<ProgressBar>,
}

impl View {
    fn new(kind: Kind, mode: Mode, label: Option<String>) -> Self {
        let bar = (mode == Mode::Bar).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style("{spinner} {wide_msg}"));
            set_bar(Some(bar.clone()));
            bar
        });
        Self { kind, mode, label, bar }
    }

    fn show(&mut self, sample: &Sample, ended: bool) {
        match (&self.bar, self.mode) {
            (Some(bar), _) => draw(bar, self.kind, sample),
            (None, Mode::Json) => {
                output::note(&event_text(self.kind, self.label.as_deref(), sample, ended));
            }
            // Refused before it began: the error says all.
            (None, _) if ended && sample.done == 0 => {}
            (None, _) => {
                let label = self.label.as_ref().map(|label| format!("{label} ")).unwrap_or_default();
                output::note(&(label + &line(self.kind, sample, ended)));
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            set_bar(None);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("█▉▊▋▌▍▎▏ ")
}

fn draw(bar: &ProgressBar, kind: Kind, sample: &Sample) {
    if sample.total > 0 && bar.length() != Some(sample.total) {
        bar.set_style(style("{bar:10} {percent:>3} % {wide_msg}"));
        bar.set_length(sample.total);
    }
    bar.set_position(sample.done);
    bar.set_message(figures(kind, sample, false).join(", ").replace("dedup ", "").replace(" : ", ":"));
    bar.tick();
}

fn line(kind: Kind, sample: &Sample, ended: bool) -> String {
    let percent = match sample.total {
        0 => String::new(),
        total => format!("{:>3} %  ", sample.done.min(total) as u128 * 100 / u128::from(total)),
    };
    format!("{percent}{}", figures(kind, sample, ended).join(", "))
}

/// The figures of a line, most wanted first. At the end the rate is that of the whole run.
fn figures(kind: Kind, sample: &Sample, ended: bool) -> Vec<String> {
    let mut figures = vec![match sample.total {
        0 => units::size(sample.done),
        total => format!("{} of {}", units::size(sample.done), units::size(total)),
    }];
    if ended {
        figures.push(units::rate(sample.done, sample.elapsed_ms));
        figures.push(units::duration(sample.elapsed_ms));
    } else {
        figures.push(units::rate_of(sample.done_per_s));
        figures.extend(sample.eta_s().map(|s| format!("{} left", units::seconds(s))));
    }
    match kind {
        Kind::Backup => {
            figures.extend(
                units::ratio(sample.reused + sample.new, sample.new).map(|ratio| format!("dedup {ratio}")),
            );
            figures.push(format!("stored {}", units::size(sample.stored)));
            figures.push(format!("new {}", units::size(sample.new)));
        }
        Kind::Restore => figures.push(format!("written {}", units::size(sample.new))),
        Kind::Copy => {
            figures.push(format!("read {}", units::size(sample.read)));
            figures.push(format!("sent {}", units::size(sample.stored)));
        }
        Kind::Verify | Kind::Repair | Kind::Gc | Kind::Lock => {}
    }
    if sample.problems > 0 {
        figures.push(units::plural(sample.problems as u64, "problem"));
    }
    figures
}

fn event_text(kind: Kind, name: Option<&str>, sample: &Sample, ended: bool) -> String {
    let rate =
        |smooth: f64, bytes: u64| if ended { units::per_second(bytes, sample.elapsed_ms) } else { smooth };
    let event = Event {
        event: "progress",
        operation: kind,
        name,
        elapsed_ms: sample.elapsed_ms,
        done_bytes: sample.done,
        total_bytes: (sample.total > 0).then_some(sample.total),
        read_bytes: sample.read,
        zero_bytes: sample.zero,
        reused_bytes: sample.reused,
        new_bytes: sample.new,
        stored_bytes: sample.stored,
        problems: sample.problems,
        done_bytes_per_s: rate(sample.done_per_s, sample.done) as u64,
        read_bytes_per_s: rate(sample.read_per_s, sample.read) as u64,
        eta_s: sample.eta_s(),
    };
    serde_json::to_string(&event).unwrap_or_default()
}

/// The bar on the screen, if any: lines of the log go above it.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn set_bar(bar: Option<ProgressBar>) {
    *BAR.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = bar;
}

/// Standard error, for the log.
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bar = BAR.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        match bar {
            Some(bar) => bar.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sample {
        Sample {
            elapsed_ms: 2000,
            total: 4 << 30,
            done: 1 << 30,
            read: 512 << 20,
            zero: 256 << 20,
            reused: 384 << 20,
            new: 128 << 20,
            stored: 64 << 20,
            done_per_s: (1 << 30) as f64,
            ..Sample::default()
        }
    }

    #[test]
    fn lines_say_how_far_how_fast_and_how_much_is_new() {
        let text = line(Kind::Backup, &sample(), false);
        assert_eq!(
            text,
            " 25 %  1 GiB of 4 GiB, 1 GiB/s, 3 s left, dedup 4.0 : 1, stored 64 MiB, new 128 MiB"
        );
        let end = line(Kind::Restore, &sample(), true);
        assert_eq!(end, " 25 %  1 GiB of 4 GiB, 512 MiB/s, 2.0 s, written 128 MiB");
        let copy = line(Kind::Copy, &sample(), true);
        assert!(copy.ends_with("512 MiB/s, 2.0 s, read 512 MiB, sent 64 MiB"), "{copy}");
        let stream = Sample { total: 0, problems: 1, ..sample() };
        assert_eq!(line(Kind::Verify, &stream, false), "1 GiB, 1 GiB/s, 1 problem");
    }

    #[test]
    fn events_are_json() {
        let value: serde_json::Value =
            serde_json::from_str(&event_text(Kind::Backup, Some("web"), &sample(), false)).unwrap();
        assert_eq!(value["event"], "progress");
        assert_eq!(value["operation"], "backup");
        assert_eq!(value["name"], "web");
        assert_eq!(value["done_bytes"], 1u64 << 30);
        assert_eq!(value["eta_s"], 3);
        let stream = Sample { total: 0, ..sample() };
        let value: serde_json::Value =
            serde_json::from_str(&event_text(Kind::Backup, None, &stream, true)).unwrap();
        assert!(value["total_bytes"].is_null() && value["eta_s"].is_null());
        assert_eq!(value["read_bytes_per_s"], 256 << 20);
    }

    #[test]
    fn rates_are_smoothed() {
        assert_eq!(smoothed(0.0, 100, 1.0), 100.0, "the first sample counts in full");
        let next = smoothed(100.0, 0, 1.0);
        assert!(next > 50.0 && next < 100.0, "{next}");
        assert_eq!(smoothed(100.0, 5, 0.0), 100.0);
    }

    #[test]
    fn a_display_ends_at_once() {
        for mode in [Mode::Off, Mode::Plain, Mode::Json] {
            let started = Instant::now();
            Display::start(Arc::new(Run::new()), Kind::Backup, &mode.into()).finish();
            assert!(started.elapsed() < Duration::from_secs(5), "{mode:?}");
        }
    }
}
