use std::path::Path;

use serde::{Deserialize, Serialize};

use super::spelling::check_spelling;
use super::{Activation, ConfigError, check, check_epsilon, check_probabilities, check_sizes};

/// Llama, and decoders of its shape: Mistral, Qwen2, Qwen3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    pub model_type: String,
    /// Entries of the vocabulary, V.
    pub vocab_size: usize,
    /// Width of a state, C.
    pub hidden_size: usize,
    /// Width inside the feed-forward.
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// As many as `num_attention_heads` where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// `hidden_size / num_attention_heads` where it is not given (128 in Qwen3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Positions, prefix included.
    pub max_position_embeddings: usize,
    #[serde(default = "silu")]
    pub hidden_act: Activation,
    #[serde(default = "epsilon")]
    pub rms_norm_eps: f64,
    #[serde(default = "theta")]
    pub rope_theta: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Biases of queries, keys, values and the output; Qwen2 always has them on the first three.
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default)]
    pub mlp_bias: bool,
    #[serde(default)]
    pub attention_dropout: f64,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(default = "deviation")]
    pub initializer_range: f64,
    /// Positions that a position sees at most, itself included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_sliding_window: Option<bool>,
    /// The first token that ends a text, where a list is given.
    #[serde(default, deserialize_with = "first_id", skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<u32>,
}

fn first_id<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    let id = value.as_array().and_then(|ids| ids.first()).unwrap_or(&value).as_u64();
    Ok(id.and_then(|id| u32::try_from(id).ok()))
}

/// How rotations are stretched over more positions than the model was first trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    #[serde(alias = "type")]
    pub rope_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_freq_factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_freq_factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<f64>,
}

/// What a `config.json` may say, whether it has to or not.
const KEYS: [&str; 21] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "sliding_window",
    "use_sliding_window",
    "initializer_range",
    "eos_token_id",
];

fn silu() -> Activation {
    Activation::Silu
}

fn epsilon() -> f64 {
    1e-6
}

fn theta() -> f64 {
    10_000.0
}

fn deviation() -> f64 {
    0.02
}

impl LlamaConfig {
    /// What `model_type` may be.
    pub const MODEL_TYPES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

    /// From a `config.json`'s content; `path` names it in errors.
    pub(super) fn from_json(mut value: serde_json::Value, path: &Path) -> Result<Self, ConfigError> {
        let partial = |value: &serde_json::Value| {
            value.get("partial_rotary_factor").and_then(serde_json::Value::as_f64).is_none_or(|factor| factor == 1.0)
        };
        check_spelling(path, &value, &KEYS)?;
        check(path, partial(&value), || "partial_rotary_factor is not supported".into())?;
        if let Some(keys) = value.as_object_mut() {
            // transformers 5 has all of it in one key.
            if let Some(mut rope) = keys.remove("rope_parameters").filter(serde_json::Value::is_object) {
                check(path, partial(&rope), || "partial_rotary_factor is not supported".into())?;
                if let Some(theta) = rope.as_object_mut().and_then(|rope| rope.remove("rope_theta")) {
                    keys.insert("rope_theta".into(), theta);
                }
                keys.insert("rope_scaling".into(), rope);
            }
            // Older files say null where a key means nothing.
            keys.retain(|_, value| !value.is_null());
        }
        let mut config: Self = serde_json::from_value(value).map_err(|source| ConfigError::Json { path: path.into(), source })?;
        config.rope_scaling = config.rope_scaling.filter(|scaling| scaling.rope_type != "default");
        if config.model_type == "qwen3" {
            config.head_dim.get_or_insert(128);
        }
        config.validate(path)?;
        Ok(config)
    }

    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of one attention head, D.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Positions over which attention is what is computed here: all, or as many as a window shows.
    pub fn positions(&self) -> usize {
        let uses = self.use_sliding_window.unwrap_or(self.model_type == "mistral");
        self.sliding_window
            .filter(|_| uses)
            .map_or(self.max_position_embeddings, |window| window.min(self.max_position_embeddings))
    }

    /// Whether products of queries, keys and values have biases.
    pub fn qkv_bias(&self) -> bool {
        self.model_type == "qwen2" || self.output_bias()
    }

    /// Whether the product behind attention has a bias.
    pub fn output_bias(&self) -> bool {
        self.attention_bias && matches!(self.model_type.as_str(), "llama" | "qwen3")
    }

    /// Whether queries and keys are normed head by head.
    pub fn qk_norm(&self) -> bool {
        self.model_type == "qwen3"
    }

