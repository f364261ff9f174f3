//! Low-rank adapters (LoRA): beside a frozen product `x W` stands `(x A') B' * alpha / rank`, and only A [rank, inputs] and B [outputs, rank]
//! are trained. B starts at 0, so that training starts from the model as it is.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::parameters::Layout;
use crate::files;
use crate::models::Bundle;
use crate::models::config::DecoderConfig;
use crate::models::decoders::{Product, architecture};
use crate::models::graphs::BuildError;
use crate::models::layers::{LORA_A, LORA_B};
use crate::models::tensors::{Init, TensorSpec};
use crate::models::weights::{DType, SafetensorsFile, SafetensorsWriter};

/// Which products get adapters, and how large.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    pub rank: usize,
    pub alpha: f64,
    /// Ends of products' names, such as `c_attn` or `q_proj`; empty: the family's own choice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
}

impl Lora {
    /// What an adapter's product is multiplied by.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// The products of a decoder that get an adapter.
    pub fn products(&self, decoder: &DecoderConfig) -> Vec<Product> {
        let family = architecture(decoder);
        let targets: Vec<&str> = match self.targets.is_empty() {
            true => family.adapted().to_vec(),
            false => self.targets.iter().map(String::as_str).collect(),
        };
        let wanted = |product: &Product| {
            targets.iter().any(|target| *target == "all-linear" || product.name.ends_with(&format!(".{target}")))
        };
        (0..family.sizes().n_layer).flat_map(|layer| family.products(layer)).filter(wanted).collect()
    }

    /// Says what is wrong with it, by its flag.
    pub fn validate(&self, decoder: &DecoderConfig) -> Result<(), String> {
        if self.rank == 0 || self.rank > 4096 {
            return Err(format!("--lora-rank is {}, and may be 1 to 4096", self.rank));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err("--lora-alpha must be above 0".into());
        }
        let last = |product: Product| product.name.rsplit('.').next().unwrap_or_default().to_string();
        let mut names: Vec<String> = architecture(decoder).products(0).into_iter().map(last).collect();
        names.dedup();
        let all = Self { targets: vec![], ..self.clone() };
        for target in &self.targets {
            if (Self { targets: vec![target.clone()], ..all.clone() }).products(decoder).is_empty() {
                return Err(format!("--lora-targets {target}: this decoder has {}, or all-linear", names.join(", ")));
            }
        }
        Ok(())
    }

    /// The adapters' tensors, named behind `scope`, as they start.
    pub fn tensors(&self, scope: &str, decoder: &DecoderConfig) -> Vec<TensorSpec> {
        let spec = |name: String, shape: [usize; 2], init| TensorSpec { name, shape: shape.to_vec(), init, optional: false };
        let each = |product: Product| {
            let name = format!("{scope}{}", product.name);
            [
                // PyTorch's own start of a Linear's weight.
                spec(
                    format!("{name}.{LORA_A}"),
                    [self.rank, product.inputs],
                    Init::Uniform(1.0 / (product.inputs as f64).sqrt()),
                ),
                spec(format!("{name}.{LORA_B}"), [product.outputs, self.rank], Init::Constant(0.0)),
            ]
        };
        self.products(decoder).into_iter().flat_map(each).collect()
    }

    /// The decoder's weights with the adapters in them, by the names a checkpoint has.
    pub fn merged(&self, bundle: &Bundle, layout: &Layout, parameters: &[f32]) -> Result<BTreeMap<String, Vec<f32>>, BuildError> {
        let weights = SafetensorsFile::open(bundle.weights_path("gpt2"))?;
        let scale = self.scale() as f32;
        let mut merged = BTreeMap::new();
        for product in self.products(bundle.decoder_config()) {
            let name = format!("{}{}", bundle.decoder_scope(), product.name);
            let slots = [LORA_A, LORA_B].map(|part| layout.get(&format!("{name}.{part}")));
            let [Some(a), Some(b)] = slots else { continue };
            let (a, b) = (&parameters[a.range()], &parameters[b.range()]);
            let mut values = weights.read_f32(&format!("{}.weight", product.name))?;
            let (inputs, outputs, rank) = (product.inputs, product.outputs, self.rank);
            let added = |output: usize, input: usize| {
                scale * (0..rank).map(|r| b[output * rank + r] * a[r * inputs + input]).sum::<f32>()
            };
            let (width, transposed) = if product.transposed { (outputs, true) } else { (inputs, false) };
            values.par_chunks_mut(width).enumerate().for_each(|(row, values)| {
                for (column, value) in values.iter_mut().enumerate() {
                    *value += if transposed { added(column, row) } else { added(row, column) };
                }
            });
            merged.insert(format!("{name}.weight"), values);
        }
        Ok(merged)
    }

    /// Writes the adapters alone into `folder`, as PEFT lays them out: `adapter_config.json` and `adapter_model.safetensors`.
    pub fn write_peft(&self, folder: &Path, bundle: &Bundle, layout: &Layout, parameters: &[f32]) -> Result<(), BuildError> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| BuildError::Io { path, source }
        };
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        let products = self.products(bundle.decoder_config());
        let last = |product: &Product| product.name.rsplit('.').next().unwrap_or_default().to_string();
        let mut targets: Vec<String> = match self.targets.iter().any(|target| target == "all-linear") || self.targets.is_empty() {
            true => products.iter().map(last).collect(),
            false => self.targets.clone(),
        };
        targets.sort();
        targets.dedup();
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": null,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "target_modules": targets,
            "fan_in_fan_out": products.iter().any(|product| product.transposed),
            "bias": "none",
            "use_rslora": false,
            "use_dora": false,
            "modules_to_save": null,
            "init_lora_weights": true,
            "inference_mode": true,
        });
        let path = folder.join("adapter_config.json");
        files::write_json(&path, &config).map_err(io(&path))?;
        let path = folder.join("adapter_model.safetensors");
        let tensors: Vec<(String, &[usize], &[f32])> = layout
            .slots()
            .iter()
            .filter(|slot| is_adapter(&slot.name))
            .filter_map(|slot| {
                let name = slot.name.strip_prefix(bundle.decoder_scope())?;
                Some((format!("base_model.model.{name}"), slot.shape.as_slice(), &parameters[slot.range()]))
            })
            .collect();
        let list = tensors.iter().map(|(name, shape, _)| (name.as_str(), DType::F32, *shape));
        let mut writer = SafetensorsWriter::create(&path, list)?;
        for (name, _, values) in &tensors {
            writer.write_f32(name, values)?;
        }
        Ok(writer.finish()?)
    }
}

/// Whether a tensor is one of an adapter's.
pub fn is_adapter(name: &str) -> bool {
    [LORA_A, LORA_B].iter().any(|part| name.ends_with(&format!(".{part}")))
}
