//! The model as this stage sees it: images to embeddings, embeddings to captions.

use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::scoring::CaptionScorer;
use super::value::{CaptionText, Captions};
use crate::files::ContentHash;
use crate::generation::{Caption, FinishedImage, GenerationError, Generator, Request};
use crate::image::Reason;
use crate::models::{Decoder, ImageEncoder, Mapper};
use crate::pipeline::{Compute, Failure, Input, concatenated};
use crate::stages::loading::{Prompt, scale_to_length_1};
use crate::text::Tokenizer;
use crate::text::clean::Cleaner;

/// What captions images, on one thread.
pub trait Captioner {
    /// Images that are encoded together at most.
    fn batch_size(&self) -> usize;

    /// pixel_values [num_images, 3, S, S] -> embeddings [num_images, D]
    fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<f32>>;

    /// embeddings [num_images, D] -> the captions of each image, or why it has none; `hashes` are the images' contents, which seed sampling.
    fn caption(&mut self, embeddings: &[f32], hashes: &[ContentHash]) -> Result<Vec<Result<Vec<CaptionText>, Failure>>>;
}

/// One captioner may serve several runs, one after the other.
impl<C: Captioner + ?Sized> Captioner for &mut C {
    fn batch_size(&self) -> usize {
        (**self).batch_size()
    }

    fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<f32>> {
        (**self).encode(pixel_values, num_images)
    }

    fn caption(&mut self, embeddings: &[f32], hashes: &[ContentHash]) -> Result<Vec<Result<Vec<CaptionText>, Failure>>> {
        (**self).caption(embeddings, hashes)
    }
}

/// A captioner in the stream's terms.
pub(super) struct Engine<C> {
    captioner: C,
    /// The inputs are embeddings already.
    takes_embeddings: bool,
    embeddings: Vec<f32>,
    hashes: Vec<ContentHash>,
    damaged: Vec<bool>,
}

impl<C: Captioner> Engine<C> {
    pub fn new(captioner: C, takes_embeddings: bool) -> Self {
        Self { captioner, takes_embeddings, embeddings: Vec::new(), hashes: Vec::new(), damaged: Vec::new() }
    }
}

impl<C: Captioner> Compute for Engine<C> {
    type Value = Captions;

    fn batch_size(&self) -> usize {
        self.captioner.batch_size()
    }

    fn encode(&mut self, inputs: Vec<Input>) -> Result<()> {
        let num_images = inputs.len();
        self.hashes.extend(inputs.iter().map(|input| input.sha256));
        self.damaged.extend(inputs.iter().map(|input| input.damaged));
        let data = concatenated(&inputs);
        let embeddings = if self.takes_embeddings { data } else { self.captioner.encode(&data, num_images)? };
        self.embeddings.extend(embeddings);
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<Result<Captions, Failure>>> {
        let texts = self.captioner.caption(&self.embeddings, &self.hashes)?;
        let captions = texts.into_iter().zip(self.damaged.drain(..));
        let captions = captions.map(|(texts, damaged)| texts.map(|texts| Captions { texts, damaged })).collect();
        self.embeddings.clear();
        self.hashes.clear();
        Ok(captions)
    }
}

/// CLIP, a mapper and a decoder on ONNX Runtime.
pub struct ClipCap {
    pub encoder: Option<Box<dyn ImageEncoder>>,
    pub mapper: Box<dyn Mapper>,
    pub decoder: Box<dyn Decoder>,
    pub generator: Generator,
    pub tokenizer: Arc<Tokenizer>,
    pub(super) prompt: Prompt,
    pub(super) cleaner: Cleaner,
    /// Embeddings are scaled to length 1 before they are mapped, as the model was trained.
    pub normalize: bool,
    pub batch_size: usize,
    pub(super) scorer: Option<CaptionScorer>,
}

impl Captioner for ClipCap {
    fn batch_size(&self) -> usize {
        self.batch_size
    }

    fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<f32>> {
        let encoder = self.encoder.as_mut().context("this run has no image encoder")?;
        let Some(scorer) = self.scorer.as_mut().filter(|scorer| scorer.has_own_images) else {
            return Ok(encoder.encode(pixel_values, num_images)?);
        };
        // The scorer's pixels stand behind the model's, and so do its embeddings.
        let width = pixel_values.len() / num_images.max(1);
        let images = || pixel_values.chunks_exact(width.max(1));
        let models: Vec<&[f32]> = images().map(|image| &image[..width - scorer.own_pixels]).collect();
        let scorers: Vec<&[f32]> = match scorer.own_pixels {
            0 => images().collect(),
            own => images().map(|image| &image[width - own..]).collect(),
        };
        let embeddings = encoder.encode_each(&models)?;
        let each = embeddings.chunks_exact((embeddings.len() / num_images.max(1)).max(1));
        Ok(each.zip(scorer.encode(&scorers)?).flat_map(|(model, scorer)| [model, &scorer].concat()).collect())
    }

