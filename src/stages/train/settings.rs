//! What a training run is asked to do, and the record of it in `config.toml`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::files::{self, ContentHash};
use crate::models::Bundle;
use crate::table::{self, FORMAT_KEY};
use crate::training::artifacts::Trained;
use crate::training::lora::Lora;
use crate::training::objective::Objective;
use crate::training::optimizer::AdamW;
use crate::training::schedule::Decay;

const FORMAT: &str = "training/1";

/// Everything `clipcap train` is told. [`Recipe`] holds what decides the result.
#[derive(Debug, Clone)]
pub struct TrainSettings {
    pub dataset: PathBuf,
    /// Of the images of the dataset; captions are learned from them.
    pub embeddings: Option<PathBuf>,
    /// Folders of the dataset's images, for the contrastive objective; none where the dataset stores them.
    pub images: Vec<PathBuf>,
    pub model: PathBuf,
    pub out: PathBuf,
    pub recipe: Recipe,
    pub upkeep: Upkeep,
    /// Begin anew where `out` holds another run.
    pub overwrite: bool,
}

/// What decides the numbers that come out. A run goes on only with the recipe it began with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    #[serde(default, skip_serializing_if = "is_default")]
    pub objective: Objective,
    pub finetune_gpt2: bool,
    pub epochs: u64,
    /// Ends the run early, and the schedule with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    pub batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub learning_rate: f64,
    pub schedule: Decay,
    /// Not given: 5000, and at most a tenth of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    pub weight_decay: f64,
    pub no_decay_norm_bias: bool,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// Stands for every probability of the configurations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    pub label_smoothing: f32,
    pub normalize_prefix: bool,
    /// Text behind the prefix that captions go on from; not given: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Positions, prefix included; longer captions are cut. Not given: 100, or all that GPT2 has where it has fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_len: Option<usize>,
    pub loss_on_padding: bool,
    /// Captions of an image that a language model reads one after the other in a row.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub captions_per_row: usize,
    /// Captions held out, whole images at a time, where the dataset has no dev split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev_size: Option<u64>,
    /// Steps between evaluations; an evaluation ends each pass where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_steps: Option<u64>,
    /// What makes an evaluation the best. Not given: the dev loss, and CIDEr in self-critical training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_by: Option<BestBy>,
    /// Dev images that are captioned and scored at each evaluation.
    #[serde(default = "default_cider_images", skip_serializing_if = "is_default_cider_images")]
    pub cider_images: usize,
    /// Captions of an image that self-critical training samples and compares.
    #[serde(default = "default_samples", skip_serializing_if = "is_default_samples")]
    pub samples: usize,
    /// Evaluations without a better one that end the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
    pub seed: u64,
    /// Layers compute again in the backward pass what they computed before.
    #[serde(default, skip_serializing_if = "is_default")]
    pub recompute: bool,
    /// Adapters of a frozen decoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
}

impl Recipe {
    /// What is trained.
    pub fn trained(&self) -> Trained {
        let Self { objective, finetune_gpt2, recompute, dropout, label_smoothing, .. } = *self;
        Trained { objective, finetune_gpt2, lora: self.lora.clone(), recompute, dropout, label_smoothing }
    }

    pub fn adamw(&self) -> AdamW {
        AdamW { beta1: self.beta1, beta2: self.beta2, eps: self.eps, weight_decay: self.weight_decay }
    }

    /// Caption tokens that `max_len` leaves room for.
    pub fn max_tokens(&self, bundle: &Bundle) -> usize {
        let max_len = self.max_len.unwrap_or(bundle.decoder_sizes().n_positions);
        max_len.saturating_sub(self.objective.prefix_len(bundle.mapper_config())).max(1)
    }

    /// Ids of the prompt.
    pub fn prompt_ids(&self, bundle: &Bundle) -> Result<Vec<u32>> {
        match self.prompt.as_deref().filter(|_| self.objective.is_of_embeddings()) {
            Some(prompt) => Ok(bundle.tokenizer()?.encode_prompt(prompt)?),
            None => Ok(vec![]),
        }
    }

