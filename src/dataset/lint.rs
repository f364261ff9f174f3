//! Marks on captions that deserve a look. Marks only: nothing is deleted.

use std::collections::HashSet;

use rayon::prelude::*;

use super::normalize::is_han;

/// What lint has to say of one caption.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lint {
    /// Far shorter or longer than the others: beyond three times the interquartile range outside the quartiles.
    pub length_outlier: bool,
    /// A sequence of four characters occurs twice, or one of up to three follows itself three times.
    pub repeated_ngram: bool,
    /// Two Latin letters or more in a row.
    pub residual_latin: bool,
    pub no_chinese: bool,
    /// The same caption stands earlier at the same image.
    pub duplicate: bool,
}

/// The lint columns of the captions table, in order.
pub const LINT_COLUMNS: [&str; 5] =
    ["lint_length_outlier", "lint_repeated_ngram", "lint_residual_latin", "lint_no_chinese", "lint_duplicate"];

impl Lint {
    pub fn values(self) -> [bool; 5] {
        [self.length_outlier, self.repeated_ngram, self.residual_latin, self.no_chinese, self.duplicate]
    }
}

/// Lint of every caption; `same_image(i)` says whether caption `i` is of the same image as caption `i - 1`.
pub fn lint(captions: &[&str], same_image: impl Fn(usize) -> bool) -> Vec<Lint> {
    let lengths: Vec<usize> = captions.par_iter().map(|caption| caption.chars().count()).collect();
    let outliers = Outliers::of(&lengths);
    let mut marks: Vec<Lint> = captions
        .par_iter()
        .zip(&lengths)
        .map(|(caption, &length)| Lint {
            length_outlier: outliers.is_outside(length),
            repeated_ngram: repeats(caption),
            residual_latin: has_latin_word(caption),
            no_chinese: !caption.chars().any(is_han),
            duplicate: false,
        })
        .collect();
    let mut seen: HashSet<&str> = HashSet::new();
    for (at, caption) in captions.iter().enumerate() {
        if at == 0 || !same_image(at) {
            seen.clear();
        }
        marks[at].duplicate = !seen.insert(caption);
    }
    marks
}

struct Outliers {
    low: f64,
    high: f64,
}

impl Outliers {
    fn of(lengths: &[usize]) -> Self {
        let mut sorted = lengths.to_vec();
        sorted.par_sort_unstable();
        let at =
            |share: f64| sorted.get(((sorted.len().max(1) - 1) as f64 * share).round() as usize).copied().unwrap_or(0) as f64;
        let (q1, q3) = (at(0.25), at(0.75));
        // Lengths that are all alike would make every other one an outlier: a range of one character at least.
        let reach = 3.0 * (q3 - q1).max(1.0);
        Self { low: q1 - reach, high: q3 + reach }
    }

    fn is_outside(&self, length: usize) -> bool {
        (length as f64) < self.low || (length as f64) > self.high
    }
}

fn repeats(caption: &str) -> bool {
    let chars: Vec<char> = caption.chars().collect();
    let turns =
        (1..=3).any(|n| chars.windows(n * 3).any(|w| !w[0].is_ascii_digit() && w[..n] == w[n..2 * n] && w[..n] == w[2 * n..]));
    let mut seen = HashSet::new();
    // Latin words and numbers repeat their letters without being a loop.
    turns || chars.windows(4).filter(|w| w.iter().any(|&c| is_han(c))).any(|w| !seen.insert(w))
}

fn has_latin_word(caption: &str) -> bool {
    caption.as_bytes().windows(2).any(|w| w.iter().all(u8::is_ascii_alphabetic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(captions: &[&str]) -> Vec<Lint> {
        lint(captions, |at| at % 2 == 1)
    }

    #[test]
    fn each_mark_for_what_it_means() {
        let long = "很".repeat(9) + "长";
        let texts = [
            "一只狗在草地上跑",
            "一只狗在草地上跑",
            "一只狗在草地上跑",
            "穿着T恤的人",
            "a dog runs",
            "穿着Nike的人",
            "一个人在跑一个人在跑",
            &long,
        ];
        let marks = marks(&texts);
        assert_eq!(
            marks.iter().map(|m| m.duplicate).collect::<Vec<_>>(),
            [false, true, false, false, false, false, false, false]
        );
        let which = |f: fn(&Lint) -> bool| marks.iter().enumerate().filter(|(_, m)| f(m)).map(|(i, _)| i).collect::<Vec<_>>();
        assert_eq!(which(|m| m.residual_latin), [4, 5]);
        assert_eq!(which(|m| m.no_chinese), [4]);
        assert_eq!(which(|m| m.repeated_ngram), [6, 7]);
    }

    #[test]
    fn outliers_lie_far_out() {
        let mut texts: Vec<String> = (8..20).map(|n| (0..n).map(|i| char::from_u32(0x4e00 + i * 7).unwrap()).collect()).collect();
        texts.push((0..200).map(|i| char::from_u32(0x4e00 + i).unwrap()).collect());
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let found: Vec<bool> = lint(&texts, |_| false).iter().map(|m| m.length_outlier).collect();
        assert_eq!(found.iter().filter(|&&x| x).count(), 1);
        assert!(found[12]);
        assert!(lint(&[], |_| false).is_empty());
    }
}
