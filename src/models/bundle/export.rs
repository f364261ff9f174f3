//! A part of a bundle as a Hugging Face folder of its own.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::build::Staging;
use super::{Bundle, BundleError, WEIGHTS};
use crate::files::write_json;
use crate::models::config::read_json;
use crate::models::weights::{Dtype, SafetensorsFile, SafetensorsWriter};

impl Bundle {
    /// Writes `clip` or `gpt2` into a new folder: its small files as they are, its weights in `dtype` (float32 or float16).
    pub fn export(&self, part: &str, dtype: Dtype, out: &Path) -> Result<(), BundleError> {
        if out.symlink_metadata().is_ok() && fs::read_dir(out).map_or(true, |mut entries| entries.next().is_some()) {
            return Err(BundleError::invalid(out, "it is there already: choose another --out, or remove it first"));
        }
        let staging = Staging::beside(out)?;
        let folder = self.path().join(part);
        for entry in fs::read_dir(&folder).map_err(BundleError::io(&folder))? {
            let path = entry.map_err(BundleError::io(&folder))?.path();
            let name = path.file_name().unwrap_or_default();
            if path.is_file() && name != WEIGHTS {
                fs::copy(&path, staging.path().join(name)).map_err(BundleError::io(&path))?;
            }
        }
        if dtype == Dtype::F16 {
            say_half(&staging.path().join("config.json"))?;
        }
        let weights = SafetensorsFile::open(self.weights_path(part))?;
        let list = weights.tensors().iter().map(|(name, entry)| (name.as_str(), dtype, entry.shape.as_slice()));
        let mut writer = SafetensorsWriter::create(&staging.path().join(WEIGHTS), list)?;
        for name in weights.tensors().keys() {
            let values = weights.read_f32(name)?;
            match dtype {
                Dtype::F16 => writer.write_bytes(name, &halves(&values))?,
                _ => writer.write_f32(name, &values)?,
            }
        }
        writer.finish()?;
        staging.publish(out)
    }
}

/// transformers makes a model in the element type that its configuration names.
fn say_half(config: &Path) -> Result<(), BundleError> {
    let mut value: Value = read_json(config)?;
    let parts = ["text_config", "vision_config"].map(|part| format!("/{part}"));
    for part in std::iter::once("").chain(parts.iter().map(String::as_str)) {
        let Some(object) = value.pointer_mut(part).and_then(Value::as_object_mut) else { continue };
        let keys = ["dtype", "torch_dtype"].into_iter().filter(|key| part.is_empty() || object.contains_key(*key));
        // Older releases know the second of these only.
        for key in keys.collect::<Vec<_>>() {
            object.insert(key.into(), "float16".into());
        }
    }
    write_json(config, &value).map_err(BundleError::io(config))
}

/// Rounded to nearest.
fn halves(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect()
}
