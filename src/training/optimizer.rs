//! AdamW on the CPU, in place: one pass over parameters, gradients and moments, as PyTorch's fused AdamW computes it.
//!
//! Every operation is one IEEE operation on each element, without fused multiply-add, so the bytes do not depend on the instruction set,
//! on the number of threads or on how the work is cut.

use std::ops::Range;

use rayon::prelude::*;

use super::parameters::Layout;

/// Elements one task works on: four streams of 128 KiB each stay in a core's cache.
const CHUNK: usize = 1 << 15;

/// What AdamW is set to; the learning rate comes with each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

impl Default for AdamW {
    /// PyTorch's.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// The four buffers of one layout.
pub struct State<'a> {
    pub parameters: &'a mut [f32],
    pub gradients: &'a [f32],
    pub exp_avg: &'a mut [f32],
    pub exp_avg_sq: &'a mut [f32],
}

/// A run of neighbouring elements and whether weight decay applies to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    range: Range<usize>,
    decays: bool,
}

/// The regions of a layout: one if `decays` says the same of every tensor, more where it does not.
pub fn regions(layout: &Layout, decays: impl Fn(&str) -> bool) -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    for slot in layout.slots() {
        let (range, decays) = (slot.range(), decays(&slot.name));
        match regions.last_mut() {
            // Gaps between tensors are zeros in every buffer and stay so.
            Some(last) if last.decays == decays => last.range.end = range.end,
            _ => regions.push(Region { range, decays }),
        }
    }
    regions
}

/// True for layer norms' weights and for biases, which `--no-decay-norm-bias` leaves undecayed.
pub fn is_norm_or_bias(name: &str) -> bool {
    let mut parts = name.rsplit('.');
    let (last, owner) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    last == "bias" || owner.starts_with("ln_") || owner == "LayerNorm"
}

/// The square root of the sum of squares, summed in double precision over fixed pieces.
pub fn global_norm(values: &[f32]) -> f64 {
    let parts: Vec<f64> = values.par_chunks(CHUNK).map(sum_of_squares).collect();
    parts.iter().sum::<f64>().sqrt()
}

#[inline(always)]
fn sum_of_squares(values: &[f32]) -> f64 {
    // Eight sums side by side; their number is part of the result, not of the machine.
    let mut sums = [0.0f64; 8];
    let chunks = values.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>()
}

/// `values *= factor`.
pub fn scale(values: &mut [f32], factor: f32) {
    values.par_chunks_mut(CHUNK).for_each(|chunk| chunk.iter_mut().for_each(|value| *value *= factor));
}

/// `sum += factor * values`.
pub fn add_scaled(sum: &mut [f32], values: &[f32], factor: f32) {
    let add = |(sum, values): (&mut [f32], &[f32])| sum.iter_mut().zip(values).for_each(|(s, v)| *s += factor * v);
    sum.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(add);
}

/// What gradients are multiplied by so that their norm is at most `max_norm` (PyTorch's `clip_grad_norm_`).
pub fn clip_factor(norm: f64, max_norm: Option<f64>) -> f64 {
    max_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0))
}

/// The numbers one step needs, as the loop wants them.
#[derive(Debug, Clone, Copy)]
struct Coefficients {
    gradient: f32,
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    /// 1 over the square root of the second moment's bias correction: a product costs a fraction of a quotient.
    one_over_bias_correction2_sqrt: f32,
    eps: f32,
}

impl AdamW {
    /// One step: `step` counts from 1; gradients are taken times `gradient_factor` and left as they are. Returns their global norm, which
    /// costs nothing while they are at hand.
    pub fn step(&self, state: State<'_>, regions: &[Region], step: u64, learning_rate: f64, gradient_factor: f64) -> f64 {
        let exponent = step.min(i32::MAX as u64) as i32;
        let (bias_correction1, bias_correction2) = (1.0 - self.beta1.powi(exponent), 1.0 - self.beta2.powi(exponent));
        let base = Coefficients {
            gradient: gradient_factor as f32,
            decay: 1.0,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            step_size: (learning_rate / bias_correction1) as f32,
            one_over_bias_correction2_sqrt: bias_correction2.sqrt().recip() as f32,
            eps: self.eps as f32,
        };
        let kernel = kernel();
        let mut squares = 0.0;
        for Region { range, decays } in regions {
            let decay = if *decays { (1.0 - learning_rate * self.weight_decay) as f32 } else { 1.0 };
            let coefficients = Coefficients { decay, ..base };
            let parameters = state.parameters[range.clone()].par_chunks_mut(CHUNK);
            let gradients = state.gradients[range.clone()].par_chunks(CHUNK);
            let exp_avg = state.exp_avg[range.clone()].par_chunks_mut(CHUNK);
            let exp_avg_sq = state.exp_avg_sq[range.clone()].par_chunks_mut(CHUNK);
            let chunks = parameters.zip(gradients).zip(exp_avg).zip(exp_avg_sq);
            let update = chunks.map(|(((p, g), m), v)| kernel(p, g, m, v, &coefficients));
            // Summed in the chunks' order, whoever worked on them.
            squares += update.collect::<Vec<f64>>().iter().sum::<f64>();
        }
        squares.sqrt()
    }
}

/// Updates a chunk and returns the sum of its gradients' squares.
type Kernel = fn(&mut [f32], &[f32], &mut [f32], &mut [f32], &Coefficients) -> f64;

/// The widest vectors this machine has.
fn kernel() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions the function is compiled for.
            return |p, g, m, v, c| unsafe { wide::avx512(p, g, m, v, c) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return |p, g, m, v, c| unsafe { wide::avx2(p, g, m, v, c) };
        }
    }
    update
}

