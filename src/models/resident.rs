//! Decoding with caches that live on the device (CUDA), in any precision. Every run goes from one set of cache tensors to the next,
//! so nothing but prefixes, tokens and the best logits of each row crosses the bus. Rows are moved by a graph too.

use std::path::Path;

use super::Decoder;
use super::config::DecoderConfig;
use super::decoder::{Best, Logits, Picked};
use super::decoders::{Sizes, architecture, cache_name};
use super::encoder::{LoadError, style_for};
use super::graphs::{GraphKind, build};
use crate::runtime::{Feed, Resident, ResidentFeed, Runtime, RuntimeError, Session};

const MODEL: &str = "decoder";

/// Where a row of the next step comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum RowSource {
    /// A row of the caches, by number.
    Row(usize),
    /// A prefix of the last prefill.
    Held(usize),
}

/// A row as the caller sees it.
#[derive(Debug, Clone, Copy)]
struct Row {
    source: RowSource,
    used: usize,
}

/// A decoder with caches of a fixed length on the device.
pub struct ResidentDecoder {
    runtime: Runtime,
    prefill: Session,
    step: Session,
    pick: Session,
    pick_logits: Session,
    sizes: Sizes,
    /// How many of a row's logits come to the host.
    count: usize,
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
    /// Of the last run [rows, V], on the device.
    whole: Option<Resident>,
    /// Of the last step, where they were asked for.
    logits: Vec<f32>,
}

