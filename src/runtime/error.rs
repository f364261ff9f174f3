//! What can go wrong between a graph and its answer.

use std::path::PathBuf;

use super::Device;

/// What can go wrong with ONNX Runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No libonnxruntime.so (or OpenVINO's library) in any place where one is looked for.
    #[error("{} was not found for --device {device}: run {} in the checkout{} (looked at: {})", library, setup(*device), otherwise(library), tried.join(", "))]
    LibraryNotFound {
        /// ONNX Runtime or OpenVINO.
        library: &'static str,
        /// The device that was asked for.
        device: Device,
        /// The places, in the order of the search.
        tried: Vec<String>,
    },
    /// A library is there and does not load: a wrong architecture, or too old.
    #[error("{}: {library} does not load: {message}", path.display())]
    LibraryUnusable {
        /// ONNX Runtime or OpenVINO.
        library: &'static str,
        /// The library.
        path: PathBuf,
        /// The loader's reason.
        message: String,
    },
    /// A device was asked for by name and cannot be used; nothing else is taken in its place.
    #[error("--device {device} is not usable here: {message}")]
    DeviceUnavailable {
        /// The device.
        device: Device,
        /// What it lacks: a driver, a library, a card of that number.
        message: String,
    },
    /// A model cannot do what is asked of it here, or has no memory for it.
    #[error("{model}: {message}")]
    Model {
        /// The graph's name, or what else gave up.
        model: String,
        /// The reason.
        message: String,
    },
    /// A tensor that goes in or comes out has another shape than is needed.
    #[error("{model}: {what} has shape {found:?}, and {wanted:?} is needed")]
    Shape {
        /// The graph's name.
        model: String,
        /// The tensor's name.
        what: String,
        /// Its shape.
        found: Vec<i64>,
        /// The shape that is needed.
        wanted: Vec<i64>,
    },
    /// ONNX Runtime refuses or fails: a graph, a feed, a run.
    #[error("{model}: {}", runtime_message(&source.to_string()))]
    Ort {
        /// The graph's name.
        model: String,
        /// ONNX Runtime's own error.
        source: ort::Error,
    },
    /// OpenVINO refuses or fails: a graph, a run.
    #[error("{model}: OpenVINO says: {}", shortened(message))]
    OpenVino {
        /// The graph's name.
        model: String,
        /// OpenVINO's own words.
        message: String,
    },
}

/// What may be done in place of the setup.
fn otherwise(library: &str) -> &'static str {
    match library {
        ONNX_RUNTIME => ", or set ORT_DYLIB_PATH to a libonnxruntime.so",
        _ => ", or put the libraries of PyPI's openvino package into CLIPCAP_RUNTIME/openvino",
    }
}

/// What errors call the libraries.
pub(super) const ONNX_RUNTIME: &str = "ONNX Runtime";
pub(super) const OPENVINO: &str = "OpenVINO";

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
