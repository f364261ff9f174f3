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

/// The last two dimensions exchanged.
fn swapped(g: &Graph, x: Value) -> Value {
    let rank = g.shape(x).len();
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    g.transpose(x, &perm)
}
