//! A safetensors file: where each tensor lies in it, everything checked before it is believed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{DType, WeightsError};
use crate::files::open_regular;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// The type of the stored elements.
    pub dtype: DType,
    /// Outermost dimension first; empty: a single number.
    pub shape: Vec<usize>,
    /// Position of the first byte, from the beginning of the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl TensorEntry {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An open safetensors file: header read and checked, tensors read on demand.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<File>,
    tensors: BTreeMap<String, TensorEntry>,
    metadata: BTreeMap<String, String>,
}

/// A header of 600 tensors takes 60 kB; this leaves room for the largest models and refuses nonsense before allocating.
const MAX_HEADER_BYTES: u64 = 32 << 20;

/// A name that stands twice at the top of a header; what is not an object has none.
fn repeated(header: &[u8]) -> Option<String> {
    struct Repeated(Option<String>);
    impl<'de> serde::Deserialize<'de> for Repeated {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Names;
            impl<'de> serde::de::Visitor<'de> for Names {
                type Value = Repeated;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }

                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Repeated, A::Error> {
                    let (mut names, mut repeated) = (std::collections::HashSet::new(), None);
                    while let Some(name) = map.next_key::<String>()? {
                        map.next_value::<serde::de::IgnoredAny>()?;
                        if let Some(name) = names.replace(name) {
                            repeated = Some(name);
                        }
                    }
                    Ok(Repeated(repeated))
                }
            }
            deserializer.deserialize_map(Names)
        }
    }
    serde_json::from_slice::<Repeated>(header).ok()?.0
}

impl SafetensorsFile {
    /// Opens the file and checks its header: its length, each tensor's type, shape and place, that tensors neither overlap nor leave
    /// holes, and that together they fill the file to its end.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, WeightsError> {
        let path = path.into();
        let mut file = open_regular(&path).map_err(WeightsError::io(&path))?;
        let file_bytes = file.metadata().map_err(WeightsError::io(&path))?.len();
        let invalid = |problem: String| WeightsError::invalid(&path, problem);
        if file_bytes < 8 {
            return Err(invalid(format!("{file_bytes} bytes are too few for a safetensors file")));
        }
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(WeightsError::io(&path))?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES || header_bytes > file_bytes - 8 {
            return Err(invalid(format!(
                "not a safetensors file, or cut short: its header claims {header_bytes} bytes of the file's {file_bytes}"
            )));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(WeightsError::io(&path))?;
        if let Some(name) = repeated(&header) {
            return Err(invalid(format!("its header names {name} twice, and none is chosen")));
        }
        let header: ::safetensors::tensor::Metadata =
            serde_json::from_slice(&header).map_err(|error| invalid(format!("not a valid safetensors header: {error}")))?;
        let data_start = 8 + header_bytes;
        if data_start + header.data_len() as u64 != file_bytes {
            return Err(invalid(format!(
                "the header describes {} bytes of tensors and the file holds {}: it is cut short or damaged",
                header.data_len(),
                file_bytes - data_start
            )));
        }
        let mut tensors = BTreeMap::new();
        for (name, info) in header.tensors() {
            let dtype = DType::from_safetensors(info.dtype)
                .ok_or_else(|| invalid(format!("{name} is stored as {}, which is not supported", info.dtype)))?;
            let (start, end) = info.data_offsets;
            let entry =
                TensorEntry { dtype, shape: info.shape.clone(), offset: data_start + start as u64, length: (end - start) as u64 };
            tensors.insert(name, entry);
        }
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { file: Mutex::new(file), path, tensors, metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorEntry> {
        &self.tensors
    }

    /// The header's `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Result<&TensorEntry, WeightsError> {
        self.tensors.get(name).ok_or_else(|| WeightsError::NoSuchTensor { path: self.path.clone(), name: name.into() })
    }

    /// The stored bytes of a tensor (row-major, little-endian).
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, WeightsError> {
        let entry = self.get(name)?;
        self.read_range(entry.offset, entry.length as usize)
    }

    /// A tensor as float32, row-major.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        Ok(self.get(name)?.dtype.to_f32(&self.read_bytes(name)?))
    }

    /// `length` is that of a checked entry, so it is at most the file's.
    pub(super) fn read_range(&self, offset: u64, length: usize) -> Result<Vec<u8>, WeightsError> {
        let mut bytes = vec![0; length];
        let mut file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes)).map_err(WeightsError::io(&self.path))?;
        Ok(bytes)
    }
}
