use std::collections::{HashMap, HashSet};

use super::ngrams::{Key, NgramCounts, length_of};

/// How long and how varied a set of captions is, in tokens of one tokenization. Ratios are 0 where there is nothing to divide by.
#[derive(Debug, Clone, PartialEq)]
pub struct Diversity {
    /// Mean, shortest and longest length in tokens.
    pub mean_len: f64,
    pub min_len: usize,
    pub max_len: usize,
    /// Captions without a token.
    pub num_empty: usize,
    /// Distinct unigrams over all unigrams of the whole set.
    pub distinct_1: f64,
    /// Distinct bigrams over all bigrams of the whole set.
    pub distinct_2: f64,
    /// Share of captions that hold some 4-gram more than once.
    pub repeated_4gram_rate: f64,
    /// The commonest opening among captions long enough to have one.
    pub opening: Option<Opening>,
}

/// The first tokens that most captions share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    pub tokens: Vec<u32>,
    /// Captions that start with it.
    pub count: usize,
}

impl Diversity {
    /// An opening is the first `opening_len` tokens; of two equally common ones, the one met first counts.
    pub fn of<'a>(captions: impl IntoIterator<Item = &'a [u32]>, opening_len: usize) -> Self {
        let mut distinct: [HashSet<Key>; 2] = Default::default();
        let mut total = [0u64; 2];
        let mut openings: HashMap<&[u32], (usize, usize)> = HashMap::new();
        let (mut num_captions, mut num_empty, mut num_repeating) = (0usize, 0usize, 0usize);
        let (mut min_len, mut max_len) = (usize::MAX, 0);
        for caption in captions {
            let ngrams = NgramCounts::of(caption);
            for &(key, count) in &ngrams.counts {
                if let n @ 1..=2 = length_of(key) {
                    distinct[n - 1].insert(key);
                    total[n - 1] += u64::from(count);
                }
            }
            num_repeating += usize::from(ngrams.counts.iter().any(|&(key, count)| length_of(key) == 4 && count > 1));
            num_empty += usize::from(caption.is_empty());
            (min_len, max_len) = (min_len.min(caption.len()), max_len.max(caption.len()));
            if let Some(opening) = caption.get(..opening_len) {
                openings.entry(opening).or_insert((0, num_captions)).0 += 1;
            }
            num_captions += 1;
        }
        let ratio = |part: f64, whole: f64| if whole == 0.0 { 0.0 } else { part / whole };
        let most = openings.into_iter().max_by_key(|&(_, (count, first))| (count, std::cmp::Reverse(first)));
        Self {
            mean_len: ratio(total[0] as f64, num_captions as f64),
            min_len: if num_captions == 0 { 0 } else { min_len },
            max_len,
            num_empty,
            distinct_1: ratio(distinct[0].len() as f64, total[0] as f64),
            distinct_2: ratio(distinct[1].len() as f64, total[1] as f64),
            repeated_4gram_rate: ratio(num_repeating as f64, num_captions as f64),
            opening: most.map(|(tokens, (count, _))| Opening { tokens: tokens.to_vec(), count }),
        }
    }
}

/// Share of a caption's 4-grams that stood in it before: 0 where none repeats, near 1 in an endless loop.
pub fn repetition(caption: &[u32]) -> f64 {
    let ngrams = NgramCounts::of(caption);
    let fours = ngrams.counts.iter().filter(|&&(key, _)| length_of(key) == 4);
    let (distinct, total) = fours.fold((0u32, 0u32), |(distinct, total), &(_, count)| (distinct + 1, total + count));
    if total == 0 { 0.0 } else { f64::from(total - distinct) / f64::from(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_and_openings_are_found() {
        let captions: [&[u32]; 4] = [&[1, 2, 3, 4, 1, 2, 3, 4], &[1, 2, 3, 5], &[7], &[]];
        let found = Diversity::of(captions, 3);
        assert_eq!((found.min_len, found.max_len, found.num_empty), (0, 8, 1));
        assert!((found.mean_len - 13.0 / 4.0).abs() < 1e-12);
        assert!((found.distinct_1 - 6.0 / 13.0).abs() < 1e-12);
        assert!((found.distinct_2 - 5.0 / 10.0).abs() < 1e-12);
        assert!((found.repeated_4gram_rate - 0.25).abs() < 1e-12);
        assert_eq!(found.opening, Some(Opening { tokens: vec![1, 2, 3], count: 2 }));
    }

    #[test]
    fn repetition_grows_with_the_loop() {
        assert_eq!(repetition(&[]), 0.0);
        assert_eq!(repetition(&[1, 2, 1, 2, 1]), 0.0);
        assert_eq!(repetition(&[1, 2, 3, 4, 1, 2, 3, 4]), 0.2);
        assert_eq!(repetition(&[7; 13]), 0.9);
    }

    #[test]
    fn the_first_of_two_equal_openings_counts_and_nothing_is_not_a_fault() {
        let captions: [&[u32]; 2] = [&[8, 8], &[1, 1]];
        assert_eq!(Diversity::of(captions, 2).opening.unwrap().tokens, [8, 8]);
        let nothing = Diversity::of([], 2);
        assert_eq!((nothing.mean_len, nothing.min_len, nothing.opening), (0.0, 0, None));
    }
}
