//! The top of a row without sorting all of it.
//!
//! An element and its id make one integer that is the smaller the better ([`key`]): likelier first, of equals the lower id. So the
//! order is total, and selecting or sorting plain integers is all that is needed.

use super::softmax::CHUNK;

/// `logit` and `id` as an integer that sorts ascending where logits descend and, among equal ones, ids ascend. No NaN.
pub(super) fn key(logit: f32, id: usize) -> u64 {
    // Adding zero makes -0 equal 0.
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    (u64::from(!ascending) << 32) | id as u64
}

pub(super) fn id(key: u64) -> usize {
    (key & u64::from(u32::MAX)) as usize
}

/// Appends the keys of all elements of `x` that are at least `bound`; `maxima` are the chunk maxima of `x`.
pub(super) fn collect_from(x: &[f32], maxima: &[f32], bound: f32, keys: &mut Vec<u64>) {
    for (chunk, (values, &max)) in x.chunks(CHUNK).zip(maxima).enumerate() {
        // The maximum passes over NaN, and so does this comparison.
        if max >= bound {
            let start = chunk * CHUNK;
            keys.extend(values.iter().enumerate().filter(|&(_, &value)| value >= bound).map(|(i, &value)| key(value, start + i)));
        }
    }
}

/// The best `n` elements of `x` (all of them, if there are fewer), sorted, into `keys`; `maxima` are the chunk maxima of `x`, and
/// `spare` is scratch.
pub(super) fn top_n(x: &[f32], maxima: &[f32], n: usize, keys: &mut Vec<u64>, spare: &mut Vec<f32>) {
    keys.clear();
    if n == 0 {
        return;
    }
    // The n-th largest chunk maximum is a lower bound of the n-th largest element, and a tight one where there are many chunks.
    let bound = if n <= maxima.len() {
        spare.clear();
        spare.extend_from_slice(maxima);
        let (_, bound, _) = spare.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a));
        *bound
    } else {
        f32::NEG_INFINITY
    };
    collect_from(x, maxima, bound, keys);
    if n < keys.len() {
        keys.select_nth_unstable(n - 1);
        keys.truncate(n);
    }
    keys.sort_unstable();
}

/// When a running sum of weights has reached its target.
#[derive(Clone, Copy)]
pub(super) enum Reach {
    /// The sum is at least this.
    AtLeast(f64),
    /// The sum is above this.
    Above(f64),
}

impl Reach {
    fn by(self, sum: f64) -> bool {
        match self {
            Self::AtLeast(target) => sum >= target,
            Self::Above(target) => sum > target,
        }
    }
}

/// Adds up `weights[id]` from the best key on. Returns how many keys it takes to reach the target, and their sum; all of them where
/// rounding keeps the sum below. Afterwards those keys come first in `keys`, in any order but for the last of them, which is the last.
///
/// Selection halves the stretch in question instead of sorting: linear time.
pub(super) fn take_until(keys: &mut [u64], weights: &[f32], target: Reach) -> (usize, f64) {
    const SMALL: usize = 48;
    let (mut low, mut high, mut before) = (0, keys.len(), 0.0);
    while high - low > SMALL {
        let half = (high - low) / 2;
        keys[low..high].select_nth_unstable(half);
        let sum = before + sum_of(&keys[low..low + half], weights);
        if target.by(sum) {
            high = low + half;
        } else {
            before = sum;
            low += half;
        }
    }
    keys[low..high].sort_unstable();
    for (i, &key) in keys[low..high].iter().enumerate() {
        before += f64::from(weights[id(key)]);
        if target.by(before) {
            return (low + i + 1, before);
        }
    }
    (high, before)
}

/// Sum of `weights[id]`, in four interleaved parts: one chain of additions would wait for each.
pub(super) fn sum_of(keys: &[u64], weights: &[f32]) -> f64 {
    let mut parts = [0f64; 4];
    let chunks = keys.chunks_exact(4);
    let rest: f64 = chunks.remainder().iter().map(|&key| f64::from(weights[id(key)])).sum();
    for chunk in chunks {
        for (part, &key) in parts.iter_mut().zip(chunk) {
            *part += f64::from(weights[id(key)]);
        }
    }
    parts.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::generation::softmax::chunk_max;

    fn sorted_ids(x: &[f32]) -> Vec<usize> {
        let mut ids: Vec<usize> = (0..x.len()).collect();
        ids.sort_by(|&a, &b| x[b].partial_cmp(&x[a]).expect("no NaN").then(a.cmp(&b)));
        ids
    }

    #[test]
    fn keys_order_likelier_first_then_lower_id() {
        let ordered = [
            key(f32::INFINITY, 9),
            key(2.0, 3),
            key(1.0, 0),
            key(0.0, 1),
            key(-0.0, 2),
            key(-1.0, 0),
            key(-2.0, 0),
            key(f32::NEG_INFINITY, 0),
        ];
        assert!(ordered.is_sorted());
        assert_eq!(id(key(-3.5, 21_127)), 21_127);
    }

    /// Few distinct values, so that ties are everywhere, and -inf among them.
    fn row() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![8 => (-20i32..20).prop_map(|v| v as f32 / 4.0), 1 => Just(f32::NEG_INFINITY), 1 => Just(-0.0)];
        proptest::collection::vec(value, 1..700)
    }

    proptest! {
        #[test]
        fn top_n_is_the_start_of_a_full_sort(x in row(), n in 0usize..800) {
            let (mut maxima, mut keys, mut spare) = (Vec::new(), Vec::new(), Vec::new());
            chunk_max(&x, &mut maxima);
            top_n(&x, &maxima, n, &mut keys, &mut spare);
            let ids: Vec<usize> = keys.iter().map(|&key| id(key)).collect();
            prop_assert_eq!(ids, sorted_ids(&x)[..n.min(x.len())].to_vec());
        }

        #[test]
        fn take_until_is_a_walk_down_a_full_sort(x in row(), share in 0.0f64..1.0, above: bool) {
            // Weights that are exact in binary, so that sums in any order are equal.
            let weights: Vec<f32> = x.iter().map(|&x| if x.is_finite() { (x * 4.0 + 90.0) / 128.0 } else { 0.0 }).collect();
            let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            let target = (total * share * 128.0).floor() / 128.0;
            let target = if above { Reach::Above(target) } else { Reach::AtLeast(target) };
            let mut keys: Vec<u64> = x.iter().enumerate().map(|(i, &x)| key(x, i)).collect();
            let (taken, sum) = take_until(&mut keys, &weights, target);
            let (mut wanted, mut running) = (0, 0.0);
            for &i in &sorted_ids(&x) {
                running += f64::from(weights[i]);
                wanted += 1;
                if target.by(running) {
                    break;
                }
            }
            prop_assert_eq!((taken, sum), (wanted, running));
            let order = sorted_ids(&x);
            let mut found: Vec<usize> = keys[..taken].iter().map(|&key| id(key)).collect();
            prop_assert_eq!(found.last().copied(), Some(order[taken - 1]));
            found.sort();
            let mut first = order[..taken].to_vec();
            first.sort();
            prop_assert_eq!(found, first);
        }
    }
}
