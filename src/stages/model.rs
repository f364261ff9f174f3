//! `clipcap model`: bundles from published weights or from nothing, and what a bundle holds.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::models::Bundle;
use crate::models::bundle::{self, BundlePlan, Configs, PartPlan, Provenance};
use crate::models::config::{BertConfig, DecoderConfig, MapperConfig, MapperKind, TransformerConfig};
use crate::models::decoders::{Sizes, architecture};
use crate::models::import::{CheckpointSource, ClipSource, DecoderSource, ORIGINAL_HEADS, decoder_preset};
use crate::models::part::Part;
use crate::models::tensors::mapper_tensors;
use crate::models::weights::WeightSource;
use crate::pipeline::Reporter;
use crate::text::{Endings, Vocabulary};

/// Settings of `model import`.
#[derive(Default)]
pub struct ImportSettings {
    /// An OpenAI checkpoint, or a Hugging Face folder with weights.
    pub clip: PathBuf,
    /// A decoder's folder, with config.json and its vocabulary; its weights serve where the checkpoint holds no decoder.
    pub decoder: PathBuf,
    pub checkpoint: PathBuf,
    pub bert_config: Option<PathBuf>,
    /// Whether the mapper was trained on embeddings of unit length.
    pub normalized: bool,
    /// What ends a caption, where it is not what the model's kind says.
    pub stop_token: Option<String>,
    /// Text behind the prefix, which captions go on from.
    pub prompt: Option<String>,
    pub out: PathBuf,
    pub overwrite: bool,
}

/// Settings of `model init`.
pub struct InitSettings {
    /// A preset, an OpenAI checkpoint, or a Hugging Face folder with or without weights.
    pub clip: PathBuf,
    /// A preset, or a folder with config.json, with or without vocabulary and weights.
    pub decoder: PathBuf,
    pub mapper: MapperKind,
    pub prefix_len: usize,
    pub bert_config: Option<PathBuf>,
    /// Positions that a transformer mapper projects an embedding to; as many as `prefix_len` where it is not given.
    pub clip_length: Option<usize>,
    /// Layers of a transformer mapper.
    pub num_layers: usize,
    pub normalized: bool,
    /// Whether a folder without weights gets random ones.
    pub random: bool,
    pub stop_token: Option<String>,
    pub prompt: Option<String>,
    pub seed: u64,
    pub out: PathBuf,
    pub overwrite: bool,
}

/// Makes a bundle of a CLIP, a decoder and a ClipCap checkpoint.
pub fn import(settings: &ImportSettings, reporter: &dyn Reporter) -> anyhow::Result<Bundle> {
    let clip = ClipSource::open(&settings.clip).context("cannot import CLIP")?;
    let mut decoder = DecoderSource::open(&settings.decoder, false).context("cannot import the decoder")?;
    let checkpoint = CheckpointSource::open(&settings.checkpoint).context("cannot import the checkpoint")?;
    if checkpoint.decoder_scope().is_some() {
        let config = checkpoint.decoder_config(&decoder.config)?;
        decoder = decoder.with_config(config);
    }
    notes(&clip, &decoder, reporter);
    if clip.weights.is_none() {
        bail!("{} holds no CLIP weights; `clipcap model init --random` makes random ones", settings.clip.display());
    }
    let kind = checkpoint.mapper_kind()?;
    let bert = match (&settings.bert_config, kind) {
        (Some(path), MapperKind::Bert) => Some(BertConfig::read(path)?),
        (Some(_), kind) => {
            let an = if kind == MapperKind::Mlp { "an MLP" } else { "a transformer" };
            reporter.note(&format!("the checkpoint holds {an} mapper; --bert-config is ignored"));
            None
        }
        (None, _) => None,
    };
    let mapper =
        checkpoint.mapper_config(clip.config.projection_dim, architecture(&decoder.config).sizes().n_embd, bert.as_ref())?;
    let mapper_part =
        PartPlan::New { part: checkpoint.mapper_part(&mapper)?, source: imported(&settings.checkpoint, checkpoint.weights()) };
    let inside = checkpoint.decoder_scope();
    let decoder_part = if inside.is_some() {
        let part = checkpoint.decoder_part(&decoder.config)?;
        PartPlan::New { part, source: imported(&settings.checkpoint, checkpoint.weights()) }
    } else if let Some(weights) = &decoder.weights {
        reporter.note("the checkpoint holds no decoder; the folder's weights are taken");
        PartPlan::New { part: decoder.part(0)?, source: imported(&settings.decoder, weights) }
    } else {
        bail!("neither {} nor {} holds the decoder's weights", settings.checkpoint.display(), settings.decoder.display());
    };
    let words = Words::new(&decoder, kind, inside, &settings.stop_token, &settings.prompt);
    let clip_part = clip_part(&clip, &settings.clip, 0)?;
    let parts = [clip_part, mapper_part, decoder_part];
    finish(&settings.out, settings.overwrite, &clip, &decoder, mapper, settings.normalized, words, parts)
}