    /// What makes an evaluation the best, where dev images are captioned or not.
    pub fn best_by(&self) -> BestBy {
        let usual = if self.objective == Objective::Scst && self.cider_images > 0 { BestBy::Cider } else { BestBy::Loss };
        self.best_by.unwrap_or(usual)
    }

    /// Steps of a run of `total` in which the learning rate rises.
    pub fn warmup_of(&self, total: u64) -> u64 {
        self.warmup_steps.unwrap_or((total / 10).min(DEFAULT_WARMUP_STEPS))
    }

    /// Says what is wrong with a value, by its flag.
    pub fn validate(&self) -> Result<(), String> {
        let check = |holds: bool, problem: &str| if holds { Ok(()) } else { Err(problem.to_string()) };
        check(self.batch_size > 0, "--batch-size must be at least 1")?;
        check(self.gradient_accumulation_steps > 0, "--gradient-accumulation-steps must be at least 1")?;
        check(self.epochs > 0 && self.max_steps != Some(0), "--epochs and --max-steps must be at least 1")?;
        check(self.eval_steps != Some(0) && self.patience != Some(0), "--eval-steps and --patience must be at least 1")?;
        check(self.learning_rate.is_finite() && self.learning_rate >= 0.0, "--lr must be a number of at least 0")?;
        check(self.weight_decay.is_finite() && self.weight_decay >= 0.0, "--weight-decay must be a number of at least 0")?;
        check((0.0..1.0).contains(&self.beta1) && (0.0..1.0).contains(&self.beta2), "--beta1 and --beta2 lie in [0, 1)")?;
        check(self.eps.is_finite() && self.eps > 0.0, "--eps must be above 0")?;
        check(self.max_grad_norm.is_none_or(|norm| norm.is_finite() && norm > 0.0), "--max-grad-norm must be above 0")?;
        check(self.dropout.is_none_or(|p| (0.0..1.0).contains(&p)), "--dropout lies in [0, 1)")?;
        check((0.0..1.0).contains(&self.label_smoothing), "--label-smoothing lies in [0, 1)")?;
        let pairs = self.objective == Objective::Contrastive;
        let of_tokens = self.label_smoothing > 0.0 || self.loss_on_padding || self.dropout.is_some_and(|p| p > 0.0);
        check(
            !(pairs && of_tokens),
            "--label-smoothing, --loss-on-padding and --dropout have no meaning with --objective contrastive",
        )?;
        check(
            pairs <= (self.batch_size > 1),
            "--objective contrastive compares the pairs of a batch: --batch-size must be at least 2",
        )?;
        check(
            !self.normalize_prefix || self.objective.is_of_embeddings(),
            "--normalize-prefix is about embeddings, which only --objective caption and scst learn from",
        )?;
        check(
            self.lora.is_none() || (self.objective == Objective::Caption && !self.finetune_gpt2),
            "--lora-rank trains adapters of a decoder that stays as it is: leave out --finetune-gpt2, and use --objective caption",
        )?;
        let is_scst = self.objective == Objective::Scst;
        check(
            is_scst || self.samples == DEFAULT_SAMPLES,
            "--samples is how many captions of an image --objective scst compares, and has no meaning without it",
        )?;
        check(
            !is_scst || self.samples >= 2 && self.batch_size.is_multiple_of(self.samples),
            "--objective scst compares the samples of an image: --samples must be at least 2, and --batch-size a multiple of it",
        )?;
        check(
            !(is_scst && (self.label_smoothing > 0.0 || self.loss_on_padding)),
            "--label-smoothing and --loss-on-padding have no meaning with --objective scst",
        )?;
        check(
            self.best_by != Some(BestBy::Cider) || self.objective.is_of_embeddings() && self.cider_images > 0,
            "--best-by cider needs captions of dev images: use it with --objective caption or scst, and --cider-images above 0",
        )?;
        let one_row = self.captions_per_row == 1 || self.objective == Objective::LanguageModel;
        check(
            self.captions_per_row > 0 && one_row,
            "--captions-per-row is at least 1, and above it only with --objective language-model",
        )
    }
}

/// What makes an evaluation the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BestBy {
    /// The lowest dev loss.
    Loss,
    /// The highest CIDEr of the dev images that are captioned.
    Cider,
}

