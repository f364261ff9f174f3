//! `clipcap evaluate`: scores a caption table against references, says how varied its captions are, and compares two tables.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::dataset::captions::Encoding;
use crate::files;
use crate::pipeline::Reporter;
pub use crate::text::segment::Letters;

pub mod captions;
pub mod clip;
pub mod levels;
pub mod matching;
mod per_image;
mod summary;
mod unmatched;

use captions::{CaptionSet, ImageCaptions, Reading, Role};
use clip::{ClipLevel, ClipScorer};
use levels::{LevelScores, warn_of_dropped};
use matching::match_images;
use unmatched::{Unmatched, not_compared, unmatched};

/// Which tokens a score counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// One token per Chinese character, kana or hangul, one per run of other letters and digits; see [`Letters`].
    Char,
    /// Words as jieba cuts them.
    Word,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Self::Char => "char",
            Self::Word => "word",
        }
    }
}

/// Which of several captions of an image is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Candidate {
    /// The one with the lowest caption_index, or with rank 1 where the table has ranks.
    First,
    /// The one with the best CIDEr against the references: what a perfect choice among the captions would reach.
    Oracle,
}

impl Candidate {
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Oracle => "oracle",
        }
    }
}

/// What to evaluate, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    pub predictions: PathBuf,
    pub references: PathBuf,
    /// Scored levels, in order.
    pub levels: Vec<Level>,
    pub candidate: Candidate,
    /// A second table, scored on the same images.
    pub compare: Option<PathBuf>,
    /// Only references of this split.
    pub split: Option<String>,
    /// Of text files that are not UTF-8.
    pub encoding: Option<Encoding>,
    /// Which letters make tokens.
    pub letters: Letters,
    /// JSON summary; the errors table lies beside it.
    pub out: Option<PathBuf>,
    /// Parquet table of scores by image.
    pub per_image: Option<PathBuf>,
    /// Resamplings for intervals; 0 for none. A comparison takes [`COMPARE_ROUNDS`] where this is 0.
    pub bootstrap: usize,
    pub seed: u64,
}

/// Resamplings of a comparison unless told otherwise.
pub const COMPARE_ROUNDS: usize = 1000;

/// One image as it is scored.
pub struct ScoredImage {
    /// The predictions' id.
    pub id: String,
    /// What the image may be called, the likeliest first.
    pub names: Vec<String>,
    pub references: Vec<String>,
    pub candidates: Vec<String>,
    /// The second table's captions; empty without one.
    pub others: Vec<String>,
}

/// Everything an evaluation found.
pub struct Evaluation {
    pub images: Vec<ScoredImage>,
    pub coverage: Coverage,
    pub candidate: Candidate,
    pub rounds: usize,
    pub seed: u64,
    pub levels: Vec<LevelScores>,
    /// Where a CLIP scored them too.
    pub clip: Option<ClipLevel>,
}

/// How predictions and references met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Images that are scored.
    pub images: usize,
    pub references: usize,
    /// Of these, matched because the ids are the same text; the others by path or name.
    pub matched_exactly: usize,
    pub predictions_without_references: usize,
    pub references_without_predictions: usize,
    /// Images left out because the second table lacks them.
    pub not_in_compared: usize,
    /// The most captions an image has.
    pub max_candidates: usize,
}

