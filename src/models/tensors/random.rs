//! Random tensors that are the same on every machine.
//!
//! A value depends on the seed, the tensor's name and the element's number alone: not on the order in which tensors are made, nor on
//! threads. Logarithm and cosine are computed here from additions and multiplications, because those of the system's mathematical
//! library differ in the last bit from one version to another.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Init, TensorSpec};
use crate::random::{GOLDEN, mix, of_hash};

/// Elements a thread makes at a time; even, so that pairs stay together.
const CHUNK: usize = 1 << 16;

/// The first values of a tensor of a new model, row-major.
pub fn random_values(tensor: &TensorSpec, seed: u64) -> Vec<f32> {
    let key = key(seed, &tensor.name);
    let mut values = vec![0f32; tensor.numel()];
    match tensor.init {
        Init::Constant(value) => values.fill(value),
        Init::Uniform(bound) => fill_pairs(&mut values, |pair| {
            let (a, b) = uniforms(key, pair);
            ((2.0 * a - 1.0) * bound, (2.0 * b - 1.0) * bound)
        }),
        Init::Normal(deviation) | Init::NormalButFirst(deviation, _) => fill_pairs(&mut values, |pair| {
            let (a, b) = normals(key, pair);
            (a * deviation, b * deviation)
        }),
    }
    if let Init::NormalButFirst(_, row) = tensor.init {
        values[..row].fill(0.0);
    }
    values
}

/// Fills a tensor pair by pair, on every core.
fn fill_pairs(values: &mut [f32], make: impl Fn(u64) -> (f64, f64) + Sync) {
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        for (pair, values) in values.chunks_mut(2).enumerate() {
            let (a, b) = make((chunk * CHUNK / 2 + pair) as u64);
            values[0] = a as f32;
            if let [_, second] = values {
                *second = b as f32;
            }
        }
    });
}

fn key(seed: u64, name: &str) -> u64 {
    of_hash(Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name))
}

/// Well-mixed bits from a counter.
fn bits(key: u64, counter: u64) -> u64 {
    mix(key.wrapping_add(counter.wrapping_mul(GOLDEN)))
}

/// Two independent whole numbers of 53 bits.
fn numbers(key: u64, pair: u64) -> (i64, i64) {
    ((bits(key, 2 * pair) >> 11) as i64, (bits(key, 2 * pair + 1) >> 11) as i64)
}

/// 2^-53: from a number of 53 bits to [0, 1).
const UNIT: f64 = 1.0 / (1u64 << 53) as f64;

/// Two independent values in [0, 1).
fn uniforms(key: u64, pair: u64) -> (f64, f64) {
    let (a, b) = numbers(key, pair);
    (a as f64 * UNIT, b as f64 * UNIT)
}

/// Two independent values of mean 0 and deviation 1 (Box and Muller's way).
fn normals(key: u64, pair: u64) -> (f64, f64) {
    let (a, b) = numbers(key, pair);
    // From (0, 1], where the logarithm is finite.
    let radius = (-2.0 * ln(((1 << 53) - a) as f64 * UNIT)).sqrt();
    let (sin, cos) = sin_cos_of_turn(b);
    (radius * cos, radius * sin)
}

/// The natural logarithm of a positive, normal number. Without branches: they would be mispredicted every other time.
fn ln(x: f64) -> f64 {
    const ROOT_OF_HALF: i64 = std::f64::consts::FRAC_1_SQRT_2.to_bits() as i64;
    // ln m = 2 artanh s, and s is at most 0.172.
    const SERIES: [f64; 9] = [2.0, 2.0 / 3.0, 2.0 / 5.0, 2.0 / 7.0, 2.0 / 9.0, 2.0 / 11.0, 2.0 / 13.0, 2.0 / 15.0, 2.0 / 17.0];
    let bits = x.to_bits() as i64;
    // x = m * 2^exponent with m from the root of 1/2 to the root of 2.
    let exponent = (bits - ROOT_OF_HALF) >> 52;
    let m = f64::from_bits((bits - (exponent << 52)) as u64);
    let s = (m - 1.0) / (m + 1.0);
    exponent as f64 * std::f64::consts::LN_2 + s * polynomial(&SERIES, s * s)
}

