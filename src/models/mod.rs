//! CLIP, mappers and GPT2 as graphs; their weights; model bundles.

mod cached;
pub mod clip;
pub mod config;
pub mod decoder;
mod embedding;
mod encoder;
pub mod gpt2;
pub mod graphs;
pub mod layers;
pub mod mapper;
pub mod weights;

pub use cached::CachedDecoder;
pub use decoder::{Decoder, ImageEncoder, Mapper};
pub use encoder::{ClipEncoder, LoadError, PrefixMapper, style_for};

#[cfg(test)]
mod golden_tests;