/// The same loop compiled for wider vectors; the results are the same bits.
#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{Coefficients, update};

    #[target_feature(enable = "avx512f")]
    pub fn avx512(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &Coefficients) -> f64 {
        update(p, g, m, v, c)
    }

    #[target_feature(enable = "avx2")]
    pub fn avx2(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &Coefficients) -> f64 {
        update(p, g, m, v, c)
    }
}

#[inline(always)]
fn update(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &Coefficients) -> f64 {
    let squares = sum_of_squares(g);
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()) {
        let g = g * c.gradient;
        let exp_avg = *m + c.one_minus_beta1 * (g - *m);
        let exp_avg_sq = *v * c.beta2 + c.one_minus_beta2 * g * g;
        let denominator = exp_avg_sq.sqrt() * c.one_over_bias_correction2_sqrt + c.eps;
        *p = *p * c.decay - c.step_size * (exp_avg / denominator);
        *m = exp_avg;
        *v = exp_avg_sq;
    }
    squares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    fn numbers(seed: u64, len: usize) -> Vec<f32> {
        let mut stream = Stream::new(seed);
        (0..len).map(|_| (stream.next_u64() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).collect()
    }

    #[test]
    fn five_steps_are_those_of_torch() {
        // torch.optim.AdamW([p], lr=0.05, weight_decay=0.1, fused=True) with g_t = sin(t + i), after clip_grad_norm_(p, 0.5) at each step.
        let layout = Layout::new([("w".into(), vec![4])]);
        let all = regions(&layout, |_| true);
        let [mut p, mut m, mut v] = [vec![1.0, -2.0, 0.5, 3.0], vec![0.0; 4], vec![0.0; 4]];
        let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
        for step in 1..=5 {
            let g: Vec<f32> = (0..4).map(|i| ((step + i) as f64).sin() as f32).collect();
            let norm = global_norm(&g);
            let factor = clip_factor(norm, Some(0.5));
            let state = State { parameters: &mut p, gradients: &g, exp_avg: &mut m, exp_avg_sq: &mut v };
            assert!((adamw.step(state, &all, step, 0.05, factor) - norm).abs() < 1e-12);
        }
        for (found, wanted) in p.iter().zip([0.825_722_9, -1.999_476_7, 0.562_681_7, 3.086_094]) {
            assert!((found - wanted).abs() < 1e-6, "{p:?} {wanted}");
        }
    }

    #[test]
    fn threads_cuts_and_vectors_leave_the_bits_alone() {
        let len = 3 * CHUNK + 77;
        let layout = Layout::new([("w".into(), vec![len])]);
        let run = |whole: bool| {
            let [mut p, g, mut m, mut v] = [1, 2, 3, 4].map(|seed| numbers(seed, len));
            v.iter_mut().for_each(|v| *v = v.abs());
            if whole {
                let state = State { parameters: &mut p, gradients: &g, exp_avg: &mut m, exp_avg_sq: &mut v };
                AdamW::default().step(state, &regions(&layout, |_| true), 7, 1e-3, 0.3);
            } else {
                let c = Coefficients {
                    gradient: 0.3,
                    decay: (1.0 - 1e-3 * 0.01f64) as f32,
                    one_minus_beta1: (1.0 - 0.9f64) as f32,
                    beta2: 0.999,
                    one_minus_beta2: (1.0 - 0.999f64) as f32,
                    step_size: (1e-3 / (1.0 - 0.9f64.powi(7))) as f32,
                    one_over_bias_correction2_sqrt: (1.0 - 0.999f64.powi(7)).sqrt().recip() as f32,
                    eps: 1e-8,
                };
                update(&mut p, &g, &mut m, &mut v, &c);
            }
            [p, m, v].map(|values| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
        };
        assert_eq!(run(true), run(false));
    }

    #[test]
    fn undecayed_tensors_move_by_their_gradients_only() {
        let layout = Layout::new([("h.0.ln_1.weight".into(), vec![2]), ("h.0.attn.c_attn.weight".into(), vec![2])]);
        let split = regions(&layout, |name| !is_norm_or_bias(name));
        assert_eq!(split.iter().map(|r| (r.range.clone(), r.decays)).collect::<Vec<_>>(), [(0..2, false), (16..18, true)]);
        let [mut p, g, mut m, mut v] = [1.0, 0.0, 0.0, 0.0].map(|x| vec![x; 18]);
        let state = State { parameters: &mut p, gradients: &g, exp_avg: &mut m, exp_avg_sq: &mut v };
        assert_eq!(AdamW { weight_decay: 0.5, ..AdamW::default() }.step(state, &split, 1, 0.1, 1.0), global_norm(&g));
        assert_eq!((p[0], p[16]), (1.0, 0.95));
    }

    #[test]
    fn norms_and_biases_are_told_from_their_names() {
        for name in ["gpt2.transformer.ln_f.weight", "clip_project.model.0.bias", "clip_project.bert.embeddings.LayerNorm.weight"]
        {
            assert!(is_norm_or_bias(name), "{name}");
        }
        for name in ["gpt2.transformer.wte.weight", "clip_project.prefix_const", "clip_project.linear.weight"] {
            assert!(!is_norm_or_bias(name), "{name}");
        }
    }

    #[test]
    fn the_norm_is_exact_where_it_can_be_and_clips_like_torch() {
        assert_eq!(global_norm(&[3.0, 4.0]), 5.0);
        assert_eq!(global_norm(&vec![1.0; 4 * CHUNK]), ((4 * CHUNK) as f64).sqrt());
        assert_eq!(clip_factor(5.0, None), 1.0);
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert!((clip_factor(5.0, Some(1.0)) - 0.2).abs() < 1e-7);
        assert!(global_norm(&[f32::NAN]).is_nan() && global_norm(&[f32::MAX, f32::MAX]).is_finite());
    }
}
