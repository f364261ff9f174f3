use std::path::Path;

use serde::Serialize;

use super::{ConfigError, Gpt2Config, LlamaConfig, read_json};

/// A decoder's `config.json`, by family.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum DecoderConfig {
    Gpt2(Gpt2Config),
    Llama(LlamaConfig),
}

impl DecoderConfig {
    /// Reads a `config.json`; its `model_type` says the family.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let value: serde_json::Value = read_json(path)?;
        let model_type = value.get("model_type").and_then(|kind| kind.as_str()).unwrap_or("gpt2").to_string();
        match model_type.as_str() {
            "gpt2" => Ok(Self::Gpt2(Gpt2Config::from_json(value, path)?)),
            _ if LlamaConfig::MODEL_TYPES.contains(&model_type.as_str()) => Ok(Self::Llama(LlamaConfig::from_json(value, path)?)),
            _ => Err(ConfigError::Unsupported {
                path: path.into(),
                problem: format!(
                    "model_type is {model_type}; decoders of these are supported: gpt2, {}",
                    LlamaConfig::MODEL_TYPES.join(", ")
                ),
            }),
        }
    }

    /// As transformers calls it.
    pub fn model_type(&self) -> &str {
        match self {
            Self::Gpt2(_) => "gpt2",
            Self::Llama(config) => &config.model_type,
        }
    }

    /// The class that transformers loads its weights into.
    pub fn class(&self) -> &'static str {
        match self.model_type() {
            "qwen2" => "Qwen2ForCausalLM",
            "qwen3" => "Qwen3ForCausalLM",
            "mistral" => "MistralForCausalLM",
            "llama" => "LlamaForCausalLM",
            _ => "GPT2LMHeadModel",
        }
    }

    /// Checks that sizes are positive, bounded and fit each other, and that nothing unsupported is asked for.
    pub fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        match self {
            Self::Gpt2(config) => config.validate(path),
            Self::Llama(config) => config.validate(path),
        }
    }
}

impl From<Gpt2Config> for DecoderConfig {
    fn from(config: Gpt2Config) -> Self {
        Self::Gpt2(config)
    }
}

impl From<LlamaConfig> for DecoderConfig {
    fn from(config: LlamaConfig) -> Self {
        Self::Llama(config)
    }
}
