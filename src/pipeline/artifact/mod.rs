//! The life of what a command makes: locked, worked on beside its place, compared with what is there, put in its place.

mod differences;
mod errors;
mod lock;
mod manifest;
mod output;
mod roots;
mod settings;
mod staging;
mod workfolder;

pub use errors::{ErrorsTable, Failure, errors_in};
pub(in crate::pipeline) use lock::is_still_at;
pub use lock::{LockError, WorkLock};
pub use manifest::{Counts, Lost, manifest, manifest_head};
pub use output::{Existing, OtherSettings, Output, WouldDrop, check_replaceable, check_roots};
pub use roots::Roots;
pub use settings::Settings;
pub use staging::Staging;
pub use workfolder::WorkFolder;
pub(in crate::pipeline) use workfolder::run_of;
