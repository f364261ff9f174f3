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
    let shape = ["batch".into(), sizes.n_kv_head.into(), past.clone(), sizes.head_dim.into()];
    let caches = cache_inputs(g, style, sizes.n_layer, &shape);
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
///
/// In this program's own operators, that is the length of what is behind the row's prefix, and in place of the greatest length there are
/// `prefix.N.key|value` [prefixes, G', P, D'] and `owners` [batch] (int32): the prefix that each row begins with, -1 for none.
pub fn in_place_decoder(g: &Graph, style: Style, family: &dyn Architecture) {
    let sizes = family.sizes();
    let sequence = Dim::from("sequence");
    let embeds = g.input("inputs_embeds", DType::F32, &["batch".into(), sequence.clone(), sizes.n_embd.into()]);
    let positions = g.input("position_ids", DType::I64, &["batch".into(), sequence.clone()]);
    let lengths = g.input("seqlens_k", DType::I32, &["batch".into()]);
    let other = match style.own {
        true => g.input("owners", DType::I32, &["batch".into()]),
        false => g.input("total_sequence_length", DType::I32, &[1.into()]),
    };
    let [cached_heads, cached_dim] = in_place_layout(&sizes, style);
    let shape = ["batch".into(), cached_heads.into(), "cache".into(), cached_dim.into()];
    let caches = cache_inputs(g, style, sizes.n_layer, &shape);
    let prefix_shape = ["prefixes".into(), cached_heads.into(), "prefix".into(), cached_dim.into()];
    let prefixes: Vec<[Value; 2]> = match style.own {
        true => caches_named(g, style, "prefix", sizes.n_layer, &prefix_shape),
        false => vec![],
    };
    let scale = (sizes.head_dim as f32).powf(-0.5);
    run(g, style, family, embeds, Positions::Given(positions), &sequence, None, &mut |layer, qkv| {
        let heads = [sizes.n_head as i64, sizes.n_kv_head as i64];
        let outputs = match style.own {
            true => {
                let qkv = qkv.map(|x| pad_heads(g, x, sizes.head_dim));
                g.cached_attention(qkv, caches[layer], lengths, prefixes[layer], other, heads, scale)
            }
            false => {
                let qkv = qkv.map(|x| pad_heads(g, x, cached_dim));
                g.group_query_attention(qkv, caches[layer], [lengths, other], heads, scale)
            }
        };
        g.output(&cache_name("present", layer, "key"), outputs[1]);
        g.output(&cache_name("present", layer, "value"), outputs[2]);
        unpad_heads(g, &sizes, outputs[0], if style.own { sizes.head_dim } else { cached_dim })
    });
}

/// How a step attends to caches of a fixed length that it writes in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedCache {
    /// ONNX Runtime's grouped attention, which writes and reads them itself; heads are as wide as what the operator takes.
    Grouped,
    /// Keys and values are scattered into them, and attention is spelled out: what CUDA has in float32.
    Scattered,
}

impl SharedCache {
    /// What CUDA has for an element type. (Heads that are made wider for the operator are concatenated, which a recorded run must not do.)
    pub fn for_cuda(dtype: DType, sizes: &Sizes) -> Self {
        let fits = dtype != DType::F32 && padded_head_dim(sizes) == sizes.head_dim;
        if fits { Self::Grouped } else { Self::Scattered }
    }

    /// Shape of a cache: [N, G, M, D'], flat where keys and values are scattered into it.
    pub fn cache_shape(self, sizes: &Sizes, [rows, length]: [usize; 2]) -> Vec<usize> {
        match self {
            Self::Grouped => vec![rows, sizes.n_kv_head, length, self.head_dim(sizes)],
            Self::Scattered => vec![rows * sizes.n_kv_head * length, sizes.head_dim],
        }
    }

    /// Width of a head in the caches, D'.
    pub fn head_dim(self, sizes: &Sizes) -> usize {
        if self == Self::Grouped { padded_head_dim(sizes) } else { sizes.head_dim }
    }
}

