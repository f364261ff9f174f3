//! Decoding on the CPU over caches that are updated in place: rows of any length side by side, nothing concatenated or copied
//! while they grow. Where this program's own attention is used, the keys and values of a prefix are there once, however many rows begin with it.

use std::path::Path;

use rayon::prelude::*;

use super::Decoder;
use super::config::DecoderConfig;
use super::decoders::{Sizes, architecture, cache_name, in_place_layout};
use super::embedding::TokenEmbedding;
use super::encoder::{LoadError, style_for};
use super::fed::FedWeights;
use super::graphs::{GraphKind, build, build_fed};
use super::layers::Style;
use super::prefixes::Prefixes;
use crate::onnx::Model;
use crate::runtime::{InPlace, Runtime, RuntimeError, Session};

const MODEL: &str = "decoder";

/// Keys or values of one layer: [rows, G', length, D'] (see [`in_place_layout`]).
type Cache = Vec<f32>;

/// A decoder with its cache in our memory.
pub struct CachedDecoder {
    session: Session,
    sizes: Sizes,
    tokens: TokenEmbedding,
    /// Weights that are handed over at each run; mostly none.
    fed: FedWeights,
    /// The token embedding's name among those.
    embedding: String,
    prefix_len: usize,
    max_rows: usize,
    /// Positions a row has room for, prefix included.
    length: usize,
    /// Positions of a row's own caches: without the prefix where that is shared.
    own_length: usize,
    /// Heads of a cache and the width of each.
    layout: [usize; 2],
    /// Keys and values of every layer, one after the other: [2 * n_layer][max_rows, G', own length, D'].
    caches: Vec<Cache>,
    /// What rows begin with, where they share it.
    prefixes: Option<Prefixes>,
    /// Positions used by each row.
    used: Vec<usize>,
    /// Caches of the prefixes of the last prefill, [2 * n_layer][num_prefixes, G', P, D'].
    held: Vec<Cache>,
    num_held: usize,
    logits: Vec<f32>,
}

impl CachedDecoder {
    /// Room for `max_rows` rows of a prefix and `max_new_tokens` tokens each.
    pub fn load(
        runtime: &Runtime,
        folder: &Path,
        config: &DecoderConfig,
        prefix_len: usize,
        max_rows: usize,
        max_new_tokens: usize,
    ) -> Result<Self, LoadError> {
        Self::load_in(runtime, folder, config, style_for(runtime), [prefix_len, max_rows, max_new_tokens])
    }

    /// The same in a style that is chosen by hand.
    pub fn load_in(
        runtime: &Runtime,
        folder: &Path,
        config: &DecoderConfig,
        style: Style,
        sizes: [usize; 3],
    ) -> Result<Self, LoadError> {
        let model = build(folder, GraphKind::InPlaceDecoder(config), style)?;
        Self::over(runtime, folder, config, style, (model, FedWeights::default()), sizes)
    }

    /// The same with weights that are handed over by [`set_weights`](Self::set_weights), in float32; the bundle at `folder` gives their names
    /// and shapes.
    pub fn fed(
        runtime: &Runtime,
        folder: &Path,
        config: &DecoderConfig,
        prefix_len: usize,
        max_rows: usize,
        max_new_tokens: usize,
    ) -> Result<Self, LoadError> {
        let style = Style { own: false, ..style_for(runtime) };
        let (model, mut fed) = build_fed(folder, GraphKind::InPlaceDecoder(config), style, &|_| true)?;
        let sizes = architecture(config).sizes();
        fed.also(&embedding_name(config), vec![sizes.vocab_size as i64, sizes.n_embd as i64]);
        Self::over(runtime, folder, config, style, (model, fed), [prefix_len, max_rows, max_new_tokens])
    }

    fn over(
        runtime: &Runtime,
        folder: &Path,
        config: &DecoderConfig,
        style: Style,
        (model, fed): (Model, FedWeights),
        [prefix_len, max_rows, max_new_tokens]: [usize; 3],
    ) -> Result<Self, LoadError> {
        let sizes = architecture(config).sizes();
        let session = Session::new(runtime, MODEL, &model.to_bytes(), folder, &[])?;
        // The last token is never fed, so it needs no room.
        let length = (prefix_len + max_new_tokens.max(1) - 1).min(sizes.n_positions);
        let layout = in_place_layout(&sizes, style);
        let own_length = if style.own { (length - prefix_len).max(1) } else { length };
        let width = layout[0] * layout[1];
        let elements = max_rows * own_length * width;
        check_room(max_rows * length * width * 2 * sizes.n_layer, max_rows)?;
        Ok(Self {
            session,
            tokens: TokenEmbedding::open(folder, config)?,
            fed,
            embedding: embedding_name(config),
            prefix_len,
            max_rows,
            length,
            own_length,
            layout,
            caches: untouched(2 * sizes.n_layer, elements),
            prefixes: style.own.then(|| Prefixes::new(2 * sizes.n_layer, max_rows, prefix_len * width)),
            used: vec![],
            held: vec![vec![]; 2 * sizes.n_layer],
            num_held: 0,
            logits: vec![],
            sizes,
        })
    }

