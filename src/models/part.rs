//! One weight file of a bundle: where each of its tensors comes from, and writing it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::tensors::{TensorSpec, random_values};
use super::weights::{DType, SafetensorsFile, SafetensorsWriter, WeightSource, WeightsError};
use crate::files::{self, ContentHash};

/// Where a tensor's values come from. All become float32: the graphs compute in it and point straight into the file.
pub enum Content<'a> {
    /// A stored tensor as it is.
    Stored { source: &'a WeightSource, name: String },
    /// Rows `first .. first + rows` of a stored tensor's first dimension.
    Rows { source: &'a WeightSource, name: String, first: usize, rows: usize },
    /// A stored matrix, transposed.
    Transposed { source: &'a WeightSource, name: String },
    /// A new tensor.
    Random { spec: TensorSpec, seed: u64 },
    /// Values in memory.
    Values(&'a [f32]),
}

impl Content<'_> {
    /// None where the stored tensor has no such rows or is not a matrix.
    pub fn shape(&self) -> Option<Vec<usize>> {
        match self {
            Self::Stored { source, name } => Some(source.get(name).ok()?.shape.clone()),
            Self::Rows { source, name, first, rows } => {
                let mut shape = source.get(name).ok()?.shape.clone();
                let all = shape.first_mut()?;
                (first + rows <= *all).then(|| *all = *rows)?;
                Some(shape)
            }
            Self::Transposed { source, name } => match source.get(name).ok()?.shape[..] {
                [rows, columns] => Some(vec![columns, rows]),
                _ => None,
            },
            Self::Random { spec, .. } => Some(spec.shape.clone()),
            Self::Values(values) => Some(vec![values.len()]),
        }
    }

    /// The element type of the stored tensor.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Self::Stored { source, name } | Self::Rows { source, name, .. } | Self::Transposed { source, name } => {
                Some(source.get(name).ok()?.dtype)
            }
            Self::Random { .. } | Self::Values(_) => None,
        }
    }

    /// The name of the stored tensor, where it is one as it is.
    pub fn stored_name(&self) -> Option<&str> {
        match self {
            Self::Stored { name, .. } => Some(name),
            _ => None,
        }
    }

    /// The file the values come from.
    fn origin(&self) -> Option<&Path> {
        match self {
            Self::Stored { source, .. } | Self::Rows { source, .. } | Self::Transposed { source, .. } => Some(source.path()),
            Self::Random { .. } | Self::Values(_) => None,
        }
    }

    fn values(&self) -> Result<std::borrow::Cow<'_, [f32]>, WeightsError> {
        Ok(match self {
            Self::Stored { source, name } => source.read_f32(name)?.into(),
            Self::Rows { source, name, first, rows } => {
                let all = source.read_f32(name)?;
                let row = all.len() / source.get(name)?.shape[0].max(1);
                all[first * row..(first + rows) * row].to_vec().into()
            }
            Self::Transposed { source, name } => {
                let values = source.read_f32(name)?;
                let shape = &source.get(name)?.shape;
                let (rows, columns) = (shape[0], shape[1]);
                (0..columns)
                    .flat_map(|column| (0..rows).map(move |row| (row, column)))
                    .map(|(r, c)| values[r * columns + c])
                    .collect()
            }
            Self::Random { spec, seed } => random_values(spec, *seed).into(),
            Self::Values(values) => (*values).into(),
        })
    }
}

/// A tensor of a part.
pub struct PartTensor<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub content: Content<'a>,
}

/// A weight file to be: its tensors in the order of their names.
pub struct Part<'a> {
    tensors: Vec<PartTensor<'a>>,
}

/// What a weight file of a bundle holds. The fingerprint is a SHA-256 over names, shapes and values in the order of the names, so that
/// it does not depend on the layout the weights were published in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartFacts {
    pub parameters: u64,
    pub dtype: String,
    pub bytes: u64,
    pub fingerprint: String,
}

