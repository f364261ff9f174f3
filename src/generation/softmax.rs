//! Passes over a row of logits, written so that the compiler makes vector code of them: maxima, exponentials and their sum.
//!
//! Each pass exists twice, for AVX2 with FMA and for any processor (see [`crate::vector`]). What vectorizes reliably are loops without a running
//! result, and running results of integers: sums go to a block of sums side by side, and maxima are of ordered integers.

/// Elements that one entry of [`chunk_max`] covers.
pub(super) const CHUNK: usize = 64;
/// Sums side by side. Too many to be unrolled, which would keep the loop from being vectorized.
const BLOCK: usize = 256;

/// The largest element of each `CHUNK` elements of `x`, into `maxima`; returns the largest of all, -inf if `x` is empty. No NaN.
pub(super) fn chunk_max(x: &[f32], maxima: &mut Vec<f32>) -> f32 {
    maxima.clear();
    maxima.resize(x.len().div_ceil(CHUNK), 0.0);
    passes::chunk_maxima(x, maxima);
    max(maxima)
}

/// ln(sum of exp(x)). Not finite where `x` holds NaN or infinity, or nothing above -inf.
pub(super) fn log_sum_exp(x: &[f32]) -> f64 {
    let max = max(x);
    f64::from(max) + passes::exp_sum(x, max).ln()
}

/// The largest element, -inf if `x` is empty. NaN may be passed over.
pub(super) fn max(x: &[f32]) -> f32 {
    let mut max = [0.0];
    passes::whole_max(x, &mut max);
    max[0]
}

/// `out[i] = exp(x[i] - shift)`, or 0 where `x[i] < floor`; returns the sum, in f64. Both slices are equally long.
pub(super) fn exps(x: &[f32], shift: f32, floor: f32, out: &mut [f32]) -> f64 {
    assert_eq!(x.len(), out.len());
    passes::exps(x, shift, floor, out)
}

/// Stretches of one unit of logits.
const PER_UNIT: f32 = 64.0;

/// The stretch of all that is far below: more than exponentials reach.
pub(super) const FAR: u16 = 8191;

/// The stretch of each element below `max`, which none is above; returns the last but [`FAR`].
pub(super) fn places(x: &[f32], max: f32, out: &mut [u16]) -> u16 {
    assert_eq!(x.len(), out.len());
    passes::places(x, max, out)
}

/// Where in `places` a place is, in order.
pub(super) fn with_place(places: &[u16], place: u16, found: &mut Vec<u32>) {
    found.clear();
    passes::with_place(places, place, found);
}

/// Each pass for the processor at hand.
mod passes {
    use super::bodies;
    use crate::vector::for_processor;

    for_processor!(whole_max(x: &[f32], max: &mut [f32; 1]));
    for_processor!(chunk_maxima(x: &[f32], maxima: &mut [f32]));
    for_processor!(exp_sum(x: &[f32], shift: f32) -> f64);
    for_processor!(places(x: &[f32], max: f32, out: &mut [u16]) -> u16);
    for_processor!(with_place(places: &[u16], place: u16, found: &mut Vec<u32>));
    for_processor!(exps(x: &[f32], shift: f32, floor: f32, out: &mut [f32]) -> f64);
}

/// The passes themselves, to be compiled into callers that know their processor; `FMA`: it multiplies and adds in one.
mod bodies {
    use super::{BLOCK, CHUNK, FAR, PER_UNIT};
    use crate::vector::exp;

    #[inline(always)]
    pub fn whole_max<const FMA: bool>(x: &[f32], max: &mut [f32; 1]) {
        max[0] = max_of(x);
    }

    #[inline(always)]
    pub fn chunk_maxima<const FMA: bool>(x: &[f32], maxima: &mut [f32]) {
        for (chunk, max) in x.chunks(CHUNK).zip(maxima) {
            *max = max_of(chunk);
        }
    }

    /// Sum of exp(x - shift). The difference is rounded to f32, so terms far below the largest are a little less exact.
    #[inline(always)]
    pub fn exp_sum<const FMA: bool>(x: &[f32], shift: f32) -> f64 {
        let mut sums = [0f64; BLOCK];
        for block in x.chunks(BLOCK) {
            for (sum, &x) in sums.iter_mut().zip(block) {
                *sum += f64::from(exp::<FMA>(x - shift));
            }
        }
        sums.iter().sum()
    }

    #[inline(always)]
    pub fn exps<const FMA: bool>(x: &[f32], shift: f32, floor: f32, out: &mut [f32]) -> f64 {
        let mut sums = [0f64; BLOCK];
        for (block, out) in x.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
            for ((sum, &x), out) in sums.iter_mut().zip(block).zip(out) {
                *out = if x < floor { 0.0 } else { exp::<FMA>(x - shift) };
                *sum += f64::from(*out);
            }
        }
        sums.iter().sum()
    }

    #[inline(always)]
    pub fn places<const FMA: bool>(x: &[f32], max: f32, out: &mut [u16]) -> u16 {
        /// Adding it leaves a number rounded to an integer in the low bits.
        const ROUND: f32 = 12_582_912.0;
        for (&x, out) in x.iter().zip(out.iter_mut()) {
            let place = (max - x) * PER_UNIT;
            let place = if place < f32::from(FAR) { place } else { f32::from(FAR) };
            *out = (place + ROUND).to_bits() as u16;
        }
        out.iter().fold(0, |last, &place| last.max(if place == FAR { 0 } else { place }))
    }

    #[inline(always)]
    pub fn with_place<const FMA: bool>(places: &[u16], place: u16, found: &mut Vec<u32>) {
        /// Looked at together: mostly none of them is it.
        const TOGETHER: usize = 16;
        for (number, chunk) in places.chunks(TOGETHER).enumerate() {
            let mut which: u16 = chunk.iter().enumerate().fold(0, |which, (i, &p)| which | u16::from(p == place) << i);
            while which != 0 {
                found.push((number * TOGETHER) as u32 + which.trailing_zeros());
                which &= which - 1;
            }
        }
    }

    /// By integers in the order of floats: a maximum of floats is not vectorized, since it would have to keep NaN's ways.
    #[inline(always)]
    fn max_of(x: &[f32]) -> f32 {
        // Turns the order of negative floats around, and is its own inverse.
        let ordered = |bits: i32| bits ^ ((bits >> 31) & i32::MAX);
        let lowest = ordered(f32::NEG_INFINITY.to_bits() as i32);
        let max = x.iter().fold(lowest, |max, &x| max.max(ordered(x.to_bits() as i32)));
        f32::from_bits(ordered(max) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn places_are_in_the_order_of_what_they_are_of() {
        let mut x: Vec<f32> = (0..777u32).map(|i| ((i * 7919) % 6113) as f32 / 29.0 - 100.0).collect();
        x[5] = f32::NEG_INFINITY;
        let max = max(&x);
        let mut found = vec![0; x.len()];
        let last = places(&x, max, &mut found);
        assert_eq!(found[5], FAR);
        assert_eq!(last, found.iter().copied().filter(|&place| place < FAR).max().unwrap());
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
        assert!(order.is_sorted_by_key(|&i| found[i]) && found[order[0]] == 0);
        let mut ids = vec![];
        for place in [0, last, FAR, found[700], FAR - 1] {
            with_place(&found, place, &mut ids);
            let wanted: Vec<u32> = (0..x.len() as u32).filter(|&i| found[i as usize] == place).collect();
            assert_eq!(ids, wanted);
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
