//! The table of rules: for each operator, what its inputs get of the gradient that arrives at its outputs.

mod elementwise;
mod moving;
mod products;
mod reductions;

use super::{Rows, Spelling};
use crate::onnx::{Graph, Node, Op, Value};

/// What an operator adds to the gradient of an input.
#[derive(Clone, Copy)]
pub(super) enum Contribution {
    /// Of the input's shape, or of a shape that the input was broadcast to.
    Dense(Value),
    Rows(Rows),
}

/// The operator has no gradient, or none that this program needs.
#[derive(Debug)]
pub(super) struct NotDifferentiable;

/// A contribution for each input. `upstream` holds, for each output, the gradient of the output's shape that has arrived there.
pub(super) fn apply(
    g: &Graph,
    node: &Node,
    upstream: &[Option<Value>],
    spelling: Spelling,
) -> Result<Vec<Option<Contribution>>, NotDifferentiable> {
    let dense = |gradients: Vec<Value>| Ok(gradients.into_iter().map(|value| Some(Contribution::Dense(value))).collect());
    // Only Split has a gradient through any other output than its first.
    if let Op::Split { axis, .. } = node.op {
        return dense(vec![moving::split(g, axis, &node.outputs, upstream)]);
    }
    let ([Some(d), rest @ ..], Some(Some(a))) = (upstream, node.inputs.first()) else { return Err(NotDifferentiable) };
    if rest.iter().any(Option::is_some) {
        return Err(NotDifferentiable);
    }
    let (a, d, y) = (*a, *d, node.outputs[0]);
    // Optional inputs stand last; the operators below that name `b` or `c` have them, or the graph would bear a fault.
    let b = node.inputs.get(1).copied().flatten().unwrap_or(a);
    let c = node.inputs.get(2).copied().flatten();
    match &node.op {
        Op::Add => dense(vec![d, d]),
        Op::Sub => dense(vec![d, g.neg(d)]),
        Op::Mul => dense(vec![g.mul(d, b), g.mul(d, a)]),
        Op::Div => dense(elementwise::div(g, b, y, d)),
        Op::Max => dense(elementwise::max(g, a, b, d)),
        Op::Where => {
            let zero = g.scalar_like(d, 0.0);
            Ok(vec![None, Some(Contribution::Dense(g.select(a, d, zero))), Some(Contribution::Dense(g.select(a, zero, d)))])
        }
        Op::Neg => dense(vec![g.neg(d)]),
        Op::Abs => dense(vec![elementwise::abs(g, a, d)]),
        Op::Exp => dense(vec![g.mul(d, y)]),
        Op::Log => dense(vec![g.div(d, a)]),
        Op::Sqrt => dense(vec![g.scale(g.div(d, y), 0.5)]),
        Op::Reciprocal => dense(vec![g.neg(g.mul(d, g.mul(y, y)))]),
        Op::Tanh => dense(vec![g.mul(d, g.sub(g.scalar_like(y, 1.0), g.mul(y, y)))]),
        Op::Sigmoid => dense(vec![g.mul(d, g.sub(y, g.mul(y, y)))]),
        Op::Erf => dense(vec![elementwise::erf(g, a, d)]),
        Op::Cos => dense(vec![g.neg(g.mul(d, g.sin(a)))]),
        Op::Sin => dense(vec![g.mul(d, g.cos(a))]),
        Op::Clip => dense(vec![elementwise::clip(g, a, b, c.unwrap_or(b), d)]),
        Op::Gelu { tanh: true } => dense(vec![elementwise::gelu_tanh(g, a, y, d)]),
        Op::Gelu { tanh: false } => dense(vec![elementwise::gelu_exact(g, a, d)]),
        Op::QuickGelu { alpha } => dense(vec![elementwise::quick_gelu(g, a, y, *alpha, d)]),
        Op::Softmax => dense(vec![reductions::softmax(g, y, d)]),
        Op::Identity => dense(vec![d]),
        Op::Detach => Ok(vec![None]),
        Op::Cast { .. } => dense(vec![g.cast(d, g.dtype(a))]),
        Op::MatMul => dense(products::matmul(g, a, b, d)),
        Op::Gemm { trans_a, trans_b, alpha } => {
            let product = |a, b, ta, tb| g.apply(Op::Gemm { trans_a: ta, trans_b: tb, alpha: *alpha }, &[a, b]);
            let mut parts = products::both_sides(a, b, d, *trans_a, *trans_b, product);
            parts.extend(c.map(|_| d));
            dense(parts)
        }
        Op::Conv { stride, pad: 0 } => dense(products::conv(g, a, b, c, *stride, d).ok_or(NotDifferentiable)?),
        Op::FusedMatMul { trans_a, trans_b, alpha } => {
            let product = |a, b, ta, tb| g.fused_matmul(a, b, ta, tb, *alpha);
            dense(products::both_sides(a, b, d, *trans_a, *trans_b, product))
        }
        Op::LayerNormalization { epsilon } => {
            let statistics = match spelling {
                Spelling::Statistics => (node.outputs[1], node.outputs[2]),
                Spelling::Recomputed => reductions::norm_statistics(g, a, *epsilon),
            };
            dense(reductions::layer_normalization(g, node, statistics, d))
        }
        Op::ReduceSum { axes, .. } => Ok(vec![Some(Contribution::Dense(reductions::spread(g, a, axes, d))), None]),
        Op::ReduceMean { axes, .. } => Ok(vec![Some(Contribution::Dense(reductions::mean(g, a, axes, d))), None]),
        Op::ReduceMax { axes, .. } => Ok(vec![Some(Contribution::Dense(reductions::max(g, a, y, axes, d))), None]),
        Op::Transpose { perm } => dense(vec![moving::transpose(g, perm, d)]),
        Op::Reshape { .. } => Ok(vec![Some(Contribution::Dense(g.reshape(d, &g.shape(a)))), None]),
        // The walk sums over what was expanded.
        Op::Expand { .. } => Ok(vec![Some(Contribution::Dense(d)), None]),
        Op::Concat { axis } => dense(moving::concat(g, *axis, &node.inputs, d)),
        Op::Slice { axis, start, end } => Ok(vec![Some(Contribution::Dense(moving::slice(g, a, *axis, start, end, d)))]),
        Op::Gather { axis: 0 } => Ok(vec![Some(Contribution::Rows(moving::gather_rows(g, a, b, d))), None]),
        Op::GatherElements { axis } => Ok(vec![Some(Contribution::Dense(moving::gather_elements(g, a, b, *axis, d))), None]),
        Op::ScatterElements { axis, reduction } => {
            let (base, updates) = moving::scatter_elements(g, b, *axis, *reduction, d);
            Ok(vec![Some(Contribution::Dense(base)), None, Some(Contribution::Dense(updates))])
        }
        // Whole numbers and truth values, steps, and what only finished models use.
        Op::Equal
        | Op::Less
        | Op::Greater
        | Op::Round
        | Op::QuantizeLinear { .. }
        | Op::MatMulIntegerToFloat
        | Op::Split { .. }
        | Op::Gather { .. }
        | Op::ScatterNd
        | Op::Shape
        | Op::Relu
        | Op::Conv { .. }
        | Op::AveragePool { .. }
        | Op::BatchNormalization { .. }
        | Op::Range { .. }
        | Op::TopK { .. }
        | Op::MultiHeadAttention { .. }
        | Op::GroupQueryAttention { .. }
        | Op::QuantizeRows
        | Op::ScaleRows
        | Op::Int8Product
        | Op::CachedAttention { .. } => Err(NotDifferentiable),
    }
}