/// The first run of a decoder whose caches have a fixed length M: `inputs_embeds` [batch, P, C] -> `logits` [batch, V] and
/// `present.N.*` [batch, G, M, D'] with zeros behind the prefix; `best` and `sums` as [`best_of`] makes them.
pub fn static_prefill(
    g: &Graph,
    style: Style,
    family: &dyn Architecture,
    shared: SharedCache,
    [prefix_len, length]: [usize; 2],
    picked: &Picked,
) {
    let sizes = family.sizes();
    let prefix = Dim::from(prefix_len);
    let embeds = g.input("inputs_embeds", DType::F32, &["batch".into(), prefix.clone(), sizes.n_embd.into()]);
    let bias = causal_bias(g, style, &prefix, &prefix, &0.into());
    let padded = shared.head_dim(&sizes);
    let rest = ["batch".into(), sizes.n_kv_head.into(), (length - prefix_len).into(), padded.into()];
    let width = ["batch".into(), sizes.n_kv_head.into(), prefix.clone(), (padded - sizes.head_dim).into()];
    run(g, style, family, embeds, Positions::FromStart(&prefix), &prefix, Some(picked), &mut |layer, qkv| {
        let [q, k, v] = qkv.map(|x| heads_first(g, x));
        for (part, cache) in [("key", k), ("value", v)] {
            let wide = match padded == sizes.head_dim {
                true => cache,
                false => g.concat(&[cache, g.zeros(style.dtype, &width.to_vec())], 3),
            };
            let whole = if length == prefix_len { wide } else { g.concat(&[wide, g.zeros(style.dtype, &rest.to_vec())], 2) };
            g.output(&cache_name("present", layer, part), whole);
        }
        attended(g, &sizes, q, k, v, bias)
    });
}

/// One token further for a fixed number of rows N with caches of a fixed length M: `tokens` [N, 2] (int64: each row's token and where it stands)
/// and `past_key_values.N.*` in the [shape](SharedCache::cache_shape) of a cache -> `logits` [N, V], `best` and `sums` of them. `present.N.*` are to
/// be the same memory as the caches: where that is so, nothing of them is copied. No shape is open, so that a card can record the run, and no
/// operator has numbers sent to the card while it runs (as concatenations of unlike widths do), which a recording would send again from where they
/// are no longer.
pub fn shared_step(
    g: &Graph,
    style: Style,
    family: &dyn Architecture,
    shared: SharedCache,
    [rows, length]: [usize; 2],
    picked: &Picked,
) {
    let sizes = family.sizes();
    let padded = shared.head_dim(&sizes);
    let tokens = g.input("tokens", DType::I64, &[rows.into(), 2.into()]);
    let column = |at: usize| g.slice(tokens, 1, at.into(), (at + 1).into());
    let (ids, positions) = (column(0), column(1));
    let table = g.scope(family.embedding(), || parameter(g, style, "weight", &[sizes.vocab_size, sizes.n_embd]));
    let embeds = g.gather(table, ids, 0);
    let shape: Vec<Dim> = shared.cache_shape(&sizes, [rows, length]).into_iter().map(Dim::from).collect();
    let caches = cache_inputs(g, style, sizes.n_layer, &shape);
    let written = |layer: usize, [key, value]: [Value; 2]| {
        g.output(&cache_name("present", layer, "key"), key);
        g.output(&cache_name("present", layer, "value"), value);
    };
    match shared {
        SharedCache::Grouped => {
            // A row is as long as its token's place says, plus one; the operator wants it without the one.
            let lengths = g.reshape(g.cast(positions, DType::I32), &[rows.into()]);
            let total = g.constant(DType::I32, &[1], (length as i32).to_le_bytes().to_vec());
            let scale = (sizes.head_dim as f32).powf(-0.5);
            let heads = [sizes.n_head as i64, sizes.n_kv_head as i64];
            run(g, style, family, embeds, Positions::Given(positions), &1.into(), Some(picked), &mut |layer, qkv| {
                let qkv = qkv.map(|x| pad_heads(g, x, padded));
                let outputs = g.group_query_attention(qkv, caches[layer], [lengths, total], heads, scale);
                written(layer, [outputs[1], outputs[2]]);
                unpad_heads(g, &sizes, outputs[0], padded)
            });
        }
        SharedCache::Scattered => {
            let heads = sizes.n_kv_head;
            // Where each row and head begins among all their places, and where its token stands behind that.
            let starts = (0..rows * heads).flat_map(|i| ((i * length) as i64).to_le_bytes()).collect();
            let starts = g.constant(DType::I64, &[rows as i64, heads as i64], starts);
            let places = g.reshape(g.add(starts, positions), &[(rows * heads).into(), 1.into()]);
            let slots = g.reshape(g.range(&length.into()), &[1.into(), length.into()]);
            let unseen = g.reshape(g.greater(slots, positions), &[rows.into(), 1.into(), 1.into(), length.into()]);
            let bias = g.select(unseen, masked(g, style), g.cast(g.floats(&[0.0], &[]), style.dtype));
            let (flat, whole) =
                ([(rows * heads).into(), sizes.head_dim.into()], [rows, heads, length, sizes.head_dim].map(Dim::from));
            run(g, style, family, embeds, Positions::Given(positions), &1.into(), Some(picked), &mut |layer, [q, k, v]| {
                let past = caches[layer];
                let [k, v] = [(past[0], k), (past[1], v)].map(|(past, x)| g.scatter_nd(past, places, g.reshape(x, &flat)));
                written(layer, [k, v]);
                attended(g, &sizes, heads_first(g, q), g.reshape(k, &whole), g.reshape(v, &whole), bias)
            });
        }
    }
}

