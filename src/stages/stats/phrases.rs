//! Words, the most frequent openings, and runs of words that come again and again.

use foldhash::{HashMap, HashSet};
use rayon::prelude::*;

use crate::dataset::captions::CaptionRows;
use crate::text::segment::{Letters, word_tokens};

/// The words of a batch of captions: one text, the end of each word in it, and the end of each caption among the words.
#[derive(Debug, Default)]
pub struct Words {
    text: String,
    ends: Vec<u32>,
    captions: Vec<u32>,
}

impl Words {
    /// Spans of the words of a caption.
    pub fn of(&self, caption: usize) -> std::ops::Range<usize> {
        let start = caption.checked_sub(1).map_or(0, |before| self.captions[before] as usize);
        start..self.captions[caption] as usize
    }

    pub fn word(&self, at: usize) -> &str {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.text[start..self.ends[at] as usize]
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn captions(&self) -> usize {
        self.captions.len()
    }
}

/// Cuts every caption into words.
pub fn segment(rows: &[CaptionRows]) -> Vec<Words> {
    rows.par_iter()
        .map(|rows| {
            let mut words = Words::default();
            for row in rows.iter() {
                for word in word_tokens(row.caption, Letters::Every) {
                    words.text.push_str(&word);
                    words.ends.push(words.text.len() as u32);
                }
                words.captions.push(words.ends.len() as u32);
            }
            words
        })
        .collect()
}

/// The most frequent of something, most frequent first, equals by text.
pub type Top = Vec<(String, u64)>;

/// What comes often.
#[derive(Debug, Default)]
pub struct Phrases {
    /// The first N characters of captions, by N.
    pub openings: Vec<(usize, Top)>,
    /// Runs of N words, by N; empty where words were not counted.
    pub ngrams: Vec<(usize, Top)>,
}

const OPENING_CHARS: [usize; 2] = [2, 4];
const NGRAM_WORDS: [usize; 3] = [2, 3, 4];

pub fn count(rows: &[CaptionRows], words: Option<&[Words]>, top: usize) -> Phrases {
    let openings = OPENING_CHARS.iter().map(|&n| (n, openings(rows, n, top))).collect();
    let ngrams = words.map(|words| ngrams(words, top)).unwrap_or_default();
    Phrases { openings, ngrams }
}

/// Adds the counts of parts up.
pub fn sum<K: std::hash::Hash + Eq + Send>(parts: impl ParallelIterator<Item = HashMap<K, u64>>) -> HashMap<K, u64> {
    parts.reduce(HashMap::default, |a, b| {
        let (mut into, from) = if a.len() >= b.len() { (a, b) } else { (b, a) };
        for (key, count) in from {
            *into.entry(key).or_default() += count;
        }
        into
    })
}

/// The greatest counts, equals by key.
pub fn greatest<K: Ord>(counts: impl IntoIterator<Item = (K, u64)>, top: usize) -> Vec<(K, u64)> {
    let mut all: Vec<(K, u64)> = counts.into_iter().collect();
    let order = |a: &(K, u64), b: &(K, u64)| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0));
    if all.len() > top && top > 0 {
        all.select_nth_unstable_by(top - 1, order);
    }
    all.truncate(top);
    all.sort_by(order);
    all
}

fn openings(rows: &[CaptionRows], n: usize, top: usize) -> Top {
    let counts = sum(rows.par_iter().map(|rows| {
        let mut counts: HashMap<&str, u64> = HashMap::default();
        for row in rows.iter() {
            if let Some((end, last)) = row.caption.char_indices().nth(n - 1) {
                *counts.entry(&row.caption[..end + last.len_utf8()]).or_default() += 1;
            }
        }
        counts
    }));
    greatest(counts, top).into_iter().map(|(text, count)| (text.to_string(), count)).collect()
}

fn ngrams(words: &[Words], top: usize) -> Vec<(usize, Top)> {
    // Words as numbers in the order of their texts, so that equals sort by text.
    let mut vocabulary: Vec<&str> = words
        .par_iter()
        .map(|words| (0..words.len()).map(|at| words.word(at)).collect::<HashSet<&str>>())
        .reduce(Default::default, |a, b| {
            if a.len() >= b.len() { a.into_iter().chain(b).collect() } else { b.into_iter().chain(a).collect() }
        })
        .into_iter()
        .collect();
    vocabulary.par_sort_unstable();
    let number: HashMap<&str, u32> = vocabulary.iter().enumerate().map(|(at, word)| (*word, at as u32)).collect();
    let numbers: Vec<Vec<u32>> =
        words.par_iter().map(|words| (0..words.len()).map(|at| number[words.word(at)]).collect()).collect();
    NGRAM_WORDS
        .iter()
        .map(|&n| {
            let counts = sum(words.par_iter().zip(&numbers).map(|(words, numbers)| {
                let mut counts: HashMap<u128, u64> = HashMap::default();
                for caption in 0..words.captions() {
                    for run in numbers[words.of(caption)].windows(n) {
                        let key = run.iter().fold(0, |key, &word| key << 32 | u128::from(word));
                        *counts.entry(key).or_default() += 1;
                    }
                }
                counts
            }));
            let repeated = counts.into_iter().filter(|(_, count)| *count > 1);
            let text = |key: u128| {
                let run: Vec<&str> = (0..n).rev().map(|at| vocabulary[(key >> (32 * at)) as u32 as usize]).collect();
                run.join(" ")
            };
            (n, greatest(repeated, top).into_iter().map(|(key, count)| (text(key), count)).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_and_runs_of_words() {
        let captions = ["一个男人在跑步", "一个男人在骑车", "一个女人在跑步", "狗"];
        let rows = [
            CaptionRows::from_iter(captions[..2].iter().map(|c| ("1", *c, "a"))),
            CaptionRows::from_iter(captions[2..].iter().map(|c| ("2", *c, "a"))),
        ];
        let words = segment(&rows);
        assert_eq!((words[0].captions(), words[0].word(0)), (2, "一个"));
        let phrases = count(&rows, Some(&words), 3);
        assert_eq!(phrases.openings[0], (2, vec![("一个".to_string(), 3)]));
        assert_eq!(phrases.openings[1].1[0], ("一个男人".to_string(), 2));
        let pairs = &phrases.ngrams[0].1;
        assert_eq!(pairs[0], ("一个 男人".to_string(), 2));
        assert!(pairs.iter().all(|(_, count)| *count > 1));
    }

    #[test]
    fn the_greatest_and_equals_by_text() {
        let counts = [("c", 1), ("b", 2), ("a", 2), ("d", 9)];
        assert_eq!(greatest(counts, 3), [("d", 9), ("a", 2), ("b", 2)]);
        assert_eq!(greatest(counts, 9).len(), 4);
        assert!(greatest(counts, 0).is_empty());
    }
}
