//! Training with parameters on the device (CUDA): they, their gradients and moments stay there from step to step, and the optimizer is a
//! graph. Batches go in, losses and norms come out; numbers cross over for checkpoints alone.

use std::path::PathBuf;

use super::artifacts::{DropoutSite, GraphOptions, Network, Parameter, Sizes, Variant, evaluation_graph, training_graph};
use super::batches::{Batch, Numbers};
use super::dropout::{self, DropoutKey};
use super::host::{Options, layout_of, load_parameters, resolve};
use super::optimizer_graph::{OptimizerOptions, optimizer_graph};
use super::parameters::{Buffer, Layout};
use super::trainer::{Backend, TrainingError, Update};
use crate::models::graphs::BuildError;
use crate::onnx::{DType, Dim, Graph, GraphError, Model, Value};
use crate::runtime::{Feed, Resident, ResidentFeed, Runtime, Session};

/// Parameters and both moments, in this order.
const KINDS: [&str; 3] = ["", ".exp_avg", ".exp_avg_sq"];

/// See the module's text.
pub struct ResidentBackend {
    runtime: Runtime,
    folder: PathBuf,
    layout: Layout,
    training: Session,
    evaluation: Session,
    copy: Session,
    /// Adds scaled gradients; made where a step has several batches.
    add: Option<Session>,
    optimizer: Option<(OptimizerOptions, Session)>,
    parameters: Vec<Parameter>,
    dropout: Vec<DropoutSite>,
    /// By [`KINDS`], in the layout's order.
    numbers: [Vec<Resident>; 3],
    gradients: Vec<Resident>,
    /// Their copies on the host, made when they are asked for.
    copies: [Buffer; 3],
}

impl ResidentBackend {
    /// Builds the graphs over the weights of `network`, computing in `dtype` (masters stay float32), and starts from its parameters.
    pub fn new(runtime: &Runtime, network: &Network<'_>, options: &Options, dtype: DType) -> Result<Self, TrainingError> {
        let graph_options = GraphOptions {
            objective: options.objective,
            finetune_gpt2: options.finetune_gpt2,
            lora: options.lora.clone(),
            recompute: options.recompute,
            dropout: options.dropout,
            label_smoothing: options.label_smoothing,
            sizes: Sizes::symbolic(),
            variant: Variant::Cuda,
            dtype,
        };
        let session = |name: &str, model: &Model| Session::new(runtime, name, &model.to_bytes(), network.folder, &[]);
        let graph = training_graph(network, &graph_options)?;
        let layout = layout_of(&graph.parameters);
        let mut backend = Self {
            runtime: runtime.clone(),
            folder: network.folder.into(),
            training: session("training_model", &graph.model)?,
            evaluation: session("eval_model", &evaluation_graph(network, &graph_options)?)?,
            copy: session("copy", &copy_graph(&graph.parameters).map_err(BuildError::from)?)?,
            add: None,
            optimizer: None,
            copies: [layout.buffer(), layout.buffer(), layout.buffer()],
            layout,
            parameters: graph.parameters,
            dropout: graph.dropout,
            numbers: [vec![], vec![], vec![]],
            gradients: vec![],
        };
        load_parameters(network, &backend.layout, options.seed, &mut backend.copies[0])?;
        backend.upload()?;
        Ok(backend)
    }

