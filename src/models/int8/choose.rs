//! Which scales: for each activation and the weights it meets.
//!
//! A tensor has one scale, so a channel with large numbers takes precision from all others. Where a layer normalization comes before, channels
//! are divided by factors that are worked into its weight, and the rows of the weights multiplied by them: the product stays the same, and
//! the hard part is shared between activations and weights (SmoothQuant's idea). How far is decided by the error that rounding is expected to
//! make; products for which it stays too large remain in float.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::range::Range;
use crate::onnx::{Product, Rounding};

/// Powers of the activations' part in the factors that are tried; with 0 nothing is shared.
const STRENGTHS: [f32; 5] = [0.0, 0.35, 0.5, 0.65, 0.8];
/// A factor must pay: less error by so much.
const WORTH_IT: f64 = 0.9;
/// Rounding noise, as a part of the product's power, beyond which a product stays in float.
const MAX_NOISE: f64 = 0.01;
/// Inputs that were not seen may go a little beyond those that were.
const HEADROOM: f32 = 1.02;
/// A last product with fewer of the part's weights than this stays in float: nothing comes after it to even errors out, and it costs little.
const SMALL: f64 = 0.1;

/// Products of one activation.
pub struct Group<'a> {
    pub products: Vec<&'a Product>,
    pub range: &'a Range,
}

/// Why a product stays in float.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InFloat {
    /// A small product at the very end.
    Last,
    /// Rounding would cost too much.
    Noise,
}

/// A weight in 8 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounded {
    /// [inputs, outputs]
    pub data: Vec<i8>,
    /// [outputs]
    pub scales: Vec<f32>,
}

/// What is done with a group of products.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    pub rounding: Rounding,
    /// How much of the channels' spread goes into the weights, and the factors [inputs] that activations are divided by.
    pub smoothing: Option<(f32, Vec<f32>)>,
    /// Expected rounding noise as a part of the products' power.
    pub noise: f64,
}

/// Of every product of a part, by weight.
#[derive(Debug, Default)]
pub struct PartDecisions {
    pub in_8_bits: BTreeMap<String, (Product, Decision)>,
    pub in_float: BTreeMap<String, InFloat>,
}

/// Decides for all products of a part. `weights` gives a product's weight as [inputs, outputs].
pub fn decide<E: Send>(
    products: &[Product],
    ranges: &BTreeMap<String, Range>,
    weights: impl Fn(&Product) -> Result<Vec<f32>, E> + Sync,
) -> Result<PartDecisions, E> {
    let all: usize = products.iter().map(|p| p.inputs * p.outputs).sum();
    let mut decisions = PartDecisions::default();
    for (activation, range) in ranges {
        let (last, group): (Vec<_>, Vec<_>) = products
            .iter()
            .filter(|p| p.activation == *activation)
            .partition(|p| p.is_last && ((p.inputs * p.outputs) as f64) < SMALL * all as f64);
        let in_float = |reason| move |product: &&Product| (product.weight.clone(), reason);
        decisions.in_float.extend(last.iter().map(in_float(InFloat::Last)));
        if group.is_empty() {
            continue;
        }
        let matrices = group.iter().map(|product| weights(product)).collect::<Result<Vec<_>, E>>()?;
        // Factors go into the layer normalization, so nobody else may take what it makes.
        let may_smooth = last.is_empty() && group.iter().all(|product| product.norm.is_some());
        let decision = choose(&Group { products: group.clone(), range }, &matrices, may_smooth);
        if decision.noise > MAX_NOISE {
            decisions.in_float.extend(group.iter().map(in_float(InFloat::Noise)));
        } else {
            decisions.in_8_bits.extend(group.iter().map(|p| (p.weight.clone(), ((*p).clone(), decision.clone()))));
        }
    }
    Ok(decisions)
}

/// The best of the strengths for one group.
fn choose(group: &Group<'_>, matrices: &[Vec<f32>], may_smooth: bool) -> Decision {
    let tried: Vec<Decision> = STRENGTHS
        .par_iter()
        .filter(|&&strength| strength == 0.0 || may_smooth)
        .map(|&strength| attempt(group, matrices, strength))
        .collect();
    let plain = tried[0].noise;
    let best = tried.iter().filter(|d| d.noise < WORTH_IT * plain).min_by(|a, b| a.noise.total_cmp(&b.noise));
    best.unwrap_or(&tried[0]).clone()
}

