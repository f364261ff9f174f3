//! The graphs of training, in operators that every stock ONNX Runtime has: a step's loss and gradients, evaluation, and the optimizer.
//!
//! | graph | inputs | outputs |
//! | --- | --- | --- |
//! | `training_model.onnx` | batch, trainable parameters, `dropout_mask.SITE` | `loss`, `NAME.grad` |
//! | `eval_model.onnx` | batch, trainable parameters | `loss_sum` (float32), `num_tokens` (int64) |
//! | `optimizer_model.onnx` | `NAME`, `NAME.grad`, `NAME.exp_avg`, `NAME.exp_avg_sq`, `learning_rate`, `step` | the same `.updated`, `grad_norm` |
//!
//! A batch is `clip_embeds` [batch, D], `caption_ids` [batch, tokens], `attention_mask` [batch, prefix_len + tokens], `label_positions`
//! [labels] (rows of the flattened [batch * (prefix_len + tokens)] states that predict a label) and `labels` [labels]; a negative label
//! does not count. Which positions are listed decides what the loss is taken over: real tokens, or padding too. Parameters have the
//! names of the original's checkpoints. For self-critical training the training model also takes `label_weights` [labels] (float32): what each
//! label counts. Frozen ones are initializers that point into weight files.
//!
//! That is the objective of captions. A language model's batch has no `clip_embeds` and no prefix: its rows begin with `[CLS]`. For the
//! contrastive objective's see [`contrastive`]; its losses are over pairs.
//!
//! B batch, T caption tokens, P prefix_len, M labels, D clip_size, C n_embd, V vocab_size.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use super::contrastive;
use super::dropout;
use super::loss::{Loss, cross_entropy};
use super::objective::Objective;
use super::optimizer_graph::{OptimizerOptions, optimizer_graph};
use crate::autodiff::{Spelling, gradients_recomputing};
use crate::files;
use crate::models::config::{ClipConfig, DecoderConfig, MapperConfig};
use crate::models::decoders::{self, architecture};
use crate::models::graphs::{BuildError, CLIP_WEIGHTS, GPT2_WEIGHTS, MAPPER_WEIGHTS, external_tensors};
use crate::models::layers::LORA_SCALE;
use crate::models::mapper;
use crate::onnx::{DType, Dim, ExternalTensor, Graph, Model, ParameterMode, Shape, Value};

mod options;

pub use options::{GraphOptions, Sizes, Trained, Variant};

/// File names inside an artifacts folder.
pub const TRAINING_MODEL: &str = "training_model.onnx";
/// File of the evaluation graph.
pub const EVAL_MODEL: &str = "eval_model.onnx";
/// File of the optimizer's graph.
pub const OPTIMIZER_MODEL: &str = "optimizer_model.onnx";
/// Weights that the graphs of an artifacts folder point into, relative to it. They are copied: to ONNX's checker a file of two names is an
/// attack.
const GPT2_COPY: &str = "weights/gpt2.safetensors";

/// Which model: a bundle's folder (or any with its layout) and configurations.
#[derive(Debug, Clone, Copy)]
pub struct Network<'a> {
    /// Where the weights are that graphs point into.
    pub folder: &'a Path,
    /// Of the image encoder, whose weights stay as they are.
    pub clip: &'a ClipConfig,
    /// Of the mapper, which is trained.
    pub mapper: &'a MapperConfig,
    /// Of the decoder, which is trained where that is asked for.
    pub decoder: &'a DecoderConfig,
    /// What the decoder's names begin with beside those of the mapper, such as `gpt2.`.
    pub scope: &'a str,
}

/// A trainable tensor: an input of its name, float32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    pub shape: Vec<usize>,
}

impl Parameter {
    /// The output with its gradient.
    pub fn gradient_name(&self) -> String {
        format!("{}.grad", self.name)
    }
}

/// A mask to be fed: float32, 0 or 1 / (1 - rate); on CUDA in bytes, 0 or 1.
#[derive(Debug, Clone, PartialEq)]
pub struct DropoutSite {
    /// The input's name, `dropout_mask.SITE`.
    pub input: String,
    /// Where, such as `gpt2.transformer.h.0.attn.attn_dropout`.
    pub site: String,
    pub rate: f32,
    /// In the dimensions of [`Sizes`].
    pub shape: Shape,
}