    fn caption(&mut self, embeddings: &[f32], hashes: &[ContentHash]) -> Result<Vec<Result<Vec<CaptionText>, Failure>>> {
        let width = embeddings.len() / hashes.len().max(1);
        let behind = self.scorer.as_ref().filter(|scorer| scorer.has_own_images).map_or(0, CaptionScorer::embedding_dim);
        let images = || embeddings.chunks_exact(width.max(1));
        let prefixes = match behind {
            0 => self.prefixes(embeddings, hashes.len())?,
            _ => {
                self.prefixes(&images().flat_map(|image| &image[..width - behind]).copied().collect::<Vec<_>>(), hashes.len())?
            }
        };
        let scored: Vec<&[f32]> = images().map(|image| &image[if behind > 0 { width - behind } else { 0 }..]).collect();
        let width = prefixes.len() / hashes.len();
        let prefix = |index: usize| &prefixes[index * width..][..width];
        let mut captions: Vec<Option<Result<Vec<CaptionText>, Failure>>> = vec![None; hashes.len()];
        for (index, slot) in captions.iter_mut().enumerate() {
            if !prefix(index).iter().all(|value| value.is_finite()) {
                *slot = Some(Err(beyond_numbers("the mapper's prefix is not finite")));
            }
        }
        // An image that leaves the range of numbers fails by itself: the others go on without it, and are none the worse for it.
        loop {
            let open = captions.iter().enumerate().filter(|(_, slot)| slot.is_none());
            let request = |index: usize| Request {
                index: index as u64,
                sha256: hashes[index],
                prefix_embeds: self.prompt.behind(prefix(index)),
            };
            let mut requests = Some(open.map(|(index, _)| request(index)).collect::<Vec<_>>());
            let (tokenizer, cleaner) = (&self.tokenizer, &self.cleaner);
            let done = |image: FinishedImage| -> Result<(), GenerationError> {
                let texts = image.captions.iter().map(|caption| caption_text(caption, tokenizer, cleaner)).collect();
                if let Some(slot) = captions.get_mut(image.index as usize) {
                    *slot = Some(wanted(texts, cleaner));
                }
                Ok(())
            };
            match self.generator.run(&mut *self.decoder, || Ok(requests.take()), done) {
                Ok(_) => break,
                Err(error @ GenerationError::NotFinite { index, .. }) => {
                    captions[index as usize] = Some(Err(beyond_numbers(&error.to_string())));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut captions = captions.into_iter().collect::<Option<Vec<_>>>().context("an image was given no captions")?;
        if let Some(scorer) = &mut self.scorer {
            scorer.choose(&mut captions, &scored)?;
        }
        match &captions[..] {
            [Err(failure), _, ..] if captions.iter().all(|c| c.as_ref().is_err_and(|failure| failure.reason != FILTERED)) => {
                bail!(
                    "not one of {} images can be captioned ({}): is the model damaged (`clipcap model inspect BUNDLE --verify`), or are these \
                 embeddings another model's?",
                    captions.len(),
                    failure.message
                )
            }
            _ => Ok(captions),
        }
    }
}

/// An image for which the model's arithmetic leaves the range of numbers.
fn beyond_numbers(what: &str) -> Failure {
    Failure {
        reason: Reason::Corrupt.as_str().into(),
        message: format!("{what}: an embedding out of the ordinary, or an overflow that --precision fp32 may not have"),
    }
}

impl ClipCap {
    /// The same, with captions scored.
    pub fn scored(mut self, scorer: Option<CaptionScorer>) -> Self {
        self.scorer = scorer;
        self
    }

    /// embeddings [num_images, D] -> prefixes [num_images, P, C], one after the other.
    fn prefixes(&mut self, embeddings: &[f32], num_images: usize) -> Result<Vec<f32>> {
        let embedding_dim = embeddings.len() / num_images.max(1);
        if embedding_dim == 0 || embedding_dim * num_images != embeddings.len() {
            bail!("{} numbers are not the embeddings of {num_images} images", embeddings.len());
        }
        let mut prefixes = Vec::new();
        for embeddings in embeddings.chunks(self.batch_size.max(1) * embedding_dim) {
            let mut embeddings = embeddings.to_vec();
            if self.normalize {
                embeddings.chunks_exact_mut(embedding_dim).for_each(scale_to_length_1);
            }
            prefixes.extend(self.mapper.map(&embeddings, embeddings.len() / embedding_dim)?);
        }
        Ok(prefixes)
    }
}

/// Why an image has no caption where banned or required words, or scores, left none.
pub(super) const FILTERED: &str = Reason::Filtered.as_str();

/// Captions that may stay; where none may, the image fails with the first one's reason.
fn wanted(captions: Vec<CaptionText>, cleaner: &Cleaner) -> Result<Vec<CaptionText>, Failure> {
    let reasons: Vec<Option<String>> = captions.iter().map(|caption| cleaner.refuses(&caption.text)).collect();
    if let (Some(first), Some(Some(why))) = (captions.first(), reasons.first())
        && reasons.iter().all(Option::is_some)
    {
        let message = format!("none of {} captions may stay; of {:?}: {why}", captions.len(), first.text);
        return Err(Failure { reason: FILTERED.into(), message });
    }
    let stay = captions.into_iter().zip(reasons).filter(|(_, reason)| reason.is_none());
    Ok(stay.zip(0..).map(|((caption, _), index)| CaptionText { index, ..caption }).collect())
}

fn caption_text(caption: &Caption, tokenizer: &Tokenizer, cleaner: &Cleaner) -> CaptionText {
    CaptionText {
        text: cleaner.clean(tokenizer.decode(&caption.token_ids)),
        // No -0.0: it would be another text in a table.
        logprob: caption.logprob + 0.0,
        num_tokens: caption.num_tokens as i32,
        finish_reason: caption.finish_reason,
        index: 0,
        clip_score: None,
    }
}
