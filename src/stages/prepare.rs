//! `clipcap prepare`: caption files and a folder of images become one dataset of Parquet tables.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::Outcome;
use crate::dataset::assemble::{Image, Listed, assemble};
use crate::dataset::captions::{BadLine, Columns, Encoding, Format, ReadOptions, Translation, read_captions};
use crate::dataset::chosen::ImageList;
use crate::dataset::normalize::FoldWidth;
use crate::dataset::splits::{Ratios, SplitLists, SplitRule};
use crate::dataset::tables::DATASET_FORMAT;
use crate::dataset::wanted::Wanted;
use crate::files::ContentHash;
use crate::image::Limits;
use crate::pipeline::{Decode, ImageReading, Interrupt, Output, Reporter, Settings, Staging, Turns};
use crate::stages::score::Scorer;
use crate::table;

pub mod discover;
mod duplicates;
mod images;
mod rows;
mod scored;
mod scores;
mod shards;
mod summary;

pub use scores::Scoring;
pub use summary::{ClipFacts, Summary};

use rows::{Manifest, image_rows, lint_all, write_tables};
use scored::Known;
use scores::{BELOW, LowScored};

/// What to prepare, and how.
#[derive(Debug, Clone)]
pub struct PrepareSettings {
    /// Folders of images; none: captions alone.
    pub images: Vec<PathBuf>,
    /// Of those folders, which files.
    pub wanted: Wanted,
    pub captions: Vec<PathBuf>,
    /// Of caption files in whose names of images a folder is left out, that folder.
    pub folders: BTreeMap<PathBuf, String>,
    /// None: detected, file by file.
    pub format: Option<Format>,
    pub columns: Columns,
    pub fold: FoldWidth,
    pub translation: Option<Translation>,
    /// Of text files that are not UTF-8.
    pub encoding: Option<Encoding>,
    pub splits: Splits,
    pub with_images: bool,
    /// Bits of the perceptual hash that near-duplicates may differ in.
    pub near_duplicates: Option<u32>,
    pub lint: bool,
    /// Captions are scored against their pictures.
    pub scoring: Option<Scoring>,
    /// A list of images that are left out, with their captions.
    pub drop: Option<PathBuf>,
    pub limits: Limits,
    /// Replace what is at `out`, whatever it is.
    pub overwrite: bool,
    /// More bad lines and images than this share end the run with exit status 1.
    pub max_error_rate: f64,
    pub out: PathBuf,
}

/// Where splits come from.
#[derive(Debug, Clone, Default)]
pub struct Splits {
    /// `NAME=FILE`: official lists, an image a line.
    pub lists: Vec<(String, PathBuf)>,
    pub ratios: Option<Ratios>,
    pub seed: u64,
    /// No split at all, whatever the files say.
    pub none: bool,
}

