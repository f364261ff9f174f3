//! `--save-images`: the image files' bytes in Parquet, as Hugging Face's Image type has them.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use serde_json::json;

use crate::files::ContentHash;
use crate::image::{Limits, read};
use crate::pipeline::sources::StoredImages;
use crate::pipeline::{Content, Entry};
use crate::remote;
use crate::table::{self, ParquetSink};

const FORMAT: &str = "images/1";

/// A row group ends at so many bytes, which are held in memory until then; a shard at so many more.
const GROUP_BYTES: usize = 32 << 20;
const SHARD_BYTES: usize = 512 << 20;

/// Writes `images-00000.parquet` ... beside the embeddings.
pub(super) struct StoredImageWriter {
    folder: PathBuf,
    /// The output that is there from before.
    before: PathBuf,
    /// Its shards, once one was needed.
    stored: Option<Vec<PathBuf>>,
    names: Vec<PathBuf>,
    sink: Option<ParquetSink>,
    shard_bytes: usize,
    group_bytes: usize,
    /// image_id, image_path, sha256
    texts: [Vec<String>; 3],
    contents: Vec<Vec<u8>>,
}

fn image_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    // Nullable, though never null: datasets knows its Image by this very type.
    let image = Field::new("image", DataType::Struct(image_fields()), true);
    let string = json!({"dtype": "string", "_type": "Value"});
    let features = json!({"image_id": string, "image_path": string, "sha256": string, "image": {"_type": "Image"}});
    // In Arrow's schema, where datasets looks.
    let marks = HashMap::from([("huggingface".to_string(), json!({"info": {"features": features}}).to_string())]);
    Arc::new(Schema::new_with_metadata(vec![text("image_id"), text("image_path"), text("sha256"), image], marks))
}

/// A file's columns of these names, so many rows at once.
fn batches(path: &Path, columns: &[&str], rows: usize) -> Result<ParquetRecordBatchReader> {
    let context = || format!("cannot read {}", remote::shown(path));
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).with_context(context)?).with_context(context)?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    builder.with_projection(mask).with_batch_size(rows).build().with_context(context)
}

/// The bytes of the image in a row.
fn stored_bytes(path: &Path, row: usize) -> Result<Option<Vec<u8>>> {
    let Some(batch) = batches(path, &["image.bytes"], 1)?.nth(row).transpose()? else { return Ok(None) };
    let images = batch.column(0).as_struct_opt().context("the column image is not a struct")?;
    let bytes = images.column_by_name("bytes").and_then(|bytes| bytes.as_binary_opt::<i32>());
    Ok(bytes.map(|bytes| bytes.value(0).to_vec()))
}

impl StoredImageWriter {
    pub fn new(folder: &Path, before: &Path) -> Self {
        Self {
            folder: folder.into(),
            before: before.into(),
            stored: None,
            names: vec![],
            sink: None,
            shard_bytes: 0,
            group_bytes: 0,
            texts: Default::default(),
            contents: vec![],
        }
    }

    /// Reads the file once more, most likely from memory; it must still be what was embedded.
    pub fn add(&mut self, entry: &Entry, sha256: &ContentHash) -> Result<()> {
        let bytes = match &entry.content {
            Content::File { path, .. } => {
                // Limits were checked when it was first read.
                let limits = Limits { max_bytes: u64::MAX, ..Limits::default() };
                let bytes = read(path, &limits)
                    .with_context(|| format!("cannot read {} again to save it", remote::shown(path)))?
                    .into_bytes();
                if ContentHash::of(&bytes) != *sha256 {
                    bail!("{} was changed while the images were embedded: give the same command again", remote::shown(path));
                }
                bytes
            }
            Content::Kept(_) => self.stored_before(&sha256.to_string())?.with_context(|| {
                format!("{}: it cannot be read now, and {} does not store it", entry.image_path, self.before.display())
            })?,
            _ => bail!("{}: only image files can be saved", entry.image_path),
        };
        self.group_bytes += bytes.len();
        self.contents.push(bytes);
        for (column, text) in self.texts.iter_mut().zip([entry.image_id.clone(), entry.image_path.clone(), sha256.to_string()]) {
            column.push(text);
        }
        if self.group_bytes >= GROUP_BYTES { self.write_group() } else { Ok(()) }
    }

    /// An image's bytes, out of what was stored before.
    fn stored_before(&mut self, sha256: &str) -> Result<Option<Vec<u8>>> {
        if self.stored.is_none() {
            self.stored = Some(StoredImages::open(&self.before)?.shards().iter().map(|rows| rows.path.clone()).collect());
        }
        for shard in self.stored.iter().flatten() {
            // Hashes first: images are large.
            let hashes = batches(shard, &["sha256"], 4096)?;
            let mut row = 0;
            for batch in hashes {
                let batch = batch?;
                let texts: &StringArray = table::column(&batch, "sha256", shard)?;
                if let Some(at) = (0..texts.len()).find(|&at| texts.value(at) == sha256) {
                    return stored_bytes(shard, row + at);
                }
                row += texts.len();
            }
        }
        Ok(None)
    }

    fn write_group(&mut self) -> Result<()> {
        if self.sink.is_none() {
            let name = PathBuf::from(format!("images-{:05}.parquet", self.names.len()));
            self.sink = Some(ParquetSink::create(&self.folder.join(&name), schema(), FORMAT)?);
            self.names.push(name);
        }
        let paths = self.texts[1].clone();
        let texts = std::mem::take(&mut self.texts).map(|column| Arc::new(StringArray::from(column)) as ArrayRef);
        let contents = std::mem::take(&mut self.contents);
        let image: Vec<ArrayRef> = vec![Arc::new(BinaryArray::from_iter_values(&contents)), Arc::new(StringArray::from(paths))];
        let mut columns = texts.to_vec();
        columns.push(Arc::new(StructArray::try_new(image_fields(), image, None)?));
        if let Some(sink) = &mut self.sink {
            sink.write(&RecordBatch::try_new(schema(), columns)?)?;
            sink.flush()?;
        }
        self.shard_bytes += std::mem::take(&mut self.group_bytes);
        if self.shard_bytes >= SHARD_BYTES {
            self.shard_bytes = 0;
            self.sink.take().map(ParquetSink::finish).transpose()?;
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<Vec<PathBuf>> {
        if !self.contents.is_empty() {
            self.write_group()?;
        }
        self.sink.take().map(ParquetSink::finish).transpose()?;
        Ok(self.names)
    }
}