fn attempt(group: &Group<'_>, matrices: &[Vec<f32>], strength: f32) -> Decision {
    let range = group.range;
    let factors = if strength > 0.0 { factors(group, matrices, strength) } else { vec![1.0; range.channels()] };
    let (mut low, mut high) = (0f32, 0f32);
    for (channel, factor) in factors.iter().enumerate() {
        low = low.min(range.low[channel] / factor);
        high = high.max(range.high[channel] / factor);
    }
    let rounding = Rounding { smoothed: strength > 0.0, ..rounding(low, high) };
    let step = f64::from(rounding.scale);
    let (mut noise, mut signal) = (0.0, 0.0);
    for (product, matrix) in group.products.iter().zip(matrices) {
        let largest = largest_of_outputs(matrix, product.outputs, &factors);
        // A rounded number is off by a step's twelfth root, on average over squares.
        let weight_noise: f64 = largest.iter().map(|l| (f64::from(*l) / 127.0).powi(2) / 12.0).sum();
        for (input, row) in matrix.chunks_exact(product.outputs).enumerate() {
            let power: f64 = row.iter().map(|w| f64::from(*w).powi(2)).sum();
            let factor = f64::from(factors[input]);
            noise += (step * factor).powi(2) / 12.0 * power + range.power(input) / factor.powi(2) * weight_noise;
            signal += range.power(input) * power;
        }
    }
    let noise = if signal > 0.0 { noise / signal } else { 0.0 };
    Decision { rounding, smoothing: (strength > 0.0).then_some((strength, factors)), noise }
}

/// Symmetric where the numbers are about as far below zero as above, else over the range they have.
fn rounding(low: f32, high: f32) -> Rounding {
    let largest = high.max(-low);
    if largest <= 0.0 {
        return Rounding { scale: 1.0, zero_point: 128, smoothed: false };
    }
    if high.min(-low) < 0.5 * largest {
        let scale = (high - low) * HEADROOM / 255.0;
        let middle = -low * HEADROOM / scale;
        return Rounding { scale, zero_point: middle.round().clamp(0.0, 255.0) as u8, smoothed: false };
    }
    Rounding { scale: largest * HEADROOM / 127.0, zero_point: 128, smoothed: false }
}

/// What each channel is divided by.
fn factors(group: &Group<'_>, matrices: &[Vec<f32>], strength: f32) -> Vec<f32> {
    let channels = group.range.channels();
    let mut weights = vec![0f32; channels];
    for (product, matrix) in group.products.iter().zip(matrices) {
        for (largest, row) in weights.iter_mut().zip(matrix.chunks_exact(product.outputs)) {
            *largest = row.iter().fold(*largest, |m, w| m.max(w.abs()));
        }
    }
    let mut factors: Vec<f32> = (0..channels)
        .map(|channel| match (group.range.largest(channel), weights[channel]) {
            (x, w) if x > 0.0 && w > 0.0 => x.powf(strength) / w.powf(1.0 - strength),
            _ => 0.0,
        })
        .collect();
    // Around 1, so that neither side leaves the range of numbers; a channel that is silent is left alone.
    let logarithms = factors.iter().filter(|&&f| f > 0.0).map(|f| f64::from(*f).ln());
    let (sum, count) = logarithms.fold((0.0, 0usize), |(sum, count), l| (sum + l, count + 1));
    let middle = (sum / count.max(1) as f64).exp() as f32;
    for factor in &mut factors {
        *factor = if *factor > 0.0 { (*factor / middle).clamp(1e-3, 1e3) } else { 1.0 };
    }
    factors
}

/// The largest magnitude among the weights of each output, rows multiplied by `factors`.
fn largest_of_outputs(matrix: &[f32], outputs: usize, factors: &[f32]) -> Vec<f32> {
    let mut largest = vec![0f32; outputs];
    for (row, factor) in matrix.chunks_exact(outputs).zip(factors) {
        for (largest, weight) in largest.iter_mut().zip(row) {
            *largest = largest.max((weight * factor).abs());
        }
    }
    largest
}

impl Rounded {
    /// A weight [inputs, outputs] with its rows multiplied by `factors`, symmetric, a scale for each output.
    pub fn of(matrix: &[f32], outputs: usize, factors: Option<&[f32]>) -> Self {
        let ones;
        let factors = match factors {
            Some(factors) => factors,
            None => {
                ones = vec![1.0; matrix.len() / outputs.max(1)];
                &ones
            }
        };
        let scales: Vec<f32> =
            largest_of_outputs(matrix, outputs, factors).iter().map(|l| if *l > 0.0 { l / 127.0 } else { 1.0 }).collect();
        let mut data = vec![0i8; matrix.len()];
        data.par_chunks_mut(outputs.max(1)).zip(matrix.par_chunks(outputs.max(1))).zip(factors).for_each(
            |((data, row), factor)| {
                for ((data, weight), scale) in data.iter_mut().zip(row).zip(&scales) {
                    *data = (weight * factor / scale).round().clamp(-127.0, 127.0) as i8;
                }
            },
        );
        Self { data, scales }
    }