    /// Copies the host's copies to the device.
    fn upload(&mut self) -> Result<(), TrainingError> {
        let names: Vec<String> = self.parameters.iter().map(|parameter| format!("{}.copy", parameter.name)).collect();
        for (kind, values) in self.copies.iter().enumerate() {
            let shapes: Vec<Vec<i64>> = self.parameters.iter().map(shape_of).collect();
            let feeds: Vec<(&str, ResidentFeed<'_>)> = self
                .layout
                .slots()
                .iter()
                .zip(&shapes)
                .map(|(slot, shape)| (slot.name.as_str(), ResidentFeed::Host(Feed::F32(&values[slot.range()], shape))))
                .collect();
            self.numbers[kind] = self.copy.run_resident(&self.runtime, &feeds, &[], &names)?.1;
        }
        Ok(())
    }

    fn download(&mut self) -> Result<(), TrainingError> {
        let names: Vec<String> = self.parameters.iter().map(|parameter| format!("{}.copy", parameter.name)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for (residents, copy) in self.numbers.iter().zip(&mut self.copies) {
            let feeds = device_feeds(&self.parameters, "", residents);
            let feeds: Vec<_> = feeds.iter().map(|(name, resident)| (name.as_str(), ResidentFeed::Device(resident))).collect();
            let values = self.copy.run_resident(&self.runtime, &feeds, &names, &[])?.0;
            for (slot, values) in self.layout.slots().iter().zip(values) {
                copy[slot.range()].copy_from_slice(&values);
            }
        }
        Ok(())
    }

    /// `gradients * weight`, added to `sum` where there is one.
    fn add(&mut self, sum: Option<Vec<Resident>>, gradients: &[Resident], weight: f32) -> Result<Vec<Resident>, TrainingError> {
        if self.add.is_none() {
            let model = add_graph(&self.parameters).map_err(BuildError::from)?;
            self.add = Some(Session::new(&self.runtime, "add", &model.to_bytes(), &self.folder, &[])?);
        }
        let Some(session) = &mut self.add else { return Ok(vec![]) };
        // Without a sum yet, the gradients stand in for it and count for nothing there.
        let (sum, keep, weight) = match &sum {
            Some(sum) => (sum.as_slice(), [1.0], [weight]),
            None => (gradients, [0.0], [weight]),
        };
        let (sums, summands) = (device_feeds(&self.parameters, ".sum", sum), device_feeds(&self.parameters, ".grad", gradients));
        let mut feeds: Vec<(&str, ResidentFeed<'_>)> =
            vec![("keep", ResidentFeed::Host(Feed::F32(&keep, &[]))), ("weight", ResidentFeed::Host(Feed::F32(&weight, &[])))];
        feeds.extend(sums.iter().chain(&summands).map(|(name, resident)| (name.as_str(), ResidentFeed::Device(resident))));
        let names: Vec<String> = self.parameters.iter().map(|parameter| format!("{}.total", parameter.name)).collect();
        Ok(session.run_resident(&self.runtime, &feeds, &[], &names)?.1)
    }
}

impl Backend for ResidentBackend {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn backward(&mut self, batch: &Batch, key: DropoutKey, weight: f32) -> Result<f64, TrainingError> {
        let mut masks = vec![];
        for site in &self.dropout {
            let shape = resolve(&site.shape, batch.rows, batch.tokens);
            let mut mask = vec![0.0; shape.iter().product::<i64>().max(0) as usize];
            dropout::fill(&mut mask, site.rate, key, &site.site);
            masks.push((site.input.as_str(), mask, shape));
        }
        let mut batch = batch.clone();
        let inputs = batch.inputs(true);
        let parameters = device_feeds(&self.parameters, "", &self.numbers[0]);
        let mut feeds = batch_feeds(&inputs);
        feeds.extend(masks.iter().map(|(name, mask, shape)| (*name, ResidentFeed::Host(Feed::F32(mask, shape)))));
        feeds.extend(parameters.iter().map(|(name, resident)| (name.as_str(), ResidentFeed::Device(resident))));
        let names: Vec<String> = self.parameters.iter().map(Parameter::gradient_name).collect();
        let (loss, gradients) = self.training.run_resident(&self.runtime, &feeds, &["loss"], &names)?;
        let sum = std::mem::take(&mut self.gradients);
        let sum = (!sum.is_empty()).then_some(sum);
        self.gradients = if sum.is_none() && weight == 1.0 { gradients } else { self.add(sum, &gradients, weight)? };
        Ok(f64::from(first(&loss)))
    }

    fn update(&mut self, update: &Update) -> Result<f64, TrainingError> {
        let options = OptimizerOptions {
            adamw: update.adamw,
            no_decay_norm_bias: update.no_decay_norm_bias,
            max_grad_norm: update.max_grad_norm,
        };
        if self.optimizer.as_ref().is_none_or(|(made_for, _)| *made_for != options) {
            let model = optimizer_graph(&self.parameters, &options).map_err(BuildError::from)?;
            let session = Session::new(&self.runtime, "optimizer_model", &model.to_bytes(), &self.folder, &[])?;
            self.optimizer = Some((options, session));
        }
        let Some((_, session)) = &mut self.optimizer else { return Ok(f64::NAN) };
        let gradients = std::mem::take(&mut self.gradients);
        let (rate, step) = ([update.learning_rate as f32], [update.step as i64]);
        let lists =
            [(KINDS[0], &self.numbers[0]), (".grad", &gradients), (KINDS[1], &self.numbers[1]), (KINDS[2], &self.numbers[2])];
        let named: Vec<_> =
            lists.iter().flat_map(|(suffix, residents)| device_feeds(&self.parameters, suffix, residents)).collect();
        let mut feeds: Vec<(&str, ResidentFeed<'_>)> = vec![
            ("learning_rate", ResidentFeed::Host(Feed::F32(&rate, &[]))),
            ("step", ResidentFeed::Host(Feed::I64(&step, &[]))),
        ];
        feeds.extend(named.iter().map(|(name, resident)| (name.as_str(), ResidentFeed::Device(resident))));
        let updated = |kind: &'static str| self.parameters.iter().map(move |p| format!("{}{kind}.updated", p.name));
        let names: Vec<String> = KINDS.into_iter().flat_map(updated).collect();
        let (norm, mut numbers) = session.run_resident(&self.runtime, &feeds, &["grad_norm"], &names)?;
        let norm = f64::from(first(&norm));
        if norm.is_finite() {
            let count = self.parameters.len();
            let squares = numbers.split_off(2 * count);
            let means = numbers.split_off(count);
            self.numbers = [numbers, means, squares];
        }
        Ok(norm)
    }

    fn evaluate(&mut self, batch: &Batch) -> Result<(f64, u64), TrainingError> {
        let num_labels = batch.labels.len() as u64;
        let mut batch = batch.clone();
        let inputs = batch.inputs(true);
        let parameters = device_feeds(&self.parameters, "", &self.numbers[0]);
        let mut feeds = batch_feeds(&inputs);
        feeds.extend(parameters.iter().map(|(name, resident)| (name.as_str(), ResidentFeed::Device(resident))));
        let (sum, _) = self.evaluation.run_resident(&self.runtime, &feeds, &["loss_sum"], &[])?;
        Ok((f64::from(first(&sum)), num_labels))
    }

    fn numbers(&mut self) -> Result<[&[f32]; 3], TrainingError> {
        self.download()?;
        let [parameters, exp_avg, exp_avg_sq] = &self.copies;
        Ok([parameters, exp_avg, exp_avg_sq])
    }

    fn restore(&mut self, fill: &mut dyn FnMut([&mut [f32]; 3]) -> Result<(), TrainingError>) -> Result<(), TrainingError> {
        let [parameters, exp_avg, exp_avg_sq] = &mut self.copies;
        fill([parameters, exp_avg, exp_avg_sq])?;
        self.upload()
    }
}

/// A batch's own inputs, to be copied to the device.
fn batch_feeds<'a>(inputs: &'a [(&'static str, Numbers<'_>, Vec<i64>)]) -> Vec<(&'a str, ResidentFeed<'a>)> {
    let feed = |(name, numbers, shape): &'a (&'static str, Numbers<'_>, Vec<i64>)| {
        let feed = match numbers {
            Numbers::F32(values) => Feed::F32(values, shape),
            Numbers::I64(values) => Feed::I64(values, shape),
        };
        (*name, ResidentFeed::Host(feed))
    };
    inputs.iter().map(feed).collect()
}

fn device_feeds<'a>(parameters: &[Parameter], suffix: &str, residents: &'a [Resident]) -> Vec<(String, &'a Resident)> {
    parameters.iter().map(|parameter| format!("{}{suffix}", parameter.name)).zip(residents).collect()
}

