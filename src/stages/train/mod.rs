//! `clipcap train`: a mapper (and GPT2) learns captions from embeddings, CLIP learns which captions belong to which images, or GPT2
//! learns captions alone.

use std::path::Path;

use anyhow::{Context, Error, Result, bail};

mod advice;
mod backend;
mod beside;
mod curve;
mod data;
mod folder;
mod logs;
mod page;
mod pixels;
mod run;
mod samples;
mod scst;
mod settings;
mod summary;

pub use settings::{BestBy, DEFAULT_CIDER_IMAGES, DEFAULT_SAMPLES, Recipe, TrainSettings, Upkeep};
pub use summary::Summary;

use crate::files::{name_of, paths_if_there};
use crate::models::Bundle;
use crate::pipeline::{Interrupt, Reporter, WorkLock};
use crate::runtime::Runtime;
use crate::stages::Outcome;
use crate::training::objective::Objective;
use beside::ImageInputs;
use data::Dataset;
use folder::RunFolder;
use run::{Data, Run};
use settings::{Computed, Config, Fingerprints};

/// Trains until the run is finished or interrupted. A run of the same settings in the same folder is continued from its last
/// checkpoint.
pub fn train(
    settings: &TrainSettings,
    runtime: &Runtime,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<(Outcome, Summary)> {
    let bundle = Bundle::open(&settings.model)?;
    bundle.check_bytes(&["clip", "gpt2", "mapper"])?;
    let mut settings = settings.clone();
    settings.recipe.normalize_prefix |= bundle.normalized();
    settings.recipe.prompt = prompt(&settings.recipe, &bundle);
    settings.recipe.max_len = Some(max_len(&settings.recipe, &bundle)?.map_err(Error::msg)?);
    let bundle = bundle.with_normalized(settings.recipe.normalize_prefix);
    let bundle = match settings.recipe.objective {
        Objective::Caption | Objective::Scst => bundle.with_prompt(settings.recipe.prompt.clone()),
        _ => bundle,
    };
    let dataset = Dataset::open(&settings.dataset)?;
    let inputs = ImageInputs::open(&settings, &bundle)?;
    let fingerprints =
        Fingerprints { model: bundle.fingerprint().into(), dataset: dataset.fingerprint()?, embeddings: inputs.fingerprint()? };
    let computed = Computed { device: runtime.device().to_string(), precision: runtime.precision().to_string() };
    let config = Config::new(&settings, fingerprints, computed);
    refuse_foreign(&settings.out)?;
    let lock = WorkLock::acquire(&settings.out)?;
    lock.tell(reporter);
    let folder = RunFolder::new(&settings.out);
    let checkpoints = folder.claim(&config, settings.overwrite, reporter)?;
    if !folder.has_artifacts_of(&config.fingerprint()) {
        reporter.detail("writing training artifacts");
        backend::write_artifacts(&folder, &bundle, &settings.recipe, &config.fingerprint())?;
    }
    let corpus = data::corpus(&folder.corpus(), &dataset, &inputs, &config.fingerprints, &bundle, &settings.recipe, reporter)?;
    if corpus.train.is_empty() {
        bail!("{}: no training captions to learn from", settings.dataset.display());
    }
    let data = Data { corpus, images: inputs.images(), dataset: &dataset };
    Run::start(&config, folder, bundle, data, runtime, reporter, &checkpoints)?.finish(interrupt)
}

/// Writes a model's training artifacts into `out`/artifacts and nothing else. Returns the number of trainable parameters.
pub fn write_artifacts(model: &Path, out: &Path, recipe: &Recipe, overwrite: bool) -> Result<usize> {
    let bundle = Bundle::open(model)?;
    refuse_foreign(out)?;
    let _lock = WorkLock::acquire(out)?;
    let folder = RunFolder::new(out);
    folder.claim_for_artifacts(overwrite)?;
    let fingerprint = settings::artifacts_fingerprint(&bundle, recipe);
    Ok(backend::write_artifacts(&folder, &bundle, recipe, &fingerprint)?.numel())
}

/// The text that captions go on from: the recipe's, else the model's; none of an empty one.
fn prompt(recipe: &Recipe, bundle: &Bundle) -> Option<String> {
    let given = recipe.prompt.clone().or_else(|| bundle.prompt().map(str::to_owned));
    given.filter(|prompt| recipe.objective.is_of_embeddings() && !prompt.trim().is_empty())
}

/// Positions of a sequence, where the prefix (or `[CLS]`) and the prompt fit and the model has as many; else what is wrong with `--max-len`.
pub fn max_len(recipe: &Recipe, bundle: &Bundle) -> Result<Result<usize, String>> {
    let recipe = &Recipe { prompt: prompt(recipe, bundle), ..recipe.clone() };
    let prefix_len = recipe.objective.prefix_len(bundle.mapper_config()).max(1) + recipe.prompt_ids(bundle)?.len();
    let (reader, positions) = match (recipe.objective, bundle.clip_config().clip_text()) {
        (Objective::Contrastive, Some(text)) => ("the text tower", text.max_position_embeddings),
        _ => ("the decoder", bundle.decoder_sizes().n_positions),
    };
    let max_len = recipe.max_len.unwrap_or(positions.min(100));
    if max_len <= prefix_len || max_len > positions {
        return Ok(Err(format!(
            "--max-len {max_len} must be above the {prefix_len} positions before a caption and at most {reader}'s {positions}"
        )));
    }
    Ok(Ok(max_len))
}

/// A folder that holds files and is no run stays untouched.
fn refuse_foreign(out: &Path) -> Result<()> {
    if out.is_file() {
        bail!("{} is a file, and --out must be a folder: choose another --out", out.display());
    }
    let paths = paths_if_there(out).with_context(|| format!("cannot list {}", out.display()))?;
    let ours = ["config.toml", "artifacts", "lock", "corpus"];
    if paths.is_empty() || paths.iter().any(|path| ours.contains(&name_of(path))) {
        return Ok(());
    }
    bail!("{} has files that are not a training run: choose another --out", out.display());
}
