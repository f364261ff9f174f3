//! The pre-norm transformer layer that the towers of CLIP and SigLIP are made of.
//!
//! B images or captions, T positions, C width.

use std::path::Path;

use super::config::{Activation, ConfigError, check_epsilon, check_heads, check_sizes};
use super::layers::{Style, activation, attention_with, encoder_attention, join_heads, layer_norm, linear, split_heads};
use super::tensors::{Init, List, inverse_root};
use crate::onnx::{Graph, Value};

/// A product with a weight [outputs, inputs] that `model quantize` stores in 8 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    pub name: String,
    pub outputs: usize,
    pub inputs: usize,
}

/// How attention is spelled.
#[derive(Debug, Clone, Copy)]
pub enum Attention {
    /// As fast as the style allows.
    Finished,
    /// In operators that have a gradient; what is given is added to the scores.
    Open(Option<Value>),
}

/// One layer's sizes.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    pub width: usize,
    pub inner: usize,
    pub heads: usize,
    pub hidden_act: Activation,
    pub epsilon: f64,
}

impl Block {
    /// [B, T, C] -> [B, T, C].
    pub fn build(&self, g: &Graph, style: Style, x: Value, attention: Attention) -> Value {
        let &Self { width, inner, heads, hidden_act, epsilon } = self;
        let normed = layer_norm(g, style, "layer_norm1", x, width, epsilon);
        let attended = g.scope("self_attn", || {
            let qkv = ["q_proj", "k_proj", "v_proj"].map(|name| linear(g, style, name, normed, width, width, true));
            linear(g, style, "out_proj", attend(g, style, qkv, heads, attention), width, width, true)
        });
        let x = g.add(x, attended);
        let normed = layer_norm(g, style, "layer_norm2", x, width, epsilon);
        g.add(x, feed_forward(g, style, hidden_act, normed, width, inner))
    }

    /// Checks that sizes are positive, bounded and fit each other; `section` is where `path` has them, such as `vision_config`.
    pub fn validate(&self, path: &Path, section: &str, layers: usize) -> Result<(), ConfigError> {
        let name = |key: &str| format!("{section}.{key}");
        let [width, heads] = ["hidden_size", "num_attention_heads"].map(name);
        let (inner, depth) = (name("intermediate_size"), name("num_hidden_layers"));
        check_sizes(path, &[(&width, self.width), (&inner, self.inner), (&depth, layers), (&heads, self.heads)])?;
        check_heads(path, (&width, self.width), (&heads, self.heads))?;
        check_epsilon(path, (&name("layer_norm_eps"), self.epsilon))
    }

    /// `layers` layers under `scope`.N.
    pub fn tensors(&self, list: &mut List, scope: &str, layers: usize, factor: f64) {
        let Self { width, inner, .. } = *self;
        let deep = inverse_root(width) * inverse_root(2 * layers) * factor;
        for layer in 0..layers {
            let scope = format!("{scope}.{layer}");
            for name in ["q_proj", "k_proj", "v_proj"] {
                list.linear(&format!("{scope}.self_attn.{name}"), width, width, Init::Normal(deep));
            }
            list.linear(&format!("{scope}.self_attn.out_proj"), width, width, Init::Normal(inverse_root(width) * factor));
            list.layer_norm(&format!("{scope}.layer_norm1"), width);
            list.linear(&format!("{scope}.mlp.fc1"), width, inner, Init::Normal(inverse_root(2 * width) * factor));
            list.linear(&format!("{scope}.mlp.fc2"), inner, width, Init::Normal(deep));
            list.layer_norm(&format!("{scope}.layer_norm2"), width);
        }
    }

    /// The products of `layers` layers under `scope`.N.
    pub fn products(&self, scope: &str, layers: usize) -> Vec<Product> {
        let Self { width, inner, .. } = *self;
        let one = |layer: usize| {
            let attention = ["q_proj", "k_proj", "v_proj", "out_proj"].map(|name| (format!("self_attn.{name}"), width, width));
            attention
                .into_iter()
                .chain([("mlp.fc1".into(), inner, width), ("mlp.fc2".into(), width, inner)])
                .map(move |(name, outputs, inputs)| Product { name: format!("{scope}.{layer}.{name}.weight"), outputs, inputs })
        };
        (0..layers).flat_map(one).collect()
    }
}

/// `mlp.fc1`, the activation, `mlp.fc2`.
pub fn feed_forward(g: &Graph, style: Style, kind: Activation, x: Value, width: usize, inner: usize) -> Value {
    g.scope("mlp", || {
        let hidden = linear(g, style, "fc1", x, width, inner, true);
        linear(g, style, "fc2", activation(g, style, kind, hidden), inner, width, true)
    })
}

/// Queries, keys and values [B, T, C] to what is attended [B, T, C]; there may be fewer queries than keys where the attention is open.
pub fn attend(g: &Graph, style: Style, qkv: [Value; 3], heads: usize, attention: Attention) -> Value {
    match attention {
        Attention::Finished => encoder_attention(g, style, qkv[0], qkv[1], qkv[2], heads),
        Attention::Open(bias) => {
            let qkv = qkv.map(|x| split_heads(g, x, heads));
            join_heads(g, attention_with(g, style, qkv, bias, |weights| weights))
        }
    }
}
