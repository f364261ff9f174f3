//! Layers that the models share, over parameters named as Hugging Face names them.
//!
//! B batch, T positions, C width, H heads, D width of a head.

use super::config::Activation;
use crate::onnx::{DType, Dim, Graph, Value};

/// How a graph is spelled. The saved graphs use [`Style::PORTABLE`]; variants for a provider are made when a session is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Style {
    /// Use ONNX Runtime's own operators (com.microsoft) where they are faster.
    pub fused: bool,
    /// Element type of states and weights; weights are stored as float32 and cast.
    pub dtype: DType,
    /// Take the 8-bit weights that `model quantize` makes.
    pub int8: bool,
    /// For ONNX Runtime's CUDA provider (see [`Graph::spell_for_cuda`]).
    pub cuda: bool,
    /// This program's own operators may be used (`runtime::operators`).
    pub own: bool,
    /// Among those, products in 8 bits by the processor's dot products.
    pub dots: bool,
}

impl Style {
    pub const PORTABLE: Style = Style { fused: false, dtype: DType::F32, int8: false, cuda: false, own: false, dots: false };
}

/// A parameter in the element type of the style.
pub fn parameter(g: &Graph, style: Style, name: &str, shape: &[usize]) -> Value {
    let shape: Vec<Dim> = shape.iter().map(|&d| Dim::from(d)).collect();
    g.cast(g.parameter(name, &shape), style.dtype)
}

/// A weight's name for the 8-bit data and the scales that stand for it.
pub fn int8_names(weight: &str) -> (String, String) {
    (format!("{weight}_int8"), format!("{weight}_scales"))
}

/// `x [.., inputs]` times 8-bit weights [inputs, outputs], and the bias [outputs] -> [.., outputs].
fn int8_product(g: &Graph, style: Style, x: Value, inputs: usize, outputs: usize, bias: Option<Value>) -> Value {
    let (data, scales) = int8_names("weight");
    let data = g.parameter(&data, &[inputs.into(), outputs.into()]);
    let scales = g.parameter(&scales, &[outputs.into()]);
    let mut shape = g.shape(x);
    let rows = Dim::product(&shape[..shape.len() - 1]);
    let flat = g.reshape(x, &[rows, inputs.into()]);
    shape.pop();
    shape.push(outputs.into());
    if style.own {
        return g.reshape(g.int8_product_in_own(flat, data, scales, bias, style.dots), &shape);
    }
    let y = g.reshape(g.int8_product(flat, data, scales), &shape);
    bias.map_or(y, |bias| g.add(y, bias))
}

/// PyTorch's Linear: `x [.., inputs]`, weight [outputs, inputs], bias [outputs].
pub fn linear(g: &Graph, style: Style, name: &str, x: Value, inputs: usize, outputs: usize, bias: bool) -> Value {
    g.scope(name, || {
        let bias = bias.then(|| parameter(g, style, "bias", &[outputs]));
        if style.int8 {
            return int8_product(g, style, x, inputs, outputs, bias);
        }
        let weight = parameter(g, style, "weight", &[outputs, inputs]);
        let mut shape = g.shape(x);
        let rows = Dim::product(&shape[..shape.len() - 1]);
        let flat = g.reshape(x, &[rows, inputs.into()]);
        let y = adapted(g, style, flat, g.gemm(flat, weight, bias, false, true), inputs, outputs);
        shape.pop();
        shape.push(outputs.into());
        g.reshape(y, &shape)
    })
}

/// What an adapter's two weights are called beside the weight they stand for, in PEFT's words.
pub const LORA_A: &str = "lora_A.weight";
pub const LORA_B: &str = "lora_B.weight";
/// The factor of adapters in a graph that has any.
pub const LORA_SCALE: &str = "lora_scale";

