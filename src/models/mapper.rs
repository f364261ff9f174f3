//! Mappers: from an image embedding to the prefix that GPT2 continues.
//!
//! B images, D length of an embedding, P positions of a prefix, C width of a state.

use super::config::{Activation, BertConfig, MapperConfig, MapperKind, TransformerConfig};
use super::layers::{
    Drop, KEEP, Style, activation, attention_with, encoder_attention, join_heads, layer_norm, linear, parameter, split_heads,
};
use crate::onnx::{DType, Graph, Value};

/// `clip_embeds` [batch, D] -> `prefix_embeds` [batch, P, C].
pub fn mapper(g: &Graph, style: Style, config: &MapperConfig) {
    let embeds = g.input("clip_embeds", DType::F32, &["batch".into(), config.clip_size.into()]);
    let prefix = prefix_embeds(g, style, config, g.cast(embeds, style.dtype), None);
    g.output("prefix_embeds", g.cast(prefix, DType::F32));
}

/// [B, D] -> [B, P, C], inside a larger graph; `drop` where it is trained.
pub fn prefix_embeds(g: &Graph, style: Style, config: &MapperConfig, embeds: Value, drop: Option<Drop<'_>>) -> Value {
    let style = Style { int8: false, ..style };
    g.scope("clip_project", || match (config.kind, &config.bert, &config.transformer) {
        (MapperKind::Bert, Some(bert), _) => bert_mapper(g, style, config, bert, embeds, drop),
        (MapperKind::Transformer, _, Some(transformer)) => {
            transformer_mapper(g, style, config, transformer, embeds, drop.is_some())
        }
        _ => mlp(g, style, config, embeds),
    })
}

/// Linear layers with tanh between them.
fn mlp(g: &Graph, style: Style, config: &MapperConfig, embeds: Value) -> Value {
    let batch = g.shape(embeds)[0].clone();
    let last = config.layer_sizes.len().saturating_sub(2);
    let mut x = embeds;
    for (i, sizes) in config.layer_sizes.windows(2).enumerate() {
        x = linear(g, style, &format!("model.{}", 2 * i), x, sizes[0], sizes[1], true);
        if i < last {
            x = g.tanh(x);
        }
    }
    g.reshape(x, &[batch, config.prefix_len.into(), config.n_embd.into()])
}

/// The embedding becomes positions, learned constants P more; `encode` runs over both and the states at the constants are the prefix.
fn over_constants(
    g: &Graph,
    style: Style,
    config: &MapperConfig,
    projected: usize,
    embeds: Value,
    encode: impl FnOnce(Value) -> Value,
) -> Value {
    let (constant, width) = (config.constant_len, config.n_embd);
    let batch = g.shape(embeds)[0].clone();
    let x = linear(g, style, "linear", embeds, config.clip_size, projected * width, true);
    let x = g.reshape(x, &[batch.clone(), projected.into(), width.into()]);
    let learned = parameter(g, style, "prefix_const", &[constant, width]);
    let learned = g.reshape(learned, &[1.into(), constant.into(), width.into()]);
    let learned = g.expand(learned, &[batch, constant.into(), width.into()]);
    let states = encode(g.concat(&[x, learned], 1));
    g.slice(states, 1, projected.into(), (projected + constant).into())
}

/// The original ClipCap's.
fn transformer_mapper(
    g: &Graph,
    style: Style,
    config: &MapperConfig,
    transformer: &TransformerConfig,
    embeds: Value,
    trained: bool,
) -> Value {
    over_constants(g, style, config, transformer.clip_length, embeds, |mut x| {
        for layer in 0..transformer.num_layers {
            let scope = format!("transformer.layers.{layer}");
            x = g.block(&scope, || transformer_layer(g, style, config.n_embd, transformer, x, trained));
        }
        x
    })
}

