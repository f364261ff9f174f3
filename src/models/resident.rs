//! Decoding with caches that live on the device (CUDA), in any precision. Each row has a place in them for as long as it decodes: a step writes
//! its keys and values there, prefixes and beams are copied to free places, and nothing else of the caches is ever moved. A step has one shape
//! and one set of tensors, so that a card records it once. Nothing but prefixes, tokens and the best logits of each row crosses the bus.

use std::path::Path;

use super::Decoder;
use super::config::DecoderConfig;
use super::decoder::{Best, Logits, Picked};
use super::decoders::{SharedCache, Sizes, architecture, cache_name};
use super::encoder::{LoadError, style_for};
use super::graphs::{GraphKind, build};
use super::recorded::RecordedStep;
use crate::onnx::DType;
use crate::runtime::{DeviceMemory, HostMemory, InPlace, Runtime, RuntimeError, Session};

const MODEL: &str = "decoder";

/// Prefixes that are run together at most.
pub const MOST_PREFIXES: usize = 128;

/// Where a row's keys and values are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum RowSource {
    /// In its own place.
    Placed,
    /// With a prefix of the last prefill.
    Held(usize),
    /// Still in another row's place.
    Copied(usize),
}

/// A row as the caller sees it.
#[derive(Debug, Clone, Copy)]
struct Row {
    /// Its place in the caches, of which no other row has the same.
    place: usize,
    source: RowSource,
    used: usize,
}

/// A decoder with caches of a fixed length on the device.
pub struct ResidentDecoder {
    runtime: Runtime,
    prefill: Session,
    step: RecordedStep,
    mover: Session,
    pick_logits: Session,
    memory: Memory,
    sizes: Sizes,
    /// How many of a row's logits come to the host.
    count: usize,
    prefix_len: usize,
    max_rows: usize,
    length: usize,
    dtype: DType,
    /// Of a head in the caches, D'.
    head_dim: usize,
    num_held: usize,
    rows: Vec<Row>,
    free: Vec<usize>,
    last: Last,
    /// Of the last step, where they were asked for.
    logits: Vec<f32>,
}

/// Which run has left logits.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Last {
    Nothing,
    Prefill,
    Step,
}

