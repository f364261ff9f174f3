//! ONNX Runtime: where its library is, which device computes, and sessions with checked names.

mod device;
mod error;

pub use device::{Device, Precision};
pub use error::RuntimeError;