/// Dev images that are captioned and scored where nothing else is asked for.
pub const DEFAULT_CIDER_IMAGES: usize = 200;
/// Captions of an image in self-critical training.
pub const DEFAULT_SAMPLES: usize = 5;

fn default_cider_images() -> usize {
    DEFAULT_CIDER_IMAGES
}

fn is_default_cider_images(value: &usize) -> bool {
    *value == DEFAULT_CIDER_IMAGES
}

fn default_samples() -> usize {
    DEFAULT_SAMPLES
}

fn is_default_samples(value: &usize) -> bool {
    *value == DEFAULT_SAMPLES
}

/// The original's.
const DEFAULT_WARMUP_STEPS: u64 = 5000;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn one() -> usize {
    1
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

/// How a run is looked after; none of it changes its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upkeep {
    /// Steps between checkpoints.
    pub save_steps: u64,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// Images that are captioned at each evaluation.
    pub sample_images: usize,
}

/// What the run began with, by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprints {
    pub model: String,
    pub dataset: String,
    /// Of embeddings or images, as the objective needs; empty where it needs neither.
    pub embeddings: String,
}

/// Where the numbers are computed; another device rounds differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Computed {
    pub device: String,
    pub precision: String,
}

/// `config.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    #[serde(rename = "clipcap.format")]
    pub format: String,
    pub inputs: Inputs,
    pub fingerprints: Fingerprints,
    pub recipe: Recipe,
    pub upkeep: Upkeep,
    pub computed: Computed,
}

/// Paths as they were given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    pub dataset: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embeddings: Option<String>,
    pub model: String,
}

impl Config {
    pub fn new(settings: &TrainSettings, fingerprints: Fingerprints, computed: Computed) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Self {
            format: FORMAT.into(),
            inputs: Inputs {
                dataset: text(&settings.dataset),
                embeddings: settings.embeddings.as_deref().map(text),
                model: text(&settings.model),
            },
            fingerprints,
            recipe: settings.recipe.clone(),
            upkeep: settings.upkeep,
            computed,
        }
    }

    /// Reads a run's `config.toml`; None where there is none.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let text = files::if_there(std::fs::read_to_string(path)).with_context(|| format!("cannot read {}", path.display()))?;
        let Some(text) = text else { return Ok(None) };
        let value: toml::Table = toml::from_str(&text).with_context(|| format!("{}: not TOML", path.display()))?;
        let Some(format) = value.get(FORMAT_KEY).and_then(|format| format.as_str()) else {
            bail!("{}: not the record of a training run", path.display());
        };
        table::check_format(path, format, FORMAT)?;
        Ok(Some(toml::from_str(&text).with_context(|| format!("{}: not the record of a training run", path.display()))?))
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string_pretty(self).context("settings do not fit TOML")?;
        files::write_atomic(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A hash of all that decides the numbers.
    pub fn fingerprint(&self) -> String {
        let parts = serde_json::json!({"fingerprints": self.fingerprints, "recipe": self.recipe, "computed": self.computed});
        ContentHash::of(parts.to_string()).to_string()
    }

    /// What differs between two runs and decides their numbers, as `name: theirs, ours`.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let flat = |config: &Self| {
            let sections = serde_json::json!({
                "data": config.fingerprints,
                "recipe": config.recipe,
                "computed": config.computed,
            });
            let mut flat = std::collections::BTreeMap::new();
            for (section, values) in sections.as_object().into_iter().flatten() {
                for (name, value) in values.as_object().into_iter().flatten() {
                    flat.insert(format!("{section}.{name}"), value.to_string());
                }
            }
            flat
        };
        let (ours, theirs) = (flat(self), flat(other));
        let names: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let unset = "(unset)".to_string();
        names
            .into_iter()
            .filter(|name| ours.get(*name) != theirs.get(*name))
            .map(|name| {
                let [a, b] = [&ours, &theirs].map(|side| side.get(name).unwrap_or(&unset));
                format!("{name}: {a} now, {b} then")
            })
            .collect()
    }
}

/// The same for artifacts written without data.
pub fn artifacts_fingerprint(bundle: &Bundle, recipe: &Recipe) -> String {
    ContentHash::of(serde_json::json!({"model": bundle.fingerprint(), "recipe": recipe}).to_string()).to_string()
}
