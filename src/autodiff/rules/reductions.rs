//! Sums, means, maxima, and what is built of them.

use crate::onnx::{DType, Dim, Graph, Node, Value};

/// The gradient of a reduction's output along all elements it came from.
pub(super) fn spread(g: &Graph, x: Value, axes: &[usize], d: Value) -> Value {
    let shape = g.shape(x);
    g.expand(g.reshape(d, &kept(&shape, axes)), &shape)
}

pub(super) fn mean(g: &Graph, x: Value, axes: &[usize], d: Value) -> Value {
    let shape = g.shape(x);
    let count = Dim::product(&axes.iter().map(|&axis| shape[axis].clone()).collect::<Vec<_>>());
    let share = match count.as_fixed() {
        Some(count) => g.scale(d, 1.0 / count as f32),
        None => g.div(d, g.cast(g.reshape(g.dim(&count), &[]), g.dtype(d))),
    };
    spread(g, x, axes, share)
}

/// Equal maxima share the gradient.
pub(super) fn max(g: &Graph, x: Value, y: Value, axes: &[usize], d: Value) -> Value {
    let kept = kept(&g.shape(x), axes);
    let here = g.cast(g.equal(x, g.reshape(y, &kept)), g.dtype(d));
    let share = g.div(g.reshape(d, &kept), g.reduce_sum(here, axes, true));
    g.mul(here, share)
}

fn kept(shape: &[Dim], axes: &[usize]) -> Vec<Dim> {
    shape.iter().enumerate().map(|(i, dim)| if axes.contains(&i) { 1.into() } else { dim.clone() }).collect()
}

/// y * (d - rowsum(d * y))
pub(super) fn softmax(g: &Graph, y: Value, d: Value) -> Value {
    let last = g.shape(y).len() - 1;
    g.mul(y, g.sub(d, g.reduce_sum(g.mul(d, y), &[last], true)))
}

/// Mean and inverse deviation of the last dimension, in float32.
pub(super) fn norm_statistics(g: &Graph, x: Value, epsilon: f32) -> (Value, Value) {
    let x = g.cast(x, DType::F32);
    let last = [g.shape(x).len() - 1];
    let mean = g.reduce_mean(x, &last, true);
    let centred = g.sub(x, mean);
    let variance = g.reduce_mean(g.mul(centred, centred), &last, true);
    (mean, g.reciprocal(g.sqrt(g.add(variance, g.scalar_like(x, epsilon)))))
}

/// Inputs x, weight and (it may be absent) bias, through the mean and the inverse deviation:
/// xh = (x - mean) * inv; dxh = d * weight; dx = inv * (dxh - mean(dxh) - xh * mean(dxh * xh)). Both means are products with the weight as
/// a column, since mean(dxh) = d weight / C. In float32 whatever the input's type, as the operator itself computes.
pub(super) fn layer_normalization(g: &Graph, node: &Node, (mean, inv): (Value, Value), d: Value) -> Vec<Value> {
    let inputs: Vec<Value> = node.inputs.iter().copied().flatten().collect();
    let dtype = g.dtype(d);
    let wide = |v| g.cast(v, DType::F32);
    let (x, weight, d) = (wide(inputs[0]), wide(inputs[1]), wide(d));
    let width = g.shape(weight)[0].clone();
    let xh = g.mul(g.sub(x, mean), inv);
    let dw = g.mul(d, xh);
    let column = match width.as_fixed() {
        Some(count) => g.scale(weight, 1.0 / count as f32),
        None => g.div(weight, g.cast(g.reshape(g.dim(&width), &[]), DType::F32)),
    };
    let column = g.reshape(column, &[width, 1.into()]);
    let centred = g.sub(g.mul(d, weight), g.matmul(d, column));
    let dx = g.mul(inv, g.sub(centred, g.mul(xh, g.matmul(dw, column))));
    [dx, dw, d].into_iter().take(inputs.len()).map(|v| g.cast(v, dtype)).collect()
}
