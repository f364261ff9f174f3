//! A CLIP that scores: both of its towers, out of a bundle or a published folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::files::{ContentHash, write_json};
use crate::image::Preprocess;
use crate::models::bundle::{MANIFEST, embedding_fingerprint};
use crate::models::config::{ClipConfig, PreprocessorConfig};
use crate::models::graphs::CLIP_WEIGHTS;
use crate::models::import::ClipSource;
use crate::models::{Bundle, CaptionReader, ClipEncoder, ImageEncoder, TextEncoder};
use crate::runtime::{Precision, Runtime};
use crate::stages::loading::scale_to_length_1;

/// Captions that are embedded together.
const CAPTIONS_AT_ONCE: usize = 64;

/// A CLIP with a text tower that is understood, and the tokenizer of that; no weight is loaded yet.
pub struct ScorerModel {
    /// Where graphs find the weights.
    root: PathBuf,
    config: ClipConfig,
    reader: CaptionReader,
    has_int8: bool,
    pub preprocess: Preprocess,
    /// The encoder that embeddings must come from: `Bundle::embedding_fingerprint`, or the same of a folder.
    pub fingerprint: String,
    /// All that scores depend on: both towers, how images are prepared, and the tokenizer.
    pub identity: String,
    /// D
    pub embedding_dim: usize,
    /// Captions that were cut to what the text tower takes.
    cut: Arc<AtomicU64>,
    /// Where a folder's weights were brought into the layout that graphs point into.
    _folder: Option<tempfile::TempDir>,
}

impl ScorerModel {
    /// A bundle or anything `--clip` takes.
    ///
    /// # Errors
    /// A model without a text tower that is understood, or without its tokenizer.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join(MANIFEST).is_file() {
            return Self::open_published(path);
        }
        let bundle = Bundle::open(path)?;
        bundle.check_bytes(&["clip"])?;
        let own = (bundle.decoder_folder().join("vocab.txt"), bundle.lower_case());
        let folder = path.join("clip");
        let reader = CaptionReader::open(&folder, bundle.clip_config(), Some((&own.0, own.1)))?;
        let fingerprint = bundle.embedding_fingerprint().to_owned();
        let preprocess = Preprocess::from_file(&bundle.preprocessor_path())?;
        let identity = identity_of(&fingerprint, bundle.clip_config(), &[&folder, &bundle.decoder_folder()])?;
        let model = Self::new(path.into(), bundle.clip_config().clone(), reader, preprocess, fingerprint, identity, None);
        Ok(Self { has_int8: bundle.manifest().int8.is_some(), ..model })
    }

    fn open_published(path: &Path) -> Result<Self> {
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
        let identity = identity_of(&fingerprint, &clip.config, &[&folder])?;
        Ok(Self::new(made.path().into(), clip.config.clone(), reader, preprocess, fingerprint, identity, Some(made)))
    }

    fn new(
        root: PathBuf,
        config: ClipConfig,
        reader: CaptionReader,
        preprocess: Preprocess,
        fingerprint: String,
        identity: String,
        folder: Option<tempfile::TempDir>,
    ) -> Self {
        Self {
            root,
            embedding_dim: config.projection_dim,
            config,
            reader,
            has_int8: false,
            preprocess,
            fingerprint,
            identity,
            cut: Arc::default(),
            _folder: folder,
        }
    }

    /// Loads the text tower; the image tower too where `images` says how many are encoded together.
    ///
    /// # Errors
    /// A graph that ONNX Runtime does not take; 8-bit weights that are not there.
    pub fn load(self: &Arc<Self>, runtime: &Runtime, images: Option<usize>) -> Result<Scorer> {
        if images.is_some() && runtime.precision() == Precision::Int8 && !self.has_int8 {
            bail!(
                "the scorer has no int8 weights for its image tower: give --precision fp32, or a bundle that `model quantize` made"
            );
        }
        let texts = TextEncoder::load(runtime, &self.root, &self.config, CAPTIONS_AT_ONCE)?;
        let images = images.map(|batch| ClipEncoder::load(runtime, &self.root, &self.config, batch)).transpose()?;
        Ok(Scorer { model: self.clone(), texts, images })
    }

    /// A note on captions that were cut to what the text tower takes; None where none was.
    pub fn cut_note(&self) -> Option<String> {
        let cut = self.cut.load(Ordering::Relaxed);
        let most = self.reader.max_tokens();
        (cut > 0).then(|| {
            format!("{cut} captions are longer than the {most} tokens that the scorer reads: scored by their beginnings")
        })
    }
}

/// Embeds captions, and images where that was asked for; all at length 1.
pub struct Scorer {
    pub model: Arc<ScorerModel>,
    texts: TextEncoder,
    images: Option<ClipEncoder>,
}

impl Scorer {
    /// Images that are encoded together.
    pub fn max_images(&self) -> usize {
        self.images.as_ref().map_or(1, ImageEncoder::max_batch)
    }

