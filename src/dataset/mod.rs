//! Captions and images as one dataset: caption files, their text, splits, lint, and the tables they become.

pub mod assemble;
pub mod captions;
pub mod chosen;
pub mod distribution;
pub mod duplicates;
pub mod lint;
pub mod listing;
pub mod matching;
pub mod naming;
pub mod normalize;
mod parallel;
pub mod scenes;
pub mod splits;
pub mod tables;
pub mod tar;
pub mod wanted;
