//! CLIPScore and RefCLIPScore of the captions that are scored.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};

use super::{ScoredImage, Settings};
use crate::dataset::wanted::Wanted;
use crate::metrics::{ClipScores, Comparison, Interval, bootstrap, compare};
use crate::pipeline::{ImageReading, Reporter, Tick};
use crate::runtime::Runtime;
use crate::stages::score::{Images, Scorer, ScorerModel, Source, fit};

/// Images whose captions are scored together.
const IMAGES_AT_ONCE: usize = 256;

/// A CLIP that scores, and where the images are.
pub struct ClipScorer {
    scorer: Scorer,
    images: Images,
    /// Stands before every caption and reference.
    prefix: String,
}

/// One table's scores.
pub struct ClipTable {
    /// In image order; None for an image without an embedding.
    pub scores: Vec<Option<ClipScores>>,
    pub mean: ClipScores,
    pub intervals: Option<[Interval; 2]>,
}

/// What CLIP says of the predictions and, where there is one, of the second table.
pub struct ClipLevel {
    pub predictions: ClipTable,
    pub compared: Option<(ClipTable, Option<Comparison<2>>)>,
    /// Images that have an embedding.
    pub num_images: usize,
}

impl ClipScorer {
    /// Opens and loads a scorer, and lists the images; `batch_size` images are encoded together.
    ///
    /// # Errors
    /// A scorer or images that cannot be used.
    pub fn open(scorer: &Path, source: &Source, prefix: String, runtime: &Runtime, batch_size: usize) -> Result<Self> {
        let model = Arc::new(ScorerModel::open(scorer)?);
        let images = Images::open(source, &model, &Wanted::default(), ImageReading::default())?;
        let scorer = model.load(runtime, matches!(source, Source::Images(_)).then_some(batch_size))?;
        Ok(Self { scorer, images, prefix })
    }

    /// Scores the chosen captions of `images`; `others` are the second table's.
    ///
    /// # Errors
    /// Where no image is found, or the scorer fails.
    pub(super) fn score(
        &mut self,
        images: &[ScoredImage],
        chosen: &[usize],
        others: Option<&[usize]>,
        settings: &Settings,
        rounds: usize,
        reporter: &dyn Reporter,
    ) -> Result<ClipLevel> {
        let Self { scorer, images: known, prefix } = self;
        let finder = known.finder();
        let matcher = finder.matcher();
        let (mut first, mut second) = (Vec::with_capacity(images.len()), Vec::new());
        let (mut missing, mut failed) = (0usize, 0usize);
        for (start, some) in (0..).step_by(IMAGES_AT_ONCE).zip(images.chunks(IMAGES_AT_ONCE)) {
            let found: Vec<Option<usize>> =
                some.iter().map(|image| image.names.iter().find_map(|name| Some(matcher.find(name)?.at))).collect();
            let numbers: BTreeSet<usize> = found.iter().flatten().copied().collect();
            let embedded = finder.embed(&numbers.into_iter().collect::<Vec<_>>(), scorer)?;
            let mut texts: Vec<String> = vec![];
            for (at, image) in (start..).zip(some) {
                let candidates =
                    std::iter::once(&image.candidates[chosen[at]]).chain(others.map(|others| &image.others[others[at]]));
                texts.extend(candidates.chain(&image.references).map(|text| format!("{prefix}{text}")));
            }
            // A prefix alone says nothing either.
            let blank = |text: &str| text[prefix.len()..].trim().is_empty();
            let texts: Vec<&str> = texts.iter().map(|text| if blank(text) { "" } else { text.as_str() }).collect();
            let mut vectors = scorer.captions(&texts)?.into_iter();
            for (image, number) in some.iter().zip(found) {
                let candidates: Vec<_> = vectors.by_ref().take(1 + usize::from(others.is_some())).collect();
                let references: Vec<_> = vectors.by_ref().take(image.references.len()).flatten().collect();
                let embedding = match number.map(|number| &embedded[&number]) {
                    Some(Ok(embedding)) => Some(embedding),
                    Some(Err(_)) => {
                        failed += 1;
                        None
                    }
                    None => {
                        missing += 1;
                        None
                    }
                };
                let mut scores = candidates.iter().map(|caption| {
                    let cosine = fit(embedding?, caption.as_ref()).map(f64::from);
                    let alike = references.iter().filter_map(|reference| fit(reference, caption.as_ref())).map(f64::from);
                    Some(ClipScores::of(cosine, alike))
                });
                first.extend(scores.next());
                second.extend(scores.next());
            }
            let done = (start + some.len()) as u64;
            reporter.tick(&Tick { label: "scoring", done, total: images.len() as u64, ..Tick::default() });
        }
        let num_images = images.len() - missing - failed;
        for (count, what) in [(missing, "no image of that name is there"), (failed, "the image cannot be read")] {
            if count > 0 {
                reporter.warn(&format!("{count} of {} images are left out of CLIPScore: {what}", images.len()));
            }
        }
        if num_images == 0 {
            let name = images.first().and_then(|image| image.names.first()).map_or("", String::as_str);
            bail!(
                "no image can be scored by CLIP: the captions have images such as {name}, which are not found under --images or in --embeddings"
            );
        }
        scorer.model.cut_note().iter().for_each(|note| reporter.warn(note));
        let table = |scores: Vec<Option<ClipScores>>| {
            let there: Vec<ClipScores> = scores.iter().flatten().copied().collect();
            let intervals = bootstrap(&there, rounds, settings.seed);
            (ClipTable { scores, mean: ClipScores::mean(&there), intervals }, there)
        };
        let (predictions, ours) = table(first);
        let compared = others.map(|_| {
            let (second, theirs) = table(second);
            (second, compare(&ours, &theirs, rounds, settings.seed))
        });
        Ok(ClipLevel { predictions, compared, num_images })
    }
}

impl ScoredImage {
    /// What an image may be called, as its captions and references call it.
    pub(super) fn names_of(images: [&super::captions::ImageCaptions; 2]) -> Vec<String> {
        let mut names: Vec<String> = vec![];
        let said = |image: &super::captions::ImageCaptions| [image.path.clone(), image.alias.clone(), Some(image.id.clone())];
        for name in images.into_iter().flat_map(said).flatten() {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}