    /// Embeddings of captions at length 1, each distinct one computed once. A blank caption says nothing that could fit, and has none.
    pub fn captions(&mut self, captions: &[&str]) -> Result<Vec<Option<Vec<f32>>>> {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut distinct = vec![];
        for caption in captions.iter().filter(|caption| !caption.trim().is_empty()) {
            numbers.entry(caption).or_insert_with(|| {
                distinct.push(*caption);
                distinct.len() - 1
            });
        }
        let mut ids = vec![];
        for caption in &distinct {
            let (tokens, is_cut) = self.model.reader.read(caption)?;
            self.model.cut.fetch_add(u64::from(is_cut), Ordering::Relaxed);
            ids.push(tokens);
        }
        // Captions of a length stand together: nothing is padded, so that no embedding depends on what else is scored.
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|&number| ids[number].len());
        let mut embeddings = vec![vec![]; distinct.len()];
        for alike in order.chunk_by(|&a, &b| ids[a].len() == ids[b].len()) {
            let mut rows: Vec<Vec<u32>> = alike.iter().map(|&number| ids[number].clone()).collect();
            if let [only] = &rows[..] {
                // A product of a single row is summed in another order than that of several.
                rows.push(only.clone());
            }
            let all = self.texts.encode(&rows)?;
            for (&number, embedding) in alike.iter().zip(all.chunks_exact(self.model.embedding_dim.max(1))) {
                let mut embedding = embedding.to_vec();
                scale_to_length_1(&mut embedding);
                embeddings[number] = embedding;
            }
        }
        Ok(captions.iter().map(|caption| numbers.get(caption).map(|&number| embeddings[number].clone())).collect())
    }

    /// Embeddings of prepared images, pixel_values [images, 3, S, S] one behind the other, at length 1.
    pub fn images(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<Vec<f32>>> {
        let width = pixel_values.len() / num_images.max(1);
        self.images_each(&pixel_values.chunks_exact(width.max(1)).collect::<Vec<_>>())
    }

    /// The same, where each image's pixels lie elsewhere.
    pub fn images_each(&mut self, pixel_values: &[&[f32]]) -> Result<Vec<Vec<f32>>> {
        let encoder = self.images.as_mut().context("the scorer's image tower was not loaded")?;
        let all = encoder.encode_each(pixel_values)?;
        Ok(all
            .chunks_exact(self.model.embedding_dim.max(1))
            .map(|embedding| {
                let mut embedding = embedding.to_vec();
                scale_to_length_1(&mut embedding);
                embedding
            })
            .collect())
    }
}

/// One hash of both towers, how images are prepared, and the tokenizer's files in the first of `folders` that has any.
fn identity_of(fingerprint: &str, config: &ClipConfig, folders: &[&Path]) -> Result<String> {
    let files = |folder: &&Path| -> Vec<PathBuf> {
        ["vocab.json", "merges.txt", "vocab.txt"]
            .map(|name| folder.join(name))
            .into_iter()
            .filter(|path| path.is_file())
            .collect()
    };
    let files = folders.iter().map(files).find(|files| !files.is_empty()).unwrap_or_default();
    let hash = |path: &PathBuf| ContentHash::of_file(path).with_context(|| format!("cannot read {}", path.display()));
    let vocabulary = files.iter().map(hash).collect::<Result<Vec<_>>>()?;
    let parts = json!({"embeddings": fingerprint, "text_config": config.text_config, "vocabulary": vocabulary});
    Ok(ContentHash::of(parts.to_string()).to_string())
}

/// The same preparation in the terms of the image room.
fn preprocess_of(config: &PreprocessorConfig, folder: &Path) -> Result<Preprocess> {
    let path = folder.join("clip/preprocessor_config.json");
    write_json(&path, config)?;
    Ok(Preprocess::from_file(&path)?)
}

/// How well a caption fits an image: the cosine of their embeddings, where the caption has one and its numbers are finite.
pub fn fit(image: &[f32], caption: Option<&Vec<f32>>) -> Option<f32> {
    caption.and_then(|caption| cosine(image, caption))
}

/// Four decimals, as log-probabilities have: what computing in other batches changes stays out of a table.
pub fn rounded(score: f32) -> f32 {
    // No -0.0: it would be another text in a table.
    (exact(score) + 0.0) as f32
}

/// Four decimals as a person would write them, to compare with.
pub fn exact(score: f32) -> f64 {
    (f64::from(score) * 1e4).round() / 1e4
}

/// The cosine of two embeddings of length 1; None where a number is not finite.
pub fn cosine(a: &[f32], b: &[f32]) -> Option<f32> {
    let product: f64 = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    product.is_finite().then_some(product as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_have_four_decimals() {
        assert_eq!([0.123_449_99, -0.000_01, 0.7].map(rounded), [0.1234, 0.0, 0.7]);
        assert!(rounded(-0.000_01).is_sign_positive());
        assert_eq!(exact(0.7), 0.7);
    }
}
