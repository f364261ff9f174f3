//! Sessions for the image encoder and the mapper.

use std::path::Path;

use super::config::{ClipConfig, MapperConfig};
use super::graphs::{BuildError, Part, build};
use super::layers::Style;
use super::{ImageEncoder, Mapper};
use crate::onnx::DType;
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
    let dtype = match (runtime.device(), runtime.precision()) {
        (Device::Cuda(_), Precision::Fp16) => DType::F16,
        (Device::Cuda(_), Precision::Bf16) => DType::BF16,
        // OpenVINO's bf16 is a hint to the provider; the graph stays float32.
        _ => DType::F32,
    };
    Style { fused, dtype, int8: runtime.precision() == Precision::Int8 }
}

/// CLIP's image tower on a device.
pub struct ClipEncoder {
    session: Session,
    image_size: usize,
    embedding_dim: usize,
    max_batch: usize,
    /// OpenVINO wants one fixed shape: smaller batches are padded to it.
    padded: Option<Vec<f32>>,
}

impl ClipEncoder {
    pub fn load(runtime: &Runtime, folder: &Path, config: &ClipConfig, max_batch: usize) -> Result<Self, LoadError> {
        let model = build(folder, Part::ImageEncoder(config), style_for(runtime))?;
        let fixed = runtime.device() == Device::OpenVino;
        let dimensions: &[(&str, i64)] = if fixed { &[("batch", max_batch as i64)] } else { &[] };
        let session = Session::new(runtime, "image_encoder", &model.to_bytes(), folder, dimensions)?;
        let image_size = config.vision_config.image_size();
        Ok(Self {
            session,
            image_size,
            embedding_dim: config.projection_dim,
            max_batch,
            padded: fixed.then(|| vec![0.0; max_batch * 3 * image_size * image_size]),
        })
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
        let (side, batch) = (self.image_size as i64, num_images.max(1));
        if pixel_values.len() != num_images * 3 * self.image_size * self.image_size || num_images > self.max_batch {
            return Err(RuntimeError::Shape {
                model: "image_encoder".into(),
                what: "pixel_values".into(),
                found: vec![pixel_values.len() as i64],
                wanted: vec![num_images as i64, 3, side, side],
            });
        }
        let (pixels, batch) = match &mut self.padded {
            Some(padded) => {
                padded[..pixel_values.len()].copy_from_slice(pixel_values);
                padded[pixel_values.len()..].fill(0.0);
                (padded.as_slice(), self.max_batch)
            }
            None => (pixel_values, batch),
        };
        let outputs = self.session.run(&[("pixel_values", Feed::F32(pixels, &[batch as i64, 3, side, side]))])?;
        Ok(outputs.f32("image_embeds")?[..num_images * self.embedding_dim].to_vec())
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
