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
pub(crate) use source::WeightFormat;
pub use source::{TensorInfo, WeightSource};
pub use writer::SafetensorsWriter;

/// What can be wrong with a weight file. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The bytes are not those of a weight file, or say what is not believed: a length beyond the file, a call that is not allowed.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A tensor that is needed is not in the file.
    #[error("{}: there is no tensor named {name}", path.display())]
    NoSuchTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
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
