//! What a run leaves for people to look at: `metrics.parquet` and TensorBoard's event file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::training::metrics::{self, Metrics};
use crate::training::tensorboard::EventFile;

/// The logs of a run. Rows are kept in memory (about 100 bytes a step) and the table is written whole.
pub struct Logs {
    metrics_path: PathBuf,
    rows: Vec<Metrics>,
    events: EventFile,
}

impl Logs {
    /// Opens the logs in a run's folder, cut back to `step`.
    pub fn open(run: &Path, step: u64) -> Result<Self> {
        let metrics_path = run.join("metrics.parquet");
        let rows = metrics::read(&metrics_path, step)?;
        let folder = run.join("tensorboard");
        let events = EventFile::open(&folder, step).with_context(|| format!("cannot write into {}", folder.display()))?;
        Ok(Self { metrics_path, rows, events })
    }

    pub fn step(&mut self, row: Metrics) {
        let mut values = vec![];
        values.extend(row.train_loss.map(|v| ("train/loss", v)));
        values.extend(row.learning_rate.map(|v| ("train/lr", v)));
        values.extend(row.grad_norm.map(|v| ("train/grad_norm", v)));
        values.extend(row.tokens_per_second.map(|v| ("throughput/tokens_per_second", v)));
        values.extend(row.samples_per_second.map(|v| ("throughput/samples_per_second", v)));
        self.events.scalars(row.step, &values);
        self.rows.push(row);
    }

    /// A dev loss belongs to the row of the step it follows.
    pub fn dev_loss(&mut self, step: u64, dev_loss: f64) {
        self.events.scalars(step, &[("dev/loss", dev_loss), ("dev/perplexity", dev_loss.exp())]);
        match self.rows.last_mut().filter(|row| row.step == step) {
            Some(row) => row.dev_loss = Some(dev_loss),
            None => self.rows.push(Metrics { step, dev_loss: Some(dev_loss), ..Metrics::default() }),
        }
    }

    /// Captions of a few images, one line each.
    pub fn samples(&mut self, step: u64, lines: &[String]) {
        let text: String = lines.iter().map(|line| format!("- {line}\n")).collect();
        self.events.text(step, "dev/captions", &text);
    }

    pub fn rows(&self) -> &[Metrics] {
        &self.rows
    }

    /// Hands event records to the system; the table is left for [`save`](Self::save).
    pub fn flush(&mut self) -> Result<()> {
        self.events.flush().with_context(|| format!("cannot write {}", self.events.path().display()))
    }

    pub fn save(&mut self) -> Result<()> {
        self.flush()?;
        Ok(metrics::write(&self.metrics_path, &self.rows)?)
    }
}
