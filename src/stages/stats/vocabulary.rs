//! Which characters and words captions are made of, and which of them a tokenizer has.

use anyhow::Result;
use foldhash::HashMap;
use rayon::prelude::*;

use super::lengths::Unit;
use super::phrases::{Words, greatest, sum};
use crate::dataset::captions::CaptionRows;
use crate::text::Tokenizer;

/// A character or word, how often it occurs, and whether the tokenizer can say it (None without a tokenizer).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub text: String,
    pub count: u64,
    pub known: Option<bool>,
}

/// Characters and words, the most frequent first.
#[derive(Debug, Default)]
pub struct Vocabulary {
    pub chars: Vec<Entry>,
    pub words: Vec<Entry>,
}

/// How much of a vocabulary a tokenizer has.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Coverage {
    pub distinct: u64,
    pub occurrences: u64,
    pub known_distinct: Option<u64>,
    pub known_occurrences: Option<u64>,
}

impl Vocabulary {
    pub fn entries(&self, unit: Unit) -> &[Entry] {
        match unit {
            Unit::Char => &self.chars,
            Unit::Word => &self.words,
            Unit::Token => &[],
        }
    }

    pub fn coverage(&self, unit: Unit) -> Coverage {
        let entries = self.entries(unit);
        let is_known = entries.iter().any(|entry| entry.known.is_some());
        let known = || entries.iter().filter(|entry| entry.known == Some(true));
        Coverage {
            distinct: entries.len() as u64,
            occurrences: entries.iter().map(|entry| entry.count).sum(),
            known_distinct: is_known.then(|| known().count() as u64),
            known_occurrences: is_known.then(|| known().map(|entry| entry.count).sum()),
        }
    }
}

pub fn count(rows: &[CaptionRows], words: Option<&[Words]>, tokenizer: Option<&Tokenizer>) -> Result<Vocabulary> {
    let chars = chars(rows).into_iter().map(|(c, count)| (c.to_string(), count));
    let words = words.map(words_of).unwrap_or_default();
    Ok(Vocabulary { chars: entries(chars.collect(), tokenizer)?, words: entries(words, tokenizer)? })
}

/// Characters other than white space.
fn chars(rows: &[CaptionRows]) -> Vec<(char, u64)> {
    // Han characters lie in few pages of a dense table, which is quicker than hashing each.
    const DENSE: usize = 0x1_0000;
    let counts = rows
        .par_iter()
        .fold(
            || (vec![0u64; DENSE], HashMap::<char, u64>::default()),
            |(mut dense, mut rare), rows| {
                for c in rows.iter().flat_map(|row| row.caption.chars()).filter(|c| !c.is_whitespace()) {
                    match dense.get_mut(c as usize) {
                        Some(slot) => *slot += 1,
                        None => *rare.entry(c).or_default() += 1,
                    }
                }
                (dense, rare)
            },
        )
        .map(|(dense, mut rare)| {
            let common = dense.iter().zip(0u32..).filter(|(count, _)| **count > 0);
            rare.extend(common.filter_map(|(count, code)| Some((char::from_u32(code)?, *count))));
            rare
        });
    let counts = sum(counts);
    let all = counts.len();
    greatest(counts, all)
}

fn words_of(words: &[Words]) -> Vec<(String, u64)> {
    let counts = sum(words.par_iter().map(|words| {
        let mut counts: HashMap<&str, u64> = HashMap::default();
        for at in 0..words.len() {
            *counts.entry(words.word(at)).or_default() += 1;
        }
        counts
    }));
    let all = counts.len();
    greatest(counts, all).into_iter().map(|(word, count)| (word.to_string(), count)).collect()
}

fn entries(entries: Vec<(String, u64)>, tokenizer: Option<&Tokenizer>) -> Result<Vec<Entry>> {
    entries
        .into_par_iter()
        .map(|(text, count)| {
            let known = match tokenizer {
                Some(tokenizer) => Some(!tokenizer.encode(&text)?.iter().any(|&id| Some(id) == tokenizer.unk_id())),
                None => None,
            };
            Ok(Entry { text, count, known })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::phrases::segment;
    use super::*;

    #[test]
    fn coverage_counts_kinds_and_occurrences() {
        let rows = [CaptionRows::from_iter([("1", "狗狗 𠀀", "a"), ("2", "狗男人", "a")])];
        let words = segment(&rows);
        let tokenizer =
            Tokenizer::from_bytes("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n狗\n男\n".as_bytes(), Path::new("v"), true).unwrap();
        let vocabulary = count(&rows, Some(&words), Some(&tokenizer)).unwrap();
        let chars: Vec<_> = vocabulary.chars.iter().map(|e| (e.text.as_str(), e.count, e.known)).collect();
        assert_eq!(chars, [("狗", 3, Some(true)), ("人", 1, Some(false)), ("男", 1, Some(true)), ("𠀀", 1, Some(false))]);
        let coverage = vocabulary.coverage(Unit::Char);
        assert_eq!(
            (coverage.distinct, coverage.occurrences, coverage.known_distinct, coverage.known_occurrences),
            (4, 6, Some(2), Some(4))
        );
        assert_eq!(count(&rows, None, None).unwrap().coverage(Unit::Char).known_distinct, None);
    }
}
