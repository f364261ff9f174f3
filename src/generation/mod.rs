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

pub use caption::{Caption, FinishReason};
pub use error::GenerationError;
pub use generator::{FinishedImage, Generator, Request};
pub use settings::{Flags, Sampling, Settings, SettingsError, SpecialTokens, Strategy};
pub use stats::DecodeStats;
