//! Parts of a bundle as folders of their own.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::build::Staging;
use super::{Bundle, BundleError, WEIGHTS};
use crate::files::{paths_in, write_json};
use crate::models::config::read_json;
use crate::models::weights::{DType, SafetensorsFile, SafetensorsWriter};

impl Bundle {
    /// Writes `clip`, `gpt2` (the decoder) or `mapper` into a new folder: its small files as they are, its weights in `dtype` (float32 or
    /// float16).
    pub fn export(&self, part: &str, dtype: DType, out: &Path) -> Result<(), BundleError> {
        self.write_folder(out, |staging| {
            let folder = self.path().join(part);
            for path in paths_in(&folder).map_err(BundleError::io(&folder))? {
                let name = path.file_name().unwrap_or_default();
                if path.is_file() && name != WEIGHTS {
                    fs::copy(&path, staging.join(name)).map_err(BundleError::io(&path))?;
                }
            }
            if dtype == DType::F16 {
                say_half(&staging.join("config.json"))?;
            }
            write_weights(&staging.join(WEIGHTS), dtype, &[("", SafetensorsFile::open(self.weights_path(part))?)])
        })
    }

    /// Writes mapper and decoder into a new folder as one checkpoint, `model.safetensors`, under the names they were trained with
    /// (`clip_project.*` and, for instance, `gpt.*`). `model import --checkpoint` takes it.
    pub fn export_checkpoint(&self, dtype: DType, out: &Path) -> Result<(), BundleError> {
        self.write_folder(out, |staging| {
            let open = |part: &str| SafetensorsFile::open(self.weights_path(part));
            write_weights(&staging.join(WEIGHTS), dtype, &[("", open("mapper")?), (self.decoder_scope(), open("gpt2")?)])
        })
    }

    fn write_folder(&self, out: &Path, write: impl FnOnce(&Path) -> Result<(), BundleError>) -> Result<(), BundleError> {
        if out.symlink_metadata().is_ok() && fs::read_dir(out).map_or(true, |mut entries| entries.next().is_some()) {
            return Err(BundleError::invalid(out, "it is there already: choose another --out, or remove it first"));
        }
        let staging = Staging::beside(out)?;
        write(staging.path())?;
        staging.publish(out)
    }
}

/// Writes the tensors of some files into one, each file's names behind its scope.
fn write_weights(path: &Path, dtype: DType, files: &[(&str, SafetensorsFile)]) -> Result<(), BundleError> {
    let all =
        || files.iter().flat_map(|(scope, file)| file.tensors().iter().map(move |(name, entry)| (scope, file, name, entry)));
    let list: Vec<(String, &[usize])> =
        all().map(|(scope, _, name, entry)| (format!("{scope}{name}"), entry.shape.as_slice())).collect();
    let mut writer = SafetensorsWriter::create(path, list.iter().map(|(name, shape)| (name.as_str(), dtype, *shape)))?;
    for (scope, file, name, _) in all() {
        let (values, name) = (file.read_f32(name)?, format!("{scope}{name}"));
        match dtype {
            DType::F16 => writer.write_bytes(&name, &halves(&values))?,
            _ => writer.write_f32(&name, &values)?,
        }
    }
    Ok(writer.finish()?)
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
