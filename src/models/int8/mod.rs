//! Static 8-bit weights: what activations look like on a few inputs, which scales follow from that, and how the graphs are spelled with them.

mod choose;
mod observe;
mod range;

pub use choose::{Decision, InFloat, PartDecisions, Rounded, decide};
pub use observe::{DecoderObserver, EncoderObserver, MapperObserver};
pub use range::Range;

use std::collections::HashMap;
use std::path::Path;

use super::graphs::{BuildError, INT8_WEIGHTS, external_tensors};
use super::weights::SafetensorsFile;
use crate::onnx::{Int8Names, Model, Rounding, Spelling};

/// The roundings that `model quantize --calibrate` stored for the products of `model`, by weight; none where it was not calibrated.
pub fn stored_roundings(folder: &Path, model: &Model) -> Result<HashMap<String, Rounding>, BuildError> {
    let path = folder.join(INT8_WEIGHTS);
    if !path.is_file() {
        return Ok(HashMap::new());
    }
    let file = SafetensorsFile::open(path)?;
    let mut roundings = HashMap::new();
    for product in model.products() {
        let name = Int8Names::of(&product.weight).rounding;
        if !file.tensors().contains_key(&name) {
            continue;
        }
        if let [scale, zero_point, smoothed] = file.read_f32(&name)?[..] {
            let rounding = Rounding { scale, zero_point: zero_point.clamp(0.0, 255.0) as u8, smoothed: smoothed > 0.0 };
            roundings.insert(product.weight, rounding);
        }
    }
    Ok(roundings)
}

/// `model`, a float32 graph over the bundle at `folder`, with the products that were calibrated in 8 bits; None where none was.
pub fn in_8_bits(folder: &Path, model: &Model, spelling: Spelling) -> Result<Option<Model>, BuildError> {
    let roundings = stored_roundings(folder, model)?;
    if roundings.is_empty() {
        return Ok(None);
    }
    let table = external_tensors(folder, INT8_WEIGHTS)?;
    Ok(Some(model.in_8_bits(&roundings, &table, spelling)?))
}