impl<'a> Part<'a> {
    pub fn new(mut tensors: Vec<PartTensor<'a>>) -> Self {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Self { tensors }
    }

    /// A part of new tensors only.
    pub fn random(specs: Vec<TensorSpec>, seed: u64) -> Self {
        let tensors = specs.into_iter().map(|spec| PartTensor {
            name: spec.name.clone(),
            shape: spec.shape.clone(),
            content: Content::Random { spec, seed },
        });
        Self::new(tensors.collect())
    }

    /// Writes the file, or copies the source's where that already is what would be written.
    pub fn write(&self, path: &Path) -> Result<PartFacts, WeightsError> {
        if let Some(source) = self.ready_made() {
            files::copy(&source, path).map_err(WeightsError::io(path))?;
            return read_facts(path)?.finish(&source);
        }
        let list = self.tensors.iter().map(|tensor| (tensor.name.as_str(), DType::F32, tensor.shape.as_slice()));
        let mut writer = SafetensorsWriter::create(path, list)?;
        let mut facts = FactsBuilder::default();
        for PartTensor { name, shape, content } in &self.tensors {
            let values = content.values()?;
            let (hashed, written) = rayon::join(|| facts.add(name, shape, &values), || writer.write_f32(name, &values));
            let () = hashed;
            written?;
        }
        let facts = facts.finish(self.tensors.iter().find_map(|tensor| tensor.content.origin()).unwrap_or(path))?;
        writer.finish()?;
        Ok(facts)
    }

    /// The one safetensors file that holds exactly these tensors, as float32, under these names.
    fn ready_made(&self) -> Option<PathBuf> {
        let Content::Stored { source: first, .. } = &self.tensors.first()?.content else { return None };
        let same = self.tensors.iter().all(|tensor| match &tensor.content {
            Content::Stored { source, name } => {
                std::ptr::eq(*source, *first)
                    && *name == tensor.name
                    && source.get(name).is_ok_and(|stored| stored.dtype == DType::F32)
            }
            _ => false,
        });
        let whole = first.is_single_safetensors() && first.tensors().len() == self.tensors.len();
        // transformers wants the header to name the framework.
        let named =
            || SafetensorsFile::open(first.path()).is_ok_and(|file| file.metadata().get("format").is_some_and(|f| f == "pt"));
        (same && whole && named()).then(|| first.path().to_path_buf())
    }
}

/// Reads a bundle's weight file through and says what it holds.
pub fn facts_of(path: &Path) -> Result<PartFacts, WeightsError> {
    read_facts(path)?.finish(path)
}

fn read_facts(path: &Path) -> Result<FactsBuilder, WeightsError> {
    let file = SafetensorsFile::open(path)?;
    let mut facts = FactsBuilder::default();
    for (name, entry) in file.tensors() {
        facts.add(name, &entry.shape, &file.read_f32(name)?);
    }
    Ok(facts)
}

#[derive(Default)]
struct FactsBuilder {
    parameters: u64,
    hasher: Sha256,
    /// The first tensor that holds something else than numbers.
    not_finite: Option<String>,
}

impl FactsBuilder {
    fn add(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.parameters += values.len() as u64;
        self.hasher.update(format!("{name}\0{shape:?}\0"));
        // Little-endian on every machine this is built for; see the writer.
        self.hasher.update(bytemuck::cast_slice(values));
        if self.not_finite.is_none() && !values.iter().all(|value| value.is_finite()) {
            self.not_finite = Some(name.into());
        }
    }

    fn finish(self, path: &Path) -> Result<PartFacts, WeightsError> {
        if let Some(name) = self.not_finite {
            return Err(WeightsError::invalid(
                path,
                format!("{name} holds values that are not finite: its training or its file is damaged"),
            ));
        }
        Ok(PartFacts {
            parameters: self.parameters,
            dtype: DType::F32.to_string(),
            bytes: 4 * self.parameters,
            fingerprint: ContentHash::from(self.hasher).to_string(),
        })
    }
}
