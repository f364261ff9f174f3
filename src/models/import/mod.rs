//! From published files to the parts of a bundle.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::config::ConfigError;
use super::part::{Content, Part, PartTensor};
use super::tensors::TensorSpec;
use super::weights::{WeightSource, WeightsError};

mod cache;
mod checkpoint;
mod clip;
mod decoder;
mod hub;
mod open_clip;
mod openai;
mod presets;

pub(crate) use cache::{CacheFolder, hub_cache, hub_home};
pub(crate) use checkpoint::{CheckpointSource, ORIGINAL_HEADS};
pub use clip::ClipSource;
pub use decoder::DecoderSource;
pub(crate) use hub::resolve;
#[cfg(test)]
pub(crate) use presets::made_vocabulary;
pub(crate) use presets::{clip_preset, decoder_preset};

/// What can be wrong with a model that is imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The weights cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A configuration cannot be read, or asks for what is not built here.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The vocabulary cannot be read.
    #[error(transparent)]
    Text(crate::text::TextError),
    /// Files that are not a model this program imports, or lack a part of it.
    #[error("{}: {problem}", path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The tensors are not those of the model that the configuration describes.
    #[error("{}: not the tensors of {what}{}", path.display(), differences(missing, unexpected, misshapen))]
    Tensors {
        /// The weights.
        path: PathBuf,
        /// The model they were matched with.
        what: String,
        /// Names that the model has and the weights lack.
        missing: Vec<String>,
        /// Names that the weights have beyond it.
        unexpected: Vec<String>,
        /// Sentences about tensors of another shape or type.
        misshapen: Vec<String>,
    },
}

impl ImportError {
    fn unusable(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Unusable { path: path.into(), problem: problem.into() }
    }
}

/// Names beyond this many are counted.
const MAX_LISTED: usize = 40;

fn differences(missing: &[String], unexpected: &[String], misshapen: &[String]) -> String {
    let list = |word: &str, names: &[String]| match names.len() {
        0 => String::new(),
        count => {
            let more = if count > MAX_LISTED { format!(" and {} more", count - MAX_LISTED) } else { String::new() };
            format!("\n  {word}: {}{more}", names[..count.min(MAX_LISTED)].join(", "))
        }
    };
    list("missing", missing) + &list("unexpected", unexpected) + &list("misshapen", misshapen)
}

/// A source's tensors under the names a model has for them.
type Catalog<'a> = BTreeMap<String, Content<'a>>;

/// Every tensor of a source under its own name, or under the name `rename` gives it; None leaves a tensor out.
fn catalog<'a>(source: &'a WeightSource, rename: impl Fn(&str) -> Option<String>) -> Catalog<'a> {
    let stored = |name: &String| Content::Stored { source, name: name.clone() };
    source.tensors().keys().filter_map(|name| Some((rename(name)?, stored(name)))).collect()
}

/// Matches a catalog against the tensors a model has. The error lists everything that differs.
fn match_part<'a>(what: &str, path: PathBuf, specs: &[TensorSpec], mut catalog: Catalog<'a>) -> Result<Part<'a>, ImportError> {
    let (mut missing, mut misshapen, mut tensors) = (vec![], vec![], vec![]);
    for spec in specs {
        let Some(content) = catalog.remove(&spec.name) else {
            if !spec.optional {
                missing.push(spec.name.clone());
            }
            continue;
        };
        if let Some(dtype) = content.dtype().filter(|dtype| !dtype.is_float()) {
            misshapen.push(format!("{} is stored as {dtype}, and weights are floating-point numbers", spec.name));
            continue;
        }
        match content.shape() {
            Some(shape) if shape == spec.shape => {
                tensors.push(PartTensor { name: spec.name.clone(), shape, content });
            }
            shape => {
                let found = shape.map_or("another number of dimensions".into(), |shape| format!("{shape:?}"));
                misshapen.push(format!("{} is {found} and should be {:?}", spec.name, spec.shape));
            }
        }
    }
    let unexpected: Vec<String> = catalog.into_keys().collect();
    if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
        return Ok(Part::new(tensors));
    }
    Err(ImportError::Tensors { path, what: what.into(), missing, unexpected, misshapen })
}
