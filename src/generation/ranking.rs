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

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::generation::softmax::chunk_max;

    pub(in crate::generation) fn sorted_ids(x: &[f32]) -> Vec<usize> {
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
    pub(in crate::generation) fn row() -> impl Strategy<Value = Vec<f32>> {
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
    }
}
