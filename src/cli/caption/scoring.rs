//! Flags of captions that are scored as they are made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;

use crate::cli::BadUsage;
use crate::stages::caption::Scoring;
use crate::stages::score::ScorerModel;

/// What scores captions, and how they are chosen by it.
#[derive(clap::Args)]
pub(in crate::cli) struct ScoringArgs {
    /// Score captions in the same pass and rank them, best fit to the image first: adds the columns clip_score (cosine) and rank (from 1;
    /// ties in order of caption_index)
    #[arg(long, help_heading = "Scoring")]
    rerank: bool,
    /// Scorer: a bundle or a CLIP folder with a text tower (default: the model's own CLIP); without --rerank only the column clip_score is
    /// added
    #[arg(long, value_name = "CLIP|BUNDLE", help_heading = "Scoring")]
    pub scorer: Option<PathBuf>,
    /// Keep the K best captions per image
    #[arg(long, value_name = "K", help_heading = "Scoring", requires = "rerank", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    keep: Option<u32>,
    /// Drop captions with a clip_score below X (-1 to 1), or without one; an image left without captions fails as `filtered`
    #[arg(long, value_name = "X", alias = "min_clip_score", help_heading = "Scoring", value_parser = min_score)]
    min_clip_score: Option<f64>,
}

/// What scores, and how captions are chosen by it.
pub(super) type Chosen = (Arc<ScorerModel>, Scoring);

impl ScoringArgs {
    /// Whether captions are to be ranked.
    pub fn is_rerank(&self) -> bool {
        self.rerank
    }

    /// The scorer that the flags ask for, `own` being the model's bundle; None where they ask for none.
    ///
    /// # Errors
    /// Flags that miss another; a model without a text tower.
    pub fn open(&self, own: &Path) -> anyhow::Result<Option<Chosen>> {
        if !self.rerank && self.scorer.is_none() {
            return match self.min_clip_score {
                Some(_) => {
                    Err(BadUsage("--min-clip-score needs scores: add --rerank (by the model's own CLIP) or --scorer CLIP".into())
                        .into())
                }
                None => Ok(None),
            };
        }
        let model = open_scorer(self.scorer.as_deref(), own)?;
        let scoring = Scoring {
            scorer: model.identity.clone(),
            rerank: self.rerank,
            keep: self.keep.map(|keep| keep as usize),
            min_clip_score: self.min_clip_score,
        };
        Ok(Some((model, scoring)))
    }
}

/// Another scorer, or the model's own CLIP.
pub(super) fn open_scorer(other: Option<&Path>, own: &Path) -> anyhow::Result<Arc<ScorerModel>> {
    let model = match other {
        Some(path) => ScorerModel::open(path)?,
        None => ScorerModel::open(own).context(
            "captions cannot be scored by the model's own CLIP: name a bundle or a CLIP folder with a text tower (--scorer CLIP)",
        )?,
    };
    Ok(Arc::new(model))
}

/// A cosine.
pub(in crate::cli) fn min_score(text: &str) -> Result<f64, String> {
    let score = text.parse::<f64>().ok().filter(|score| (-1.0..=1.0).contains(score));
    score.ok_or_else(|| format!("{text:?} is not a cosine: use -1 to 1, such as 0.2"))
}
