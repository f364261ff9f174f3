//! One file a command: a plain function from settings to an outcome.

pub mod doctor;
pub mod evaluate;
pub mod model;
pub mod prepare;
pub mod run;
pub mod scenes;
pub mod stats;

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
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::SomeFailed => 3,
            Self::TooManyFailed => 1,
            Self::Interrupted => 130,
        }
    }
}
