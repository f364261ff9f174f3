//! A CLIP that scores: both of its towers, out of a bundle or a published folder.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::files::write_json;
use crate::image::Preprocess;
use crate::models::bundle::{MANIFEST, embedding_fingerprint};
use crate::models::config::{ClipConfig, PreprocessorConfig};
use crate::models::graphs::CLIP_WEIGHTS;
use crate::models::import::ClipSource;
use crate::models::{Bundle, CaptionReader, ClipEncoder, ImageEncoder, TextEncoder};
use crate::runtime::Runtime;
use crate::stages::loading::scale_to_length_1;

/// Captions that are embedded together.
const CAPTIONS_AT_ONCE: usize = 64;

/// Embeds captions, and images where that was asked for; all at length 1.
pub struct Scorer {
    reader: CaptionReader,
    texts: TextEncoder,
    images: Option<ClipEncoder>,
    pub preprocess: Preprocess,
    /// The encoder that embeddings must come from: `Bundle::embedding_fingerprint`, or the same of a folder.
    pub fingerprint: String,
    /// D
    pub embedding_dim: usize,
    /// Where a folder's weights were brought into the layout that graphs point into.
    _folder: Option<tempfile::TempDir>,
}

impl Scorer {
    /// Opens a bundle or anything `--clip` takes, and loads its text tower; its image tower too where `images` says how many are encoded
    /// together.
    ///
    /// # Errors
    /// A model without a text tower that is understood, or without its tokenizer.
    pub fn open(path: &Path, runtime: &Runtime, images: Option<usize>) -> Result<Self> {
        match path.join(MANIFEST).is_file() {
            true => {
                let bundle = Bundle::open(path)?;
                let own = (bundle.decoder_folder().join("vocab.txt"), bundle.lower_case());
                let reader = CaptionReader::open(&path.join("clip"), bundle.clip_config(), Some((&own.0, own.1)))?;
                let fingerprint = bundle.embedding_fingerprint().to_owned();
                let preprocess = Preprocess::from_file(&bundle.preprocessor_path())?;
                Self::load(runtime, path, bundle.clip_config(), reader, preprocess, fingerprint, images, None)
            }
            false => Self::open_published(path, runtime, images),
        }
    }

    fn open_published(path: &Path, runtime: &Runtime, images: Option<usize>) -> Result<Self> {
        let clip = ClipSource::open(path).with_context(|| format!("--scorer {}", path.display()))?;
        if clip.weights.is_none() {
            bail!("--scorer {}: it holds no weights", path.display());
        }
        let folder = match clip.path().is_dir() {
            true => clip.path().to_path_buf(),
            false => clip.path().parent().unwrap_or(Path::new("")).to_path_buf(),
        };
        let reader = CaptionReader::open(&folder, &clip.config, None)?;
        let made = tempfile::tempdir().context("cannot make a temporary folder for the scorer's weights")?;
        let facts = clip.part(0)?.write(&made.path().join(CLIP_WEIGHTS))?;
        let preprocess = preprocess_of(&clip.preprocessor, made.path())?;
        let fingerprint = embedding_fingerprint(&clip.config, &clip.preprocessor, &facts.fingerprint);
        let root = made.path().to_path_buf();
        Self::load(runtime, &root, &clip.config, reader, preprocess, fingerprint, images, Some(made))
    }

    #[allow(clippy::too_many_arguments)]
    fn load(
        runtime: &Runtime,
        root: &Path,
        config: &ClipConfig,
        reader: CaptionReader,
        preprocess: Preprocess,
        fingerprint: String,
        images: Option<usize>,
        folder: Option<tempfile::TempDir>,
    ) -> Result<Self> {
        let texts = TextEncoder::load(runtime, root, config, CAPTIONS_AT_ONCE)?;
        let images = images.map(|batch| ClipEncoder::load(runtime, root, config, batch)).transpose()?;
        Ok(Self { reader, texts, images, preprocess, fingerprint, embedding_dim: config.projection_dim, _folder: folder })
    }

    /// Images that are encoded together.
    pub fn max_images(&self) -> usize {
        self.images.as_ref().map_or(1, ImageEncoder::max_batch)
    }

    /// Embeddings of captions at length 1, each distinct one computed once.
    pub fn captions(&mut self, captions: &[&str]) -> Result<Vec<Vec<f32>>> {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut distinct = vec![];
        for caption in captions {
            numbers.entry(caption).or_insert_with(|| {
                distinct.push(*caption);
                distinct.len() - 1
            });
        }
        let ids = distinct.iter().map(|caption| self.reader.ids(caption)).collect::<Result<Vec<_>, _>>()?;
        // Captions of a length stand together, so that little is computed for padding.
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|&number| ids[number].len());
        let sorted: Vec<Vec<u32>> = order.iter().map(|&number| ids[number].clone()).collect();
        let all = self.texts.encode(&sorted)?;
        let mut embeddings = vec![vec![]; distinct.len()];
        for (&number, embedding) in order.iter().zip(all.chunks_exact(self.embedding_dim.max(1))) {
            let mut embedding = embedding.to_vec();
            scale_to_length_1(&mut embedding);
            embeddings[number] = embedding;
        }
        Ok(captions.iter().map(|caption| embeddings[numbers[caption]].clone()).collect())
    }

    /// Embeddings of prepared images, pixel_values [images, 3, S, S] one behind the other, at length 1.
    pub fn images(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<Vec<f32>>> {
        let encoder = self.images.as_mut().context("the scorer's image tower was not loaded")?;
        let all = encoder.encode(pixel_values, num_images)?;
        Ok(all
            .chunks_exact(self.embedding_dim.max(1))
            .map(|embedding| {
                let mut embedding = embedding.to_vec();
                scale_to_length_1(&mut embedding);
                embedding
            })
            .collect())
    }
}

/// The same preparation in the terms of the image room.
fn preprocess_of(config: &PreprocessorConfig, folder: &Path) -> Result<Preprocess> {
    let path = folder.join("clip/preprocessor_config.json");
    write_json(&path, config)?;
    Ok(Preprocess::from_file(&path)?)
}

/// The cosine of two embeddings of length 1; None where a number is not finite.
pub fn cosine(a: &[f32], b: &[f32]) -> Option<f32> {
    let product: f64 = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    product.is_finite().then_some(product as f32)
}
