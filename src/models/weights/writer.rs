//! Writes safetensors files one tensor at a time.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{DType, WeightsError};
use crate::files::AtomicFile;

/// A safetensors file under construction. The header is written first, from the list of tensors; then each tensor in that order.
/// The final name appears with [`finish`](Self::finish).
///
/// The first tensor starts at a multiple of 64 bytes, and there are no gaps (the format allows none).
pub struct SafetensorsWriter {
    path: PathBuf,
    file: AtomicFile,
    /// (name, bytes) of the tensors still to come, the next one last.
    pending: Vec<(String, u64)>,
    /// Bytes the tensor in hand still lacks.
    missing: u64,
}

/// ONNX graphs point into the file; an aligned start suits vector loads.
const DATA_ALIGNMENT: usize = 64;

impl SafetensorsWriter {
    /// Starts a file of the given tensors (name, type, shape), which are written in this order.
    pub fn create<'a>(
        path: &Path,
        tensors: impl IntoIterator<Item = (&'a str, DType, &'a [usize])>,
    ) -> Result<Self, WeightsError> {
        let mut header = Map::new();
        // transformers refuses a file that does not say which framework's layout it has.
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut pending = Vec::new();
        let mut offset = 0u64;
        for (name, dtype, shape) in tensors {
            let bytes = shape.iter().try_fold(dtype.size() as u64, |product, &size| product.checked_mul(size as u64));
            let end = bytes.and_then(|bytes| offset.checked_add(bytes));
            let (Some(bytes), Some(end)) = (bytes, end) else {
                return Err(WeightsError::invalid(path, format!("{name} {shape:?} is too large")));
            };
            let entry = json!({"dtype": dtype.safetensors_name(), "shape": shape, "data_offsets": [offset, end]});
            if header.insert(name.into(), entry).is_some() {
                return Err(WeightsError::invalid(path, format!("two tensors are named {name}")));
            }
            pending.push((name.into(), bytes));
            offset = end;
        }
        pending.reverse();
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize((8 + header.len()).next_multiple_of(DATA_ALIGNMENT) - 8, b' ');
        let mut file = AtomicFile::create(path).map_err(WeightsError::io(path))?;
        file.write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| file.write_all(&header))
            .map_err(WeightsError::io(path))?;
        Ok(Self { path: path.into(), file, pending, missing: 0 })
    }

    /// Writes the next tensor whole; `name` must be the one whose turn it is.
    pub fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightsError> {
        self.begin(name)?;
        self.push_bytes(bytes)
    }

    /// As [`write_bytes`](Self::write_bytes), for a float32 tensor.
    pub fn write_f32(&mut self, name: &str, values: &[f32]) -> Result<(), WeightsError> {
        self.begin(name)?;
        self.push_f32(values)
    }

    /// Starts the next tensor, to be given in pieces.
    pub fn begin(&mut self, name: &str) -> Result<(), WeightsError> {
        match self.pending.pop() {
            Some((next, bytes)) if self.missing == 0 && next == name => {
                self.missing = bytes;
                Ok(())
            }
            next => {
                let next = next.map_or("nothing".to_string(), |(next, _)| next);
                Err(WeightsError::invalid(
                    &self.path,
                    format!("{name} was given where {next} comes next ({} bytes open)", self.missing),
                ))
            }
        }
    }

    /// A piece of the tensor in hand, float32.
    pub fn push_f32(&mut self, values: &[f32]) -> Result<(), WeightsError> {
        if cfg!(target_endian = "little") {
            return self.push_bytes(bytemuck::cast_slice(values));
        }
        values.iter().try_for_each(|value| self.push_bytes(&value.to_le_bytes()))
    }

    /// A piece of the tensor in hand.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> Result<(), WeightsError> {
        self.missing = self
            .missing
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| WeightsError::invalid(&self.path, "more bytes than the tensor's shape has room for"))?;
        self.file.write_all(bytes).map_err(WeightsError::io(&self.path))
    }

    /// Gives the file its name, once every tensor is there.
    pub fn finish(self) -> Result<(), WeightsError> {
        if self.missing > 0 || !self.pending.is_empty() {
            let names: Vec<&str> = self.pending.iter().rev().map(|(name, _)| name.as_str()).collect();
            let problem = format!("incomplete: {} bytes and these tensors are missing: {}", self.missing, names.join(", "));
            return Err(WeightsError::invalid(&self.path, problem));
        }
        self.file.commit().map_err(WeightsError::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::models::weights::SafetensorsFile;

    #[test]
    fn what_is_written_is_read_and_starts_at_an_aligned_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors: [(&str, DType, &[usize]); 3] = [("b", DType::F32, &[2, 2]), ("a", DType::F32, &[]), ("c", DType::I8, &[3])];
        let mut writer = SafetensorsWriter::create(&path, tensors).unwrap();
        assert!(!path.exists());
        writer.begin("b").unwrap();
        writer.push_f32(&[1.0, 2.0, 3.0]).unwrap();
        writer.push_f32(&[4.0]).unwrap();
        writer.write_f32("a", &[5.0]).unwrap();
        writer.write_bytes("c", &[6, 7, 255]).unwrap();
        writer.finish().unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        assert_eq!(file.get("b").unwrap().offset % 64, 0);
        assert_eq!(file.get("a").unwrap().offset, file.get("b").unwrap().offset + 16);
        assert_eq!(file.read_f32("b").unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(file.read_f32("a").unwrap(), [5.0]);
        assert_eq!(file.read_f32("c").unwrap(), [6.0, 7.0, -1.0]);
        assert_eq!(file.metadata()["format"], "pt");
        assert!(file.get("d").is_err());
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(::safetensors::SafeTensors::deserialize(&whole).unwrap().len(), 3);
    }

    #[test]
    fn tensors_come_in_order_whole_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let two: [(&str, DType, &[usize]); 2] = [("a", DType::F32, &[1]), ("b", DType::F32, &[1])];
        let start = || SafetensorsWriter::create(&path, two).unwrap();
        assert!(start().write_f32("b", &[1.0]).is_err());
        assert!(start().write_f32("a", &[1.0, 2.0]).is_err());
        assert!(start().finish().is_err());
        let mut writer = start();
        writer.begin("a").unwrap();
        assert!(writer.begin("b").is_err());
        drop(writer);
        assert!(SafetensorsWriter::create(&path, [two[0], two[0]]).is_err());
        assert!(SafetensorsWriter::create(&path, [("a", DType::F32, &[usize::MAX, 2][..])]).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left of a file that was not finished");
    }

    proptest! {
        #[test]
        fn any_list_of_tensors_comes_back(tensors in prop::collection::btree_map("[a-z.\"\\\\é]{1,12}", prop::collection::vec(any::<f32>(), 0..9), 0..9)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.safetensors");
            let shapes: Vec<[usize; 1]> = tensors.values().map(|values| [values.len()]).collect();
            let list = tensors.keys().zip(&shapes).map(|(name, shape)| (name.as_str(), DType::F32, &shape[..]));
            let mut writer = SafetensorsWriter::create(&path, list).unwrap();
            for (name, values) in &tensors {
                writer.write_f32(name, values).unwrap();
            }
            writer.finish().unwrap();
            let file = SafetensorsFile::open(&path).unwrap();
            for (name, values) in &tensors {
                let back: Vec<u32> = file.read_f32(name).unwrap().iter().map(|value| value.to_bits()).collect();
                prop_assert_eq!(back, values.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
            }
        }

        #[test]
        fn a_damaged_file_is_refused_or_read_within_its_bounds(cut in 0usize..400, at in 0usize..400, byte: u8) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.safetensors");
            let mut writer = SafetensorsWriter::create(&path, [("a", DType::F32, &[3, 4][..]), ("b", DType::F16, &[5][..])]).unwrap();
            writer.write_f32("a", &[1.0; 12]).unwrap();
            writer.write_bytes("b", &[0; 10]).unwrap();
            writer.finish().unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(bytes.len().saturating_sub(cut / 2));
            std::fs::write(&path, &bytes).unwrap();
            match SafetensorsFile::open(&path) {
                Err(error) => prop_assert!(error.to_string().contains("x.safetensors")),
                Ok(file) => {
                    for (name, entry) in file.tensors() {
                        prop_assert!(entry.offset + entry.length <= bytes.len() as u64);
                        prop_assert_eq!(file.read_f32(name).unwrap().len(), entry.numel());
                    }
                }
            }
        }
    }
}
