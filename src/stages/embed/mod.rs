//! `clipcap embed`: CLIP's embedding of every image under a folder or in a dataset.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde_json::{Value as Json, json};

use crate::dataset::wanted::LeftOut;
use crate::files::ContentHash;
use crate::image::{Preprocess, Reason};
use crate::models::{Bundle, ClipEncoder, ImageEncoder};
use crate::pipeline::npy::FloatType;
use crate::pipeline::sources::{ENCODER_KEY, Embeddings, SETTINGS_KEY};
use crate::pipeline::{
    Compute, Content, Decode, Failure, Input, Interrupt, MOST_WINDOW_IMAGES, Output, Record, Report, Reporter, RunSettings,
    Settings, StageParts, StageRun, WINDOW_IMAGES,
};
use crate::runtime::Runtime;
use crate::stages::Outcome;
use crate::stages::loading::{check_precision, check_weights, compute_identity, joined, preprocess, scale_to_length_1};
use crate::stages::memory::check_card;
use crate::stages::summary::{self, Look, Words};

mod images;
pub(in crate::stages) mod tables;
mod value;

pub(crate) use value::Embedding;

use tables::{EmbeddingSink, FORMAT};

/// The files that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `part-00000.parquet` ...
    Parquet,
    /// clip-retrieval's: `img_emb/img_emb_0.npy`, `metadata/metadata_0.parquet`.
    Npy,
    /// `part-00000.parquet` alone, however long: a job's shard.
    OneFile,
}

impl FromStr for Layout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "parquet" => Ok(Self::Parquet),
            "npy" => Ok(Self::Npy),
            _ => Err(format!("{text:?} is not a format: use parquet or npy")),
        }
    }
}

impl Layout {
    /// As settings name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parquet | Self::OneFile => "parquet",
            Self::Npy => "npy",
        }
    }
}

/// An embedding run.
#[derive(Debug, Clone)]
pub struct EmbedSettings {
    /// Its output is a folder.
    pub run: RunSettings,
    /// Parquet parts, or clip-retrieval's folders.
    pub layout: Layout,
    /// The type of stored numbers; float16 is rounded to nearest.
    pub dtype: FloatType,
    /// Embeddings are scaled to length 1.
    pub normalize: bool,
    /// Write the image files' bytes too, in Parquet shards beside the embeddings.
    pub save_images: bool,
}

/// What the stage needs to know of a model before it is loaded.
#[derive(Debug, Clone)]
pub struct EncoderInfo {
    /// All that results depend on: fingerprint, device, precision, runtime build, CPU type.
    pub identity: Json,
    /// From a decoded picture to the image tower's input.
    pub preprocess: Preprocess,
    /// D
    pub embedding_dim: usize,
    /// The model computes on the cores that decode images.
    pub shares_cores: bool,
}

/// How an embedding run ended.
#[derive(Debug)]
pub struct EmbedReport {
    /// What becomes the exit status.
    pub outcome: Outcome,
    /// Counts and times of the stream.
    pub report: Report,
    /// Where the folder is, finished or not.
    pub output: Output,
    /// Files and folders that were not looked at.
    pub left_out: LeftOut,
}

const WORDS: Words = Words { command: "embed", done: "embedded", results: None };

impl EmbedReport {
    /// The closing summary, as text and as JSON.
    pub fn summary(&self) -> (String, Json) {
        summary::closing(&WORDS, self.outcome, &self.report, &self.output, self.left_out, Look::default())
    }
}

/// Where embeddings go, and their manifest's format.
pub(crate) fn place(out: &Path) -> (Output, &'static str) {
    (Output::folder(out), FORMAT)
}

/// What results depend on, without loading a weight.
pub fn info(bundle: &Bundle, runtime: &Runtime) -> Result<EncoderInfo> {
    check_precision(bundle, runtime)?;
    let mut identity = compute_identity(bundle, runtime);
    identity["fingerprint"] = bundle.embedding_fingerprint().into();
    Ok(EncoderInfo {
        identity,
        preprocess: preprocess(bundle, runtime)?,
        embedding_dim: bundle.clip_config().projection_dim,
        shares_cores: runtime.device().is_cpu(),
    })
}

/// Loads the image encoder.
pub fn load(bundle: &Bundle, runtime: &Runtime, batch_size: usize) -> Result<ClipEncoder> {
    let check = || check_weights(bundle, &["clip"], runtime.precision());
    let preprocess = preprocess(bundle, runtime)?;
    let load = || ClipEncoder::load_for(runtime, bundle.path(), bundle.clip_config(), &preprocess, batch_size);
    if runtime.device().is_cpu() {
        // Nothing is computed with the weights before the check has ended, and damage is what is told, whatever came of the rest.
        return std::thread::scope(|scope| {
            let check = scope.spawn(check);
            let encoder = load();
            joined(check)?;
            Ok(encoder?)
        });
    }
    check()?;
    check_card(bundle, runtime, batch_size, None)?;
    Ok(load()?)
}

