//! Sessions for the image encoder and the mapper.

use std::path::Path;

use rayon::prelude::*;

use super::config::{ClipConfig, MapperConfig};
use super::fed::FedWeights;
use super::graphs::{BuildError, GraphKind, build, build_fed};
use super::layers::Style;
use super::{ImageEncoder, Mapper};
use crate::image::Preprocess;
use crate::onnx::DType;
use crate::runtime::{Device, Feed, HostMemory, InPlace, Precision, Runtime, RuntimeError, Session, has_int8_products};

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
    let int8 = runtime.precision() == Precision::Int8;
    let own = int8 && runtime.device() == Device::Cpu;
    Style { fused, dtype: runtime.dtype(), int8, cuda, own, dots: own && has_int8_products() }
}

/// CLIP's image tower on a device.
pub struct ClipEncoder {
    session: Session,
    image_size: usize,
    embedding_dim: usize,
    max_batch: usize,
    /// OpenVINO wants one fixed number of images in a run (fewer are padded to it), and several runs side by side.
    fixed_batch: Option<usize>,
    /// Pixels of each run, kept from one batch to the next.
    buffers: Vec<Vec<f32>>,
    /// Where images come as bytes.
    bytes: Option<Bytes>,
}

/// A batch of pictures in bytes and their embeddings, where a card reads and writes them by itself.
struct Bytes {
    /// [batch, S, S, 3]
    pixels: HostMemory,
    /// [batch, D]
    embeddings: HostMemory,
}

impl ClipEncoder {
    /// For images as `preprocess` makes them: numbers, or bytes where it is [packed](Preprocess::packed).
    pub fn load_for(
        runtime: &Runtime,
        folder: &Path,
        config: &ClipConfig,
        preprocess: &Preprocess,
        max_batch: usize,
    ) -> Result<Self, LoadError> {
        if !preprocess.is_packed() {
            return Self::load(runtime, folder, config, max_batch);
        }
        let model = build(folder, GraphKind::ByteEncoder(config, preprocess), style_for(runtime))?;
        let session = Session::new(runtime, "image_encoder", &model.to_bytes(), folder, &[])?;
        let (image_size, embedding_dim) = (config.vision_config.image_size(), config.projection_dim);
        let memory = |bytes: usize| HostMemory::new(runtime, max_batch * bytes, "a batch of pictures");
        let pixels = memory(3 * image_size * image_size)?;
        let bytes = Some(Bytes { pixels, embeddings: memory(embedding_dim * size_of::<f32>())? });
        Ok(Self { session, image_size, embedding_dim, max_batch, fixed_batch: None, buffers: vec![], bytes })
    }

    /// Loads the image encoder of a bundle for batches of up to `max_batch` images as numbers.
    pub fn load(runtime: &Runtime, folder: &Path, config: &ClipConfig, max_batch: usize) -> Result<Self, LoadError> {
        let model = build(folder, GraphKind::ImageEncoder(config), style_for(runtime))?;
        let is_fixed = runtime.device() == Device::OpenVino;
        // Two runs that share the threads out are faster than one that all threads meet in after each operator.
        let streams = if is_fixed && max_batch > 1 && runtime.threads().is_multiple_of(2) { 2 } else { 1 };
        let fixed_batch = is_fixed.then(|| max_batch.div_ceil(streams));
        let dimensions: Vec<(&str, i64)> = fixed_batch.iter().map(|&batch| ("batch", batch as i64)).collect();
        let session = Session::with_streams(runtime, "image_encoder", &model.to_bytes(), folder, &dimensions, streams)?;
        let image_size = config.vision_config.image_size();
        let buffers = vec![vec![]; streams];
        Ok(Self { session, image_size, embedding_dim: config.projection_dim, max_batch, fixed_batch, buffers, bytes: None })
    }

