//! Several models side by side, one on each card. A batch is cut among them in order, they work at the same time, and what comes out is joined in
//! order.

use std::ops::Range;
use std::thread;

use super::caption::{CaptionText, Captioner};
use crate::files::ContentHash;
use crate::models::ImageEncoder;
use crate::pipeline::Failure;
use crate::runtime::RuntimeError;

/// At least one model.
pub struct Fleet<M>(Vec<M>);

impl<M> Fleet<M> {
    /// None of no model.
    pub fn new(models: Vec<M>) -> Option<Self> {
        (!models.is_empty()).then_some(Self(models))
    }
}

impl<M: Send> Fleet<M> {
    /// Gives each model a stretch of `0..count` and joins what they make of them; the first error where there are several.
    fn share<T: Send, E: Send>(
        &mut self,
        count: usize,
        work: impl Fn(&mut M, Range<usize>) -> Result<Vec<T>, E> + Sync,
    ) -> Result<Vec<T>, E> {
        if let [only] = &mut self.0[..] {
            return work(only, 0..count);
        }
        let each = count.div_ceil(self.0.len()).max(1);
        let parts: Vec<Result<Vec<T>, E>> = thread::scope(|scope| {
            let stretch = |number: usize| (number * each).min(count)..((number + 1) * each).min(count);
            let work = &work;
            let busy = self.0.iter_mut().enumerate().map(|(number, model)| (model, stretch(number)));
            let threads: Vec<_> = busy
                .filter(|(_, stretch)| !stretch.is_empty())
                .map(|(model, stretch)| scope.spawn(move || work(model, stretch)))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        let mut all = vec![];
        for part in parts {
            all.extend(part?);
        }
        Ok(all)
    }
}

impl<E: ImageEncoder> ImageEncoder for Fleet<E> {
    fn embedding_dim(&self) -> usize {
        self.0[0].embedding_dim()
    }

    fn max_batch(&self) -> usize {
        self.0.iter().map(ImageEncoder::max_batch).sum()
    }

    fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<f32>, RuntimeError> {
        let width = pixel_values.len() / num_images.max(1);
        self.share(num_images, |model, part| model.encode(&pixel_values[part.start * width..part.end * width], part.len()))
    }

    fn encode_each(&mut self, images: &[&[f32]]) -> Result<Vec<f32>, RuntimeError> {
        self.share(images.len(), |model, part| model.encode_each(&images[part]))
    }
}

impl<C: Captioner + Send> Captioner for Fleet<C> {
    fn batch_size(&self) -> usize {
        self.0.iter().map(Captioner::batch_size).sum()
    }

    fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> anyhow::Result<Vec<f32>> {
        let width = pixel_values.len() / num_images.max(1);
        self.share(num_images, |model, part| model.encode(&pixel_values[part.start * width..part.end * width], part.len()))
    }

    fn caption(&mut self, embeddings: &[f32], hashes: &[ContentHash]) -> anyhow::Result<Vec<Result<Vec<CaptionText>, Failure>>> {
        let width = embeddings.len() / hashes.len().max(1);
        self.share(hashes.len(), |model, part| model.caption(&embeddings[part.start * width..part.end * width], &hashes[part]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Doubles, and remembers how many images it saw.
    struct Doubler(usize);

    impl ImageEncoder for Doubler {
        fn embedding_dim(&self) -> usize {
            2
        }

        fn max_batch(&self) -> usize {
            4
        }

        fn encode(&mut self, pixel_values: &[f32], num_images: usize) -> Result<Vec<f32>, RuntimeError> {
            self.0 += num_images;
            match pixel_values.iter().any(|&pixel| pixel < 0.0) {
                true => Err(RuntimeError::Model { model: "doubler".into(), message: "negative".into() }),
                false => Ok(pixel_values.iter().map(|pixel| pixel * 2.0).collect()),
            }
        }
    }

    #[test]
    fn a_batch_is_cut_among_the_models_and_joined_in_order() {
        for cards in 1..5 {
            let mut fleet = Fleet::new((0..cards).map(|_| Doubler(0)).collect()).unwrap();
            assert_eq!(fleet.max_batch(), 4 * cards);
            for images in [1, 2, 3, 7, 8] {
                let pixels: Vec<f32> = (0..images * 2).map(|i| i as f32).collect();
                let wanted: Vec<f32> = pixels.iter().map(|pixel| pixel * 2.0).collect();
                assert_eq!(fleet.encode(&pixels, images).unwrap(), wanted);
                assert_eq!(fleet.encode_each(&pixels.chunks(2).collect::<Vec<_>>()).unwrap(), wanted);
            }
            assert!(fleet.0.iter().all(|model| model.0 > 0), "every card has worked");
            assert!(fleet.encode(&[1.0, 2.0, 3.0, -1.0], 2).is_err());
        }
        assert!(Fleet::<Doubler>::new(vec![]).is_none());
    }
}
