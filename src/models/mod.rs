//! CLIP, mappers and GPT2 as graphs; their weights; model bundles.

pub mod decoder;

pub use decoder::{Decoder, ImageEncoder, Mapper};
