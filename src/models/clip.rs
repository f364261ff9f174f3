//! CLIP's two towers, transformers that embed images and captions side by side, as Hugging Face names them.
//!
//! B images or captions, S side of an image, T positions (patches and the class position, or tokens), C width, D length of an embedding.

use super::config::{Activation, ClipConfig, ClipTextConfig, ClipVisionConfig};
use super::layers::{
    Style, activation, attention_with, causal_bias, encoder_attention, join_heads, layer_norm, linear, parameter, split_heads,
};
use crate::onnx::{DType, Dim, Graph, Value};

/// `pixel_values` [batch, 3, S, S] -> `image_embeds` [batch, D], projected and not normalized.
pub fn image_encoder(g: &Graph, style: Style, config: &ClipConfig) {
    let side = Dim::from(config.vision_config.image_size);
    let pixels = g.input("pixel_values", DType::F32, &["batch".into(), 3.into(), side.clone(), side]);
    let heads = config.vision_config.num_attention_heads;
    let attend = |[q, k, v]: [Value; 3]| encoder_attention(g, style, q, k, v, heads);
    let embeds = image_tower(g, style, config, g.cast(pixels, style.dtype), &attend);
    g.output("image_embeds", g.cast(embeds, DType::F32));
}

/// [B, 3, S, S] -> [B, D], in operators that have a gradient.
pub fn image_embeds(g: &Graph, style: Style, config: &ClipConfig, pixels: Value) -> Value {
    let heads = config.vision_config.num_attention_heads;
    image_tower(g, style, config, pixels, &|qkv| open_attention(g, style, qkv, heads, None))
}

/// Captions' embeddings [B, D]: token ids `ids` [B, T] (int64) and, for each caption, the row of the flattened [B * T] states at its last
/// token, `ends` [B]. What stands behind it is not seen.
pub fn text_embeds(g: &Graph, style: Style, config: &ClipConfig, text: &ClipTextConfig, ids: Value, ends: Value) -> Value {
    let width = text.hidden_size;
    let [batch, tokens] = &g.shape(ids)[..] else {
        g.fail("token ids are [B, T]");
        return ids;
    };
    let pooled = g.scope("text_model", || {
        let mut x = g.scope("embeddings", || {
            let words = g.parameter("token_embedding.weight", &[text.vocab_size.into(), width.into()]);
            let positions = parameter(g, style, "position_embedding.weight", &[text.max_position_embeddings, width]);
            g.add(g.cast(g.gather(words, ids, 0), style.dtype), g.slice(positions, 0, 0.into(), tokens.clone()))
        });
        let bias = causal_bias(g, style, tokens, tokens, &0.into());
        let attend = |qkv| open_attention(g, style, qkv, text.num_attention_heads, Some(bias));
        for layer in 0..text.num_hidden_layers {
            x = g.scope(&format!("encoder.layers.{layer}"), || block(g, style, &Tower::of_text(text), x, &attend));
        }
        let flat = g.reshape(x, &[batch.clone() * tokens.clone(), width.into()]);
        layer_norm(g, style, "final_layer_norm", g.gather(flat, ends, 0), width, text.layer_norm_eps)
    });
    linear(g, style, "text_projection", pooled, width, config.projection_dim, false)
}

/// Query, key and value [B, T, C] to what is attended [B, T, C].
type Attend<'a> = &'a dyn Fn([Value; 3]) -> Value;

/// What a layer of either tower is made of.
struct Tower {
    width: usize,
    inner: usize,
    hidden_act: Activation,
    epsilon: f64,
}

impl Tower {
    fn of_images(vision: &ClipVisionConfig) -> Self {
        let (width, inner) = (vision.hidden_size, vision.intermediate_size);
        Self { width, inner, hidden_act: vision.hidden_act, epsilon: vision.layer_norm_eps }
    }

    fn of_text(text: &ClipTextConfig) -> Self {
        let (width, inner) = (text.hidden_size, text.intermediate_size);
        Self { width, inner, hidden_act: text.hidden_act, epsilon: text.layer_norm_eps }
    }
}

fn image_tower(g: &Graph, style: Style, config: &ClipConfig, pixels: Value, attend: Attend<'_>) -> Value {
    let vision = &config.vision_config;
    let (width, batch) = (vision.hidden_size, g.shape(pixels)[0].clone());
    let pooled = g.scope("vision_model", || {
        let mut x = patches(g, style, vision, pixels);
        x = layer_norm(g, style, "pre_layrnorm", x, width, vision.layer_norm_eps);
        for layer in 0..vision.num_hidden_layers {
            x = g.scope(&format!("encoder.layers.{layer}"), || block(g, style, &Tower::of_images(vision), x, attend));
        }
        let class = g.slice(x, 1, 0.into(), 1.into());
        let class = g.reshape(class, &[batch, width.into()]);
        layer_norm(g, style, "post_layernorm", class, width, vision.layer_norm_eps)
    });
    // A small product at the end, kept exact in the int8 variant.
    linear(g, Style { int8: false, ..style }, "visual_projection", pooled, width, config.projection_dim, false)
}

/// [B, 3, S, S] -> [B, T, C]: a patch a position, after the class position.
fn patches(g: &Graph, style: Style, vision: &ClipVisionConfig, pixels: Value) -> Value {
    let (width, patch, positions) = (vision.hidden_size, vision.patch_size, vision.num_positions());
    let batch = g.shape(pixels)[0].clone();
    g.scope("embeddings", || {
        let kernel = parameter(g, style, "patch_embedding.weight", &[width, 3, patch, patch]);
        let patches = g.conv(pixels, kernel, None, patch as i64); // [B, C, S/patch, S/patch]
        let patches = g.reshape(patches, &[batch.clone(), width.into(), (positions - 1).into()]);
        let patches = g.transpose(patches, &[0, 2, 1]); // [B, T-1, C]
        let class = g.reshape(parameter(g, style, "class_embedding", &[width]), &[1.into(), 1.into(), width.into()]);
        let class = g.expand(class, &[batch, 1.into(), width.into()]);
        let x = g.concat(&[class, patches], 1);
        g.add(x, parameter(g, style, "position_embedding.weight", &[positions, width]))
    })
}

/// One pre-norm layer, [B, T, C] -> [B, T, C].
fn block(g: &Graph, style: Style, tower: &Tower, x: Value, attend: Attend<'_>) -> Value {
    let &Tower { width, inner, hidden_act, epsilon } = tower;
    let normed = layer_norm(g, style, "layer_norm1", x, width, epsilon);
    let attended = g.scope("self_attn", || {
        let qkv = ["q_proj", "k_proj", "v_proj"].map(|name| linear(g, style, name, normed, width, width, true));
        linear(g, style, "out_proj", attend(qkv), width, width, true)
    });
    let x = g.add(x, attended);
    let normed = layer_norm(g, style, "layer_norm2", x, width, epsilon);
    let fed = g.scope("mlp", || {
        let hidden = linear(g, style, "fc1", normed, width, inner, true);
        linear(g, style, "fc2", activation(g, style, hidden_act, hidden), inner, width, true)
    });
    g.add(x, fed)
}

fn open_attention(g: &Graph, style: Style, qkv: [Value; 3], heads: usize, bias: Option<Value>) -> Value {
    let qkv = qkv.map(|x| split_heads(g, x, heads));
    join_heads(g, attention_with(g, style, qkv, bias, |weights| weights))
}
