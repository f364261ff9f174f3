//! `int8.safetensors` and the graphs over it: 8-bit weights for the image encoder and the decoder, beside the float ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use super::build::{Staging, check_place};
use super::{Bundle, BundleError, CalibrationReport, Int8Record, MANIFEST, static_weights};
use crate::files::{self, ContentHash};
use crate::models::block::Product;
use crate::models::decoders::{self, architecture};
use crate::models::graphs::{GraphKind, INT8_WEIGHTS, build};
use crate::models::int8::{self, PartDecisions, Range};
use crate::models::layers::{Style, int8_names};
use crate::models::weights::{DType, SafetensorsFile, SafetensorsWriter, WeightsError};
use crate::onnx::{self, Spelling};

/// One weight to be quantized, as a matrix [outputs, inputs].
struct Weight {
    part: &'static str,
    name: String,
    outputs: usize,
    inputs: usize,
    /// GPT2's Conv1D keeps [inputs, outputs].
    transposed: bool,
}

/// What `--calibrate` found out: the kind, number and fingerprint of what was looked at, and the decisions for each graph, by its name.
pub struct Calibrated {
    pub kind: &'static str,
    pub count: u64,
    pub fingerprint: String,
    pub parts: BTreeMap<&'static str, PartDecisions>,
}

/// A tensor of `int8.safetensors` to be.
pub(super) struct Planned<'a> {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub bytes: Box<dyn Fn() -> Result<Vec<u8>, WeightsError> + 'a>,
}

impl Bundle {
    /// A bundle like this one with 8-bit weights added. The float parts stay as they are. Graphs that were calibrated get static scales; of the
    /// others, the image encoder and the decoder get a scale for each row of the activations.
    pub fn quantized(&self, out: &Path, overwrite: bool, calibrated: Option<&Calibrated>) -> Result<Bundle, BundleError> {
        check_place(out, overwrite)?;
        self.check_bytes(&["clip", "gpt2", "mapper"])?;
        let staging = Staging::beside(out)?;
        let folder = staging.path();
        // What an earlier `quantize` added is made anew.
        let stays = |name: &str| name != INT8_WEIGHTS && !name.ends_with(".int8.onnx") && name != MANIFEST;
        files::copy_folder(self.path(), folder, &stays).map_err(BundleError::io(self.path()))?;
        let path = folder.join(INT8_WEIGHTS);
        let no_parts = BTreeMap::new();
        let parts = calibrated.map_or(&no_parts, |calibrated| &calibrated.parts);
        self.write_int8(&path, parts)?;
        let style = Style { int8: true, ..Style::PORTABLE };
        for part in [
            GraphKind::ImageEncoder(self.clip_config()),
            GraphKind::Mapper(self.mapper_config()),
            GraphKind::Decoder(self.decoder_config()),
        ] {
            let model = match (parts.contains_key(part.name()), part) {
                (true, part) => match int8::in_8_bits(folder, &build(folder, part, Style::PORTABLE)?, Spelling::Unsigned)? {
                    Some(model) => model,
                    None => continue,
                },
                (false, GraphKind::Mapper(_)) => continue,
                (false, part) => build(folder, part, style)?,
            };
            let graph = folder.join(format!("{}.int8.onnx", part.name()));
            model.save(&graph).map_err(BundleError::io(graph))?;
        }
        let mut manifest = self.manifest().clone();
        manifest.int8 = Some(Int8Record {
            file: INT8_WEIGHTS.into(),
            fingerprint: ContentHash::of_file(&path).map_err(BundleError::io(&path))?.to_string(),
            bytes: fs::metadata(&path).map_err(BundleError::io(&path))?.len(),
            crc32c: Some(files::crc32c_file(&path).map_err(BundleError::io(&path))?),
            calibration: calibrated.map(Calibrated::record),
        });
        let path = folder.join(MANIFEST);
        files::write_json(&path, &manifest).map_err(BundleError::io(path))?;
        staging.publish(out)?;
        Bundle::open(out)
    }

    /// Decides how the products of a graph whose weights are in `clip`, `mapper` or `gpt2` are rounded.
    pub fn decide(
        &self,
        part: &str,
        (products, ranges): &(Vec<onnx::Product>, BTreeMap<String, Range>),
    ) -> Result<PartDecisions, BundleError> {
        let source = SafetensorsFile::open(self.weights_path(part))?;
        Ok(int8::decide(products, ranges, |product| static_weights::matrix(product, &source))?)
    }

    /// Adds to the record of 8-bit weights how they compare with the float ones.
    pub fn record_report(&self, report: CalibrationReport) -> Result<Bundle, BundleError> {
        let mut manifest = self.manifest().clone();
        if let Some(calibration) = manifest.int8.as_mut().and_then(|int8| int8.calibration.as_mut()) {
            calibration.report = Some(report);
        }
        let path = self.path().join(MANIFEST);
        files::write_json(&path, &manifest).map_err(BundleError::io(path))?;
        Bundle::open(self.path())
    }

