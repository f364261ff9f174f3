//! Self-critical sequence training (Rennie et al., 2017): the model samples captions of an image, each is worth its CIDEr against the image's
//! references, and a sample is made likelier by as much as it is worth more than the mean of the image's other samples.
//!
//! CIDEr is `evaluate`'s by characters, with document frequencies of the training images' references. Samples follow from (seed, image content, step)
//! and from the parameters, so that a run that was interrupted goes on to the same numbers.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::data::Dataset;
use super::settings::Recipe;
use crate::dataset::normalize::{FoldWidth, normalized};
use crate::files::ContentHash;
use crate::generation::{Caption, FinishReason, FinishedImage, Generator, Request, Sampling, Settings, Strategy};
use crate::metrics::{Interner, Scorer};
use crate::models::{Bundle, CachedDecoder, Mapper, PrefixMapper};
use crate::runtime::Runtime;
use crate::stages::evaluate::levels::tokenize;
use crate::stages::evaluate::{Letters, Level};
use crate::stages::loading::special_tokens;
use crate::text::Tokenizer;
use crate::training::batches::{Batch, Shape};
use crate::training::corpus::Corpus;
use crate::training::parameters::Layout;

/// Rows that are decoded side by side.
const ROWS: usize = 64;

/// Samples captions with the parameters as they are and says what they are worth.
pub struct Sampler {
    mapper: PrefixMapper,
    decoder: CachedDecoder,
    finetunes_gpt2: bool,
    scope: String,
    generator: Generator,
    tokenizer: Tokenizer,
    prompt_ids: Vec<u32>,
    references: References,
}

/// What training images' captions are compared with.
struct References {
    interner: Interner,
    scorer: Scorer<'static>,
    /// The scorer's number of an image, by its row in the corpus.
    numbers: HashMap<usize, usize>,
}

/// What a step sampled.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reward {
    /// Mean CIDEr of the samples.
    pub mean: f64,
    /// Standard deviation of the samples from the mean of the image's others.
    pub spread: f64,
}

/// A batch with what its samples were worth.
pub struct Sampled {
    pub batch: Batch,
    /// CIDEr of each sample, and its advantage over the mean of its image's others.
    pub values: Vec<(f64, f64)>,
}

impl Reward {
    /// Over all samples of a step.
    pub fn of(values: &[(f64, f64)]) -> Self {
        let count = values.len().max(1) as f64;
        let mean = values.iter().map(|(value, _)| value).sum::<f64>() / count;
        Self { mean, spread: (values.iter().map(|(_, advantage)| advantage * advantage).sum::<f64>() / count).sqrt() }
    }
}

impl References {
    fn of(corpus: &Corpus, dataset: &Dataset) -> Result<Self> {
        let mut rows: Vec<usize> = (0..corpus.train.len()).map(|caption| corpus.train.image_row(caption)).collect();
        rows.sort_unstable();
        rows.dedup();
        let texts = dataset.captions_of(&corpus.image_ids(&rows)?)?;
        if let Some(at) = texts.iter().position(Vec::is_empty) {
            bail!("the image in row {} has no reference captions in the dataset", rows[at]);
        }
        let mut interner = Interner::default();
        let tokens = tokenize(Level::Char, Letters::default(), &texts, |texts: &Vec<String>| texts.as_slice(), &mut interner);
        let numbers = rows.into_iter().enumerate().map(|(number, row)| (row, number)).collect();
        Ok(Self { interner, scorer: Scorer::owning(tokens), numbers })
    }

    /// CIDEr of captions of an image.
    fn worth(&self, image_row: usize, texts: &[String]) -> Result<Vec<f64>> {
        let number = self.numbers.get(&image_row).context("an image without references")?;
        let ids = |text: &String| {
            let text = normalized(text, FoldWidth::None);
            self.interner.known_ids(Level::Char.tokens(&text, Letters::default()))
        };
        Ok(self.scorer.ciders(*number, &texts.iter().map(ids).collect::<Vec<_>>()))
    }
}

impl Sampler {
    /// Readies sampling on the CPU for a run of `recipe` from `bundle`.
    pub fn new(runtime: &Runtime, bundle: &Bundle, corpus: &Corpus, dataset: &Dataset, recipe: &Recipe) -> Result<Self> {
        let runtime = runtime.on_cpu();
        let (folder, config, mapper) = (bundle.path(), bundle.decoder_config(), bundle.mapper_config());
        let prompt_ids = recipe.prompt_ids(bundle)?;
        let prefix_len = mapper.prefix_len + prompt_ids.len();
        let max_new_tokens = (recipe.max_tokens(bundle) - prompt_ids.len()).max(1);
        let load = if recipe.finetune_gpt2 { CachedDecoder::fed } else { CachedDecoder::load };
        let tokenizer = bundle.tokenizer()?;
        let sampling = Sampling { seed: recipe.seed, ..Sampling::default() };
        // The model's own distribution: what is cut off or stopped in it would not be what the gradient is of.
        let settings = Settings {
            strategy: Strategy::Sample(sampling),
            num_captions: recipe.samples,
            max_new_tokens,
            loop_guard: false,
            ..Settings::default()
        };
        Ok(Self {
            mapper: PrefixMapper::fed(&runtime, folder, mapper, ROWS)?,
            decoder: load(&runtime, folder, config, prefix_len, ROWS.max(recipe.samples), max_new_tokens)?,
            finetunes_gpt2: recipe.finetune_gpt2,
            scope: bundle.decoder_scope().into(),
            generator: Generator::new(settings, special_tokens(bundle, &tokenizer))?,
            tokenizer,
            prompt_ids,
            references: References::of(corpus, dataset)?,
        })
    }

