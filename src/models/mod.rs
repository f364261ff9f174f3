//! CLIP, mappers and GPT2 as graphs; their weights; model bundles.

pub mod bundle;
pub mod config;
pub mod decoder;
pub mod import;
pub mod part;
pub mod tensors;
pub mod weights;

pub use bundle::{Bundle, BundleError};
pub use decoder::{Decoder, ImageEncoder, Mapper};
