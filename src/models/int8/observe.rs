//! The float32 graphs run with their activations watched.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;

use super::range::Range;
use crate::models::config::{ClipConfig, DecoderConfig, MapperConfig};
use crate::models::decoders::{architecture, cache_name};
use crate::models::embedding::TokenEmbedding;
use crate::models::encoder::LoadError;
use crate::models::graphs::{GraphKind, build};
use crate::models::layers::Style;
use crate::onnx::Product;
use crate::runtime::{Feed, Runtime, RuntimeError, Session};

/// A graph, its products, and what their activations were so far (by name).
struct Observer {
    session: Session,
    products: Vec<Product>,
    ranges: BTreeMap<String, Range>,
}

impl Observer {
    fn load(runtime: &Runtime, folder: &Path, kind: GraphKind<'_>) -> Result<Self, LoadError> {
        let model = build(folder, kind, Style::PORTABLE)?;
        let products = model.products();
        let ranges = products.iter().map(|product| (product.activation.clone(), Range::new(product.inputs))).collect();
        let session = Session::new(runtime, kind.name(), &model.observed().to_bytes(), folder, &[])?;
        Ok(Self { session, products, ranges })
    }

    /// Runs, takes note of the activations, and returns the named outputs.
    fn run(&mut self, feeds: &[(&str, Feed<'_>)], wanted: &[String]) -> Result<Vec<Vec<f32>>, RuntimeError> {
        let outputs = self.session.run(feeds)?;
        let mut seen = vec![];
        for (name, range) in &mut self.ranges {
            seen.push((range, outputs.f32(name)?));
        }
        seen.into_par_iter().for_each(|(range, values)| range.add(values));
        wanted.iter().map(|name| Ok(outputs.f32(name)?.to_vec())).collect()
    }

    fn finish(self) -> (Vec<Product>, BTreeMap<String, Range>) {
        (self.products, self.ranges)
    }
}

/// The image encoder.
pub struct EncoderObserver {
    observer: Observer,
    side: i64,
}

impl EncoderObserver {
    pub fn load(runtime: &Runtime, folder: &Path, config: &ClipConfig) -> Result<Self, LoadError> {
        let observer = Observer::load(runtime, folder, GraphKind::ImageEncoder(config))?;
        Ok(Self { observer, side: config.vision_config.image_size() as i64 })
    }

    /// Pixels [images, 3, S, S] to embeddings [images, D].
    pub fn encode(&mut self, pixel_values: &[f32], images: usize) -> Result<Vec<f32>, RuntimeError> {
        let shape = [images as i64, 3, self.side, self.side];
        Ok(self.observer.run(&[("pixel_values", Feed::F32(pixel_values, &shape))], &["image_embeds".into()])?.swap_remove(0))
    }

    pub fn finish(self) -> (Vec<Product>, BTreeMap<String, Range>) {
        self.observer.finish()
    }
}

/// The mapper.
pub struct MapperObserver(Observer);

impl MapperObserver {
    pub fn load(runtime: &Runtime, folder: &Path, config: &MapperConfig) -> Result<Self, LoadError> {
        Observer::load(runtime, folder, GraphKind::Mapper(config)).map(Self)
    }

    /// Embeddings [images, D] to prefixes [images, P, C].
    pub fn map(&mut self, embeddings: &[f32], images: usize) -> Result<Vec<f32>, RuntimeError> {
        let shape = [images as i64, (embeddings.len() / images.max(1)) as i64];
        Ok(self.0.run(&[("clip_embeds", Feed::F32(embeddings, &shape))], &["prefix_embeds".into()])?.swap_remove(0))
    }

    pub fn finish(self) -> (Vec<Product>, BTreeMap<String, Range>) {
        self.0.finish()
    }
}

/// The decoder, as it captions: a prefix, then its likeliest words one by one.
pub struct DecoderObserver {
    observer: Observer,
    tokens: TokenEmbedding,
    layers: usize,
    width: usize,
    /// Caches are [rows, heads, positions, width].
    cache: [i64; 2],
}

impl DecoderObserver {
    pub fn load(runtime: &Runtime, folder: &Path, config: &DecoderConfig) -> Result<Self, LoadError> {
        let observer = Observer::load(runtime, folder, GraphKind::Decoder(config))?;
        let shape = observer.session.input_shape(&cache_name("past_key_values", 0, "key"));
        let cache = [1, 3].map(|axis| shape.get(axis).copied().unwrap_or(0));
        let sizes = architecture(config).sizes();
        let (layers, width) = (sizes.n_layer, sizes.n_embd);
        Ok(Self { observer, tokens: TokenEmbedding::open(folder, config)?, layers, width, cache })
    }

    /// Captions `prefixes` [rows, P, C] with up to `max_tokens` words each, any of `ends` being the last.
    pub fn caption(&mut self, prefixes: &[f32], rows: usize, ends: &[u32], max_tokens: usize) -> Result<(), RuntimeError> {
        let mut rows = rows;
        let (mut embeds, mut past) = (prefixes.to_vec(), 0);
        let names = |kind| {
            let pairs = (0..self.layers).flat_map(|layer| ["key", "value"].map(|part| (layer, part)));
            pairs.map(move |(layer, part)| cache_name(kind, layer, part)).collect::<Vec<_>>()
        };
        let (inputs, mut wanted) = (names("past_key_values"), names("present"));
        wanted.push("logits".into());
        let mut caches = vec![vec![]; inputs.len()];
        for _ in 0..max_tokens.max(1) {
            let sequence = embeds.len() / (rows * self.width).max(1);
            let positions: Vec<i64> = (0..rows).flat_map(|_| past as i64..(past + sequence) as i64).collect();
            let mask = vec![1; rows * (past + sequence)];
            let [b, s, p] = [rows, sequence, past].map(|n| n as i64);
            let (embeds_shape, ids_shape, mask_shape) = ([b, s, self.width as i64], [b, s], [b, p + s]);
            let cache_shape = [b, self.cache[0], p, self.cache[1]];
            let mut feeds = vec![
                ("inputs_embeds", Feed::F32(&embeds, &embeds_shape)),
                ("position_ids", Feed::I64(&positions, &ids_shape)),
                ("attention_mask", Feed::I64(&mask, &mask_shape)),
            ];
            feeds.extend(inputs.iter().zip(&caches).map(|(name, cache)| (name.as_str(), Feed::F32(cache, &cache_shape))));
            let mut outputs = self.observer.run(&feeds, &wanted)?;
            let logits = outputs.pop().unwrap_or_default();
            past += sequence;
            let words: Vec<u32> = logits.chunks_exact(logits.len() / rows).map(likeliest).collect();
            let open: Vec<usize> = (0..rows).filter(|&row| !ends.contains(&words[row])).collect();
            if open.is_empty() {
                break;
            }
            let stay = |cache: &Vec<f32>| -> Vec<f32> {
                let row = cache.len() / rows;
                open.iter().flat_map(|&kept| &cache[kept * row..][..row]).copied().collect()
            };
            caches = outputs.iter().map(stay).collect();
            embeds = self.tokens.rows(&open.iter().map(|&row| words[row]).collect::<Vec<_>>())?;
            rows = open.len();
        }
        Ok(())
    }

    pub fn finish(self) -> (Vec<Product>, BTreeMap<String, Range>) {
        self.observer.finish()
    }
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = index;
        }
    }
    best as u32
}