/// `y` [N, outputs] and what an adapter makes of `x` [N, inputs], where there is one in this scope.
fn adapted(g: &Graph, style: Style, x: Value, y: Value, inputs: usize, outputs: usize) -> Value {
    let rank = g.parameter_shape(LORA_A).and_then(|shape| usize::try_from(*shape.first()?).ok());
    let (Some(rank), Some(scale)) = (rank, g.number(LORA_SCALE)) else { return y };
    let (a, b) = (parameter(g, style, LORA_A, &[rank, inputs]), parameter(g, style, LORA_B, &[outputs, rank]));
    let added = g.gemm(g.gemm(x, a, None, false, true), b, None, false, true);
    g.add(y, g.scale(added, scale))
}

/// GPT2's Conv1D: `x [.., inputs]`, weight [inputs, outputs], bias [outputs].
pub fn conv1d(g: &Graph, style: Style, name: &str, x: Value, inputs: usize, outputs: usize) -> Value {
    g.scope(name, || {
        let bias = parameter(g, style, "bias", &[outputs]);
        if style.int8 {
            return int8_product(g, style, x, inputs, outputs, Some(bias));
        }
        let weight = parameter(g, style, "weight", &[inputs, outputs]);
        let mut shape = g.shape(x);
        let rows = Dim::product(&shape[..shape.len() - 1]);
        let flat = g.reshape(x, &[rows, inputs.into()]);
        let y = adapted(g, style, flat, g.gemm(flat, weight, Some(bias), false, false), inputs, outputs);
        shape.pop();
        shape.push(outputs.into());
        g.reshape(y, &shape)
    })
}

/// The convolution that cuts images [B, 3, S, S] into patches side by side, `patch_embedding.weight` [C, 3, P, P] (and `patch_embedding.bias`),
/// as one product -> [B, patches, C]. It is at least as fast, every provider has it in every precision, and CUDA needs no cuDNN for it.
pub fn patch_embedding(g: &Graph, style: Style, pixels: Value, width: usize, patch: usize, bias: bool) -> Value {
    let shape = g.shape(pixels);
    let [batch, channels, height, length] = &shape[..] else {
        g.fail("patches are cut out of [B, 3, S, S]");
        return pixels;
    };
    let fixed = |dim: &Dim| dim.as_fixed().unwrap_or(0) as usize;
    let (channels, rows, columns) = (fixed(channels), fixed(height) / patch, fixed(length) / patch);
    // What is left over at the lower and right edge belongs to no patch.
    let cut = |x: Value, axis: usize, count: usize, whole: &Dim| match count * patch == fixed(whole) {
        true => x,
        false => g.slice(x, axis, 0.into(), (count * patch).into()),
    };
    let x = cut(cut(pixels, 2, rows, height), 3, columns, length);
    let x = g.reshape(x, &[batch.clone(), channels.into(), rows.into(), patch.into(), columns.into(), patch.into()]);
    let x = g.transpose(x, &[0, 2, 4, 1, 3, 5]); // [B, rows, columns, 3, P, P]
    let inputs = channels * patch * patch;
    let x = g.reshape(x, &[batch.clone() * (rows * columns).into(), inputs.into()]);
    let kernel = parameter(g, style, "patch_embedding.weight", &[width, channels, patch, patch]);
    let kernel = g.reshape(kernel, &[width.into(), inputs.into()]);
    let bias = bias.then(|| parameter(g, style, "patch_embedding.bias", &[width]));
    let y = g.gemm(x, kernel, bias, false, true);
    g.reshape(y, &[batch.clone(), (rows * columns).into(), width.into()])
}

pub fn layer_norm(g: &Graph, style: Style, name: &str, x: Value, width: usize, epsilon: f64) -> Value {
    g.scope(name, || {
        let (weight, bias) = (parameter(g, style, "weight", &[width]), parameter(g, style, "bias", &[width]));
        g.layer_normalization(x, weight, bias, epsilon as f32).0
    })
}

pub fn activation(g: &Graph, style: Style, kind: Activation, x: Value) -> Value {
    match kind {
        Activation::QuickGelu if style.fused => g.quick_gelu(x, 1.702),
        Activation::QuickGelu => g.mul(x, g.sigmoid(g.scale(x, 1.702))),
        Activation::Gelu => g.gelu(x, false),
        Activation::GeluNew => g.gelu(x, true),
        Activation::Relu => g.max(x, g.scalar_like(x, 0.0)),
        Activation::Silu => g.mul(x, g.sigmoid(x)),
    }
}

