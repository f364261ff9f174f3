//! From an entry to pixel values: read, hash, decode, resize, normalize.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::entry::{Content, Entry, Prepare, Prepared};
use crate::files::ContentHash;
use crate::image::{self, Decoded, Limits, Preprocess, Reason, begins_like_an_image, called_an_image};
use crate::pipeline::artifact::Failure;

/// How image files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageReading {
    /// Pixels and bytes beyond which an image fails.
    pub limits: Limits,
    /// Images are turned upright as their EXIF says.
    pub exif_rotate: bool,
    /// All pixels of large images are decoded, though most are averaged away at once.
    pub full_decode: bool,
    /// Damaged images fail, whatever picture they still have.
    pub fail_damaged: bool,
}

impl Default for ImageReading {
    fn default() -> Self {
        Self { limits: Limits::default(), exif_rotate: true, full_decode: false, fail_damaged: false }
    }
}

impl ImageReading {
    /// What the pixels of an image depend on, as settings of results.
    pub fn settings(&self, preprocess: &Preprocess) -> Json {
        json!({
            "exif_rotate": self.exif_rotate,
            "full_decode": self.full_decode,
            "fail_damaged": self.fail_damaged,
            "max_pixels": self.limits.max_pixels,
            "max_bytes": self.limits.max_bytes,
            "preprocessing": preprocess.settings(),
        })
    }

    /// Out of such settings; None where one is missing.
    pub fn from_settings(settings: &Json) -> Option<Self> {
        let number = |name: &str| settings[name].as_u64();
        let flag = |name: &str| settings[name].as_bool();
        Some(Self {
            limits: Limits { max_pixels: number("max_pixels")?, max_bytes: number("max_bytes")? },
            exif_rotate: flag("exif_rotate")?,
            full_decode: flag("full_decode")?,
            fail_damaged: flag("fail_damaged")?,
        })
    }
}

/// Image files (or their bytes) to pixel_values [3, S, S].
pub struct Decode {
    /// From a decoded picture to pixel_values.
    pub preprocess: Preprocess,
    /// Prepared in a second way too, for another image tower: its pixel_values stand behind the first ones.
    pub also: Option<Preprocess>,
    /// How files are read before that.
    pub reading: ImageReading,
}

impl Decode {
    /// For one image tower.
    pub fn new(preprocess: Preprocess, reading: ImageReading) -> Self {
        Self { preprocess, also: None, reading }
    }

    fn bytes(&self, bytes: &[u8], is_known: &mut dyn FnMut(&ContentHash) -> bool) -> Prepared {
        let sha256 = ContentHash::of(bytes);
        if is_known(&sha256) {
            return Prepared::Known;
        }
        let least = |width, height| self.each().map(|p| p.denominator(width, height)).min().unwrap_or(1);
        let denominator = |width, height| if self.reading.full_decode { 1 } else { least(width, height) };
        let mut decoded = image::decode_at(bytes, &self.reading.limits, self.reading.exif_rotate, &denominator);
        if self.reading.fail_damaged {
            decoded = decoded.and_then(|mut decoded| decoded.damage.take().map_or(Ok(decoded), Err));
        }
        match decoded {
            Ok(decoded) => Prepared::Input { sha256, data: self.pixel_values(&decoded), damaged: decoded.damage.is_some() },
            Err(failure) => Prepared::Failed { sha256: Some(sha256), failure: stage_failure(failure) },
        }
    }

    fn file(&self, path: &Path, is_known: &mut dyn FnMut(&ContentHash) -> bool) -> Prepared {
        if !called_an_image(path) && !begins_like_an_image(path) {
            return Prepared::Skipped;
        }
        match image::read(path, &self.reading.limits) {
            Ok(bytes) => self.bytes(&bytes, is_known),
            Err(failure) => Prepared::Failed { sha256: None, failure: stage_failure(failure) },
        }
    }

    /// The preparations that are asked for.
    fn each(&self) -> impl Iterator<Item = &Preprocess> {
        std::iter::once(&self.preprocess).chain(&self.also)
    }

    fn pixel_values(&self, decoded: &Decoded) -> Vec<f32> {
        let mut data = vec![0.0; self.each().map(Preprocess::num_values).sum()];
        let mut rest = &mut data[..];
        for preprocess in self.each() {
            let (here, behind) = rest.split_at_mut(preprocess.num_values());
            preprocess.normalize_into(&preprocess.resize_and_crop_decoded(decoded), here);
            rest = behind;
        }
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

fn stage_failure(failure: image::Failure) -> Failure {
    Failure { reason: failure.reason.as_str().into(), message: failure.message }
}

/// Embeddings as they are.
pub struct PassEmbeddings {
    /// D
    pub embedding_dim: usize,
}

impl Prepare for PassEmbeddings {
    fn prepare(&self, entry: &Entry, is_known: &mut dyn FnMut(&ContentHash) -> bool) -> Prepared {
        let Content::Embedding { values, sha256, damaged } = &entry.content else {
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
            None => Prepared::Input { sha256: *sha256, data: values.clone(), damaged: *damaged },
        }
    }
}
