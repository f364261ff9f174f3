//! `clipcap caption`: a caption table for every image under some folders.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::dataset::chosen::ImageList;
use crate::dataset::wanted::LeftOut;
use crate::generation;
use crate::image::Preprocess;
use crate::models::Bundle;
use crate::pipeline::sources::{Embeddings, Entries, Listed, Source};
use crate::pipeline::{
    Content, Decode, Entry, Existing, Index, Interrupt, MOST_WINDOW_IMAGES, Names, Output, PassEmbeddings, Prepare, Report,
    Reporter, RunSettings, Settings, ShardReader, StageParts, StageRun, WINDOW_IMAGES, WorkFolder, check_replaceable,
    check_roots, errors_in, survey,
};
use crate::stages::Outcome;
use crate::stages::summary::{self, Look, Words};
use crate::text::clean::Cleaning;

mod digest;
pub(in crate::stages) mod import;
mod load;
mod model;
mod only;
mod pipe;
mod scoring;
mod split;
pub(in crate::stages) mod tables;
mod value;

pub(crate) use load::{info, load, max_new_tokens};
pub use model::Captioner;
pub(crate) use model::ClipCap;
pub(crate) use pipe::pipe;
pub(crate) use scoring::{CaptionScorer, Scored, Scoring, second_preprocess};
pub(crate) use split::SplitOf;
pub use tables::{Style, TableFormat};
pub use value::CaptionText;
pub(crate) use value::Captions;

use digest::{Digest, Digested};
use model::Engine;
use split::SplitImages;
use tables::{FORMAT, TableSink};

/// A caption run.
#[derive(Debug, Clone)]
pub struct CaptionSettings {
    /// What every run over images is told: source, output, reading, threads.
    pub run: RunSettings,
    /// The kind of table at the output's path.
    pub format: TableFormat,
    /// How the rows are written.
    pub style: Style,
    /// How captions are generated.
    pub decoding: generation::Settings,
    /// How they begin and end, and how they are cleaned.
    pub wording: Wording,
    /// Captions are scored, and perhaps ranked and chosen.
    pub scoring: Option<Scoring>,
    /// A list of the images that are captioned, whether they have captions or not; the others keep the rows they have.
    pub only: Option<PathBuf>,
    /// Images that are not of this split are not looked at.
    pub split: Option<SplitOf>,
}

/// How captions begin and end, where it is not as the bundle says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Wording {
    /// In place of the bundle's stop token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_token: Option<String>,
    /// Text that captions go on from; the bundle's where nothing else was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// What is done to captions that are made.
    #[serde(flatten)]
    pub cleaning: Cleaning,
}

impl Wording {
    /// The bundle's prompt unless another is given; an empty one is none.
    pub fn new(bundle: &Bundle, stop_token: Option<String>, prompt: Option<String>) -> Self {
        let prompt = prompt.or_else(|| bundle.prompt().map(str::to_owned));
        Self { stop_token, prompt: prompt.filter(|prompt| !prompt.trim().is_empty()), cleaning: Cleaning::default() }
    }
}

/// What the stage needs to know of a model before it is loaded.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// All that results depend on: fingerprint, device, precision, runtime build, CPU type.
    pub identity: Json,
    /// From a decoded picture to the image tower's input.
    pub preprocess: Preprocess,
    /// D
    pub embedding_dim: usize,
    /// The image encoder's fingerprint, as embeddings record it.
    pub encoder: String,
    /// The mapper was trained on embeddings of length 1.
    pub normalize: bool,
    /// The model computes on the cores that decode images.
    pub shares_cores: bool,
    /// How pictures are prepared for the image tower of another scorer; see [`second_preprocess`].
    pub also: Option<Preprocess>,
}

/// How a caption run ended.
#[derive(Debug)]
pub struct CaptionReport {
    /// What becomes the exit status.
    pub outcome: Outcome,
    /// Counts and times of the stream.
    pub report: Report,
    /// Where the table is, finished or not.
    pub output: Output,
    /// Files and folders that were not looked at.
    pub left_out: LeftOut,
    /// The table went to stdout alone, and what lies beside it goes with the program.
    pub is_temporary: bool,
    digest: Digest,
    /// Folders that a report finds the images in.
    folders: Vec<PathBuf>,
}

