//! Scores at one level of tokenization: characters or words.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{Candidate, Level, ScoredImage, Settings};
use crate::dataset::normalize::{FoldWidth, normalized};
use crate::metrics::{Comparison, Diversity, ImageScores, Interner, Interval, Scorer, Summary, bootstrap, compare};
use crate::pipeline::Reporter;
use crate::text::join_pieces;
use crate::text::segment::{self, Letters};

impl Level {
    /// Tokens of a text, lower-cased.
    pub fn tokens(self, text: &str, letters: Letters) -> Vec<Cow<'_, str>> {
        match self {
            Self::Char => segment::char_tokens(text, letters),
            Self::Word => segment::word_tokens(text, letters),
        }
    }

    /// Tokens of a caption that make its opening.
    fn opening_len(self) -> usize {
        match self {
            Self::Char => 4,
            Self::Word => 2,
        }
    }
}

/// One table's captions at one level.
pub struct TableScores {
    /// For each image, which of its candidates is scored.
    pub chosen: Vec<usize>,
    /// Scores of the chosen ones, in image order.
    pub scores: Vec<ImageScores>,
    /// Tokens of the chosen ones.
    pub num_tokens: Vec<usize>,
    pub summary: Summary,
    pub intervals: Option<[Interval; 6]>,
    pub diversity: Diversity,
    /// The text of `diversity.opening`.
    pub opening: Option<String>,
}

/// What one level says of the predictions and, where there is one, of the second table.
pub struct LevelScores {
    pub level: Level,
    pub predictions: TableScores,
    pub compared: Option<(TableScores, Comparison)>,
}

impl LevelScores {
    /// `rounds` resamplings give intervals (none for 0) and the comparison.
    pub(super) fn of(level: Level, images: &[ScoredImage], settings: &Settings, rounds: usize) -> Self {
        let mut interner = Interner::default();
        let references = tokenize(level, settings.letters, images, |image| &image.references, &mut interner);
        let scorer = Scorer::new(&references);
        let mut table = |captions: fn(&ScoredImage) -> &[String]| {
            let tokens = tokenize(level, settings.letters, images, captions, &mut interner);
            TableScores::of(level, &scorer, &tokens, &interner, settings, rounds)
        };
        let predictions = table(|image| &image.candidates);
        let compared = settings.compare.as_ref().map(|_| table(|image| &image.others)).and_then(|second| {
            let comparison = compare(&predictions.scores, &second.scores, rounds, settings.seed)?;
            Some((second, comparison))
        });
        Self { level, predictions, compared }
    }
}

impl TableScores {
    fn of(
        level: Level,
        scorer: &Scorer<'_>,
        tokens: &[Vec<Vec<u32>>],
        interner: &Interner,
        settings: &Settings,
        rounds: usize,
    ) -> Self {
        let chosen: Vec<(usize, ImageScores)> = tokens
            .par_iter()
            .enumerate()
            .map(|(image, candidates)| match settings.candidate {
                Candidate::First => (0, scorer.score(image, &candidates[..1])[0]),
                Candidate::Oracle => best(&scorer.score(image, candidates)),
            })
            .collect();
        let (chosen, scores): (Vec<usize>, Vec<ImageScores>) = chosen.into_iter().unzip();
        let captions = || tokens.iter().zip(&chosen).map(|(candidates, &chosen)| candidates[chosen].as_slice());
        let diversity = Diversity::of(captions(), level.opening_len());
        let text = |tokens: &[u32]| join_pieces(tokens.iter().filter_map(|&id| interner.token(id)));
        let opening = diversity.opening.as_ref().map(|opening| text(&opening.tokens));
        Self {
            num_tokens: captions().map(<[u32]>::len).collect(),
            summary: Summary::of(&scores),
            intervals: bootstrap(&scores, rounds, settings.seed),
            diversity,
            opening,
            chosen,
            scores,
        }
    }
}

/// The candidate with the best CIDEr; the first of equals.
fn best(scores: &[ImageScores]) -> (usize, ImageScores) {
    let mut best = (0, scores[0]);
    for (index, score) in scores.iter().enumerate() {
        if score.cider > best.1.cider {
            best = (index, *score);
        }
    }
    best
}

/// Images whose tokens are numbered together before they get the interner's numbers.
const PIECE: usize = 256;

/// Ids of the tokens of each caption of each image, in the text that a dataset of it would have: segmented words are joined. Text is cut on all
/// threads; ids are given in order.
pub fn tokenize<I: Sync>(
    level: Level,
    letters: Letters,
    images: &[I],
    captions: impl Fn(&I) -> &[String] + Sync,
    interner: &mut Interner,
) -> Vec<Vec<Vec<u32>>> {
    // Tokens come again and again: only the first of its kind in a piece is kept as text.
    let cut = |images: &[I]| {
        let mut known = Interner::default();
        let mut ids = |caption: &String| known.ids(level.tokens(&normalized(caption, FoldWidth::None), letters));
        let ids: Vec<Vec<Vec<u32>>> = images.iter().map(|image| captions(image).iter().map(&mut ids).collect()).collect();
        (known, ids)
    };
    let pieces: Vec<_> = images.par_chunks(PIECE).map(cut).collect();
    let numbered = |(known, mut ids): (Interner, Vec<Vec<Vec<u32>>>)| {
        let numbers = interner.ids(known.tokens());
        ids.iter_mut().flatten().flatten().for_each(|id| *id = numbers[*id as usize]);
        ids
    };
    pieces.into_iter().flat_map(numbered).collect()
}

/// A word where more than a tenth of the characters make no token, so that scores say little; `what` names the captions.
pub fn warn_of_dropped<'a>(what: &str, texts: impl Iterator<Item = &'a String>, letters: Letters, reporter: &dyn Reporter) {
    let add = |(lost, all): (usize, usize), text: &String| {
        let (more_lost, more) = segment::dropped(text, letters);
        (lost + more_lost, all + more)
    };
    let (lost, all) = texts.fold((0, 0), add);
    if lost * 10 > all {
        let cure = if letters == Letters::Strict { ": leave --strict-tokens out to count letters of every script" } else { "" };
        reporter.warn(&format!(
            "{what}: {:.0}% of the characters make no token and are not scored{cure}",
            100.0 * lost as f64 / all as f64
        ));
    }
}
