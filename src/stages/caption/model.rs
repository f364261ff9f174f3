//! The model as this stage sees it: images to embeddings, embeddings to captions.

use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::value::{CaptionText, Captions};
use crate::generation::{Caption, FinishedImage, GenerationError, Generator, Request};
use crate::models::{Decoder, ImageEncoder, Mapper};
use crate::pipeline::{Compute, ContentHash, Failure, Input, concatenated};
use crate::stages::loading::scale_to_length_1;
use crate::text::Tokenizer;

/// What captions images, on one thread.
pub trait Captioner {
    /// Images that are encoded together at most.
    fn batch_size(&self) -> usize;

    /// pixel_values [num_images, 3, S, S] -> embeddings [num_images, D]
    fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<f32>>;

    /// embeddings [num_images, D] -> the captions of each image; `hashes` are the images' contents, which seed sampling.
    fn caption(&mut self, embeddings: &[f32], hashes: &[ContentHash]) -> Result<Vec<Captions>>;
}

/// A captioner in the stream's terms.
pub(super) struct Engine<C> {
    captioner: C,
    /// The inputs are embeddings already.
    takes_embeddings: bool,
    embeddings: Vec<f32>,
    hashes: Vec<ContentHash>,
}

impl<C: Captioner> Engine<C> {
    pub fn new(captioner: C, takes_embeddings: bool) -> Self {
        Self { captioner, takes_embeddings, embeddings: Vec::new(), hashes: Vec::new() }
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
        let data = concatenated(&inputs);
        let embeddings = if self.takes_embeddings { data } else { self.captioner.encode(&data, num_images)? };
        self.embeddings.extend(embeddings);
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<Result<Captions, Failure>>> {
        let captions = self.captioner.caption(&self.embeddings, &self.hashes)?;
        self.embeddings.clear();
        self.hashes.clear();
        Ok(captions.into_iter().map(Ok).collect())
    }
}

/// CLIP, a mapper and GPT2 on ONNX Runtime.
pub struct ClipCap {
    pub encoder: Option<Box<dyn ImageEncoder>>,
    pub mapper: Box<dyn Mapper>,
    pub decoder: Box<dyn Decoder>,
    pub generator: Generator,
    pub tokenizer: Arc<Tokenizer>,
    /// Embeddings are scaled to length 1 before they are mapped, as the model was trained.
    pub normalize: bool,
    pub batch_size: usize,
}

impl Captioner for ClipCap {
    fn batch_size(&self) -> usize {
        self.batch_size
    }

    fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<f32>> {
        let encoder = self.encoder.as_mut().context("this run has no image encoder")?;
        Ok(encoder.encode(pixel_values, num_images)?)
    }

    fn caption(&mut self, embeddings: &[f32], hashes: &[ContentHash]) -> Result<Vec<Captions>> {
        let embedding_dim = embeddings.len() / hashes.len().max(1);
        if embedding_dim == 0 || embedding_dim * hashes.len() != embeddings.len() {
            bail!("{} numbers are no embeddings of {} images", embeddings.len(), hashes.len());
        }
        let requests = self.requests(embeddings, embedding_dim, hashes)?;
        let mut requests = Some(requests);
        let mut finished: Vec<Option<Captions>> = vec![None; hashes.len()];
        let tokenizer = &self.tokenizer;
        let done = |image: FinishedImage| -> Result<(), GenerationError> {
            let captions = image.captions.iter().map(|caption| told(caption, tokenizer)).collect();
            if let Some(slot) = finished.get_mut(image.index as usize) {
                *slot = Some(Captions(captions));
            }
            Ok(())
        };
        self.generator.run(&mut *self.decoder, || Ok(requests.take()), done)?;
        finished.into_iter().collect::<Option<Vec<_>>>().context("an image was given no captions")
    }
}

impl ClipCap {
    fn requests(&mut self, embeddings: &[f32], embedding_dim: usize, hashes: &[ContentHash]) -> Result<Vec<Request>> {
        let mut requests = Vec::with_capacity(hashes.len());
        let batches = embeddings.chunks(self.batch_size.max(1) * embedding_dim).zip(hashes.chunks(self.batch_size.max(1)));
        for (embeddings, hashes) in batches {
            let mut embeddings = embeddings.to_vec();
            if self.normalize {
                embeddings.chunks_exact_mut(embedding_dim).for_each(scale_to_length_1);
            }
            let prefixes = self.mapper.map(&embeddings, hashes.len())?;
            let prefix = prefixes.len() / hashes.len();
            for (prefix_embeds, sha256) in prefixes.chunks_exact(prefix.max(1)).zip(hashes) {
                requests.push(Request { index: requests.len() as u64, sha256: *sha256, prefix_embeds: prefix_embeds.to_vec() });
            }
        }
        Ok(requests)
    }
}

fn told(caption: &Caption, tokenizer: &Tokenizer) -> CaptionText {
    CaptionText {
        text: tokenizer.decode(&caption.token_ids),
        // No -0.0: it would be another text in a table.
        logprob: caption.logprob + 0.0,
        num_tokens: caption.num_tokens as i32,
        finish_reason: caption.finish_reason,
    }
}