/// Embeds everything in the source. `load` makes the encoder, while images are already being read.
///
/// # Errors
/// See [`StageRun::run`].
pub fn run<E: ImageEncoder>(
    settings: &EmbedSettings,
    model: &EncoderInfo,
    load: impl FnOnce() -> Result<E>,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<EmbedReport> {
    let output = Output::folder(&settings.run.out);
    let stage = StageRun {
        output: output.clone(),
        format: FORMAT,
        settings: fingerprinted(settings, model),
        run: &settings.run,
        done: WORDS.done,
        label: "embedding",
        unit: None,
        shares_cores: model.shares_cores,
        window_images: if model.shares_cores { WINDOW_IMAGES } else { MOST_WINDOW_IMAGES },
        only: None,
        reporter,
        interrupt,
    };
    let prepare = Decode::new(model.preprocess.clone(), settings.run.reading);
    let normalize = settings.normalize;
    let make_compute = || Ok(Engine { encoder: load()?, normalize, embedding_dim: model.embedding_dim, embeddings: Vec::new() });
    let footer = vec![
        ("normalized", normalize.to_string()),
        (ENCODER_KEY, model.identity["fingerprint"].as_str().unwrap_or_default().to_string()),
        (SETTINGS_KEY, numbers_made_with(settings, model)),
    ];
    let make_sink = |folder: &Path| {
        let images = settings.save_images.then_some(output.path());
        EmbeddingSink::create(folder, settings.layout, settings.dtype, model.embedding_dim, footer, images)
    };
    let import = |output: &Output| records(output.path());
    let listed = settings.run.open(&output)?;
    let (entries, counter, expected) = (listed.entries(), listed.counter(), listed.expected());
    let parts = StageParts { entries, counter, expected, prepare: &prepare, make_compute, make_sink, import, names: None };
    let report = stage.run(parts)?;
    let outcome = Outcome::of(&report, settings.run.max_error_rate);
    Ok(EmbedReport { outcome, report, output, left_out: listed.left_out() })
}

fn fingerprinted(settings: &EmbedSettings, model: &EncoderInfo) -> Settings {
    let EmbedSettings { layout, dtype, normalize, save_images, .. } = *settings;
    let output = written(layout, dtype, normalize, save_images, model.embedding_dim);
    embedding(&model.identity, settings.run.reading.settings(&model.preprocess), output)
}

/// The fingerprint of the same run in another layout.
pub(in crate::stages) fn fingerprint_as(settings: &EmbedSettings, model: &EncoderInfo, layout: Layout) -> ContentHash {
    fingerprinted(&EmbedSettings { layout, ..settings.clone() }, model).fingerprint
}

/// What embeddings depend on.
pub(in crate::stages) fn embedding(model: &Json, images: Json, output: Json) -> Settings {
    Settings::new("embed", json!({"model": model, "input": {"images": images}, "output": output}))
}

/// How embeddings are written.
pub(in crate::stages) fn written(
    layout: Layout,
    dtype: FloatType,
    normalize: bool,
    save_images: bool,
    embedding_dim: usize,
) -> Json {
    json!({
        "format": layout.name(),
        "dtype": dtype.name(),
        "normalized": normalize,
        "save_images": save_images,
        "embedding_dim": embedding_dim,
    })
}

/// A fingerprint of what decides the numbers of an image's embedding.
fn numbers_made_with(settings: &EmbedSettings, model: &EncoderInfo) -> String {
    let numbers = json!({
        "model": model.identity,
        "exif_rotate": settings.run.reading.exif_rotate,
        "full_decode": settings.run.reading.full_decode,
        "preprocessing": model.preprocess.settings(),
        "dtype": settings.dtype.name(),
        "normalized": settings.normalize,
    });
    Settings::new("embedding", numbers).fingerprint.to_string()
}

/// The image encoder in the stream's terms.
struct Engine<E> {
    encoder: E,
    normalize: bool,
    embedding_dim: usize,
    embeddings: Vec<Result<Embedding, Failure>>,
}

impl<E: ImageEncoder> Compute for Engine<E> {
    type Value = Embedding;

    fn batch_size(&self) -> usize {
        self.encoder.max_batch()
    }

    fn encode(&mut self, inputs: Vec<Input>) -> Result<()> {
        let num_images = inputs.len();
        let damaged: Vec<bool> = inputs.iter().map(|input| input.damaged).collect();
        let images: Vec<&[f32]> = inputs.iter().map(|input| input.data.as_slice()).collect();
        let all = self.encoder.encode_each(&images)?;
        if all.len() != num_images * self.embedding_dim {
            bail!("the encoder returned {} numbers for {num_images} embeddings of {}", all.len(), self.embedding_dim);
        }
        self.embeddings.extend(all.chunks_exact(self.embedding_dim).zip(damaged).map(|(embedding, damaged)| {
            if embedding.iter().any(|value| !value.is_finite()) {
                let message = "the embedding holds numbers that are not finite (an overflow: try --precision fp32)";
                return Err(Failure { reason: Reason::Corrupt.as_str().into(), message: message.into() });
            }
            let mut embedding = embedding.to_vec();
            if self.normalize {
                scale_to_length_1(&mut embedding);
            }
            Ok(Embedding { values: embedding, damaged })
        }));
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<Result<Embedding, Failure>>> {
        // One such image is hostile; where all are, it is the model.
        if self.embeddings.len() > 1 && self.embeddings.iter().all(Result::is_err) {
            bail!(
                "none of {} embeddings is finite: a weight of the model is not a number, or all overflow (try --precision fp32)",
                self.embeddings.len()
            );
        }
        Ok(std::mem::take(&mut self.embeddings))
    }
}

/// The records of a finished output.
fn records(folder: &Path) -> Result<impl Iterator<Item = Result<Record<Embedding>>> + use<>> {
    let embeddings = Embeddings::open(folder)?;
    let folder = folder.to_path_buf();
    Ok(embeddings.entries().map(move |entry| {
        let entry = entry
            .with_context(|| format!("{}: cannot resume from these embeddings; --overwrite replaces them", folder.display()))?;
        let Content::Embedding { values, sha256, damaged } = entry.content else {
            bail!("{}: no embedding", entry.image_path);
        };
        let result = Ok(Embedding { values, damaged });
        Ok(Record { image_path: entry.image_path, stat: None, sha256: Some(sha256), result })
    }))
}
