//! Captions and images as one dataset: caption files, their text, splits, lint, and the tables they become.

pub(crate) mod assemble;
pub(crate) mod captions;
pub(crate) mod chosen;
pub(crate) mod distribution;
pub(crate) mod duplicates;
pub(crate) mod lint;
pub(crate) mod listing;
pub(crate) mod matching;
pub(crate) mod naming;
pub(crate) mod normalize;
mod parallel;
pub(crate) mod scenes;
pub(crate) mod splits;
pub(crate) mod tables;
pub(crate) mod tar;
pub(crate) mod wanted;

pub use captions::{ReadOptions, read_captions};
pub use listing::{Kind, Listing, ListingError, relative_path};
pub use tar::TarWriter;
pub use wanted::{LeftOut, Wanted};
