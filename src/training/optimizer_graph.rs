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
    let norm = norm_of(&g, tensors.iter().map(|[_, gradient, ..]| *gradient));
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

fn norm_of(g: &Graph, gradients: impl Iterator<Item = Value>) -> Value {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::runtime::{Device, Feed, Precision, Runtime, Session};
    use crate::training::optimizer::{State, clip_factor, global_norm, is_norm_or_bias, regions};
    use crate::training::parameters::Layout;

    /// Numbers between -1 and 1 without pattern.
    fn direction(count: usize, offset: usize) -> impl Iterator<Item = f32> {
        (offset..offset + count).map(|i| ((i as f64 * 0.618_033_988_75).fract() * 2.0 - 1.0) as f32)
    }

    /// |a - b| / |b|
    fn difference(a: &[f32], b: &[f32]) -> f64 {
        assert_eq!(a.len(), b.len());
        let norm = |values: Vec<f32>| values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        norm(a.iter().zip(b).map(|(x, y)| x - y).collect()) / norm(b.to_vec())
    }

    #[test]
    fn the_optimizer_graph_does_what_the_native_optimizer_does() {
        let parameters: Vec<Parameter> = [("a.weight", vec![7, 5]), ("a.bias", vec![5]), ("b.LayerNorm.weight", vec![3])]
            .map(|(name, shape)| Parameter { name: name.into(), shape })
            .into();
        let layout = Layout::new(parameters.iter().map(|p| (p.name.clone(), p.shape.clone())));
        for (no_decay_norm_bias, max_grad_norm) in [(false, None), (true, Some(0.5)), (false, Some(100.0))] {
            let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
            let options = OptimizerOptions { adamw, no_decay_norm_bias, max_grad_norm };
            let model = optimizer_graph(&parameters, &options).unwrap();
            let mut session = Session::new(
                &Runtime::start(Device::Cpu, Precision::Fp32, Some(2)).unwrap(),
                "optimizer",
                &model.to_bytes(),
                Path::new("."),
                &[],
            )
            .unwrap();
            let regions = regions(&layout, |name| !no_decay_norm_bias || !is_norm_or_bias(name));
            let [mut values, mut gradients, mut exp_avg, mut exp_avg_sq] = [(); 4].map(|()| layout.buffer());
            for slot in layout.slots() {
                values[slot.range()].iter_mut().zip(direction(slot.numel(), 3)).for_each(|(v, d)| *v = d);
            }
            for step in 1..=5u64 {
                for slot in layout.slots() {
                    let new = direction(slot.numel(), 100 * step as usize);
                    gradients[slot.range()].iter_mut().zip(new).for_each(|(g, d)| *g = d * d * d);
                }
                let names: Vec<[String; 4]> = layout
                    .slots()
                    .iter()
                    .map(|s| ["", ".grad", ".exp_avg", ".exp_avg_sq"].map(|x| format!("{}{x}", s.name)))
                    .collect();
                let shapes: Vec<Vec<i64>> = layout.slots().iter().map(|s| s.shape.iter().map(|&d| d as i64).collect()).collect();
                let (rate, steps) = ([2e-3f32], [step as i64]);
                let mut feeds = vec![("learning_rate", Feed::F32(&rate, &[])), ("step", Feed::I64(&steps, &[]))];
                for ((slot, names), shape) in layout.slots().iter().zip(&names).zip(&shapes) {
                    for (name, buffer) in names.iter().zip([&values, &gradients, &exp_avg, &exp_avg_sq]) {
                        feeds.push((name, Feed::F32(&buffer[slot.range()], shape)));
                    }
                }
                let outputs = session.run(&feeds).unwrap();
                let norm = global_norm(&gradients);
                assert!((f64::from(outputs.f32("grad_norm").unwrap()[0]) / norm - 1.0).abs() < 1e-6);
                let found: Vec<[Vec<f32>; 3]> = layout
                    .slots()
                    .iter()
                    .map(|s| {
                        ["", ".exp_avg", ".exp_avg_sq"].map(|x| outputs.f32(&format!("{}{x}.updated", s.name)).unwrap().to_vec())
                    })
                    .collect();
                let state =
                    State { parameters: &mut values, gradients: &gradients, exp_avg: &mut exp_avg, exp_avg_sq: &mut exp_avg_sq };
                adamw.step(state, &regions, step, f64::from(rate[0]), clip_factor(norm, max_grad_norm));
                for (slot, found) in layout.slots().iter().zip(&found) {
                    for (found, wanted) in found.iter().zip([&values, &exp_avg, &exp_avg_sq]) {
                        assert!(difference(found, &wanted[slot.range()]) < 1e-6, "{} at step {step}", slot.name);
                    }
                }
            }
        }
    }
}
