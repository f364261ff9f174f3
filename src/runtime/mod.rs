//! ONNX Runtime: where its library is, which device computes, and sessions with checked names.

mod device;

pub use device::{Device, Precision};
