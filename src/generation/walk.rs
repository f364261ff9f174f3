//! Walking down a distribution from the likeliest token without sorting it.
//!
//! Weights are summed by stretches of the order of [`key`](super::ranking::key)s, which costs one pass; the stretch where a running sum
//! meets its target is then the only one whose tokens are put in order.

use super::ranking::{id, key};
use super::softmax::{FAR, places, with_place};

/// Keys are in one stretch where these bits agree: sign, exponent and five bits of the mantissa of a logit.
const SHIFT: u32 = 64 - 14;

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

/// Sums of weights by stretch; its memory is used again for each row.
pub(super) struct Walk {
    /// Zero but for `first..=last`.
    sums: Vec<f64>,
    first: usize,
    last: usize,
    /// The keys of one stretch.
    stretch: Vec<u64>,
    /// Of a whole row: the stretch of each element.
    places: Vec<u16>,
    ids: Vec<u32>,
}

impl Default for Walk {
    fn default() -> Self {
        Self { sums: vec![0.0; 1 << (64 - SHIFT)], first: 0, last: 0, stretch: Vec::new(), places: Vec::new(), ids: Vec::new() }
    }
}

impl Walk {
    /// Takes the weights `weights[id]` of `keys`, in any order, and returns their sum.
    pub fn fill(&mut self, keys: impl Iterator<Item = u64>, weights: &[f32]) -> f64 {
        self.sums[self.first..=self.last].fill(0.0);
        let (mut first, mut last) = (self.sums.len() - 1, 0);
        for key in keys {
            let place = (key >> SHIFT) as usize;
            self.sums[place] += f64::from(weights[id(key)]);
            first = first.min(place);
            last = last.max(place);
        }
        (self.first, self.last) = (first.min(last), last);
        self.sums[self.first..=self.last].iter().sum()
    }

    /// Adds up the weights from the best of `keys` on (those that [`fill`](Self::fill) took) until the sum reaches the target. Returns the
    /// key that does it and the sum with it: the last key of any weight where rounding keeps the sum below, None where none has weight.
    pub fn reach(&mut self, keys: impl Iterator<Item = u64>, weights: &[f32], target: Reach) -> Option<(u64, f64)> {
        let (place, before) = self.find(target)?;
        self.stretch.clear();
        // Nothing of weight 0 is named, even where rounding carries a sum past the last weight.
        self.stretch.extend(keys.filter(|&key| (key >> SHIFT) as usize == place && weights[id(key)] > 0.0));
        Some(take_until(&mut self.stretch, weights, before, target))
    }

    /// As [`fill`](Self::fill), of all `logits`, the largest of which is `max`. Stretches are of equal lengths, and fewer tokens are in one.
    pub fn fill_with_row(&mut self, logits: &[f32], max: f32, weights: &[f32]) -> f64 {
        self.sums[self.first..=self.last].fill(0.0);
        self.places.resize(logits.len(), 0);
        (self.first, self.last) = (0, usize::from(places(logits, max, &mut self.places)));
        // What is far below has no weight, so that its sum stays 0.
        let sums = &mut self.sums[..=usize::from(FAR)];
        for (&place, &weight) in self.places.iter().zip(weights) {
            sums[usize::from(place.min(FAR))] += f64::from(weight);
        }
        self.sums[..=self.last].iter().sum()
    }

    /// As [`reach`](Self::reach), of what [`fill_with_row`](Self::fill_with_row) took.
    pub fn reach_in_row(&mut self, logits: &[f32], weights: &[f32], target: Reach) -> Option<(u64, f64)> {
        let (place, before) = self.find(target)?;
        with_place(&self.places, place as u16, &mut self.ids);
        self.stretch.clear();
        let ids = self.ids.iter().map(|&id| id as usize).filter(|&id| weights[id] > 0.0);
        self.stretch.extend(ids.map(|id| key(logits[id], id)));
        Some(take_until(&mut self.stretch, weights, before, target))
    }

    /// The stretch where the running sum reaches the target, and the sum before it.
    fn find(&self, target: Reach) -> Option<(usize, f64)> {
        let (mut before, mut found) = (0.0, None);
        for (place, &sum) in self.sums.iter().enumerate().take(self.last + 1).skip(self.first).filter(|&(_, &sum)| sum > 0.0) {
            found = Some((place, before));
            if target.by(before + sum) {
                break;
            }
            before += sum;
        }
        found
    }
}

/// Adds `weights[id]` to `before` from the best key on. Returns the key that reaches the target and the sum with it; the last key where
/// rounding keeps the sum below. Selection halves the stretch in question instead of sorting: linear time.
fn take_until(keys: &mut [u64], weights: &[f32], mut before: f64, target: Reach) -> (u64, f64) {
    const SMALL: usize = 48;
    let (mut low, mut high) = (0, keys.len());
    while high - low > SMALL {
        let half = (high - low) / 2;
        keys[low..high].select_nth_unstable(half);
        let sum = before + keys[low..low + half].iter().map(|&key| f64::from(weights[id(key)])).sum::<f64>();
        if target.by(sum) {
            high = low + half;
        } else {
            before = sum;
            low += half;
        }
    }
    keys[low..high].sort_unstable();
    let mut reached = 0;
    for &key in &keys[low..high] {
        before += f64::from(weights[id(key)]);
        reached = key;
        if target.by(before) {
            break;
        }
    }
    (reached, before)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::generation::ranking::tests::{row, sorted_ids};

    proptest! {
        /// All sums of these weights are exact, so that only the boundary itself decides.
        #[test]
        fn reach_is_a_walk_down_a_full_sort(rows in proptest::collection::vec((row(), 0.0f64..1.0, any::<bool>()), 1..4)) {
            let mut walk = Walk::default();
            for (x, share, above) in rows {
                let weights: Vec<f32> =
                    x.iter().map(|&x| if x.is_finite() { ((x * 4.0 + 90.0) / 128.0).max(0.0) } else { 0.0 }).collect();
                let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
                let target = (total * share * 128.0).floor() / 128.0;
                let target = if above { Reach::Above(target) } else { Reach::AtLeast(target) };
                let keys = || x.iter().enumerate().map(|(i, &x)| key(x, i));
                prop_assert_eq!(walk.fill(keys(), &weights), total);
                let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut whole = Walk::default();
                prop_assert_eq!(whole.fill_with_row(&x, max, &weights), total);
                let (mut wanted, mut running) = (None, 0.0);
                for &i in &sorted_ids(&x) {
                    if weights[i] > 0.0 {
                        running += f64::from(weights[i]);
                        wanted = Some((key(x[i], i), running));
                    }
                    if weights[i] > 0.0 && target.by(running) {
                        break;
                    }
                }
                prop_assert_eq!(walk.reach(keys(), &weights, target), wanted);
                prop_assert_eq!(whole.reach_in_row(&x, &weights, target), wanted);
            }
        }
    }
}
