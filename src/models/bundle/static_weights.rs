//! What static scales put into `int8.safetensors`, and what the record says of them.

use std::collections::BTreeSet;

use super::quantize::{Calibrated, Planned};
use super::{CalibratedPart, CalibrationRecord};
use crate::models::int8::{Decision, InFloat, PartDecisions, Rounded};
use crate::models::weights::{DType, SafetensorsFile, WeightsError};
use crate::onnx::{Int8Names, Product, smoothed_name};

/// Plans the tensors of one graph's products.
pub(super) fn plan<'a>(decisions: &'a PartDecisions, source: &'a SafetensorsFile, planned: &mut Vec<Planned<'a>>) {
    let mut norms = BTreeSet::new();
    for (product, decision) in decisions.in_8_bits.values() {
        let names = Int8Names::of(&product.weight);
        let (inputs, outputs) = (product.inputs, product.outputs);
        let rounded = move || weight(product, decision, source);
        planned.push(tensor(names.data, DType::I8, vec![inputs, outputs], move || Ok(bytes(&rounded()?.data))));
        planned.push(tensor(names.scales, DType::F32, vec![outputs], move || Ok(bytes(&rounded()?.scales))));
        let rounding = decision.rounding;
        let facts = [rounding.scale, f32::from(rounding.zero_point), f32::from(u8::from(rounding.smoothed))];
        planned.push(tensor(names.rounding, DType::F32, vec![3], move || Ok(bytes(&facts))));
        if let Some(bias) = &product.bias {
            let rounded =
                move || Ok::<_, WeightsError>(weight(product, decision, source)?.bias(&source.read_f32(bias)?, rounding));
            planned.push(tensor(names.bias, DType::I32, vec![outputs], move || Ok(bytes(&rounded()?.0))));
            planned.push(tensor(names.bias_scales, DType::F32, vec![outputs], move || Ok(bytes(&rounded()?.1))));
        }
        let (Some((_, factors)), Some(norm)) = (&decision.smoothing, &product.norm) else { continue };
        for parameter in norm.iter().filter(|parameter| norms.insert((*parameter).clone())) {
            let divided = move || {
                let values = source.read_f32(parameter)?;
                Ok(bytes(&values.iter().zip(factors).map(|(value, factor)| value / factor).collect::<Vec<f32>>()))
            };
            planned.push(tensor(smoothed_name(parameter), DType::F32, vec![inputs], divided));
        }
    }
}

fn tensor<'a>(
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    bytes: impl Fn() -> Result<Vec<u8>, WeightsError> + 'a,
) -> Planned<'a> {
    Planned { name, dtype, shape, bytes: Box::new(bytes) }
}

fn weight(product: &Product, decision: &Decision, source: &SafetensorsFile) -> Result<Rounded, WeightsError> {
    let factors = decision.smoothing.as_ref().map(|(_, factors)| factors.as_slice());
    Ok(Rounded::of(&matrix(product, source)?, product.outputs, factors))
}

/// A product's weight as [inputs, outputs].
pub(super) fn matrix(product: &Product, source: &SafetensorsFile) -> Result<Vec<f32>, WeightsError> {
    let values = source.read_f32(&product.weight)?;
    if !product.transposed {
        return Ok(values);
    }
    let (inputs, outputs) = (product.inputs, product.outputs);
    let mut turned = vec![0.0; values.len()];
    for (output, row) in values.chunks_exact(inputs.max(1)).enumerate() {
        row.iter().enumerate().for_each(|(input, value)| turned[input * outputs + output] = *value);
    }
    Ok(turned)
}

fn bytes<T: bytemuck::NoUninit>(numbers: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(numbers).to_vec()
}

impl Calibrated {
    /// For `clipcap.json`.
    pub(super) fn record(&self) -> CalibrationRecord {
        let parts = self.parts.iter().map(|(name, decisions)| ((*name).to_string(), part_record(decisions))).collect();
        CalibrationRecord {
            kind: self.kind.into(),
            count: self.count,
            fingerprint: self.fingerprint.clone(),
            parts,
            report: None,
        }
    }
}

fn part_record(decisions: &PartDecisions) -> CalibratedPart {
    let reason = |reason: &InFloat| match reason {
        InFloat::Last => "last",
        InFloat::Noise => "noise",
    };
    let smoothed = decisions.in_8_bits.values().filter_map(|(product, decision)| {
        let ((strength, _), [weight, _]) = (decision.smoothing.as_ref()?, product.norm.as_ref()?);
        Some((weight.trim_end_matches(".weight").to_string(), strength.to_string()))
    });
    CalibratedPart {
        products_in_8_bits: decisions.in_8_bits.len(),
        in_float: decisions.in_float.iter().map(|(weight, why)| (weight.clone(), reason(why).to_string())).collect(),
        smoothed: smoothed.collect(),
        one_sided: decisions.in_8_bits.values().filter(|(_, decision)| decision.rounding.zero_point != 128).count(),
    }
}
