//! Lengths, repetition and scores, caption by caption and over a whole table.

use rayon::prelude::*;

use super::images::{Figures, Image};
use crate::dataset::distribution::Distribution;
use crate::metrics::{Comparison, Diversity, ImageScores, Interner, Scorer, Summary, compare, repetition};
use crate::stages::evaluate::levels::tokenize;
use crate::stages::evaluate::{COMPARE_ROUNDS, Letters, Level};

/// What is said of all captions together.
pub struct Measured {
    pub level: Level,
    pub tables: Vec<TableFigures>,
    /// Images that have references and captions from every table.
    pub num_scored: usize,
    /// Every later table against the first, where they are scored.
    pub comparisons: Vec<Option<Comparison>>,
}

/// One table's figures.
pub struct TableFigures {
    pub num_images: usize,
    pub num_captions: usize,
    /// Tokens of every caption.
    pub lengths: Distribution,
    /// Of first captions.
    pub diversity: Diversity,
    /// Corpus scores of first captions.
    pub summary: Option<Summary>,
    /// CIDEr of first captions, image by image.
    pub ciders: Vec<f64>,
}

/// Tokens that make an opening; it is not shown here.
const OPENING_LEN: usize = 4;

/// Fills in the figures of every caption. Scores are those of `evaluate` on the same images: CIDEr's document frequencies come from the
/// images that are scored.
pub fn measure(images: &mut [Image], num_tables: usize, level: Level, letters: Letters) -> Measured {
    let mut interner = Interner::default();
    let scored: Vec<usize> = (0..images.len()).filter(|&at| images[at].is_scored()).collect();
    let mut all_references = tokenize(level, letters, images, |image: &Image| image.references.as_slice(), &mut interner);
    let references: Vec<_> = scored.iter().map(|&at| std::mem::take(&mut all_references[at])).collect();
    let scorer = Scorer::new(&references);
    let mut first_scores: Vec<Vec<ImageScores>> = Vec::new();
    let mut tables = Vec::new();
    for table in 0..num_tables {
        let tokens = tokenize(level, letters, images, |image: &Image| image.tables[table].captions.as_slice(), &mut interner);
        images.par_iter_mut().zip(&tokens).for_each(|(image, captions)| {
            let figures = |tokens: &Vec<u32>| Figures { length: tokens.len(), repetition: repetition(tokens), scores: None };
            image.tables[table].figures = captions.iter().map(figures).collect();
        });
        let scores: Vec<Vec<ImageScores>> =
            scored.par_iter().enumerate().map(|(number, &at)| scorer.score(number, &tokens[at])).collect();
        for (&at, scores) in scored.iter().zip(&scores) {
            for (figures, scores) in images[at].tables[table].figures.iter_mut().zip(scores) {
                figures.scores = Some([scores.cider, scores.rouge_l]);
            }
        }
        let firsts: Vec<ImageScores> = scores.iter().map(|scores| scores[0]).collect();
        tables.push(TableFigures {
            num_images: tokens.iter().filter(|captions| !captions.is_empty()).count(),
            num_captions: tokens.iter().map(Vec::len).sum(),
            lengths: tokens.iter().flatten().map(Vec::len).collect(),
            diversity: Diversity::of(tokens.iter().filter_map(|captions| captions.first()).map(Vec::as_slice), OPENING_LEN),
            summary: (!scored.is_empty()).then(|| Summary::of(&firsts)),
            ciders: firsts.iter().map(|scores| scores.cider).collect(),
        });
        first_scores.push(firsts);
    }
    let comparisons = match first_scores.split_first() {
        Some((first, later)) => later.iter().map(|scores| compare(first, scores, COMPARE_ROUNDS, 0)).collect(),
        None => vec![],
    };
    Measured { level, tables, num_scored: scored.len(), comparisons }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::evaluate::captions::Details;
    use crate::stages::report::images::TableCaptions;

    fn image(id: &str, captions: &[&[&str]], references: &[&str]) -> Image {
        let table = |captions: &&[&str]| TableCaptions {
            captions: captions.iter().map(|c| c.to_string()).collect(),
            details: vec![Details::default(); captions.len()],
            figures: Vec::new(),
        };
        Image {
            id: id.into(),
            tables: captions.iter().map(table).collect(),
            references: references.iter().map(|r| r.to_string()).collect(),
            ..Image::default()
        }
    }

    #[test]
    fn every_caption_is_measured_and_scored_images_are_scored() {
        let mut images = [
            image("a", &[&["一只黑狗在跑", "黑狗"]], &["一只黑狗在跑"]),
            image("b", &[&["红的红的红的红的"]], &["两个男人在下棋"]),
            image("c", &[&["猫"]], &[]),
        ];
        let measured = measure(&mut images, 1, Level::Char, Letters::default());
        assert_eq!((measured.num_scored, measured.tables[0].num_images, measured.tables[0].num_captions), (2, 3, 4));
        let figures: Vec<&Figures> = images.iter().flat_map(|image| &image.tables[0].figures).collect();
        assert_eq!(figures.iter().map(|f| f.length).collect::<Vec<_>>(), [6, 2, 8, 1]);
        assert_eq!(figures[0].scores.unwrap()[1], 1.0);
        assert!(figures[1].scores.unwrap()[1] < 1.0 && figures[3].scores.is_none());
        assert!((figures[2].repetition - 0.6).abs() < 1e-12 && images[1].repetition() > 0.5 && images[0].repetition() == 0.0);
        let summary = measured.tables[0].summary.unwrap();
        assert!((summary.rouge_l - 0.5).abs() < 1e-9 && measured.comparisons.is_empty());
    }

    #[test]
    fn two_tables_are_compared_on_what_both_have() {
        let mut images = [
            image("a", &[&["一只黑狗在跑"], &["两只猫"]], &["一只黑狗在跑"]),
            image("b", &[&["两个男人"], &["两个男人在下棋"]], &["两个男人在下棋"]),
            image("c", &[&["猫"], &[]], &["猫"]),
        ];
        let measured = measure(&mut images, 2, Level::Char, Letters::default());
        assert_eq!((measured.num_scored, measured.tables[1].num_images), (2, 2));
        let comparison = measured.comparisons[0].clone().unwrap();
        let [first, second] = [0, 1].map(|table| measured.tables[table].summary.unwrap().cider);
        assert!((comparison.difference[5] - (second - first)).abs() < 1e-12);
        assert!(images[2].tables[0].figures[0].scores.is_none());
    }
}
