//! Random tensors that are the same on every machine.
//!
//! A value depends on the seed, the tensor's name and the element's number alone: not on the order in which tensors are made, nor on
//! threads. Logarithm and cosine are computed here from additions and multiplications, because those of the system's mathematical
//! library differ in the last bit from one version to another.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Init, TensorSpec};

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
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

/// SplitMix64's output function: well-mixed bits from a counter.
fn mix(key: u64, counter: u64) -> u64 {
    let mut z = key.wrapping_add(counter.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Two independent values in [0, 1).
fn uniforms(key: u64, pair: u64) -> (f64, f64) {
    let unit = |bits: u64| (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
    (unit(mix(key, 2 * pair)), unit(mix(key, 2 * pair + 1)))
}

/// Two independent values of mean 0 and deviation 1 (Box and Muller's way).
fn normals(key: u64, pair: u64) -> (f64, f64) {
    let (a, b) = uniforms(key, pair);
    // 1 - a is in (0, 1], where the logarithm is finite.
    let radius = (-2.0 * ln(1.0 - a)).sqrt();
    let (sin, cos) = sin_cos_of_turn(b);
    (radius * cos, radius * sin)
}

/// The natural logarithm of a positive, normal number.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh s, and s is at most 0.172.
    const SERIES: [f64; 9] = [2.0, 2.0 / 3.0, 2.0 / 5.0, 2.0 / 7.0, 2.0 / 9.0, 2.0 / 11.0, 2.0 / 13.0, 2.0 / 15.0, 2.0 / 17.0];
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    exponent as f64 * std::f64::consts::LN_2 + s * polynomial(&SERIES, s * s)
}

/// Sine and cosine of `turn` full turns, for a turn in [0, 1).
fn sin_cos_of_turn(turn: f64) -> (f64, f64) {
    // Quarter turns are exact; what is left is at most an eighth of a turn either way.
    const SIN: [f64; 6] = [1.0, -1.0 / 6.0, 1.0 / 120.0, -1.0 / 5040.0, 1.0 / 362_880.0, -1.0 / 39_916_800.0];
    const COS: [f64; 7] = [1.0, -1.0 / 2.0, 1.0 / 24.0, -1.0 / 720.0, 1.0 / 40_320.0, -1.0 / 3_628_800.0, 1.0 / 479_001_600.0];
    let quarter = (turn * 4.0 + 0.5) as u8;
    let x = (turn - f64::from(quarter) * 0.25) * std::f64::consts::TAU;
    let (sin, cos) = (x * polynomial(&SIN, x * x), polynomial(&COS, x * x));
    match quarter % 4 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
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
            let (sin, cos) = sin_cos_of_turn(x);
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
