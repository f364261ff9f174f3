//! Operators that move numbers about.

use crate::autodiff::Rows;
use crate::onnx::{Dim, Graph, Op, Reduction, Value};

pub(super) fn transpose(g: &Graph, perm: &[usize], d: Value) -> Value {
    let mut inverse = vec![0; perm.len()];
    for (to, &from) in perm.iter().enumerate() {
        inverse[from] = to;
    }
    g.transpose(d, &inverse)
}

/// Each part gets its own piece.
pub(super) fn concat(g: &Graph, axis: usize, inputs: &[Option<Value>], d: Value) -> Vec<Value> {
    let sizes: Vec<Dim> = inputs.iter().flatten().map(|&input| g.shape(input)[axis].clone()).collect();
    if let Some(fixed) = sizes.iter().map(Dim::as_fixed).collect::<Option<Vec<_>>>() {
        return g.split(d, axis, &fixed);
    }
    let mut start = Dim::from(0);
    let mut pieces = vec![];
    for size in sizes {
        let end = start.clone() + size;
        pieces.push(g.slice(d, axis, start, end.clone()));
        start = end;
    }
    pieces
}

/// Outputs that nothing was made of add zeros.
pub(super) fn split(g: &Graph, axis: usize, outputs: &[Value], upstream: &[Option<Value>]) -> Value {
    let pieces: Vec<Value> = outputs
        .iter()
        .zip(upstream)
        .map(|(&output, d)| d.unwrap_or_else(|| g.zeros(g.dtype(output), &g.shape(output))))
        .collect();
    g.concat(&pieces, axis)
}

/// Zeros before and behind.
pub(super) fn slice(g: &Graph, x: Value, axis: usize, start: &Dim, end: &Dim, d: Value) -> Value {
    let shape = g.shape(x);
    let zeros = |length: Dim| {
        let mut shape = shape.clone();
        shape[axis] = length;
        (shape[axis].as_fixed() != Some(0)).then(|| g.zeros(g.dtype(d), &shape))
    };
    let (before, behind) = (zeros(start.clone()), zeros(shape[axis].clone() - end.clone()));
    let pieces: Vec<Value> = [before, Some(d), behind].into_iter().flatten().collect();
    if pieces.len() == 1 { d } else { g.concat(&pieces, axis) }
}

/// y[i..] = x[indices[i..]] on rows of x.
pub(super) fn gather_rows(g: &Graph, x: Value, indices: Value, d: Value) -> Rows {
    let count = Dim::product(&g.shape(indices));
    let shape = [std::slice::from_ref(&count), &g.shape(x)[1..]].concat();
    Rows { indices: g.reshape(indices, &[count]), updates: g.reshape(d, &shape) }
}

pub(super) fn gather_elements(g: &Graph, x: Value, indices: Value, axis: usize, d: Value) -> Value {
    g.scatter_elements(g.zeros(g.dtype(d), &g.shape(x)), indices, d, axis, Reduction::Add)
}

/// (of what was scattered into, of what was scattered)
pub(super) fn scatter_elements(g: &Graph, indices: Value, axis: usize, reduction: Reduction, d: Value) -> (Value, Value) {
    let updates = g.gather_elements(d, indices, axis);
    match reduction {
        Reduction::Add => (d, updates),
        Reduction::None => {
            let zeros = g.zeros(g.dtype(d), &g.shape(indices));
            (g.apply(Op::ScatterElements { axis, reduction }, &[d, indices, zeros]), updates)
        }
    }
}
