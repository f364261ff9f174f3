//! CLIP, mappers and decoders as graphs; their weights; model bundles.

mod block;
pub(crate) mod bundle;
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
mod prefixes;
mod recorded;
mod resident;
pub(crate) mod tensors;
mod text_encoder;
pub(crate) mod vision;
pub mod weights;

pub use bundle::{Bundle, BundleError};
pub(crate) use cached::CachedDecoder;
pub use decoder::ImageEncoder;
pub(crate) use decoder::{Decoder, Mapper, Picked};
pub(crate) use embedding::TokenEmbedding;
pub(crate) use encoder::{ClipEncoder, LoadError, PrefixMapper, style_for};
pub(crate) use resident::{MOST_PREFIXES, ResidentDecoder};
pub(crate) use text_encoder::{CaptionReader, TextEncoder};

#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod golden_tests;