/// Makes a bundle with a new mapper. CLIP and decoder keep their weights where the sources have any and get new ones otherwise.
pub fn init(settings: &InitSettings, reporter: &dyn Reporter) -> anyhow::Result<Bundle> {
    let clip = ClipSource::open(&settings.clip).context("cannot read CLIP")?;
    let decoder = DecoderSource::open(&settings.decoder, true).context("cannot read the decoder")?;
    let sizes = architecture(&decoder.config).sizes();
    notes(&clip, &decoder, reporter);
    let decoder_is_preset = decoder_preset(&settings.decoder).is_some();
    for (given, has_weights, is_preset) in [
        (&settings.clip, clip.weights.is_some(), clip.is_preset),
        (&settings.decoder, decoder.weights.is_some(), decoder_is_preset),
    ] {
        if !(has_weights || is_preset || settings.random) {
            bail!("{} holds no weights; --random makes random ones from its config.json", given.display());
        }
    }
    let (clip_size, n_embd) = (clip.config.projection_dim, sizes.n_embd);
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
                None => default_bert(&sizes, settings.prefix_len),
            };
            MapperConfig::bert(clip_size, n_embd, settings.prefix_len, bert)
        }
        (MapperKind::Transformer, given) => {
            if given.is_some() {
                reporter.note("a transformer mapper was asked for; --bert-config is ignored");
            }
            let transformer = TransformerConfig {
                clip_length: settings.clip_length.unwrap_or(settings.prefix_len),
                num_layers: settings.num_layers,
                num_heads: ORIGINAL_HEADS,
                inner_size: 2 * n_embd,
                qkv_bias: false,
            };
            MapperConfig::transformer(clip_size, n_embd, settings.prefix_len, transformer)
        }
    };
    mapper.validate(settings.bert_config.as_deref().unwrap_or(&settings.out))?;
    let mapper_part = PartPlan::New {
        part: Part::random(mapper_tensors(&mapper), settings.seed),
        source: Provenance::Random { seed: settings.seed },
    };
    let decoder_source = source_of(&settings.decoder, decoder.weights.as_ref(), settings.seed);
    let decoder_part = PartPlan::New { part: decoder.part(settings.seed)?, source: decoder_source };
    let words = Words::new(&decoder, settings.mapper, None, &settings.stop_token, &settings.prompt);
    let clip_part = clip_part(&clip, &settings.clip, settings.seed)?;
    let parts = [clip_part, mapper_part, decoder_part];
    finish(&settings.out, settings.overwrite, &clip, &decoder, mapper, settings.normalized, words, parts)
}

/// What the decoder's text is like, beyond its vocabulary.
struct Words {
    endings: Endings,
    scope: &'static str,
    prompt: Option<String>,
}

