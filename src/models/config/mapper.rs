use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{BertConfig, ConfigError, check, check_heads, check_sizes, read_json};

/// Which network turns an embedding into a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MapperKind {
    Mlp,
    Bert,
    /// The original ClipCap's own transformer.
    Transformer,
}

impl std::fmt::Display for MapperKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mlp => "mlp",
            Self::Bert => "bert",
            Self::Transformer => "transformer",
        })
    }
}

/// `mapper/config.json`: from an embedding [B, clip_size] to prefix_embeds [B, prefix_len, n_embd].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapperConfig {
    pub kind: MapperKind,
    /// Length of an embedding, D.
    pub clip_size: usize,
    /// Width of a state, C.
    pub n_embd: usize,
    /// Positions of a prefix, P.
    pub prefix_len: usize,
    /// Rows of `prefix_const`, whose positions the BERT mapper returns: equal to `prefix_len`; 0 for an MLP.
    pub constant_len: usize,
    /// Widths of the MLP's layers, from `clip_size` to `prefix_len * n_embd`, with tanh between them; empty for BERT.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layer_sizes: Vec<usize>,
    /// The BERT mapper's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bert: Option<BertConfig>,
    /// The transformer mapper's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transformer: Option<TransformerConfig>,
}

/// The original ClipCap's transformer mapper: pre-norm layers with ReLU over the projected tokens and, behind them, `constant_len` constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// Positions that an embedding is projected to.
    pub clip_length: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    /// Width inside the MLPs.
    pub inner_size: usize,
    /// Whether queries, keys and values have biases.
    #[serde(default)]
    pub qkv_bias: bool,
}

impl MapperConfig {
    /// ClipCap's MLP: one hidden layer half as wide as the prefix.
    pub fn mlp(clip_size: usize, n_embd: usize, prefix_len: usize) -> Self {
        let out = prefix_len * n_embd;
        let layer_sizes = vec![clip_size, out / 2, out];
        Self { kind: MapperKind::Mlp, clip_size, n_embd, prefix_len, constant_len: 0, layer_sizes, bert: None, transformer: None }
    }

    /// ClipCap-Chinese's BERT mapper.
    pub fn bert(clip_size: usize, n_embd: usize, prefix_len: usize, bert: BertConfig) -> Self {
        let bert = Some(bert);
        Self { bert, ..Self::over_constants(MapperKind::Bert, clip_size, n_embd, prefix_len) }
    }

    /// The original ClipCap's transformer mapper.
    pub fn transformer(clip_size: usize, n_embd: usize, prefix_len: usize, transformer: TransformerConfig) -> Self {
        let transformer = Some(transformer);
        Self { transformer, ..Self::over_constants(MapperKind::Transformer, clip_size, n_embd, prefix_len) }
    }

    fn over_constants(kind: MapperKind, clip_size: usize, n_embd: usize, prefix_len: usize) -> Self {
        Self { kind, clip_size, n_embd, prefix_len, constant_len: prefix_len, layer_sizes: vec![], bert: None, transformer: None }
    }

    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = read_json(path)?;
        config.validate(path)?;
        Ok(config)
    }

    /// Checks that sizes are positive, bounded and fit each other.
    pub fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        let sizes = [("clip_size", self.clip_size), ("n_embd", self.n_embd), ("prefix_len", self.prefix_len)];
        check_sizes(path, &sizes)?;
        match self.kind {
            MapperKind::Mlp => {
                let ends = (self.layer_sizes.first(), self.layer_sizes.last());
                let wanted = (Some(&self.clip_size), Some(&(self.prefix_len * self.n_embd)));
                check(
                    path,
                    self.layer_sizes.len() >= 2 && ends == wanted && self.layer_sizes.iter().all(|&size| size > 0),
                    || {
                        format!(
                            "an MLP mapper's layer_sizes go from clip_size ({}) to prefix_len * n_embd ({}); they are {:?}",
                            self.clip_size,
                            self.prefix_len * self.n_embd,
                            self.layer_sizes
                        )
                    },
                )
            }
            MapperKind::Transformer => {
                check(path, self.constant_len == self.prefix_len, || {
                    format!("constant_len ({}) must equal prefix_len ({})", self.constant_len, self.prefix_len)
                })?;
                check(path, self.transformer.is_some(), || "a transformer mapper needs the key transformer".into())?;
                let Some(transformer) = &self.transformer else { return Ok(()) };
                let TransformerConfig { clip_length, num_layers, num_heads, inner_size, .. } = *transformer;
                let sizes = [
                    ("clip_length", clip_length),
                    ("num_layers", num_layers),
                    ("num_heads", num_heads),
                    ("inner_size", inner_size),
                ];
                check_sizes(path, &sizes)?;
                check_heads(path, ("n_embd", self.n_embd), ("num_heads", num_heads))
            }
            MapperKind::Bert => {
                check(path, self.constant_len == self.prefix_len, || {
                    format!("constant_len ({}) must equal prefix_len ({})", self.constant_len, self.prefix_len)
                })?;
                check(path, self.bert.is_some(), || "a BERT mapper needs the key bert".into())?;
                let Some(bert) = &self.bert else { return Ok(()) };
                bert.validate(path)?;
                check(path, bert.hidden_size == self.n_embd, || {
                    format!("BERT's hidden_size ({}) must equal GPT2's n_embd ({})", bert.hidden_size, self.n_embd)
                })?;
                let positions = self.prefix_len + self.constant_len;
                check(path, positions <= bert.max_position_embeddings, || {
                    format!("BERT has {} positions and the mapper needs {positions}", bert.max_position_embeddings)
                })
            }
        }
    }
}
