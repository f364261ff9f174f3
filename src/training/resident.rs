//! Training with parameters on the device (CUDA): they, their gradients and moments stay there from step to step, each kind in one piece of
//! memory that the optimizer, a graph, updates in place. Batches and dropout masks go in, losses and norms come out; parameters and moments cross
//! over where they are asked for.

use std::path::PathBuf;

use super::artifacts::{DropoutSite, GraphOptions, Network, Parameter, Sizes, Variant, evaluation_graph, training_graph};
use super::batches::{Batch, Numbers};
use super::dropout::{self, DropoutKey};
use super::host::{Options, layout_of, load_parameters, resolve};
use super::optimizer::is_norm_or_bias;
use super::optimizer_graph::{OptimizerOptions, optimizer_graph};
use super::parameters::{Buffer, Layout};
use super::trainer::{Backend, TrainingError, Update};
use crate::models::graphs::BuildError;
use crate::onnx::{DType, Dim, Graph, GraphError, Model, Value};
use crate::runtime::{DeviceMemory, HostMemory, InPlace, Runtime, RuntimeError, Session};

/// Parameters and both moments, in this order.
const KINDS: [&str; 3] = ["", ".exp_avg", ".exp_avg_sq"];

const FLOAT: usize = size_of::<f32>();

/// Elements that the optimizer updates with one operator. A few such pieces stay in a card's cache from one operator to the next, and of a GPT2
/// there are 30 in place of 150 tensors.
const PIECE: usize = 4 << 20;

/// See the module's text.
pub struct ResidentBackend {
    runtime: Runtime,
    folder: PathBuf,
    layout: Layout,
    /// Where each tensor lies on the device: layer norms and biases last, since weight decay may leave them out.
    there: Layout,
    /// Stretches of what lies there, as the parameters of the optimizer.
    pieces: Vec<(Parameter, usize)>,
    training: Session,
    evaluation: Session,
    /// Adds scaled gradients; made where a step has several batches.
    add: Option<Session>,
    optimizer: Option<(OptimizerOptions, Session)>,
    dropout: Vec<DropoutSite>,
    /// By [`KINDS`].
    numbers: [DeviceMemory; 3],
    gradients: DeviceMemory,
    /// Of the batches of a step after its first.
    further: Option<DeviceMemory>,
    /// Whether there are gradients of the step in hand.
    has_gradients: bool,
    /// Of a batch, one behind the other.
    masks: Option<HostMemory>,
    /// A loss or a norm.
    scalar: HostMemory,
    /// Copies on the host, made when they are asked for, and whether each is what the device has.
    copies: [Buffer; 3],
    is_copied: [bool; 3],
}

impl ResidentBackend {
    /// Builds the graphs over the weights of `network`, computing in `dtype` (masters stay float32), and starts from its parameters.
    pub fn new(runtime: &Runtime, network: &Network<'_>, options: &Options, dtype: DType) -> Result<Self, TrainingError> {
        let graph_options =
            GraphOptions { trained: options.trained.clone(), sizes: Sizes::symbolic(), variant: Variant::Cuda, dtype };
        let session = |name: &str, model: &Model| Session::new(runtime, name, &model.to_bytes(), network.folder, &[]);
        let graph = training_graph(network, &graph_options)?;
        let layout = layout_of(&graph.parameters);
        let (small, large): (Vec<Parameter>, Vec<Parameter>) =
            graph.parameters.iter().cloned().partition(|parameter| is_norm_or_bias(&parameter.name));
        let first = layout_of(&large).len();
        let there = layout_of(&[large, small].concat());
        let memory = |what: &str| DeviceMemory::new(runtime, there.len() * FLOAT, what);
        let mut backend = Self {
            runtime: runtime.clone(),
            folder: network.folder.into(),
            training: session("training_model", &graph.model)?,
            evaluation: session("eval_model", &evaluation_graph(network, &graph_options)?)?,
            add: None,
            optimizer: None,
            pieces: pieces_of(first, there.len()),
            numbers: [memory("parameters")?, memory("moments")?, memory("moments")?],
            gradients: memory("gradients")?,
            further: None,
            has_gradients: false,
            masks: None,
            scalar: HostMemory::new(runtime, FLOAT, "a number")?,
            copies: [layout.buffer(), layout.buffer(), layout.buffer()],
            is_copied: [true; 3],
            layout,
            there,
            dropout: graph.dropout,
        };
        load_parameters(network, &backend.layout, options.seed, &mut backend.copies[0])?;
        // Moments are zeros on both sides.
        backend.upload(0)?;
        Ok(backend)
    }

