//! `clipcap caption`: a caption table for every image under some folders.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::{Value as Json, json};

use crate::generation;
use crate::image::{Limits, Preprocess};
use crate::pipeline::sources::{Embeddings, Folder, StoredImages};
use crate::pipeline::{
    Decode, Interrupt, Job, Output, Parts, PassEmbeddings, Prepare, Report, Reporter, Settings, WINDOW_IMAGES,
};
use crate::stages::Outcome;

mod import;
mod model;
mod tables;
mod value;

pub use model::{Captioner, ClipCap};
pub use tables::TableFormat;
pub use value::{CaptionText, Captions};

use model::Engine;
use tables::{FORMAT, TableSink};

/// What is captioned.
#[derive(Debug, Clone)]
pub enum Source {
    /// Folders and files.
    Paths(Vec<PathBuf>),
    /// A dataset that stores its images.
    Dataset(PathBuf),
    /// An embeddings folder, a Parquet file of one, or a `.npy` file.
    Embeddings(PathBuf),
}

/// A caption run.
#[derive(Debug, Clone)]
pub struct CaptionSettings {
    pub source: Source,
    pub out: PathBuf,
    pub format: TableFormat,
    pub decoding: generation::Settings,
    pub limits: Limits,
    pub exif_rotate: bool,
    /// Threads that read and decode images.
    pub threads: usize,
    /// Images that are encoded together; rows that decode together.
    pub batch_size: usize,
    pub overwrite: bool,
    pub keep_work: bool,
    pub retry_failed: bool,
    /// Failed images as a share of all: beyond it the run ends with exit status 1.
    pub max_error_rate: f64,
}

/// What the stage needs to know of a model before it is loaded.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// All that results depend on: fingerprint, device, precision, runtime build, CPU type.
    pub identity: Json,
    pub preprocess: Preprocess,
    /// D
    pub embedding_dim: usize,
    /// The mapper was trained on embeddings of length 1.
    pub normalize: bool,
}

/// How a caption run ended.
#[derive(Debug)]
pub struct CaptionReport {
    pub outcome: Outcome,
    pub report: Report,
    pub output: Output,
}

/// Captions everything in the source. `load` makes the captioner, while images are already being read.
///
/// # Errors
/// See [`Job::run`]; embeddings that do not fit the model are refused before anything is computed.
pub fn run<C: Captioner>(
    settings: &CaptionSettings,
    model: &ModelInfo,
    load: impl FnOnce() -> Result<C>,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<CaptionReport> {
    let output = match settings.format {
        TableFormat::Parts => Output::folder(&settings.out),
        _ => Output::file(&settings.out),
    };
    let takes_embeddings = matches!(settings.source, Source::Embeddings(_));
    let job = Job {
        output: output.clone(),
        format: FORMAT,
        settings: fingerprinted(settings, model, takes_embeddings)?,
        recorded: json!({"batch_size": settings.batch_size, "threads": settings.threads}),
        done: "captioned",
        label: "captioning",
        unit: Some("captions/s"),
        reading_threads: settings.threads,
        prefetch_images: settings.batch_size * 2 + settings.threads,
        window_images: window_images(&settings.decoding),
        overwrite: settings.overwrite,
        keep_work: settings.keep_work,
        retry_failed: settings.retry_failed,
        reporter,
        interrupt,
    };
    let decode = Decode { preprocess: model.preprocess.clone(), limits: settings.limits, exif: settings.exif_rotate };
    let pass = PassEmbeddings { embedding_dim: model.embedding_dim };
    let prepare: &dyn Prepare = if takes_embeddings { &pass } else { &decode };
    let make_compute = || Ok(Engine::new(load()?, takes_embeddings));
    let make_sink = |folder: &std::path::Path| TableSink::create(settings.format, folder);
    let import = |output: &Output| import::records(output, settings.format);
    let report = match &settings.source {
        Source::Paths(roots) => {
            let folder = Folder::new(roots, &output.own_paths())?;
            let counter = Box::new(|total: &_, stop: &_| folder.count(total, stop));
            job.run(Parts { entries: folder.entries(), counter: Some(counter), prepare, make_compute, make_sink, import })?
        }
        Source::Dataset(path) => {
            let images = StoredImages::open(path)?;
            let counter = known_total(images.num_rows);
            job.run(Parts { entries: images.entries(), counter, prepare, make_compute, make_sink, import })?
        }
        Source::Embeddings(path) => {
            let embeddings = Embeddings::open(path)?;
            check_embeddings(path, &embeddings, model)?;
            let counter = known_total(embeddings.num_rows);
            job.run(Parts { entries: embeddings.entries(), counter, prepare, make_compute, make_sink, import })?
        }
    };
    let outcome = outcome(&report, settings.max_error_rate);
    Ok(CaptionReport { outcome, report, output })
}

/// A counter for sources that know how many they are.
pub(super) fn known_total(rows: u64) -> Option<crate::pipeline::Counter<'static>> {
    Some(Box::new(move |total, _| {
        total.store(rows, std::sync::atomic::Ordering::Relaxed);
    }))
}

/// What exit status a run deserves.
pub(super) fn outcome(report: &Report, max_error_rate: f64) -> Outcome {
    let counts = &report.counts;
    if !report.complete {
        Outcome::Interrupted
    } else if counts.error_rate() > max_error_rate {
        Outcome::TooManyFailed
    } else if counts.failed > 0 || counts.unlisted > 0 {
        Outcome::SomeFailed
    } else {
        Outcome::Complete
    }
}

fn fingerprinted(settings: &CaptionSettings, model: &ModelInfo, takes_embeddings: bool) -> Result<Settings> {
    let images = json!({
        "exif_rotate": settings.exif_rotate,
        "max_pixels": settings.limits.max_pixels,
        "max_bytes": settings.limits.max_bytes,
        "preprocessing": model.preprocess.settings(),
    });
    let input = if takes_embeddings { json!({"embeddings": true}) } else { json!({"images": images}) };
    Ok(Settings::new("caption", json!({"model": model.identity, "decoding": settings.decoding, "input": input})))
}

/// Fewer images a window where each has many captions, so that a commit is never far away.
fn window_images(decoding: &generation::Settings) -> usize {
    const CAPTIONS: usize = 640;
    (CAPTIONS / decoding.num_captions.max(1)).clamp(1, WINDOW_IMAGES)
}

fn check_embeddings(path: &std::path::Path, embeddings: &Embeddings, model: &ModelInfo) -> Result<()> {
    if embeddings.embedding_dim != model.embedding_dim {
        bail!(
            "{}: embeddings of length {}, and the model takes {}: they come from another CLIP",
            path.display(),
            embeddings.embedding_dim,
            model.embedding_dim
        );
    }
    if embeddings.normalized.is_some_and(|normalized| normalized != model.normalize) {
        let (are, wants) = if model.normalize { ("not normalized", "normalized") } else { ("normalized", "not normalized") };
        bail!(
            "{}: these embeddings are {are}, and the model was trained on {wants} ones: embed the images again",
            path.display()
        );
    }
    Ok(())
}
