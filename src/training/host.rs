//! Training with parameters in the host's memory: ONNX Runtime computes gradients into our buffers, AdamW updates in place.
//!
//! On the CPU provider one session serves every batch. OpenVINO wants fixed shapes: a session for each caption length that batches are
//! padded to, made when it is first needed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;

use super::artifacts::{
    DropoutSite, GraphOptions, Network, Parameter, RowGradient, Sizes, Trained, TrainingGraph, Variant, evaluation_graph,
    training_graph,
};
use super::batches::{Batch, Numbers};
use super::checkpoint::{CheckpointError, read_slot};
use super::dropout::{self, DropoutKey};
use super::lora::is_adapter;
use super::optimizer::{self, Region, State, clip_factor, global_norm, is_norm_or_bias};
use super::parameters::{Buffer, Layout};
use super::trainer::{Backend, TrainingError, Update};
use crate::models::config::{ClipConfig, DecoderConfig, MapperConfig};
use crate::models::graphs::{CLIP_WEIGHTS, GPT2_WEIGHTS, MAPPER_WEIGHTS};
use crate::models::layers::LORA_B;
use crate::models::tensors::{Init, TensorSpec, random_values};
use crate::models::weights::SafetensorsFile;
use crate::onnx::{DType, Dim};
use crate::runtime::{Device, InPlace, Runtime, RuntimeError, Session};

/// What is trained and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// What is trained.
    pub trained: Trained,
    /// Rows of a full batch; where shapes are fixed, smaller ones are filled up.
    pub batch_size: usize,
    /// Of what starts at random: adapters.
    pub seed: u64,
}

/// See the module's text.
pub struct HostBackend {
    runtime: Runtime,
    folder: PathBuf,
    clip: ClipConfig,
    mapper: MapperConfig,
    decoder: DecoderConfig,
    scope: String,
    options: Options,
    variant: Variant,
    layout: Layout,
    parameters: Buffer,
    gradients: Buffer,
    /// For the batches of a step after its first.
    scratch: Option<Buffer>,
    exp_avg: Buffer,
    exp_avg_sq: Buffer,
    /// Batches in `gradients` since the last update.
    accumulated: u64,
    regions: Option<(bool, Vec<Region>)>,
    masks: Vec<Vec<f32>>,
    /// By (rows, tokens); one under (0, 0) where shapes are open.
    training: HashMap<(usize, usize), TrainingSession>,
    evaluation: HashMap<(usize, usize), Session>,
}

struct TrainingSession {
    session: Session,
    dropout: Vec<DropoutSite>,
    rows: Vec<RowGradient>,
}

impl HostBackend {
    /// Builds the training graph over the weights of `network` and starts from its parameters.
    pub fn new(runtime: &Runtime, network: &Network<'_>, options: Options) -> Result<Self, TrainingError> {
        let variant = match runtime.device() {
            Device::OpenVino => Variant::OpenVino,
            _ => Variant::Cpu,
        };
        let mut backend = Self {
            runtime: runtime.clone(),
            folder: network.folder.into(),
            clip: network.clip.clone(),
            mapper: network.mapper.clone(),
            decoder: network.decoder.clone(),
            scope: network.scope.into(),
            options,
            variant,
            layout: Layout::default(),
            parameters: Layout::default().buffer(),
            gradients: Layout::default().buffer(),
            scratch: None,
            exp_avg: Layout::default().buffer(),
            exp_avg_sq: Layout::default().buffer(),
            accumulated: 0,
            regions: None,
            masks: vec![],
            training: HashMap::new(),
            evaluation: HashMap::new(),
        };
        let graph = backend.training_graph((1, 1))?;
        backend.layout = layout_of(&graph.parameters);
        backend.parameters = backend.layout.buffer();
        load_parameters(network, &backend.layout, backend.options.seed, &mut backend.parameters)?;
        backend.gradients = backend.layout.buffer();
        backend.exp_avg = backend.layout.buffer();
        backend.exp_avg_sq = backend.layout.buffer();
        Ok(backend)
    }

