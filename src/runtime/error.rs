//! What can go wrong between a graph and its answer.

use std::path::PathBuf;

use super::Device;

/// What can go wrong with ONNX Runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("ONNX Runtime was not found for --device {device}: run {} in the checkout, or set ORT_DYLIB_PATH to a libonnxruntime.so (looked at: {})", setup(*device), tried.join(", "))]
    LibraryNotFound { device: Device, tried: Vec<String> },
    #[error("{}: ONNX Runtime does not load: {message}", path.display())]
    LibraryUnusable { path: PathBuf, message: String },
    #[error("--device {device} is not usable here: {message}")]
    DeviceUnavailable { device: Device, message: String },
    #[error("{model}: {message}")]
    Model { model: String, message: String },
    #[error("{model}: {what} has shape {found:?}, and {wanted:?} is needed")]
    Shape { model: String, what: String, found: Vec<i64>, wanted: Vec<i64> },
    #[error("{model}: {}", runtime_message(&source.to_string()))]
    Ort { model: String, source: ort::Error },
}

/// The command that brings the library a device needs.
fn setup(device: Device) -> &'static str {
    match device {
        Device::Auto | Device::Cpu => "scripts/setup.sh",
        Device::OpenVino => "scripts/setup.sh --openvino",
        Device::Cuda(_) | Device::Cards(_) => "scripts/setup.sh --cuda",
    }
}

/// What helps where memory does not suffice.
pub(super) const LESS_MEMORY: &str = "lower --batch-size (or --num-beams), or take --precision fp16 (bf16 in training)";

/// What ONNX Runtime says; of memory that does not suffice, what helps.
fn runtime_message(message: &str) -> String {
    let is_full =
        ["Failed to allocate memory", "out of memory", "cudaErrorMemoryAllocation"].iter().any(|sign| message.contains(sign));
    let cure = if is_full { format!("there is not enough memory on the device: {LESS_MEMORY}; ") } else { String::new() };
    format!("{cure}ONNX Runtime says: {}", shortened(message))
}

/// A provider's message can run to hundreds of lines; the first ones say what is wrong.
pub(super) fn shortened(message: &str) -> String {
    const MAX: usize = 600;
    match message.char_indices().nth(MAX) {
        Some((end, _)) => format!("{} ... ({} characters in all)", &message[..end], message.chars().count()),
        None => message.trim_end().into(),
    }
}
