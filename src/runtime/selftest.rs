//! Does a device compute the right thing? A tiny network with stored answers.

use std::path::Path;

use super::{Feed, Runtime, RuntimeError, Session};
use crate::onnx::{DType, Graph};

/// What the self-test found.
#[derive(Debug, Clone, Copy)]
pub struct SelfTest {
    /// Largest difference from the stored answers.
    pub difference: f32,
    /// What the precision allows.
    pub tolerance: f32,
}

impl SelfTest {
    pub fn passed(&self) -> bool {
        self.difference <= self.tolerance
    }
}

/// Rows, inputs and hidden width of the network.
const SHAPE: [usize; 3] = [3, 16, 32];

/// Heads of its attention.
const HEADS: usize = 2;

/// Answers of the network below, computed once in float64 by `reference` and compared with it by a test.
const ANSWERS: [f32; 6] = [0.183_433_2, -0.677_486_9, 1.728_192_5, -3.068_227, 2.534_333_5, -3.253_264_4];

/// Numbers in -0.5..0.5 that any program can make again.
fn pattern(seed: u32, count: usize) -> Vec<f32> {
    (0..count as u32)
        .map(|i| f32::from(((i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) >> 16) as u16) / 65_536.0 - 0.5)
        .collect()
}

/// Runs what models are made of (a layer norm, a matrix product with a bias, attention, gelu) in the runtime's precision on its device and
/// compares with the stored answers.
pub fn run(runtime: &Runtime) -> Result<SelfTest, RuntimeError> {
    let [rows, inputs, hidden] = SHAPE.map(|n| n as i64);
    let (heads, width) = (HEADS as i64, inputs / HEADS as i64);
    let g = Graph::new("self_test");
    let weight =
        |seed, shape: &[i64]| g.cast(g.floats(&pattern(seed, shape.iter().product::<i64>() as usize), shape), runtime.dtype());
    let x = g.cast(g.input("x", DType::F32, &[rows.into(), inputs.into()]), runtime.dtype());
    let number = |n: f32| g.cast(g.floats(&vec![n; inputs as usize], &[inputs]), runtime.dtype());
    let x = g.layer_normalization(x, number(1.0), number(0.0), 1e-5).0;
    let x = g.gemm(x, weight(4, &[inputs, inputs]), Some(weight(5, &[inputs])), false, false);
    let split = g.transpose(g.reshape(x, &[rows.into(), heads.into(), width.into()]), &[1, 0, 2]); // [H, rows, D]
    let scores = g.scale(g.matmul(split, g.transpose(split, &[0, 2, 1])), (width as f32).powf(-0.5));
    let x = g.reshape(g.transpose(g.matmul(g.softmax(scores), split), &[1, 0, 2]), &[rows.into(), inputs.into()]);
    let x = g.matmul(g.gelu(g.matmul(x, weight(1, &[inputs, hidden])), true), weight(2, &[hidden, 2]));
    g.output("y", g.cast(x, DType::F32));
    let model = g.finish().map_err(|e| RuntimeError::Model { model: "self_test".into(), message: e.to_string() })?;
    let mut session = Session::new(runtime, "self_test", &model.to_bytes(), Path::new("."), &[])?;
    let input = pattern(3, (rows * inputs) as usize);
    let outputs = session.run(&[("x", Feed::F32(&input, &[rows, inputs]))])?;
    let found = outputs.f32("y")?;
    let difference = found.iter().zip(ANSWERS).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    let tolerance = match runtime.precision() {
        super::Precision::Fp32 | super::Precision::Int8 => 2e-5,
        super::Precision::Fp16 => 1.5e-2,
        super::Precision::Bf16 => 1e-1,
    };
    Ok(SelfTest { difference, tolerance })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Device, Precision};

    /// `x` [.., inputs] times `w` [inputs, outputs].
    fn product(x: &[f64], w: &[f32], inputs: usize, outputs: usize) -> Vec<f64> {
        let one = |row: &[f64], o: usize| (0..inputs).map(|i| row[i] * f64::from(w[i * outputs + o])).sum();
        x.chunks(inputs).flat_map(|row| (0..outputs).map(move |o| one(row, o))).collect()
    }

    /// The same network in float64, written out.
    fn reference() -> Vec<f64> {
        let [rows, inputs, hidden] = SHAPE;
        let width = inputs / HEADS;
        let mut normed = vec![];
        for row in pattern(3, rows * inputs).chunks(inputs) {
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / inputs as f64;
            let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / inputs as f64;
            normed.extend(row.iter().map(|&v| (f64::from(v) - mean) / (variance + 1e-5).sqrt()));
        }
        let mut x = product(&normed, &pattern(4, inputs * inputs), inputs, inputs);
        let bias = pattern(5, inputs);
        x.iter_mut().enumerate().for_each(|(i, v)| *v += f64::from(bias[i % inputs]));
        let mut attended = vec![0.0; rows * inputs];
        for (head, row) in (0..HEADS).flat_map(|head| (0..rows).map(move |row| (head, row))) {
            let part = |row: usize| &x[row * inputs + head * width..][..width];
            let score = |other: usize| part(row).iter().zip(part(other)).map(|(a, b)| a * b).sum::<f64>() / (width as f64).sqrt();
            let weights: Vec<f64> = (0..rows).map(|other| score(other).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (other, weight) in weights.iter().enumerate() {
                for i in 0..width {
                    attended[row * inputs + head * width + i] += weight / total * part(other)[i];
                }
            }
        }
        let mut states = product(&attended, &pattern(1, inputs * hidden), inputs, hidden);
        for s in &mut states {
            *s = 0.5 * *s * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (*s + 0.044715 * s.powi(3))).tanh());
        }
        product(&states, &pattern(2, hidden * 2), hidden, 2)
    }

    #[test]
    fn the_stored_answers_are_the_references() {
        let reference = reference();
        let far = reference.iter().zip(ANSWERS).any(|(a, b)| (a - f64::from(b)).abs() > 1e-6);
        assert!(!far, "{reference:?}");
    }

    #[test]
    fn the_cpu_computes_the_right_thing() {
        let runtime = Runtime::start(Device::Cpu, Precision::Fp32, Some(1)).unwrap();
        let test = run(&runtime).unwrap();
        assert!(test.passed(), "{test:?}");
    }
}