/// One pre-norm layer, [B, T, C] -> [B, T, C].
fn transformer_layer(g: &Graph, style: Style, width: usize, config: &TransformerConfig, x: Value, trained: bool) -> Value {
    /// PyTorch's own, since the original says none.
    const EPSILON: f64 = 1e-5;
    let normed = layer_norm(g, style, "norm1", x, width, EPSILON);
    let attended = g.scope("attn", || {
        let q = linear(g, style, "to_queries", normed, width, width, config.qkv_bias);
        let kv = linear(g, style, "to_keys_values", normed, width, 2 * width, config.qkv_bias);
        let kv = g.split(kv, 2, &[width as i64; 2]);
        let [k, v] = [0, 1].map(|i| kv.get(i).copied().unwrap_or(q));
        let heads = if style.fused && !trained {
            encoder_attention(g, style, q, k, v, config.num_heads)
        } else {
            let qkv = [q, k, v].map(|x| split_heads(g, x, config.num_heads));
            join_heads(g, attention_with(g, style, qkv, None, |weights| weights))
        };
        linear(g, style, "project", heads, width, width, true)
    });
    let x = g.add(x, attended);
    let normed = layer_norm(g, style, "norm2", x, width, EPSILON);
    let fed = g.scope("mlp", || {
        let hidden = linear(g, style, "fc1", normed, width, config.inner_size, true);
        linear(g, style, "fc2", activation(g, style, Activation::Relu, hidden), config.inner_size, width, true)
    });
    g.add(x, fed)
}

/// ClipCap-Chinese's.
fn bert_mapper(
    g: &Graph,
    style: Style,
    config: &MapperConfig,
    bert: &BertConfig,
    embeds: Value,
    drop: Option<Drop<'_>>,
) -> Value {
    let positions = config.prefix_len + config.constant_len;
    over_constants(g, style, config, config.prefix_len, embeds, |x| {
        g.scope("bert", || bert_encoder(g, style, bert, x, positions, drop))
    })
}

/// BERT over given input embeddings [B, T, C], all of token type 0, nothing masked.
fn bert_encoder(g: &Graph, style: Style, bert: &BertConfig, x: Value, tokens: usize, drop: Option<Drop<'_>>) -> Value {
    let (width, rate) = (bert.hidden_size, bert.hidden_dropout_prob);
    let keep = drop.unwrap_or(KEEP);
    let mut x = g.scope("embeddings", || {
        let positions = parameter(g, style, "position_embeddings.weight", &[bert.max_position_embeddings, width]);
        let positions = g.slice(positions, 0, 0.into(), tokens.into());
        let types = parameter(g, style, "token_type_embeddings.weight", &[bert.type_vocab_size, width]);
        let first = g.slice(types, 0, 0.into(), 1.into());
        let normed = layer_norm(g, style, "LayerNorm", g.add(g.add(x, first), positions), width, bert.layer_norm_eps);
        keep("dropout", rate, normed)
    });
    for layer in 0..bert.num_hidden_layers {
        x = g.block(&format!("encoder.layer.{layer}"), || bert_layer(g, style, bert, x, None, drop));
    }
    x
}

/// One post-norm layer, [B, T, C] -> [B, T, C]; `bias` is added to the scores.
pub(super) fn bert_layer(
    g: &Graph,
    style: Style,
    bert: &BertConfig,
    x: Value,
    bias: Option<Value>,
    drop: Option<Drop<'_>>,
) -> Value {
    let (width, inner, rate) = (bert.hidden_size, bert.intermediate_size, bert.hidden_dropout_prob);
    let keep = drop.unwrap_or(KEEP);
    let x = g.scope("attention", || {
        let heads = g.scope("self", || {
            let [q, k, v] = ["query", "key", "value"].map(|name| linear(g, style, name, x, width, width, true));
            if style.fused && drop.is_none() && bias.is_none() {
                return encoder_attention(g, style, q, k, v, bert.num_attention_heads);
            }
            let qkv = [q, k, v].map(|x| split_heads(g, x, bert.num_attention_heads));
            let weigh = |weights| keep("dropout", bert.attention_probs_dropout_prob, weights);
            join_heads(g, attention_with(g, style, qkv, bias, weigh))
        });
        g.scope("output", || {
            let attended = keep("dropout", rate, linear(g, style, "dense", heads, width, width, true));
            layer_norm(g, style, "LayerNorm", g.add(attended, x), width, bert.layer_norm_eps)
        })
    });
    let hidden = g.scope("intermediate", || linear(g, style, "dense", x, width, inner, true));
    let hidden = activation(g, style, bert.hidden_act, hidden);
    g.scope("output", || {
        let fed = keep("dropout", rate, linear(g, style, "dense", hidden, inner, width, true));
        layer_norm(g, style, "LayerNorm", g.add(fed, x), width, bert.layer_norm_eps)
    })
}
