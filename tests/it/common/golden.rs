//! Small models in published layouts and what they compute: the repository's own, and larger ones beside the checkout.

use std::fs;
use std::path::PathBuf;

use clipcap::models::weights::SafetensorsFile;
use serde_json::Value;

use super::{checkout, shared};

/// Where golden models, the answers to them and their photos lie.
pub struct Golden {
    roots: Vec<PathBuf>,
    pub photos: PathBuf,
}

impl Golden {
    /// `tests/golden/models`, which `scripts/make_golden_models.py` makes.
    pub fn own() -> Self {
        let golden = checkout().join("tests/golden");
        Self { roots: vec![golden.join("models")], photos: golden.join("pictures") }
    }

    /// The repository's own, and those of `../shared` where they are there.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::own()];
        if let (Some(models), Some(more), Some(photos)) = (shared("golden_models"), shared("golden"), shared("data/photos")) {
            all.push(Self { roots: vec![models, more], photos });
        }
        all
    }

    /// A model or a file of one.
    pub fn path(&self, name: &str) -> PathBuf {
        let found = self.roots.iter().map(|root| root.join(name)).find(|path| path.exists());
        found.unwrap_or_else(|| panic!("{name} is in none of {:?}", self.roots))
    }

    /// What `expected.json` says of a key.
    pub fn expected(&self, key: &str) -> Value {
        let read = |root: &PathBuf| serde_json::from_slice::<Value>(&fs::read(root.join("expected.json")).unwrap()).unwrap();
        let found = self.roots.iter().map(read).find_map(|answers| answers.get(key).cloned());
        found.unwrap_or_else(|| panic!("no {key} in {:?}", self.roots))
    }

    /// A list of texts of `expected.json`.
    pub fn texts(&self, key: &str) -> Vec<String> {
        serde_json::from_value(self.expected(key)).unwrap()
    }

    /// The tensors of `NAME.expected.safetensors`.
    pub fn tensors(&self, name: &str) -> SafetensorsFile {
        SafetensorsFile::open(self.path(&format!("{name}.expected.safetensors"))).unwrap()
    }
}
