//! What is trained, and how its graph is spelled.

use crate::models::layers::Style;
use crate::onnx::{DType, Dim};
use crate::training::lora::{Lora, is_adapter};
use crate::training::objective::Objective;

/// For whom a graph is spelled. The saved one is [`Portable`](Self::Portable).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Variant {
    /// ONNX's own operators, complete by itself.
    #[default]
    Portable,
    /// ONNX Runtime's CPU provider: the token embedding's gradient comes without the rows that have to be added to it (see
    /// [`RowGradient`](super::RowGradient)), which is faster done in place.
    Cpu,
    /// OpenVINO: as [`Cpu`](Self::Cpu), shapes must be fixed, and there is a label for every caption position: no `label_positions`, and
    /// `labels` [B * T] are the flattened caption ids, negative where they do not count.
    OpenVino,
    /// ONNX Runtime's CUDA provider: complete by itself, without cuDNN, and the same bytes from the same run.
    Cuda,
}

/// Dimensions of a batch: symbols, or numbers where a session is for one shape only.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    pub batch: Dim,
    pub tokens: Dim,
    /// M; [`Variant::OpenVino`] does not use it.
    pub labels: Dim,
}

impl Sizes {
    /// Dimensions by name, fixed when a session is made.
    pub fn symbolic() -> Self {
        Self { batch: "batch".into(), tokens: "tokens".into(), labels: "labels".into() }
    }

    /// Rows and caption tokens of every batch are these; the number of labels is open.
    pub fn fixed(batch: usize, tokens: usize) -> Self {
        Self { batch: batch.into(), tokens: tokens.into(), labels: "labels".into() }
    }
}

/// What is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// What the loss is of.
    pub objective: Objective,
    /// Of captions: train GPT2 too; otherwise the mapper only.
    pub finetune_gpt2: bool,
    /// Of captions: adapters of a decoder that is frozen otherwise.
    pub lora: Option<Lora>,
    /// Compute what layers computed again in the backward pass, which keeps less in memory.
    pub recompute: bool,
    /// None: as the configurations say. A frozen GPT2 never drops.
    pub dropout: Option<f64>,
    /// 0 to 1: the share of probability that is spread over the whole vocabulary. 0: none.
    pub label_smoothing: f32,
}

impl Trained {
    /// Captions, with nothing beside them.
    pub fn captions(finetune_gpt2: bool) -> Self {
        let objective = Objective::Caption;
        Self { objective, finetune_gpt2, lora: None, recompute: false, dropout: None, label_smoothing: 0.0 }
    }
}

/// What is trained, and how the graph is spelled.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphOptions {
    pub trained: Trained,
    pub sizes: Sizes,
    pub variant: Variant,
    /// Element type inside; inputs and gradients are float32.
    pub dtype: DType,
}

impl GraphOptions {
    /// The saved form.
    pub fn portable(trained: Trained) -> Self {
        Self { trained, sizes: Sizes::symbolic(), variant: Variant::Portable, dtype: DType::F32 }
    }

    /// Whether a tensor of the graph is a parameter of the training.
    pub(super) fn trains(&self, scope: &str, name: &str) -> bool {
        !self.trained.objective.is_of_embeddings() || self.trained.finetune_gpt2 || !name.starts_with(scope) || is_adapter(name)
    }

    /// Whether gradients of embeddings come without the rows that have to be added.
    pub(super) fn has_rows_apart(&self) -> bool {
        matches!(self.variant, Variant::Cpu | Variant::OpenVino)
    }

    pub(super) fn style(&self) -> Style {
        let cuda = self.variant == Variant::Cuda;
        Style { fused: cuda || self.variant == Variant::Cpu, dtype: self.dtype, int8: false, cuda, own: false, dots: false }
    }
}
