//! Captions scored in the pass that makes them: how well each fits its image, which come first, and which stay.

use std::sync::Arc;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::ModelInfo;
use super::model::FILTERED;
use super::value::CaptionText;
use crate::image::Preprocess;
use crate::pipeline::Failure;
use crate::runtime::Runtime;
use crate::stages::loading::scale_to_length_1;
use crate::stages::score::{Scorer, ScorerModel, exact, fit, rounded};

/// How captions are scored and chosen; a table's identity depends on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scoring {
    /// [`ScorerModel::identity`].
    pub scorer: String,
    /// Captions of an image are ranked by their scores.
    #[serde(default)]
    pub rerank: bool,
    /// Only the best so many stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<usize>,
    /// Captions that score less go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_clip_score: Option<f64>,
}

/// Which columns a table has of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scored {
    #[default]
    No,
    /// `clip_score`
    Score,
    /// `clip_score` and `rank`
    Rank,
}

impl Scored {
    /// The columns that these settings add.
    pub fn by(scoring: Option<&Scoring>) -> Self {
        match scoring {
            None => Self::No,
            Some(Scoring { rerank: false, .. }) => Self::Score,
            Some(Scoring { rerank: true, .. }) => Self::Rank,
        }
    }
}

/// How a scorer's image tower wants its pictures, where it has to see them beside the model's own; None where the model's embeddings are its
/// own.
///
/// # Errors
/// Another image tower where there are embeddings and no pictures.
pub fn second_preprocess(scorer: &ScorerModel, model: &ModelInfo, takes_embeddings: bool) -> Result<Option<Preprocess>> {
    match scorer.fingerprint == model.encoder {
        true => Ok(None),
        false if takes_embeddings => bail!(
            "--embeddings with --scorer: the embeddings are not the scorer's, which has another image encoder: give the images in their place, \
             or leave --scorer out to score with the model's own CLIP"
        ),
        false => Ok(Some(scorer.preprocess.clone()).filter(|preprocess| *preprocess != model.preprocess)),
    }
}

/// What scores captions, loaded.
pub struct CaptionScorer {
    scoring: Scoring,
    scorer: Scorer,
    /// It has an image tower of its own, whose embeddings stand behind the model's.
    pub has_own_images: bool,
    /// Numbers of an image's pixels in its own preparation; none where both towers take the same.
    pub own_pixels: usize,
}

impl CaptionScorer {
    /// Loads the text tower, and the image tower where the scorer's is not the model's.
    pub fn load(
        scorer: &Arc<ScorerModel>,
        scoring: &Scoring,
        model: &ModelInfo,
        runtime: &Runtime,
        batch_size: usize,
    ) -> Result<Self> {
        let has_own_images = scorer.fingerprint != model.encoder;
        Ok(Self {
            scoring: scoring.clone(),
            scorer: scorer.load(runtime, has_own_images.then_some(batch_size))?,
            has_own_images,
            own_pixels: model.also.as_ref().map_or(0, Preprocess::num_values),
        })
    }

    /// Numbers of one of its embeddings.
    pub fn embedding_dim(&self) -> usize {
        self.scorer.model.embedding_dim
    }

    /// Its embeddings of images, one behind the other.
    pub fn encode(&mut self, pixel_values: &[&[f32]]) -> Result<Vec<Vec<f32>>> {
        self.scorer.images_each(pixel_values)
    }

    /// Scores the captions of images, `embeddings` being the scorer's, and leaves those that may stay.
    ///
    /// # Errors
    /// The text tower's.
    pub fn choose(&mut self, captions: &mut [Result<Vec<CaptionText>, Failure>], embeddings: &[&[f32]]) -> Result<()> {
        let texts: Vec<&str> = captions.iter().flatten().flatten().map(|caption| caption.text.as_str()).collect();
        let mut embedded = self.scorer.captions(&texts)?.into_iter();
        for (captions, embedding) in captions.iter_mut().zip(embeddings) {
            let Ok(found) = captions else { continue };
            let mut image = embedding.to_vec();
            scale_to_length_1(&mut image);
            for caption in found.iter_mut() {
                caption.clip_score = embedded.next().and_then(|text| fit(&image, text.as_ref())).map(rounded);
            }
            *captions = self.scoring.chosen(std::mem::take(found));
        }
        Ok(())
    }
}

