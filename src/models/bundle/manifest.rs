//! `clipcap.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Configs;
use crate::files::ContentHash;
use crate::models::config::{ClipConfig, MapperKind, PreprocessorConfig};
use crate::models::part::PartFacts;
use crate::text::{Endings, Vocabulary};

/// What a bundle says of itself. It holds no absolute path and no time: the same model gives the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    #[serde(rename = "clipcap.format")]
    pub format: String,
    pub mapper_kind: MapperKind,
    /// Positions of a prefix, P.
    pub prefix_len: usize,
    /// Whether the mapper takes embeddings of unit length.
    pub normalized: bool,
    /// See `Bundle::fingerprint`.
    pub fingerprint: String,
    /// See `Bundle::embedding_fingerprint`.
    pub embedding_fingerprint: String,
    pub preprocessing: PreprocessorConfig,
    pub tokenizer: TokenizerFacts,
    /// What stands before the decoder's names in a checkpoint of the whole model: `gpt2.`, or the original ClipCap's `gpt.`.
    #[serde(default = "default_scope", skip_serializing_if = "is_default_scope")]
    pub decoder_scope: String,
    /// Text behind the prefix, which captions go on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// `clip`, `gpt2` and `mapper`.
    pub parts: BTreeMap<String, PartRecord>,
    /// 8-bit weights made of the float ones by `model quantize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub int8: Option<Int8Record>,
}

/// ClipCap-Chinese's.
pub const DEFAULT_SCOPE: &str = "gpt2.";

fn default_scope() -> String {
    DEFAULT_SCOPE.into()
}

fn is_default_scope(scope: &str) -> bool {
    scope == DEFAULT_SCOPE
}

/// What is recorded of `int8.safetensors`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Int8Record {
    pub file: String,
    /// SHA-256 of the file.
    pub fingerprint: String,
    pub bytes: u64,
    /// See [`PartRecord`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc32c: Option<u32>,
    /// Static scales, where `--calibrate` gave something to take them from; else activations get one scale a row as they come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationRecord>,
}

/// How static scales came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// What was looked at: `images` or `embeddings`.
    pub kind: String,
    pub count: u64,
    /// SHA-256 over the hashes of what was looked at, in order.
    pub fingerprint: String,
    /// `image_encoder`, `mapper` and `decoder`, those that were calibrated.
    pub parts: BTreeMap<String, CalibratedPart>,
    /// How the results compare with float32's, on the inputs looked at; absent until it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<CalibrationReport>,
}

/// The products of one graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalibratedPart {
    pub products_in_8_bits: usize,
    /// Weights whose products stay in float, and why: `last` (small, at the end) or `noise`.
    pub in_float: BTreeMap<String, String>,
    /// Layer normalizations that take over a part of the activations' spread, and how much.
    pub smoothed: BTreeMap<String, String>,
    /// Weights whose activations are rounded over a range that is not symmetric.
    pub one_sided: usize,
}

/// 8 bits beside float32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibrationReport {
    /// Of embeddings; absent where embeddings were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine_mean: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine_least: Option<f64>,
    pub captions_compared: u64,
    pub captions_changed: u64,
}

/// What is recorded of a weight file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// Inside the bundle.
    pub file: String,
    #[serde(flatten)]
    pub facts: PartFacts,
    /// CRC-32C of the file: quick enough to be checked whenever it is used. Bundles made before there were any have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc32c: Option<u32>,
    pub source: Provenance,
}

/// Where weights came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "lowercase")]
pub enum Provenance {
    /// From a published file; its name without the folders above it, and its layout.
    Imported { file: String, format: String },
    /// Made by `clipcap model init`.
    Random { seed: u64 },
    /// Made by `clipcap train`, after so many optimizer steps.
    Trained { steps: u64 },
}

impl std::fmt::Display for Provenance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Imported { file, format } => write!(f, "{file} ({format})"),
            Self::Random { seed } => write!(f, "random, seed {seed}"),
            Self::Trained { steps } => write!(f, "trained for {steps} steps"),
        }
    }
}

/// What is known of the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerFacts {
    pub kind: String,
    /// Entries of the vocabulary; the model's own vocab_size may be padded to more.
    pub entries: usize,
    pub lower_case: bool,
    pub unk_token_id: Option<u32>,
    /// Ends a caption: `[SEP]`, an end-of-text token, or the stop token.
    pub sep_token_id: u32,
    pub pad_token_id: Option<u32>,
    pub cls_token_id: Option<u32>,
    pub mask_token_id: Option<u32>,
    #[serde(flatten)]
    pub endings: Endings,
}

/// What an image's embedding depends on, in one hash: see `Bundle::embedding_fingerprint`. `weights` is that of CLIP's part.
pub fn embedding_fingerprint(clip: &ClipConfig, preprocessor: &PreprocessorConfig, weights: &str) -> String {
    let parts = json!({
        "clip": weights,
        "vision_config": clip.vision_config,
        "projection_dim": clip.projection_dim,
        "preprocessing": preprocessor,
    });
    ContentHash::of(parts.to_string()).to_string()
}

/// Everything a model's fingerprints are made of.
pub(super) struct Fingerprints<'a> {
    pub configs: &'a Configs,
    pub clip: &'a PartFacts,
    pub mapper: &'a PartFacts,
    pub gpt2: &'a PartFacts,
    pub vocabulary: &'a Vocabulary,
    pub endings: &'a Endings,
    pub prompt: Option<&'a str>,
    pub normalized: bool,
}

impl Fingerprints<'_> {
    pub fn embedding(&self) -> String {
        let Configs { clip, preprocessor, .. } = self.configs;
        embedding_fingerprint(clip, preprocessor, &self.clip.fingerprint)
    }

    pub fn whole(&self) -> String {
        let mut parts = json!({
            "embedding": self.embedding(),
            "mapper": self.mapper.fingerprint,
            "mapper_config": self.configs.mapper,
            "gpt2": self.gpt2.fingerprint,
            "gpt2_config": self.configs.decoder,
            "vocabulary": self.vocabulary.fingerprint(),
            "lower_case": self.vocabulary.lower_case(),
            "normalized": self.normalized,
        });
        // A model that says nothing of these has the fingerprint it had before they could be said.
        if !self.endings.is_default() {
            parts["endings"] = json!(self.endings);
        }
        if let Some(prompt) = self.prompt {
            parts["prompt"] = prompt.into();
        }
        ContentHash::of(parts.to_string()).to_string()
    }
}