/// A gradient that is complete only once these rows are added: row `i` of `rows` to row `row_ids[i]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowGradient {
    pub parameter: String,
    /// Output `NAME.grad_rows`, float32 [R, C].
    pub rows: String,
    /// Output `NAME.grad_row_ids`, int64 [R].
    pub row_ids: String,
    /// R, in the dimensions of [`Sizes`]: M + B * T of an embedding that is the head too.
    pub count: Dim,
    /// C
    pub width: usize,
}

/// A training graph and what to feed it with and take from it. Inputs: the batch, the parameters, the masks. Outputs: `loss` and each
/// parameter's [`gradient_name`](Parameter::gradient_name), in the parameters' order, then the [`RowGradient`]'s.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingGraph {
    pub model: Model,
    pub parameters: Vec<Parameter>,
    pub dropout: Vec<DropoutSite>,
    pub rows: Vec<RowGradient>,
}

/// Builds the graph of a training step, to be loaded with the network's folder.
pub fn training_graph(network: &Network<'_>, options: &GraphOptions) -> Result<TrainingGraph, BuildError> {
    training_graph_over(network, options, GPT2_WEIGHTS)
}

fn training_graph_over(network: &Network<'_>, options: &GraphOptions, gpt2: &'static str) -> Result<TrainingGraph, BuildError> {
    let g = graph("training_model", network, options, gpt2)?;
    g.doc(
        "One training step: the mean loss over the labels, and its gradient NAME.grad for each trainable parameter NAME. Feed the batch and the \
         parameters by name.",
    );
    let sites = RefCell::new(vec![]);
    let loss = loss_of(&g, network, options, Some(&sites));
    g.output("loss", loss.mean);
    let (names, values): (Vec<String>, Vec<Value>) =
        g.parameters().into_iter().filter(|(name, _)| options.trains(network.scope, name)).unzip();
    let spelling = if options.variant == Variant::OpenVino { Spelling::Recomputed } else { Spelling::Statistics };
    let blocks = if options.trained.recompute { g.blocks() } else { vec![] };
    let gradients = gradients_recomputing(&g, loss.mean, &values, spelling, &blocks);
    let (mut parameters, mut apart) = (vec![], vec![]);
    for ((name, value), gradient) in names.into_iter().zip(values).zip(gradients) {
        let shape = g.shape(value).iter().filter_map(Dim::as_fixed).map(|d| d as usize).collect();
        let parameter = Parameter { name, shape };
        match (gradient.dense, gradient.rows) {
            (Some(dense), Some(rows)) if options.has_rows_apart() => {
                g.output(&parameter.gradient_name(), dense);
                let name = &parameter.name;
                apart.push((row_gradient(&g, name, &rows), rows));
            }
            // An embedding that is not the head has rows alone.
            (None, Some(rows)) if options.has_rows_apart() => {
                g.output(&parameter.gradient_name(), g.zeros(DType::F32, &g.shape(value)));
                apart.push((row_gradient(&g, &parameter.name, &rows), rows));
            }
            _ => g.output(&parameter.gradient_name(), gradient.whole(&g, value)),
        }
        parameters.push(parameter);
    }
    for (names, rows) in &apart {
        g.output(&names.rows, rows.updates);
        g.output(&names.row_ids, rows.indices);
    }
    Ok(TrainingGraph {
        model: g.finish()?,
        parameters,
        dropout: sites.into_inner(),
        rows: apart.into_iter().map(|(names, _)| names).collect(),
    })
}

fn row_gradient(g: &Graph, parameter: &str, rows: &crate::autodiff::Rows) -> RowGradient {
    RowGradient {
        parameter: parameter.into(),
        rows: format!("{parameter}.grad_rows"),
        row_ids: format!("{parameter}.grad_row_ids"),
        count: g.shape(rows.indices)[0].clone(),
        width: g.shape(rows.updates).last().and_then(Dim::as_fixed).map_or(0, |width| width as usize),
    }
}

/// Builds the graph of an evaluation: the same inputs as training's but for masks; outputs `loss_sum` and `num_tokens`.
pub fn evaluation_graph(network: &Network<'_>, options: &GraphOptions) -> Result<Model, BuildError> {
    evaluation_graph_over(network, options, GPT2_WEIGHTS)
}