    /// The gradients of the step in hand, in the layout.
    pub fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    fn network(&self) -> Network<'_> {
        Network { folder: &self.folder, clip: &self.clip, mapper: &self.mapper, decoder: &self.decoder, scope: &self.scope }
    }

    fn graph_options(&self, shape: (usize, usize)) -> GraphOptions {
        GraphOptions {
            trained: self.options.trained.clone(),
            sizes: if self.is_fixed() { Sizes::fixed(shape.0, shape.1) } else { Sizes::symbolic() },
            variant: self.variant,
            dtype: DType::F32,
        }
    }

    fn training_graph(&self, shape: (usize, usize)) -> Result<TrainingGraph, TrainingError> {
        Ok(training_graph(&self.network(), &self.graph_options(shape))?)
    }

    fn is_fixed(&self) -> bool {
        self.variant == Variant::OpenVino
    }

    /// The batch as the session takes it, and the session's key.
    fn fitted(&self, batch: &Batch) -> (Batch, (usize, usize)) {
        if !self.is_fixed() {
            return (batch.clone(), (0, 0));
        }
        let batch = batch.filled(self.options.batch_size, self.options.trained.objective.prefix_len(&self.mapper));
        let key = (batch.rows, batch.tokens);
        (batch, key)
    }

    fn open_training(&mut self, key: (usize, usize)) -> Result<(), TrainingError> {
        if !self.training.contains_key(&key) {
            let graph = self.training_graph(key)?;
            let session = Session::kept(&self.runtime, "training_model", &graph.model.to_bytes(), &self.folder)?;
            self.training.insert(key, TrainingSession { session, dropout: graph.dropout, rows: graph.rows });
        }
        Ok(())
    }

    fn open_evaluation(&mut self, key: (usize, usize)) -> Result<(), TrainingError> {
        if !self.evaluation.contains_key(&key) {
            let model = evaluation_graph(&self.network(), &self.graph_options(key))?;
            let session = Session::kept(&self.runtime, "eval_model", &model.to_bytes(), &self.folder)?;
            self.evaluation.insert(key, session);
        }
        Ok(())
    }

    /// Runs a batch; its gradient replaces what is in `gradients` (or `scratch`, for later batches of a step).
    fn run(&mut self, batch: &Batch, dropout_key: DropoutKey) -> Result<f64, TrainingError> {
        let (mut batch, key) = self.fitted(batch);
        self.open_training(key)?;
        let TrainingSession { session, dropout, rows } =
            self.training.get_mut(&key).expect("the session was opened the line before");
        fill_masks(&mut self.masks, dropout, &batch, dropout_key);
        let target = match self.accumulated {
            0 => &mut self.gradients,
            _ => self.scratch.get_or_insert_with(|| self.layout.buffer()),
        };
        let (rows_of_batch, tokens, num_labels) = (batch.rows, batch.tokens, batch.labels.len());
        let mut loss = [0.0f32];
        // Of each gradient that comes in rows: their values and where they belong.
        let mut apart: Vec<(Vec<f32>, Vec<i64>)> = rows
            .iter()
            .map(|rows| {
                let count = rows.count.with("labels", num_labels as i64);
                let count = resolve(std::slice::from_ref(&count), rows_of_batch, tokens)[0] as usize;
                (vec![0.0; count * rows.width], vec![0; count])
            })
            .collect();
        let mut inputs = batch_inputs(&mut batch, self.variant)?;
        for (site, mask) in dropout.iter().zip(&mut self.masks) {
            let shape = resolve(&site.shape, rows_of_batch, tokens);
            inputs.push(InPlace::f32(&site.input, mask, &shape)?);
        }
        let mut outputs = vec![InPlace::f32("loss", &mut loss, &[])?];
        let slots = self.layout.slots();
        for ((slot, values), gradient) in slots.iter().zip(self.layout.split(&mut self.parameters)).zip(self.layout.split(target))
        {
            let shape: Vec<i64> = slot.shape.iter().map(|&d| d as i64).collect();
            inputs.push(InPlace::f32(&slot.name, values, &shape)?);
            outputs.push(InPlace::f32(&format!("{}.grad", slot.name), gradient, &shape)?);
        }
        for (rows, (values, ids)) in rows.iter().zip(&mut apart) {
            let count = ids.len() as i64;
            outputs.push(InPlace::f32(&rows.rows, values, &[count, rows.width as i64])?);
            outputs.push(InPlace::i64(&rows.row_ids, ids, &[count])?);
        }
        session.run_in_place(&inputs, &mut outputs)?;
        drop(outputs);
        drop(inputs);
        for (rows, (values, ids)) in rows.iter().zip(&apart) {
            if let Some(slot) = self.layout.get(&rows.parameter) {
                add_rows(&mut target[slot.range()], ids, values, rows.width)?;
            }
        }
        Ok(f64::from(loss[0]))
    }
}

