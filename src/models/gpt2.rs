//! GPT2: a decoder with a key/value cache, and the same blocks without one for training.
//!
//! B rows, S positions of this run, K cached positions, C n_embd, H n_head, D width of a head, V vocab_size.

use super::config::Gpt2Config;
use super::layers::{
    Drop, KEEP, Style, activation, attention, attention_with, causal_bias, conv1d, join_heads, layer_norm, masked, parameter,
    split_heads,
};
use crate::onnx::{DType, Dim, Graph, Value};

/// Name of the cache of a layer: `past_key_values.N.key`, `present.N.value` and so on.
pub fn cache_name(kind: &str, layer: usize, part: &str) -> String {
    format!("{kind}.{layer}.{part}")
}

/// The decoder as it is saved, in ONNX's own operators. Inputs: `inputs_embeds` [batch, sequence, C], `position_ids` [batch, sequence],
/// `attention_mask` [batch, past + sequence] (int64, 0 where a cached position is not to be seen), `past_key_values.N.key|value`
/// [batch, H, past, D]. Outputs: `logits` [batch, V] of what follows the last position, `present.N.key|value`
/// [batch, H, past + sequence, D].
pub fn decoder(g: &Graph, style: Style, config: &Gpt2Config) {
    let (past, sequence) = (Dim::from("past"), Dim::from("sequence"));
    let total = past.clone() + sequence.clone();
    let embeds = g.input("inputs_embeds", DType::F32, &["batch".into(), sequence.clone(), config.n_embd.into()]);
    let positions = g.input("position_ids", DType::I64, &["batch".into(), sequence.clone()]);
    let mask = g.input("attention_mask", DType::I64, &["batch".into(), total.clone()]);
    let cache_shape = ["batch".into(), config.n_head.into(), past.clone(), config.head_dim().into()];
    let caches: Vec<[Value; 2]> = (0..config.n_layer)
        .map(|layer| ["key", "value"].map(|part| g.input(&cache_name("past_key_values", layer, part), style.dtype, &cache_shape)))
        .collect();
    let visible = g.reshape(mask, &["batch".into(), 1.into(), 1.into(), total.clone()]);
    let unseen = g.equal(visible, g.scalar_like(visible, 0.0));
    let bias = g.select(unseen, masked(g, style), causal_bias(g, style, &sequence, &total, &past));
    g.scope("transformer", || {
        let mut x = add_positions(g, style, config, g.cast(embeds, style.dtype), positions);
        for (layer, [past_key, past_value]) in caches.into_iter().enumerate() {
            x = block(g, style, config, layer, x, |qkv| {
                let [q, k, v] = heads(g, config, qkv);
                let (k, v) = (g.concat(&[past_key, k], 2), g.concat(&[past_value, v], 2));
                g.output(&cache_name("present", layer, "key"), k);
                g.output(&cache_name("present", layer, "value"), v);
                join_heads(g, attention(g, q, k, v, Some(bias)))
            });
        }
        let last = last_position(g, x, &sequence);
        g.output("logits", g.cast(logits(g, style, config, last), DType::F32));
    });
}

/// The decoder for ONNX Runtime's own attention over a cache that is updated in place: rows of any length side by side, nothing copied.
/// `past_key_values.N.*` and `present.N.*` [batch, H, cache, D] are the same memory; `seqlens_k` [batch] (int32) is each row's length after
/// this run, minus one; `total_sequence_length` (int32) the greatest length.
pub fn in_place_decoder(g: &Graph, style: Style, config: &Gpt2Config) {
    let sequence = Dim::from("sequence");
    let embeds = g.input("inputs_embeds", DType::F32, &["batch".into(), sequence.clone(), config.n_embd.into()]);
    let positions = g.input("position_ids", DType::I64, &["batch".into(), sequence.clone()]);
    let lengths = g.input("seqlens_k", DType::I32, &["batch".into()]);
    let total = g.input("total_sequence_length", DType::I32, &[1.into()]);
    let cache_shape = ["batch".into(), config.n_head.into(), "cache".into(), cached_head_dim(config).into()];
    let caches: Vec<[Value; 2]> = (0..config.n_layer)
        .map(|layer| ["key", "value"].map(|part| g.input(&cache_name("past_key_values", layer, part), style.dtype, &cache_shape)))
        .collect();
    g.scope("transformer", || {
        let mut x = add_positions(g, style, config, g.cast(embeds, style.dtype), positions);
        for (layer, [key, value]) in caches.into_iter().enumerate() {
            x = block(g, style, config, layer, x, |qkv| {
                let scale = (config.head_dim() as f32).powf(-0.5);
                let qkv = pad_heads(g, config, qkv);
                let outputs = g.group_query_attention(qkv, [key, value], [lengths, total], config.n_head as i64, scale);
                g.output(&cache_name("present", layer, "key"), outputs[1]);
                g.output(&cache_name("present", layer, "value"), outputs[2]);
                unpad_heads(g, config, outputs[0])
            });
        }
        let last = last_position(g, x, &sequence);
        g.output("logits", g.cast(logits(g, style, config, last), DType::F32));
    });
}