fn evaluation_graph_over(network: &Network<'_>, options: &GraphOptions, gpt2: &'static str) -> Result<Model, BuildError> {
    let g = graph("eval_model", network, options, gpt2)?;
    g.doc("Evaluation: the loss summed over the labels, without dropout or label smoothing, and the number of labels.");
    let trained = Trained { label_smoothing: 0.0, ..options.trained.clone() };
    let loss = loss_of(&g, network, &GraphOptions { trained, ..options.clone() }, None);
    g.output("loss_sum", loss.sum);
    g.output("num_tokens", loss.num_tokens);
    Ok(g.finish()?)
}

/// A graph over the checkpoint's names, trainable ones as inputs.
fn graph(name: &str, network: &Network<'_>, options: &GraphOptions, gpt2: &'static str) -> Result<Graph, BuildError> {
    let files: &[&str] = match options.trained.objective {
        Objective::Caption | Objective::Scst => &[MAPPER_WEIGHTS, GPT2_WEIGHTS],
        Objective::LanguageModel => &[GPT2_WEIGHTS],
        Objective::Contrastive => &[CLIP_WEIGHTS],
    };
    let mut table: HashMap<String, ExternalTensor> = HashMap::new();
    for file in files {
        let tensors = external_tensors(network.folder, file)?;
        match *file {
            GPT2_WEIGHTS => table.extend(tensors.into_iter().map(|(name, mut tensor)| {
                tensor.location = gpt2.into();
                (format!("{}{name}", network.scope), tensor)
            })),
            _ => table.extend(tensors),
        }
    }
    for spec in options.trained.lora.iter().flat_map(|lora| lora.tensors(network.scope, network.decoder)) {
        let shape = spec.shape.iter().map(|&d| d as i64).collect();
        // Always fed, and in no file.
        let tensor = ExternalTensor { dtype: DType::F32, shape, location: String::new(), offset: 0, length: 0 };
        table.insert(spec.name, tensor);
    }
    let scale = options.trained.lora.as_ref().map(|lora| lora.scale() as f32);
    let variant = options.variant;
    let (options, scope) = (options.clone(), network.scope.to_string());
    table.iter_mut().filter(|(name, _)| options.trains(&scope, name)).for_each(|(_, tensor)| tensor.dtype = DType::F32);
    let g = Graph::with_parameters(name, table, move |name| match options.trains(&scope, name) {
        true => ParameterMode::Input,
        false => ParameterMode::Reference,
    });
    if let Some(scale) = scale {
        g.set_number(LORA_SCALE, scale);
    }
    if variant == Variant::Cuda {
        g.spell_for_cuda();
    }
    Ok(g)
}

fn loss_of(g: &Graph, network: &Network<'_>, options: &GraphOptions, sites: Option<&RefCell<Vec<DropoutSite>>>) -> Loss {
    match options.trained.objective {
        Objective::Contrastive => contrastive::forward(g, options.style(), network.clip),
        Objective::Caption | Objective::Scst | Objective::LanguageModel => forward(g, network, options, sites),
    }
}

