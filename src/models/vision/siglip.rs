//! SigLIP's image tower (and that of SigLIP 2 at a fixed resolution), as Hugging Face names it: no class position, and a head that pools by
//! attention. The pooled state is the embedding; nothing projects it.
//!
//! B images, S side of an image, T patches, C width.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ImageTower, check_patches};
use crate::models::block::{Attention, Block, Product, attend, feed_forward};
use crate::models::config::{Activation, ConfigError, PreprocessorConfig, Resize, check, check_probabilities};
use crate::models::layers::{Style, layer_norm, linear, parameter, patch_embedding};
use crate::models::tensors::{Init, List, inverse_root};
use crate::onnx::{Graph, Value};

/// `vision_config` of a SigLIP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SiglipVisionConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    /// Side of the square image, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
    pub attention_dropout: f64,
    /// False where the pooling head was left out; there is no embedding then.
    pub vision_use_head: bool,
}

impl Default for SiglipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 16,
            hidden_act: Activation::GeluNew,
            layer_norm_eps: 1e-6,
            attention_dropout: 0.0,
            vision_use_head: true,
        }
    }
}

const LAYERS: &str = "vision_model.encoder.layers";

impl SiglipVisionConfig {
    fn num_positions(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    fn block(&self) -> Block {
        Block {
            width: self.hidden_size,
            inner: self.intermediate_size,
            heads: self.num_attention_heads,
            hidden_act: self.hidden_act,
            epsilon: self.layer_norm_eps,
        }
    }

    /// [B, 3, S, S] -> [B, T, C].
    fn patches(&self, g: &Graph, style: Style, pixels: Value) -> Value {
        let (width, patch, positions) = (self.hidden_size, self.patch_size, self.num_positions());
        g.scope("embeddings", || {
            let patches = patch_embedding(g, style, pixels, width, patch, true);
            g.add(patches, parameter(g, style, "position_embedding.weight", &[positions, width]))
        })
    }

    /// [B, T, C] -> [B, C]: a learned probe attends to the patches.
    fn pooled(&self, g: &Graph, style: Style, x: Value) -> Value {
        let (width, batch) = (self.hidden_size, g.shape(x)[0].clone());
        let probe = g.expand(parameter(g, style, "probe", &[1, 1, width]), &[batch.clone(), 1.into(), width.into()]);
        let attended = g.scope("attention", || {
            // PyTorch keeps the three projections in one matrix.
            let weights = parameter(g, style, "in_proj_weight", &[3 * width, width]);
            let biases = parameter(g, style, "in_proj_bias", &[3 * width]);
            let project = |part: usize, x: Value| {
                let rows = (part * width, (part + 1) * width);
                let weight = g.slice(weights, 0, rows.0.into(), rows.1.into());
                let bias = g.slice(biases, 0, rows.0.into(), rows.1.into());
                g.add(g.matmul(x, g.transpose(weight, &[1, 0])), bias)
            };
            let qkv = [project(0, probe), project(1, x), project(2, x)];
            let attended = attend(g, style, qkv, self.num_attention_heads, Attention::Open(None));
            linear(g, style, "out_proj", attended, width, width, true)
        });
        let normed = layer_norm(g, style, "layernorm", attended, width, self.layer_norm_eps);
        let fed = feed_forward(g, style, self.hidden_act, normed, width, self.intermediate_size);
        g.reshape(g.add(attended, fed), &[batch, width.into()])
    }
}

impl ImageTower for SiglipVisionConfig {
    fn family(&self) -> &'static str {
        "SigLIP"
    }

    fn layers(&self) -> String {
        format!("patches of {}, {} layers of {}", self.patch_size, self.num_hidden_layers, self.hidden_size)
    }

    fn image_size(&self) -> usize {
        self.image_size
    }

    fn own_projection_dim(&self) -> usize {
        self.hidden_size
    }

    fn embeds(&self, g: &Graph, style: Style, pixels: Value, _projection_dim: usize, attention: Attention) -> Value {
        g.scope("vision_model", || {
            let mut x = self.patches(g, style, pixels);
            for layer in 0..self.num_hidden_layers {
                x = g.scope(&format!("encoder.layers.{layer}"), || self.block().build(g, style, x, attention));
            }
            let x = layer_norm(g, style, "post_layernorm", x, self.hidden_size, self.layer_norm_eps);
            // Small products over one position, kept exact in the int8 variant.
            g.scope("head", || self.pooled(g, Style { int8: false, ..style }, x))
        })
    }

    fn tensors(&self, list: &mut List, _projection_dim: usize, factor: f64) {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let normal = Init::Normal(inverse_root(width) * factor);
        let embeddings = "vision_model.embeddings";
        list.add(
            format!("{embeddings}.patch_embedding.weight"),
            &[width, 3, self.patch_size, self.patch_size],
            Init::Normal(0.02),
        );
        list.add(format!("{embeddings}.patch_embedding.bias"), &[width], Init::Constant(0.0));
        list.add(format!("{embeddings}.position_embedding.weight"), &[self.num_positions(), width], normal);
        self.block().tensors(list, LAYERS, self.num_hidden_layers, factor);
        list.layer_norm("vision_model.post_layernorm", width);
        let head = "vision_model.head";
        list.add(format!("{head}.probe"), &[1, 1, width], normal);
        list.add(format!("{head}.attention.in_proj_weight"), &[3 * width, width], normal);
        list.add(format!("{head}.attention.in_proj_bias"), &[3 * width], Init::Constant(0.0));
        list.linear(&format!("{head}.attention.out_proj"), width, width, normal);
        list.layer_norm(&format!("{head}.layernorm"), width);
        list.linear(&format!("{head}.mlp.fc1"), width, inner, normal);
        list.linear(&format!("{head}.mlp.fc2"), inner, width, normal);
    }

    fn products(&self) -> Vec<Product> {
        self.block().products(LAYERS, self.num_hidden_layers)
    }

    fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        self.block().validate(path, "vision_config", self.num_hidden_layers)?;
        check_patches(path, self.num_channels, self.image_size, self.patch_size)?;
        check(path, self.vision_use_head, || {
            "vision_use_head is false: without SigLIP's pooling head there is no embedding of an image".into()
        })?;
        check_probabilities(path, &[("vision_config.attention_dropout", self.attention_dropout)])
    }

    fn preprocessor(&self) -> PreprocessorConfig {
        let side = self.image_size;
        PreprocessorConfig {
            size: Resize::Exact { height: side, width: side },
            do_center_crop: false,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            ..PreprocessorConfig::for_image_size(side)
        }
    }
}