/// The first run of a decoder whose caches have a fixed length M: `inputs_embeds` [batch, P, C] -> `logits` [batch, V] and
/// `present.N.*` [batch, H, M, D] with zeros behind the prefix.
pub fn static_prefill(g: &Graph, style: Style, config: &Gpt2Config, prefix_len: usize, length: usize) {
    let prefix = Dim::from(prefix_len);
    let embeds = g.input("inputs_embeds", DType::F32, &["batch".into(), prefix.clone(), config.n_embd.into()]);
    let bias = causal_bias(g, style, &prefix, &prefix, &0.into());
    let rest = ["batch".into(), config.n_head.into(), (length - prefix_len).into(), config.head_dim().into()];
    g.scope("transformer", || {
        let table = parameter(g, style, "wpe.weight", &[config.n_positions, config.n_embd]);
        let mut x = g.add(g.cast(embeds, style.dtype), g.slice(table, 0, 0.into(), prefix.clone()));
        for layer in 0..config.n_layer {
            x = block(g, style, config, layer, x, |qkv| {
                let [q, k, v] = heads(g, config, qkv);
                for (part, cache) in [("key", k), ("value", v)] {
                    let zeros = g.zeros(style.dtype, &rest.to_vec());
                    g.output(&cache_name("present", layer, part), g.concat(&[cache, zeros], 2));
                }
                join_heads(g, attention(g, q, k, v, Some(bias)))
            });
        }
        let last = last_position(g, x, &prefix);
        g.output("logits", g.cast(logits(g, style, config, last), DType::F32));
    });
}

/// One token further with caches of a fixed length M: `inputs_embeds` [batch, 1, C], `position_ids` [batch, 1] (where the token stands, and
/// where its key and value go), `past_key_values.N.*` [batch, H, M, D] -> `logits` [batch, V], `present.N.*` of the same shape. No memory is
/// shared between inputs and outputs, so every provider can run it.
pub fn static_step(g: &Graph, style: Style, config: &Gpt2Config, length: usize) {
    let embeds = g.input("inputs_embeds", DType::F32, &["batch".into(), 1.into(), config.n_embd.into()]);
    let positions = g.input("position_ids", DType::I64, &["batch".into(), 1.into()]);
    let cache_shape = ["batch".into(), config.n_head.into(), length.into(), config.head_dim().into()];
    let caches: Vec<[Value; 2]> = (0..config.n_layer)
        .map(|layer| ["key", "value"].map(|part| g.input(&cache_name("past_key_values", layer, part), style.dtype, &cache_shape)))
        .collect();
    let slots = g.range(&length.into());
    let here = g.equal(g.reshape(slots, &[1.into(), length.into()]), positions); // [B, M]
    let here = g.reshape(here, &["batch".into(), 1.into(), length.into(), 1.into()]);
    let unseen = g.greater(g.reshape(slots, &[1.into(), length.into()]), positions);
    let unseen = g.reshape(unseen, &["batch".into(), 1.into(), 1.into(), length.into()]);
    let bias = g.select(unseen, masked(g, style), g.cast(g.floats(&[0.0], &[]), style.dtype));
    g.scope("transformer", || {
        let mut x = add_positions(g, style, config, g.cast(embeds, style.dtype), positions);
        for (layer, past) in caches.into_iter().enumerate() {
            x = block(g, style, config, layer, x, |qkv| {
                let [q, k, v] = heads(g, config, qkv);
                let (k, v) = (g.select(here, k, past[0]), g.select(here, v, past[1]));
                g.output(&cache_name("present", layer, "key"), k);
                g.output(&cache_name("present", layer, "value"), v);
                join_heads(g, attention(g, q, k, v, Some(bias)))
            });
        }
        let last = last_position(g, x, &1.into());
        g.output("logits", g.cast(logits(g, style, config, last), DType::F32));
    });
}

