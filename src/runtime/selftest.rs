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

/// Answers of the network below, computed once in float64 by `reference` and compared with it by a test.
const ANSWERS: [f32; 6] = [-0.440_502_54, 0.235_834_7, -1.605_056_7, 1.535_405_2, -0.562_703_8, 0.377_396];

/// Numbers in -0.5..0.5 that any program can make again.
fn pattern(seed: u32, count: usize) -> Vec<f32> {
    (0..count as u32)
        .map(|i| f32::from(((i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) >> 16) as u16) / 65_536.0 - 0.5)
        .collect()
}

/// Runs a layer norm, two products and gelu on the device of `runtime` and compares with the stored answers.
pub fn run(runtime: &Runtime) -> Result<SelfTest, RuntimeError> {
    let [rows, inputs, hidden] = SHAPE.map(|n| n as i64);
    let g = Graph::new("self_test");
    let x = g.input("x", DType::F32, &[rows.into(), inputs.into()]);
    let (ones, zeros) = (g.floats(&vec![1.0; inputs as usize], &[inputs]), g.floats(&vec![0.0; inputs as usize], &[inputs]));
    let x = g.layer_normalization(x, ones, zeros, 1e-5).0;
    let w1 = g.floats(&pattern(1, (inputs * hidden) as usize), &[inputs, hidden]);
    let w2 = g.floats(&pattern(2, (hidden * 2) as usize), &[hidden, 2]);
    g.output("y", g.matmul(g.gelu(g.matmul(x, w1), true), w2));
    let model = g.finish().map_err(|e| RuntimeError::Model { model: "self_test".into(), message: e.to_string() })?;
    let mut session = Session::new(runtime, "self_test", &model.to_bytes(), Path::new("."), &[])?;
    let input = pattern(3, (rows * inputs) as usize);
    let outputs = session.run(&[("x", Feed::F32(&input, &[rows, inputs]))])?;
    let found = outputs.f32("y")?;
    let difference = found.iter().zip(ANSWERS).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    let tolerance = match runtime.precision() {
        super::Precision::Fp32 | super::Precision::Int8 => 1e-5,
        super::Precision::Fp16 => 5e-3,
        super::Precision::Bf16 => 3e-2,
    };
    Ok(SelfTest { difference, tolerance })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Device, Precision};

    /// The same network in float64, written out.
    fn reference() -> Vec<f64> {
        let [rows, inputs, hidden] = SHAPE;
        let (x, w1, w2) = (pattern(3, rows * inputs), pattern(1, inputs * hidden), pattern(2, hidden * 2));
        let mut y = vec![];
        for row in x.chunks(inputs) {
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / inputs as f64;
            let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / inputs as f64;
            let normed: Vec<f64> = row.iter().map(|&v| (f64::from(v) - mean) / (variance + 1e-5).sqrt()).collect();
            let states: Vec<f64> = (0..hidden)
                .map(|h| {
                    let s: f64 = (0..inputs).map(|i| normed[i] * f64::from(w1[i * hidden + h])).sum();
                    0.5 * s * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (s + 0.044715 * s.powi(3))).tanh())
                })
                .collect();
            y.extend((0..2).map(|o| (0..hidden).map(|h| states[h] * f64::from(w2[h * 2 + o])).sum::<f64>()));
        }
        y
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
