//! `metrics.parquet`: a row for every optimizer step and every evaluation of a run.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};

use crate::table::{self, ParquetSink, TableError};

pub const FORMAT: &str = "metrics/1";

/// One row. A step's row has no dev loss unless the step was evaluated.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Metrics {
    /// Optimizer steps done.
    pub step: u64,
    /// Passes over the training captions, with the fraction of the one in hand.
    pub epoch: f64,
    /// Mean over the tokens of the step.
    pub train_loss: Option<f64>,
    /// Mean over all dev tokens.
    pub dev_loss: Option<f64>,
    pub learning_rate: Option<f64>,
    /// Before clipping.
    pub grad_norm: Option<f64>,
    pub tokens_per_second: Option<f64>,
    pub samples_per_second: Option<f64>,
    /// Forward and backward passes of the step.
    pub gradients_ms: Option<f64>,
    /// Clipping and optimizer.
    pub update_ms: Option<f64>,
    /// CIDEr of greedy captions of some dev images.
    pub dev_cider: Option<f64>,
    /// Mean CIDEr of the captions that a step of self-critical training sampled.
    pub reward: Option<f64>,
    /// Standard deviation of an image's samples from the mean of its others: what there is to learn from.
    pub reward_spread: Option<f64>,
}

impl Metrics {
    /// exp(dev loss).
    pub fn dev_perplexity(&self) -> Option<f64> {
        self.dev_loss.map(f64::exp)
    }
}

type Field64 = (&'static str, fn(&Metrics) -> Option<f64>, fn(&mut Metrics, Option<f64>));

/// Columns of optional numbers: name, get, set.
const NUMBERS: [Field64; 12] = [
    ("train_loss", |m| m.train_loss, |m, v| m.train_loss = v),
    ("dev_loss", |m| m.dev_loss, |m, v| m.dev_loss = v),
    ("dev_perplexity", Metrics::dev_perplexity, |_, _| {}),
    ("learning_rate", |m| m.learning_rate, |m, v| m.learning_rate = v),
    ("grad_norm", |m| m.grad_norm, |m, v| m.grad_norm = v),
    ("tokens_per_second", |m| m.tokens_per_second, |m, v| m.tokens_per_second = v),
    ("samples_per_second", |m| m.samples_per_second, |m, v| m.samples_per_second = v),
    ("gradients_ms", |m| m.gradients_ms, |m, v| m.gradients_ms = v),
    ("update_ms", |m| m.update_ms, |m, v| m.update_ms = v),
    ("dev_cider", |m| m.dev_cider, |m, v| m.dev_cider = v),
    ("reward", |m| m.reward, |m, v| m.reward = v),
    ("reward_spread", |m| m.reward_spread, |m, v| m.reward_spread = v),
];

/// Writes all rows, atomically.
pub fn write(path: &Path, rows: &[Metrics]) -> Result<(), TableError> {
    let mut fields = vec![Field::new("step", DataType::Int64, false), Field::new("epoch", DataType::Float64, false)];
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| Some(row.step as i64)).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| Some(row.epoch)).collect::<Float64Array>()),
    ];
    for (name, get, _) in NUMBERS {
        fields.push(Field::new(name, DataType::Float64, true));
        columns.push(Arc::new(rows.iter().map(get).collect::<Float64Array>()));
    }
    let schema = Arc::new(Schema::new(fields));
    let mut sink = ParquetSink::create(path, schema.clone(), FORMAT)?;
    let batch = RecordBatch::try_new(schema, columns).map_err(|source| TableError::Arrow { path: path.into(), source })?;
    sink.write(&batch)?;
    sink.finish()
}

/// Reads the rows up to `step`; none where there is no file.
pub fn read(path: &Path, step: u64) -> Result<Vec<Metrics>, TableError> {
    if !path.exists() {
        return Ok(vec![]);
    }
    let mut rows = vec![];
    for batch in table::open(path, Some(FORMAT))? {
        let batch = batch.map_err(|source| TableError::Arrow { path: path.into(), source })?;
        let steps = table::column::<Int64Array>(&batch, "step", path)?;
        let epochs = table::column::<Float64Array>(&batch, "epoch", path)?;
        let first = rows.len();
        rows.extend((0..batch.num_rows()).map(|row| Metrics {
            step: steps.value(row).max(0) as u64,
            epoch: epochs.value(row),
            ..Metrics::default()
        }));
        for (name, _, set) in NUMBERS {
            // A run that an older version began lacks what came later.
            if batch.column_by_name(name).is_none() {
                continue;
            }
            let values = table::column::<Float64Array>(&batch, name, path)?;
            for (row, metrics) in rows[first..].iter_mut().enumerate() {
                set(metrics, values.is_valid(row).then(|| values.value(row)));
            }
        }
    }
    rows.retain(|row| row.step <= step);
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_up_to_a_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.parquet");
        let row = |step| Metrics { step, epoch: 0.1, train_loss: Some(2.0), grad_norm: Some(0.5), ..Metrics::default() };
        let rows = [row(1), Metrics { dev_loss: Some(1.5), ..row(2) }, row(3)];
        write(&path, &rows).unwrap();
        assert_eq!(read(&path, 2).unwrap(), rows[..2]);
        assert_eq!(rows[1].dev_perplexity().map(|p| (p * 1e3).round()), Some(4482.0));
        write(&path, &[]).unwrap();
        assert!(read(&path, 9).unwrap().is_empty());
        assert!(read(&folder.path().join("none"), 9).unwrap().is_empty());
    }
}
