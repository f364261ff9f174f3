//! What `config.json`, `preprocessor_config.json` and their like say, with transformers' defaults where they are silent.
//!
//! Unknown keys are ignored, as transformers ignores them: a file keeps what later releases of it added. What would change the
//! computation and is not supported (scaled attention by layer, cross-attention ...) is refused by [`validate`](Gpt2Config::validate).

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

mod bert;
mod clip;
mod decoder;
mod gpt2;
mod llama;
mod mapper;
mod preprocessor;
mod spelling;

pub use super::vision::{ClipVisionConfig, ResNetConfig, VisionConfig};
pub use bert::BertConfig;
pub use clip::{ClipConfig, ClipTextConfig, TextConfig};
pub use decoder::DecoderConfig;
pub use gpt2::Gpt2Config;
pub use llama::LlamaConfig;
#[cfg(test)]
pub use llama::RopeScaling;
pub use mapper::{MapperConfig, MapperKind, TransformerConfig};
pub use preprocessor::{PreprocessorConfig, Resize};

/// What can be wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: {problem}", path.display())]
    Unsupported { path: PathBuf, problem: String },
}

/// Activation functions by transformers' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x * sigmoid(1.702 x), CLIP's.
    QuickGelu,
    /// The exact one, with erf.
    Gelu,
    /// GPT2's, with tanh.
    #[serde(alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluNew,
    Relu,
    /// x * sigmoid(x), Llama's.
    #[serde(alias = "swish")]
    Silu,
}

/// Larger files are not configurations.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// No published model comes near; products of a few such sizes still fit in 64 bits.
const MAX_SIZE: usize = 1 << 20;

/// Reads a small text file whole.
pub(crate) fn read_text(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read;
    let io = |source| ConfigError::Io { path: path.into(), source };
    let mut text = String::new();
    let file = crate::files::open_regular(path).map_err(io)?;
    file.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(ConfigError::Unsupported { path: path.into(), problem: "too large for a configuration file".into() });
    }
    Ok(text)
}

/// Reads a JSON file into its type; nothing is validated beyond the types.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    serde_json::from_str(&read_text(path)?).map_err(|source| ConfigError::Json { path: path.into(), source })
}

pub(super) fn check(path: &Path, holds: bool, problem: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Unsupported { path: path.into(), problem: problem() }) }
}

pub(super) fn check_sizes(path: &Path, sizes: &[(&str, usize)]) -> Result<(), ConfigError> {
    sizes.iter().try_for_each(|&(name, size)| {
        check(path, (1..=MAX_SIZE).contains(&size), || format!("{name} is {size}; it must be from 1 to {MAX_SIZE}"))
    })
}

pub(super) fn check_heads(path: &Path, width: (&str, usize), heads: (&str, usize)) -> Result<(), ConfigError> {
    check(path, width.1.is_multiple_of(heads.1), || {
        format!("{} ({}) is not a multiple of {} ({})", width.0, width.1, heads.0, heads.1)
    })
}

/// What is added to a variance is a small number.
pub(super) fn check_epsilon(path: &Path, (name, epsilon): (&str, f64)) -> Result<(), ConfigError> {
    check(path, (0.0..=0.01).contains(&epsilon), || format!("{name} is {epsilon}; it must be from 0 to 0.01"))
}

pub(super) fn check_probabilities(path: &Path, probabilities: &[(&str, f64)]) -> Result<(), ConfigError> {
    probabilities.iter().try_for_each(|&(name, p)| {
        check(path, (0.0..1.0).contains(&p), || format!("{name} is {p}; it must be at least 0 and below 1"))
    })
}

#[cfg(test)]
mod tests;
