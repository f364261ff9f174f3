//! One token drawn from a row of logits: temperature, top-k, top-p, then the inverse of the cumulative distribution.
//!
//! The order of the distribution is fixed (likelier first, of equals the lower id), so a uniform number names a token. Only as much
//! of that order is established as the draw needs; what is left out is bounded exactly, never guessed.

use super::Sampling;
use super::ranking::{collect_from, id, top_n};
use super::softmax::{chunk_max, exps};
use super::walk::{Reach, Walk};

/// Buffers that are used again for each row.
#[derive(Default)]
pub(super) struct Buffers {
    pub maxima: Vec<f32>,
    pub keys: Vec<u64>,
    pub spare: Vec<f32>,
    exps: Vec<f32>,
    walk: Walk,
}

/// The token that `uniform` (in [0, 1)) names among `logits` [V] (NaN-free; divided by the temperature here). None where every logit
/// is -inf.
pub(super) fn draw(logits: &mut [f32], sampling: &Sampling, uniform: f64, buffers: &mut Buffers) -> Option<usize> {
    if sampling.temperature != 1.0 {
        let temperature = sampling.temperature as f32;
        logits.iter_mut().for_each(|logit| *logit /= temperature);
    }
    let max = chunk_max(logits, &mut buffers.maxima);
    if max == f32::NEG_INFINITY {
        return None;
    }
    let floor = if sampling.top_k > 0 && sampling.top_k < logits.len() {
        top_n(logits, &buffers.maxima, sampling.top_k, &mut buffers.keys, &mut buffers.spare);
        buffers.keys.last().map_or(f32::NEG_INFINITY, |&key| logits[id(key)])
    } else {
        f32::NEG_INFINITY
    };
    buffers.exps.resize(logits.len(), 0.0);
    let total = exps(logits, max, floor, &mut buffers.exps);
    let Buffers { maxima, keys, exps, walk, .. } = buffers;
    let wanted = if sampling.top_p < 1.0 { sampling.top_p } else { uniform } * total;
    // Leaving out elements of at most (total - wanted) / V each loses at most total - wanted. A bound 1/256 is tried first: a peaked row has
    // few elements above it, and they mostly do. It is a little lower, for what rounding makes of it and of the exponentials.
    let bound = f64::from(max) + ((total - wanted) / 256.0).ln();
    keys.clear();
    if bound.is_finite() {
        collect_from(logits, maxima, (bound as f32 - 1e-3).max(floor), keys);
    }
    if walk.fill(keys.iter().copied(), exps) > wanted {
        return name(total, sampling.top_p, uniform, |target| walk.reach(keys.iter().copied(), exps, target));
    }
    // What top-k leaves out has the weight 0.
    walk.fill_with_row(logits, max, exps);
    name(total, sampling.top_p, uniform, |target| walk.reach_in_row(logits, exps, target))
}

