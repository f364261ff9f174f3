//! A run's folder: what is there, what a killed run left behind, and its two bundles.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::settings::Config;
use crate::files;
use crate::models::Bundle;
use crate::models::bundle::Provenance;
use crate::pipeline::Reporter;
use crate::training::checkpoint::{self, RunState};
use crate::training::lora::Lora;
use crate::training::parameters::Layout;

/// RUN.
pub struct RunFolder {
    path: PathBuf,
}

const BEST: &str = "best";
const LAST: &str = "last";
/// The initial checkpoint, in `artifacts/`; it is written last.
pub const ARTIFACTS_CHECKPOINT: &str = "checkpoint";
const MANIFEST: &str = crate::models::bundle::MANIFEST;

/// Everything a run makes, which `--overwrite` removes.
const PRODUCTS: [&str; 11] = [
    "config.toml",
    "checkpoints",
    BEST,
    LAST,
    "tensorboard",
    "metrics.parquet",
    "samples.jsonl",
    "artifacts",
    "curve.svg",
    "curve.png",
    "index.html",
];

impl RunFolder {
    pub fn new(path: &Path) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Tokenized captions and their embeddings.
    pub fn corpus(&self) -> PathBuf {
        self.path.join("corpus")
    }

    pub fn artifacts(&self) -> PathBuf {
        self.path.join("artifacts")
    }

    /// Curves and sample captions, to be looked at.
    pub fn page(&self) -> PathBuf {
        self.path.join("index.html")
    }

    pub fn best(&self) -> PathBuf {
        self.path.join(BEST)
    }

    pub fn last(&self) -> PathBuf {
        self.path.join(LAST)
    }

    /// Readies the folder for a run of `config`: continues one of the same settings and refuses one of others. With `overwrite`, a
    /// finished run and one of other settings make way. Returns the checkpoints to go on from, the newest first.
    pub fn claim(&self, config: &Config, overwrite: bool, reporter: &dyn Reporter) -> Result<Vec<PathBuf>> {
        self.repair()?;
        let mut checkpoints: Vec<PathBuf> = checkpoint::list(&self.checkpoints())?.into_iter().map(|(_, path)| path).collect();
        checkpoints.reverse();
        let differences = match Config::read(&self.config()) {
            Ok(Some(there)) => config.differences(&there),
            Ok(None) if !checkpoints.is_empty() => vec!["config.toml is missing".to_string()],
            Ok(None) => vec![],
            Err(error) if overwrite => vec![format!("{error:#}")],
            Err(error) => return Err(error),
        };
        let finished = checkpoints.first().and_then(|path| RunState::read(&path.join(checkpoint::STATE)).ok());
        let finished = finished.is_some_and(|state| state.finished);
        if overwrite && (finished || !differences.is_empty()) {
            self.clear()?;
            checkpoints.clear();
        } else if !differences.is_empty() && !checkpoints.is_empty() {
            bail!(
                "{} holds a run with other settings ({}): repeat those, choose another --out, or start over with --overwrite",
                self.path.display(),
                differences.join("; ")
            );
        } else if !differences.is_empty() {
            reporter.detail("the run in the folder had computed nothing yet; its settings are replaced");
            self.clear()?;
        }
        config.write(&self.config())?;
        Ok(checkpoints)
    }

    /// Readies the folder for artifacts alone: those of a run are not replaced, unless the run is with `overwrite`.
    pub fn claim_for_artifacts(&self, overwrite: bool) -> Result<()> {
        if !self.config().exists() {
            return Ok(());
        }
        if !overwrite {
            bail!("{} holds a training run: choose another --out, or replace it with --overwrite", self.path.display());
        }
        self.clear()
    }

    /// Whether the artifacts are there, and those of a run or a model with this fingerprint.
    pub fn has_artifacts_of(&self, fingerprint: &str) -> bool {
        let state = RunState::read(&self.artifacts().join(ARTIFACTS_CHECKPOINT).join(checkpoint::STATE));
        state.is_ok_and(|state| state.fingerprint == fingerprint)
    }

    fn clear(&self) -> Result<()> {
        for product in PRODUCTS {
            let path = self.path.join(product);
            files::remove_if_there(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Undoes what a killed run left half done: a bundle that had stepped aside comes back, other leftovers go.
    fn repair(&self) -> Result<()> {
        for name in [BEST, LAST] {
            let (folder, prefix) = (self.path.join(name), format!("{name}.tmp-"));
            if folder.exists() {
                continue;
            }
            for path in files::paths_in(&self.path).unwrap_or_default() {
                let aside = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix));
                if aside && path.join(MANIFEST).is_file() && !folder.exists() {
                    fs::rename(&path, &folder).with_context(|| format!("cannot rename {}", path.display()))?;
                }
            }
        }
        for folder in [self.path.clone(), self.checkpoints(), self.corpus(), self.path.join("tensorboard")] {
            checkpoint::sweep(&folder)?;
        }
        Ok(())
    }

    /// Writes `last/`: the bundle with these parameters.
    pub fn write_last(
        &self,
        bundle: &Bundle,
        lora: Option<&Lora>,
        layout: &Layout,
        parameters: &[f32],
        steps: u64,
    ) -> Result<()> {
        let staging = files::temporary_beside(&self.path.join("next"));
        // Adapters become part of the weights, and lie beside them by themselves.
        let merged = lora.map(|lora| lora.merged(bundle, layout, parameters)).transpose()?.unwrap_or_default();
        let weights = |name: &str| match merged.get(name) {
            Some(values) => Some(values.as_slice()),
            None => layout.get(name).map(|slot| &parameters[slot.range()]),
        };
        bundle.with_weights(&staging, true, &Provenance::Trained { steps }, weights)?;
        if let Some(lora) = lora {
            lora.write_peft(&staging.join("adapter"), bundle, layout, parameters)?;
        }
        Ok(checkpoint::publish(&staging, &self.last())?)
    }

    /// Makes `best/` what `last/` is.
    pub fn promote_last(&self) -> Result<()> {
        let staging = files::temporary_beside(&self.path.join("next"));
        files::copy_folder(&self.last(), &staging, &|_| true).with_context(|| format!("cannot write {}", staging.display()))?;
        Ok(checkpoint::publish(&staging, &self.best())?)
    }
}