const WORDS: Words = Words { command: "caption", done: "captioned", results: Some("captions") };

impl CaptionReport {
    /// Says which images failed, and of many how many more: for a run that leaves no table of them.
    ///
    /// # Errors
    /// The table of errors cannot be read.
    pub fn tell_failures(&self, reporter: &dyn Reporter) -> Result<()> {
        const MOST: usize = 20;
        if !self.report.complete || !self.output.errors().is_file() {
            return Ok(());
        }
        let mut more = 0u64;
        for (at, row) in errors_in(&self.output.errors())?.enumerate() {
            let (image_path, failure) = row?;
            match at < MOST {
                true => reporter.warn(&format!("{image_path}: {}: {}", failure.reason, failure.message)),
                false => more += 1,
            }
        }
        if more > 0 {
            reporter.warn(&format!("and {more} more failed: --work DIR keeps the table of them"));
        }
        Ok(())
    }

    /// The closing summary, as text and as JSON.
    pub fn summary(&self) -> (String, Json) {
        let next = digest::next(self.output.path(), &self.folders);
        let look = Look { text: self.digest.to_text(), json: self.digest.to_json(), next, is_temporary: self.is_temporary };
        summary::closing(&WORDS, self.outcome, &self.report, &self.output, self.left_out, look)
    }
}

