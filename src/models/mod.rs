//! CLIP, mappers and GPT2 as graphs; their weights; model bundles.

pub mod config;
pub mod decoder;
pub mod weights;

pub use decoder::{Decoder, ImageEncoder, Mapper};
