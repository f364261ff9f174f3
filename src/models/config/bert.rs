use std::path::Path;

use serde::{Deserialize, Serialize};

use super::spelling::{check_spelling, keys_of};
use super::{Activation, ConfigError, check, check_epsilon, check_heads, check_probabilities, check_sizes, read_json};

/// The BERT inside a BERT mapper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BertConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: Activation,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub initializer_range: f64,
    pub layer_norm_eps: f64,
    pub pad_token_id: Option<u32>,
    pub position_embedding_type: String,
    pub is_decoder: bool,
    pub add_cross_attention: bool,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            pad_token_id: Some(0),
            position_embedding_type: "absolute".into(),
            is_decoder: false,
            add_cross_attention: false,
        }
    }
}

impl BertConfig {
    /// Reads a `config.json`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let value: serde_json::Value = read_json(path)?;
        let model_type = value.get("model_type").and_then(|kind| kind.as_str()).unwrap_or("bert").to_string();
        check(path, model_type == "bert", || format!("model_type is {model_type}; bert is what is supported"))?;
        check_spelling(path, &value, &keys_of(&Self::default()))?;
        let config: Self = serde_json::from_value(value).map_err(|source| ConfigError::Json { path: path.into(), source })?;
        config.validate(path)?;
        Ok(config)
    }

    /// Checks that sizes are positive, bounded and fit each other, and that nothing unsupported is asked for.
    pub fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        check_sizes(
            path,
            &[
                ("vocab_size", self.vocab_size),
                ("hidden_size", self.hidden_size),
                ("num_hidden_layers", self.num_hidden_layers),
                ("num_attention_heads", self.num_attention_heads),
                ("intermediate_size", self.intermediate_size),
                ("max_position_embeddings", self.max_position_embeddings),
                ("type_vocab_size", self.type_vocab_size),
            ],
        )?;
        check_heads(path, ("hidden_size", self.hidden_size), ("num_attention_heads", self.num_attention_heads))?;
        let dropout = [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            ("attention_probs_dropout_prob", self.attention_probs_dropout_prob),
        ];
        check_probabilities(path, &dropout)?;
        check_epsilon(path, ("layer_norm_eps", self.layer_norm_eps))?;
        check(path, self.position_embedding_type == "absolute", || {
            format!("position_embedding_type {} is not supported", self.position_embedding_type)
        })?;
        check(path, !self.is_decoder && !self.add_cross_attention, || "a BERT decoder is not supported".into())
    }
}