    /// Floats of one image, or what its bytes are packed into.
    fn image_len(&self) -> usize {
        let values = 3 * self.image_size * self.image_size;
        if self.bytes.is_some() { values.div_ceil(size_of::<f32>()) } else { values }
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

impl Bytes {
    /// One run: the bytes of `images` side by side; the embeddings of all.
    fn run(&mut self, session: &Session, images: &[&[f32]], [side, embedding_dim]: [usize; 2]) -> Result<Vec<f32>, RuntimeError> {
        let places = self.pixels.numbers_mut::<u8>().par_chunks_exact_mut((3 * side * side).max(1));
        places
            .zip(images)
            .for_each(|(place, image)| place.copy_from_slice(&bytemuck::cast_slice::<f32, u8>(image)[..place.len()]));
        let [batch, side, width] = [images.len(), side, embedding_dim].map(|d| d as i64);
        let pixels = self.pixels.tensor("pixels", 0, DType::U8, &[batch, side, side, 3])?;
        let output = self.embeddings.tensor("image_embeds", 0, DType::F32, &[batch, width])?;
        session.run_in_place(&[pixels], &mut [output])?;
        Ok(self.embeddings.numbers::<f32>()[..images.len() * embedding_dim].to_vec())
    }
}

/// One run: the pixels of `images` put one after the other into `buffer`, zeros behind them up to `batch` images; the embeddings of all.
fn run(
    session: &Session,
    images: &[&[f32]],
    buffer: &mut Vec<f32>,
    [batch, side, embedding_dim]: [usize; 3],
) -> Result<Vec<f32>, RuntimeError> {
    let image_len = 3 * side * side;
    buffer.resize(batch * image_len, 0.0);
    buffer.chunks_exact_mut(image_len.max(1)).zip(images).for_each(|(place, image)| place.copy_from_slice(image));
    // What is behind the last image is computed for nobody; zeros, so that it is the same every time.
    buffer[images.len() * image_len..].fill(0.0);
    let mut embeddings = vec![0.0; batch * embedding_dim];
    let pixels = InPlace::f32("pixel_values", buffer, &[batch as i64, 3, side as i64, side as i64])?;
    let output = InPlace::f32("image_embeds", &mut embeddings, &[batch as i64, embedding_dim as i64])?;
    session.run_in_place(&[pixels], &mut [output])?;
    embeddings.truncate(images.len() * embedding_dim);
    Ok(embeddings)
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
        let images: Vec<&[f32]> = pixel_values.chunks_exact(self.image_len().max(1)).collect();
        self.encode_each(&images)
    }

    fn encode_each(&mut self, images: &[&[f32]]) -> Result<Vec<f32>, RuntimeError> {
        let image_len = self.image_len();
        if let Some(other) = images.iter().find(|image| image.len() != image_len) {
            return Err(self.misshapen(other.len(), 1));
        }
        if images.len() > self.max_batch {
            return Err(self.misshapen(images.len() * image_len, images.len()));
        }
        let batch = self.fixed_batch.unwrap_or(images.len()).max(1);
        let sizes = [batch, self.image_size, self.embedding_dim];
        let session = &self.session;
        if let Some(bytes) = &mut self.bytes {
            return bytes.run(session, images, [self.image_size, self.embedding_dim]);
        }
        if images.len() <= batch {
            return run(session, images, &mut self.buffers[0], sizes);
        }
        let runs = images.chunks(batch).zip(&mut self.buffers);
        let embeddings = std::thread::scope(|scope| {
            let runs: Vec<_> = runs.map(|(images, buffer)| scope.spawn(move || run(session, images, buffer, sizes))).collect();
            runs.into_iter()
                .map(|run| run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Result<Vec<_>, _>>()
        })?;
        Ok(embeddings.concat())
    }
}

/// A mapper on a device.
pub struct PrefixMapper {
    session: Session,
    fed: FedWeights,
    /// Of a prefix: [P, C].
    shape: [i64; 2],
    clip_size: usize,
    max_batch: usize,
    fixed: bool,
}

impl PrefixMapper {
    /// Loads the mapper of a bundle for batches of up to `max_batch` images.
    pub fn load(runtime: &Runtime, folder: &Path, config: &MapperConfig, max_batch: usize) -> Result<Self, LoadError> {
        let model = build(folder, GraphKind::Mapper(config), style_for(runtime))?;
        let fixed = runtime.device() == Device::OpenVino;
        let dimensions: &[(&str, i64)] = if fixed { &[("batch", max_batch as i64)] } else { &[] };
        let session = Session::new(runtime, "mapper", &model.to_bytes(), folder, dimensions)?;
        let (fed, shape) = (FedWeights::default(), [config.prefix_len, config.n_embd].map(|d| d as i64));
        Ok(Self { session, fed, shape, clip_size: config.clip_size, max_batch, fixed })
    }

    /// A mapper on the CPU whose weights are handed over by [`set_weights`](Self::set_weights); the bundle at `folder` gives their names and
    /// shapes.
    pub fn fed(runtime: &Runtime, folder: &Path, config: &MapperConfig, max_batch: usize) -> Result<Self, LoadError> {
        let (model, fed) = build_fed(folder, GraphKind::Mapper(config), style_for(runtime), &|_| true)?;
        let session = Session::new(runtime, "mapper", &model.to_bytes(), folder, &[])?;
        let shape = [config.prefix_len, config.n_embd].map(|d| d as i64);
        Ok(Self { session, fed, shape, clip_size: config.clip_size, max_batch, fixed: false })
    }

    /// See [`FedWeights::set`].
    pub fn set_weights<'a>(&mut self, value_of: impl Fn(&str) -> Option<&'a [f32]>) -> Result<(), RuntimeError> {
        self.fed.set(value_of)
    }

    /// One batch by weights that are fed.
    fn map_fed(&mut self, embeddings: &[f32], rows: usize) -> Result<Vec<f32>, RuntimeError> {
        let (mut data, mut prefixes) = (embeddings.to_vec(), vec![0.0; rows * self.shape.iter().product::<i64>() as usize]);
        let mut inputs = self.fed.inputs()?;
        inputs.push(InPlace::f32("clip_embeds", &mut data, &[rows as i64, self.clip_size as i64])?);
        let [prefix_len, n_embd] = self.shape;
        let mut outputs = [InPlace::f32("prefix_embeds", &mut prefixes, &[rows as i64, prefix_len, n_embd])?];
        self.session.run_in_place(&inputs, &mut outputs)?;
        drop((inputs, outputs));
        Ok(prefixes)
    }
}

impl Mapper for PrefixMapper {
    fn map(&mut self, embeddings: &[f32], num_images: usize) -> Result<Vec<f32>, RuntimeError> {
        let mut prefixes = vec![];
        for chunk in embeddings.chunks((self.max_batch * self.clip_size).max(1)) {
            let rows = chunk.len() / self.clip_size;
            if !self.fed.is_empty() {
                prefixes.extend(self.map_fed(chunk, rows)?);
                continue;
            }
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
