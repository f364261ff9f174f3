//! BLEU, ROUGE-L and CIDEr as pycocoevalcap computes them, over token ids of any tokenization, and what goes with them: how varied captions
//! are, how sure a score is, and whether two systems differ; and CLIPScore from cosines.
//!
//! Texts become ids with an [`Interner`]; a [`Scorer`] knows the references of the whole set and scores candidates image by image; a
//! [`Summary`] is made of any selection of scored images. Sums run in image order, so that no result depends on the number of threads.

mod bleu;
mod cider;
mod clip;
mod diversity;
mod intern;
mod ngrams;
mod resample;
mod rouge;
mod scorer;

pub use clip::{CLIP_METRIC_NAMES, ClipScores};
pub use diversity::{Diversity, repetition};
pub use intern::Interner;
pub use resample::{Comparison, Interval, bootstrap, compare};
pub use scorer::{ImageScores, METRIC_NAMES, Scorer, Summary};
