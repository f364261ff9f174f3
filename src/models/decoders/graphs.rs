//! The graphs of generation and training, over any family.
//!
//! B rows, S positions of this run, K cached positions, C width, H query heads, G key-value heads, D width of a head, V vocabulary.

use super::{Architecture, Pass, Positions, Sizes};
use crate::models::decoder::Picked;
use crate::models::layers::{Drop, KEEP, Style, attention, attention_with, causal_bias, join_heads, linear, masked, parameter};
use crate::onnx::{DType, Dim, Graph, Value};

/// Name of the cache of a layer: `past_key_values.N.key`, `present.N.value` and so on.
pub fn cache_name(kind: &str, layer: usize, part: &str) -> String {
    format!("{kind}.{layer}.{part}")
}

/// Every row goes on.
const ALL: &dyn Fn(Value) -> Value = &|x| x;

/// The decoder as it is saved, in ONNX's own operators. Inputs: `inputs_embeds` [batch, sequence, C], `position_ids` [batch, sequence],
/// `attention_mask` [batch, past + sequence] (int64, 0 where a cached position is not to be seen), `past_key_values.N.key|value`
/// [batch, G, past, D]. Outputs: `logits` [batch, V] of what follows the last position, `present.N.key|value`
/// [batch, G, past + sequence, D].
pub fn decoder(g: &Graph, style: Style, family: &dyn Architecture) {
    let sizes = family.sizes();
    let (past, sequence) = (Dim::from("past"), Dim::from("sequence"));
    let total = past.clone() + sequence.clone();
    let embeds = g.input("inputs_embeds", DType::F32, &["batch".into(), sequence.clone(), sizes.n_embd.into()]);
    let positions = g.input("position_ids", DType::I64, &["batch".into(), sequence.clone()]);
    let mask = g.input("attention_mask", DType::I64, &["batch".into(), total.clone()]);
    let caches = cache_inputs(g, style, &sizes, &past);
    let visible = g.reshape(mask, &["batch".into(), 1.into(), 1.into(), total.clone()]);
    let unseen = g.equal(visible, g.scalar_like(visible, 0.0));
    let bias = g.select(unseen, masked(g, style), causal_bias(g, style, &sequence, &total, &past));
    run(g, style, family, embeds, Positions::Given(positions), &sequence, None, &mut |layer, [q, k, v]| {
        let [past_key, past_value] = caches[layer];
        let (k, v) = (g.concat(&[past_key, heads_first(g, k)], 2), g.concat(&[past_value, heads_first(g, v)], 2));
        g.output(&cache_name("present", layer, "key"), k);
        g.output(&cache_name("present", layer, "value"), v);
        attended(g, &sizes, heads_first(g, q), k, v, bias)
    });
}

/// The decoder for attention over a cache that is updated in place: rows of any length side by side, nothing copied.
/// `past_key_values.N.*` and `present.N.*` [batch, G', cache, D'] are the same memory (see [`in_place_layout`]); `seqlens_k` [batch] (int32) is each row's length after
/// this run, minus one; `total_sequence_length` (int32) the greatest length.
pub fn in_place_decoder(g: &Graph, style: Style, family: &dyn Architecture) {
    let sizes = family.sizes();
    let sequence = Dim::from("sequence");
    let embeds = g.input("inputs_embeds", DType::F32, &["batch".into(), sequence.clone(), sizes.n_embd.into()]);
    let positions = g.input("position_ids", DType::I64, &["batch".into(), sequence.clone()]);
    let lengths = g.input("seqlens_k", DType::I32, &["batch".into()]);
    let total = g.input("total_sequence_length", DType::I32, &[1.into()]);
    let [cached_heads, cached_dim] = in_place_layout(&sizes, style);
    let caches = cache_inputs(g, style, &Sizes { n_kv_head: cached_heads, head_dim: cached_dim, ..sizes }, &"cache".into());
    let scale = (sizes.head_dim as f32).powf(-0.5);
    run(g, style, family, embeds, Positions::Given(positions), &sequence, None, &mut |layer, qkv| {
        let heads = [sizes.n_head as i64, sizes.n_kv_head as i64];
        let outputs = match style.own {
            true => {
                let qkv = qkv.map(|x| pad_heads(g, x, sizes.head_dim));
                g.cached_attention(qkv, caches[layer], lengths, heads, scale)
            }
            false => {
                let qkv = qkv.map(|x| pad_heads(g, x, cached_dim));
                g.group_query_attention(qkv, caches[layer], [lengths, total], heads, scale)
            }
        };
        g.output(&cache_name("present", layer, "key"), outputs[1]);
        g.output(&cache_name("present", layer, "value"), outputs[2]);
        unpad_heads(g, &sizes, outputs[0], if style.own { sizes.head_dim } else { cached_dim })
    });
}