impl ResidentDecoder {
    /// Room for `max_rows` rows of a prefix and `max_new_tokens` tokens each. Of each row's logits the `picked` come to the host by themselves.
    pub fn load(
        runtime: &Runtime,
        folder: &Path,
        config: &DecoderConfig,
        prefix_len: usize,
        max_rows: usize,
        max_new_tokens: usize,
        picked: Picked,
    ) -> Result<Self, LoadError> {
        let sizes = architecture(config).sizes();
        let length = (prefix_len + max_new_tokens.max(1) - 1).min(sizes.n_positions);
        let session = |kind: GraphKind<'_>| -> Result<Session, LoadError> {
            let model = build(folder, kind, style_for(runtime))?;
            Ok(Session::new(runtime, kind.name(), &model.to_bytes(), folder, &[])?)
        };
        let names = |kind: &str| {
            (0..sizes.n_layer).flat_map(|layer| ["key", "value"].map(|part| cache_name(kind, layer, part))).collect::<Vec<_>>()
        };
        Ok(Self {
            prefill: session(GraphKind::StaticPrefill { config, prefix_len, length, picked })?,
            step: session(GraphKind::StaticStep { config, length, picked })?,
            pick: session(GraphKind::PickRows { config, length })?,
            pick_logits: session(GraphKind::PickLogits(config))?,
            runtime: runtime.clone(),
            count: picked.count.min(sizes.vocab_size),
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
            whole: None,
            logits: vec![],
        })
    }

    fn run_prefill(&mut self, prefix_embeds: &[f32], num_prefixes: usize) -> Result<Best, RuntimeError> {
        let shape = [num_prefixes as i64, self.prefix_len as i64, self.sizes.n_embd as i64];
        if prefix_embeds.len() as i64 != shape.iter().product::<i64>() {
            let (found, wanted) = (vec![prefix_embeds.len() as i64], shape.to_vec());
            return Err(RuntimeError::Shape { model: MODEL.into(), what: "prefix_embeds".into(), found, wanted });
        }
        if self.rows.iter().any(|row| matches!(row.source, RowSource::Held(_))) {
            self.settle()?;
        }
        let feeds = [("inputs_embeds", ResidentFeed::Host(Feed::F32(prefix_embeds, &shape)))];
        let mut outputs = self.present_names.clone();
        outputs.push("logits".into());
        let (mut host, mut held) = self.prefill.run_resident(&self.runtime, &feeds, &["best"], &outputs)?;
        self.whole = held.pop();
        (self.held, self.num_held) = (held, num_prefixes);
        Ok(Best { count: self.count, numbers: host.swap_remove(0) })
    }

    fn run_step(&mut self, tokens: &[u32]) -> Result<Best, RuntimeError> {
        if tokens.len() != self.rows.len() || self.rows.iter().any(|row| row.used >= self.length) {
            let message = format!("{} tokens for {} rows of at most {} positions", tokens.len(), self.rows.len(), self.length);
            return Err(RuntimeError::Model { model: MODEL.into(), message });
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.sizes.vocab_size) {
            let message = format!("token {token} is not in the vocabulary of {}", self.sizes.vocab_size);
            return Err(RuntimeError::Model { model: MODEL.into(), message });
        }
        self.settle()?;
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let positions: Vec<i64> = self.rows.iter().map(|row| row.used as i64).collect();
        let shape = [tokens.len() as i64, 1];
        let mut feeds = vec![
            ("input_ids", ResidentFeed::Host(Feed::I64(&ids, &shape))),
            ("position_ids", ResidentFeed::Host(Feed::I64(&positions, &shape))),
        ];
        feeds.extend(self.past_names.iter().zip(&self.caches).map(|(name, cache)| (name.as_str(), ResidentFeed::Device(cache))));
        let mut outputs = self.present_names.clone();
        outputs.push("logits".into());
        let (mut host, mut caches) = self.step.run_resident(&self.runtime, &feeds, &["best"], &outputs)?;
        self.whole = caches.pop();
        self.caches = caches;
        for row in &mut self.rows {
            row.used += 1;
        }
        Ok(Best { count: self.count, numbers: host.swap_remove(0) })
    }

    /// Brings the caches into the order of `rows`.
    fn settle(&mut self) -> Result<(), RuntimeError> {
        let settled =
            self.rows.len() == self.num_cached && self.rows.iter().enumerate().all(|(i, row)| row.source == RowSource::Row(i));
        if settled {
            return Ok(());
        }
        // Before the first step there are no caches: the held ones stand in, and none of their rows is picked as a running row.
        let (past, offset) = if self.caches.is_empty() { (&self.held, self.num_held) } else { (&self.caches, self.num_cached) };
        let number = |row: &Row| match row.source {
            RowSource::Row(i) => i as i64,
            RowSource::Held(i) => (offset + i) as i64,
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
            row.source = RowSource::Row(i);
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

    fn max_prefixes(&self) -> usize {
        128
    }

    fn prefill(&mut self, prefix_embeds: &[f32], num_prefixes: usize) -> Result<Vec<f32>, RuntimeError> {
        self.run_prefill(prefix_embeds, num_prefixes)?;
        self.whole_rows(&(0..num_prefixes).collect::<Vec<_>>())
    }

    fn prefill_best(&mut self, prefix_embeds: &[f32], num_prefixes: usize) -> Result<Logits<'_>, RuntimeError> {
        self.run_prefill(prefix_embeds, num_prefixes).map(Logits::Best)
    }

    fn step_best(&mut self, tokens: &[u32]) -> Result<Logits<'_>, RuntimeError> {
        self.run_step(tokens).map(Logits::Best)
    }

    fn whole_rows(&mut self, rows: &[usize]) -> Result<Vec<f32>, RuntimeError> {
        let Some(whole) = &self.whole else {
            return Err(RuntimeError::Model { model: MODEL.into(), message: "no run has left logits".into() });
        };
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let shape = [rows.len() as i64];
        let feeds = [("logits", ResidentFeed::Device(whole)), ("rows", ResidentFeed::Host(Feed::I64(&rows, &shape)))];
        Ok(self.pick_logits.run_resident(&self.runtime, &feeds, &["picked"], &[])?.0.swap_remove(0))
    }

    fn start_row(&mut self, prefix: usize) -> Result<(), RuntimeError> {
        if self.rows.len() >= self.max_rows || prefix >= self.num_held {
            let message = format!("row {} of {} from prefix {prefix} of {}", self.rows.len(), self.max_rows, self.num_held);
            return Err(RuntimeError::Model { model: MODEL.into(), message });
        }
        self.rows.push(Row { source: RowSource::Held(prefix), used: self.prefix_len });
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
        self.run_step(tokens)?;
        self.logits = self.whole_rows(&(0..tokens.len()).collect::<Vec<_>>())?;
        Ok(&self.logits)
    }
}
