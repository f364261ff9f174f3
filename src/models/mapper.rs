//! Mappers: from an image embedding to the prefix that GPT2 continues.
//!
//! B images, D length of an embedding, P positions of a prefix, C width of a state.

use super::config::{BertConfig, MapperConfig, MapperKind};
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
    g.scope("clip_project", || match (config.kind, &config.bert) {
        (MapperKind::Bert, Some(bert)) => bert_mapper(g, style, config, bert, embeds, drop),
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

/// The embedding becomes P positions, learned constants P more; BERT runs over both and the states at the constants are the prefix.
fn bert_mapper(
    g: &Graph,
    style: Style,
    config: &MapperConfig,
    bert: &BertConfig,
    embeds: Value,
    drop: Option<Drop<'_>>,
) -> Value {
    let (prefix, constant, width) = (config.prefix_len, config.constant_len, config.n_embd);
    let batch = g.shape(embeds)[0].clone();
    let x = linear(g, style, "linear", embeds, config.clip_size, prefix * width, true);
    let x = g.reshape(x, &[batch.clone(), prefix.into(), width.into()]);
    let learned = parameter(g, style, "prefix_const", &[constant, width]);
    let learned = g.reshape(learned, &[1.into(), constant.into(), width.into()]);
    let learned = g.expand(learned, &[batch, constant.into(), width.into()]);
    let x = g.concat(&[x, learned], 1);
    let states = g.scope("bert", || bert_encoder(g, style, bert, x, prefix + constant, drop));
    g.slice(states, 1, prefix.into(), (prefix + constant).into())
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
        x = g.scope(&format!("encoder.layer.{layer}"), || bert_layer(g, style, bert, x, drop));
    }
    x
}

/// One post-norm layer, [B, T, C] -> [B, T, C].
fn bert_layer(g: &Graph, style: Style, bert: &BertConfig, x: Value, drop: Option<Drop<'_>>) -> Value {
    let (width, inner, rate) = (bert.hidden_size, bert.intermediate_size, bert.hidden_dropout_prob);
    let keep = drop.unwrap_or(KEEP);
    let x = g.scope("attention", || {
        let heads = g.scope("self", || {
            let [q, k, v] = ["query", "key", "value"].map(|name| linear(g, style, name, x, width, width, true));
            if style.fused && drop.is_none() {
                return encoder_attention(g, style, q, k, v, bert.num_attention_heads);
            }
            let qkv = [q, k, v].map(|x| split_heads(g, x, bert.num_attention_heads));
            let weigh = |weights| keep("dropout", bert.attention_probs_dropout_prob, weights);
            join_heads(g, attention_with(g, style, qkv, None, weigh))
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