impl Words {
    /// The original ClipCap (told by its `gpt.` or its transformer mapper, with GPT2's own vocabulary) ends a caption with a full stop. `inside`
    /// is what stands before the decoder's names in a checkpoint.
    fn new(
        decoder: &DecoderSource,
        mapper: MapperKind,
        inside: Option<&'static str>,
        stop_token: &Option<String>,
        prompt: &Option<String>,
    ) -> Self {
        let gpt2 = matches!(decoder.config, DecoderConfig::Gpt2(_));
        let english = gpt2 && matches!(decoder.vocabulary, Vocabulary::Bpe(_));
        let original = english && (inside == Some("gpt.") || (inside.is_none() && mapper == MapperKind::Transformer));
        let default = original.then(|| ".".to_string());
        let endings = Endings { stop_token: stop_token.clone().or(default), ..decoder.endings.clone() };
        let scope = inside.unwrap_or(match (gpt2, english) {
            (true, true) => "gpt.",
            (true, false) => bundle::DEFAULT_SCOPE,
            (false, _) => "decoder.",
        });
        Self { endings, scope, prompt: prompt.clone().filter(|prompt| !prompt.trim().is_empty()) }
    }
}

/// A BERT like bert-base, as wide as the decoder and as deep (12 layers at most).
fn default_bert(decoder: &Sizes, prefix_len: usize) -> BertConfig {
    BertConfig {
        vocab_size: decoder.vocab_size,
        hidden_size: decoder.n_embd,
        num_hidden_layers: decoder.n_layer.min(12),
        num_attention_heads: decoder.n_head,
        intermediate_size: 4 * decoder.n_embd,
        max_position_embeddings: BertConfig::default().max_position_embeddings.max(2 * prefix_len),
        ..BertConfig::default()
    }
}

fn notes(clip: &ClipSource, decoder: &DecoderSource, reporter: &dyn Reporter) {
    clip.notes.iter().chain(&decoder.notes).for_each(|note| reporter.note(note));
}

fn clip_part<'a>(clip: &'a ClipSource, given: &Path, seed: u64) -> anyhow::Result<PartPlan<'a>> {
    Ok(PartPlan::New { part: clip.part(seed)?, source: source_of(given, clip.weights.as_ref(), seed) })
}

fn source_of(given: &Path, weights: Option<&WeightSource>, seed: u64) -> Provenance {
    weights.map_or(Provenance::Random { seed }, |weights| imported(given, weights))
}

/// The name of what was given, and of the file inside it where that was a folder: never an absolute path.
fn imported(given: &Path, weights: &WeightSource) -> Provenance {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file = if given.is_dir() { format!("{}/{}", name(given), name(weights.path())) } else { name(given) };
    Provenance::Imported { file, format: weights.format().to_string() }
}

fn finish(
    out: &Path,
    overwrite: bool,
    clip: &ClipSource,
    decoder: &DecoderSource,
    mapper: MapperConfig,
    normalized: bool,
    words: Words,
    [clip_part, mapper_part, decoder_part]: [PartPlan<'_>; 3],
) -> anyhow::Result<Bundle> {
    let plan = BundlePlan {
        configs: Configs {
            clip: clip.config.clone(),
            preprocessor: clip.preprocessor.clone(),
            mapper,
            decoder: decoder.config.clone(),
        },
        normalized,
        vocabulary: decoder.vocabulary.clone(),
        endings: words.endings,
        decoder_scope: words.scope.into(),
        prompt: words.prompt,
        clip: clip_part,
        mapper: mapper_part,
        gpt2: decoder_part,
        clip_files: clip.kept_files.clone(),
        gpt2_files: decoder.kept_files.clone(),
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
    let decoder = bundle.decoder_sizes();
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
        "{:<8} {} layers of {}, {} heads, {} positions, vocabulary of {}{}\n",
        if bundle.decoder_config().model_type() == "gpt2" { "GPT2" } else { bundle.decoder_config().model_type() },
        decoder.n_layer,
        decoder.n_embd,
        decoder.n_head,
        decoder.n_positions,
        manifest.tokenizer.entries,
        if bundle.lower_case() { ", lower case" } else { "" },
    );
    if let Some(stop) = &manifest.tokenizer.endings.stop_token {
        text += &format!("captions end with {stop:?}\n");
    }
    if let Some(prompt) = bundle.prompt() {
        text += &format!("captions continue {prompt:?}\n");
    }
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