impl Backend for HostBackend {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn backward(&mut self, batch: &Batch, key: DropoutKey, weight: f32) -> Result<f64, TrainingError> {
        let loss = self.run(batch, key)?;
        if self.accumulated == 0 && weight != 1.0 {
            optimizer::scale(&mut self.gradients, weight);
        } else if let (1.., Some(scratch)) = (self.accumulated, &self.scratch) {
            optimizer::add_scaled(&mut self.gradients, scratch, weight);
        }
        self.accumulated += 1;
        Ok(loss)
    }

    fn update(&mut self, update: &Update) -> Result<f64, TrainingError> {
        self.accumulated = 0;
        // Clipping has to know the norm beforehand; else the update finds it on its way.
        let norm = update.max_grad_norm.map(|_| global_norm(&self.gradients));
        if let Some(norm) = norm.filter(|norm| !norm.is_finite()) {
            return Ok(norm);
        }
        if self.regions.as_ref().is_none_or(|(spared, _)| *spared != update.no_decay_norm_bias) {
            let spared = update.no_decay_norm_bias;
            self.regions = Some((spared, optimizer::regions(&self.layout, |name| !(spared && is_norm_or_bias(name)))));
        }
        let regions = self.regions.as_ref().map_or(&[][..], |(_, regions)| regions);
        let state = State {
            parameters: &mut self.parameters,
            gradients: &self.gradients,
            exp_avg: &mut self.exp_avg,
            exp_avg_sq: &mut self.exp_avg_sq,
        };
        let factor = norm.map_or(1.0, |norm| clip_factor(norm, update.max_grad_norm));
        let found = update.adamw.step(state, regions, update.step, update.learning_rate, factor);
        Ok(norm.unwrap_or(found))
    }

    fn evaluate(&mut self, batch: &Batch) -> Result<(f64, u64), TrainingError> {
        let (mut batch, key) = self.fitted(batch);
        self.open_evaluation(key)?;
        let session = self.evaluation.get_mut(&key).expect("the session was opened the line before");
        let (mut loss, mut count) = ([0.0f32], [0i64]);
        let mut inputs = batch_inputs(&mut batch, self.variant)?;
        for (slot, values) in self.layout.slots().iter().zip(self.layout.split(&mut self.parameters)) {
            let shape: Vec<i64> = slot.shape.iter().map(|&d| d as i64).collect();
            inputs.push(InPlace::f32(&slot.name, values, &shape)?);
        }
        let mut outputs = [InPlace::f32("loss_sum", &mut loss, &[])?, InPlace::i64("num_tokens", &mut count, &[])?];
        session.run_in_place(&inputs, &mut outputs)?;
        drop((inputs, outputs));
        Ok((f64::from(loss[0]), count[0].max(0) as u64))
    }

    fn numbers(&mut self) -> Result<[&[f32]; 3], TrainingError> {
        Ok([&self.parameters, &self.exp_avg, &self.exp_avg_sq])
    }

