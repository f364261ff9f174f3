//! What stages share: the stream from list to output, work folders and what earlier runs left there, progress, timings.

pub mod compute;
pub mod content;
pub mod entry;
mod errors;
mod index;
mod job;
mod lock;
pub mod npy;
mod output;
mod prepare;
mod record;
pub mod reporter;
mod settings;
mod shard;
pub mod sources;
pub mod spec;
mod stream;
mod timing;
mod window;
mod workfolder;
mod writer;

pub use compute::{Compute, Input};
pub use entry::{Content, Entry, Prepare, Prepared};
pub use index::Index;
pub use job::{Build, Job, Parts, Report};
pub use lock::{LockError, WorkLock};
pub use output::{Existing, Output};
pub use prepare::{Decode, PassEmbeddings};
pub use record::{ContentHash, Failure, Record, Stat, Value};
pub use reporter::{Interrupt, Reporter, Silent, Tick};
pub use settings::Settings;
pub use stream::{Counter, Finished, Options, Stream};
pub use timing::Timings;
pub use window::WINDOW_IMAGES;
pub use workfolder::{Found, Ledger, WorkFolder};
pub use writer::{Counts, Sink};