/// Rows of all caches picked by number out of the running rows and the prefilled ones behind them: `rows` [n] and, for each cache,
/// `past_key_values.N.*` [batch, H, M, D] and `held.N.*` [held, H, M, D] -> `present.N.*` [n, H, M, D].
pub fn pick_rows(g: &Graph, style: Style, config: &Gpt2Config, length: usize) {
    let rows = g.input("rows", DType::I64, &["picked".into()]);
    let shape = |rows: &str| [rows.into(), config.n_head.into(), length.into(), config.head_dim().into()];
    for layer in 0..config.n_layer {
        for part in ["key", "value"] {
            let past = g.input(&cache_name("past_key_values", layer, part), style.dtype, &shape("batch"));
            let held = g.input(&cache_name("held", layer, part), style.dtype, &shape("held"));
            g.output(&cache_name("present", layer, part), g.gather(g.concat(&[past, held], 0), rows, 0));
        }
    }
}

/// Width of a head in the cache: that operator wants multiples of 8.
pub fn cached_head_dim(config: &Gpt2Config) -> usize {
    config.head_dim().next_multiple_of(8)
}

/// [B, S, 3 C] -> [B, S, 3 H D'] with zeros behind each head where D is not a multiple of 8.
fn pad_heads(g: &Graph, config: &Gpt2Config, qkv: Value) -> Value {
    let (head_dim, padded) = (config.head_dim(), cached_head_dim(config));
    if head_dim == padded {
        return qkv;
    }
    let shape = g.shape(qkv);
    let with = |heads: usize, width: usize| vec![shape[0].clone(), shape[1].clone(), heads.into(), width.into()];
    let split = g.reshape(qkv, &with(3 * config.n_head, head_dim));
    let zeros = g.zeros(g.dtype(qkv), &with(3 * config.n_head, padded - head_dim));
    g.reshape(g.concat(&[split, zeros], 3), &[shape[0].clone(), shape[1].clone(), (3 * config.n_head * padded).into()])
}

/// [B, S, H D'] -> [B, S, C].
fn unpad_heads(g: &Graph, config: &Gpt2Config, x: Value) -> Value {
    let (head_dim, padded) = (config.head_dim(), cached_head_dim(config));
    if head_dim == padded {
        return x;
    }
    let shape = g.shape(x);
    let split = g.reshape(x, &[shape[0].clone(), shape[1].clone(), config.n_head.into(), padded.into()]);
    g.reshape(g.slice(split, 3, 0.into(), head_dim.into()), &[shape[0].clone(), shape[1].clone(), config.n_embd.into()])
}

/// The whole sequence at once, without a cache, as training wants it: `inputs_embeds` [B, T, C] and `attention_mask` [B, T] (int64, 0 where
/// a position is not to be seen) -> states [M, C] after the last layer norm at the rows of [B * T, C] that `pick` takes. Rows stay flat
/// between attentions, so that weights meet them in single products; the last layer goes on with the picked ones only.
pub fn states(
    g: &Graph,
    style: Style,
    config: &Gpt2Config,
    embeds: Value,
    mask: Value,
    drop: Drop<'_>,
    pick: &dyn Fn(Value) -> Value,
) -> Value {
    let shape = g.shape(embeds);
    let (batch, tokens, width) = (&shape[0], &shape[1], config.n_embd);
    let visible = g.reshape(mask, &[batch.clone(), 1.into(), 1.into(), tokens.clone()]);
    let unseen = g.equal(visible, g.scalar_like(visible, 0.0));
    let bias = g.select(unseen, masked(g, style), causal_bias(g, style, tokens, tokens, &0.into()));
    g.scope("transformer", || {
        let table = parameter(g, style, "wpe.weight", &[config.n_positions, width]);
        let x = g.add(embeds, g.slice(table, 0, 0.into(), tokens.clone()));
        let x = g.reshape(x, &[batch.clone() * tokens.clone(), width.into()]);
        let mut x = drop("drop", config.embd_pdrop, x);
        for layer in 0..config.n_layer {
            let last = layer + 1 == config.n_layer;
            let taken = |x| if last { pick(x) } else { x };
            x = g.scope(&format!("h.{layer}"), || {
                let normed = layer_norm(g, style, "ln_1", x, width, config.layer_norm_epsilon);
                let attended = g.scope("attn", || {
                    let qkv = conv1d(g, style, "c_attn", normed, width, 3 * width); // [B T, 3 C]
                    let qkv = g.reshape(qkv, &[batch.clone(), tokens.clone(), (3 * width).into()]);
                    let qkv = heads(g, config, qkv);
                    let weigh = |weights| drop("attn_dropout", config.attn_pdrop, weights);
                    let joined = join_heads(g, attention_with(g, style, qkv, Some(bias), weigh)); // [B, T, C]
                    let joined = taken(g.reshape(joined, &g.shape(normed)));
                    let projected = conv1d(g, style, "c_proj", joined, width, width);
                    drop("resid_dropout", config.resid_pdrop, projected)
                });
                let x = g.add(taken(x), attended);
                g.add(x, feed_forward(g, style, config, x, drop))
            });
        }
        layer_norm(g, style, "ln_f", x, width, config.layer_norm_epsilon)
    })
}

