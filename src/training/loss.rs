//! The loss of a language model over the positions that predict a label, and what other losses share with it.
//!
//! M labels, C width of a state, V entries of the vocabulary.

use crate::onnx::{DType, Graph, Value};

/// Scalars over one batch.
pub struct Loss {
    /// Mean over the labels (float32).
    pub mean: Value,
    /// Sum over the labels (float32).
    pub sum: Value,
    /// How many labels there are (int64).
    pub num_tokens: Value,
}

/// Cross-entropy of `states` [M, C] times the head `table` [V, C] (float32) against `labels` [M] (int64). A negative label does not
/// count: fixed shapes are filled up with those. With label smoothing e every entry of the vocabulary is the target to a share of e / V, as in
/// PyTorch. Where there are `weights` [M] (float32), each label counts by its weight in the sum, and by 1 in the number of labels: with advantages
/// for weights the gradient of the mean is that of a policy.
pub fn cross_entropy(
    g: &Graph,
    states: Value,
    table: Value,
    labels: Value,
    weights: Option<Value>,
    label_smoothing: f32,
) -> Loss {
    let shape = g.shape(states);
    let (m, width) = (shape[0].clone(), shape[1].clone());
    let wide = |v| g.cast(v, DType::F32);
    let column = |v| g.reshape(v, &[m.clone(), 1.into()]);

    let counts = g.cast(g.less(labels, g.scalar_like(labels, 0.0)), DType::F32);
    let counts = g.sub(g.scalar_like(counts, 1.0), counts); // [M], 1 where a label is
    let ids = g.max(labels, g.scalar_like(labels, 0.0));

    let narrow = |v| g.cast(v, g.dtype(states));
    let logits = wide(g.gemm(states, narrow(table), None, false, true)); // [M, V]
    let log_sum_exp = log_sum_exp(g, logits, 1); // [M, 1]

    // The label's logit has the value found among the logits and the gradient of a dot product with the label's row of the table: that is
    // a few rows to add, where the gradient of picking would be another [M, V].
    let dot = g.reduce_sum(g.mul(wide(states), g.gather(table, ids, 0)), &[1], true);
    let picked = g.gather_elements(logits, column(ids), 1);
    let logit = g.add(dot, g.detach(g.sub(picked, dot)));

    let mut target = g.scale(logit, 1.0 - label_smoothing);
    if label_smoothing > 0.0 {
        // The mean logit is the product with the table's mean row.
        let mean_row = g.reshape(g.reduce_mean(table, &[0], true), &[width, 1.into()]);
        target = g.add(target, g.scale(g.gemm(wide(states), mean_row, None, false, false), label_smoothing));
    }
    let each = g.mul(g.sub(log_sum_exp, target), column(counts));
    let each = weights.map_or(each, |weights| g.mul(each, column(weights)));
    let sum = g.reduce_sum(each, &[0, 1], false);
    let count = g.reduce_sum(counts, &[0], false);
    let mean = g.div(sum, g.max(count, g.scalar_like(count, 1.0)));
    Loss { mean, sum, num_tokens: g.cast(count, DType::I64) }
}

/// The logarithm of the sum of exponentials along an axis, which stays with length 1.
pub fn log_sum_exp(g: &Graph, logits: Value, axis: usize) -> Value {
    // The maximum is taken as a constant: its share of the gradient cancels out.
    let greatest = g.detach(g.reduce_max(logits, &[axis], true));
    let sum = g.reduce_sum(g.exp(g.sub(logits, greatest)), &[axis], true);
    g.add(g.log(sum), greatest)
}