/// The first run of a decoder whose caches have a fixed length M: `inputs_embeds` [batch, P, C] -> `logits` [batch, V] and
/// `present.N.*` [batch, G, M, D] with zeros behind the prefix; `best` as [`best_of`] makes it.
pub fn static_prefill(g: &Graph, style: Style, family: &dyn Architecture, prefix_len: usize, length: usize, picked: &Picked) {
    let sizes = family.sizes();
    let prefix = Dim::from(prefix_len);
    let embeds = g.input("inputs_embeds", DType::F32, &["batch".into(), prefix.clone(), sizes.n_embd.into()]);
    let bias = causal_bias(g, style, &prefix, &prefix, &0.into());
    let rest = ["batch".into(), sizes.n_kv_head.into(), (length - prefix_len).into(), sizes.head_dim.into()];
    run(g, style, family, embeds, Positions::FromStart(&prefix), &prefix, Some(picked), &mut |layer, qkv| {
        let [q, k, v] = qkv.map(|x| heads_first(g, x));
        for (part, cache) in [("key", k), ("value", v)] {
            let zeros = g.zeros(style.dtype, &rest.to_vec());
            g.output(&cache_name("present", layer, part), g.concat(&[cache, zeros], 2));
        }
        attended(g, &sizes, q, k, v, bias)
    });
}

/// One token further with caches of a fixed length M: `input_ids` [batch, 1], `position_ids` [batch, 1] (where the token stands, and
/// where its key and value go), `past_key_values.N.*` [batch, G, M, D] -> `logits` [batch, V], `present.N.*` of the same shape. No memory is
/// shared between inputs and outputs, so every provider can run it.
pub fn static_step(g: &Graph, style: Style, family: &dyn Architecture, length: usize, picked: &Picked) {
    let sizes = family.sizes();
    let ids = g.input("input_ids", DType::I64, &["batch".into(), 1.into()]);
    let table = g.scope(family.embedding(), || parameter(g, style, "weight", &[sizes.vocab_size, sizes.n_embd]));
    let embeds = g.gather(table, ids, 0);
    let positions = g.input("position_ids", DType::I64, &["batch".into(), 1.into()]);
    let caches = cache_inputs(g, style, &sizes, &length.into());
    let slots = g.range(&length.into());
    let here = g.equal(g.reshape(slots, &[1.into(), length.into()]), positions); // [B, M]
    let here = g.reshape(here, &["batch".into(), 1.into(), length.into(), 1.into()]);
    let unseen = g.greater(g.reshape(slots, &[1.into(), length.into()]), positions);
    let unseen = g.reshape(unseen, &["batch".into(), 1.into(), 1.into(), length.into()]);
    let bias = g.select(unseen, masked(g, style), g.cast(g.floats(&[0.0], &[]), style.dtype));
    run(g, style, family, embeds, Positions::Given(positions), &1.into(), Some(picked), &mut |layer, qkv| {
        let [q, k, v] = qkv.map(|x| heads_first(g, x));
        let past = caches[layer];
        let (k, v) = (g.select(here, k, past[0]), g.select(here, v, past[1]));
        g.output(&cache_name("present", layer, "key"), k);
        g.output(&cache_name("present", layer, "value"), v);
        attended(g, &sizes, q, k, v, bias)
    });
}

/// Rows of all caches picked by number out of the running rows and the prefilled ones behind them: `rows` [n] and, for each cache,
/// `past_key_values.N.*` [batch, G, M, D] and `held.N.*` [held, G, M, D] -> `present.N.*` [n, G, M, D].
pub fn pick_rows(g: &Graph, style: Style, family: &dyn Architecture, length: usize) {
    let sizes = family.sizes();
    let rows = g.input("rows", DType::I64, &["picked".into()]);
    let shape = |rows: &str| [rows.into(), sizes.n_kv_head.into(), length.into(), sizes.head_dim.into()];
    for layer in 0..sizes.n_layer {
        for part in ["key", "value"] {
            let past = g.input(&cache_name("past_key_values", layer, part), style.dtype, &shape("batch"));
            let held = g.input(&cache_name("held", layer, part), style.dtype, &shape("held"));
            g.output(&cache_name("present", layer, part), g.gather(g.concat(&[past, held], 0), rows, 0));
        }
    }
}

