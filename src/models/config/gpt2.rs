use std::path::Path;

use serde::{Deserialize, Serialize};

use super::spelling::{check_spelling, keys_of};
use super::{Activation, ConfigError, check, check_epsilon, check_heads, check_probabilities, check_sizes, read_json};

/// GPT2 of any size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpt2Config {
    /// Entries of the vocabulary, V.
    pub vocab_size: usize,
    /// Positions, prefix included.
    pub n_positions: usize,
    /// Width of a state, C.
    pub n_embd: usize,
    pub n_layer: usize,
    pub n_head: usize,
    /// Width inside the MLP; 4 C where it is null.
    pub n_inner: Option<usize>,
    pub activation_function: Activation,
    pub layer_norm_epsilon: f64,
    pub embd_pdrop: f64,
    pub attn_pdrop: f64,
    pub resid_pdrop: f64,
    pub initializer_range: f64,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
    pub scale_attn_weights: bool,
    pub scale_attn_by_inverse_layer_idx: bool,
    pub add_cross_attention: bool,
    pub tie_word_embeddings: bool,
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluNew,
            layer_norm_epsilon: 1e-5,
            embd_pdrop: 0.1,
            attn_pdrop: 0.1,
            resid_pdrop: 0.1,
            initializer_range: 0.02,
            bos_token_id: Some(50256),
            eos_token_id: Some(50256),
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            add_cross_attention: false,
            tie_word_embeddings: true,
        }
    }
}

impl Gpt2Config {
    /// Reads a `config.json`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::from_json(read_json(path)?, path)
    }

    /// From a `config.json`'s content; `path` names it in errors.
    pub(super) fn from_json(mut value: serde_json::Value, path: &Path) -> Result<Self, ConfigError> {
        let json = |source| ConfigError::Json { path: path.into(), source };
        let model_type = value.get("model_type").and_then(|kind| kind.as_str()).unwrap_or("gpt2").to_string();
        check(path, model_type == "gpt2", || format!("model_type is {model_type}; gpt2 is what is supported"))?;
        check(path, value.is_object(), || "a JSON object is expected".into())?;
        check_spelling(path, &value, &[keys_of(&Self::default()), vec!["n_ctx".into()]].concat())?;
        let keys = value.as_object_mut();
        // Older files call it n_ctx, and some say both.
        if let Some(keys) = keys
            && !keys.contains_key("n_positions")
            && let Some(positions) = keys.get("n_ctx").cloned()
        {
            keys.insert("n_positions".into(), positions);
        }
        let config: Self = serde_json::from_value(value).map_err(json)?;
        config.validate(path)?;
        Ok(config)
    }

    /// Width inside the MLP.
    pub fn inner_size(&self) -> usize {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    /// Width of one attention head, D.
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// Checks that sizes are positive, bounded and fit each other, and that nothing unsupported is asked for.
    pub fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        check_sizes(
            path,
            &[
                ("vocab_size", self.vocab_size),
                ("n_positions", self.n_positions),
                ("n_embd", self.n_embd),
                ("n_layer", self.n_layer),
                ("n_head", self.n_head),
                ("n_inner", self.n_inner.unwrap_or(1)),
            ],
        )?;
        check_heads(path, ("n_embd", self.n_embd), ("n_head", self.n_head))?;
        let dropout = [("embd_pdrop", self.embd_pdrop), ("attn_pdrop", self.attn_pdrop), ("resid_pdrop", self.resid_pdrop)];
        check_probabilities(path, &dropout)?;
        check_epsilon(path, ("layer_norm_epsilon", self.layer_norm_epsilon))?;
        check(path, self.scale_attn_weights, || "scale_attn_weights false is not supported".into())?;
        check(path, !self.scale_attn_by_inverse_layer_idx, || "scale_attn_by_inverse_layer_idx is not supported".into())?;
        check(path, !self.add_cross_attention, || "add_cross_attention is not supported".into())
    }
}
