//! The two towers of a CLIP side by side: images and captions to embeddings of one space.
//!
//! B images or captions, S side of an image, T tokens, C width, D length of an embedding.

use super::block::{Attention, Block};
use super::config::{ClipConfig, ClipTextConfig};
use super::layers::{Style, causal_bias, layer_norm, linear, parameter};
use crate::image::Preprocess;
use crate::onnx::{DType, Dim, Graph, Value};

/// `pixel_values` [batch, 3, S, S] -> `image_embeds` [batch, D], projected and not normalized.
pub fn image_encoder(g: &Graph, style: Style, config: &ClipConfig) {
    let side = Dim::from(config.vision_config.image_size());
    let pixels = g.input("pixel_values", DType::F32, &["batch".into(), 3.into(), side.clone(), side]);
    let tower = config.vision_config.tower();
    let embeds = tower.embeds(g, style, g.cast(pixels, style.dtype), config.projection_dim, Attention::Finished);
    g.output("image_embeds", g.cast(embeds, DType::F32));
}

/// The same from pictures as they are after resizing, `pixels` [batch, S, S, 3] in bytes: what each becomes is looked up in the table that
/// readers look it up in elsewhere, so that both encode the same numbers.
pub fn byte_encoder(g: &Graph, style: Style, config: &ClipConfig, preprocess: &Preprocess) {
    let side = Dim::from(config.vision_config.image_size());
    let bytes = g.input("pixels", DType::U8, &["batch".into(), side.clone(), side, 3.into()]);
    let tables = preprocess.tables();
    let starts = (0..tables.len()).flat_map(|channel| (channel as i32 * 256).to_le_bytes()).collect();
    let starts = g.constant(DType::I32, &[1, tables.len() as i64, 1, 1], starts);
    let numbers = g.cast(g.floats(tables.as_flattened(), &[tables.as_flattened().len() as i64]), style.dtype);
    let places = g.add(g.cast(g.transpose(bytes, &[0, 3, 1, 2]), DType::I32), starts);
    let pixels = g.gather(numbers, places, 0);
    let embeds = config.vision_config.tower().embeds(g, style, pixels, config.projection_dim, Attention::Finished);
    g.output("image_embeds", g.cast(embeds, DType::F32));
}

/// [B, 3, S, S] -> [B, D], in operators that have a gradient (where the family has one).
pub fn image_embeds(g: &Graph, style: Style, config: &ClipConfig, pixels: Value) -> Value {
    config.vision_config.tower().embeds(g, style, pixels, config.projection_dim, Attention::Open(None))
}

/// Captions' embeddings [B, D]: token ids `ids` [B, T] (int64) and, for each caption, the row of the flattened [B * T] states at its last
/// token, `ends` [B]. What stands behind it is not seen.
pub fn text_embeds(g: &Graph, style: Style, config: &ClipConfig, text: &ClipTextConfig, ids: Value, ends: Value) -> Value {
    let width = text.hidden_size;
    let [batch, tokens] = &g.shape(ids)[..] else {
        g.fail("token ids are [B, T]");
        return ids;
    };
    let block = text_block(text);
    let pooled = g.scope("text_model", || {
        let mut x = g.scope("embeddings", || {
            let words = g.parameter("token_embedding.weight", &[text.vocab_size.into(), width.into()]);
            let positions = parameter(g, style, "position_embedding.weight", &[text.max_position_embeddings, width]);
            g.add(g.cast(g.gather(words, ids, 0), style.dtype), g.slice(positions, 0, 0.into(), tokens.clone()))
        });
        let bias = causal_bias(g, style, tokens, tokens, &0.into());
        for layer in 0..text.num_hidden_layers {
            x = g.scope(&format!("encoder.layers.{layer}"), || block.build(g, style, x, Attention::Open(Some(bias))));
        }
        let flat = g.reshape(x, &[batch.clone() * tokens.clone(), width.into()]);
        layer_norm(g, style, "final_layer_norm", g.gather(flat, ends, 0), width, text.layer_norm_eps)
    });
    linear(g, style, "text_projection", pooled, width, config.projection_dim, false)
}

/// The layer CLIP's text tower is made of.
pub fn text_block(text: &ClipTextConfig) -> Block {
    Block {
        width: text.hidden_size,
        inner: text.intermediate_size,
        heads: text.num_attention_heads,
        hidden_act: text.hidden_act,
        epsilon: text.layer_norm_eps,
    }
}
