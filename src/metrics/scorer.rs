use std::borrow::Cow;

use super::bleu::BleuCounts;
use super::cider::{DocumentFrequencies, cider};
use super::ngrams::NgramCounts;
use super::rouge::rouge_l;

/// The metrics of a [`Summary`], in its order.
pub const METRIC_NAMES: [&str; 6] = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"];

/// Scores of one candidate for one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageScores {
    pub bleu: BleuCounts,
    pub rouge_l: f64,
    pub cider: f64,
}

/// Corpus scores, raw: 1.0 is 100% (CIDEr goes to 10).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub bleu: [f64; 4],
    pub rouge_l: f64,
    pub cider: f64,
}

impl Summary {
    /// Corpus BLEU, mean ROUGE-L and mean CIDEr, summed in the order given. All 0 for no image.
    pub fn of<'a>(images: impl IntoIterator<Item = &'a ImageScores>) -> Self {
        let (mut bleu, mut rouge, mut cider, mut count) = (BleuCounts::default(), 0.0, 0.0, 0u64);
        for image in images {
            bleu += image.bleu;
            rouge += image.rouge_l;
            cider += image.cider;
            count += 1;
        }
        let divisor = count.max(1) as f64;
        Self { bleu: bleu.scores(), rouge_l: rouge / divisor, cider: cider / divisor }
    }

    /// The six values, named by [`METRIC_NAMES`].
    pub fn values(&self) -> [f64; 6] {
        let [b1, b2, b3, b4] = self.bleu;
        [b1, b2, b3, b4, self.rouge_l, self.cider]
    }
}

/// Scores candidates against the references of a set of images.
pub struct Scorer<'a> {
    references: Cow<'a, [Vec<Vec<u32>>]>,
    frequencies: DocumentFrequencies,
}

impl<'a> Scorer<'a> {
    /// `references[image]` are the token sequences of an image's references, at least one an image. CIDEr's document frequencies are
    /// those of all images given.
    pub fn new(references: &'a [Vec<Vec<u32>>]) -> Self {
        Self { references: references.into(), frequencies: DocumentFrequencies::of(references) }
    }

    /// The same, keeping the references.
    pub fn owning(references: Vec<Vec<Vec<u32>>>) -> Scorer<'static> {
        let frequencies = DocumentFrequencies::of(&references);
        Scorer { references: references.into(), frequencies }
    }

    /// CIDEr alone of the candidates of one image.
    pub fn ciders(&self, image: usize, candidates: &[Vec<u32>]) -> Vec<f64> {
        let weights = |tokens: &Vec<u32>| self.frequencies.weights(&NgramCounts::of(tokens));
        let references: Vec<_> = self.references[image].iter().map(weights).collect();
        candidates.iter().map(|candidate| cider(&weights(candidate), &references)).collect()
    }

    /// Scores the candidates of one image.
    pub fn score(&self, image: usize, candidates: &[Vec<u32>]) -> Vec<ImageScores> {
        let references = &self.references[image];
        let ngrams: Vec<NgramCounts> = references.iter().map(|r| NgramCounts::of(r)).collect();
        let weights: Vec<_> = ngrams.iter().map(|ngrams| self.frequencies.weights(ngrams)).collect();
        let score = |candidate: &Vec<u32>| {
            let counts = NgramCounts::of(candidate);
            ImageScores {
                bleu: BleuCounts::of(&counts, &ngrams),
                rouge_l: rouge_l(candidate, references),
                cider: cider(&self.frequencies.weights(&counts), &weights),
            }
        };
        candidates.iter().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;
    use serde_json::Value;

    use std::path::{Path, PathBuf};

    use super::*;
    use crate::metrics::Interner;

    /// The golden README's tokenization: one token a Han character, one a run of ASCII letters and digits.
    fn tokens(text: &str) -> Vec<String> {
        let lower = text.to_ascii_lowercase();
        let mut tokens: Vec<String> = Vec::new();
        let mut in_run = false;
        for c in lower.chars() {
            let latin = c.is_ascii_alphanumeric();
            match tokens.last_mut() {
                Some(last) if latin && in_run => last.push(c),
                _ if latin || ('\u{4e00}'..='\u{9fff}').contains(&c) => tokens.push(c.into()),
                _ => {}
            }
            in_run = latin;
        }
        tokens
    }

    #[test]
    fn cider_alone_is_the_same() {
        let references = vec![vec![vec![1, 2, 3, 4], vec![1, 2]], vec![vec![5, 6, 7]]];
        let candidates = [vec![1, 2, 3], vec![9, 9], vec![]];
        let wanted: Vec<f64> = Scorer::new(&references).score(0, &candidates).iter().map(|scores| scores.cider).collect();
        assert_eq!(Scorer::owning(references).ciders(0, &candidates), wanted);
        assert!(wanted[0] > 0.0 && wanted[1] == 0.0);
    }

    #[test]
    fn golden_scores_are_reached() {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/answers/metrics.json");
        [Some(own), crate::testing::shared("golden/metrics.expected.json")].into_iter().flatten().for_each(reaches);
    }

    fn reaches(path: PathBuf) {
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut interner = Interner::default();
        let (mut ids, mut references, mut candidates) = (Vec::new(), Vec::new(), Vec::new());
        for (id, texts) in golden["references"].as_object().unwrap() {
            let texts = texts.as_array().unwrap();
            references.push(texts.iter().map(|t| interner.ids(tokens(t.as_str().unwrap()))).collect::<Vec<_>>());
            candidates.push(vec![interner.ids(tokens(golden["predictions"][id].as_str().unwrap()))]);
            ids.push(id.clone());
        }
        let scores: Vec<ImageScores> = score_all(&Scorer::new(&references), &candidates).into_iter().flatten().collect();
        for (name, value) in METRIC_NAMES.iter().zip(Summary::of(&scores).values()) {
            let expected = golden["expected"][name].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-9, "{name}: {value} and not {expected}");
        }
        for (id, score) in ids.iter().zip(&scores) {
            let expected = &golden["per_image"][id];
            assert!((score.rouge_l - expected["rouge_l"].as_f64().unwrap()).abs() < 1e-9, "{id}");
            assert!((score.cider - expected["cider"].as_f64().unwrap()).abs() < 1e-9, "{id}");
        }
    }

    fn score_all(scorer: &Scorer, candidates: &[Vec<Vec<u32>>]) -> Vec<Vec<ImageScores>> {
        candidates.par_iter().enumerate().map(|(image, candidates)| scorer.score(image, candidates)).collect()
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let sequence = |seed: u32, len: u32| (0..len).map(|i| (seed * 31 + i * i) % 17).collect::<Vec<u32>>();
        let references: Vec<Vec<Vec<u32>>> = (0..300).map(|i| vec![sequence(i, 9), sequence(i + 5, 12)]).collect();
        let candidates: Vec<Vec<Vec<u32>>> = (0..300).map(|i| vec![sequence(i + 2, 10), sequence(i, 8)]).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| score_all(&Scorer::new(&references), &candidates))
        };
        assert_eq!(run(1), run(4));
    }
}