    /// See [`FedWeights::set`].
    pub fn set_weights<'a>(&mut self, value_of: impl Fn(&str) -> Option<&'a [f32]>) -> Result<(), RuntimeError> {
        self.fed.set(value_of)
    }

    /// The embeddings [tokens, C].
    pub fn embedded(&self, tokens: &[u32]) -> Result<Vec<f32>, RuntimeError> {
        let Some(table) = self.fed.get(&self.embedding) else { return self.tokens.rows(tokens) };
        let width = self.sizes.n_embd;
        let row = |&token: &u32| table.get(token as usize * width..(token as usize + 1) * width);
        let rows: Option<Vec<&[f32]>> = tokens.iter().map(row).collect();
        let message = || format!("a token that is not in the vocabulary of {}", self.sizes.vocab_size);
        rows.map(|rows| rows.concat()).ok_or_else(|| RuntimeError::Model { model: MODEL.into(), message: message() })
    }

    /// Runs `embeds` [rows, sequence, C] after `used` positions of each row and leaves logits [rows, V] in `self.logits`.
    fn forward(&mut self, target: Target, embeds: &mut [f32], sequence: usize, used: &[usize]) -> Result<(), RuntimeError> {
        let rows = used.len();
        let (b, s) = (rows as i64, sequence as i64);
        let [h, d] = self.layout.map(|n| n as i64);
        let (caches, length) = match target {
            Target::Rows => (&mut self.caches, self.own_length as i64),
            Target::Held => (&mut self.held, self.prefix_len as i64),
        };
        let mut positions: Vec<i64> = used.iter().flat_map(|&u| (0..sequence).map(move |i| (u + i) as i64)).collect();
        let shared = if self.prefixes.is_some() && target == Target::Rows { self.prefix_len } else { 0 };
        let mut lengths: Vec<i32> = used.iter().map(|&u| (u - shared + sequence - 1) as i32).collect();
        let mut total = [used.iter().max().map_or(0, |&u| (u + sequence) as i32)];
        let mut owners = match (&self.prefixes, target) {
            (Some(prefixes), Target::Rows) => prefixes.owners(),
            _ => vec![-1; rows],
        };
        self.logits.resize(rows * self.sizes.vocab_size, 0.0);

        let mut inputs = self.fed.inputs()?;
        inputs.extend([
            InPlace::f32("inputs_embeds", embeds, &[b, s, self.sizes.n_embd as i64])?,
            InPlace::i64("position_ids", &mut positions, &[b, s])?,
            InPlace::i32("seqlens_k", &mut lengths, &[b])?,
        ]);
        match &mut self.prefixes {
            None => inputs.push(InPlace::i32("total_sequence_length", &mut total, &[1])?),
            Some(prefixes) => {
                inputs.push(InPlace::i32("owners", &mut owners, &[b])?);
                let shape = [prefixes.count() as i64, h, self.prefix_len as i64, d];
                for (i, cache) in prefixes.caches().iter_mut().enumerate() {
                    inputs.push(InPlace::f32(&cache_name("prefix", i / 2, ["key", "value"][i % 2]), cache, &shape)?);
                }
            }
        }
        let mut outputs = vec![InPlace::f32("logits", &mut self.logits, &[b, self.sizes.vocab_size as i64])?];
        for (i, cache) in caches.iter_mut().enumerate() {
            let (layer, part) = (i / 2, ["key", "value"][i % 2]);
            let shape = [b, h, length, d];
            debug_assert!(cache.len() as i64 >= shape.iter().product::<i64>());
            let data = cache.as_mut_ptr();
            // SAFETY: the cache holds at least `rows` rows of that shape and outlives the run; past and present are one memory, which is
            // how the operator is told to append in place.
            unsafe {
                inputs.push(InPlace::raw_f32(&cache_name("past_key_values", layer, part), data, &shape)?);
                outputs.push(InPlace::raw_f32(&cache_name("present", layer, part), data, &shape)?);
            }
        }
        self.session.run_in_place(&inputs, &mut outputs)
    }
}

fn embedding_name(config: &DecoderConfig) -> String {
    format!("{}.weight", architecture(config).embedding())
}

/// So many caches of zeros, each as the system hands it out: copies of one would be written, and take memory, before any row needs it.
pub(super) fn untouched(count: usize, elements: usize) -> Vec<Cache> {
    (0..count).map(|_| vec![0.0; elements]).collect()
}

