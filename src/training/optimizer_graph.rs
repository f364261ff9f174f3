//! AdamW with clipping by the global norm as a graph of standard operators, for devices where nothing should leave between steps. What it
//! computes is what the native optimizer computes.

use super::artifacts::Parameter;
use super::optimizer::AdamW;
use crate::onnx::{DType, Dim, Graph, GraphError, Model, Value};

/// What the optimizer is set to; learning rate and step are inputs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct OptimizerOptions {
    pub adamw: AdamW,
    /// Layer norms and biases are left without weight decay.
    pub no_decay_norm_bias: bool,
    /// Gradients of a greater global norm are scaled down to it.
    pub max_grad_norm: Option<f64>,
}

/// Builds the optimizer's graph. Inputs: `learning_rate` (float32 scalar), `step` (int64 scalar, counts from 1), and for each parameter
/// `NAME`, `NAME.grad`, `NAME.exp_avg`, `NAME.exp_avg_sq`. Outputs: `grad_norm` (before clipping) and `NAME.updated`,
/// `NAME.exp_avg.updated`, `NAME.exp_avg_sq.updated`.
pub fn optimizer_graph(parameters: &[Parameter], options: &OptimizerOptions) -> Result<Model, GraphError> {
    let g = Graph::new("optimizer_model");
    g.doc("One step of AdamW, after gradients are clipped by their global norm.");
    let learning_rate = g.input("learning_rate", DType::F32, &[]);
    let step = g.input("step", DType::I64, &[]);
    let tensors: Vec<[Value; 4]> = parameters
        .iter()
        .map(|parameter| {
            let shape: Vec<Dim> = parameter.shape.iter().map(|&d| Dim::from(d)).collect();
            [String::new(), ".grad".into(), ".exp_avg".into(), ".exp_avg_sq".into()]
                .map(|suffix| g.input(&format!("{}{suffix}", parameter.name), DType::F32, &shape))
        })
        .collect();
    let norm = global_norm(&g, tensors.iter().map(|[_, gradient, ..]| *gradient));
    g.output("grad_norm", norm);
    let factor = options.max_grad_norm.map(|max| {
        let number = |n: f64| g.scalar_like(norm, n as f32);
        g.clip(g.div(number(max), g.add(norm, number(1e-6))), number(0.0), number(1.0))
    });
    let corrections = Corrections::new(&g, &options.adamw, learning_rate, step);
    for (parameter, [value, gradient, exp_avg, exp_avg_sq]) in parameters.iter().zip(tensors) {
        let gradient = factor.map_or(gradient, |factor| g.mul(gradient, factor));
        let decays = !(options.no_decay_norm_bias && super::optimizer::is_norm_or_bias(&parameter.name));
        let updated =
            g.scope(&parameter.name, || update(&g, &options.adamw, &corrections, decays, [value, gradient, exp_avg, exp_avg_sq]));
        for (suffix, value) in ["", ".exp_avg", ".exp_avg_sq"].iter().zip(updated) {
            g.output(&format!("{}{suffix}.updated", parameter.name), value);
        }
    }
    g.finish()
}

fn global_norm(g: &Graph, gradients: impl Iterator<Item = Value>) -> Value {
    let squares = gradients.map(|gradient| {
        let axes: Vec<usize> = (0..g.shape(gradient).len()).collect();
        let square = g.mul(gradient, gradient);
        if axes.is_empty() { square } else { g.reduce_sum(square, &axes, false) }
    });
    let sum = squares.reduce(|sum, square| g.add(sum, square));
    g.sqrt(sum.unwrap_or_else(|| g.floats(&[0.0], &[])))
}

/// Numbers a step needs once, computed in double precision: 1 - beta^step loses most of its digits in single.
struct Corrections {
    /// 1 - learning_rate * weight_decay
    decay: Value,
    /// learning_rate / (1 - beta1^step)
    step_size: Value,
    /// sqrt(1 - beta2^step)
    correction2_sqrt: Value,
}

impl Corrections {
    fn new(g: &Graph, adamw: &AdamW, learning_rate: Value, step: Value) -> Self {
        let double = |n: f64| g.constant(DType::F64, &[], n.to_le_bytes().to_vec());
        let single = |v| g.cast(v, DType::F32);
        let (step, rate) = (g.cast(step, DType::F64), g.cast(learning_rate, DType::F64));
        let correction = |beta: f64| g.sub(double(1.0), g.exp(g.mul(step, double(beta.ln()))));
        Self {
            decay: single(g.sub(double(1.0), g.mul(rate, double(adamw.weight_decay)))),
            step_size: single(g.div(rate, correction(adamw.beta1))),
            correction2_sqrt: single(g.sqrt(correction(adamw.beta2))),
        }
    }
}

/// (parameter, gradient, both moments) -> (parameter, both moments), element by element in the order of PyTorch's AdamW.
fn update(
    g: &Graph,
    adamw: &AdamW,
    corrections: &Corrections,
    decays: bool,
    [value, gradient, exp_avg, exp_avg_sq]: [Value; 4],
) -> [Value; 3] {
    let number = |n: f64| g.scalar_like(gradient, n as f32);
    let decayed = if decays { g.mul(value, corrections.decay) } else { value };
    let exp_avg = g.add(exp_avg, g.mul(g.sub(gradient, exp_avg), number(1.0 - adamw.beta1)));
    let squared = g.mul(g.mul(gradient, gradient), number(1.0 - adamw.beta2));
    let exp_avg_sq = g.add(g.mul(exp_avg_sq, number(adamw.beta2)), squared);
    let denominator = g.add(g.div(g.sqrt(exp_avg_sq), corrections.correction2_sqrt), number(adamw.eps));
    let updated = g.sub(decayed, g.div(g.mul(exp_avg, corrections.step_size), denominator));
    [updated, exp_avg, exp_avg_sq]
}
