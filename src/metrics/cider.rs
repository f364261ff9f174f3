use std::hash::Hasher;

use rayon::prelude::*;

use super::ngrams::{Key, KeyHasher, KeyMap, MAX_N, NgramCounts, for_each_shared, length_of, ngrams_of};

/// Width, in tokens, of the penalty for a length that differs from the reference's.
const SIGMA: f64 = 6.0;

/// CIDEr's view of the whole set: in how many images' references an n-gram occurs.
pub(super) struct DocumentFrequencies {
    log_num_images: f64,
    /// Logarithms of the frequencies above 1, in [`SHARDS`]. What is rarer, or unknown, counts as occurring once, and its logarithm is 0.
    log_frequencies: Vec<KeyMap<f64>>,
}

/// TF-IDF weights of one sequence, sorted by key, and their Euclidean norm for each length of n-gram.
pub(super) struct Weights {
    weights: Vec<(Key, f64)>,
    norms: [f64; MAX_N],
    num_bigrams: f64,
}

impl DocumentFrequencies {
    /// Counts over the references of all images.
    pub fn of(references: &[Vec<Vec<u32>>]) -> Self {
        // Pieces bound what is held besides the counts.
        const PIECE: usize = 1024;
        let mut frequencies: Vec<KeyMap<u32>> = vec![KeyMap::default(); SHARDS];
        for piece in references.chunks(PIECE) {
            let keys: Vec<Vec<Vec<Key>>> = piece.par_chunks(PIECE / 16).map(distinct_keys).collect();
            frequencies.par_iter_mut().enumerate().for_each(|(shard, frequencies)| {
                keys.iter().flat_map(|keys| &keys[shard]).for_each(|key| *frequencies.entry(*key).or_default() += 1);
            });
        }
        let logarithms = |frequencies: KeyMap<u32>| -> KeyMap<f64> {
            let repeated = frequencies.into_iter().filter(|(_, frequency)| *frequency > 1);
            repeated.map(|(key, frequency)| (key, f64::from(frequency).ln())).collect()
        };
        let log_frequencies = frequencies.into_par_iter().map(logarithms).collect();
        Self { log_num_images: (references.len().max(1) as f64).ln(), log_frequencies }
    }

    pub fn weights(&self, ngrams: &NgramCounts) -> Weights {
        let mut squares = [0.0; MAX_N];
        let weigh = |&(key, count): &(Key, u32)| {
            let log_frequency = self.log_frequencies[shard_of(key)].get(&key).copied().unwrap_or(0.0);
            let weight = f64::from(count) * (self.log_num_images - log_frequency);
            squares[length_of(key) - 1] += weight * weight;
            (key, weight)
        };
        let weights = ngrams.counts.iter().map(weigh).collect();
        // pycocoevalcap takes the number of bigrams for the length.
        Weights { weights, norms: squares.map(f64::sqrt), num_bigrams: ngrams.num_tokens.saturating_sub(1) as f64 }
    }
}

/// CIDEr of one candidate; `references` must not be none at all.
pub(super) fn cider(candidate: &Weights, references: &[Weights]) -> f64 {
    let total: f64 = references.iter().map(|reference| similarity(candidate, reference)).sum();
    total / MAX_N as f64 / references.len() as f64 * 10.0
}

/// Sum over n-gram lengths of the clipped cosine, shrunk where the lengths differ.
fn similarity(candidate: &Weights, reference: &Weights) -> f64 {
    let mut products = [0.0; MAX_N];
    for_each_shared(&candidate.weights, &reference.weights, |key, c, r| products[length_of(key) - 1] += c.min(r) * r);
    let delta = candidate.num_bigrams - reference.num_bigrams;
    let penalty = (-(delta * delta) / (2.0 * SIGMA * SIGMA)).exp();
    let cosine = |n: usize| {
        let norms = candidate.norms[n] * reference.norms[n];
        if norms == 0.0 { 0.0 } else { products[n] / norms }
    };
    (0..MAX_N).map(cosine).sum::<f64>() * penalty
}

/// Maps that frequencies are in, each filled by one thread. Small ones stay in a processor's cache while they are.
const SHARDS: usize = 32;

/// By the bits that a map does not look at first.
fn shard_of(key: Key) -> usize {
    let mut hasher = KeyHasher::default();
    hasher.write_u128(key);
    (hasher.finish() >> 40) as usize % SHARDS
}

/// The n-grams of each image, once each, by shard.
fn distinct_keys(images: &[Vec<Vec<u32>>]) -> Vec<Vec<Key>> {
    let mut shards = vec![Vec::new(); SHARDS];
    let mut keys: Vec<Key> = Vec::new();
    for references in images {
        keys.clear();
        references.iter().for_each(|reference| ngrams_of(reference, &mut keys));
        keys.sort_unstable();
        keys.dedup();
        keys.iter().for_each(|&key| shards[shard_of(key)].push(key));
    }
    shards
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(all: &[Vec<Vec<u32>>], image: usize, candidate: &[u32]) -> f64 {
        let frequencies = DocumentFrequencies::of(all);
        let references: Vec<_> = all[image].iter().map(|r| frequencies.weights(&NgramCounts::of(r))).collect();
        cider(&frequencies.weights(&NgramCounts::of(candidate)), &references)
    }

    #[test]
    fn the_reference_itself_scores_ten_and_common_words_are_worth_nothing() {
        let all = vec![vec![vec![1, 2, 3, 4, 5]], vec![vec![1, 6, 7, 8, 9]]];
        assert!((score(&all, 0, &[1, 2, 3, 4, 5]) - 10.0).abs() < 1e-9);
        assert_eq!(score(&all, 0, &[1]), 0.0);
        assert_eq!(score(&all, 0, &[6, 7, 8, 9]), 0.0);
        assert_eq!(score(&all, 0, &[]), 0.0);
    }

    #[test]
    fn one_image_alone_has_no_frequencies_to_weigh_by() {
        assert_eq!(score(&[vec![vec![1, 2, 3]]], 0, &[1, 2, 3]), 0.0);
    }

    #[test]
    fn a_length_off_by_more_costs_more() {
        let all = vec![vec![vec![1, 2, 3, 4]], vec![vec![9]]];
        let (near, far) = (score(&all, 0, &[1, 2, 3, 4, 1]), score(&all, 0, &[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]));
        assert!(near > far && far > 0.0, "{near} {far}");
    }
}