/// Sine and cosine of `number` / 2^53 full turns.
fn sin_cos_of_turn(number: i64) -> (f64, f64) {
    const SIN: [f64; 6] = [1.0, -1.0 / 6.0, 1.0 / 120.0, -1.0 / 5040.0, 1.0 / 362_880.0, -1.0 / 39_916_800.0];
    const COS: [f64; 7] = [1.0, -1.0 / 2.0, 1.0 / 24.0, -1.0 / 720.0, 1.0 / 40_320.0, -1.0 / 3_628_800.0, 1.0 / 479_001_600.0];
    // Quarter turns are taken off exactly; what is left is at most an eighth of a turn either way.
    let quarter = (number + (1 << 50)) >> 51;
    let x = (number - (quarter << 51)) as f64 * (UNIT * std::f64::consts::TAU);
    let (sin, cos) = ((x * polynomial(&SIN, x * x)).to_bits(), polynomial(&COS, x * x).to_bits());
    // Odd quarters swap sine and cosine, and each is negative in two of the four: again without branches.
    let quarter = quarter as u64;
    let swap = (sin ^ cos) & (quarter & 1).wrapping_neg();
    let sign = |half: u64| (half >> 1 & 1) << 63;
    (f64::from_bits(sin ^ swap ^ sign(quarter)), f64::from_bits(cos ^ swap ^ sign(quarter + 1)))
}

/// The sum of `coefficients[k] * x^k`.
fn polynomial<const N: usize>(coefficients: &[f64; N], x: f64) -> f64 {
    coefficients.iter().rev().fold(0.0, |sum, coefficient| sum * x + coefficient)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[usize], init: Init) -> TensorSpec {
        TensorSpec { name: name.into(), shape: shape.to_vec(), init, optional: false }
    }

    #[test]
    fn the_elementary_functions_are_right() {
        for i in 1..2000 {
            let x = f64::from(i) / 2000.0;
            assert!((ln(x) - x.ln()).abs() < 1e-12 * (1.0 + x.ln().abs()), "ln {x}");
            let (sin, cos) = sin_cos_of_turn((x / UNIT) as i64);
            let (s, c) = (x * std::f64::consts::TAU).sin_cos();
            assert!((sin - s).abs() < 1e-8 && (cos - c).abs() < 1e-8, "turn {x}");
        }
        assert_eq!(ln(1.0), 0.0);
        assert!((ln(1.0 / (1u64 << 53) as f64) + 53.0 * std::f64::consts::LN_2).abs() < 1e-12);
    }

    #[test]
    fn values_have_the_distribution_asked_for() {
        let count = 400_001;
        let values = random_values(&tensor("w", &[count], Init::Normal(0.02)), 1);
        let moment = |power: i32| values.iter().map(|&x| (f64::from(x) / 0.02).powi(power)).sum::<f64>() / count as f64;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.01, "{} {}", moment(1), moment(2));
        assert!(moment(3).abs() < 0.03 && (moment(4) - 3.0).abs() < 0.06, "{} {}", moment(3), moment(4));
        let neighbours = values.windows(2).map(|w| f64::from(w[0] * w[1]) / 4e-4).sum::<f64>() / count as f64;
        assert!(neighbours.abs() < 0.01, "{neighbours}");
        let uniform = random_values(&tensor("u", &[count], Init::Uniform(0.5)), 1);
        assert!(uniform.iter().all(|x| x.abs() <= 0.5));
        let variance = uniform.iter().map(|&x| f64::from(x * x)).sum::<f64>() / count as f64;
        assert!((variance - 1.0 / 12.0).abs() < 0.001, "{variance}");
        assert_eq!(random_values(&tensor("c", &[], Init::Constant(2.5)), 1), [2.5]);
        let embedding = random_values(&tensor("e", &[3, 4], Init::NormalButFirst(1.0, 4)), 1);
        assert!(embedding[..4].iter().all(|&x| x == 0.0) && embedding[4..].iter().all(|&x| x != 0.0));
    }

    #[test]
    fn a_value_depends_on_seed_name_and_place_alone() {
        let normal = |name: &str, count: usize, seed: u64| random_values(&tensor(name, &[count], Init::Normal(1.0)), seed);
        let long = normal("a", 3 * CHUNK + 1, 7);
        assert_eq!(long[..1001], normal("a", 1001, 7)[..]);
        assert_ne!(long[..8], normal("b", 8, 7)[..]);
        assert_ne!(long[..8], normal("a", 8, 8)[..]);
        // Kept as numbers, so that a change to the generator cannot pass unseen.
        let bits: Vec<u32> = long[..4].iter().map(|x| x.to_bits()).collect();
        assert_eq!(bits, [1_066_544_768, 3_218_964_460, 1_041_619_115, 1_012_972_593]);
    }
}
