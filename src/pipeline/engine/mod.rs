//! The streaming engine: images from a source, read, computed and written in list order, and a stage's run around that.

mod before;
mod compute;
mod earlier;
pub(crate) mod entry;
mod gate;
mod index;
mod prepare;
mod progress;
mod record;
mod run_settings;
mod shard;
pub mod sources;
mod stage_run;
mod stream;
mod survey;
mod timing;
mod window;
mod writer;

pub use compute::{Compute, Input, concatenated};
pub use earlier::{EarlierResults, ResultCheck};
pub use entry::{Content, Entry, Prepare, Prepared};
pub use gate::Turns;
pub use index::{Index, ShardReader};
pub use prepare::{Decode, ImageReading, PassEmbeddings};
pub use record::{Record, Value};
pub use run_settings::RunSettings;
pub use stage_run::{Build, Expected, Names, Report, StageParts, StageRun};
pub use stream::Counter;
pub use survey::{Survey, survey};
pub use window::{MOST_WINDOW_IMAGES, WINDOW_IMAGES};
pub use writer::Sink;
