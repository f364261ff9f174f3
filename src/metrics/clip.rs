//! CLIPScore and RefCLIPScore (Hessel et al., 2021) from cosines.

use super::resample::Corpus;

/// The metrics of [`ClipScores`], in its order.
pub const CLIP_METRIC_NAMES: [&str; 2] = ["clip_score", "ref_clip_score"];

/// What cosines of captions and images, which are small, are multiplied with.
const WEIGHT: f64 = 2.5;

/// One image's scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipScores {
    /// 2.5 times the cosine of caption and image; 0 where that is negative.
    pub clip: f64,
    /// Harmonic mean of `clip` and the greatest cosine of the caption and a reference; 0 where either is not above 0.
    pub reference: f64,
}

impl ClipScores {
    /// `image` is the caption's cosine with its image, `references` those with the references. A caption without an embedding has none and
    /// scores 0.
    pub fn of(image: Option<f64>, references: impl IntoIterator<Item = f64>) -> Self {
        let clip = WEIGHT * image.unwrap_or(0.0).max(0.0);
        let best = references.into_iter().fold(0.0, f64::max);
        let sum = clip + best;
        Self { clip, reference: if sum > 0.0 { 2.0 * clip * best / sum } else { 0.0 } }
    }

    /// The two values, named by [`CLIP_METRIC_NAMES`].
    pub fn values(&self) -> [f64; 2] {
        [self.clip, self.reference]
    }

    /// Means over images, summed in the order given; 0 for no image.
    pub fn mean<'a>(images: impl IntoIterator<Item = &'a Self>) -> Self {
        let (mut sums, mut count) = ([0.0; 2], 0u64);
        for image in images {
            sums[0] += image.clip;
            sums[1] += image.reference;
            count += 1;
        }
        let [clip, reference] = sums.map(|sum| sum / count.max(1) as f64);
        Self { clip, reference }
    }
}

impl Corpus<2> for ClipScores {
    fn values<'a>(images: impl Iterator<Item = &'a Self>) -> [f64; 2] {
        ClipScores::values(&ClipScores::mean(images))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_the_paper() {
        let found = ClipScores::of(Some(0.3), [0.2, 0.6, -0.1]);
        assert!((found.clip - 0.75).abs() < 1e-12);
        assert!((found.reference - 2.0 * 0.75 * 0.6 / 1.35).abs() < 1e-12, "{found:?}");
        let zero = ClipScores { clip: 0.0, reference: 0.0 };
        assert_eq!(ClipScores::of(Some(-0.3), [0.5]), zero);
        assert_eq!(ClipScores::of(None, []), zero);
        let unlike = ClipScores::of(Some(0.2), [-0.5]);
        assert_eq!((unlike.clip, unlike.reference), (0.5, 0.0));
        let mean = ClipScores::mean(&[unlike, found]);
        assert!((mean.clip - 0.625).abs() < 1e-12 && (mean.reference - found.reference / 2.0).abs() < 1e-12);
        assert_eq!(ClipScores::mean(&[]), zero);
    }
}