    fn restore(&mut self, fill: &mut dyn FnMut([&mut [f32]; 3]) -> Result<(), TrainingError>) -> Result<(), TrainingError> {
        fill([&mut self.parameters, &mut self.exp_avg, &mut self.exp_avg_sq])
    }
}

/// The layout of a graph's parameters.
pub fn layout_of(parameters: &[Parameter]) -> Layout {
    Layout::new(parameters.iter().map(|parameter| (parameter.name.clone(), parameter.shape.clone())))
}

/// Reads a bundle's parameters into a layout of them, as float32; adapters start from `seed`.
pub fn load_parameters(network: &Network<'_>, layout: &Layout, seed: u64, values: &mut [f32]) -> Result<(), TrainingError> {
    let mut files: HashMap<&str, SafetensorsFile> = HashMap::new();
    for slot in layout.slots() {
        if is_adapter(&slot.name) {
            let init = if slot.name.ends_with(LORA_B) {
                Init::Constant(0.0)
            } else {
                Init::Uniform(1.0 / (slot.shape[1] as f64).sqrt())
            };
            let spec = TensorSpec { name: slot.name.clone(), shape: slot.shape.clone(), init, optional: false };
            values[slot.range()].copy_from_slice(&random_values(&spec, seed));
            continue;
        }
        let (path, name) = match slot.name.strip_prefix(network.scope) {
            Some(name) => (GPT2_WEIGHTS, name),
            None if slot.name.starts_with("clip_project.") => (MAPPER_WEIGHTS, slot.name.as_str()),
            None => (CLIP_WEIGHTS, slot.name.as_str()),
        };
        let file = match files.entry(path) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                entry.insert(SafetensorsFile::open(network.folder.join(path)).map_err(CheckpointError::from)?)
            }
        };
        read_slot(file, name, slot, values)?;
    }
    Ok(())
}

/// The batch's own inputs.
fn batch_inputs(batch: &mut Batch, variant: Variant) -> Result<Vec<InPlace<'_>>, RuntimeError> {
    let mut inputs = vec![];
    for (name, numbers, shape) in batch.inputs(variant != Variant::OpenVino) {
        inputs.push(match numbers {
            Numbers::F32(values) => InPlace::f32(name, values, &shape)?,
            Numbers::I64(values) => InPlace::i64(name, values, &shape)?,
        });
    }
    Ok(inputs)
}

fn fill_masks(masks: &mut Vec<Vec<f32>>, sites: &[DropoutSite], batch: &Batch, key: DropoutKey) {
    masks.resize_with(sites.len(), Vec::new);
    for (mask, site) in masks.iter_mut().zip(sites) {
        let numel: i64 = resolve(&site.shape, batch.rows, batch.tokens).iter().product();
        mask.resize(numel.max(0) as usize, 0.0);
        dropout::fill(mask, site.rate, key, &site.site);
    }
}

/// A mask's shape for a batch of `rows` captions padded to `tokens`.
pub(super) fn resolve(shape: &[Dim], rows: usize, tokens: usize) -> Vec<i64> {
    let number = |dim: &Dim| dim.with("batch", rows as i64).with("tokens", tokens as i64).as_fixed();
    shape.iter().map(|dim| number(dim).unwrap_or(0)).collect()
}

/// Adds row `i` of `values` [R, C] to row `ids[i]` of `target` [V, C], in this order, so that the sum is always the same.
fn add_rows(target: &mut [f32], ids: &[i64], values: &[f32], width: usize) -> Result<(), TrainingError> {
    for (&id, row) in ids.iter().zip(values.chunks_exact(width)) {
        let start = usize::try_from(id).ok().and_then(|id| id.checked_mul(width));
        let Some(target) = start.and_then(|start| target.get_mut(start..start + width)) else {
            return Err(TrainingError::Unsupported(format!("token {id} is not in the model's vocabulary")));
        };
        target.iter_mut().zip(row).for_each(|(to, from)| *to += from);
    }
    Ok(())
}
