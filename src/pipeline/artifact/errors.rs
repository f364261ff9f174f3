//! The errors table: one row for each image that has no result; no table where there is none.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use arrow::array::StringArray;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;

use crate::table::{self, ParquetSink};

const FORMAT: &str = "errors/1";
const ROWS_AT_ONCE: usize = 4096;

/// Why an image has no result: a word from the fixed list, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A word of [`Reason`](crate::image::Reason), or one of a stage.
    pub reason: String,
    /// Without the file's path, and the same on every machine.
    pub message: String,
}

/// Writes `image_path`, `reason`, `message`, a few thousand rows at a time.
pub struct ErrorsTable {
    path: PathBuf,
    sink: Option<ParquetSink>,
    schema: SchemaRef,
    rows: Vec<[String; 3]>,
}

impl ErrorsTable {
    /// A table at `path`, which is written as soon as it has rows.
    pub fn new(path: PathBuf) -> Self {
        let columns = ["image_path", "reason", "message"].map(|name| Field::new(name, DataType::Utf8, false));
        Self { path, sink: None, schema: Arc::new(Schema::new(columns.to_vec())), rows: Vec::new() }
    }

    /// Writes a table without rows, for those who need a file.
    ///
    /// # Errors
    /// A full disk, or a folder that may not be written.
    pub fn write_empty(path: &Path) -> Result<()> {
        let table = Self::new(path.into());
        Ok(ParquetSink::create(path, table.schema, FORMAT)?.finish()?)
    }

    /// Adds a row.
    pub fn add(&mut self, image_path: &str, failure: &Failure) -> Result<()> {
        self.rows.push([image_path.into(), failure.reason.clone(), failure.message.clone()]);
        if self.rows.len() >= ROWS_AT_ONCE { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let column = |i: usize| Arc::new(StringArray::from_iter_values(self.rows.iter().map(|row| &row[i]))) as _;
        let batch = RecordBatch::try_new(self.schema.clone(), vec![column(0), column(1), column(2)])?;
        self.rows.clear();
        let sink = match &mut self.sink {
            Some(sink) => sink,
            none => none.insert(ParquetSink::create(&self.path, self.schema.clone(), FORMAT)?),
        };
        sink.write(&batch)?;
        // A row group of its own, so that memory stays flat however many images fail.
        Ok(sink.flush()?)
    }

    /// Ends the table; where no row was added, there is none.
    ///
    /// # Errors
    /// A full disk, or a folder that may not be written.
    pub fn finish(mut self) -> Result<()> {
        if !self.rows.is_empty() {
            self.write()?;
        }
        self.sink.map_or(Ok(()), |sink| Ok(sink.finish()?))
    }
}

/// The rows of an errors table: image_path and failure, in order.
///
/// # Errors
/// A file that is no such table.
pub fn errors_in(path: &Path) -> Result<impl Iterator<Item = Result<(String, Failure)>> + use<>> {
    let rows = table::texts(path, Some(FORMAT), ["image_path", "reason", "message"])?;
    Ok(rows.map(|row| {
        let [image_path, reason, message] = row?.map(Option::unwrap_or_default);
        Ok((image_path, Failure { reason, message }))
    }))
}
