//! One file a command: a plain function from settings to an outcome.

pub mod caption;
pub mod doctor;
pub mod elsewhere;
pub mod embed;
pub mod evaluate;
pub mod export;
pub mod fleet;
pub mod get;
pub mod job;
mod loading;
mod memory;
pub mod model;
pub mod prepare;
pub mod quantize;
pub mod report;
pub mod run;
pub mod scenes;
pub mod score;
pub mod show;
pub mod stats;
mod summary;
pub mod train;

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

    pub fn exit_code(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::SomeFailed => 3,
            Self::TooManyFailed => 1,
            Self::Interrupted => 130,
        }
    }
}
