//! One file a command: a plain function from settings to an outcome.

pub mod caption;
pub(crate) mod choice;
pub(crate) mod doctor;
pub(crate) mod elsewhere;
pub mod embed;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod fleet;
pub(crate) mod get;
pub mod job;
mod loading;
mod memory;
pub(crate) mod model;
pub(crate) mod prepare;
pub(crate) mod quantize;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod scenes;
pub(crate) mod score;
pub(crate) mod show;
pub(crate) mod stats;
mod summary;
pub(crate) mod train;

/// How a stage ended, and with it the exit status of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything asked for is done (exit 0).
    Complete,
    /// Done, but some inputs failed and are listed in the errors table (exit 3).
    SomeFailed,
    /// More inputs failed than `--max-error-rate` allows (exit 1).
    TooManyFailed,
    /// Stopped by Ctrl-C; state is kept, and the same command goes on (exit 130).
    Interrupted,
}

impl Outcome {
    /// What a run over images deserves: `max_error_rate` is the share of failed images that may be.
    pub fn of(report: &crate::pipeline::Report, max_error_rate: f64) -> Self {
        let counts = &report.counts;
        if !report.complete {
            Self::Interrupted
        } else if counts.error_rate() > max_error_rate {
            Self::TooManyFailed
        } else if counts.failed + counts.unlisted + counts.kept > 0 {
            Self::SomeFailed
        } else {
            Self::Complete
        }
    }

    /// The program's exit status.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::SomeFailed => 3,
            Self::TooManyFailed => 1,
            Self::Interrupted => 130,
        }
    }
}
