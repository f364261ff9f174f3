//! Sessions for the image encoder and the mapper.

use std::path::Path;

use super::config::{ClipConfig, MapperConfig};
use super::graphs::{BuildError, Part, build};
use super::layers::Style;
use super::{ImageEncoder, Mapper};
use crate::runtime::{Device, Feed, Precision, Runtime, RuntimeError, Session};

/// A bundle's part could not be built or loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// How graphs are spelled for the device and precision of a runtime.
pub fn style_for(runtime: &Runtime) -> Style {
    let fused = runtime.device() != Device::OpenVino;
    let cuda = matches!(runtime.device(), Device::Cuda(_));
    Style { fused, dtype: runtime.dtype(), int8: runtime.precision() == Precision::Int8, cuda }
}

/// CLIP's image tower on a device.
pub struct ClipEncoder {
    session: Session,
    image_size: usize,
    embedding_dim: usize,
    max_batch: usize,
    /// OpenVINO wants one fixed shape: smaller batches are padded to it.
    is_fixed: bool,
    /// Pixels of a batch, kept from one to the next.
    buffer: Vec<f32>,
}

impl ClipEncoder {
    pub fn load(runtime: &Runtime, folder: &Path, config: &ClipConfig, max_batch: usize) -> Result<Self, LoadError> {
        let model = build(folder, Part::ImageEncoder(config), style_for(runtime))?;
        let fixed = runtime.device() == Device::OpenVino;
        let dimensions: &[(&str, i64)] = if fixed { &[("batch", max_batch as i64)] } else { &[] };
        let session = Session::new(runtime, "image_encoder", &model.to_bytes(), folder, dimensions)?;
        let image_size = config.vision_config.image_size();
        Ok(Self { session, image_size, embedding_dim: config.projection_dim, max_batch, is_fixed: fixed, buffer: vec![] })
    }

    /// Floats of one image.
    fn image_len(&self) -> usize {
        3 * self.image_size * self.image_size
    }

    /// Runs a batch that has the shape the session takes and returns the first embeddings of it.
    fn run(session: &mut Session, pixels: &[f32], side: usize, wanted: usize) -> Result<Vec<f32>, RuntimeError> {
        let batch = pixels.len() / (3 * side * side).max(1);
        let shape = [batch as i64, 3, side as i64, side as i64];
        let outputs = session.run(&[("pixel_values", Feed::F32(pixels, &shape))])?;
        let embeddings = outputs.f32("image_embeds")?;
        Ok(embeddings[..embeddings.len() / batch.max(1) * wanted].to_vec())
    }

    fn misshapen(&self, found: usize, num_images: usize) -> RuntimeError {
        let side = self.image_size as i64;
        RuntimeError::Shape {
            model: "image_encoder".into(),
            what: "pixel_values".into(),
            found: vec![found as i64],
            wanted: vec![num_images as i64, 3, side, side],
        }
    }
}

impl ImageEncoder for ClipEncoder {
    fn embedding_dim(&self) -> usize {
        self.embedding_dim
    }

    fn max_batch(&self) -> usize {
        self.max_batch
    }

    fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<f32>, RuntimeError> {
        if pixel_values.len() != num_images * self.image_len() || num_images > self.max_batch {
            return Err(self.misshapen(pixel_values.len(), num_images));
        }
        if self.is_fixed && num_images < self.max_batch {
            let images: Vec<&[f32]> = pixel_values.chunks_exact(self.image_len().max(1)).collect();
            return self.encode_each(&images);
        }
        Self::run(&mut self.session, pixel_values, self.image_size, num_images)
    }

    fn encode_each(&mut self, images: &[&[f32]]) -> Result<Vec<f32>, RuntimeError> {
        let image_len = self.image_len();
        if let Some(other) = images.iter().find(|image| image.len() != image_len) {
            return Err(self.misshapen(other.len(), 1));
        }
        if images.len() > self.max_batch {
            return Err(self.misshapen(images.len() * image_len, images.len()));
        }
        let rows = if self.is_fixed { self.max_batch } else { images.len() };
        self.buffer.resize(rows * image_len, 0.0);
        let mut places = self.buffer.chunks_exact_mut(image_len.max(1));
        places.by_ref().zip(images).for_each(|(place, image)| place.copy_from_slice(image));
        // What is behind the last image is computed for nobody; zeros, so that it is the same every time.
        self.buffer[images.len() * image_len..].fill(0.0);
        Self::run(&mut self.session, &self.buffer, self.image_size, images.len())
    }
}

/// A mapper on a device.
pub struct PrefixMapper {
    session: Session,
    clip_size: usize,
    max_batch: usize,
    fixed: bool,
}

impl PrefixMapper {
    pub fn load(runtime: &Runtime, folder: &Path, config: &MapperConfig, max_batch: usize) -> Result<Self, LoadError> {
        let model = build(folder, Part::Mapper(config), style_for(runtime))?;
        let fixed = runtime.device() == Device::OpenVino;
        let dimensions: &[(&str, i64)] = if fixed { &[("batch", max_batch as i64)] } else { &[] };
        let session = Session::new(runtime, "mapper", &model.to_bytes(), folder, dimensions)?;
        Ok(Self { session, clip_size: config.clip_size, max_batch, fixed })
    }
}

impl Mapper for PrefixMapper {
    fn map(&mut self, embeddings: &[f32], num_images: usize) -> Result<Vec<f32>, RuntimeError> {
        let mut prefixes = vec![];
        for chunk in embeddings.chunks((self.max_batch * self.clip_size).max(1)) {
            let rows = chunk.len() / self.clip_size;
            let mut padded;
            let (data, batch) = if self.fixed && rows < self.max_batch {
                padded = chunk.to_vec();
                padded.resize(self.max_batch * self.clip_size, 0.0);
                (padded.as_slice(), self.max_batch)
            } else {
                (chunk, rows)
            };
            let outputs = self.session.run(&[("clip_embeds", Feed::F32(data, &[batch as i64, self.clip_size as i64]))])?;
            let all = outputs.f32("prefix_embeds")?;
            prefixes.extend_from_slice(&all[..all.len() / batch * rows]);
        }
        if embeddings.len() != num_images * self.clip_size {
            return Err(RuntimeError::Shape {
                model: "mapper".into(),
                what: "clip_embeds".into(),
                found: vec![embeddings.len() as i64],
                wanted: vec![num_images as i64, self.clip_size as i64],
            });
        }
        Ok(prefixes)
    }
}
