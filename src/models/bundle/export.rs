//! A part of a bundle as a Hugging Face folder of its own.

use std::fs;
use std::path::Path;

use super::build::{Staging, check_place};
use super::{Bundle, BundleError, WEIGHTS};
use crate::models::weights::{Dtype, SafetensorsFile, SafetensorsWriter};

impl Bundle {
    /// Writes `clip` or `gpt2` into a new folder: its small files as they are, its weights in `dtype` (float32 or float16).
    pub fn export(&self, part: &str, dtype: Dtype, out: &Path) -> Result<(), BundleError> {
        check_place(out, false)?;
        let staging = Staging::beside(out)?;
        let folder = self.path().join(part);
        for entry in fs::read_dir(&folder).map_err(BundleError::io(&folder))? {
            let path = entry.map_err(BundleError::io(&folder))?.path();
            let name = path.file_name().unwrap_or_default();
            if path.is_file() && name != WEIGHTS {
                fs::copy(&path, staging.path().join(name)).map_err(BundleError::io(&path))?;
            }
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

/// Rounded to nearest.
fn halves(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect()
}
