//! From an entry to pixel values: read, hash, decode, resize, normalize.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::entry::{Content, Entry, Prepare, Prepared};
use super::record::{ContentHash, Failure};
use super::sources::parse_hash;
use crate::image::{self, Examined, Limits, Preprocess, Reason, called_an_image};

/// Image files (or their bytes) to pixel_values [3, S, S].
pub struct Decode {
    pub preprocess: Preprocess,
    pub limits: Limits,
    /// Turn images upright as their EXIF says.
    pub exif: bool,
}

impl Decode {
    fn bytes(&self, bytes: &[u8], is_known: &mut dyn FnMut(&ContentHash) -> bool) -> Prepared {
        let sha256: ContentHash = Sha256::digest(bytes).into();
        if is_known(&sha256) {
            return Prepared::Known;
        }
        match image::decode(bytes, &self.limits, self.exif) {
            Ok(pixels) => Prepared::Input { sha256, data: self.pixel_values(&pixels) },
            Err(failure) => Prepared::Failed { sha256: Some(sha256), failure: told(failure) },
        }
    }

    fn file(&self, path: &Path, is_known: &mut dyn FnMut(&ContentHash) -> bool) -> Prepared {
        if called_an_image(path) {
            return match image::read(path, &self.limits) {
                Ok(bytes) => self.bytes(&bytes, is_known),
                Err(failure) => Prepared::Failed { sha256: None, failure: told(failure) },
            };
        }
        match image::examine(path, None, &self.limits, self.exif) {
            Examined::NotAnImage => Prepared::Skipped,
            Examined::Failed(failure) => {
                let sha256 = failure.content.as_ref().and_then(|content| parse_hash(&content.sha256));
                Prepared::Failed { sha256, failure: told(failure) }
            }
            Examined::Image(loaded) => match parse_hash(&loaded.content.sha256) {
                Some(sha256) if is_known(&sha256) => Prepared::Known,
                Some(sha256) => Prepared::Input { sha256, data: self.pixel_values(&loaded.pixels) },
                None => Prepared::Failed {
                    sha256: None,
                    failure: Failure { reason: Reason::Corrupt.as_str().into(), message: "its hash is not one".into() },
                },
            },
        }
    }

    fn pixel_values(&self, pixels: &::image::RgbImage) -> Vec<f32> {
        let (width, height) = self.preprocess.output_size();
        let mut data = vec![0.0; 3 * width as usize * height as usize];
        self.preprocess.normalize_into(&self.preprocess.resize_and_crop(pixels), &mut data);
        data
    }
}

impl Prepare for Decode {
    fn prepare(&self, entry: &Entry, is_known: &mut dyn FnMut(&ContentHash) -> bool) -> Prepared {
        match &entry.content {
            Content::File { path, .. } => self.file(path, is_known),
            Content::Bytes(bytes) => self.bytes(bytes, is_known),
            _ => Prepared::Skipped,
        }
    }
}

fn told(failure: image::Failure) -> Failure {
    Failure { reason: failure.reason.as_str().into(), message: failure.message }
}

/// Embeddings as they are.
pub struct PassEmbeddings {
    /// D
    pub embedding_dim: usize,
}

impl Prepare for PassEmbeddings {
    fn prepare(&self, entry: &Entry, is_known: &mut dyn FnMut(&ContentHash) -> bool) -> Prepared {
        let Content::Embedding { values, sha256 } = &entry.content else {
            return Prepared::Skipped;
        };
        if is_known(sha256) {
            return Prepared::Known;
        }
        let problem = if values.len() != self.embedding_dim {
            Some(format!("an embedding of {} numbers, where the model takes {}", values.len(), self.embedding_dim))
        } else if values.iter().any(|value| !value.is_finite()) {
            Some("the embedding holds numbers that are not finite".into())
        } else {
            None
        };
        match problem {
            Some(message) => {
                Prepared::Failed { sha256: Some(*sha256), failure: Failure { reason: Reason::Corrupt.as_str().into(), message } }
            }
            None => Prepared::Input { sha256: *sha256, data: values.clone() },
        }
    }
}