    /// Copies one kind to the device.
    fn upload(&mut self, kind: usize) -> Result<(), TrainingError> {
        let mut values = self.there.buffer();
        for slot in self.layout.slots() {
            let Some(place) = self.there.get(&slot.name) else { continue };
            values[place.range()].copy_from_slice(&self.copies[kind][slot.range()]);
        }
        self.is_copied[kind] = true;
        Ok(self.numbers[kind].write(0, bytemuck::cast_slice(&values))?)
    }

    /// Copies one kind to the host, if it has changed since it was copied.
    fn download(&mut self, kind: usize) -> Result<(), TrainingError> {
        if self.is_copied[kind] {
            return Ok(());
        }
        let mut values = self.there.buffer();
        self.numbers[kind].read(0, bytemuck::cast_slice_mut(&mut values))?;
        for slot in self.layout.slots() {
            let Some(place) = self.there.get(&slot.name) else { continue };
            self.copies[kind][slot.range()].copy_from_slice(&values[place.range()]);
        }
        self.is_copied[kind] = true;
        Ok(())
    }

    /// Every parameter's tensor in some memory, named with a suffix.
    fn tensors(&self, memory: &DeviceMemory, suffix: &str) -> Result<Vec<InPlace<'static>>, RuntimeError> {
        let tensor = |slot: &super::parameters::Slot| {
            let shape: Vec<i64> = slot.shape.iter().map(|&d| d as i64).collect();
            memory.tensor(&format!("{}{suffix}", slot.name), slot.range().start * FLOAT, DType::F32, &shape)
        };
        self.layout.slots().iter().filter_map(|slot| self.there.get(&slot.name)).map(tensor).collect()
    }

    /// Every piece of some memory, named with a suffix.
    fn pieces(&self, memory: &DeviceMemory, suffix: &str) -> Result<Vec<InPlace<'static>>, RuntimeError> {
        let tensor = |(piece, start): &(Parameter, usize)| {
            let shape = [piece.shape[0] as i64];
            memory.tensor(&format!("{}{suffix}", piece.name), start * FLOAT, DType::F32, &shape)
        };
        self.pieces.iter().map(tensor).collect()
    }

    /// A graph's only number that is wanted.
    fn number(&self, name: &str) -> Result<InPlace<'static>, RuntimeError> {
        self.scalar.tensor(name, 0, DType::F32, &[])
    }

    fn found(&self) -> f64 {
        f64::from(self.scalar.numbers::<f32>().first().copied().unwrap_or(f32::NAN))
    }

    /// Makes a batch's masks where the device fetches them by itself.
    fn masks(&mut self, batch: &Batch, key: DropoutKey) -> Result<Vec<InPlace<'static>>, TrainingError> {
        let shapes: Vec<Vec<i64>> = self.dropout.iter().map(|site| resolve(&site.shape, batch.rows, batch.tokens)).collect();
        let length = |shape: &Vec<i64>| shape.iter().product::<i64>().max(0) as usize;
        let whole: usize = shapes.iter().map(|shape| length(shape).next_multiple_of(APART)).sum();
        if self.masks.as_ref().is_none_or(|masks| masks.bytes() < whole) {
            self.masks = Some(HostMemory::new(&self.runtime, whole, "dropout masks")?);
        }
        let Some(masks) = &mut self.masks else { return Ok(vec![]) };
        let (mut at, mut tensors) = (0, vec![]);
        for (site, shape) in self.dropout.iter().zip(&shapes) {
            dropout::fill_bytes(&mut masks.numbers_mut::<u8>()[at..][..length(shape)], site.rate, key, &site.site);
            tensors.push(masks.tensor(&site.input, at, DType::U8, shape)?);
            at += length(shape).next_multiple_of(APART);
        }
        Ok(tensors)
    }

    /// `gradients` becomes `keep * gradients + weight * further`, where there are further ones; itself times `weight` otherwise.
    fn accumulate(&mut self, has_further: bool, weight: f32) -> Result<(), TrainingError> {
        if self.add.is_none() {
            let pieces: Vec<Parameter> = self.pieces.iter().map(|(piece, _)| piece.clone()).collect();
            let model = add_graph(&pieces).map_err(BuildError::from)?;
            self.add = Some(Session::new(&self.runtime, "add", &model.to_bytes(), &self.folder, &[])?);
        }
        let Some(session) = &self.add else { return Ok(()) };
        // Without further ones the gradients stand in for both, and count for nothing as what was there.
        let further = self.further.as_ref().filter(|_| has_further).unwrap_or(&self.gradients);
        let (mut keep, mut weight) = ([if has_further { 1.0 } else { 0.0 }], [weight]);
        let mut inputs = self.pieces(&self.gradients, ".sum")?;
        inputs.extend(self.pieces(further, ".grad")?);
        let mut outputs = self.pieces(&self.gradients, ".total")?;
        inputs.extend([InPlace::f32("keep", &mut keep, &[])?, InPlace::f32("weight", &mut weight, &[])?]);
        Ok(session.run_in_place(&inputs, &mut outputs)?)
    }
}

