//! A captioner whose answers can be foretold, and small worlds of files to caption.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use arrow::array::{AsArray, Float64Array, Int32Array};
use clipcap::files::ContentHash;
use clipcap::generation::{FinishReason, Settings as Decoding};
use clipcap::image::Preprocess;
use clipcap::pipeline::{Failure, Interrupt, Reporter, RunSettings, Silent, Source, Tick};
use clipcap::stages::caption::{CaptionReport, CaptionSettings, CaptionText, Captioner, ModelInfo, Style, TableFormat, run};
use clipcap::table;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Two captions an image. What they say depends on the pixels, on the content's hash and, with `window_shows`, on all images that were
/// captioned together, as rounding may in a real model.
#[derive(Clone, Default)]
pub struct Fake {
    pub batch_size: usize,
    pub window_shows: bool,
    /// Hashes in the order in which they were captioned, and the sizes of the batches that were encoded.
    pub captioned: Arc<Mutex<Vec<ContentHash>>>,
    pub encoded: Arc<Mutex<Vec<usize>>>,
    /// Sets the interrupt once so many images were captioned.
    pub interrupt_at: Option<(usize, Interrupt)>,
    /// Fails once so many images were captioned.
    pub fail_at: Option<usize>,
}

impl Fake {
    pub fn new(batch_size: usize) -> Self {
        Self { batch_size, ..Self::default() }
    }

    pub fn num_captioned(&self) -> usize {
        self.captioned.lock().unwrap().len()
    }
}

impl Captioner for Fake {
    fn batch_size(&self) -> usize {
        self.batch_size
    }

    fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<f32>> {
        self.encoded.lock().unwrap().push(num_images);
        let image = pixel_values.len() / num_images;
        assert_eq!(image, 3 * 8 * 8);
        // The mean of each channel: D = 3.
        Ok(pixel_values.chunks_exact(64).map(|plane| plane.iter().sum::<f32>() / 64.0).collect())
    }

    fn caption(&mut self, embeddings: &[f32], hashes: &[ContentHash]) -> Result<Vec<Result<Vec<CaptionText>, Failure>>> {
        assert_eq!(embeddings.len(), 3 * hashes.len());
        let window = hashes.iter().fold(Sha256::new(), |all, hash| all.chain_update(hash.bytes())).finalize();
        let mut all = self.captioned.lock().unwrap();
        all.extend(hashes);
        if let Some((at, interrupt)) = &self.interrupt_at
            && all.len() >= *at
        {
            interrupt.set();
        }
        if self.fail_at.is_some_and(|at| all.len() >= at) {
            anyhow::bail!("the device is gone");
        }
        let caption = |embedding: &[f32], hash: &ContentHash, index: i32| {
            let hash = hash.bytes();
            let window = if self.window_shows { f64::from(window[0]) / 256.0 } else { 0.0 };
            CaptionText {
                text: format!("颜色{:.2}，{:02x}{:02x}，第{index}句", embedding[0], hash[0], hash[1]),
                logprob: ((-f64::from(hash[2]) / 7.0 - window) * 1e4).round() / 1e4,
                num_tokens: 5 + index,
                finish_reason: if hash[3].is_multiple_of(2) { FinishReason::Eos } else { FinishReason::Length },
                index,
                clip_score: None,
            }
        };
        let captions = embeddings.chunks_exact(3).zip(hashes).map(|(e, h)| vec![caption(e, h, 0), caption(e, h, 1)]);
        Ok(captions.map(Ok).collect())
    }
}

