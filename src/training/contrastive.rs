//! The contrastive objective: of all captions of a batch an image's own is the nearest, and the other way about.
//!
//! B pairs, D length of an embedding.

use super::loss::{Loss, log_sum_exp};
use crate::models::clip;
use crate::models::config::ClipConfig;
use crate::models::layers::Style;
use crate::onnx::{DType, Graph, Value};

/// Similarities are multiplied by at most this, as OpenAI trained CLIP.
const GREATEST_SCALE: f32 = 100.0;

/// From `pixel_values` [batch, 3, S, S], `caption_ids` [batch, tokens] (int64) and `caption_ends` [batch] (int64: the row of the flattened
/// [batch * tokens] states at a caption's last token) to the mean, over pairs and both directions, of the cross-entropy of finding the partner
/// (InfoNCE). A gradient reaches both towers and `logit_scale`, a logarithm.
pub fn forward(g: &Graph, style: Style, config: &ClipConfig) -> Loss {
    let side = config.vision_config.image_size();
    let pixels = g.input("pixel_values", DType::F32, &["batch".into(), 3.into(), side.into(), side.into()]);
    let ids = g.input("caption_ids", DType::I64, &["batch".into(), "tokens".into()]);
    let ends = g.input("caption_ends", DType::I64, &["batch".into()]);
    let images = clip::image_embeds(g, style, config, g.cast(pixels, style.dtype));
    let captions = match config.clip_text() {
        Some(text) => clip::text_embeds(g, style, config, text, ids, ends),
        None => {
            g.fail("this CLIP has no text tower");
            images
        }
    };
    let [images, captions] = [images, captions].map(|x| unit_length(g, g.cast(x, DType::F32)));
    let scale = g.parameter("logit_scale", &[]);
    let scale = g.exp(g.clip(scale, g.scalar_like(scale, f32::MIN), g.scalar_like(scale, GREATEST_SCALE.ln())));
    let logits = g.mul(g.gemm(images, captions, None, false, true), scale); // [B, B]
    let partners = g.mul(g.reduce_sum(g.mul(images, captions), &[1], false), scale); // [B], the diagonal
    let directions = [1, 0].map(|axis| g.sub(g.reshape(log_sum_exp(g, logits, axis), &["batch".into()]), partners));
    let sum = g.scale(g.reduce_sum(g.add(directions[0], directions[1]), &[0], false), 0.5);
    let pairs = g.reshape(g.dim(&"batch".into()), &[]);
    Loss { mean: g.div(sum, g.cast(pairs, DType::F32)), sum, num_tokens: pairs }
}

/// Rows of [B, D] at length 1.
fn unit_length(g: &Graph, x: Value) -> Value {
    let squares = g.reduce_sum(g.mul(x, x), &[1], true);
    g.mul(x, g.reciprocal(g.sqrt(g.add(squares, g.scalar_like(squares, 1e-12)))))
}