    /// A bias in steps of the product's sums.
    pub fn bias(&self, bias: &[f32], rounding: Rounding) -> (Vec<i32>, Vec<f32>) {
        let steps: Vec<f32> = self.scales.iter().map(|scale| scale * rounding.scale).collect();
        let data = bias.iter().zip(&steps).map(|(b, step)| (f64::from(*b) / f64::from(*step)).round() as i32).collect();
        (data, steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(weight: &str, inputs: usize, outputs: usize, norm: bool, is_last: bool) -> Product {
        Product {
            weight: weight.into(),
            inputs,
            outputs,
            transposed: false,
            bias: None,
            activation: "x".into(),
            norm: norm.then(|| ["n.weight".into(), "n.bias".into()]),
            is_last,
        }
    }

    fn pattern(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 61 + 17) % 200) as f32 / 100.0 - 1.0).collect()
    }

    /// 64 channels of which one is 60 times as large.
    fn outlier() -> BTreeMap<String, Range> {
        let mut range = Range::new(64);
        for row in 0..50 {
            let values: Vec<f32> = (0..64).map(|c| pattern(64 * 50)[row * 64 + c] * if c == 5 { 60.0 } else { 1.0 }).collect();
            range.add(&values);
        }
        BTreeMap::from([("x".into(), range)])
    }

    #[test]
    fn a_loud_channel_is_shared_with_the_weights_where_a_norm_can_take_it() {
        let decide_for = |norm| {
            let products = [product("a", 64, 32, norm, false)];
            decide(&products, &outlier(), |p| Ok::<_, ()>(pattern(p.inputs * p.outputs))).unwrap()
        };
        let shared = decide_for(true);
        let (_, decision) = &shared.in_8_bits["a"];
        let (_, factors) = decision.smoothing.as_ref().expect("sharing pays here");
        assert!(factors[5] > 5.0 * factors[4], "{factors:?}");
        assert!(decision.noise < MAX_NOISE);
        let alone = decide_for(false);
        let noise = alone.in_8_bits.get("a").map_or(1.0, |(_, d)| d.noise);
        assert!(noise > 2.0 * decision.noise, "{noise} beside {}", decision.noise);
    }

    #[test]
    fn sharing_changes_no_product() {
        let products = [product("a", 64, 32, true, false)];
        let matrix = pattern(64 * 32);
        let decisions = decide(&products, &outlier(), |_| Ok::<_, ()>(matrix.clone())).unwrap();
        let (_, Decision { rounding, smoothing, .. }) = &decisions.in_8_bits["a"];
        let factors = smoothing.as_ref().map(|(_, factors)| factors.as_slice());
        let rounded = Rounded::of(&matrix, 32, factors);
        let x: Vec<f32> = (0..64).map(|c| pattern(64)[c] * if c == 5 { 60.0 } else { 1.0 }).collect();
        for output in 0..32 {
            let exact: f32 = (0..64).map(|i| x[i] * matrix[i * 32 + output]).sum();
            let sum: i64 = (0..64)
                .map(|i| {
                    let number = (x[i] / factors.unwrap()[i] / rounding.scale).round() + f32::from(rounding.zero_point);
                    (number.clamp(0.0, 255.0) as i64 - i64::from(rounding.zero_point)) * i64::from(rounded.data[i * 32 + output])
                })
                .sum();
            let found = sum as f32 * rounding.scale * rounded.scales[output];
            assert!((found - exact).abs() < 0.6, "{found} for {exact}");
        }
    }

    #[test]
    fn a_small_last_product_and_a_noisy_one_stay_in_float() {
        let products = [product("large", 64, 640, false, false), product("last", 64, 8, false, true)];
        let mut range = Range::new(64);
        // One number in a million times the others leaves nothing of those.
        range.add(&(0..64).map(|c| if c == 0 { 1e6 } else { 1.0 }).collect::<Vec<f32>>());
        (0..9999).for_each(|_| range.add(&(0..64).map(|c| if c == 0 { 0.0 } else { 1.0 }).collect::<Vec<f32>>()));
        let weights =
            |p: &Product| Ok::<_, ()>((0..p.inputs * p.outputs).map(|i| if i < p.outputs { 1e-6 } else { 1.0 }).collect());
        let decisions = decide(&products, &BTreeMap::from([("x".into(), range)]), weights).unwrap();
        assert_eq!(decisions.in_float["last"], InFloat::Last);
        assert_eq!(decisions.in_float["large"], InFloat::Noise);
        assert!(decisions.in_8_bits.is_empty());
    }

    #[test]
    fn one_sided_numbers_take_the_whole_range() {
        let skewed = rounding(-0.2, 3.0);
        assert_eq!(skewed.zero_point, 16);
        assert!((skewed.scale - 3.2 * HEADROOM / 255.0).abs() < 1e-6);
        assert_eq!(rounding(-2.0, 3.0).zero_point, 128);
        assert_eq!(rounding(0.0, 0.0).scale, 1.0);
    }
}
