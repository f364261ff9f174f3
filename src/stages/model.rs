//! `clipcap model`: bundles from published weights or from nothing, and what a bundle holds.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::models::Bundle;
use crate::models::bundle::{self, BundlePlan, Configs, PartPlan, Source};
use crate::models::config::{BertConfig, Gpt2Config, MapperConfig, MapperKind};
use crate::models::import::{CheckpointSource, ClipSource, Gpt2Source, gpt2_preset};
use crate::models::part::Part;
use crate::models::tensors::mapper_tensors;
use crate::models::weights::WeightSource;
use crate::pipeline::Reporter;

/// Settings of `model import`.
pub struct ImportSettings {
    /// An OpenAI checkpoint, or a Hugging Face folder with weights.
    pub clip: PathBuf,
    /// A folder with config.json and vocab.txt; its weights serve where the checkpoint holds no GPT2.
    pub gpt2: PathBuf,
    pub checkpoint: PathBuf,
    pub bert_config: Option<PathBuf>,
    /// Whether the mapper was trained on embeddings of unit length.
    pub normalized: bool,
    pub out: PathBuf,
    pub overwrite: bool,
}

/// Settings of `model init`.
pub struct InitSettings {
    /// A preset, an OpenAI checkpoint, or a Hugging Face folder with or without weights.
    pub clip: PathBuf,
    /// A preset, or a folder with config.json, with or without vocab.txt and weights.
    pub gpt2: PathBuf,
    pub mapper: MapperKind,
    pub prefix_len: usize,
    pub bert_config: Option<PathBuf>,
    pub normalized: bool,
    /// Whether a folder without weights gets random ones.
    pub random: bool,
    pub seed: u64,
    pub out: PathBuf,
    pub overwrite: bool,
}

/// Makes a bundle of a CLIP, a GPT2 and a ClipCap checkpoint.
pub fn import(settings: &ImportSettings, reporter: &dyn Reporter) -> anyhow::Result<Bundle> {
    let clip = ClipSource::open(&settings.clip).context("cannot import CLIP")?;
    let gpt2 = Gpt2Source::open(&settings.gpt2, false).context("cannot import GPT2")?;
    let checkpoint = CheckpointSource::open(&settings.checkpoint).context("cannot import the checkpoint")?;
    notes(&clip, &gpt2, reporter);
    if clip.weights.is_none() {
        bail!("{} holds no CLIP weights; `clipcap model init --random` makes random ones", settings.clip.display());
    }
    let kind = checkpoint.mapper_kind()?;
    let bert = match (&settings.bert_config, kind) {
        (Some(path), MapperKind::Bert) => Some(BertConfig::read(path)?),
        (Some(_), MapperKind::Mlp) => {
            reporter.note("the checkpoint holds an MLP mapper; --bert-config is ignored");
            None
        }
        (None, _) => None,
    };
    let mapper = checkpoint.mapper_config(clip.config.projection_dim, gpt2.config.n_embd, bert.as_ref())?;
    let mapper_part =
        PartPlan::New { part: checkpoint.mapper_part(&mapper)?, source: imported(&settings.checkpoint, checkpoint.weights()) };
    let gpt2_part = if checkpoint.has_gpt2() {
        let part = checkpoint.gpt2_part(&gpt2.config)?;
        PartPlan::New { part, source: imported(&settings.checkpoint, checkpoint.weights()) }
    } else if let Some(weights) = &gpt2.weights {
        reporter.note("the checkpoint holds no GPT2; the folder's weights are taken");
        PartPlan::New { part: gpt2.part(0)?, source: imported(&settings.gpt2, weights) }
    } else {
        bail!("neither {} nor {} holds GPT2's weights", settings.checkpoint.display(), settings.gpt2.display());
    };
    let clip_part = clip_part(&clip, &settings.clip, 0)?;
    let parts = [clip_part, mapper_part, gpt2_part];
    finish(&settings.out, settings.overwrite, &clip, &gpt2, mapper, settings.normalized, parts)
}