/// [2 n_layer] caches lie one behind the other; K best logits of V.
struct Memory {
    /// [2 n_layer, max_rows, G, M, D'].
    caches: DeviceMemory,
    /// [2 n_layer, prefixes, G, M, D'] of the last prefill.
    held: DeviceMemory,
    /// [max_rows, 2], int64: each row's token and its position.
    tokens: DeviceMemory,
    told: HostMemory,
    /// [max_rows, V] and [prefixes, V].
    step_logits: DeviceMemory,
    prefill_logits: DeviceMemory,
    /// [max_rows, 2 K] and, behind it, [max_rows, 2].
    step_best: DeviceMemory,
    found: HostMemory,
    /// [prefixes, 2 K] and, behind it, [prefixes, 2].
    prefill_best: HostMemory,
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
        let shared = SharedCache::for_cuda(style_for(runtime).dtype, &architecture(config).sizes());
        Self::load_with(runtime, folder, config, shared, [prefix_len, max_rows, max_new_tokens], picked)
    }

    /// The same with a way of attending that is chosen by hand.
    pub fn load_with(
        runtime: &Runtime,
        folder: &Path,
        config: &DecoderConfig,
        shared: SharedCache,
        [prefix_len, max_rows, max_new_tokens]: [usize; 3],
        picked: Picked,
    ) -> Result<Self, LoadError> {
        let (style, sizes) = (style_for(runtime), architecture(config).sizes());
        let length = (prefix_len + max_new_tokens.max(1) - 1).min(sizes.n_positions);
        let head_dim = shared.head_dim(&sizes);
        let width = sizes.n_kv_head * length * head_dim;
        let count = picked.count.min(sizes.vocab_size);
        let loaded = |part: GraphKind<'_>| -> Result<Session, LoadError> {
            let model = build(folder, part, style)?;
            Ok(Session::new(runtime, part.name(), &model.to_bytes(), folder, &[])?)
        };
        let (prefixes, rows) = (MOST_PREFIXES.min(max_rows.max(1)), max_rows.max(1));
        let row = 2 * sizes.n_layer * width * style.dtype.size();
        let (vocabulary, best) = (sizes.vocab_size * size_of::<f32>(), (2 * count + 2) * size_of::<f32>());
        let device = |bytes: usize, what: &str| DeviceMemory::new(runtime, bytes, what);
        let memory = Memory {
            caches: device(rows * row, &format!("the caches of {rows} rows"))?,
            held: device(prefixes * row, &format!("the caches of {prefixes} prefixes"))?,
            tokens: device(2 * rows * size_of::<i64>(), "tokens")?,
            told: HostMemory::new(runtime, 2 * rows * size_of::<i64>(), "tokens")?,
            step_logits: device(rows * vocabulary, "logits")?,
            prefill_logits: device(prefixes * vocabulary, "logits")?,
            step_best: device(rows * best, "the best logits")?,
            found: HostMemory::new(runtime, rows * best, "the best logits")?,
            prefill_best: HostMemory::new(runtime, prefixes * best, "the best logits")?,
        };
        let part = GraphKind::SharedStep { config, shared, rows, length, picked };
        let shape: Vec<i64> = shared.cache_shape(&sizes, [rows, length]).iter().map(|&d| d as i64).collect();
        let cache = |kind: &str, number: usize| {
            let name = cache_name(kind, number / 2, ["key", "value"][number % 2]);
            memory.caches.tensor(&name, number * rows * width * style.dtype.size(), style.dtype, &shape)
        };
        let mut inputs = vec![memory.tokens.tensor("tokens", 0, DType::I64, &[rows as i64, 2])?];
        let mut outputs = vec![
            memory.step_logits.tensor("logits", 0, DType::F32, &[rows as i64, sizes.vocab_size as i64])?,
            memory.step_best.tensor("best", 0, DType::F32, &[rows as i64, 2 * count as i64])?,
            memory.step_best.tensor("sums", 2 * count * rows * size_of::<f32>(), DType::F32, &[rows as i64, 2])?,
        ];
        for number in 0..2 * sizes.n_layer {
            inputs.push(cache("past_key_values", number)?);
            outputs.push(cache("present", number)?);
        }
        Ok(Self {
            prefill: loaded(GraphKind::StaticPrefill { config, shared, prefix_len, length, picked })?,
            step: RecordedStep::load(runtime, folder, build(folder, part, style)?, inputs, outputs)?,
            mover: loaded(GraphKind::MoveRows { width })?,
            pick_logits: loaded(GraphKind::PickLogits(config))?,
            memory,
            runtime: runtime.clone(),
            sizes,
            count,
            prefix_len,
            max_rows,
            length,
            dtype: style.dtype,
            head_dim,
            num_held: 0,
            rows: vec![],
            free: (0..max_rows).rev().collect(),
            last: Last::Nothing,
            logits: vec![],
        })
    }

    /// Elements of a row in each of the caches.
    fn width(&self) -> usize {
        self.sizes.n_kv_head * self.length * self.head_dim
    }

    fn run_prefill(&mut self, prefix_embeds: &[f32], num_prefixes: usize) -> Result<Best, RuntimeError> {
        let shape = [num_prefixes as i64, self.prefix_len as i64, self.sizes.n_embd as i64];
        if prefix_embeds.len() as i64 != shape.iter().product::<i64>() {
            let (found, wanted) = (vec![prefix_embeds.len() as i64], shape.to_vec());
            return Err(RuntimeError::Shape { model: MODEL.into(), what: "prefix_embeds".into(), found, wanted });
        }
        if num_prefixes > self.max_prefixes() {
            let message = format!("{num_prefixes} prefixes, where {} are run together", self.max_prefixes());
            return Err(RuntimeError::Model { model: MODEL.into(), message });
        }
        if self.rows.iter().any(|row| matches!(row.source, RowSource::Held(_))) {
            self.settle()?;
        }
        let (n, best) = (num_prefixes as i64, 2 * self.count);
        let mut embeds = prefix_embeds.to_vec();
        let inputs = [InPlace::f32("inputs_embeds", &mut embeds, &shape)?];
        let mut outputs = vec![
            self.memory.prefill_logits.tensor("logits", 0, DType::F32, &[n, self.sizes.vocab_size as i64])?,
            self.memory.prefill_best.tensor("best", 0, DType::F32, &[n, best as i64])?,
            self.memory.prefill_best.tensor("sums", best * num_prefixes * size_of::<f32>(), DType::F32, &[n, 2])?,
        ];
        let cache = [n, self.sizes.n_kv_head as i64, self.length as i64, self.head_dim as i64];
        for number in 0..2 * self.sizes.n_layer {
            let name = cache_name("present", number / 2, ["key", "value"][number % 2]);
            let at = number * num_prefixes * self.width() * self.dtype.size();
            outputs.push(self.memory.held.tensor(&name, at, self.dtype, &cache)?);
        }
        self.prefill.run_in_place(&inputs, &mut outputs)?;
        self.num_held = num_prefixes;
        self.last = Last::Prefill;
        Ok(joined(&self.memory.prefill_best, self.count, num_prefixes, 0..num_prefixes))
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
        // Places that no row has decode what they had last, for nobody.
        let told = self.memory.told.numbers_mut::<i64>();
        for (row, &token) in self.rows.iter().zip(tokens) {
            told[2 * row.place..][..2].copy_from_slice(&[i64::from(token), row.used as i64]);
        }
        let places = self.rows.iter().map(|row| row.place + 1).max().unwrap_or(0);
        self.memory.tokens.write(0, &self.memory.told.numbers::<u8>()[..2 * places * size_of::<i64>()])?;
        self.step.run(&self.runtime)?;
        self.last = Last::Step;
        let (all, best) = (self.max_rows.max(1), 2 * self.count);
        let found = self.memory.found.numbers_mut::<u8>();
        for (start, width) in [(0, best), (all * best, 2)] {
            let (start, bytes) = (start * size_of::<f32>(), places * width * size_of::<f32>());
            self.memory.step_best.read(start, &mut found[start..][..bytes])?;
        }
        self.rows.iter_mut().for_each(|row| row.used += 1);
        Ok(joined(&self.memory.found, self.count, all, self.rows.iter().map(|row| row.place)))
    }

    /// Brings every row's keys and values into its own place.
    fn settle(&mut self) -> Result<(), RuntimeError> {
        let (mut held, mut copied) = (vec![], vec![]);
        for row in &mut self.rows {
            match std::mem::replace(&mut row.source, RowSource::Placed) {
                RowSource::Placed => {}
                RowSource::Held(prefix) => held.push((prefix, row.place)),
                RowSource::Copied(place) => copied.push((place, row.place)),
            }
        }
        let rows = self.max_rows.max(1);
        self.copy(&self.memory.caches, rows, &copied)?;
        self.copy(&self.memory.held, self.num_held, &held)
    }

    /// Copies rows out of caches of so many rows to places: (row, place) of each, all different places.
    fn copy(&self, sources: &DeviceMemory, rows: usize, moves: &[(usize, usize)]) -> Result<(), RuntimeError> {
        if moves.is_empty() {
            return Ok(());
        }
        let (caches, width, places) = (2 * self.sizes.n_layer, self.width() as i64, self.max_rows.max(1));
        let each = |number: fn(&(usize, usize)) -> usize, rows: usize| -> Vec<i64> {
            (0..caches).flat_map(|cache| moves.iter().map(move |pair| (cache * rows + number(pair)) as i64)).collect()
        };
        let (mut from, mut to) = (each(|&(row, _)| row, rows), each(|&(_, place)| place, places));
        let n = from.len() as i64;
        let cells = |name: &str| self.memory.caches.tensor(name, 0, self.dtype, &[(caches * places) as i64, width]);
        let inputs = [
            cells("cells")?,
            sources.tensor("sources", 0, self.dtype, &[(caches * rows) as i64, width])?,
            InPlace::i64("from", &mut from, &[n])?,
            InPlace::i64("to", &mut to, &[n, 1])?,
        ];
        self.mover.run_in_place(&inputs, &mut [cells("moved")?])
    }
}