    /// Radians by which a position turns each pair of a head, [D / 2].
    pub fn frequencies(&self) -> Vec<f32> {
        let width = self.head_dim();
        let plain = (0..width / 2).map(|i| 1.0 / self.rope_theta.powf(2.0 * i as f64 / width as f64));
        let Some(scaling) = &self.rope_scaling else { return plain.map(|f| f as f32).collect() };
        let factor = scaling.factor.unwrap_or(1.0);
        let (low, high) = (scaling.low_freq_factor.unwrap_or(1.0), scaling.high_freq_factor.unwrap_or(4.0));
        let first = scaling.original_max_position_embeddings.unwrap_or(self.max_position_embeddings as f64);
        let stretched = |frequency: f64| match scaling.rope_type.as_str() {
            "llama3" => {
                let wavelength = std::f64::consts::TAU / frequency;
                if wavelength > first / low {
                    frequency / factor
                } else if wavelength < first / high {
                    frequency
                } else {
                    let smooth = (first / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
            _ => frequency / factor,
        };
        plain.map(|frequency| stretched(frequency) as f32).collect()
    }

    /// Checks that sizes are positive, bounded and fit each other, and that nothing unsupported is asked for.
    pub fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        check_sizes(
            path,
            &[
                ("vocab_size", self.vocab_size),
                ("hidden_size", self.hidden_size),
                ("intermediate_size", self.intermediate_size),
                ("num_hidden_layers", self.num_hidden_layers),
                ("num_attention_heads", self.num_attention_heads),
                ("num_key_value_heads", self.kv_heads()),
                ("max_position_embeddings", self.positions()),
                ("head_dim", self.head_dim()),
            ],
        )?;
        let (heads, kv_heads, head_dim) = (self.num_attention_heads, self.kv_heads(), self.head_dim());
        check(path, heads.is_multiple_of(kv_heads), || {
            format!("num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads})")
        })?;
        check(path, self.head_dim.is_some() || self.hidden_size.is_multiple_of(heads), || {
            format!("hidden_size ({}) is not a multiple of num_attention_heads ({heads})", self.hidden_size)
        })?;
        check(path, head_dim.is_multiple_of(2), || format!("head_dim is {head_dim}, and rotations need an even one"))?;
        check(path, heads * head_dim <= super::MAX_SIZE, || format!("{heads} heads of {head_dim} are more than any model has"))?;
        check(path, self.rope_theta.is_finite() && self.rope_theta > 0.0, || format!("rope_theta is {}", self.rope_theta))?;
        check_epsilon(path, ("rms_norm_eps", self.rms_norm_eps))?;
        check_probabilities(path, &[("attention_dropout", self.attention_dropout)])?;
        let Some(scaling) = &self.rope_scaling else { return Ok(()) };
        check(path, matches!(scaling.rope_type.as_str(), "llama3" | "linear"), || {
            format!("rope_scaling of type {} is not supported; default, linear and llama3 are", scaling.rope_type)
        })?;
        let numbers =
            [scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings];
        check(path, scaling.factor.is_some() && numbers.into_iter().flatten().all(|n| n.is_finite() && n > 0.0), || {
            "rope_scaling needs a factor, and its numbers must be above 0".into()
        })?;
        check(path, scaling.rope_type != "llama3" || numbers.iter().all(Option::is_some), || {
            "rope_scaling of type llama3 needs low_freq_factor, high_freq_factor and original_max_position_embeddings".into()
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(mut more: serde_json::Value) -> Result<LlamaConfig, ConfigError> {
        let mut value = json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 64,
        });
        value.as_object_mut().unwrap().append(more.as_object_mut().unwrap());
        LlamaConfig::from_json(value, Path::new("config.json"))
    }

    #[test]
    fn families_differ_in_what_they_leave_unsaid() {
        let llama = read(json!({})).unwrap();
        assert_eq!((llama.kv_heads(), llama.head_dim(), llama.qkv_bias(), llama.qk_norm()), (4, 8, false, false));
        let llama = read(json!({"attention_bias": true, "num_key_value_heads": 2, "head_dim": 16})).unwrap();
        assert_eq!((llama.kv_heads(), llama.head_dim(), llama.qkv_bias(), llama.output_bias()), (2, 16, true, true));
        let qwen2 = read(json!({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": false})).unwrap();
        assert_eq!((qwen2.qkv_bias(), qwen2.output_bias(), qwen2.positions()), (true, false, 64));
        let qwen3 = read(json!({"model_type": "qwen3"})).unwrap();
        assert_eq!((qwen3.head_dim(), qwen3.qk_norm(), qwen3.qkv_bias()), (128, true, false));
        let mistral = read(json!({"model_type": "mistral", "sliding_window": 16})).unwrap();
        assert_eq!(mistral.positions(), 16, "no further than attention is whole");
        // What is written is read back the same.
        let again = LlamaConfig::from_json(serde_json::to_value(&qwen3).unwrap(), Path::new("c")).unwrap();
        assert_eq!(again, qwen3);
    }

    #[test]
    fn rotations_are_stretched_as_transformers_stretches_them() {
        let old = read(json!({"rope_theta": 500_000.0, "rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
        let new = read(json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 4.0}})).unwrap();
        assert_eq!(old, new);
        assert_eq!(old.frequencies()[0], 0.25);
        assert_eq!(read(json!({"rope_scaling": null})).unwrap().frequencies(), [1.0, 0.1, 0.01, 0.001]);
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256});
        let stretched = read(json!({"rope_scaling": llama3})).unwrap().frequencies();
        // Wavelengths 6.3 (short), 62.8 (just short), 628 and 6283 (long).
        let between = {
            let smooth = (256.0 / (std::f64::consts::TAU * 10.0) - 1.0) / 3.0;
            ((1.0 - smooth) * 0.1 / 8.0 + smooth * 0.1) as f32
        };
        let wanted = [1.0, if 62.831_853 < 64.0 { 0.1 } else { between }, 0.01 / 8.0, 0.001 / 8.0];
        stretched.iter().zip(wanted).for_each(|(a, b)| assert!((a - b).abs() < 1e-8, "{a} {b}"));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let refused = |more| read(more).unwrap_err().to_string();
        assert!(refused(json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})).contains("yarn"));
        assert!(refused(json!({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}})).contains("low_freq_factor"));
        assert!(refused(json!({"num_key_value_heads": 3})).contains("num_key_value_heads"));
        assert!(refused(json!({"head_dim": 7})).contains("head_dim"));
        assert!(refused(json!({"hidden_act": "swoosh"})).contains("swoosh"));
        assert!(refused(json!({"partial_rotary_factor": 0.5})).contains("partial_rotary_factor"));
        assert!(refused(json!({"num_hidden_layers": 0})).contains("num_hidden_layers"));
    }
}