    fn write_int8(&self, path: &Path, parts: &BTreeMap<&'static str, PartDecisions>) -> Result<(), BundleError> {
        let files = ["clip", "gpt2", "mapper"].map(|part| Ok((part, SafetensorsFile::open(self.weights_path(part))?)));
        let files = files.into_iter().collect::<Result<BTreeMap<_, _>, WeightsError>>()?;
        let mut planned = vec![];
        for weight in self.int8_weights() {
            let (graph, source) = if weight.part == "clip" { ("image_encoder", "clip") } else { ("decoder", "gpt2") };
            if !parts.contains_key(graph) {
                plan_rows(weight, &files[source], &mut planned);
            }
        }
        for (graph, decisions) in parts {
            let source = match *graph {
                "image_encoder" => "clip",
                "decoder" => "gpt2",
                part => part,
            };
            static_weights::plan(decisions, &files[source], &mut planned);
        }
        let layout = planned.iter().map(|tensor| (tensor.name.as_str(), tensor.dtype, tensor.shape.as_slice()));
        let mut writer = SafetensorsWriter::create(path, layout)?;
        for tensor in &planned {
            writer.write_bytes(&tensor.name, &(tensor.bytes)()?)?;
        }
        Ok(writer.finish()?)
    }

    fn int8_weights(&self) -> Vec<Weight> {
        let products = self.clip_config().vision_config.tower().products().into_iter();
        let mut weights: Vec<Weight> = products
            .map(|product| {
                let Product { name, outputs, inputs } = product;
                Weight { part: "clip", name, outputs, inputs, transposed: false }
            })
            .collect();
        let family = architecture(self.decoder_config());
        let sizes = family.sizes();
        let (outputs, inputs) = (sizes.vocab_size, sizes.n_embd);
        let head = decoders::Product { name: family.head().into(), outputs, inputs, transposed: false };
        let products = (0..sizes.n_layer).flat_map(|layer| family.products(layer)).chain([head]);
        weights.extend(products.map(|product| {
            let decoders::Product { name, outputs, inputs, transposed } = product;
            Weight { part: "gpt2", name: format!("{name}.weight"), outputs, inputs, transposed }
        }));
        weights
    }
}

/// A weight for activations with a scale a row.
fn plan_rows<'a>(weight: Weight, source: &'a SafetensorsFile, planned: &mut Vec<Planned<'a>>) {
    let (data, scales) = int8_names(&weight.name);
    let (inputs, outputs) = (weight.inputs, weight.outputs);
    let weight = Arc::new(weight);
    let rounded = move || {
        let values = source.read_f32(&weight.name)?;
        let at = |output: usize, input: usize| match weight.transposed {
            true => values[input * weight.outputs + output],
            false => values[output * weight.inputs + input],
        };
        Ok::<_, WeightsError>(quantize(weight.outputs, weight.inputs, &at))
    };
    let again = rounded.clone();
    planned.push(Planned {
        name: data,
        dtype: DType::I8,
        shape: vec![inputs, outputs],
        bytes: Box::new(move || Ok(rounded()?.0)),
    });
    let bytes = Box::new(move || Ok(bytemuck::cast_slice(&again()?.1).to_vec()));
    planned.push(Planned { name: scales, dtype: DType::F32, shape: vec![outputs], bytes });
}

/// Symmetric, a scale for each output: `value = data * scale`. Data is [inputs, outputs], as the product takes it.
fn quantize(outputs: usize, inputs: usize, at: &(impl Fn(usize, usize) -> f32 + Sync)) -> (Vec<u8>, Vec<f32>) {
    let scale = |output: usize| (0..inputs).fold(0f32, |m, input| m.max(at(output, input).abs())) / 127.0;
    let scales: Vec<f32> = (0..outputs).into_par_iter().map(scale).collect();
    let mut data = vec![0u8; outputs * inputs];
    data.par_chunks_mut(outputs.max(1)).enumerate().for_each(|(input, row)| {
        for (output, data) in row.iter_mut().enumerate() {
            if scales[output] > 0.0 {
                *data = ((at(output, input) / scales[output]).round().clamp(-127.0, 127.0) as i8) as u8;
            }
        }
    });
    (data, scales)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_comes_back_within_half_a_step() {
        let (outputs, inputs) = (3, 100);
        let at = |o: usize, i: usize| ((o * 37 + i * 61) % 200) as f32 / 100.0 - 1.0;
        let (data, scales) = quantize(outputs, inputs, &at);
        for o in 0..outputs {
            for i in 0..inputs {
                let value = f32::from(data[i * outputs + o] as i8) * scales[o];
                assert!((value - at(o, i)).abs() <= scales[o] * 0.5001, "{value} for {}", at(o, i));
            }
        }
    }
}
