//! CLIP's image tower, a vision transformer, as Hugging Face names it.
//!
//! B images, S side of an image, T patches and the class position, C width, D length of an embedding.

use super::config::{ClipConfig, ClipVisionConfig};
use super::layers::{Style, activation, encoder_attention, layer_norm, linear, parameter};
use crate::onnx::{DType, Graph, Value};

/// `pixel_values` [batch, 3, S, S] -> `image_embeds` [batch, D], projected and not normalized.
pub fn image_encoder(g: &Graph, style: Style, config: &ClipConfig) {
    let vision = &config.vision_config;
    let side = vision.image_size.into();
    let pixels = g.input("pixel_values", DType::F32, &["batch".into(), 3.into(), side, vision.image_size.into()]);
    let width = vision.hidden_size;
    let pooled = g.scope("vision_model", || {
        let mut x = embeddings(g, style, vision, g.cast(pixels, style.dtype));
        x = layer_norm(g, style, "pre_layrnorm", x, width, vision.layer_norm_eps);
        for layer in 0..vision.num_hidden_layers {
            x = g.scope(&format!("encoder.layers.{layer}"), || block(g, style, vision, x));
        }
        let class = g.slice(x, 1, 0.into(), 1.into());
        let class = g.reshape(class, &["batch".into(), width.into()]);
        layer_norm(g, style, "post_layernorm", class, width, vision.layer_norm_eps)
    });
    // A small product at the end, kept exact in the int8 variant.
    let embeds = linear(g, Style { int8: false, ..style }, "visual_projection", pooled, width, config.projection_dim, false);
    g.output("image_embeds", g.cast(embeds, DType::F32));
}

/// [B, 3, S, S] -> [B, T, C]: a patch a position, after the class position.
fn embeddings(g: &Graph, style: Style, vision: &ClipVisionConfig, pixels: Value) -> Value {
    let (width, patch, positions) = (vision.hidden_size, vision.patch_size, vision.num_positions());
    g.scope("embeddings", || {
        let kernel = parameter(g, style, "patch_embedding.weight", &[width, 3, patch, patch]);
        let patches = g.conv(pixels, kernel, None, patch as i64); // [B, C, S/patch, S/patch]
        let patches = g.reshape(patches, &["batch".into(), width.into(), (positions - 1).into()]);
        let patches = g.transpose(patches, &[0, 2, 1]); // [B, T-1, C]
        let class = g.reshape(parameter(g, style, "class_embedding", &[width]), &[1.into(), 1.into(), width.into()]);
        let class = g.expand(class, &["batch".into(), 1.into(), width.into()]);
        let x = g.concat(&[class, patches], 1);
        g.add(x, parameter(g, style, "position_embedding.weight", &[positions, width]))
    })
}

/// One pre-norm layer, [B, T, C] -> [B, T, C].
fn block(g: &Graph, style: Style, vision: &ClipVisionConfig, x: Value) -> Value {
    let (width, inner) = (vision.hidden_size, vision.intermediate_size);
    let normed = layer_norm(g, style, "layer_norm1", x, width, vision.layer_norm_eps);
    let attended = g.scope("self_attn", || {
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| linear(g, style, name, normed, width, width, true));
        let heads = encoder_attention(g, style, q, k, v, vision.num_attention_heads);
        linear(g, style, "out_proj", heads, width, width, true)
    });
    let x = g.add(x, attended);
    let normed = layer_norm(g, style, "layer_norm2", x, width, vision.layer_norm_eps);
    let fed = g.scope("mlp", || {
        let hidden = linear(g, style, "fc1", normed, width, inner, true);
        linear(g, style, "fc2", activation(g, style, vision.hidden_act, hidden), inner, width, true)
    });
    g.add(x, fed)
}
