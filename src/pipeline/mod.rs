//! What stages share, in rooms of which each knows those above it in this list alone:
//!
//! - [`reporter`]: how a stage speaks and is stopped; [`npy`]: NumPy's array files.
//! - [`artifact`]: the life of what a command makes, from the lock to its place.
//! - [`job`]: the folder that many workers share; [`runner`]: pipelines in TOML.
//! - [`engine`]: images from a source, read, computed and written in list order.

pub(crate) mod artifact;
pub(crate) mod engine;
pub(crate) mod job;
pub mod npy;
pub(crate) mod reporter;
pub(crate) mod runner;

pub use artifact::{Failure, Lost, OtherSettings, Output, WorkLock, WouldDrop};
pub use engine::sources::{Embeddings, Source, StoredImages};
pub use engine::{Content, Decode, Entry, ImageReading, Prepare, Prepared, RunSettings};
pub use job::{JobFolder, Plan};
pub use reporter::{Interrupt, Reporter, Silent, Tick};
pub use runner::Spec;

pub(crate) use artifact::{
    Counts, ErrorsTable, Existing, LockError, Roots, Settings, Staging, WorkFolder, check_replaceable, check_roots, errors_in,
    manifest, manifest_head,
};
pub(crate) use engine::sources;
pub(crate) use engine::{
    Build, Compute, EarlierResults, Index, Input, MOST_WINDOW_IMAGES, Names, PassEmbeddings, Record, Report, ResultCheck,
    ShardReader, Sink, StageParts, StageRun, Survey, Turns, Value, WINDOW_IMAGES, concatenated, survey,
};
pub(crate) use job::Crew;
pub(crate) use reporter::duration;