/// Makes a bundle with a new mapper. CLIP and GPT2 keep their weights where the sources have any and get new ones otherwise.
pub fn init(settings: &InitSettings, reporter: &dyn Reporter) -> anyhow::Result<Bundle> {
    let clip = ClipSource::open(&settings.clip).context("cannot read CLIP")?;
    let gpt2 = Gpt2Source::open(&settings.gpt2, true).context("cannot read GPT2")?;
    notes(&clip, &gpt2, reporter);
    let gpt2_is_preset = gpt2_preset(&settings.gpt2).is_some();
    for (given, has_weights, is_preset) in
        [(&settings.clip, clip.weights.is_some(), clip.is_preset), (&settings.gpt2, gpt2.weights.is_some(), gpt2_is_preset)]
    {
        if !(has_weights || is_preset || settings.random) {
            bail!("{} holds no weights; --random makes random ones from its config.json", given.display());
        }
    }
    let (clip_size, n_embd) = (clip.config.projection_dim, gpt2.config.n_embd);
    let mapper = match (settings.mapper, &settings.bert_config) {
        (MapperKind::Mlp, given) => {
            if given.is_some() {
                reporter.note("an MLP mapper was asked for; --bert-config is ignored");
            }
            MapperConfig::mlp(clip_size, n_embd, settings.prefix_len)
        }
        (MapperKind::Bert, given) => {
            let bert = match given {
                Some(path) => BertConfig::read(path)?,
                None => default_bert(&gpt2.config, settings.prefix_len),
            };
            MapperConfig::bert(clip_size, n_embd, settings.prefix_len, bert)
        }
    };
    mapper.validate(settings.bert_config.as_deref().unwrap_or(&settings.out))?;
    let mapper_part = PartPlan::New {
        part: Part::random(mapper_tensors(&mapper), settings.seed),
        source: Source::Random { seed: settings.seed },
    };
    let gpt2_source = source_of(&settings.gpt2, gpt2.weights.as_ref(), settings.seed);
    let gpt2_part = PartPlan::New { part: gpt2.part(settings.seed)?, source: gpt2_source };
    let clip_part = clip_part(&clip, &settings.clip, settings.seed)?;
    let parts = [clip_part, mapper_part, gpt2_part];
    finish(&settings.out, settings.overwrite, &clip, &gpt2, mapper, settings.normalized, parts)
}

/// A BERT like bert-base, as wide as GPT2 and as deep (12 layers at most).
fn default_bert(gpt2: &Gpt2Config, prefix_len: usize) -> BertConfig {
    BertConfig {
        vocab_size: gpt2.vocab_size,
        hidden_size: gpt2.n_embd,
        num_hidden_layers: gpt2.n_layer.min(12),
        num_attention_heads: gpt2.n_head,
        intermediate_size: 4 * gpt2.n_embd,
        max_position_embeddings: BertConfig::default().max_position_embeddings.max(2 * prefix_len),
        ..BertConfig::default()
    }
}

fn notes(clip: &ClipSource, gpt2: &Gpt2Source, reporter: &dyn Reporter) {
    clip.notes.iter().chain(&gpt2.notes).for_each(|note| reporter.note(note));
}

fn clip_part<'a>(clip: &'a ClipSource, given: &Path, seed: u64) -> anyhow::Result<PartPlan<'a>> {
    Ok(PartPlan::New { part: clip.part(seed)?, source: source_of(given, clip.weights.as_ref(), seed) })
}

fn source_of(given: &Path, weights: Option<&WeightSource>, seed: u64) -> Source {
    weights.map_or(Source::Random { seed }, |weights| imported(given, weights))
}

/// The name of what was given, and of the file inside it where that was a folder: never an absolute path.
fn imported(given: &Path, weights: &WeightSource) -> Source {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file = if given.is_dir() { format!("{}/{}", name(given), name(weights.path())) } else { name(given) };
    Source::Imported { file, format: weights.format().to_string() }
}

