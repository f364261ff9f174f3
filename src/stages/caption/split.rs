//! The images of one split of a dataset, so that a table has those alone.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;

use anyhow::{Result, bail};
use arrow::array::{Array, StringArray};

use crate::dataset::splits::canonical;
use crate::pipeline::Entry;
use crate::table::{TableError, column, open};

/// A dataset's split, as it was asked for.
#[derive(Debug, Clone)]
pub struct SplitOf {
    pub dataset: PathBuf,
    pub name: String,
}

/// Hashes of the names of its images: eight bytes a name.
pub struct SplitImages {
    state: RandomState,
    names: HashSet<u64>,
}

impl SplitImages {
    /// # Errors
    /// No dataset is there, or no image of it is in that split.
    pub fn read(split: &SplitOf) -> Result<Self> {
        let path = split.dataset.join("images.parquet");
        if !path.is_file() {
            bail!("{}: not a dataset that `prepare` made", split.dataset.display());
        }
        let wanted = canonical(&split.name);
        let mut images = Self { state: RandomState::new(), names: HashSet::new() };
        let mut splits: BTreeMap<String, u64> = BTreeMap::new();
        for batch in open(&path, None)? {
            let batch = batch.map_err(|source| TableError::Arrow { path: path.clone(), source })?;
            let (ids, of): (&StringArray, &StringArray) = (column(&batch, "image_id", &path)?, column(&batch, "split", &path)?);
            let paths: &StringArray = column(&batch, "image_path", &path)?;
            for at in (0..batch.num_rows()).filter(|&at| of.is_valid(at)) {
                *splits.entry(of.value(at).into()).or_default() += 1;
                if of.value(at) == wanted {
                    images.add(ids.value(at));
                    if paths.is_valid(at) {
                        images.add(paths.value(at));
                    }
                }
            }
        }
        if images.names.is_empty() {
            let there: Vec<&str> = splits.keys().map(String::as_str).collect();
            bail!("{}: no image is in the split {wanted}; splits: {}", split.dataset.display(), shown(&there));
        }
        Ok(images)
    }

    fn add(&mut self, name: &str) {
        self.names.insert(self.state.hash_one(name));
    }

    /// Whether an entry is of the split, by its path or its id.
    pub fn has(&self, entry: &Entry) -> bool {
        [&entry.image_path, &entry.image_id].iter().any(|name| self.names.contains(&self.state.hash_one(name.as_str())))
    }
}

fn shown(names: &[&str]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
