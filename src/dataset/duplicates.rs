//! The same image twice: by content, and nearly, by a perceptual hash. What matters is a pair that straddles splits.

use std::collections::{BTreeMap, BTreeSet};

/// Two images that are (nearly) the same: indices into the list given, the lower first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    pub first: usize,
    pub second: usize,
    /// Bits of the perceptual hash that differ; 0 for equal content.
    pub distance: u32,
}

/// Every image whose key was met before, paired with the first that has it.
pub fn exact<K: Ord>(keys: impl IntoIterator<Item = Option<K>>) -> Vec<Pair> {
    let mut first: BTreeMap<K, usize> = BTreeMap::new();
    let mut pairs = Vec::new();
    for (at, key) in keys.into_iter().enumerate() {
        let Some(key) = key else { continue };
        match first.get(&key) {
            Some(&one) => pairs.push(Pair { first: one, second: at, distance: 0 }),
            None => drop(first.insert(key, at)),
        }
    }
    pairs.sort();
    pairs
}

/// Pairs of 64-bit hashes at most `distance` bits apart. Images with equal hashes pair with the first of them only, so that a
/// thousand black images are a thousand pairs and not a million.
///
/// Hashes so near share one of `distance + 1` pieces, so only those that share a piece are compared.
pub fn near(hashes: &[Option<u64>], distance: u32) -> Vec<Pair> {
    let mut first: BTreeMap<u64, usize> = BTreeMap::new();
    let mut pairs = BTreeSet::new();
    for (at, hash) in hashes.iter().enumerate() {
        let Some(hash) = *hash else { continue };
        match first.get(&hash) {
            Some(&one) => drop(pairs.insert(Pair { first: one, second: at, distance: 0 })),
            None => drop(first.insert(hash, at)),
        }
    }
    let distinct: Vec<(u64, usize)> = first.into_iter().collect();
    let pieces = (distance + 1).min(64);
    for piece in 0..pieces {
        let (from, to) = (64 * piece / pieces, 64 * (piece + 1) / pieces);
        let mask = (u64::MAX >> (64 - (to - from))) << from;
        let mut sorted = distinct.clone();
        sorted.sort_unstable_by_key(|(hash, at)| (hash & mask, *at));
        for group in sorted.chunk_by(|a, b| a.0 & mask == b.0 & mask) {
            for (i, a) in group.iter().enumerate() {
                for b in &group[i + 1..] {
                    let apart = (a.0 ^ b.0).count_ones();
                    if apart <= distance {
                        pairs.insert(Pair { first: a.1.min(b.1), second: a.1.max(b.1), distance: apart });
                    }
                }
            }
        }
    }
    pairs.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_content_pairs_with_its_first() {
        let pairs = exact([Some("a"), None, Some("b"), Some("a"), Some("a"), None]);
        assert_eq!(pairs.iter().map(|p| (p.first, p.second)).collect::<Vec<_>>(), [(0, 3), (0, 4)]);
    }

    proptest! {
        #[test]
        fn near_pairs_are_those_of_comparing_all(bases in proptest::collection::vec(any::<u64>(), 1..6),
            flips in proptest::collection::vec((0usize..6, 0u32..64, 0u32..64, 0u32..64), 0..30), distance in 0u32..7) {
            let mut hashes = bases.clone();
            hashes.extend(flips.iter().map(|(b, i, j, k)| bases[b % bases.len()] ^ (1 << i) ^ (1 << j) ^ (1 << k)));
            hashes.sort_unstable();
            hashes.dedup();
            let mut expected = Vec::new();
            for i in 0..hashes.len() {
                for j in i + 1..hashes.len() {
                    let apart = (hashes[i] ^ hashes[j]).count_ones();
                    if apart <= distance {
                        expected.push(Pair { first: i, second: j, distance: apart });
                    }
                }
            }
            expected.sort();
            let given: Vec<Option<u64>> = hashes.iter().copied().map(Some).collect();
            prop_assert_eq!(near(&given, distance), expected);
        }
    }
}
