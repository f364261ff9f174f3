//! CLIP, mappers and decoders as graphs; their weights; model bundles.

mod block;
pub mod bundle;
mod cached;
pub(crate) mod clip;
pub(crate) mod config;
pub(crate) mod decoder;
pub(crate) mod decoders;
mod embedding;
mod encoder;
mod fed;
pub(crate) mod graphs;
pub mod import;
pub(crate) mod int8;
pub(crate) mod layers;
pub(crate) mod mapper;
pub(crate) mod part;
mod recorded;
mod resident;
pub(crate) mod tensors;
mod text_encoder;
pub(crate) mod vision;
pub mod weights;

pub use bundle::{Bundle, BundleError};
pub use cached::CachedDecoder;
pub use decoder::{Decoder, ImageEncoder, Mapper, Picked};
pub use embedding::TokenEmbedding;
pub use encoder::{ClipEncoder, LoadError, PrefixMapper, style_for};
pub use fed::FedWeights;
pub use resident::{MOST_PREFIXES, ResidentDecoder};
pub use text_encoder::{CaptionReader, ReaderError, TextEncoder};

#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod golden_tests;