/// [B, T, C] -> [B, H, T, D].
pub fn split_heads(g: &Graph, x: Value, heads: usize) -> Value {
    let [batch, tokens, width] = &g.shape(x)[..] else {
        g.fail("heads are split out of [B, T, C]");
        return x;
    };
    let head_dim = width.as_fixed().unwrap_or(0) as usize / heads;
    let split = g.reshape(x, &[batch.clone(), tokens.clone(), heads.into(), head_dim.into()]);
    g.transpose(split, &[0, 2, 1, 3])
}

/// [B, H, T, D] -> [B, T, C].
pub fn join_heads(g: &Graph, x: Value) -> Value {
    let [batch, heads, tokens, head_dim] = &g.shape(x)[..] else {
        g.fail("heads are joined from [B, H, T, D]");
        return x;
    };
    let joined = g.transpose(x, &[0, 2, 1, 3]);
    g.reshape(joined, &[batch.clone(), tokens.clone(), heads.clone() * head_dim.clone()])
}

/// Called at every place where a model has a dropout, with the dropout's name there, its rate and the tensor; returns what goes on.
pub type Drop<'a> = &'a dyn Fn(&str, f64, Value) -> Value;

/// Nothing is dropped.
pub const KEEP: Drop<'static> = &|_, _, x| x;

/// Softmax attention over [B, H, T, D] queries, keys and values; `bias` is added to the scores.
pub fn attention(g: &Graph, q: Value, k: Value, v: Value, bias: Option<Value>) -> Value {
    attention_with(g, Style::PORTABLE, [q, k, v], bias, |weights| weights)
}

/// As [`attention`], with something done to the weights [B, H, T, T] before they are used.
pub fn attention_with(
    g: &Graph,
    style: Style,
    [q, k, v]: [Value; 3],
    bias: Option<Value>,
    weigh: impl FnOnce(Value) -> Value,
) -> Value {
    let head_dim = g.shape(q).last().and_then(Dim::as_fixed).unwrap_or(1);
    let factor = (head_dim as f32).powf(-0.5);
    let scores = match style.fused {
        true => g.fused_matmul(q, k, false, true, factor),
        false => g.matmul(g.scale(q, factor), g.transpose(k, &[0, 1, 3, 2])),
    };
    let scores = bias.map_or(scores, |bias| g.add(scores, bias));
    g.matmul(weigh(g.softmax(scores)), v)
}

/// Attention of a transformer encoder, every position to every position: `q`, `k`, `v` [B, T, C].
pub fn encoder_attention(g: &Graph, style: Style, q: Value, k: Value, v: Value, heads: usize) -> Value {
    // CUDA's wants cuDNN, whatever it computes with in the end.
    if style.fused && !style.cuda {
        return g.multi_head_attention(q, k, v, heads as i64);
    }
    let qkv = [q, k, v].map(|x| split_heads(g, x, heads));
    join_heads(g, attention_with(g, style, qkv, None, |weights| weights))
}

/// What is added to scores [.., rows, columns] so that row `i` sees columns up to `offset + i`: 0 or a number that softmax ends at 0.
pub fn causal_bias(g: &Graph, style: Style, rows: &Dim, columns: &Dim, offset: &Dim) -> Value {
    let row = g.add(g.range(rows), g.reshape(g.dim(offset), &[]));
    let row = g.reshape(row, &[rows.clone(), 1.into()]);
    let column = g.reshape(g.range(columns), &[1.into(), columns.clone()]);
    let hidden = g.greater(column, row);
    let zero = g.cast(g.floats(&[0.0], &[]), style.dtype);
    g.select(hidden, masked(g, style), zero)
}

/// Large and negative, and finite in the element type.
pub fn masked(g: &Graph, style: Style) -> Value {
    g.cast(g.floats(&[if style.dtype == DType::F16 { -6e4 } else { -1e9 }], &[]), style.dtype)
}