    /// Takes over the parameters of the run.
    pub fn take(&mut self, layout: &Layout, parameters: &[f32]) -> Result<()> {
        let value = |name: &str| layout.get(name).map(|slot| &parameters[slot.range()]);
        self.mapper.set_weights(value)?;
        if self.finetunes_gpt2 {
            let scope = &self.scope;
            self.decoder.set_weights(|name| value(&format!("{scope}{name}")))?;
        }
        Ok(())
    }

    /// Samples captions of the images in these rows and lays them out for the training graph, weighted by their advantages.
    pub fn sample(&mut self, corpus: &Corpus, rows: &[usize], step: u64, shape: &Shape) -> Result<Sampled> {
        let captions = self.captions(corpus, rows, step)?;
        let mut sequences: Vec<(usize, Vec<u32>)> = vec![];
        let mut values = vec![];
        for (&row, captions) in rows.iter().zip(captions) {
            let texts: Vec<String> = captions.iter().map(|caption| self.tokenizer.decode(&caption.token_ids)).collect();
            let worth = self.references.worth(row, &texts)?;
            values.extend(worth.iter().zip(advantages(&worth)).map(|(value, advantage)| (*value, advantage)));
            sequences.extend(captions.into_iter().map(|caption| (row, self.learned(caption))));
        }
        let rows: Vec<(usize, &[u32])> = sequences.iter().map(|(row, ids)| (*row, ids.as_slice())).collect();
        let weights: Vec<f32> = values.iter().map(|(_, advantage)| *advantage as f32).collect();
        Ok(Sampled { batch: Batch::weighted(corpus, &rows, &weights, shape), values })
    }

    /// A sample's ids as they are learned: behind the prompt, and with what ends it where the model ended it.
    fn learned(&self, caption: Caption) -> Vec<u32> {
        let mut ids = caption.token_ids;
        if caption.finish_reason == FinishReason::Eos {
            ids = self.tokenizer.with_end(ids);
        }
        [self.prompt_ids.as_slice(), &ids].concat()
    }

    fn captions(&mut self, corpus: &Corpus, rows: &[usize], step: u64) -> Result<Vec<Vec<Caption>>> {
        let embeddings: Vec<f32> = rows.iter().flat_map(|&row| corpus.embedding(row)).collect();
        let prefixes = self.mapper.map(&embeddings, rows.len())?;
        let prompt = self.decoder.embedded(&self.prompt_ids)?;
        let width = prefixes.len() / rows.len().max(1);
        let request = |(number, &row): (usize, &usize)| Request {
            index: number as u64,
            sha256: draw_key(step, corpus.image_bytes(row)),
            prefix_embeds: [&prefixes[number * width..(number + 1) * width], &prompt].concat(),
        };
        let mut requests = Some(rows.iter().enumerate().map(request).collect::<Vec<_>>());
        let mut captions = vec![vec![]; rows.len()];
        self.generator.run::<anyhow::Error>(
            &mut self.decoder,
            || Ok(requests.take()),
            |FinishedImage { index, captions: found }| {
                captions[index as usize] = found;
                Ok(())
            },
        )?;
        Ok(captions)
    }
}

/// By how much each is worth more than the mean of the others.
fn advantages(worth: &[f64]) -> Vec<f64> {
    let (sum, others) = (worth.iter().sum::<f64>(), worth.len() as f64 - 1.0);
    worth.iter().map(|value| value - (sum - value) / others.max(1.0)).collect()
}

/// What decides the draws of an image beside the seed.
fn draw_key(step: u64, image: &[u8]) -> ContentHash {
    Sha256::new().chain_update(b"clipcap scst/1").chain_update(step.to_le_bytes()).chain_update(image).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_judged_by_the_others_of_its_image() {
        assert_eq!(advantages(&[3.0, 1.0, 2.0]), [1.5, -1.5, 0.0]);
        assert_eq!(advantages(&[2.0, 2.0]), [0.0, 0.0]);
        let reward = Reward::of(&[(3.0, 1.5), (1.0, -1.5), (2.0, 0.0)]);
        assert_eq!((reward.mean, reward.spread), (2.0, 1.5f64.sqrt()));
        assert_ne!(draw_key(1, b"a"), draw_key(2, b"a"));
        assert_ne!(draw_key(1, b"a"), draw_key(1, b"b"));
    }
}