/// Rows of memory moved in place: `cells` [all, width] with row `from[i]` of `sources` [others, width] in row `to[i]` -> `moved`, to be
/// the same memory as `cells`. All are read before one is written, so both may be the same memory too. `from` [n], `to` [n, 1].
pub fn move_rows(g: &Graph, style: Style, width: usize) {
    let cells = g.input("cells", style.dtype, &["all".into(), width.into()]);
    let sources = g.input("sources", style.dtype, &["others".into(), width.into()]);
    let from = g.input("from", DType::I64, &["moved".into()]);
    let to = g.input("to", DType::I64, &["moved".into(), 1.into()]);
    g.output("moved", g.scatter_nd(cells, to, g.gather(sources, from, 0)));
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

/// The best of each row of logits [rows, V] and their tokens [rows, 2 K], and the two sums [rows, 2], as [`Best`](crate::models::decoder::Best) has
/// them, for choices that need no more.
pub fn best_of(g: &Graph, logits: Value, picked: &Picked) -> [Value; 2] {
    let vocab_size = g.shape(logits)[1].as_fixed().unwrap_or(1);
    let (values, ids) = g.top_k(logits, 1, (picked.count as i64).min(vocab_size));
    let greatest = g.slice(values, 1, 0.into(), 1.into());
    let log_sum = |factor: f32| {
        let sum = g.reduce_sum(g.exp(g.scale(g.sub(logits, greatest), factor)), &[1], true);
        g.add(g.log(sum), g.scale(greatest, factor))
    };
    let (cold, warm) = (log_sum(1.0), log_sum((1.0 / picked.temperature) as f32));
    [g.concat(&[values, g.cast(ids, DType::F32)], 1), g.concat(&[cold, warm], 1)]
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
        false => [sizes.n_kv_head, padded_head_dim(sizes)],
    }
}

/// Width of a head for ONNX Runtime's attention over a cache that is updated in place.
fn padded_head_dim(sizes: &Sizes) -> usize {
    sizes.head_dim.next_multiple_of(8)
}

/// `inputs_embeds` [batch, S, C] through all layers, and `logits` [batch, V] at the last position as an output; `best` and `sums` of them, where asked for.
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
    let batch = g.shape(embeds).first().cloned().unwrap_or_else(|| "batch".into());
    let pass = Pass { style, batch: batch.clone(), tokens: sequence.clone(), drop: KEEP, pick: ALL };
    let last = g.scope(family.scope(), || {
        let (mut x, rotation) = family.begin(g, &pass, g.cast(embeds, style.dtype), positions);
        for layer in 0..sizes.n_layer {
            x = family.layer(g, &pass, layer, x, rotation, &mut |qkv| attend(layer, qkv));
        }
        let last = g.slice(x, 1, sequence.clone() - 1.into(), sequence.clone());
        family.end(g, style, g.reshape(last, &[batch.clone(), sizes.n_embd.into()]))
    });
    let logits = g.cast(head(g, style, family, last), DType::F32);
    g.output("logits", logits);
    if let Some(picked) = picked {
        let [best, sums] = best_of(g, logits, picked);
        g.output("best", best);
        g.output("sums", sums);
    }
}

/// `past_key_values.N.key|value` of every layer.
fn cache_inputs(g: &Graph, style: Style, layers: usize, shape: &[Dim]) -> Vec<[Value; 2]> {
    caches_named(g, style, "past_key_values", layers, shape)
}

/// `KIND.N.key|value` of every layer.
fn caches_named(g: &Graph, style: Style, kind: &str, layers: usize, shape: &[Dim]) -> Vec<[Value; 2]> {
    let input = |layer: usize, part: &str| g.input(&cache_name(kind, layer, part), style.dtype, shape);
    (0..layers).map(|layer| ["key", "value"].map(|part| input(layer, part))).collect()
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
