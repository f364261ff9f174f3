//! Decoding with caches that live on the device (CUDA), in any precision. Every run goes from one set of cache tensors to the next,
//! so nothing but embeddings and logits crosses to the host. Rows are moved by a graph too.

use std::path::Path;

use super::Decoder;
use super::config::DecoderConfig;
use super::decoders::{Sizes, architecture, cache_name};
use super::embedding::TokenEmbedding;
use super::encoder::{LoadError, style_for};
use super::graphs::{Part, build};
use crate::runtime::{Feed, Resident, ResidentFeed, Runtime, RuntimeError, Session};

const MODEL: &str = "decoder";

/// Where a row of the next step comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Source {
    /// A row of the caches, by number.
    Row(usize),
    /// A prefix of the last prefill.
    Held(usize),
}

/// A row as the caller sees it.
#[derive(Debug, Clone, Copy)]
struct Row {
    source: Source,
    used: usize,
}

/// A decoder with caches of a fixed length on the device.
pub struct ResidentDecoder {
    runtime: Runtime,
    prefill: Session,
    step: Session,
    pick: Session,
    sizes: Sizes,
    tokens: TokenEmbedding,
    prefix_len: usize,
    max_rows: usize,
    length: usize,
    past_names: Vec<String>,
    held_names: Vec<String>,
    present_names: Vec<String>,
    caches: Vec<Resident>,
    num_cached: usize,
    held: Vec<Resident>,
    num_held: usize,
    rows: Vec<Row>,
    logits: Vec<f32>,
}

impl ResidentDecoder {
    /// Room for `max_rows` rows of a prefix and `max_new_tokens` tokens each.
    pub fn load(
        runtime: &Runtime,
        folder: &Path,
        config: &DecoderConfig,
        prefix_len: usize,
        max_rows: usize,
        max_new_tokens: usize,
    ) -> Result<Self, LoadError> {
        let sizes = architecture(config).sizes();
        let length = (prefix_len + max_new_tokens.max(1) - 1).min(sizes.n_positions);
        let session = |part: Part<'_>| -> Result<Session, LoadError> {
            let model = build(folder, part, style_for(runtime))?;
            Ok(Session::new(runtime, part.name(), &model.to_bytes(), folder, &[])?)
        };
        let names = |kind: &str| {
            (0..sizes.n_layer).flat_map(|layer| ["key", "value"].map(|part| cache_name(kind, layer, part))).collect::<Vec<_>>()
        };
        Ok(Self {
            prefill: session(Part::StaticPrefill { config, prefix_len, length })?,
            step: session(Part::StaticStep { config, length })?,
            pick: session(Part::PickRows { config, length })?,
            runtime: runtime.clone(),
            tokens: TokenEmbedding::open(folder, config)?,
            sizes,
            prefix_len,
            max_rows,
            length,
            past_names: names("past_key_values"),
            held_names: names("held"),
            present_names: names("present"),
            caches: vec![],
            num_cached: 0,
            held: vec![],
            num_held: 0,
            rows: vec![],
            logits: vec![],
        })
    }

    /// Brings the caches into the order of `rows`.
    fn settle(&mut self) -> Result<(), RuntimeError> {
        let settled =
            self.rows.len() == self.num_cached && self.rows.iter().enumerate().all(|(i, row)| row.source == Source::Row(i));
        if settled {
            return Ok(());
        }
        // Before the first step there are no caches: the held ones stand in, and none of their rows is picked as a running row.
        let (past, offset) = if self.caches.is_empty() { (&self.held, self.num_held) } else { (&self.caches, self.num_cached) };
        let number = |row: &Row| match row.source {
            Source::Row(i) => i as i64,
            Source::Held(i) => (offset + i) as i64,
        };
        let picked: Vec<i64> = self.rows.iter().map(number).collect();
        let shape = [picked.len() as i64];
        let mut feeds = vec![("rows", ResidentFeed::Host(Feed::I64(&picked, &shape)))];
        for (i, cache) in past.iter().enumerate() {
            feeds.push((&self.past_names[i], ResidentFeed::Device(cache)));
            feeds.push((&self.held_names[i], ResidentFeed::Device(&self.held[i])));
        }
        let (_, caches) = self.pick.run_resident(&self.runtime, &feeds, &[], &self.present_names)?;
        self.caches = caches;
        self.num_cached = self.rows.len();
        for (i, row) in self.rows.iter_mut().enumerate() {
            row.source = Source::Row(i);
        }
        Ok(())
    }
}

impl Decoder for ResidentDecoder {
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
        let shape = [num_prefixes as i64, self.prefix_len as i64, self.sizes.n_embd as i64];
        if prefix_embeds.len() as i64 != shape.iter().product::<i64>() {
            let (found, wanted) = (vec![prefix_embeds.len() as i64], shape.to_vec());
            return Err(RuntimeError::Shape { model: MODEL.into(), what: "prefix_embeds".into(), found, wanted });
        }
        if self.rows.iter().any(|row| matches!(row.source, Source::Held(_))) {
            self.settle()?;
        }
        let feeds = [("inputs_embeds", ResidentFeed::Host(Feed::F32(prefix_embeds, &shape)))];
        let (mut host, held) = self.prefill.run_resident(&self.runtime, &feeds, &["logits"], &self.present_names)?;
        (self.held, self.num_held) = (held, num_prefixes);
        Ok(host.swap_remove(0))
    }

    fn start_row(&mut self, prefix: usize) -> Result<(), RuntimeError> {
        if self.rows.len() >= self.max_rows || prefix >= self.num_held {
            let message = format!("row {} of {} from prefix {prefix} of {}", self.rows.len(), self.max_rows, self.num_held);
            return Err(RuntimeError::Model { model: MODEL.into(), message });
        }
        self.rows.push(Row { source: Source::Held(prefix), used: self.prefix_len });
        Ok(())
    }

    fn gather_rows(&mut self, sources: &[usize]) -> Result<(), RuntimeError> {
        if sources.len() > self.max_rows || sources.iter().any(|&s| s >= self.rows.len()) {
            let message = format!("rows {sources:?} out of {} (at most {})", self.rows.len(), self.max_rows);
            return Err(RuntimeError::Model { model: MODEL.into(), message });
        }
        self.rows = sources.iter().map(|&s| self.rows[s]).collect();
        Ok(())
    }

    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], RuntimeError> {
        if tokens.len() != self.rows.len() || self.rows.iter().any(|row| row.used >= self.length) {
            let message = format!("{} tokens for {} rows of at most {} positions", tokens.len(), self.rows.len(), self.length);
            return Err(RuntimeError::Model { model: MODEL.into(), message });
        }
        self.settle()?;
        let embeds = self.tokens.rows(tokens)?;
        let positions: Vec<i64> = self.rows.iter().map(|row| row.used as i64).collect();
        let rows = tokens.len() as i64;
        let (embeds_shape, positions_shape) = ([rows, 1, self.sizes.n_embd as i64], [rows, 1]);
        let mut feeds = vec![
            ("inputs_embeds", ResidentFeed::Host(Feed::F32(&embeds, &embeds_shape))),
            ("position_ids", ResidentFeed::Host(Feed::I64(&positions, &positions_shape))),
        ];
        feeds.extend(self.past_names.iter().zip(&self.caches).map(|(name, cache)| (name.as_str(), ResidentFeed::Device(cache))));
        let (mut host, caches) = self.step.run_resident(&self.runtime, &feeds, &["logits"], &self.present_names)?;
        self.caches = caches;
        self.logits = host.swap_remove(0);
        for row in &mut self.rows {
            row.used += 1;
        }
        Ok(&self.logits)
    }
}
