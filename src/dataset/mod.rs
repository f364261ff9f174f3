//! Captions and images as one dataset: caption files, their text, splits, lint, and the tables they become.

pub(crate) mod assemble;
pub mod captions;
pub(crate) mod chosen;
pub(crate) mod distribution;
pub(crate) mod duplicates;
pub(crate) mod lint;
pub mod listing;
pub(crate) mod matching;
pub(crate) mod naming;
pub(crate) mod normalize;
mod parallel;
pub(crate) mod scenes;
pub(crate) mod splits;
pub(crate) mod tables;
pub mod tar;
pub mod wanted;
