//! Passes over a row of logits, written so that the compiler makes vector code of them: maxima, exponentials and their sum.
//!
//! `f32::exp` is a library call an element, and the release build knows only SSE2; so the exponential is a polynomial here, and each
//! pass exists twice, for AVX2 with FMA and for any processor, chosen when it runs.

/// Elements that one entry of [`chunk_max`] covers.
pub(super) const CHUNK: usize = 64;
/// Below this, an exponential counts as 0: it is under 2^-125 of the largest one.
const UNDERFLOW: f32 = -87.0;
const LANES: usize = 16;

/// The largest element of each `CHUNK` elements of `x`, into `maxima`; returns the largest of all. NaN is passed over; -inf if `x` is
/// empty.
pub(super) fn chunk_max(x: &[f32], maxima: &mut Vec<f32>) -> f32 {
    maxima.clear();
    maxima.extend(x.chunks(CHUNK).map(max));
    max(maxima)
}

/// ln(sum of exp(x)). Not finite where `x` holds NaN or infinity, or nothing above -inf.
pub(super) fn log_sum_exp(x: &[f32]) -> f64 {
    let max = max(x);
    max as f64 + exp_sum(x, max).ln()
}

/// The largest element; NaN is passed over; -inf if `x` is empty.
pub(super) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// Sum of exp(x - shift), in f64. The difference is rounded to f32, so terms far below the largest are a little less exact.
fn exp_sum(x: &[f32], shift: f32) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        #[target_feature(enable = "avx2,fma")]
        fn wide(x: &[f32], shift: f32) -> f64 {
            exp_sum_body::<true>(x, shift)
        }
        // SAFETY: the processor has both features, as just asked.
        return unsafe { wide(x, shift) };
    }
    exp_sum_body::<false>(x, shift)
}

/// `out[i] = exp(x[i] - shift)`, or 0 where `x[i] < floor`; returns the sum, in f64. Both slices are equally long.
pub(super) fn exps(x: &[f32], shift: f32, floor: f32, out: &mut [f32]) -> f64 {
    assert_eq!(x.len(), out.len());
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        #[target_feature(enable = "avx2,fma")]
        fn wide(x: &[f32], shift: f32, floor: f32, out: &mut [f32]) -> f64 {
            exps_body::<true>(x, shift, floor, out)
        }
        // SAFETY: the processor has both features, as just asked.
        return unsafe { wide(x, shift, floor, out) };
    }
    exps_body::<false>(x, shift, floor, out)
}

#[inline(always)]
fn exp_sum_body<const FMA: bool>(x: &[f32], shift: f32) -> f64 {
    let mut lanes = [0f64; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f64 = chunks.remainder().iter().map(|&x| exp::<FMA>(x - shift) as f64).sum();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += exp::<FMA>(chunk[lane] - shift) as f64;
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[inline(always)]
fn exps_body<const FMA: bool>(x: &[f32], shift: f32, floor: f32, out: &mut [f32]) -> f64 {
    let kept = |x: f32| if x < floor { 0.0 } else { exp::<FMA>(x - shift) };
    let mut lanes = [0f64; LANES];
    let mut targets = out.chunks_exact_mut(LANES);
    let sources = x.chunks_exact(LANES);
    let rest_of_x = sources.remainder();
    for (source, target) in sources.zip(&mut targets) {
        for lane in 0..LANES {
            target[lane] = kept(source[lane]);
            lanes[lane] += target[lane] as f64;
        }
    }
    let mut sum = lanes.iter().sum::<f64>();
    for (target, &source) in targets.into_remainder().iter_mut().zip(rest_of_x) {
        *target = kept(source);
        sum += *target as f64;
    }
    sum
}

/// exp(x) for x up to 88, within 1e-7 of it relatively; 0 below [`UNDERFLOW`]; NaN for NaN.
///
/// exp(x) = 2^n * exp(r) with n the integer next to x/ln 2 and |r| at most ln 2 / 2; exp(r) is a polynomial (Cephes' expf).
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with few enough bits that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const COEFFICIENTS: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

    let shifted = multiply_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<FMA>(n, -LN_2_LOW, multiply_add::<FMA>(n, -LN_2_HIGH, x));
    let mut polynomial = COEFFICIENTS[0];
    for coefficient in &COEFFICIENTS[1..] {
        polynomial = multiply_add::<FMA>(polynomial, r, *coefficient);
    }
    let exp_r = multiply_add::<FMA>(r * r, polynomial, r) + 1.0;
    // The low bits of `shifted` are n in two's complement; they go where a float keeps its exponent.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    if x < UNDERFLOW { 0.0 } else { exp_r * power }
}

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst_error<const FMA: bool>() -> f64 {
        let mut worst = 0f64;
        let mut x = 0f32;
        while x > UNDERFLOW {
            let wanted = (x as f64).exp();
            worst = worst.max((exp::<FMA>(x) as f64 - wanted).abs() / wanted);
            x = x * 1.000_01 - 1e-5;
        }
        worst
    }

    #[test]
    fn exp_is_accurate_on_both_paths() {
        let (plain, fused) = (worst_error::<false>(), worst_error::<true>());
        assert!(plain < 1e-7, "without FMA {plain:e}");
        assert!(fused < 1e-7, "with FMA {fused:e}");
        assert_eq!(exp::<true>(0.0), 1.0);
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<false>(-87.5), 0.0);
        assert!(exp::<true>(f32::NAN).is_nan() && exp::<false>(f32::NAN).is_nan());
    }

    #[test]
    fn passes_agree_with_plain_arithmetic_at_every_length() {
        let values: Vec<f32> = (0..200u32).map(|i| ((i * 7919) % 613) as f32 / 40.0 - 9.0).collect();
        for length in 0..values.len() {
            let x = &values[..length];
            let mut maxima = Vec::new();
            let top = chunk_max(x, &mut maxima);
            assert_eq!(top, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(maxima.len(), length.div_ceil(CHUNK));
            if length == 0 {
                continue;
            }
            let wanted: f64 = x.iter().map(|&x| (x as f64).exp()).sum::<f64>().ln();
            assert!((log_sum_exp(x) - wanted).abs() < 1e-6);
            let mut out = vec![9.0; length];
            let sum = exps(x, top, -3.0, &mut out);
            assert!((sum - out.iter().map(|&e| e as f64).sum::<f64>()).abs() < 1e-12);
            for (&x, &e) in x.iter().zip(&out) {
                let wanted = if x < -3.0 { 0.0 } else { ((x - top) as f64).exp() };
                assert!((e as f64 - wanted).abs() <= 1e-7 * wanted, "{x}: {e} for {wanted}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_shows() {
        assert!(!log_sum_exp(&[1.0, f32::NAN, 2.0]).is_finite());
        assert!(!log_sum_exp(&[1.0, f32::INFINITY]).is_finite());
        assert!(!log_sum_exp(&[f32::NEG_INFINITY; 3]).is_finite());
        assert!(log_sum_exp(&[1.0, f32::NEG_INFINITY]).is_finite());
    }
}