/// Bytes that masks begin apart at multiples of.
const APART: usize = 256;

/// `0..whole` in pieces, of which those behind `first` have the name of a bias.
fn pieces_of(first: usize, whole: usize) -> Vec<(Parameter, usize)> {
    let mut pieces = vec![];
    for (start, end, kind) in [(0, first, "weight"), (first, whole, "bias")] {
        for start in (start..end).step_by(PIECE) {
            let name = format!("pieces.{}.{kind}", pieces.len());
            pieces.push((Parameter { name, shape: vec![PIECE.min(end - start)] }, start));
        }
    }
    pieces
}

impl Backend for ResidentBackend {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn backward(&mut self, batch: &Batch, key: DropoutKey, weight: f32) -> Result<f64, TrainingError> {
        let masks = self.masks(batch, key)?;
        if self.has_gradients && self.further.is_none() {
            self.further = Some(DeviceMemory::new(&self.runtime, self.there.len() * FLOAT, "gradients")?);
        }
        let target = self.further.as_ref().filter(|_| self.has_gradients).unwrap_or(&self.gradients);
        let mut outputs = self.tensors(target, ".grad")?;
        outputs.push(self.number("loss")?);
        let mut batch = batch.clone();
        let mut inputs = batch_tensors(&mut batch)?;
        inputs.extend(masks);
        inputs.extend(self.tensors(&self.numbers[0], "")?);
        self.training.run_in_place(&inputs, &mut outputs)?;
        let loss = self.found();
        let has_further = std::mem::replace(&mut self.has_gradients, true);
        if has_further || weight != 1.0 {
            self.accumulate(has_further, weight)?;
        }
        Ok(loss)
    }