fn shape_of(parameter: &Parameter) -> Vec<i64> {
    parameter.shape.iter().map(|&d| d as i64).collect()
}

fn first(outputs: &[Vec<f32>]) -> f32 {
    outputs.first().and_then(|output| output.first()).copied().unwrap_or(f32::NAN)
}

fn input(g: &Graph, parameter: &Parameter, suffix: &str) -> Value {
    let shape: Vec<Dim> = parameter.shape.iter().map(|&d| Dim::from(d)).collect();
    g.input(&format!("{}{suffix}", parameter.name), DType::F32, &shape)
}

/// `NAME.copy` = `NAME`: from the host to the device or back, as inputs and outputs are bound.
fn copy_graph(parameters: &[Parameter]) -> Result<Model, GraphError> {
    let g = Graph::new("copy");
    for parameter in parameters {
        g.output(&format!("{}.copy", parameter.name), g.identity(input(&g, parameter, "")));
    }
    g.finish()
}

/// `NAME.total` = `keep` * `NAME.sum` + `weight` * `NAME.grad`.
fn add_graph(parameters: &[Parameter]) -> Result<Model, GraphError> {
    let g = Graph::new("add");
    let (keep, weight) = (g.input("keep", DType::F32, &[]), g.input("weight", DType::F32, &[]));
    for parameter in parameters {
        let (sum, gradient) = (input(&g, parameter, ".sum"), input(&g, parameter, ".grad"));
        g.output(&format!("{}.total", parameter.name), g.add(g.mul(sum, keep), g.mul(gradient, weight)));
    }
    g.finish()
}
