//! The one owner of stdout and stderr: results go to stdout, everything else to stderr.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::pipeline::{Reporter, Tick};

/// How much a run says. Made once from the global flags.
pub struct Terminal {
    quiet: bool,
    json: bool,
    verbose: u8,
    bar: Mutex<Option<ProgressBar>>,
    last_line: Mutex<Option<Instant>>,
    is_result_lost: AtomicBool,
    interactive: bool,
}

/// Plain progress lines (no terminal) come at most this often.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

impl Terminal {
    pub fn new(quiet: bool, json: bool, verbose: u8) -> Self {
        Self {
            quiet,
            json,
            verbose,
            bar: Mutex::new(None),
            last_line: Mutex::new(None),
            is_result_lost: AtomicBool::new(false),
            interactive: std::io::stderr().is_terminal(),
        }
    }

    pub fn json(&self) -> bool {
        self.json
    }

    /// The result of a command: the JSON summary with `--json`, the text otherwise.
    pub fn result(&self, text: &str, json: &serde_json::Value) {
        self.clear_bar();
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
        self.line(&format!("error: {}", told(error)));
    }

    /// An error that is all a command came to: with `--json` it is the result too.
    pub fn failed(&self, error: &anyhow::Error, exit_status: u8) {
        self.error(error);
        if self.json {
            self.result("", &serde_json::json!({"error": told(error), "exit_status": exit_status}));
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
        self.line(&format!("warning: {message}"));
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
        let rates: Vec<String> = tick.rates.iter().map(|(unit, value)| format!("{value:.1} {unit}")).collect();
        if self.interactive {
            let mut slot = self.bar.lock().unwrap_or_else(|e| e.into_inner());
            let bar = slot.get_or_insert_with(|| {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
                let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} ETA {eta}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar
            });
            bar.set_prefix(tick.label);
            bar.set_length(tick.total);
            bar.set_message(rates.join(", "));
            bar.set_position(tick.done);
            if tick.total > 0 && tick.done >= tick.total {
                bar.finish_and_clear();
                *slot = None;
            }
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(|e| e.into_inner());
        let finished = tick.total > 0 && tick.done >= tick.total;
        if finished || last.is_none_or(|at| at.elapsed() >= LINE_INTERVAL) {
            *last = Some(Instant::now());
            let total = if tick.total > 0 { format!("/{}", tick.total) } else { String::new() };
            self.line(&format!("{} {}{total} {}", tick.label, tick.done, rates.join(", ")));
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
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.trim_end_matches(')').ends_with(cause.trim_end_matches(')')) {
            text = format!("{text}: {cause}");
        }
    }
    text
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
    fn a_cause_is_told_once() {
        let gone = || std::io::Error::other("no such file");
        let within = crate::table::TableError::Io { path: "a.parquet".into(), source: gone() };
        assert_eq!(
            told(&anyhow::anyhow!(within).context("cannot read captions")),
            "cannot read captions: a.parquet: no such file"
        );
        assert_eq!(told(&anyhow::anyhow!(gone()).context("b")), "b: no such file");
    }
}
