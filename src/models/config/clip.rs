use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Activation, ConfigError, check, check_heads, check_probabilities, check_sizes, read_json, read_text};

/// CLIP: an image tower, and a text tower where the source has one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipConfig {
    pub vision_config: ClipVisionConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_config: Option<ClipTextConfig>,
    /// Length of an embedding, D.
    #[serde(default = "defaults::projection_dim")]
    pub projection_dim: usize,
    #[serde(default = "defaults::logit_scale")]
    pub logit_scale_init_value: f64,
    #[serde(default = "defaults::one")]
    pub initializer_factor: f64,
}

/// The image tower, a vision transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    /// Side of the square image, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Length of an embedding; `ClipConfig::projection_dim` is the one that counts.
    pub projection_dim: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    pub attention_dropout: f64,
    pub initializer_range: f64,
    pub initializer_factor: f64,
}

/// The text tower; kept in a bundle, not computed by captioning.
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

mod defaults {
    pub fn projection_dim() -> usize {
        512
    }
    pub fn logit_scale() -> f64 {
        2.6592
    }
    pub fn one() -> f64 {
        1.0
    }
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            projection_dim: 512,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            attention_dropout: 0.0,
            initializer_range: 0.02,
            initializer_factor: 1.0,
        }
    }
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

impl ClipVisionConfig {
    /// Patches of an image and the class position.
    pub fn num_positions(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
    }
}

impl ClipConfig {
    /// Reads a `config.json`: that of a whole CLIP (`vision_config` inside) or of an image tower alone.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let value: serde_json::Value = read_json(path)?;
        let json = |source| ConfigError::Json { path: path.into(), source };
        let model_type = value.get("model_type").and_then(|kind| kind.as_str()).unwrap_or("clip");
        check(path, matches!(model_type, "clip" | "clip_vision_model"), || {
            format!("model_type is {model_type}; CLIP is what is supported (clip or clip_vision_model)")
        })?;
        let config: Self = if value.get("vision_config").is_some_and(|v| v.is_object()) {
            serde_json::from_str(&read_text(path)?).map_err(json)?
        } else {
            check(path, value.get("hidden_size").is_some() || model_type == "clip_vision_model", || {
                "this is neither a CLIP configuration (vision_config is missing) nor an image tower's (hidden_size is missing)"
                    .into()
            })?;
            let vision: ClipVisionConfig = serde_json::from_value(value).map_err(json)?;
            Self { projection_dim: vision.projection_dim, ..Self::vision_only(vision) }
        };
        config.validate(path)?;
        Ok(config)
    }

    /// An image tower without a text tower.
    pub fn vision_only(vision: ClipVisionConfig) -> Self {
        Self {
            projection_dim: vision.projection_dim,
            vision_config: vision,
            text_config: None,
            logit_scale_init_value: defaults::logit_scale(),
            initializer_factor: 1.0,
        }
    }

    /// Checks that sizes are positive, bounded and fit each other. `path` names the file in the error.
    pub fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        let vision = &self.vision_config;
        check_sizes(
            path,
            &[
                ("projection_dim", self.projection_dim),
                ("vision_config.hidden_size", vision.hidden_size),
                ("vision_config.intermediate_size", vision.intermediate_size),
                ("vision_config.num_hidden_layers", vision.num_hidden_layers),
                ("vision_config.num_attention_heads", vision.num_attention_heads),
                ("vision_config.image_size", vision.image_size),
                ("vision_config.patch_size", vision.patch_size),
            ],
        )?;
        check_heads(
            path,
            ("vision_config.hidden_size", vision.hidden_size),
            ("vision_config.num_attention_heads", vision.num_attention_heads),
        )?;
        check(path, vision.num_channels == 3, || format!("num_channels is {}; images have 3", vision.num_channels))?;
        check(path, vision.patch_size <= vision.image_size && vision.image_size <= 1 << 14, || {
            format!("image_size {} and patch_size {} do not fit", vision.image_size, vision.patch_size)
        })?;
        check_probabilities(path, &[("vision_config.attention_dropout", vision.attention_dropout)])?;
        let Some(text) = &self.text_config else { return Ok(()) };
        check_sizes(
            path,
            &[
                ("text_config.vocab_size", text.vocab_size),
                ("text_config.hidden_size", text.hidden_size),
                ("text_config.intermediate_size", text.intermediate_size),
                ("text_config.num_hidden_layers", text.num_hidden_layers),
                ("text_config.num_attention_heads", text.num_attention_heads),
                ("text_config.max_position_embeddings", text.max_position_embeddings),
            ],
        )?;
        check_heads(
            path,
            ("text_config.hidden_size", text.hidden_size),
            ("text_config.num_attention_heads", text.num_attention_heads),
        )
    }
}