/// The whole sequence at once, without a cache, as training wants it: `inputs_embeds` [B, T, C] and `attention_mask` [B, T] (int64, 0 where
/// a position is not to be seen) -> states [M, C] after the last norm at the rows of [B * T, C] that `pick` takes. Rows stay flat
/// between attentions, so that weights meet them in single products; the last layer goes on with the picked ones only.
pub fn states(
    g: &Graph,
    style: Style,
    family: &dyn Architecture,
    embeds: Value,
    mask: Value,
    drop: Drop<'_>,
    pick: &dyn Fn(Value) -> Value,
) -> Value {
    let sizes = family.sizes();
    let shape = g.shape(embeds);
    let (batch, tokens) = (&shape[0], &shape[1]);
    let visible = g.reshape(mask, &[batch.clone(), 1.into(), 1.into(), tokens.clone()]);
    let unseen = g.equal(visible, g.scalar_like(visible, 0.0));
    let bias = g.select(unseen, masked(g, style), causal_bias(g, style, tokens, tokens, &0.into()));
    let flat = [batch.clone() * tokens.clone(), sizes.n_embd.into()];
    // What is dropped is dropped from flat rows.
    let flat_drop: Drop<'_> =
        &|name, rate, x| if g.shape(x).len() == 3 { drop(name, rate, g.reshape(x, &flat)) } else { drop(name, rate, x) };
    let pass = Pass { style, batch: batch.clone(), tokens: tokens.clone(), drop: flat_drop, pick };
    g.scope(family.scope(), || {
        let (x, rotation) = family.begin(g, &pass, embeds, Positions::FromStart(tokens));
        let mut x = g.reshape(x, &flat);
        for layer in 0..sizes.n_layer {
            let mut attend = |qkv: [Value; 3]| {
                let [q, k, v] = qkv.map(|x| heads_first(g, x));
                let qkv = [q, repeated(g, &sizes, k), repeated(g, &sizes, v)];
                let weigh = |weights| drop("attn_dropout", family.attention_dropout(), weights);
                join_heads(g, attention_with(g, style, qkv, Some(bias), weigh)) // [B, T, H D]
            };
            x = g.block("", || family.layer(g, &pass, layer, x, rotation, &mut attend));
        }
        family.end(g, style, x)
    })
}

/// The best of each row of logits [rows, V] in one tensor [rows, 2 K + 2], as [`Best`](crate::models::decoder::Best) has them, for choices that
/// need no more.
pub fn best_of(g: &Graph, logits: Value, picked: &Picked) -> Value {
    let vocab_size = g.shape(logits)[1].as_fixed().unwrap_or(1);
    let (values, ids) = g.top_k(logits, 1, (picked.count as i64).min(vocab_size));
    let greatest = g.slice(values, 1, 0.into(), 1.into());
    let log_sum = |factor: f32| {
        let sum = g.reduce_sum(g.exp(g.scale(g.sub(logits, greatest), factor)), &[1], true);
        g.add(g.log(sum), g.scale(greatest, factor))
    };
    let (cold, warm) = (log_sum(1.0), log_sum((1.0 / picked.temperature) as f32));
    g.concat(&[values, g.cast(ids, DType::F32), cold, warm], 1)
}

/// Rows of logits picked by number: `logits` [batch, V] and `rows` [n] -> `picked` [n, V].
pub fn pick_logits(g: &Graph, family: &dyn Architecture) {
    let logits = g.input("logits", DType::F32, &["batch".into(), family.sizes().vocab_size.into()]);
    let rows = g.input("rows", DType::I64, &["picked".into()]);
    g.output("picked", g.gather(logits, rows, 0));
}

/// [N, C] after the last norm -> [N, V].
pub fn head(g: &Graph, style: Style, family: &dyn Architecture, x: Value) -> Value {
    let sizes = family.sizes();
    linear(g, style, family.head(), x, sizes.n_embd, sizes.vocab_size, false)
}

/// Heads of a cache that is updated in place and the width of each: ONNX Runtime's attention wants multiples of 8, and this program's has all heads
/// of a position side by side.
pub fn in_place_layout(sizes: &Sizes, style: Style) -> [usize; 2] {
    match style.own {
        true => [1, sizes.n_kv_head * sizes.head_dim],
        false => [sizes.n_kv_head, sizes.head_dim.next_multiple_of(8)],
    }
}

