//! What a run leaves for people to look at: `metrics.parquet`, `samples.jsonl` and TensorBoard's event file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::samples::{Sample, Seen};
use crate::files;
use crate::training::metrics::{self, Metrics};
use crate::training::tensorboard::EventFile;

/// A line of `samples.jsonl`: captions of a few images at an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    pub step: u64,
    pub dev_cider: Option<f64>,
    pub samples: Vec<Sample>,
}

/// The logs of a run. Rows are kept in memory (about 100 bytes a step) and the table is written whole.
pub struct Logs {
    metrics_path: PathBuf,
    samples_path: PathBuf,
    rows: Vec<Metrics>,
    shown: Vec<Shown>,
    events: EventFile,
}

impl Logs {
    /// Opens the logs in a run's folder, cut back to `step`.
    pub fn open(run: &Path, step: u64) -> Result<Self> {
        let (metrics_path, samples_path) = (run.join("metrics.parquet"), run.join("samples.jsonl"));
        let rows = metrics::read(&metrics_path, step)?;
        let lines = std::fs::read_to_string(&samples_path).unwrap_or_default();
        let shown = lines.lines().map_while(|line| serde_json::from_str::<Shown>(line).ok());
        let shown = shown.take_while(|shown| shown.step <= step).collect();
        let folder = run.join("tensorboard");
        let events = EventFile::open(&folder, step).with_context(|| format!("cannot write into {}", folder.display()))?;
        Ok(Self { metrics_path, samples_path, rows, shown, events })
    }

    pub fn step(&mut self, row: Metrics) {
        let mut values = vec![];
        values.extend(row.train_loss.map(|v| ("train/loss", v)));
        values.extend(row.learning_rate.map(|v| ("train/lr", v)));
        values.extend(row.grad_norm.map(|v| ("train/grad_norm", v)));
        values.extend(row.reward.map(|v| ("train/reward", v)));
        values.extend(row.reward_spread.map(|v| ("train/reward_spread", v)));
        values.extend(row.tokens_per_second.map(|v| ("throughput/tokens_per_second", v)));
        values.extend(row.samples_per_second.map(|v| ("throughput/samples_per_second", v)));
        self.events.scalars(row.step, &values);
        self.rows.push(row);
    }

    /// What an evaluation found belongs to the row of the step it follows.
    pub fn evaluated(&mut self, step: u64, dev_loss: Option<f64>, seen: &Seen) {
        let mut values = vec![];
        values.extend(dev_loss.into_iter().flat_map(|loss| [("dev/loss", loss), ("dev/perplexity", loss.exp())]));
        values.extend(seen.cider.map(|cider| ("dev/cider", cider)));
        self.events.scalars(step, &values);
        if self.rows.last().is_none_or(|row| row.step != step) {
            self.rows.push(Metrics { step, ..Metrics::default() });
        }
        if let Some(row) = self.rows.last_mut() {
            (row.dev_loss, row.dev_cider) = (dev_loss, seen.cider);
        }
        if !seen.samples.is_empty() {
            let line = |sample: &Sample| {
                let references: String = sample.references.iter().map(|text| format!("  - {text}\n")).collect();
                format!("- {}: **{}**\n{references}", sample.image_id, sample.caption)
            };
            self.events.text(step, "dev/captions", &seen.samples.iter().map(line).collect::<String>());
            self.shown.push(Shown { step, dev_cider: seen.cider, samples: seen.samples.clone() });
        }
    }

    pub fn rows(&self) -> &[Metrics] {
        &self.rows
    }

    /// Captions of the evaluations so far.
    pub fn shown(&self) -> &[Shown] {
        &self.shown
    }

    /// Hands event records to the system; the tables are left for [`save`](Self::save).
    pub fn flush(&mut self) -> Result<()> {
        self.events.flush().with_context(|| format!("cannot write {}", self.events.path().display()))
    }

    pub fn save(&mut self) -> Result<()> {
        self.flush()?;
        if !self.shown.is_empty() {
            let mut text = String::new();
            for shown in &self.shown {
                text += &serde_json::to_string(shown)?;
                text.push('\n');
            }
            let path = &self.samples_path;
            files::write_atomic(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(metrics::write(&self.metrics_path, &self.rows)?)
    }
}
