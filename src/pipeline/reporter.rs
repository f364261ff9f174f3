//! How a stage speaks while it works, without knowing of a terminal, and how it learns that it should stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Progress of a running stage. `rates` are shown beside the count, such as `("images/s", 151.2)`.
#[derive(Debug, Clone, Default)]
pub struct Tick {
    /// What is being done, such as `captioning`.
    pub label: &'static str,
    /// How many of `total` are done, failed ones among them.
    pub done: u64,
    /// 0 where it is not known yet.
    pub total: u64,
    /// A unit and how many of it per second.
    pub rates: Vec<(&'static str, f64)>,
    /// What has failed so far.
    pub failed: u64,
    /// How long the rest takes, where the stage knows better than its count and the clock say.
    pub left: Option<Duration>,
}

/// `40 s`, `12 min`, `3.5 h`
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Receives what a stage says. The terminal implements it; tests and library users may use [`Silent`].
pub trait Reporter: Send + Sync {
    /// A line for the reader, shown unless `--quiet`.
    fn note(&self, message: &str);
    /// Something wrong that does not stop the run; shown unless `--quiet`.
    fn warn(&self, message: &str);
    /// A detail, shown with `-v`.
    fn detail(&self, message: &str);
    /// Shows progress.
    fn tick(&self, tick: &Tick);
}

/// Says nothing.
pub struct Silent;

impl Reporter for Silent {
    fn note(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn detail(&self, _: &str) {}
    fn tick(&self, _: &Tick) {}
}

/// Set by Ctrl-C (or SIGTERM): a stage finishes the shard in hand, keeps its state and leaves with exit status 130.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Asks the run to stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the run is to stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
