//! Optimizer steps and evaluations, whatever computes them.

use std::time::{Duration, Instant};

use super::batches::Batch;
use super::checkpoint::CheckpointError;
use super::dropout::DropoutKey;
use super::optimizer::AdamW;
use super::parameters::Layout;
use super::schedule::Schedule;
use crate::models::graphs::BuildError;
use crate::runtime::RuntimeError;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The backend is not to be used any more; checkpoints are as they were.
    #[error("the {what} of step {step} is {value}, which is not a finite number")]
    NotFinite { what: &'static str, step: u64, value: f64 },
    #[error("{0}")]
    Unsupported(String),
}

/// How an optimizer step changes the parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    pub adamw: AdamW,
    /// Layer norms and biases are left without weight decay.
    pub no_decay_norm_bias: bool,
    /// Gradients of a greater global norm are scaled down to it.
    pub max_grad_norm: Option<f64>,
    pub learning_rate: f64,
    /// Counts from 1.
    pub step: u64,
}

/// Parameters, gradients and moments of a model, where they are computed with.
pub trait Backend {
    /// Where each parameter lies.
    fn layout(&self) -> &Layout;

    /// Computes the mean loss over a batch's labels and adds its gradient, times `weight`, to those of the step in hand.
    fn backward(&mut self, batch: &Batch, key: DropoutKey, weight: f32) -> Result<f64, TrainingError>;

    /// Applies the gradients and forgets them. Returns their global norm before clipping; where it is not finite, parameters and
    /// moments are good for nothing any more.
    fn update(&mut self, update: &Update) -> Result<f64, TrainingError>;

    /// The summed loss over a batch's labels, without dropout, and their number.
    fn evaluate(&mut self, batch: &Batch) -> Result<(f64, u64), TrainingError>;

    /// Parameters and both moments, in the layout.
    fn numbers(&mut self) -> Result<[&[f32]; 3], TrainingError>;

    /// The parameters alone, in the layout: less to move where they are on a device.
    fn parameters(&mut self) -> Result<&[f32], TrainingError> {
        Ok(self.numbers()?[0])
    }

    /// Replaces parameters and both moments by what `fill` writes over them.
    fn restore(&mut self, fill: Fill<'_>) -> Result<(), TrainingError>;
}

/// Writes parameters and both moments anew.
pub type Fill<'a> = &'a mut dyn FnMut([&mut [f32]; 3]) -> Result<(), TrainingError>;

/// What holds for every step of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    pub adamw: AdamW,
    pub no_decay_norm_bias: bool,
    pub max_grad_norm: Option<f64>,
    pub schedule: Schedule,
    pub seed: u64,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean over the labels of all batches of the step, before the update.
    pub loss: f64,
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Real caption tokens.
    pub tokens: u64,
    /// Captions.
    pub samples: u64,
    /// Spent in forward and backward passes.
    pub gradients_time: Duration,
    /// Spent in clipping and the optimizer.
    pub update_time: Duration,
}

/// One optimizer step over some batches, after `steps_done` others. The gradient is that of the mean loss over all labels, so that
/// cutting the same captions into more batches changes nothing but rounding.
pub fn step(backend: &mut dyn Backend, recipe: &Recipe, steps_done: u64, batches: &[Batch]) -> Result<StepReport, TrainingError> {
    let step = steps_done + 1;
    let labels: usize = batches.iter().map(|batch| batch.labels.len()).sum();
    let started = Instant::now();
    let mut loss = 0.0;
    for (number, batch) in batches.iter().enumerate() {
        let key = DropoutKey { seed: recipe.seed, step: steps_done, micro_batch: number as u64 };
        let weight = batch.labels.len() as f64 / labels.max(1) as f64;
        loss += weight * backend.backward(batch, key, weight as f32)?;
    }
    if !loss.is_finite() {
        return Err(TrainingError::NotFinite { what: "loss", step, value: loss });
    }
    let gradients_time = started.elapsed();
    let learning_rate = recipe.schedule.learning_rate(steps_done);
    let grad_norm = backend.update(&Update {
        adamw: recipe.adamw,
        no_decay_norm_bias: recipe.no_decay_norm_bias,
        max_grad_norm: recipe.max_grad_norm,
        learning_rate,
        step,
    })?;
    if !grad_norm.is_finite() {
        return Err(TrainingError::NotFinite { what: "gradient norm", step, value: grad_norm });
    }
    Ok(StepReport {
        loss,
        grad_norm,
        learning_rate,
        tokens: batches.iter().map(|batch| batch.caption_tokens as u64).sum(),
        samples: batches.iter().map(|batch| batch.rows as u64).sum(),
        gradients_time,
        update_time: started.elapsed() - gradients_time,
    })
}

/// The mean loss over all labels of some batches, a true mean over tokens however they are cut; None where there is none.
pub fn evaluate(backend: &mut dyn Backend, batches: impl Iterator<Item = Batch>) -> Result<Option<f64>, TrainingError> {
    let (mut sum, mut count) = (0.0, 0);
    for batch in batches {
        let (loss, labels) = backend.evaluate(&batch)?;
        sum += loss;
        count += labels;
    }
    Ok((count > 0).then(|| sum / count as f64))
}
