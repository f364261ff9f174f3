//! Matrix products.

use crate::onnx::{Dim, Graph, Value};

/// y = a b on the last two dimensions, the others broadcast.
pub(super) fn matmul(g: &Graph, a: Value, b: Value, d: Value) -> Vec<Value> {
    let (a_shape, b_shape) = (g.shape(a), g.shape(b));
    if b_shape.len() > 2 {
        return vec![g.matmul(d, swapped(g, b)), g.matmul(swapped(g, a), d)];
    }
    // One matrix for all rows: its gradient is one product over the rows of all batches.
    let rows = Dim::product(&a_shape[..a_shape.len() - 1]);
    let d = g.reshape(d, &[rows.clone(), b_shape[1].clone()]);
    let flat = g.reshape(a, &[rows, b_shape[0].clone()]);
    let da = g.reshape(g.gemm(d, b, None, false, true), &a_shape);
    vec![da, g.gemm(flat, d, None, true, false)]
}

/// The gradients of both sides of `a' b'` (either side transposed or not) in products of the same kind.
pub(super) fn both_sides(
    a: Value,
    b: Value,
    d: Value,
    trans_a: bool,
    trans_b: bool,
    product: impl Fn(Value, Value, bool, bool) -> Value,
) -> Vec<Value> {
    let da = if trans_a { product(b, d, trans_b, true) } else { product(d, b, false, !trans_b) };
    let db = if trans_b { product(d, a, true, trans_a) } else { product(a, d, !trans_a, false) };
    vec![da, db]
}

/// A convolution whose windows stand side by side (the stride is the kernel's side and divides the image's), as CLIP cuts an image into
/// patches: a product of patches [B * h * w, C * k * k] with the kernel [O, C * k * k]. None for any other.
pub(super) fn conv(g: &Graph, x: Value, kernel: Value, bias: Option<Value>, stride: i64, d: Value) -> Option<Vec<Value>> {
    let (image, window, out) = (g.shape(x), g.shape(kernel), g.shape(d));
    let k = Dim::from(stride);
    let apart = window[2..] == [k.clone(), k.clone()] && (2..4).all(|axis| out[axis].clone() * k.clone() == image[axis]);
    if !apart {
        return None;
    }
    let [batch, outputs, high, wide] = &out[..] else { return None };
    let channels = window[1].clone();
    let (rows, inner) = (batch.clone() * high.clone() * wide.clone(), Dim::product(&window[1..]));
    let cut = [batch.clone(), channels.clone(), high.clone(), k.clone(), wide.clone(), k.clone()];
    let patches = g.transpose(g.reshape(x, &cut), &[0, 2, 4, 1, 3, 5]);
    let patches = g.reshape(patches, &[rows.clone(), inner.clone()]);
    let flat = g.reshape(g.transpose(d, &[0, 2, 3, 1]), &[rows, outputs.clone()]);
    let dk = g.reshape(g.gemm(flat, patches, None, true, false), &window);
    let dx = g.gemm(flat, g.reshape(kernel, &[outputs.clone(), inner]), None, false, false);
    let dx = g.reshape(dx, &[batch.clone(), high.clone(), wide.clone(), channels, k.clone(), k]);
    let dx = g.reshape(g.transpose(dx, &[0, 3, 1, 4, 2, 5]), &image);
    let mut parts = vec![dx, dk];
    parts.extend(bias.map(|_| g.reduce_sum(flat, &[0], false)));
    Some(parts)
}

/// The last two dimensions exchanged.
fn swapped(g: &Graph, x: Value) -> Value {
    let rank = g.shape(x).len();
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    g.transpose(x, &perm)
}