/// Memory that is not there is told, in place of an end of the whole program.
fn check_room(elements: usize, rows: usize) -> Result<(), RuntimeError> {
    Vec::<f32>::new().try_reserve_exact(elements).map_err(|_| RuntimeError::Model {
        model: MODEL.into(),
        message: format!("no memory for the caches of {rows} rows ({} GiB): lower --batch-size or --num-beams", elements >> 28),
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Target {
    Rows,
    Held,
}

impl Decoder for CachedDecoder {
    fn vocab_size(&self) -> usize {
        self.sizes.vocab_size
    }

    fn prefix_len(&self) -> usize {
        self.prefix_len
    }

    fn n_embd(&self) -> usize {
        self.sizes.n_embd
    }

    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn max_new_tokens(&self) -> usize {
        self.length + 1 - self.prefix_len
    }

    fn prefill(&mut self, prefix_embeds: &[f32], num_prefixes: usize) -> Result<Vec<f32>, RuntimeError> {
        let wanted = [num_prefixes, self.prefix_len, self.sizes.n_embd];
        if prefix_embeds.len() != wanted.iter().product::<usize>() {
            return Err(RuntimeError::Shape {
                model: MODEL.into(),
                what: "prefix_embeds".into(),
                found: vec![prefix_embeds.len() as i64],
                wanted: wanted.map(|d| d as i64).to_vec(),
            });
        }
        let elements = num_prefixes * self.prefix_len * self.layout[0] * self.layout[1];
        for cache in &mut self.held {
            cache.resize(elements, 0.0);
        }
        self.num_held = num_prefixes;
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.forget_held(num_prefixes);
        }
        let mut embeds = prefix_embeds.to_vec();
        self.forward(Target::Held, &mut embeds, self.prefix_len, &vec![0; num_prefixes])?;
        Ok(self.logits.clone())
    }

    fn start_row(&mut self, prefix: usize) -> Result<(), RuntimeError> {
        let row = self.used.len();
        if row >= self.max_rows || prefix >= self.num_held {
            let message = format!("row {row} of {} from prefix {prefix} of {}", self.max_rows, self.num_held);
            return Err(RuntimeError::Model { model: MODEL.into(), message });
        }
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.start_row(prefix, &self.held);
            self.used.push(self.prefix_len);
            return Ok(());
        }
        let ([heads, d], p, length) = (self.layout, self.prefix_len, self.length);
        for (cache, held) in self.caches.iter_mut().zip(&self.held) {
            for head in 0..heads {
                let (to, from) = ((row * heads + head) * length * d, (prefix * heads + head) * p * d);
                cache[to..to + p * d].copy_from_slice(&held[from..from + p * d]);
            }
        }
        self.used.push(p);
        Ok(())
    }

    fn gather_rows(&mut self, sources: &[usize]) -> Result<(), RuntimeError> {
        if sources.len() > self.max_rows || sources.iter().any(|&s| s >= self.used.len()) {
            let message = format!("rows {sources:?} out of {} (at most {})", self.used.len(), self.max_rows);
            return Err(RuntimeError::Model { model: MODEL.into(), message });
        }
        let ([heads, d], length) = (self.layout, self.own_length);
        let (stride, used) = (heads * length * d, &self.used);
        let shared = if let Some(prefixes) = &mut self.prefixes {
            prefixes.gather_rows(sources);
            self.prefix_len
        } else {
            0
        };
        self.caches.par_iter_mut().for_each(|cache| {
            // A row that was overwritten before a later row reads it is kept aside first.
            let mut aside: Vec<(usize, Vec<f32>)> = vec![];
            for (to, &from) in sources.iter().enumerate() {
                if to != from && sources[to + 1..].contains(&to) {
                    aside.push((to, cache[to * stride..(to + 1) * stride].to_vec()));
                }
                if to == from {
                    continue;
                }
                let kept = aside.iter().find(|(row, _)| *row == from && from < to);
                for head in 0..heads {
                    let (offset, count) = (head * length * d, (used[from] - shared) * d);
                    match kept {
                        Some((_, copy)) => {
                            let at = to * stride + offset;
                            cache[at..at + count].copy_from_slice(&copy[offset..offset + count]);
                        }
                        None => cache.copy_within(from * stride + offset..from * stride + offset + count, to * stride + offset),
                    }
                }
            }
        });
        self.used = sources.iter().map(|&s| self.used[s]).collect();
        Ok(())
    }

    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], RuntimeError> {
        let fits = tokens.len() == self.used.len() && self.used.iter().all(|&u| u < self.length);
        if !fits {
            let message = format!("{} tokens for {} rows of at most {} positions", tokens.len(), self.used.len(), self.length);
            return Err(RuntimeError::Model { model: MODEL.into(), message });
        }
        let mut embeds = self.embedded(tokens)?;
        let used = self.used.clone();
        self.forward(Target::Rows, &mut embeds, 1, &used)?;
        for used in &mut self.used {
            *used += 1;
        }
        Ok(&self.logits[..tokens.len() * self.sizes.vocab_size])
    }
}