/// `inputs_embeds` [batch, S, C] through all layers, and `logits` [batch, V] at the last position as an output; `best` of them, where asked for.
fn run(
    g: &Graph,
    style: Style,
    family: &dyn Architecture,
    embeds: Value,
    positions: Positions<'_>,
    sequence: &Dim,
    picked: Option<&Picked>,
    attend: &mut dyn FnMut(usize, [Value; 3]) -> Value,
) {
    let sizes = family.sizes();
    let pass = Pass { style, batch: "batch".into(), tokens: sequence.clone(), drop: KEEP, pick: ALL };
    let last = g.scope(family.scope(), || {
        let (mut x, rotation) = family.begin(g, &pass, g.cast(embeds, style.dtype), positions);
        for layer in 0..sizes.n_layer {
            x = family.layer(g, &pass, layer, x, rotation, &mut |qkv| attend(layer, qkv));
        }
        let last = g.slice(x, 1, sequence.clone() - 1.into(), sequence.clone());
        family.end(g, style, g.reshape(last, &["batch".into(), sizes.n_embd.into()]))
    });
    let logits = g.cast(head(g, style, family, last), DType::F32);
    g.output("logits", logits);
    if let Some(picked) = picked {
        g.output("best", best_of(g, logits, picked));
    }
}

/// `past_key_values.N.key|value` [batch, G, length, D] of every layer.
fn cache_inputs(g: &Graph, style: Style, sizes: &Sizes, length: &Dim) -> Vec<[Value; 2]> {
    let shape = ["batch".into(), sizes.n_kv_head.into(), length.clone(), sizes.head_dim.into()];
    (0..sizes.n_layer)
        .map(|layer| ["key", "value"].map(|part| g.input(&cache_name("past_key_values", layer, part), style.dtype, &shape)))
        .collect()
}

/// [B, S, H, D] -> [B, H, S, D].
fn heads_first(g: &Graph, x: Value) -> Value {
    g.transpose(x, &[0, 2, 1, 3])
}

/// Keys or values [B, G, T, D], each head as often as queries share it: [B, H, T, D].
fn repeated(g: &Graph, sizes: &Sizes, x: Value) -> Value {
    let group = sizes.n_head / sizes.n_kv_head;
    if group == 1 {
        return x;
    }
    let shape = g.shape(x);
    let with = |group: usize| vec![shape[0].clone(), shape[1].clone(), group.into(), shape[2].clone(), shape[3].clone()];
    let repeated = g.expand(g.reshape(x, &with(1)), &with(group));
    g.reshape(repeated, &[shape[0].clone(), sizes.n_head.into(), shape[2].clone(), shape[3].clone()])
}

/// Queries [B, H, S, D] over keys and values [B, G, T, D] -> [B, S, H D].
fn attended(g: &Graph, sizes: &Sizes, q: Value, k: Value, v: Value, bias: Value) -> Value {
    join_heads(g, attention(g, q, repeated(g, sizes, k), repeated(g, sizes, v), Some(bias)))
}

/// [B, S, heads, D] -> [B, S, heads * D'] with zeros behind each head where D is not a multiple of 8.
fn pad_heads(g: &Graph, x: Value, padded: usize) -> Value {
    let mut shape = g.shape(x);
    let heads = shape[2].clone();
    let missing = Dim::from(padded) - shape[3].clone();
    let mut x = x;
    if missing.as_fixed() != Some(0) {
        shape[3] = missing;
        x = g.concat(&[x, g.zeros(g.dtype(x), &shape)], 3);
    }
    g.reshape(x, &[shape[0].clone(), shape[1].clone(), heads * padded.into()])
}

/// [B, S, H D'] -> [B, S, H D].
fn unpad_heads(g: &Graph, sizes: &Sizes, x: Value, padded: usize) -> Value {
    if sizes.head_dim == padded {
        return x;
    }
    let shape = g.shape(x);
    let split = g.reshape(x, &[shape[0].clone(), shape[1].clone(), sizes.n_head.into(), padded.into()]);
    let cut = g.slice(split, 3, 0.into(), sizes.head_dim.into());
    g.reshape(cut, &[shape[0].clone(), shape[1].clone(), (sizes.n_head * sizes.head_dim).into()])
}
