use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::spelling::{check_spelling, keys_of};
use super::{Activation, BertConfig, ConfigError, check, check_sizes, read_json};
use crate::models::clip::text_block;
use crate::models::vision::{ClipVisionConfig, ResNetConfig, SiglipVisionConfig, VisionConfig};

/// An image tower of any family, and a text tower where the source has one that is understood.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClipConfig {
    pub vision_config: VisionConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_config: Option<TextConfig>,
    /// Length of an embedding, D.
    pub projection_dim: usize,
    pub logit_scale_init_value: f64,
    pub initializer_factor: f64,
}

/// A text tower: CLIP's own, or Chinese-CLIP's BERT.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TextConfig {
    Clip(ClipTextConfig),
    Bert(BertConfig),
}

impl From<ClipTextConfig> for TextConfig {
    fn from(config: ClipTextConfig) -> Self {
        Self::Clip(config)
    }
}

/// CLIP's text tower: a causal transformer whose state at the last token is taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub projection_dim: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    pub attention_dropout: f64,
    pub initializer_range: f64,
    pub initializer_factor: f64,
    pub pad_token_id: Option<u32>,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            projection_dim: 512,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            attention_dropout: 0.0,
            initializer_range: 0.02,
            initializer_factor: 1.0,
            pad_token_id: Some(1),
            bos_token_id: Some(49406),
            eos_token_id: Some(49407),
        }
    }
}

/// What the families of two towers say at the top.
#[derive(Deserialize)]
#[serde(default)]
struct Common {
    projection_dim: usize,
    logit_scale_init_value: f64,
    initializer_factor: f64,
}

/// What the families of two towers may say at the top.
const COMMON_KEYS: [&str; 5] = ["vision_config", "text_config", "projection_dim", "logit_scale_init_value", "initializer_factor"];

impl Default for Common {
    fn default() -> Self {
        Self { projection_dim: 512, logit_scale_init_value: 2.6592, initializer_factor: 1.0 }
    }
}

/// The families by the `model_type` of their configurations.
const MODEL_TYPES: &str = "clip, chinese_clip, siglip and siglip2 of a fixed resolution are what is supported (OpenAI's .pt files and open_clip's folders too)";

