//! CLIP's vision transformer, as Hugging Face names it: OpenAI's, open_clip's and Chinese-CLIP's.
//!
//! B images, S side of an image, T positions (the class position and patches), C width, D length of an embedding.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ImageTower, check_patches};
use crate::models::block::{Attention, Block, Product};
use crate::models::config::{Activation, ConfigError, check_probabilities};
use crate::models::layers::{Style, layer_norm, linear, parameter, patch_embedding};
use crate::models::tensors::{Init, List, inverse_root};
use crate::onnx::{Graph, Value};

/// `vision_config` of a CLIP.
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

const LAYERS: &str = "vision_model.encoder.layers";

impl ClipVisionConfig {
    /// Patches of an image and the class position.
    pub fn num_positions(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
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

    /// [B, 3, S, S] -> [B, T, C]: a patch a position, after the class position.
    fn patches(&self, g: &Graph, style: Style, pixels: Value) -> Value {
        let (width, patch, positions) = (self.hidden_size, self.patch_size, self.num_positions());
        let batch = g.shape(pixels)[0].clone();
        g.scope("embeddings", || {
            let patches = patch_embedding(g, style, pixels, width, patch, false);
            let class = g.reshape(parameter(g, style, "class_embedding", &[width]), &[1.into(), 1.into(), width.into()]);
            let class = g.expand(class, &[batch, 1.into(), width.into()]);
            let x = g.concat(&[class, patches], 1);
            g.add(x, parameter(g, style, "position_embedding.weight", &[positions, width]))
        })
    }
}

impl ImageTower for ClipVisionConfig {
    fn family(&self) -> &'static str {
        "CLIP, vision transformer"
    }

    fn layers(&self) -> String {
        format!("patches of {}, {} layers of {}", self.patch_size, self.num_hidden_layers, self.hidden_size)
    }

    fn image_size(&self) -> usize {
        self.image_size
    }

    fn own_projection_dim(&self) -> usize {
        self.projection_dim
    }

    fn embeds(&self, g: &Graph, style: Style, pixels: Value, projection_dim: usize, attention: Attention) -> Value {
        let (width, batch) = (self.hidden_size, g.shape(pixels)[0].clone());
        let pooled = g.scope("vision_model", || {
            let mut x = self.patches(g, style, pixels);
            x = layer_norm(g, style, "pre_layrnorm", x, width, self.layer_norm_eps);
            for layer in 0..self.num_hidden_layers {
                x = g.scope(&format!("encoder.layers.{layer}"), || self.block().build(g, style, x, attention));
            }
            let class = g.slice(x, 1, 0.into(), 1.into());
            let class = g.reshape(class, &[batch, width.into()]);
            layer_norm(g, style, "post_layernorm", class, width, self.layer_norm_eps)
        });
        // A small product at the end, kept exact in the int8 variant.
        linear(g, Style { int8: false, ..style }, "visual_projection", pooled, width, projection_dim, false)
    }

    fn tensors(&self, list: &mut List, projection_dim: usize, projection_factor: f64) {
        let (width, factor) = (self.hidden_size, self.initializer_factor);
        let embeddings = "vision_model.embeddings";
        list.add(format!("{embeddings}.class_embedding"), &[width], Init::Normal(inverse_root(width) * factor));
        let patch = [width, self.num_channels, self.patch_size, self.patch_size];
        let init = Init::Normal(self.initializer_range * factor);
        list.add(format!("{embeddings}.patch_embedding.weight"), &patch, init);
        list.add(format!("{embeddings}.position_embedding.weight"), &[self.num_positions(), width], init);
        list.layer_norm("vision_model.pre_layrnorm", width);
        self.block().tensors(list, LAYERS, self.num_hidden_layers, factor);
        list.layer_norm("vision_model.post_layernorm", width);
        let projection = Init::Normal(inverse_root(width) * projection_factor);
        list.add("visual_projection.weight", &[projection_dim, width], projection);
    }

    fn products(&self) -> Vec<Product> {
        self.block().products(LAYERS, self.num_hidden_layers)
    }

    fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        self.block().validate(path, "vision_config", self.num_hidden_layers)?;
        check_patches(path, self.num_channels, self.image_size, self.patch_size)?;
        check_probabilities(path, &[("vision_config.attention_dropout", self.attention_dropout)])
    }
}
