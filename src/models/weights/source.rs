//! Weights in whatever layout they were published, behind one door.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Deserialize;

use super::folder;
use super::place::{self, Region, View};
use super::torch::{self, TorchTensor};
use super::{DType, SafetensorsFile, WeightsError};
use crate::files::open_regular;

/// The layouts that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    Safetensors,
    /// What `torch.save` has written since 1.6.
    TorchZip,
    /// What it wrote before.
    TorchLegacy,
    TorchScript,
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "PyTorch zip",
            Self::TorchLegacy => "PyTorch legacy pickle",
            Self::TorchScript => "TorchScript",
        })
    }
}

/// A tensor of a source; its elements stay in the file until they are asked for.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// The type of the stored elements.
    pub dtype: DType,
    /// Outermost dimension first; empty: a single number.
    pub shape: Vec<usize>,
    file: usize,
    view: View,
}

impl TensorInfo {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// All tensors of a file, or of a folder's files, by name.
#[derive(Debug)]
pub struct WeightSource {
    path: PathBuf,
    format: WeightFormat,
    files: Vec<(PathBuf, Mutex<File>)>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// What a Hugging Face folder's weights are called, the better layout first.
const FOLDER_NAMES: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

impl WeightSource {
    /// The weight file (or the index of several) in a Hugging Face folder; None where nothing there looks like weights.
    ///
    /// # Errors
    /// What looks like weights and is unfinished, a pointer, a link to nothing or of another name, is told.
    pub fn find_in(folder: &Path) -> Result<Option<PathBuf>, WeightsError> {
        folder::find(folder, &FOLDER_NAMES)
    }

    /// As [`find_in`](Self::find_in), under other names.
    ///
    /// # Errors
    /// As there.
    pub fn find_named(folder: &Path, names: &[&str]) -> Result<Option<PathBuf>, WeightsError> {
        folder::find(folder, names)
    }

    /// Opens a weight file, the index of a sharded one, or a Hugging Face folder. The layout is found from the content.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        if path.is_dir() {
            let found = Self::find_in(path)?.ok_or_else(|| {
                WeightsError::invalid(
                    path,
                    format!("no weights in this folder; it should hold one of {}", FOLDER_NAMES.join(", ")),
                )
            })?;
            return Self::open(&found);
        }
        if path.extension().is_some_and(|extension| extension == "json") {
            return Self::open_sharded(path);
        }
        let mut source = Self { path: path.into(), format: WeightFormat::Safetensors, files: vec![], tensors: BTreeMap::new() };
        source.format = source.add_file(path, &|_| true)?;
        Ok(source)
    }

    /// The file it was opened from (inside the folder, where it was one).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of file it is.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// True where all tensors are in one safetensors file.
    pub fn is_single_safetensors(&self) -> bool {
        self.format == WeightFormat::Safetensors && self.files.len() == 1
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Result<&TensorInfo, WeightsError> {
        self.tensors.get(name).ok_or_else(|| WeightsError::NoSuchTensor { path: self.path.clone(), name: name.into() })
    }

    /// A tensor as float32, row-major.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let tensor = self.get(name)?;
        let bytes = self.read_view(tensor)?;
        Ok(match &tensor.view.strides {
            None => tensor.dtype.to_f32(&bytes),
            Some(strides) => place::gather(tensor.dtype, &tensor.shape, strides, &bytes),
        })
    }

    /// True where two tensors are the same elements in the same place, or have the same shape and bits.
    pub fn same(&self, a: &str, b: &str) -> Result<bool, WeightsError> {
        let (x, y) = (self.get(a)?, self.get(b)?);
        if x.shape != y.shape {
            return Ok(false);
        }
        if x.file == y.file && x.view == y.view && x.dtype == y.dtype {
            return Ok(true);
        }
        let (x, y) = (self.read_f32(a)?, self.read_f32(b)?);
        Ok(x.iter().zip(&y).all(|(x, y)| x.to_bits() == y.to_bits()))
    }