    fn update(&mut self, update: &Update) -> Result<f64, TrainingError> {
        let options = OptimizerOptions {
            adamw: update.adamw,
            no_decay_norm_bias: update.no_decay_norm_bias,
            max_grad_norm: update.max_grad_norm,
        };
        if self.optimizer.as_ref().is_none_or(|(made_for, _)| *made_for != options) {
            let pieces: Vec<Parameter> = self.pieces.iter().map(|(piece, _)| piece.clone()).collect();
            let model = optimizer_graph(&pieces, &options).map_err(BuildError::from)?;
            let session = Session::new(&self.runtime, "optimizer_model", &model.to_bytes(), &self.folder, &[])?;
            self.optimizer = Some((options, session));
        }
        let Some((_, session)) = &self.optimizer else { return Ok(f64::NAN) };
        let (mut rate, mut step) = ([update.learning_rate as f32], [update.step as i64]);
        let mut inputs = vec![InPlace::f32("learning_rate", &mut rate, &[])?, InPlace::i64("step", &mut step, &[])?];
        inputs.extend(self.pieces(&self.gradients, ".grad")?);
        let mut outputs = vec![self.number("grad_norm")?];
        for (kind, numbers) in KINDS.iter().zip(&self.numbers) {
            inputs.extend(self.pieces(numbers, kind)?);
            outputs.extend(self.pieces(numbers, &format!("{kind}.updated"))?);
        }
        session.run_in_place(&inputs, &mut outputs)?;
        self.has_gradients = false;
        self.is_copied = [false; 3];
        Ok(self.found())
    }

    fn evaluate(&mut self, batch: &Batch) -> Result<(f64, u64), TrainingError> {
        let num_labels = batch.labels.len() as u64;
        let mut batch = batch.clone();
        let mut inputs = batch_tensors(&mut batch)?;
        inputs.extend(self.tensors(&self.numbers[0], "")?);
        self.evaluation.run_in_place(&inputs, &mut [self.number("loss_sum")?])?;
        Ok((self.found(), num_labels))
    }

    fn numbers(&mut self) -> Result<[&[f32]; 3], TrainingError> {
        (0..KINDS.len()).try_for_each(|kind| self.download(kind))?;
        let [parameters, exp_avg, exp_avg_sq] = &self.copies;
        Ok([parameters, exp_avg, exp_avg_sq])
    }

    fn parameters(&mut self) -> Result<&[f32], TrainingError> {
        self.download(0)?;
        Ok(&self.copies[0])
    }

    fn restore(&mut self, fill: &mut dyn FnMut([&mut [f32]; 3]) -> Result<(), TrainingError>) -> Result<(), TrainingError> {
        let [parameters, exp_avg, exp_avg_sq] = &mut self.copies;
        fill([parameters, exp_avg, exp_avg_sq])?;
        self.has_gradients = false;
        (0..KINDS.len()).try_for_each(|kind| self.upload(kind))
    }
}

/// A batch's own inputs.
fn batch_tensors(batch: &mut Batch) -> Result<Vec<InPlace<'_>>, RuntimeError> {
    batch.inputs(true).into_iter().map(batch_tensor).collect()
}

fn batch_tensor<'a>((name, numbers, shape): (&str, Numbers<'a>, Vec<i64>)) -> Result<InPlace<'a>, RuntimeError> {
    match numbers {
        Numbers::F32(values) => InPlace::f32(name, values, &shape),
        Numbers::I64(values) => InPlace::i64(name, values, &shape),
    }
}

fn input(g: &Graph, parameter: &Parameter, suffix: &str) -> Value {
    let shape: Vec<Dim> = parameter.shape.iter().map(|&d| Dim::from(d)).collect();
    g.input(&format!("{}{suffix}", parameter.name), DType::F32, &shape)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_everything_once_and_tell_what_decays() {
        let found = pieces_of(2 * PIECE + 16, 3 * PIECE);
        let told: Vec<(usize, usize, bool)> =
            found.iter().map(|(piece, start)| (*start, piece.shape[0], is_norm_or_bias(&piece.name))).collect();
        let wanted = [(0, PIECE, false), (PIECE, PIECE, false), (2 * PIECE, 16, false), (2 * PIECE + 16, PIECE - 16, true)];
        assert_eq!(told, wanted);
        assert!(pieces_of(0, 0).is_empty());
    }
}