impl ClipConfig {
    /// Reads a `config.json` of Hugging Face: that of both towers (`vision_config` inside) or of an image tower alone; or that of a ResNet in
    /// a bundle.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut value: Value = read_json(path)?;
        for part in ["vision_config", "text_config"] {
            overlay(&mut value, part);
        }
        let model_type = value.get("model_type").and_then(Value::as_str).unwrap_or("clip").to_owned();
        let config = match model_type.as_str() {
            "clip" | "clip_vision_model" => {
                let towers = [keys_of(&ClipVisionConfig::default()), keys_of(&ClipTextConfig::default())];
                Self::of_two_towers::<ClipVisionConfig>(path, &value, &model_type, &towers, |text| {
                    Ok(TextConfig::Clip(serde_json::from_value(text)?))
                })
            }
            "chinese_clip" | "chinese_clip_vision_model" => {
                let towers = [keys_of(&ClipVisionConfig::default()), keys_of(&BertConfig::default())];
                Self::of_two_towers::<ClipVisionConfig>(path, &value, &model_type, &towers, |text| {
                    Ok(TextConfig::Bert(serde_json::from_value(text)?))
                })
            }
            "siglip" | "siglip_vision_model" | "siglip2" | "siglip2_vision_model" => Self::of_siglip(path, &value),
            "clip_resnet" => {
                // What a ResNet is, its configuration has to say.
                let towers = [vec![], keys_of(&ClipTextConfig::default())];
                Self::of_two_towers::<ResNetConfig>(path, &value, &model_type, &towers, |text| {
                    Ok(TextConfig::Clip(serde_json::from_value(text)?))
                })
            }
            other => {
                let problem = format!("model_type is {other}; {MODEL_TYPES}");
                Err(ConfigError::Unsupported { path: path.into(), problem })
            }
        }?;
        config.validate(path)?;
        Ok(config)
    }

    fn of_two_towers<V: serde::de::DeserializeOwned + Into<VisionConfig>>(
        path: &Path,
        value: &Value,
        model_type: &str,
        [vision_keys, text_keys]: &[Vec<String>; 2],
        read_text: impl Fn(Value) -> serde_json::Result<TextConfig>,
    ) -> Result<Self, ConfigError> {
        let json = |source| ConfigError::Json { path: path.into(), source };
        let part = |name: &str| value.get(name).filter(|part| part.is_object()).cloned();
        let Some(vision) = part("vision_config") else {
            check(path, value.get("hidden_size").is_some() || model_type.ends_with("_vision_model"), || {
                "this is neither a CLIP configuration (vision_config is missing) nor an image tower's (hidden_size is missing)"
                    .into()
            })?;
            check_spelling(path, value, vision_keys)?;
            return Ok(Self::vision_only(serde_json::from_value::<V>(value.clone()).map_err(json)?));
        };
        check_spelling(path, value, &COMMON_KEYS)?;
        check_spelling(path, &vision, vision_keys)?;
        part("text_config").map_or(Ok(()), |text| check_spelling(path, &text, text_keys))?;
        let vision: V = serde_json::from_value(vision).map_err(json)?;
        let common: Common = serde_json::from_value(value.clone()).map_err(json)?;
        Ok(Self {
            text_config: part("text_config").map(read_text).transpose().map_err(json)?,
            projection_dim: common.projection_dim,
            logit_scale_init_value: common.logit_scale_init_value,
            initializer_factor: common.initializer_factor,
            vision_config: vision.into(),
        })
    }

    /// SigLIP's text tower reads SentencePiece and is left out.
    fn of_siglip(path: &Path, value: &Value) -> Result<Self, ConfigError> {
        let vision = value.get("vision_config").filter(|part| part.is_object()).unwrap_or(value);
        check_spelling(path, value, &["vision_config"])?;
        check_spelling(path, vision, &keys_of(&SiglipVisionConfig::default()))?;
        let naflex = vision.get("num_patches").is_some_and(|patches| !patches.is_null());
        check(path, !naflex, || {
            "this SigLIP 2 takes pictures of any proportion (NaFlex: num_patches); those of a fixed resolution are supported"
                .into()
        })?;
        let vision: SiglipVisionConfig =
            serde_json::from_value(vision.clone()).map_err(|source| ConfigError::Json { path: path.into(), source })?;
        Ok(Self::vision_only(vision))
    }

    /// An image tower without a text tower.
    pub fn vision_only(vision: impl Into<VisionConfig>) -> Self {
        let (vision_config, common) = (vision.into(), Common::default());
        Self {
            projection_dim: vision_config.tower().own_projection_dim(),
            vision_config,
            text_config: None,
            logit_scale_init_value: common.logit_scale_init_value,
            initializer_factor: common.initializer_factor,
        }
    }

    /// CLIP's own text tower, where this is what there is.
    pub fn clip_text(&self) -> Option<&ClipTextConfig> {
        match &self.text_config {
            Some(TextConfig::Clip(text)) => Some(text),
            _ => None,
        }
    }

    /// Whether a `config.json` is an image tower's alone, by its own word.
    pub fn is_vision_alone(path: &Path) -> Result<bool, ConfigError> {
        let value: Value = read_json(path)?;
        Ok(value.get("model_type").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("_vision_model")))
    }

    /// The family in a few words.
    pub fn family(&self) -> &'static str {
        match &self.text_config {
            Some(TextConfig::Bert(_)) => "Chinese-CLIP, vision transformer",
            _ => self.vision_config.tower().family(),
        }
    }

    /// `config.json`, as transformers reads it where it knows the family.
    pub fn to_json(&self) -> Value {
        let named = |mut value: Value, model_type: &str, class: &str| {
            if let Some(object) = value.as_object_mut() {
                object.insert("model_type".into(), model_type.into());
                if !class.is_empty() {
                    object.insert("architectures".into(), json!([class]));
                }
            }
            value
        };
        match (&self.vision_config, &self.text_config) {
            (VisionConfig::Vit(_), Some(TextConfig::Clip(_))) => named(json!(self), "clip", "CLIPModel"),
            (VisionConfig::Vit(_), Some(TextConfig::Bert(_))) => named(json!(self), "chinese_clip", "ChineseCLIPModel"),
            (VisionConfig::Vit(vision), None) => {
                let mut vision = json!(vision);
                vision["projection_dim"] = self.projection_dim.into();
                named(vision, "clip_vision_model", "CLIPVisionModelWithProjection")
            }
            (VisionConfig::Siglip(vision), _) => named(json!(vision), "siglip_vision_model", "SiglipVisionModel"),
            (VisionConfig::ResNet(_), _) => named(json!(self), "clip_resnet", ""),
        }
    }

    /// What transformers calls the family's way of preparing images.
    pub fn image_processor_type(&self) -> &'static str {
        match (&self.vision_config, &self.text_config) {
            (VisionConfig::Siglip(_), _) => "SiglipImageProcessor",
            (_, Some(TextConfig::Bert(_))) => "ChineseCLIPImageProcessor",
            _ => "CLIPImageProcessor",
        }
    }

    /// Checks that sizes are positive, bounded and fit each other. `path` names the file in the error.
    pub fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        check_sizes(path, &[("projection_dim", self.projection_dim)])?;
        self.vision_config.tower().validate(path)?;
        match &self.text_config {
            None => Ok(()),
            Some(TextConfig::Bert(text)) => text.validate(path),
            Some(TextConfig::Clip(text)) => {
                let positions = ("text_config.max_position_embeddings", text.max_position_embeddings);
                check_sizes(path, &[("text_config.vocab_size", text.vocab_size), positions])?;
                text_block(text).validate(path, "text_config", text.num_hidden_layers)
            }
        }
    }
}

/// Early files have `vision_config_dict` beside `vision_config`, and its keys count.
fn overlay(value: &mut Value, part: &str) {
    let Some(Value::Object(over)) = value.get_mut(format!("{part}_dict")).map(Value::take) else { return };
    match value.get_mut(part) {
        Some(Value::Object(under)) => under.extend(over),
        _ => value[part] = Value::Object(over),
    }
}
