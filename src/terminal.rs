//! The one owner of stdout and stderr: results go to stdout, everything else to stderr.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::pipeline::{Reporter, Tick, duration};

/// How much a run says. Made once from the global flags.
pub struct Terminal {
    quiet: bool,
    json: bool,
    verbose: u8,
    bar: Mutex<Option<ProgressBar>>,
    last_line: Mutex<Option<Instant>>,
    pace: Mutex<Pace>,
    is_result_lost: AtomicBool,
    is_stdout_taken: AtomicBool,
    interactive: bool,
}

/// Plain progress lines (no terminal) come at most this often.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Since when something is being done, and how far it was then.
#[derive(Default)]
struct Pace(Option<(&'static str, Instant, u64)>);

impl Pace {
    /// How long the rest takes at the pace so far.
    fn left(&mut self, tick: &Tick) -> Option<Duration> {
        let (label, start, first) = *self.0.get_or_insert((tick.label, Instant::now(), tick.done));
        if label != tick.label || tick.done < first {
            self.0 = Some((tick.label, Instant::now(), tick.done));
            return None;
        }
        let done = tick.done - first;
        let each = start.elapsed().as_secs_f64() / done as f64;
        (done > 0 && tick.total > 0).then(|| Duration::from_secs_f64(each * tick.total.saturating_sub(tick.done) as f64))
    }
}

impl Terminal {
    pub fn new(quiet: bool, json: bool, verbose: u8) -> Self {
        Self {
            quiet,
            json,
            verbose,
            bar: Mutex::new(None),
            last_line: Mutex::new(None),
            pace: Mutex::default(),
            is_result_lost: AtomicBool::new(false),
            is_stdout_taken: AtomicBool::new(false),
            interactive: std::io::stderr().is_terminal(),
        }
    }

    pub fn json(&self) -> bool {
        self.json
    }

    /// From now on stdout has a table on it: summaries go to stderr, and no bar is drawn over what stands there.
    pub fn take_stdout(&self) {
        self.is_stdout_taken.store(true, Ordering::Relaxed);
    }

    /// A result with pictures in it, which are the terminal's commands: whoever made it has made its words harmless.
    pub fn pictures(&self, bytes: &[u8]) {
        self.clear_bar();
        let mut out = std::io::stdout().lock();
        if let Err(error) = out.write_all(bytes).and_then(|()| out.flush())
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            self.is_result_lost.store(true, Ordering::Relaxed);
            self.error(&anyhow::anyhow!(error).context("cannot write the result to stdout"));
        }
    }

    /// What a command did, where its files are what it is for: as [`result`](Self::result), and nothing with `--quiet` alone.
    pub fn summary(&self, text: &str, json: &serde_json::Value) {
        if self.json || !self.quiet {
            self.result(text, json);
        }
    }

    /// Columns of the terminal that stdout is; `None` where it is none.
    pub fn width(&self) -> Option<usize> {
        std::io::stdout().is_terminal().then(|| terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0)))
    }

    /// The result of a command: the JSON summary with `--json`, the text otherwise.
    pub fn result(&self, text: &str, json: &serde_json::Value) {
        self.clear_bar();
        if self.is_stdout_taken.load(Ordering::Relaxed) {
            return self.line(if self.json { json.to_string() } else { text.trim_end().into() }.as_str());
        }
        let mut out = std::io::stdout().lock();
        let written = match self.json {
            true => writeln!(out, "{}", harmless(&json.to_string())),
            false => writeln!(out, "{}", harmless(text.trim_end())),
        };
        if let Err(error) = written.and_then(|()| out.flush())
            // A closed pipe (`| head`) is not an error of ours.
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            self.is_result_lost.store(true, Ordering::Relaxed);
            self.error(&anyhow::anyhow!(error).context("cannot write the result to stdout"));
        }
    }

    /// Whether a result could not be written, which is a failure of the whole command.
    pub fn is_result_lost(&self) -> bool {
        self.is_result_lost.load(Ordering::Relaxed)
    }

    /// The final error, with its chain of causes.
    pub fn error(&self, error: &anyhow::Error) {
        self.clear_bar();
        self.line(&format!("error: {}", error_text(error)));
    }

    /// An error that is all a command came to: with `--json` it is the result too.
    pub fn failed(&self, error: &anyhow::Error, exit_status: u8) {
        self.error(error);
        if self.json {
            self.result("", &serde_json::json!({"error": error_text(error), "exit_status": exit_status}));
        }
    }

    fn clear_bar(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(|e| e.into_inner()).take() {
            bar.finish_and_clear();
        }
    }

    fn line(&self, message: &str) {
        let bar = self.bar.lock().unwrap_or_else(|e| e.into_inner());
        let print = || {
            let _ = writeln!(std::io::stderr().lock(), "{}", harmless(message));
        };
        match bar.as_ref() {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Reporter for Terminal {
    fn note(&self, message: &str) {
        if !self.quiet {
            self.line(message);
        }
    }

    fn warn(&self, message: &str) {
        if !self.quiet {
            self.line(&format!("warning: {message}"));
        }
    }

    fn detail(&self, message: &str) {
        if self.verbose > 0 {
            self.line(message);
        }
    }

    fn tick(&self, tick: &Tick) {
        if self.quiet {
            return;
        }
        let mut parts: Vec<String> = tick.rates.iter().map(|(unit, value)| format!("{value:.1} {unit}")).collect();
        let finished = tick.total > 0 && tick.done >= tick.total;
        if tick.failed > 0 {
            parts.push(format!("{} failed", tick.failed));
        }
        let left = tick.left.or_else(|| self.pace.lock().unwrap_or_else(|e| e.into_inner()).left(tick));
        parts.extend(left.filter(|_| !finished).map(|left| format!("{} left", duration(left.as_secs_f64()))));
        let parts = parts.join(", ");
        if self.interactive && !self.is_stdout_taken.load(Ordering::Relaxed) {
            let mut slot = self.bar.lock().unwrap_or_else(|e| e.into_inner());
            let bar = slot.get_or_insert_with(|| {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
                let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar
            });
            bar.set_prefix(tick.label);
            bar.set_length(tick.total);
            bar.set_message(parts);
            bar.set_position(tick.done);
            if finished {
                bar.finish_and_clear();
                *slot = None;
            }
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(|e| e.into_inner());
        if finished || last.is_none_or(|at| at.elapsed() >= LINE_INTERVAL) {
            *last = Some(Instant::now());
            let total = if tick.total > 0 { format!("/{}", tick.total) } else { String::new() };
            self.line(&format!("{} {}{total} {parts}", tick.label, tick.done));
        }
    }
}

/// Text in which no character commands the terminal: file names and captions come from anywhere. Those are written as JSON and Rust
/// write them (`\\u001b`); lines and tabs stay.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let commands = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(commands) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if commands(c) {
            plain += &format!("\\u{:04x}", u32::from(c));
        } else {
            plain.push(c);
        }
    }
    Cow::Owned(plain)
}