/// Reads, matches and scores, by a CLIP too where there is one; writes the files that `settings` name.
///
/// # Errors
/// Files that cannot be read or have no image in common; what the CLIP cannot score.
pub fn run(settings: &Settings, judge: Option<&mut ClipScorer>, reporter: &dyn Reporter) -> Result<Evaluation> {
    let predicted = Reading { encoding: settings.encoding, ..Reading::of(Role::Predictions) };
    let written = Reading { role: Role::References, split: settings.split.as_deref(), ..predicted };
    let predictions = read(&settings.predictions, predicted, reporter)?;
    let references = read(&settings.references, written, reporter)?;
    let compared = settings.compare.as_ref().map(|path| read(path, predicted, reporter)).transpose()?;
    for (set, reading) in [(&predictions, predicted), (&references, written)] {
        let texts = set.images.iter().flat_map(|image| &image.captions);
        warn_of_dropped(reading.role.name(), texts, settings.letters, reporter);
    }
    let (images, coverage, left_out) = pair_up(predictions, references, compared)?;
    report_coverage(&coverage, reporter);

    let rounds = if settings.compare.is_some() && settings.bootstrap == 0 { COMPARE_ROUNDS } else { settings.bootstrap };
    let score = |level: &Level| LevelScores::of(*level, &images, settings, rounds);
    let levels: Vec<LevelScores> = settings.levels.iter().map(score).collect();
    // With the oracle, levels may choose differently: the first one's choice counts.
    let clip = match (judge, levels.first()) {
        (Some(judge), Some(level)) => {
            let others = level.compared.as_ref().map(|(table, _)| table.chosen.as_slice());
            Some(judge.score(&images, &level.predictions.chosen, others, settings, rounds, reporter)?)
        }
        _ => None,
    };
    let evaluation = Evaluation { images, coverage, candidate: settings.candidate, rounds, seed: settings.seed, levels, clip };

    if let Some(path) = &settings.out {
        // Of a stream there is no beside.
        if path.as_os_str() != "-" {
            unmatched::write(&left_out, path)?;
        }
        files::write_json(path, &evaluation.to_json()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &settings.per_image {
        per_image::write(&evaluation, path)?;
    }
    Ok(evaluation)
}

fn read(path: &Path, reading: Reading, reporter: &dyn Reporter) -> Result<CaptionSet> {
    let set = captions::read(path, reading, reporter).with_context(|| format!("cannot read the {}", reading.role.name()))?;
    if set.num_missing > 0 {
        reporter.warn(&format!("{}: left out {} rows without a caption", path.display(), set.num_missing));
    }
    Ok(set)
}

/// The images that predictions, references and, where there is one, the second table have in common.
fn pair_up(
    predictions: CaptionSet,
    references: CaptionSet,
    compared: Option<CaptionSet>,
) -> Result<(Vec<ScoredImage>, Coverage, Vec<Unmatched>)> {
    let matching = match_images(&predictions.images, &references.images);
    if matching.pairs.is_empty() {
        bail!(
            "no prediction has a reference: predictions have ids such as {}, references such as {}",
            example(&predictions.images),
            example(&references.images)
        );
    }
    let others = match &compared {
        None => None,
        Some(compared) => {
            let matching = match_images(&predictions.images, &compared.images);
            Some((matching.pairs.into_iter().collect::<HashMap<_, _>>(), &compared.images))
        }
    };
    let mut images = Vec::with_capacity(matching.pairs.len());
    let mut left_out = unmatched(&matching, &predictions.images, &references.images);
    let mut not_in_compared = 0;
    for &(prediction, reference) in &matching.pairs {
        let others = match &others {
            None => Vec::new(),
            Some((pairs, captions)) => match pairs.get(&prediction) {
                Some(&other) => captions[other].captions.clone(),
                None => {
                    not_in_compared += 1;
                    left_out.push(not_compared(&predictions.images[prediction]));
                    continue;
                }
            },
        };
        let names = ScoredImage::names_of([&predictions.images[prediction], &references.images[reference]]);
        let ImageCaptions { id, captions, .. } = predictions.images[prediction].clone();
        let references = references.images[reference].captions.clone();
        images.push(ScoredImage { id, names, references, candidates: captions, others });
    }
    if images.is_empty() {
        bail!("the two tables have no image with references in common");
    }
    let coverage = Coverage {
        images: images.len(),
        references: images.iter().map(|image| image.references.len()).sum(),
        matched_exactly: matching.num_exact,
        predictions_without_references: matching.unmatched_predictions.len(),
        references_without_predictions: matching.unmatched_references.len(),
        not_in_compared,
        max_candidates: images.iter().map(|image| image.candidates.len()).max().unwrap_or(0),
    };
    Ok((images, coverage, left_out))
}

fn example(images: &[ImageCaptions]) -> String {
    let ids: Vec<&str> = images.iter().take(3).map(|image| image.id.as_str()).collect();
    ids.join(", ")
}

fn report_coverage(coverage: &Coverage, reporter: &dyn Reporter) {
    let by_name = coverage.images + coverage.not_in_compared - coverage.matched_exactly;
    if by_name > 0 {
        reporter.note(&format!(
            "ids that differ, matched by path or name: {by_name} of {}",
            coverage.images + coverage.not_in_compared
        ));
    }
    let left_out = [
        (coverage.predictions_without_references, "images with predictions but no reference"),
        (coverage.references_without_predictions, "images with references but no prediction"),
        (coverage.not_in_compared, "images that the second table lacks"),
    ];
    for (count, what) in left_out.into_iter().filter(|(count, _)| *count > 0) {
        reporter.warn(&format!("{what}: {count}, left out; images scored: {}", coverage.images));
    }
    if coverage.images == 1 {
        reporter.warn("CIDEr weighs words by how few images have them, so it is 0 for a single image");
    }
}