/// From a batch to its loss; `sites` collects the places where something is dropped, and where it is absent nothing is.
///
/// The last position of a row predicts nothing and is seen by no other, so it is left out: there are S = P + T - 1 positions inside.
fn forward(g: &Graph, network: &Network<'_>, options: &GraphOptions, sites: Option<&RefCell<Vec<DropoutSite>>>) -> Loss {
    let (mapper, family, style) = (network.mapper, architecture(network.decoder), options.style());
    let decoder = family.sizes();
    let prefix_len = options.trained.objective.prefix_len(mapper);
    let Sizes { batch, tokens, labels } = &options.sizes;
    let all = tokens.clone() + prefix_len.into();
    let inside = all.clone() - 1.into();
    let width = Dim::from(decoder.n_embd);

    let clip_embeds = (prefix_len > 0).then(|| g.input("clip_embeds", DType::F32, &[batch.clone(), mapper.clip_size.into()]));
    let caption_ids = g.input("caption_ids", DType::I64, &[batch.clone(), tokens.clone()]);
    let mask = g.input("attention_mask", DType::I64, &[batch.clone(), all.clone()]);
    let label_positions =
        (options.variant != Variant::OpenVino).then(|| g.input("label_positions", DType::I64, std::slice::from_ref(labels)));
    // Without a prefix, nothing predicts the first token.
    let num_columns = if prefix_len > 0 { tokens.clone() } else { inside.clone() };
    let num_labels = if label_positions.is_some() { labels.clone() } else { batch.clone() * num_columns.clone() };
    let labels = g.input("labels", DType::I64, std::slice::from_ref(&num_labels));
    // An evaluation is of people's captions, which all count alike.
    let is_weighted = options.trained.objective == Objective::Scst && sites.is_some();
    let weights = is_weighted.then(|| g.input("label_weights", DType::F32, std::slice::from_ref(&num_labels)));
    // A listed position counts P + T positions a row.
    let rows = label_positions.map(|positions| g.sub(positions, g.div(positions, g.dim(&all))));
    let pick = |x: Value| match rows {
        Some(rows) => g.gather(x, rows, 0),
        None => {
            // The states before each caption token.
            let width = g.shape(x).last().cloned().unwrap_or_else(|| 0.into());
            let x = g.reshape(x, &[batch.clone(), inside.clone(), width.clone()]);
            let x = g.slice(x, 1, inside.clone() - num_columns.clone(), inside.clone());
            g.reshape(x, &[num_labels.clone(), width])
        }
    };

    let drop = |site: &str, rate: f64, x: Value| {
        let site = g.full_name(site);
        let rate = options.trained.dropout.unwrap_or(rate);
        let Some(sites) = sites.filter(|_| rate > 0.0 && options.trains(network.scope, &site)) else { return x };
        let input = format!("dropout_mask.{site}");
        // Masks are made for every position; where only picked ones go on, theirs are picked too.
        let picked = g.shape(x) == [num_labels.clone(), width.clone()];
        let shape = if picked { vec![batch.clone() * inside.clone(), width.clone()] } else { g.shape(x) };
        let rate = rate as f32;
        let in_bytes = options.variant == Variant::Cuda;
        let mask = g.input(&input, if in_bytes { DType::U8 } else { DType::F32 }, &shape);
        sites.borrow_mut().push(DropoutSite { input, site, rate, shape });
        // Cast first: ONNX Runtime picks rows of an input on the host, which would send them up as numbers.
        let mask = if in_bytes { g.scale(g.cast(mask, g.dtype(x)), dropout::scale(rate)) } else { mask };
        let mask = if picked { pick(mask) } else { mask };
        g.mul(x, g.cast(mask, g.dtype(x)))
    };
    let prefix = clip_embeds.map(|embeds| mapper::prefix_embeds(g, style, mapper, g.cast(embeds, style.dtype), Some(&drop))); // [B, P, C]
    g.scope(network.scope.trim_end_matches('.'), || {
        let table_of = |name: &str| g.scope(name, || g.parameter("weight", &[decoder.vocab_size.into(), width.clone()]));
        let table = table_of(family.embedding());
        let captions = g.cast(g.gather(table, caption_ids, 0), style.dtype); // [B, T, C]
        let embeds = prefix.map_or(captions, |prefix| g.concat(&[prefix, captions], 1));
        let embeds = g.slice(embeds, 1, 0.into(), inside.clone());
        let seen = g.slice(mask, 1, 0.into(), inside.clone());
        let states = decoders::states(g, style, family, embeds, seen, &drop, &pick); // [M, C]
        cross_entropy(g, states, table_of(family.head()), labels, weights, options.trained.label_smoothing)
    })
}

/// Writes `training_model.onnx`, `eval_model.onnx`, `optimizer_model.onnx` and, where GPT2 is frozen, a copy of its weights under
/// `weights/` into `folder`. Spelled portably with open dimensions. Returns the training graph.
pub fn write(
    folder: &Path,
    network: &Network<'_>,
    trained: Trained,
    optimizer: &OptimizerOptions,
) -> Result<TrainingGraph, BuildError> {
    let options = GraphOptions::portable(trained);
    let io = |name: &str| {
        let path = folder.join(name);
        move |source| BuildError::Io { path, source }
    };
    if options.trained.objective.is_of_embeddings() && !options.trained.finetune_gpt2 {
        let target = folder.join(GPT2_COPY);
        files::copy(&network.folder.join(GPT2_WEIGHTS), &target).map_err(io(GPT2_COPY))?;
    }
    let training = training_graph_over(network, &options, GPT2_COPY)?;
    let evaluation = evaluation_graph_over(network, &options, GPT2_COPY)?;
    let optimizer = optimizer_graph(&training.parameters, optimizer)?;
    for (name, model) in [(TRAINING_MODEL, &training.model), (EVAL_MODEL, &evaluation), (OPTIMIZER_MODEL, &optimizer)] {
        model.save(&folder.join(name)).map_err(io(name))?;
    }
    Ok(training)
}
