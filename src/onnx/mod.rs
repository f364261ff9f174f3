//! (onnx: see lib.rs)
