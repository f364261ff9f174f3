use std::ops::{Add, AddAssign};

use super::ngrams::{Key, MAX_N, NgramCounts, for_each_shared, length_of};

/// What BLEU needs of one image; corpus BLEU is made of the sum over images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BleuCounts {
    /// N-grams of the candidate that references have too, each at most as often as in one reference.
    pub correct: [u64; MAX_N],
    /// N-grams of the candidate.
    pub guess: [u64; MAX_N],
    pub candidate_len: u64,
    /// Length of the reference closest to the candidate's; the shorter of two equally close.
    pub reference_len: u64,
}

impl BleuCounts {
    pub(super) fn of(candidate: &NgramCounts, references: &[NgramCounts]) -> Self {
        let len = candidate.num_tokens;
        let closest = references.iter().map(|r| (r.num_tokens.abs_diff(len), r.num_tokens)).min();
        let mut most = vec![0u32; candidate.counts.len()];
        let indexed: Vec<(Key, usize)> = candidate.counts.iter().zip(0..).map(|(&(key, _), index)| (key, index)).collect();
        for reference in references {
            for_each_shared(&indexed, &reference.counts, |_, index, count| most[index] = most[index].max(count));
        }
        let mut correct = [0; MAX_N];
        for (&(key, count), &allowed) in candidate.counts.iter().zip(&most) {
            correct[length_of(key) - 1] += u64::from(count.min(allowed));
        }
        let guess = std::array::from_fn(|k| len.saturating_sub(k) as u64);
        Self { correct, guess, candidate_len: len as u64, reference_len: closest.map_or(0, |(_, len)| len as u64) }
    }

    /// BLEU-1 to BLEU-4, with pycocoevalcap's smoothing constants.
    pub fn scores(&self) -> [f64; MAX_N] {
        const SMALL: f64 = 1e-9;
        const TINY: f64 = 1e-15;
        let ratio = (self.candidate_len as f64 + TINY) / (self.reference_len as f64 + SMALL);
        let brevity = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        std::array::from_fn(|k| {
            product *= (self.correct[k] as f64 + TINY) / (self.guess[k] as f64 + SMALL);
            product.powf(1.0 / (k + 1) as f64) * brevity
        })
    }
}

impl Add for BleuCounts {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        for k in 0..MAX_N {
            self.correct[k] += other.correct[k];
            self.guess[k] += other.guess[k];
        }
        self.candidate_len += other.candidate_len;
        self.reference_len += other.reference_len;
        self
    }
}

impl AddAssign for BleuCounts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(candidate: &[u32], references: &[&[u32]]) -> BleuCounts {
        let references: Vec<_> = references.iter().map(|r| NgramCounts::of(r)).collect();
        BleuCounts::of(&NgramCounts::of(candidate), &references)
    }

    #[test]
    fn repeats_count_as_often_as_one_reference_has_them() {
        // Papineni's example: "the the the the" may score two "the" at most.
        let found = counts(&[1, 1, 1, 1], &[&[1, 2, 1, 3], &[1, 5]]);
        assert_eq!(found.correct, [2, 0, 0, 0]);
        assert_eq!(found.guess, [4, 3, 2, 1]);
    }

    #[test]
    fn the_closest_reference_sets_the_length_and_the_shorter_wins_a_tie() {
        assert_eq!(counts(&[1, 2, 3], &[&[1, 2, 3, 4], &[1, 2], &[9; 9]]).reference_len, 2);
        assert_eq!(counts(&[], &[&[1, 2]]).reference_len, 2);
    }

    #[test]
    fn a_perfect_caption_scores_one_and_an_empty_one_nothing() {
        let perfect = counts(&[1, 2, 3, 4, 5], &[&[1, 2, 3, 4, 5]]).scores();
        assert!(perfect.iter().all(|score| (score - 1.0).abs() < 1e-8), "{perfect:?}");
        let empty = counts(&[], &[&[1, 2]]).scores();
        assert!(empty.iter().all(|score| *score < 1e-12), "{empty:?}");
    }
}
