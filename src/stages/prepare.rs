//! `clipcap prepare`: caption files and a folder of images become one dataset of Parquet tables.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::Outcome;
use crate::dataset::assemble::{Assembled, assemble};
use crate::dataset::captions::{BadLine, Columns, Format, ReadOptions, Translation, read_captions};
use crate::dataset::lint::{Lint, lint};
use crate::dataset::matching::without_extension;
use crate::dataset::normalize::FoldWidth;
use crate::dataset::splits::{Ratios, SplitRule};
use crate::dataset::tables::{self, DATASET_FORMAT, ErrorRow, ImageRow};
use crate::image::Limits;
use crate::pipeline::{Existing, Interrupt, Output, Reporter, Settings, WorkLock};
use crate::table::TableError;

mod duplicates;
mod images;
mod shards;
mod summary;

pub use summary::Summary;

/// What to prepare, and how.
#[derive(Debug, Clone)]
pub struct PrepareSettings {
    /// Folders of images; none: captions alone.
    pub images: Vec<PathBuf>,
    pub captions: Vec<PathBuf>,
    /// None: detected, file by file.
    pub format: Option<Format>,
    pub columns: Columns,
    pub fold: FoldWidth,
    pub translation: Option<Translation>,
    pub splits: Splits,
    pub with_images: bool,
    /// Bits of the perceptual hash that near-duplicates may differ in.
    pub near_duplicates: Option<u32>,
    pub lint: bool,
    pub limits: Limits,
    /// Replace a folder that is no dataset.
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

/// Reads, checks and writes the dataset. Nothing stands at `out` before all of it does.
pub fn run(settings: &PrepareSettings, reporter: &dyn Reporter, interrupt: &Interrupt) -> Result<(Outcome, Summary)> {
    let output = Output::folder(&settings.out);
    if let Existing::Unknown = output.existing(DATASET_FORMAT)?
        && !settings.overwrite
    {
        anyhow::bail!(
            "{} holds files and no dataset: choose another --out, or give --overwrite to write into it",
            output.path().display()
        );
    }
    let lock = WorkLock::acquire(&output.work_folder())?;
    let staging = output.work_folder().join("out");
    let result = build(settings, &output, &staging, reporter, interrupt);
    // Failed or interrupted, nothing of it is worth keeping: it is made again in less time than it takes to check.
    let cleared = lock.remove().and_then(|()| fs::remove_dir_all(output.work_folder()));
    let result = result?;
    cleared.with_context(|| format!("cannot remove {}", output.work_folder().display()))?;
    Ok(result)
}

fn build(
    settings: &PrepareSettings,
    output: &Output,
    staging: &Path,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<(Outcome, Summary)> {
    if staging.exists() {
        fs::remove_dir_all(staging).with_context(|| format!("cannot clear {}", staging.display()))?;
    }
    let (rule, unlisted) = split_rule(&settings.splits)?;
    let options = ReadOptions {
        format: settings.format,
        columns: settings.columns.clone(),
        fold: settings.fold,
        translation: settings.translation,
    };
    let captions = read_captions(&settings.captions, &options)?;
    let folder = match &settings.images[..] {
        [] => None,
        roots => Some(images::examine(roots, &output.own_paths(), &settings.limits, reporter, interrupt)?),
    };
    if interrupt.is_set() {
        return Ok((Outcome::Interrupted, Summary::default()));
    }
    let paths: Option<Vec<&str>> = folder.as_ref().map(|f| f.iter().map(|image| image.image_path.as_str()).collect());
    let set = assemble(captions, paths.as_deref(), &rule);
    let rows = image_rows(&set, folder.as_deref());
    let marks = settings.lint.then(|| lint_all(&set));
    let folder = folder.as_deref().unwrap_or_default();
    let twins = duplicates::find(&rows, &set, folder, settings, reporter, interrupt)?;
    if interrupt.is_set() {
        return Ok((Outcome::Interrupted, Summary::default()));
    }

    fs::create_dir_all(staging).with_context(|| format!("cannot make {}", staging.display()))?;
    let errors = error_rows(&set);
    let at = |name: &str| staging.join(name);
    let (captions, others) = rayon::join(
        || tables::write_captions(&at("captions.parquet"), &set, marks.as_deref()),
        || -> Result<_, TableError> {
            let images = tables::write_images(&at("images.parquet"), &rows)?;
            let errors = tables::write_errors(&at("errors.parquet"), &errors)?;
            Ok(vec![images, errors, tables::write_duplicates(&at("duplicates.parquet"), &twins)?])
        },
    );
    let mut files = others?;
    files.push(captions?);
    tables::commit_all(files).with_context(|| format!("cannot write to {}", staging.display()))?;
    let mut staged: Vec<PathBuf> = ["captions.parquet", "images.parquet", "duplicates.parquet"].map(PathBuf::from).into();
    if settings.with_images {
        staged.extend(shards::write(staging, &set, &rows, folder, &settings.limits, reporter, interrupt)?);
        if interrupt.is_set() {
            return Ok((Outcome::Interrupted, Summary::default()));
        }
    }
    let summary = Summary::new(&set, &rows, marks.as_deref(), &twins, settings, unlisted);
    let recorded = Settings::new("prepare", recorded(settings, &set));
    let manifest =
        Manifest { format: DATASET_FORMAT, version: env!("CARGO_PKG_VERSION"), settings: recorded, found: summary.to_json() };
    crate::files::write_json(&staging.join("manifest.json"), &manifest).context("cannot write the manifest")?;
    output.publish(staging, &staged, reporter)?;
    summary.report(reporter);
    Ok((summary.outcome(settings.max_error_rate), summary))
}

#[derive(serde::Serialize)]
struct Manifest {
    #[serde(rename = "clipcap.format")]
    format: &'static str,
    #[serde(rename = "clipcap.version")]
    version: &'static str,
    #[serde(flatten)]
    settings: Settings,
    #[serde(flatten)]
    found: serde_json::Map<String, serde_json::Value>,
}

/// The settings that the tables depend on, with the content of every input. No paths: the same data is the same anywhere.
fn recorded(settings: &PrepareSettings, set: &Assembled) -> serde_json::Value {
    let inputs: Vec<_> =
        set.captions.files.iter().map(|f| json!({"source": f.source, "sha256": f.sha256, "format": f.format})).collect();
    let lists: Vec<_> = settings
        .splits
        .lists
        .iter()
        .map(|(name, path)| json!({"split": name, "sha256": crate::files::sha256_file(path).unwrap_or_default()}))
        .collect();
    json!({
        "inputs": inputs,
        "columns": settings.columns,
        "fold_width": settings.fold,
        "translation": settings.translation,
        "splits": {
            "lists": lists,
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
    })
}

/// Reads the official lists: an image a line, by id, file name or path. Also gives how many images are listed.
fn split_rule(splits: &Splits) -> Result<(SplitRule, usize)> {
    let mut lists: HashMap<String, String> = HashMap::new();
    for (split, path) in &splits.lists {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read the split list {}", path.display()))?;
        for line in text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|line| !line.is_empty()) {
            let id = without_extension(line.rsplit('/').next().unwrap_or(line));
            if let Some(other) = lists.insert(id.to_string(), split.clone())
                && other != *split
            {
                anyhow::bail!("{}: the image {id} is in the list of {other} too: an image has one split", path.display());
            }
        }
    }
    let listed = lists.len();
    let ratios = splits.ratios.clone().map(|ratios| (ratios, splits.seed));
    Ok((SplitRule { lists, ratios, own: !splits.none }, listed))
}

fn image_rows<'a>(set: &'a Assembled, folder: Option<&'a [images::Found]>) -> Vec<ImageRow<'a>> {
    set.images
        .iter()
        .map(|image| {
            let known = image.listed.and_then(|at| folder.map(|f| &f[at]));
            let mut row = ImageRow {
                image_id: &image.id,
                status: if folder.is_some() { "missing" } else { "unchecked" },
                split: image.split.as_deref(),
                num_captions: image.captions as i32,
                ..ImageRow::default()
            };
            if let Some(found) = known {
                row.image_path = Some(&found.image_path);
                row.status = if found.failure.is_some() { "failed" } else { "ok" };
                row.reason = found.failure.as_ref().map(|failure| failure.reason.as_str());
                row.sha256 = found.content.as_ref().map(|content| content.sha256.as_str());
                row.bytes = found.content.as_ref().map(|content| content.bytes as i64);
                row.width = found.size.map(|(width, _)| width as i32);
                row.height = found.size.map(|(_, height)| height as i32);
            }
            row
        })
        .collect()
}

fn lint_all(set: &Assembled) -> Vec<Lint> {
    let texts: Vec<&str> = (0..set.places.len()).map(|at| set.caption(at)).collect();
    lint(&texts, |at| set.places[at].image == set.places[at - 1].image)
}

fn error_rows(set: &Assembled) -> Vec<ErrorRow<'_>> {
    let lines: &[BadLine] = &set.captions.bad;
    lines
        .iter()
        .map(|line| ErrorRow {
            file: &set.captions.files[line.file as usize].source,
            line: line.line as i64,
            reason: line.bad.reason.name(),
            message: &line.bad.message,
        })
        .collect()
}
