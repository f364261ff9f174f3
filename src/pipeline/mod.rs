//! What stages share, in rooms of which each knows those above it in this list alone:
//!
//! - [`reporter`]: how a stage speaks and is stopped; [`npy`]: NumPy's array files.
//! - [`artifact`]: the life of what a command makes, from the lock to its place.
//! - [`job`]: the folder that many workers share; [`runner`]: pipelines in TOML.
//! - [`engine`]: images from a source, read, computed and written in list order.

pub(crate) mod artifact;
pub(crate) mod engine;
pub mod job;
pub mod npy;
pub(crate) mod reporter;
pub mod runner;

pub use artifact::{
    Counts, ErrorsTable, Existing, Failure, Ledger, LockError, Lost, OtherSettings, Output, Roots, Settings, Staging, WorkFolder,
    WorkLock, WouldDrop, check_replaceable, check_roots, errors_in, manifest, manifest_head,
};
pub use engine::sources;
pub use engine::{
    Build, Chosen, Compute, Content, Counter, Decode, EarlierResults, Entry, Expected, Finished, ImageReading, Index, Input,
    MOST_WINDOW_IMAGES, Names, Only, Options, PassEmbeddings, Prepare, Prepared, Record, Report, ResultCheck, RunSettings,
    ShardReader, Sink, StageParts, StageRun, Stream, Survey, Timings, Turns, Value, WINDOW_IMAGES, concatenated, survey,
};
pub use job::{Crew, Part};
pub use reporter::{Interrupt, Reporter, Silent, Tick, duration};
