//! Rows on their way into a Parquet file.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use arrow::array::{ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;

use super::{COLUMNS, FORMAT, Row, Scored};
use crate::table::ParquetSink;

/// Rows that are encoded at once, and rows of a row group, which is held encoded while it grows.
const ROWS_AT_ONCE: usize = 1 << 11;
const ROW_GROUP_ROWS: usize = 1 << 16;

/// Columns that grow; a few thousand rows at a time go to the file.
pub struct ParquetRows {
    sink: ParquetSink,
    schema: SchemaRef,
    /// image_id, image_path, sha256, caption, finish_reason
    texts: [Vec<String>; 5],
    caption_index: Vec<i32>,
    logprob: Vec<f64>,
    num_tokens: Vec<i32>,
    damaged: Vec<bool>,
    clip_score: Vec<Option<f32>>,
    rank: Vec<Option<i32>>,
    scored: Scored,
    group_rows: usize,
}

impl ParquetRows {
    pub fn create(scored: Scored, path: &Path) -> Result<Self> {
        let types = COLUMNS.map(|name| match name {
            "caption_index" | "num_tokens" => DataType::Int32,
            "logprob" => DataType::Float64,
            "damaged" => DataType::Boolean,
            _ => DataType::Utf8,
        });
        let mut fields: Vec<_> = COLUMNS.iter().zip(types).map(|(name, kind)| Field::new(*name, kind, false)).collect();
        // A blank caption has no score.
        fields.extend(scored.columns().iter().map(|name| match *name {
            "rank" => Field::new("rank", DataType::Int32, false),
            name => Field::new(name, DataType::Float32, true),
        }));
        let schema = Arc::new(Schema::new(fields));
        let sink = ParquetSink::create(path, schema.clone(), FORMAT)?;
        Ok(Self {
            sink,
            schema,
            texts: Default::default(),
            caption_index: Vec::new(),
            logprob: Vec::new(),
            num_tokens: Vec::new(),
            damaged: Vec::new(),
            clip_score: Vec::new(),
            rank: Vec::new(),
            scored,
            group_rows: 0,
        })
    }

    pub fn push(&mut self, row: Row) -> Result<()> {
        let texts = [row.image_id, row.image_path, row.sha256, row.caption, row.finish_reason];
        for (column, text) in self.texts.iter_mut().zip(texts) {
            column.push(text.into_owned());
        }
        self.caption_index.push(row.caption_index);
        self.logprob.push(row.logprob);
        self.num_tokens.push(row.num_tokens);
        self.damaged.push(row.damaged);
        self.clip_score.push(row.clip_score);
        self.rank.push(row.rank);
        if self.logprob.len() >= ROWS_AT_ONCE { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        self.group_rows += self.logprob.len();
        let [image_id, image_path, sha256, caption, finish_reason] =
            std::mem::take(&mut self.texts).map(|column| Arc::new(StringArray::from(column)) as _);
        let caption_index = Arc::new(Int32Array::from(std::mem::take(&mut self.caption_index)));
        let logprob = Arc::new(Float64Array::from(std::mem::take(&mut self.logprob)));
        let num_tokens = Arc::new(Int32Array::from(std::mem::take(&mut self.num_tokens)));
        let damaged = Arc::new(BooleanArray::from(std::mem::take(&mut self.damaged)));
        let numbers = (caption_index as _, logprob as _, num_tokens as _, damaged as _);
        let mut columns = vec![image_id, image_path, sha256, numbers.0, caption, numbers.1, numbers.2, finish_reason, numbers.3];
        let clip_score = Arc::new(Float32Array::from(std::mem::take(&mut self.clip_score)));
        let rank = Arc::new(Int32Array::from(std::mem::take(&mut self.rank)));
        columns.extend([clip_score as ArrayRef, rank as _].into_iter().take(self.scored.columns().len()));
        self.sink.write(&RecordBatch::try_new(self.schema.clone(), columns)?)?;
        if self.group_rows >= ROW_GROUP_ROWS {
            self.group_rows = 0;
            self.sink.flush()?;
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<()> {
        if !self.logprob.is_empty() {
            self.write()?;
        }
        Ok(self.sink.finish()?)
    }
}
