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

pub use cache::{CacheFolder, hub_cache, hub_home};
pub use checkpoint::{CheckpointSource, ORIGINAL_HEADS};
pub use clip::ClipSource;
pub use decoder::DecoderSource;
pub use hub::resolve;
pub use presets::{clip_preset, decoder_preset, made_vocabulary};

/// What can be wrong with a model that is imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Text(crate::text::TextError),
    #[error("{}: {problem}", path.display())]
    Unusable { path: PathBuf, problem: String },
    #[error("{}: not the tensors of {what}{}", path.display(), differences(missing, unexpected, misshapen))]
    Tensors { path: PathBuf, what: String, missing: Vec<String>, unexpected: Vec<String>, misshapen: Vec<String> },
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