/// The chain of causes, without those that the message before them ends with: many errors tell their cause in their own text.
fn error_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(|cause| in_plain_words(cause.to_string())) {
        let cause = cause.trim_end();
        if text.is_empty() {
            text = cause.into();
        } else if !text.trim_end_matches(')').ends_with(cause.trim_end_matches(')'))
            && !says_so(&text, cause)
            && !is_shortened(&text, cause)
        {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Whether a message has the beginning of a long one behind it: it was made shorter on purpose.
fn is_shortened(text: &str, cause: &str) -> bool {
    const LONG: usize = 300;
    cause.char_indices().nth(LONG).is_some_and(|(end, _)| text.contains(&cause[..end]))
}

const NOT_THERE: &str = "no such file or folder";
const NO_PERMISSION: &str = "permission denied";

/// A message in which the operating system's words are ours.
fn in_plain_words(mut text: String) -> String {
    const WORDS: [(&str, &str); 6] = [
        ("No such file or directory (os error 2)", NOT_THERE),
        ("Permission denied (os error 13)", NO_PERMISSION),
        ("Not a directory (os error 20)", "a part of this path is a file and no folder"),
        ("Is a directory (os error 21)", "this is a folder, where a file is wanted"),
        ("No space left on device (os error 28)", "no space is left on the disk"),
        ("Read-only file system (os error 30)", "the file system is read-only"),
    ];
    for (theirs, ours) in WORDS {
        if text.contains(theirs) {
            text = text.replace(theirs, ours);
        }
    }
    text
}

/// Whether a message says itself what the cause behind it says.
fn says_so(text: &str, cause: &str) -> bool {
    match cause {
        NOT_THERE => text.contains("no such file") || text.contains("no such folder"),
        NO_PERMISSION => text.contains(NO_PERMISSION),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_printed_commands_the_terminal() {
        assert_eq!(harmless("猫\t1\n"), "猫\t1\n");
        assert_eq!(harmless("a\u{1b}[2J\r\u{7f}\u{9b}31m"), "a\\u001b[2J\\u000d\\u007f\\u009b31m");
        let json = serde_json::json!({"caption": "\u{1b}]0;x\u{7}\u{9b}"}).to_string();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&harmless(&json)).unwrap()["caption"], "\u{1b}]0;x\u{7}\u{9b}");
        assert!(!harmless(&json).contains(char::is_control));
    }

    #[test]
    fn the_rest_takes_as_long_as_what_is_done() {
        let mut pace = Pace::default();
        let tick = |label, done| Tick { label, done, total: 100, ..Tick::default() };
        assert_eq!(pace.left(&tick("a", 10)), None);
        std::thread::sleep(Duration::from_millis(20));
        let left = pace.left(&tick("a", 55)).unwrap();
        assert!(left >= Duration::from_millis(20) && left < Duration::from_secs(5), "{left:?}");
        // Something else begins anew.
        assert_eq!(pace.left(&tick("b", 1)), None);
    }

    #[test]
    fn a_cause_is_told_once() {
        let gone = || std::io::Error::other("no such file");
        let within = crate::table::TableError::Io { path: "a.parquet".into(), source: gone() };
        assert_eq!(
            error_text(&anyhow::anyhow!(within).context("cannot read captions")),
            "cannot read captions: a.parquet: no such file"
        );
        assert_eq!(error_text(&anyhow::anyhow!(gone()).context("b")), "b: no such file");
        let full = || std::io::Error::from_raw_os_error(28);
        assert_eq!(
            error_text(&anyhow::anyhow!(full()).context("cannot write x")),
            "cannot write x: no space is left on the disk"
        );
        let within = std::io::Error::other(format!("y: {}", full()));
        assert_eq!(error_text(&anyhow::anyhow!(within)), "y: no space is left on the disk");
        let missing = std::io::Error::from_raw_os_error(2);
        assert_eq!(
            error_text(&anyhow::anyhow!(missing).context("no such file or folder: photo")),
            "no such file or folder: photo"
        );
        // ONNX Runtime's end with a line's end, and long ones are told in part.
        let told =
            |message: &str| error_text(&anyhow::anyhow!(message.to_string()).context(format!("a model: {}", message.trim_end())));
        assert_eq!(told("out of memory\n"), "a model: out of memory");
        let long = "out of memory ".repeat(100);
        let error = anyhow::anyhow!(long.clone()).context(format!("a model: {} ... (1400 characters in all)", &long[..600]));
        assert!(error_text(&error).ends_with("characters in all)"));
    }
}
