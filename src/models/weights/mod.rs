//! Weight files: what people publish is read here (safetensors, PyTorch's zip and legacy files, TorchScript archives), and what the
//! program keeps is written here (safetensors).
//!
//! Nothing in a file is run, no length in it is believed before it is checked against the file, and at most one tensor is in memory at
//! a time.

use std::path::PathBuf;

mod folder;
mod pickle;
mod place;
mod safetensors;
mod source;
mod torch;
mod writer;

pub use crate::onnx::DType;
pub use safetensors::{SafetensorsFile, TensorEntry};
pub use source::{TensorInfo, WeightFormat, WeightSource};
pub use writer::SafetensorsWriter;

/// What can be wrong with a weight file. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {problem}", path.display())]
    Invalid { path: PathBuf, problem: String },
    #[error("{}: there is no tensor named {name}", path.display())]
    NoSuchTensor { path: PathBuf, name: String },
}

impl WeightsError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn invalid(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Invalid { path: path.into(), problem: problem.into() }
    }
}

#[cfg(test)]
mod tests;