/// Captions everything in the source. `load` makes the captioner, while images are already being read.
///
/// # Errors
/// See [`StageRun::run`]; embeddings that do not fit the model are refused before anything is computed.
pub fn run<C: Captioner>(
    settings: &CaptionSettings,
    model: &ModelInfo,
    load: impl FnOnce() -> Result<C>,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<CaptionReport> {
    let output = settings.output();
    let takes_embeddings = settings.takes_embeddings();
    let listed = open(settings, model, &output)?;
    let only = settings.only.as_deref().map(ImageList::read).transpose()?;
    let chosen = |entry: &Entry| only.as_ref().is_some_and(|only| only.has([&*entry.image_path, &entry.image_id]));
    let mut fingerprinted = fingerprinted(settings, model, &listed)?;
    if only.is_some() {
        fingerprinted = only::beside_others(&output, settings.format, fingerprinted)?;
    }
    let stage = StageRun {
        output: output.clone(),
        format: FORMAT,
        settings: fingerprinted,
        run: &settings.run,
        done: WORDS.done,
        label: "captioning",
        unit: Some("captions/s"),
        shares_cores: model.shares_cores,
        window_images: window_images(&settings.decoding, model.shares_cores),
        only: only.is_some().then_some(&chosen),
        reporter,
        interrupt,
    };
    let (decode, pass) = preparations(settings, model);
    let prepare: &dyn Prepare = if takes_embeddings { &pass } else { &decode };
    let make_compute = || Ok(Engine::new(load()?, takes_embeddings));
    let digest = Mutex::new(Digest::default());
    let style = Style { scored: Scored::by(settings.scoring.as_ref()), ..settings.style };
    let make_sink = |folder: &Path| Ok(Digested { table: TableSink::create(settings.format, style, folder)?, digest: &digest });
    let import = |output: &Output| import::records(output, settings.format, settings.style.quotes_formulas);
    // The original's table holds too little to go on from, and is made anew.
    let names = |output: &Output| import::names(output, settings.style.quotes_formulas);
    let names = (settings.format == TableFormat::Tsv).then_some(&names as Names);
    // How many of a choice are there is known at the end.
    let counter = if only.is_some() || settings.split.is_some() { None } else { listed.counter() };
    let split = settings.split.as_ref().map(SplitImages::read).transpose()?;
    let (entries, expected) = (of_split(listed.entries(), split.as_ref()), listed.expected());
    let report = stage.run(StageParts { entries, counter, expected, prepare, make_compute, make_sink, import, names })?;
    let outcome = Outcome::of(&report, settings.run.max_error_rate);
    if let (Some(list), Some(path)) = (&only, &settings.only)
        && report.complete
    {
        list.missing_note(path).iter().for_each(|note| reporter.warn(note));
    }
    let digest = digest.into_inner().unwrap_or_else(|e| e.into_inner());
    Ok(CaptionReport {
        outcome,
        report,
        output,
        left_out: listed.left_out(),
        is_temporary: false,
        digest,
        folders: settings.run.source.folders(),
    })
}

/// Looks at everything in the source, times the model on a few images, and writes nothing.
pub fn dry_run<C: Captioner>(
    settings: &CaptionSettings,
    model: &ModelInfo,
    load: impl FnOnce() -> Result<C>,
    reporter: &dyn Reporter,
) -> Result<(String, Json)> {
    let output = settings.output();
    let takes_embeddings = settings.takes_embeddings();
    let listed = open(settings, model, &output)?;
    let fingerprinted = fingerprinted(settings, model, &listed)?;
    let shards = WorkFolder::peek(&output.work_folder(), &fingerprinted)?;
    let index = Index::load(shards, |_, _| (), |path, error| reporter.warn(&format!("{}: {error}", path.display())));
    let mut reader = ShardReader::<Captions>::default();
    let finished = if settings.run.overwrite { HashSet::new() } else { finished_images(settings, &output, &fingerprinted)? };
    let (mut gone, mut unlisted) = (finished.clone(), Vec::new());
    let is_known = |entry: &Entry| {
        Ok(finished.contains(&entry.image_path) || index.standing(entry, settings.run.retry_failed, &mut reader)?.is_some())
    };
    let split = settings.split.as_ref().map(SplitImages::read).transpose()?;
    let entries = of_split(listed.entries(), split.as_ref()).inspect(|entry| match entry {
        Ok(entry) if matches!(entry.content, Content::Unlisted(_)) => unlisted.push(entry.image_path.clone()),
        Ok(entry) => drop(gone.remove(&entry.image_path)),
        Err(_) => {}
    });
    let sample = settings.run.batch_size.min(16);
    let survey = survey(entries, &settings.run.reading.limits, settings.run.threads, sample, is_known, &|m| reporter.warn(m))?;
    listed.left_out().note().iter().for_each(|note| reporter.note(note));
    gone.retain(|path| !unlisted.iter().any(|folder| folder == "./" || path.starts_with(folder)));
    if !gone.is_empty() {
        let refused =
            if gone.len() * 10 > finished.len() && !settings.run.prune { " (refused unless --prune is given)" } else { "" };
        let (gone, finished) = (gone.len(), finished.len());
        reporter.warn(&format!("{gone} of the table's {finished} images are not found: their rows would be dropped{refused}"));
    }
    if survey.images + survey.known + survey.num_failed() == 0 {
        bail!("no image found ({} files that are not images)", survey.skipped);
    }
    let (decode, pass) = preparations(settings, model);
    let prepare: &dyn Prepare = if takes_embeddings { &pass } else { &decode };
    let each = match survey.images {
        0 => None,
        _ => summary::seconds_per_image(&survey, prepare, &mut Engine::new(load()?, takes_embeddings), settings.run.threads)?,
    };
    Ok(summary::before(&WORDS, &survey, each))
}

/// Images of the finished table; those whose content is still the same will not be computed again.
fn finished_images(settings: &CaptionSettings, output: &Output, fingerprinted: &Settings) -> Result<HashSet<String>> {
    let existing = output.existing(FORMAT)?;
    check_replaceable(output, &existing, fingerprinted)?;
    if !settings.run.prune {
        check_roots(output, output.path(), output.roots().as_ref(), &settings.run.roots())?;
    }
    match existing {
        Existing::Finished(_) if settings.format == TableFormat::Tsv => {
            Ok(import::names(output, settings.style.quotes_formulas)?.into_iter().collect())
        }
        Existing::Finished(_) => {
            let records = import::records(output, settings.format, settings.style.quotes_formulas)?;
            records.map(|record| Ok(record?.image_path)).collect()
        }
        _ => Ok(HashSet::new()),
    }
}

/// Where a table goes, and its manifest's format.
pub(crate) fn place(out: &Path, format: TableFormat) -> (Output, &'static str) {
    (output_of(out, format), FORMAT)
}

/// Where a table goes, and what lies beside it.
pub(in crate::stages) fn output_of(out: &Path, format: TableFormat) -> Output {
    match format {
        TableFormat::Parts => Output::folder(out),
        _ => Output::file(out),
    }
}

impl CaptionSettings {
    fn output(&self) -> Output {
        output_of(&self.run.out, self.format)
    }

    fn takes_embeddings(&self) -> bool {
        matches!(self.run.source, Source::Embeddings(_))
    }
}

fn of_split<'a>(entries: Entries<'a>, split: Option<&'a SplitImages>) -> Entries<'a> {
    match split {
        None => entries,
        Some(split) => Box::new(entries.filter(|entry| entry.as_ref().map_or(true, |entry| split.has(entry)))),
    }
}

/// Opens the source; embeddings are the model's.
fn open(settings: &CaptionSettings, model: &ModelInfo, output: &Output) -> Result<Listed> {
    let listed = settings.run.open(output)?;
    if let (Listed::Embedded(embeddings), Source::Embeddings(path)) = (&listed, &settings.run.source) {
        check_embeddings(path, embeddings, model)?;
    }
    Ok(listed)
}

fn preparations(settings: &CaptionSettings, model: &ModelInfo) -> (Decode, PassEmbeddings) {
    let decode = Decode { preprocess: model.preprocess.clone(), also: model.also.clone(), reading: settings.run.reading };
    (decode, PassEmbeddings { embedding_dim: model.embedding_dim })
}

fn fingerprinted(settings: &CaptionSettings, model: &ModelInfo, listed: &Listed) -> Result<Settings> {
    let input = match listed {
        Listed::Embedded(embeddings) => json!({"embeddings": embeddings.identity()?}),
        _ => json!({"images": settings.run.reading.settings(&model.preprocess)}),
    };
    let mut fingerprinted =
        captioning(&model.identity, &settings.decoding, &settings.wording, settings.scoring.as_ref(), input).settings;
    if settings.style.quotes_formulas {
        fingerprinted["quotes_formulas"] = true.into();
    }
    if settings.style.bom {
        fingerprinted["bom"] = true.into();
    }
    Ok(Settings::new("caption", fingerprinted))
}

/// What captions depend on. How they are worded is named where something was asked for.
pub(in crate::stages) fn captioning(
    model: &Json,
    decoding: &generation::Settings,
    wording: &Wording,
    scoring: Option<&Scoring>,
    input: Json,
) -> Settings {
    let mut settings = json!({"model": model, "decoding": decoding, "input": input});
    if *wording != Wording::default() {
        settings["wording"] = json!(wording);
    }
    if let Some(scoring) = scoring {
        settings["scoring"] = json!(scoring);
    }
    Settings::new("caption", settings)
}

/// Fewer images a window where each has many captions, so that a commit is never far away.
fn window_images(decoding: &generation::Settings, shares_cores: bool) -> usize {
    if !shares_cores {
        return MOST_WINDOW_IMAGES;
    }
    const CAPTIONS: usize = 640;
    (CAPTIONS / decoding.num_captions.max(1)).clamp(1, WINDOW_IMAGES)
}

fn check_embeddings(path: &Path, embeddings: &Embeddings, model: &ModelInfo) -> Result<()> {
    if embeddings.embedding_dim != model.embedding_dim {
        bail!(
            "{}: embeddings of length {}, and the model takes {}: they come from another CLIP",
            path.display(),
            embeddings.embedding_dim,
            model.embedding_dim
        );
    }
    if embeddings.encoder.as_ref().is_some_and(|encoder| *encoder != model.encoder) {
        bail!(
            "{}: these embeddings were made by another image encoder than the model's: embed the images with it",
            path.display()
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
