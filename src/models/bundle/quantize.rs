//! `int8.safetensors` and the graphs over it: 8-bit weights for the image encoder and the decoder, beside the float ones.

use std::fs;
use std::path::Path;

use rayon::prelude::*;

use super::build::{Staging, check_place};
use super::{Bundle, BundleError, Int8Record, MANIFEST};
use crate::files;
use crate::models::block::Product;
use crate::models::graphs::{INT8_WEIGHTS, Part, build};
use crate::models::layers::{Style, int8_names};
use crate::models::weights::{Dtype, SafetensorsFile, SafetensorsWriter};

/// One weight to be quantized, as a matrix [outputs, inputs].
struct Weight {
    part: &'static str,
    name: String,
    outputs: usize,
    inputs: usize,
    /// GPT2's Conv1D keeps [inputs, outputs].
    transposed: bool,
}

impl Bundle {
    /// A bundle like this one with 8-bit weights added. The float parts stay as they are.
    pub fn quantized(&self, out: &Path, overwrite: bool) -> Result<Bundle, BundleError> {
        check_place(out, overwrite)?;
        let staging = Staging::beside(out)?;
        let folder = staging.path();
        // What an earlier `quantize` added is made anew.
        let stays = |name: &str| name != INT8_WEIGHTS && !name.ends_with(".int8.onnx") && name != MANIFEST;
        files::copy_folder(self.path(), folder, &stays).map_err(BundleError::io(self.path()))?;
        let path = folder.join(INT8_WEIGHTS);
        self.write_int8(&path)?;
        let style = Style { int8: true, ..Style::PORTABLE };
        for part in [Part::ImageEncoder(self.clip_config()), Part::Decoder(self.gpt2_config())] {
            let graph = folder.join(format!("{}.int8.onnx", part.name()));
            build(folder, part, style)?.save(&graph).map_err(BundleError::io(graph))?;
        }
        let mut manifest = self.manifest().clone();
        manifest.int8 = Some(Int8Record {
            file: INT8_WEIGHTS.into(),
            fingerprint: files::sha256_file(&path).map_err(BundleError::io(&path))?,
            bytes: fs::metadata(&path).map_err(BundleError::io(&path))?.len(),
        });
        let path = folder.join(MANIFEST);
        files::write_json(&path, &manifest).map_err(BundleError::io(path))?;
        staging.publish(out)?;
        Bundle::open(out)
    }

    fn write_int8(&self, path: &Path) -> Result<(), BundleError> {
        let weights = self.int8_weights();
        let layout: Vec<(String, Dtype, Vec<usize>)> = weights
            .iter()
            .flat_map(|w| {
                let (data, scales) = int8_names(&w.name);
                [(data, Dtype::I8, vec![w.inputs, w.outputs]), (scales, Dtype::F32, vec![w.outputs])]
            })
            .collect();
        let mut writer = SafetensorsWriter::create(path, layout.iter().map(|(n, t, s)| (n.as_str(), *t, s.as_slice())))?;
        let [clip, gpt2] = ["clip", "gpt2"].map(|part| SafetensorsFile::open(self.weights_path(part)));
        let (clip, gpt2) = (clip?, gpt2?);
        for weight in &weights {
            let source = if weight.part == "clip" { &clip } else { &gpt2 };
            let values = source.read_f32(&weight.name)?;
            let at = |output: usize, input: usize| match weight.transposed {
                true => values[input * weight.outputs + output],
                false => values[output * weight.inputs + input],
            };
            let (data, scales) = quantize(weight.outputs, weight.inputs, &at);
            let (data_name, scales_name) = int8_names(&weight.name);
            writer.write_bytes(&data_name, &data)?;
            writer.write_f32(&scales_name, &scales)?;
        }
        Ok(writer.finish()?)
    }

    fn int8_weights(&self) -> Vec<Weight> {
        let gpt2 = self.gpt2_config();
        let products = self.clip_config().vision_config.tower().products().into_iter();
        let mut weights: Vec<Weight> = products
            .map(|product| {
                let Product { name, outputs, inputs } = product;
                Weight { part: "clip", name, outputs, inputs, transposed: false }
            })
            .collect();
        let (width, inner) = (gpt2.n_embd, gpt2.inner_size());
        for layer in 0..gpt2.n_layer {
            let products = [
                ("attn.c_attn", 3 * width, width),
                ("attn.c_proj", width, width),
                ("mlp.c_fc", inner, width),
                ("mlp.c_proj", width, inner),
            ];
            for (name, outputs, inputs) in products {
                let name = format!("transformer.h.{layer}.{name}.weight");
                weights.push(Weight { part: "gpt2", name, outputs, inputs, transposed: true });
            }
        }
        let name = "transformer.wte.weight".into();
        weights.push(Weight { part: "gpt2", name, outputs: gpt2.vocab_size, inputs: width, transposed: false });
        weights
    }
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