/// The captions of an image, the best first: by score, then as they were made; what has no score comes last.
pub fn ranked(captions: &[CaptionText]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..captions.len()).collect();
    let score = |at: &usize| captions[*at].clip_score.map_or(f64::NEG_INFINITY, exact);
    order.sort_by(|a, b| score(b).total_cmp(&score(a)));
    order
}

impl Scoring {
    /// Those that stay, in the order in which they were made; where none may, the image fails and says why.
    fn chosen(&self, mut captions: Vec<CaptionText>) -> Result<Vec<CaptionText>, Failure> {
        let order = ranked(&captions);
        let mut rank = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &at)| rank[at] = place);
        let may_stay = |at: usize| {
            let is_fit = |min: f64| captions[at].clip_score.is_some_and(|score| exact(score) >= min);
            self.keep.is_none_or(|keep| rank[at] < keep) && self.min_clip_score.is_none_or(is_fit)
        };
        let stays: Vec<bool> = (0..captions.len()).map(may_stay).collect();
        if let (Some(&best), Some(min), false) = (order.first(), self.min_clip_score, stays.contains(&true)) {
            let score = captions[best].clip_score.map_or("no score".into(), |score| score.to_string());
            let text = &captions[best].text;
            let message = format!("none of {} captions has a clip_score of {min}; the best, {text:?}: {score}", captions.len());
            return Err(Failure { reason: FILTERED.into(), message });
        }
        let mut stays = stays.into_iter();
        captions.retain(|_| stays.next().unwrap_or(false));
        Ok(captions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::FinishReason;

    fn captions(scores: &[Option<f32>]) -> Vec<CaptionText> {
        let caption = |(index, &clip_score): (usize, &Option<f32>)| CaptionText {
            text: format!("第{index}句"),
            logprob: -1.0,
            num_tokens: 3,
            finish_reason: FinishReason::Eos,
            index: index as i32,
            clip_score,
        };
        scores.iter().enumerate().map(caption).collect()
    }

    fn left(keep: Option<usize>, min_clip_score: Option<f64>, scores: &[Option<f32>]) -> Result<Vec<i32>, String> {
        let scoring = Scoring { scorer: String::new(), rerank: true, keep, min_clip_score };
        let chosen = scoring.chosen(captions(scores));
        chosen.map(|left| left.iter().map(|caption| caption.index).collect()).map_err(|failure| failure.message)
    }

    #[test]
    fn the_best_come_first_and_equals_as_they_were_made() {
        let order = |scores: &[Option<f32>]| ranked(&captions(scores));
        assert_eq!(order(&[Some(0.1), Some(0.3), None, Some(0.3), Some(-0.2)]), [1, 3, 0, 4, 2]);
        assert_eq!(order(&[None, None]), [0, 1]);
        assert!(order(&[]).is_empty());
    }

    #[test]
    fn the_worst_go_and_their_order_stays() {
        let scores = [Some(0.1), Some(0.3), None, Some(0.7), Some(0.3)];
        assert_eq!(left(None, None, &scores), Ok(vec![0, 1, 2, 3, 4]));
        assert_eq!(left(Some(2), None, &scores), Ok(vec![1, 3]));
        assert_eq!(left(Some(9), Some(0.2), &scores), Ok(vec![1, 3, 4]));
        // As it is written, though 0.7 as a float is a hair less.
        assert_eq!(left(None, Some(0.7), &scores), Ok(vec![3]));
        assert_eq!(left(Some(1), Some(-1.0), &[None, Some(-0.5)]), Ok(vec![1]));
        let message = left(None, Some(0.71), &scores).unwrap_err();
        assert!(message.contains("none of 5") && message.contains("0.71") && message.contains("第3句\": 0.7"), "{message}");
        assert!(left(None, Some(-1.0), &[None]).unwrap_err().contains("no score"));
    }
}