pub fn model() -> ModelInfo {
    ModelInfo {
        identity: json!({"fingerprint": "fake", "device": "cpu"}),
        preprocess: Preprocess::from_json(r#"{"size": 8, "crop_size": 8}"#).unwrap(),
        embedding_dim: 3,
        encoder: "fake".into(),
        normalize: false,
        shares_cores: true,
        also: None,
    }
}

pub fn settings(images: &Path, out: &Path) -> CaptionSettings {
    CaptionSettings {
        wording: Default::default(),
        scoring: None,
        run: RunSettings::new(Source::Paths(vec![images.into()]), out, 2, 4),
        format: TableFormat::of(out).unwrap(),
        style: Style::default(),
        decoding: Decoding::default(),
        only: None,
        split: None,
    }
}

/// The same settings for a run that is another in some way.
pub fn with(mut settings: CaptionSettings, change: impl FnOnce(&mut RunSettings)) -> CaptionSettings {
    change(&mut settings.run);
    settings
}

pub fn caption(settings: &CaptionSettings, fake: &Fake) -> Result<CaptionReport> {
    caption_told(settings, fake, &Silent)
}

pub fn caption_told(settings: &CaptionSettings, fake: &Fake, reporter: &dyn Reporter) -> Result<CaptionReport> {
    let interrupt = fake.interrupt_at.as_ref().map(|(_, interrupt)| interrupt.clone()).unwrap_or_default();
    run(settings, &model(), || Ok(fake.clone()), reporter, &interrupt)
}

/// A PNG of one colour that depends on `seed`; different seeds, different contents.
pub fn picture(path: &Path, seed: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let [r, g, b, _] = seed.wrapping_mul(2_654_435_761).to_le_bytes();
    image::RgbImage::from_fn(12, 9, |x, y| image::Rgb([r, g ^ (x as u8), b ^ (y as u8)])).save(path).unwrap();
}

/// `number` pictures in three folders, so that list order is not the order of numbers: `b/0000.png`, `a/0001.png`, `c/d/0002.png` ...
pub fn pictures(folder: &Path, number: u32) {
    for i in 0..number {
        picture(&folder.join(format!("{}/{:04}.png", ["b", "a", "c/d"][i as usize % 3], i)), i);
    }
}

/// A table's rows as text, by reading the Parquet file or all parts of a folder.
pub fn rows(out: &Path) -> Vec<[String; 9]> {
    let mut files: Vec<PathBuf> = vec![out.into()];
    if out.is_dir() {
        files = fs::read_dir(out).unwrap().map(|e| e.unwrap().path()).collect();
        files.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("part-"));
        files.sort();
    }
    let mut rows = Vec::new();
    for file in files {
        for batch in table::open(&file, Some("captions/1")).unwrap() {
            let batch = batch.unwrap();
            let text = |i: usize, row: usize| batch.column(i).as_string::<i32>().value(row).to_string();
            let int =
                |i: usize, row: usize| batch.column(i).as_any().downcast_ref::<Int32Array>().unwrap().value(row).to_string();
            let float =
                |i: usize, row: usize| batch.column(i).as_any().downcast_ref::<Float64Array>().unwrap().value(row).to_string();
            for row in 0..batch.num_rows() {
                let cell = |i| match i {
                    3 | 6 => int(i, row),
                    5 => float(i, row),
                    8 => batch.column(i).as_boolean().value(row).to_string(),
                    _ => text(i, row),
                };
                rows.push(std::array::from_fn(cell));
            }
        }
    }
    rows
}

/// image_path to reason.
pub fn errors(path: &Path) -> BTreeMap<String, String> {
    let mut errors = BTreeMap::new();
    if !path.exists() {
        return errors;
    }
    for batch in table::open(path, Some("errors/1")).unwrap() {
        let batch = batch.unwrap();
        let (paths, reasons) = (batch.column(0).as_string::<i32>(), batch.column(1).as_string::<i32>());
        errors.extend((0..batch.num_rows()).map(|row| (paths.value(row).to_string(), reasons.value(row).to_string())));
    }
    errors
}

pub fn manifest(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Every file of an output, by name.
pub fn bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(bytes(&path).into_iter().map(|(inner, content)| (format!("{name}/{inner}"), content)));
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

/// Aborts the process at the n-th detail it is told, which a stage tells just after each of its writes.
pub struct AbortAt(AtomicUsize);

impl AbortAt {
    pub fn new(nth: &str) -> Self {
        Self(AtomicUsize::new(nth.parse().unwrap()))
    }
}

impl Reporter for AbortAt {
    fn note(&self, _: &str) {}
    fn warn(&self, message: &str) {
        panic!("warned: {message}");
    }
    fn detail(&self, _: &str) {
        if self.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::process::abort();
        }
    }
    fn tick(&self, _: &Tick) {}
}
