//! From a dataset and embeddings to the corpus a run trains on.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use arrow::array::{Array, Int32Array, RecordBatch, StringArray};
use serde_json::json;

use super::beside::{ImageInputs, framing};
use super::settings::{Fingerprints, Recipe};
use crate::files::ContentHash;
use crate::models::Bundle;
use crate::pipeline::Reporter;
use crate::random::{key, name_key};
use crate::table;
use crate::training::corpus::{CaptionRow, Corpus, Tokenized};
use crate::training::objective::Objective;

const CAPTIONS_FORMAT: &str = "captions/1";

struct DatasetRow {
    image_id: String,
    caption_id: i32,
    caption: String,
    split: Option<String>,
}

/// A dataset folder's captions.
pub struct Dataset {
    captions: PathBuf,
}

impl Dataset {
    /// A folder that `prepare` wrote, or its `captions.parquet`.
    pub fn open(path: &Path) -> Result<Self> {
        let captions = if path.is_dir() { path.join("captions.parquet") } else { path.to_path_buf() };
        if !captions.is_file() {
            bail!("{}: no captions.parquet there; `clipcap prepare --out FOLDER` makes it", path.display());
        }
        Ok(Self { captions })
    }

    pub fn fingerprint(&self) -> Result<String> {
        let hash = ContentHash::of_file(&self.captions).with_context(|| format!("cannot read {}", self.captions.display()))?;
        Ok(hash.to_string())
    }

    fn rows(&self) -> Result<impl Iterator<Item = Result<DatasetRow>> + '_> {
        Ok(table::rows(&self.captions, Some(CAPTIONS_FORMAT), |batch, _| self.rows_of(batch))?)
    }

    fn rows_of(&self, batch: &RecordBatch) -> Result<Vec<DatasetRow>> {
        let text = |name| table::column::<StringArray>(batch, name, &self.captions);
        let (image_ids, captions, splits) = (text("image_id")?, text("caption")?, text("split")?);
        let caption_ids = table::column::<Int32Array>(batch, "caption_id", &self.captions)?;
        let row = |row: usize| DatasetRow {
            image_id: image_ids.value(row).to_string(),
            caption_id: caption_ids.value(row),
            caption: captions.value(row).to_string(),
            split: splits.is_valid(row).then(|| splits.value(row).to_string()),
        };
        Ok((0..batch.num_rows()).map(row).collect())
    }

    /// What people wrote of each of these images, whichever split it is in.
    pub fn captions_of(&self, image_ids: &[String]) -> Result<Vec<Vec<String>>> {
        let places: HashMap<&str, usize> = image_ids.iter().enumerate().map(|(at, id)| (id.as_str(), at)).collect();
        let mut captions = vec![vec![]; image_ids.len()];
        if places.is_empty() {
            return Ok(captions);
        }
        for row in self.rows()? {
            let DatasetRow { image_id, caption, .. } = row?;
            if let Some(&at) = places.get(image_id.as_str()) {
                captions[at].push(caption);
            }
        }
        Ok(captions)
    }

    /// Which images of a dataset without a dev split are held out: the first by a hash of seed and id, until `dev_size` captions are
    /// together. No image is in both splits, and adding images moves few.
    fn held_out(&self, dev_size: Option<u64>, seed: u64) -> Result<HashSet<String>> {
        let mut counts: HashMap<String, u64> = HashMap::new();
        let mut total = 0;
        for row in self.rows()? {
            let DatasetRow { image_id, split, .. } = row?;
            match split.as_deref() {
                Some("dev") => return Ok(HashSet::new()),
                None | Some("train") => {
                    total += 1;
                    *counts.entry(image_id).or_default() += 1;
                }
                Some(_) => {}
            }
        }
        let wanted = dev_size.unwrap_or_else(|| 1000.min(total / 20));
        if wanted > 0 && wanted >= total {
            bail!("--dev-size {wanted}: the dataset has {total} captions to train on, and some must be left");
        }
        let mut images: Vec<(u64, String, u64)> =
            counts.into_iter().map(|(id, count)| (key(&[seed, name_key(&id)]), id, count)).collect();
        images.sort();
        let mut held = HashSet::new();
        let mut captions = 0;
        for (_, image_id, count) in images {
            if captions >= wanted || captions + count >= total {
                break;
            }
            captions += count;
            held.insert(image_id);
        }
        Ok(held)
    }
}

/// The corpus of a run, made unless the run's folder holds it.
pub fn corpus(
    folder: &Path,
    dataset: &Dataset,
    inputs: &ImageInputs,
    fingerprints: &Fingerprints,
    bundle: &Bundle,
    recipe: &Recipe,
    reporter: &dyn Reporter,
) -> Result<Corpus> {
    let framing = framing(recipe, bundle);
    let mut made_of = json!({
        "dataset": fingerprints.dataset,
        "embeddings": fingerprints.embeddings,
        "vocabulary": bundle.vocabulary()?.fingerprint(),
        "lower_case": bundle.lower_case(),
        "objective": recipe.objective,
        "max_tokens": framing.max_tokens,
        "captions_per_row": framing.captions_per_row,
        "normalize": recipe.normalize_prefix,
        "dev_size": recipe.dev_size,
        "seed": recipe.seed,
    });
    let endings = &bundle.manifest().tokenizer.endings;
    if !endings.is_default() || framing.prompt.is_some() {
        made_of["words"] = json!({"endings": endings, "prompt": framing.prompt});
    }
    let fingerprint = ContentHash::of(made_of.to_string()).to_string();
    if let Some(corpus) = Corpus::open(folder, &fingerprint)? {
        reporter.detail("captions are tokenized already");
        return Ok(corpus);
    }
    reporter.note("tokenizing captions");
    let tokenizer = bundle.tokenizer()?;
    let held_out = dataset.held_out(recipe.dev_size, recipe.seed)?;
    let captions = dataset.rows()?.filter_map(|row| {
        let row = match row {
            Ok(row) => row,
            Err(error) => return Some(Err(error)),
        };
        let split = match row.split.as_deref() {
            Some("dev") => "dev",
            None | Some("train") if held_out.contains(&row.image_id) => "dev",
            None | Some("train") => "train",
            Some(_) => return None,
        };
        Some(Ok(CaptionRow { image_id: row.image_id, caption_id: row.caption_id, caption: row.caption, split: split.into() }))
    });
    let tokenized = Tokenized::new(captions, &tokenizer, &framing)?;
    let report = inputs.join(tokenized, recipe, folder, &fingerprint, reporter)?;
    let what = if recipe.objective == Objective::Contrastive { "readable image" } else { "embedding" };
    if report.captions_without_image > 0 {
        let (count, some) = (report.captions_without_image, report.examples.join(", "));
        reporter.warn(&format!(
            "{count} captions without {what} are left out (image_id {some}{})",
            if report.examples.len() > 2 { ", ..." } else { "" }
        ));
    }
    if report.repeated_images > 0 {
        reporter.warn(&format!("{} images have more than one {what}; the first is used", report.repeated_images));
    }
    Corpus::open(folder, &fingerprint)?.context("the corpus that was just written is not there")
}
