//! What the model's side of a stage looks like to the stream.

use super::record::Value;
use crate::files::ContentHash;
use crate::pipeline::artifact::Failure;

/// A prepared image, ready for the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Seeds of sampling come from it, so that a result depends on content and never on place.
    pub sha256: ContentHash,
    /// pixel_values [3, S, S] or an embedding [D].
    pub data: Vec<f32>,
    /// The image file is damaged, and has a picture all the same.
    pub damaged: bool,
}

/// The data of a batch, one input behind the other.
pub fn concatenated(inputs: &[Input]) -> Vec<f32> {
    let mut all = Vec::with_capacity(inputs.iter().map(|input| input.data.len()).sum());
    inputs.iter().for_each(|input| all.extend_from_slice(&input.data));
    all
}

/// The model, on one thread. Images come in windows: some `encode` calls, then a `finish` that gives all their results.
///
/// A result may depend (by rounding) on the other images of its window and on nothing else, which is why a run that was interrupted at
/// any window ends with the same bytes.
pub trait Compute {
    /// An image's result.
    type Value: Value;

    /// Images that `encode` takes at once at most.
    fn batch_size(&self) -> usize;

    /// Takes in up to [`batch_size`](Self::batch_size) images of the current window.
    fn encode(&mut self, inputs: Vec<Input>) -> anyhow::Result<()>;

    /// Ends the window: one value for each image since the last call, in order, or why the model could make none of it.
    fn finish(&mut self) -> anyhow::Result<Vec<Result<Self::Value, Failure>>>;
}
