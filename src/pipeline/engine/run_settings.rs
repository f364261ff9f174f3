//! What every run over images is told, whatever it computes.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value as Json, json};

use super::prepare::ImageReading;
use super::sources::{Listed, Source};
use crate::dataset::wanted::Wanted;
use crate::pipeline::artifact::{Output, Roots};

/// From where to where, how images are read, and what becomes of earlier work.
#[derive(Debug, Clone)]
pub struct RunSettings {
    /// What images are taken from.
    pub source: Source,
    /// Of folders, which files.
    pub wanted: Wanted,
    /// The table, or the folder of data.
    pub out: PathBuf,
    /// How image files are read.
    pub reading: ImageReading,
    /// Threads that decode images.
    pub threads: usize,
    /// Threads that read them, where those are more: of files elsewhere, most wait for an answer.
    pub readers: usize,
    /// Images that are encoded together.
    pub batch_size: usize,
    /// Replace the output whatever made it, and begin anew.
    pub overwrite: bool,
    /// Leave the work folder when all is done.
    pub keep_work: bool,
    /// Try images again that failed before with the same content.
    pub retry_failed: bool,
    /// Results of images that are no longer found may go, however many they are.
    pub prune: bool,
    /// Failed images as a share of all: beyond it the run ends with exit status 1.
    pub max_error_rate: f64,
}

impl RunSettings {
    /// With what the flags are where they are not given.
    pub fn new(source: Source, out: impl Into<PathBuf>, threads: usize, batch_size: usize) -> Self {
        Self {
            source,
            wanted: Wanted::default(),
            out: out.into(),
            reading: ImageReading::default(),
            threads,
            readers: 0,
            batch_size,
            overwrite: false,
            keep_work: false,
            retry_failed: false,
            prune: false,
            max_error_rate: 1.0,
        }
    }

    /// Where the images lie, seen from the output.
    pub fn roots(&self) -> Roots {
        self.source.roots(&self.out)
    }

    /// Opens the source; the run's own `output` is not found in it.
    ///
    /// # Errors
    /// See [`Source::open`].
    pub fn open(&self, output: &Output) -> Result<Listed> {
        self.source.open(&output.own_paths(), self.reading.limits.max_bytes, &self.wanted)
    }

    /// What a manifest records, and no result depends on.
    pub fn recorded(&self) -> Json {
        json!({"batch_size": self.batch_size, "threads": self.threads, "files": self.wanted})
    }
}