/// Reads, checks and writes the dataset. Nothing stands at `out` before all of it does, and a finished dataset stays as it is: one that
/// these settings and inputs made is told to be finished, and another is refused.
///
/// # Errors
/// Inputs that cannot be read or hold no captions; a scorer that fails; a disk that refuses.
pub fn run(
    settings: &PrepareSettings,
    scorer: Option<&mut Scorer>,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<(Outcome, Summary)> {
    let output = Output::folder(&settings.out);
    let staging = Staging::open(&output, DATASET_FORMAT, settings.overwrite)?;
    staging.tell(reporter);
    if let Some(existing) = staging.existing() {
        // Other flags are refused before anything is read; inputs are compared when they have been.
        staging.is_finished(&Settings::new("prepare", recorded(settings, existing.settings["inputs"].clone())), &[])?;
    }
    build(settings, scorer, staging, &output, reporter, interrupt)
}

fn build(
    settings: &PrepareSettings,
    scorer: Option<&mut Scorer>,
    staging: Staging,
    output: &Output,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<(Outcome, Summary)> {
    let lists = ListFiles::read(&settings.splits)?;
    let drop_list = settings.drop.as_deref().map(ImageList::read).transpose()?;
    let options = ReadOptions {
        format: settings.format,
        columns: settings.columns.clone(),
        fold: settings.fold,
        translation: settings.translation,
        encoding: settings.encoding,
        folders: settings.folders.clone(),
        ..ReadOptions::default()
    };
    let captions = read_captions(&settings.captions, &options)?;
    for file in captions.files.iter().filter(|file| file.captions + file.bad == 0) {
        reporter.warn(&format!("{} holds no captions", file.source));
    }
    if captions.files.iter().all(|file| file.captions == 0) {
        match captions.bad.first() {
            None => bail!("no captions to prepare"),
            Some(BadLine { file, line, bad }) => bail!(
                "no captions to prepare: all lines are bad; the first is line {line} of {} ({}). Is it another layout? See --format",
                captions.files[*file as usize].source,
                bad.message
            ),
        }
    }
    let folder = match &settings.images[..] {
        [] => None,
        roots => Some(images::examine(roots, &output.own_paths(), &settings.wanted, &settings.limits, reporter, interrupt)?),
    };
    if interrupt.is_set() {
        return Ok((Outcome::Interrupted, Summary::default()));
    }
    let mut inputs = json!({
        "captions": captions.files.iter().map(|f| json!({"source": f.source, "sha256": f.sha256, "format": f.format})).collect::<Vec<_>>(),
        "images": folder.as_deref().map(images::fingerprint),
        "split_lists": lists.sha256,
    });
    if let Some(path) = &settings.drop {
        let hash = ContentHash::of_file(path).with_context(|| format!("cannot read {}", path.display()))?;
        inputs["drop"] = hash.to_string().into();
    }
    let settled = Settings::new("prepare", recorded(settings, inputs));
    let listed: Option<Vec<Listed>> = folder
        .as_ref()
        .map(|folder| folder.iter().map(|image| Listed { path: &image.image_path, id: &image.image_id }).collect());
    let num_listed = lists.lists.num_lines();
    let mut set = assemble(captions, listed.as_deref(), &lists.rule(&settings.splits));
    let dropped = drop_list.map_or((0, 0), |list| {
        let file = |image: &Image| image.listed.and_then(|at| Some(listed.as_ref()?[at].path));
        let dropped = set.drop_images(|image| {
            list.has([Some(image.id.as_str()), file(image), image.reference.as_deref()].into_iter().flatten())
        });
        settings.drop.iter().filter_map(|path| list.missing_note(path)).for_each(|note| reporter.warn(&note));
        dropped
    });
    let mut files: Vec<PathBuf> = ["captions.parquet", "images.parquet", "duplicates.parquet"].map(PathBuf::from).into();
    if settings.with_images {
        let shards = shards::plan(&image_rows(&set, folder.as_deref()));
        files.extend(shards.into_iter().map(|shard| shard.name.into()));
    }
    files.extend(scorer.is_some().then(|| BELOW.into()));
    let is_finished = staging.is_finished(&settled, &files)?;
    let mut known = match &settings.scoring {
        Some(scoring) if !is_finished => Some(Known::open(&staging.kept(), &scoring.scorer)?),
        _ => None,
    };
    let scored = match (scorer, &folder) {
        (Some(scorer), Some(folder)) => {
            let reading = ImageReading { limits: settings.limits, ..ImageReading::default() };
            let decode = Decode::new(scorer.model.preprocess.clone(), reading);
            let before = if is_finished { scores::read_back(&set, output.path())? } else { None };
            let mut none = Known::none();
            let known = known.as_mut().unwrap_or(&mut none);
            known.tell(reporter);
            match before {
                Some(scores) => Some(scores),
                None => match scores::compute(&set, folder, scorer, &decode, known, reporter, interrupt)? {
                    Some(scores) => Some(scores),
                    None => {
                        known.flush()?;
                        reporter.note(&format!("{} scores are kept: run the same command to resume", known.len()));
                        return Ok((Outcome::Interrupted, Summary::default()));
                    }
                },
            }
        }
        _ => None,
    };
    let min = settings.scoring.as_ref().and_then(|scoring| scoring.min_clip_score);
    let (mut clip, mut all_scores) = (None, None);
    if let Some(mut scores) = scored {
        let mut below = LowScored::take(&mut set, &mut scores.all, min);
        if !is_finished {
            below.write(&mut set, staging.folder())?;
        }
        clip = Some(ClipFacts::new(&scores, &below));
        all_scores = Some(scores.all);
    }
    let rows = image_rows(&set, folder.as_deref());
    let marks = settings.lint.then(|| lint_all(&set));
    let folder = folder.as_deref().unwrap_or_default();
    let twins = duplicates::find(&rows, &set, folder, settings, reporter, interrupt)?;
    if interrupt.is_set() {
        return Ok((Outcome::Interrupted, Summary::default()));
    }
    let mut summary = Summary::new(&set, &rows, marks.as_deref(), &twins, settings, num_listed);
    summary.dropped = dropped;
    summary.clip = clip;
    if is_finished {
        reporter.note(&format!("{} is finished: the same settings and inputs made it", output.path().display()));
    } else {
        let manifest =
            Manifest { format: DATASET_FORMAT, version: env!("CARGO_PKG_VERSION"), settings: settled, found: summary.to_json() };
        let scores = all_scores.as_deref();
        write_tables(staging.folder(), &set, &rows, marks.as_deref(), scores, &twins, settings.with_images, &manifest)?;
        if settings.with_images {
            shards::write(staging.folder(), &set, &rows, folder, &settings.limits, reporter, interrupt)?;
            if interrupt.is_set() {
                return Ok((Outcome::Interrupted, Summary::default()));
            }
        }
        files.push(table::CONFIGS.into());
        // What is there and no longer belongs to it is of an earlier run.
        let stale = output.path().join(BELOW);
        if all_scores.is_none() && stale.is_file() {
            fs::remove_file(&stale).with_context(|| format!("cannot replace {}", stale.display()))?;
        }
        known.map(Known::remove).transpose()?;
        staging.publish(&files, reporter)?;
    }
    // Returning a large dataset's memory takes a while, for which nobody needs to wait.
    drop(rows);
    std::thread::spawn(move || drop(set));
    summary.report(&output.errors(), reporter);
    Ok((summary.outcome(settings.max_error_rate), summary))
}

/// As many may decode at once as there are cores, where more threads wait for a server.
fn decoders() -> Turns {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    Turns::new(cores.min(rayon::current_num_threads()))
}

/// The settings that the tables depend on, and `inputs`: the content of every input. No paths: the same data is the same anywhere.
fn recorded(settings: &PrepareSettings, inputs: serde_json::Value) -> serde_json::Value {
    let mut recorded = json!({
        "inputs": inputs,
        "columns": settings.columns,
        "fold_width": settings.fold,
        "translation": settings.translation,
        "encoding": settings.encoding.map(Encoding::name),
        "splits": {
            "lists": settings.splits.lists.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "ratios": settings.splits.ratios.as_ref().map(ToString::to_string),
            "seed": settings.splits.seed,
            "none": settings.splits.none,
        },
        "images": !settings.images.is_empty(),
        "with_images": settings.with_images,
        "near_duplicates": settings.near_duplicates,
        "lint": settings.lint,
        "max_pixels": settings.limits.max_pixels,
        "max_bytes": settings.limits.max_bytes,
    });
    if !settings.folders.is_empty() {
        recorded["folders"] = json!(settings.folders.values().collect::<Vec<_>>());
    }
    // Only where it was asked for: datasets of before this choice stay what they are.
    if settings.wanted != Wanted::default() {
        recorded["files"] = json!(settings.wanted);
    }
    if let Some(scoring) = &settings.scoring {
        recorded["scoring"] = json!(scoring);
    }
    recorded
}

/// The official lists as files.
#[derive(Default)]
struct ListFiles {
    lists: SplitLists,
    /// Content hash of each list, in the order given.
    sha256: Vec<ContentHash>,
}

impl ListFiles {
    fn read(splits: &Splits) -> Result<Self> {
        let mut read = Self::default();
        for (split, path) in &splits.lists {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read the split list {}", path.display()))?;
            read.sha256.push(ContentHash::of(&text));
            for line in text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|line| !line.is_empty()) {
                if let Err(other) = read.lists.add(line, split) {
                    bail!("{}: the image {line} is also in the list of {other}: an image has one split", path.display());
                }
            }
        }
        Ok(read)
    }

    fn rule(self, splits: &Splits) -> SplitRule {
        let ratios = splits.ratios.clone().map(|ratios| (ratios, splits.seed));
        SplitRule { lists: self.lists, ratios, own: !splits.none }
    }
}