/// The token that `uniform` names; `reach` walks down to a sum of weights, of which there are `total`.
fn name(total: f64, top_p: f64, uniform: f64, mut reach: impl FnMut(Reach) -> Option<(u64, f64)>) -> Option<usize> {
    let mass = if top_p < 1.0 { reach(Reach::AtLeast(top_p * total))?.1 } else { total };
    reach(Reach::Above(uniform * mass)).map(|(key, _)| id(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The kept tokens and their probabilities, likeliest first, by a full sort in f64.
    fn distribution(logits: &[f32], sampling: &Sampling) -> Vec<(usize, f64)> {
        let scaled: Vec<f32> = logits.iter().map(|&l| l / sampling.temperature as f32).collect();
        let mut ids: Vec<usize> = (0..scaled.len()).collect();
        ids.sort_by(|&a, &b| scaled[b].partial_cmp(&scaled[a]).expect("no NaN").then(a.cmp(&b)));
        if sampling.top_k > 0 && sampling.top_k < ids.len() {
            let last = scaled[ids[sampling.top_k - 1]];
            ids.retain(|&id| scaled[id] >= last);
        }
        let top = f64::from(scaled[ids[0]]);
        let weights: Vec<f64> = ids.iter().map(|&id| (f64::from(scaled[id]) - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = Vec::new();
        let mut sum = 0.0;
        for (&id, &weight) in ids.iter().zip(&weights) {
            if sampling.top_p < 1.0 && sum >= sampling.top_p * total {
                break;
            }
            sum += weight;
            kept.push((id, weight));
        }
        kept.into_iter().map(|(id, weight)| (id, weight / sum)).collect()
    }

    /// Draws at many uniform numbers and compares with the full sort, except next to a boundary.
    fn agrees(logits: &[f32], sampling: &Sampling) {
        let wanted = distribution(logits, sampling);
        let mut buffers = Buffers::default();
        for step in 0..40 {
            let uniform = (step as f64 + 0.37) / 40.0;
            let drawn = draw(&mut logits.to_vec(), sampling, uniform, &mut buffers).expect("something is left");
            let mut sum = 0.0;
            let near: Vec<usize> = wanted
                .iter()
                .filter(|&&(_, probability)| {
                    let before = sum;
                    sum += probability;
                    before <= uniform + 1e-5 && uniform - 1e-5 < sum
                })
                .map(|&(id, _)| id)
                .collect();
            assert!(near.contains(&drawn), "{sampling:?} at {uniform}: {drawn} is none of {near:?}");
        }
    }

    fn logits() -> impl proptest::strategy::Strategy<Value = Vec<f32>> {
        let length = 1usize..900;
        let flat = length.clone().prop_map(|n| vec![0.25; n]);
        let one_hot = (length.clone(), any::<prop::sample::Index>()).prop_map(|(n, at)| {
            let mut row = vec![-40.0; n];
            row[at.index(n)] = 60.0;
            row
        });
        let ties = prop::collection::vec((0i32..6).prop_map(|v| v as f32), 1..900);
        let random = prop::collection::vec(-9.0f32..9.0, 1..900);
        let peaked = prop::collection::vec((0.0f32..1.0).prop_map(|u| 18.0 * u.powi(12)), 1..900);
        let banned = prop::collection::vec(prop_oneof![Just(f32::NEG_INFINITY), -3.0f32..3.0], 1..900).prop_map(|mut row| {
            row[0] = 0.5;
            row
        });
        prop_oneof![flat, one_hot, ties, random, peaked, banned]
    }

    proptest! {
        #[test]
        fn a_draw_is_the_inverse_of_the_sorted_distribution(
            logits in logits(),
            temperature in prop_oneof![Just(1.0), 0.3f64..2.5],
            top_k in prop_oneof![Just(0usize), 1usize..60, Just(10_000)],
            top_p in prop_oneof![Just(1.0), 0.05f64..0.9999, Just(1e-9), Just(1.0 - 1e-12)],
        ) {
            // A top-p boundary that falls on a sum of equal weights is undecided by rounding: move it off.
            let top_p = if top_p < 1.0 && top_p > 0.01 { top_p * 0.999_983 } else { top_p };
            agrees(&logits, &Sampling { temperature, top_k, top_p, ..Sampling::default() });
        }
    }

    #[test]
    fn the_boundary_of_top_p_is_the_smallest_set_that_reaches_it() {
        // Four equal weights: exact in binary, so the boundaries are too.
        let mut buffers = Buffers::default();
        let mut last = |top_p| {
            draw(&mut [1.0; 4], &Sampling { top_p, ..Sampling::default() }, 1.0 - 1e-12, &mut buffers).expect("something is left")
        };
        assert_eq!((last(0.25), last(0.2500001), last(0.5), last(0.75), last(0.76)), (0, 1, 1, 2, 3));
    }

    #[test]
    fn ties_at_the_k_th_place_stay() {
        let mut buffers = Buffers::default();
        let logits = [5.0, 1.0, 5.0, 5.0, 0.0];
        let sampling = Sampling { top_k: 2, ..Sampling::default() };
        let drawn = |uniform, buffers: &mut Buffers| draw(&mut logits.to_vec(), &sampling, uniform, buffers);
        assert_eq!(drawn(0.0, &mut buffers), Some(0));
        assert_eq!(drawn(0.5, &mut buffers), Some(2));
        assert_eq!(drawn(0.999_999, &mut buffers), Some(3));
    }

    #[test]
    fn nothing_banned_is_drawn_and_nothing_left_is_none() {
        let mut buffers = Buffers::default();
        let infinity = f32::NEG_INFINITY;
        let largest = 1.0 - f64::EPSILON / 2.0;
        let all = Sampling::default();
        assert_eq!(draw(&mut [infinity, 0.0, infinity], &all, largest, &mut buffers), Some(1));
        assert_eq!(draw(&mut [infinity, 0.0, infinity], &all, 0.0, &mut buffers), Some(1));
        assert_eq!(draw(&mut [infinity; 3], &all, 0.5, &mut buffers), None);
        // So much less likely that its exponential is 0.
        assert_eq!(draw(&mut [0.0, -200.0], &all, largest, &mut buffers), Some(0));
    }
}
