//! Arithmetic on rows of numbers, written so that the compiler makes vector code of it, and chosen for the processor when it runs.
//!
//! `f32::exp` is a library call an element, and the release build knows only SSE2; so the exponential is a polynomial here, and what uses it
//! exists twice, for AVX2 with FMA and for any processor.

/// Below this, an exponential counts as 0: it is under 2^-125 of the largest one.
pub const UNDERFLOW: f32 = -87.0;

/// Makes a function `NAME` of `bodies::NAME::<FMA>`: compiled once for AVX2 with FMA and once for any processor, chosen when it runs.
macro_rules! for_processor {
    ($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?) => {
        $(#[$doc])*
        pub fn $name($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                #[target_feature(enable = "avx2,fma")]
                fn wide($($argument: $type),*) $(-> $result)? {
                    bodies::$name::<true>($($argument),*)
                }
                // SAFETY: the processor has both features, as just asked.
                return unsafe { wide($($argument),*) };
            }
            bodies::$name::<false>($($argument),*)
        }
    };
}
pub(crate) use for_processor;

/// exp(x) for x up to 88, within 1e-7 of it relatively; 0 below [`UNDERFLOW`]; NaN for NaN.
///
/// exp(x) = 2^n * exp(r) with n the integer next to x/ln 2 and |r| at most ln 2 / 2; exp(r) is a polynomial (Cephes' expf).
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
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

/// x Φ(x), the normal distribution's by tanh, as GPT2 has it: `x / (1 + exp(-2 u))` with u = sqrt(2/π) (x + 0.044715 x³).
#[inline(always)]
pub fn tanh_gelu<const FMA: bool>(x: f32) -> f32 {
    const FACTOR: f32 = -2.0 * 0.797_884_6;
    let inner = multiply_add::<FMA>(0.044_715 * x * x, x, x);
    let exponent = FACTOR * inner;
    // Above it the quotient is as good as 0.
    let exponent = if exponent > 80.0 { 80.0 } else { exponent };
    x / (1.0 + exp::<FMA>(exponent))
}

/// `a * b + c`; `FMA`: the processor multiplies and adds in one.
#[inline(always)]
pub fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
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
    fn tanh_gelu_is_the_formula() {
        for step in -4000..4000 {
            let x = step as f32 * 0.01;
            let (wide, inner) = (f64::from(x), f64::from(x) + 0.044_715 * f64::from(x).powi(3));
            let wanted = 0.5 * wide * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * inner).tanh());
            for found in [tanh_gelu::<true>(x), tanh_gelu::<false>(x)] {
                assert!((f64::from(found) - wanted).abs() < 1e-6 * wide.abs().max(1.0), "{x}: {found} for {wanted}");
            }
        }
        assert!(tanh_gelu::<true>(f32::NAN).is_nan());
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
}