/// [B, S, C] + the learned positions of `positions` [B, S].
fn add_positions(g: &Graph, style: Style, config: &Gpt2Config, x: Value, positions: Value) -> Value {
    let table = parameter(g, style, "wpe.weight", &[config.n_positions, config.n_embd]);
    g.add(x, g.gather(table, positions, 0))
}

/// One layer with its attention left open: `attend` gets the packed query-key-value [B, S, 3 C] and returns [B, S, C].
fn block(g: &Graph, style: Style, config: &Gpt2Config, layer: usize, x: Value, attend: impl FnOnce(Value) -> Value) -> Value {
    let width = config.n_embd;
    g.scope(&format!("h.{layer}"), || {
        let normed = layer_norm(g, style, "ln_1", x, width, config.layer_norm_epsilon);
        let attended = g.scope("attn", || {
            let qkv = conv1d(g, style, "c_attn", normed, width, 3 * width);
            conv1d(g, style, "c_proj", attend(qkv), width, width)
        });
        let x = g.add(x, attended);
        g.add(x, feed_forward(g, style, config, x, KEEP))
    })
}

fn feed_forward(g: &Graph, style: Style, config: &Gpt2Config, x: Value, drop: Drop<'_>) -> Value {
    let (width, inner) = (config.n_embd, config.inner_size());
    let normed = layer_norm(g, style, "ln_2", x, width, config.layer_norm_epsilon);
    g.scope("mlp", || {
        let hidden = conv1d(g, style, "c_fc", normed, width, inner);
        let fed = conv1d(g, style, "c_proj", activation(g, style, config.activation_function, hidden), inner, width);
        drop("dropout", config.resid_pdrop, fed)
    })
}

/// [B, S, 3 C] -> query, key and value [B, H, S, D].
fn heads(g: &Graph, config: &Gpt2Config, qkv: Value) -> [Value; 3] {
    let parts = g.split(qkv, 2, &[config.n_embd as i64; 3]);
    [0, 1, 2].map(|i| split_heads(g, parts.get(i).copied().unwrap_or(qkv), config.n_head))
}

/// [B, S, C] -> [B, C] at the last position.
fn last_position(g: &Graph, x: Value, sequence: &Dim) -> Value {
    let shape = g.shape(x);
    let last = g.slice(x, 1, sequence.clone() - 1.into(), sequence.clone());
    g.reshape(last, &[shape[0].clone(), shape[2].clone()])
}

/// [N, C] -> [N, V]: the last layer norm, then the tied token embedding as the head.
fn logits(g: &Graph, style: Style, config: &Gpt2Config, x: Value) -> Value {
    let x = layer_norm(g, style, "ln_f", x, config.n_embd, config.layer_norm_epsilon);
    head(g, style, config, x)
}

/// [N, C] after the last layer norm -> [N, V].
pub fn head(g: &Graph, style: Style, config: &Gpt2Config, x: Value) -> Value {
    super::layers::linear(g, style, "wte", x, config.n_embd, config.vocab_size, false)
}