fn finish(
    out: &Path,
    overwrite: bool,
    clip: &ClipSource,
    gpt2: &Gpt2Source,
    mapper: MapperConfig,
    normalized: bool,
    [clip_part, mapper_part, gpt2_part]: [PartPlan<'_>; 3],
) -> anyhow::Result<Bundle> {
    let plan = BundlePlan {
        configs: Configs {
            clip: clip.config.clone(),
            preprocessor: clip.preprocessor.clone(),
            mapper,
            gpt2: gpt2.config.clone(),
        },
        normalized,
        vocabulary: gpt2.vocabulary.clone(),
        lower_case: gpt2.lower_case,
        clip: clip_part,
        mapper: mapper_part,
        gpt2: gpt2_part,
        clip_files: clip.kept_files.clone(),
        gpt2_files: gpt2.kept_files.clone(),
    };
    bundle::build(out, overwrite, &plan).with_context(|| format!("cannot make the bundle {}", out.display()))
}

/// What a bundle holds, as a table for people and as JSON. With `verify`, every weight is read and compared with its fingerprint.
pub fn inspect(folder: &Path, verify: bool) -> anyhow::Result<(String, serde_json::Value)> {
    let bundle = Bundle::open(folder)?;
    if verify {
        bundle.verify()?;
    }
    let mut json = serde_json::to_value(bundle.manifest())?;
    if let Some(json) = json.as_object_mut() {
        json.insert("verified".into(), verify.into());
    }
    Ok((describe(&bundle, verify), json))
}

/// The table `model inspect` prints.
pub fn describe(bundle: &Bundle, verified: bool) -> String {
    let manifest = bundle.manifest();
    let header = ["part", "parameters", "dtype", "bytes", "fingerprint", "source"].map(String::from);
    let rows = manifest.parts.iter().map(|(name, record)| {
        let facts = &record.facts;
        let short = facts.fingerprint.chars().take(12).collect();
        let (parameters, bytes) = (grouped(facts.parameters), grouped(facts.bytes));
        [name.clone(), parameters, facts.dtype.clone(), bytes, short, record.source.to_string()]
    });
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(rows).collect();
    let widths: Vec<usize> = (0..6).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let (width, gap) = (widths[column], if column == 5 { "\n" } else { "  " });
            // Numbers stand to the right.
            match column {
                1 | 3 => text += &format!("{cell:>width$}{gap}"),
                5 => text += &format!("{cell}{gap}"),
                _ => text += &format!("{cell:<width$}{gap}"),
            }
        }
    }
    let clip = bundle.clip_config();
    let gpt2 = bundle.gpt2_config();
    let normalized = if bundle.normalized() { ", embeddings of unit length" } else { "" };
    text += &format!(
        "\nimage    {family}: {side} x {side}, {layers}, embeddings of {dim}\n",
        family = clip.family(),
        side = clip.vision_config.image_size(),
        layers = clip.vision_config.tower().layers(),
        dim = clip.projection_dim,
    );
    text += &format!("mapper   {}, prefix of {}{normalized}\n", bundle.mapper_kind(), manifest.prefix_len);
    text += &format!(
        "GPT2     {} layers of {}, {} heads, {} positions, vocabulary of {}{}\n",
        gpt2.n_layer,
        gpt2.n_embd,
        gpt2.n_head,
        gpt2.n_positions,
        manifest.tokenizer.entries,
        if bundle.lower_case() { ", lower case" } else { "" },
    );
    if let Some(int8) = &manifest.int8 {
        text += &format!("int8     {} bytes, {}\n", grouped(int8.bytes), &int8.fingerprint[..12.min(int8.fingerprint.len())]);
    }
    text += &format!("model    {}{}\n", manifest.fingerprint, if verified { ", verified" } else { "" });
    text
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