/// The best of the rows at some places, out of [all, 2 K] and, behind it, [all, 2].
fn joined(found: &HostMemory, count: usize, all: usize, places: impl Iterator<Item = usize>) -> Best {
    let (best, sums) = found.numbers::<f32>().split_at(all * 2 * count);
    let row = |place: usize| best[place * 2 * count..][..2 * count].iter().chain(&sums[place * 2..][..2]);
    Best { count, numbers: places.flat_map(row).copied().collect() }
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
        MOST_PREFIXES.min(self.max_rows.max(1))
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
        let (logits, there) = match self.last {
            Last::Prefill => (&self.memory.prefill_logits, self.num_held),
            Last::Step => (&self.memory.step_logits, self.max_rows.max(1)),
            Last::Nothing => {
                return Err(RuntimeError::Model { model: MODEL.into(), message: "no run has left logits".into() });
            }
        };
        let place = |&row: &usize| match self.last {
            Last::Step => self.rows.get(row).map_or(row, |row| row.place),
            _ => row,
        };
        let mut rows: Vec<i64> = rows.iter().map(|row| place(row) as i64).collect();
        let (n, vocabulary) = (rows.len() as i64, self.sizes.vocab_size as i64);
        let mut picked = vec![0.0; rows.len() * self.sizes.vocab_size];
        let inputs =
            [logits.tensor("logits", 0, DType::F32, &[there as i64, vocabulary])?, InPlace::i64("rows", &mut rows, &[n])?];
        self.pick_logits.run_in_place(&inputs, &mut [InPlace::f32("picked", &mut picked, &[n, vocabulary])?])?;
        Ok(picked)
    }

    fn start_row(&mut self, prefix: usize) -> Result<(), RuntimeError> {
        let place = if prefix < self.num_held { self.free.pop() } else { None };
        let Some(place) = place else {
            let message = format!("row {} of {} from prefix {prefix} of {}", self.rows.len(), self.max_rows, self.num_held);
            return Err(RuntimeError::Model { model: MODEL.into(), message });
        };
        self.rows.push(Row { place, source: RowSource::Held(prefix), used: self.prefix_len });
        Ok(())
    }

    fn gather_rows(&mut self, sources: &[usize]) -> Result<(), RuntimeError> {
        if sources.len() > self.max_rows || sources.iter().any(|&s| s >= self.rows.len()) {
            let message = format!("rows {sources:?} out of {} (at most {})", self.rows.len(), self.max_rows);
            return Err(RuntimeError::Model { model: MODEL.into(), message });
        }
        if self.rows.iter().any(|row| matches!(row.source, RowSource::Copied(_))) {
            self.settle()?;
        }
        // The first that goes on from a row has its place; others are given free ones, and what no row goes on from is free.
        let mut is_taken = vec![false; self.rows.len()];
        let mut rows: Vec<(Row, bool)> = Vec::with_capacity(sources.len());
        for &source in sources {
            rows.push((self.rows[source], std::mem::replace(&mut is_taken[source], true)));
        }
        self.free.extend(self.rows.iter().zip(&is_taken).filter(|(_, taken)| !**taken).map(|(row, _)| row.place));
        // The lowest first, whatever was freed in which order.
        self.free.sort_unstable_by(|a, b| b.cmp(a));
        let mut placed = Vec::with_capacity(rows.len());
        for (row, is_again) in rows {
            placed.push(match (is_again, row.source) {
                (false, _) => row,
                (true, source) => {
                    let place = self.free.pop().ok_or_else(|| RuntimeError::Model {
                        model: MODEL.into(),
                        message: format!("no place for {} rows", sources.len()),
                    })?;
                    // What was not placed yet is placed twice.
                    let source = if source == RowSource::Placed { RowSource::Copied(row.place) } else { source };
                    Row { place, source, used: row.used }
                }
            });
        }
        self.rows = placed;
        Ok(())
    }

    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], RuntimeError> {
        self.run_step(tokens)?;
        self.logits = self.whole_rows(&(0..tokens.len()).collect::<Vec<_>>())?;
        Ok(&self.logits)
    }
}
