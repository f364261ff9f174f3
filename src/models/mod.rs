//! CLIP, mappers and decoders as graphs; their weights; model bundles.

mod block;
pub mod bundle;
mod cached;
pub mod clip;
pub mod config;
pub mod decoder;
pub mod decoders;
mod embedding;
mod encoder;
mod fed;
pub mod graphs;
pub mod import;
pub mod int8;
pub mod layers;
pub mod mapper;
pub mod part;
mod resident;
pub mod tensors;
mod text_encoder;
pub mod vision;
pub mod weights;

pub use bundle::{Bundle, BundleError};
pub use cached::CachedDecoder;
pub use decoder::{Decoder, ImageEncoder, Mapper, Picked};
pub use embedding::TokenEmbedding;
pub use encoder::{ClipEncoder, LoadError, PrefixMapper, style_for};
pub use fed::FedWeights;
pub use resident::ResidentDecoder;
pub use text_encoder::{CaptionReader, ReaderError, TextEncoder};

#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod golden_tests;
