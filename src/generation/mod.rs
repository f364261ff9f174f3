//! Captions from a decoder: greedy, sampled or by beam search, many rows at a time.
//!
//! [`Settings`] say how, [`Generator`] does it: it pulls images in list order, keeps the decoder's rows full and reports an image once
//! its captions are complete. What a caption says depends on its image, the settings and the model alone, never on the batch it shared.

mod answers;
mod batch;
mod beam;
mod best;
mod caption;
mod constraints;
mod error;
mod generator;
mod images;
mod ranking;
mod sampling;
mod search;
mod settings;
mod softmax;
mod stats;
mod walk;

#[cfg(test)]
mod tests;

pub(crate) use caption::Caption;
pub use caption::FinishReason;
pub(crate) use error::GenerationError;
pub(crate) use generator::{FinishedImage, Generator, Request};
pub(crate) use settings::{Flags, SettingsError, SpecialTokens};
pub use settings::{Sampling, Settings, Strategy};
pub(crate) use stats::DecodeStats;