    fn read_view(&self, tensor: &TensorInfo) -> Result<Vec<u8>, WeightsError> {
        let (path, file) = &self.files[tensor.file];
        let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (start, span) = (tensor.view.start, tensor.view.span);
        match tensor.view.region {
            Region::At(position) => {
                let mut bytes = vec![0; span];
                file.seek(SeekFrom::Start(position + start))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(WeightsError::io(path))?;
                Ok(bytes)
            }
            Region::Deflated(entry) => {
                let mut bytes = torch::inflate(path, &mut file, entry, start as usize + span)?;
                bytes.drain(..start as usize);
                Ok(bytes)
            }
        }
    }

    fn open_sharded(index: &Path) -> Result<Self, WeightsError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let invalid = |problem: String| WeightsError::invalid(index, problem);
        let text = crate::models::config::read_text(index).map_err(|error| invalid(error.to_string()))?;
        let Index { weight_map } =
            serde_json::from_str(&text).map_err(|error| invalid(format!("not the index of a sharded model: {error}")))?;
        let folder = index.parent().unwrap_or(Path::new("."));
        let shards: BTreeSet<&String> = weight_map.values().collect();
        let mut source = Self { path: index.into(), format: WeightFormat::Safetensors, files: vec![], tensors: BTreeMap::new() };
        for shard in shards {
            let plain = Path::new(shard).file_name().is_some_and(|name| name.to_str() == Some(shard.as_str()));
            if !plain || shard.contains(['/', '\\']) {
                return Err(invalid(format!("it names {shard:?}, which is not a file beside it")));
            }
            // A tensor in two of them is taken from the one the index names.
            let wanted = |name: &str| weight_map.get(name) == Some(shard);
            source.format = source.add_file(&folder.join(shard), &wanted)?;
        }
        let missing: Vec<&str> =
            weight_map.keys().map(String::as_str).filter(|name| !source.tensors.contains_key(*name)).collect();
        if !missing.is_empty() {
            return Err(invalid(format!("these tensors are in none of its files: {}", missing.join(", "))));
        }
        Ok(source)
    }

    fn add_file(&mut self, path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<WeightFormat, WeightsError> {
        let mut file = open_regular(path).map_err(WeightsError::io(path))?;
        let mut head = Vec::new();
        file.by_ref().take(16).read_to_end(&mut head).map_err(WeightsError::io(path))?;
        let index = self.files.len();
        let mut add = |name: String, dtype, shape, view| {
            if wanted(&name) {
                self.tensors.insert(name, TensorInfo { dtype, shape, file: index, view });
            }
        };
        let format = if head.starts_with(b"PK\x03\x04") {
            let (tensors, script) = torch::open_zip(path, &mut file)?;
            for (name, TorchTensor { dtype, shape, view }) in tensors {
                add(name, dtype, shape, view);
            }
            if script { WeightFormat::TorchScript } else { WeightFormat::TorchZip }
        } else if head.starts_with(&torch::LEGACY_MAGIC) {
            for (name, TorchTensor { dtype, shape, view }) in torch::open_legacy(path, &mut file)? {
                add(name, dtype, shape, view);
            }
            WeightFormat::TorchLegacy
        } else if head.get(8) == Some(&b'{') {
            for (name, entry) in SafetensorsFile::open(path)?.tensors() {
                let view = View { region: Region::At(entry.offset), start: 0, span: entry.length as usize, strides: None };
                add(name.clone(), entry.dtype, entry.shape.clone(), view);
            }
            WeightFormat::Safetensors
        } else if folder::is_pointer(path) {
            return Err(WeightsError::invalid(path, "a git-lfs pointer, not the file itself: `git lfs pull` fetches it"));
        } else {
            let problem = "not a weight file: neither safetensors, nor a PyTorch zip, legacy or TorchScript file";
            return Err(WeightsError::invalid(path, problem));
        };
        self.files.push((path.into(), Mutex::new(file)));
        Ok(format)
    }
}
