//! Captions and images as one dataset: caption files, their text, splits, lint, and the tables they become.

pub mod captions;
pub mod normalize;
