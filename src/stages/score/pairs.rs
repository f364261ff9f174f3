//! Pairs of an image and a caption, as they stand in tables and caption files, a batch at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};

use crate::dataset::captions::{Columns, Format, ReadOptions, read_captions, tables_of};
use crate::pipeline::Reporter;
use crate::table::FORMAT_KEY;

/// Rows of a batch.
pub const ROWS_AT_ONCE: usize = 2048;

/// What a column is called that names images, the better first.
const IMAGE_COLUMNS: [&str; 5] = ["image_path", "image_id", "file_name", "filename", "image"];

type Batches = Box<dyn Iterator<Item = Result<RecordBatch>>>;

/// A table of pairs.
pub struct Pairs {
    pub schema: SchemaRef,
    /// The column that names the image.
    pub image: String,
    /// What a Parquet table says it is.
    pub format: Option<String>,
    pub batches: Batches,
}

/// How caption files are read.
#[derive(Debug, Clone, Default)]
pub struct PairOptions {
    pub format: Option<Format>,
    pub columns: Columns,
}

impl Pairs {
    /// A dataset or table folder, a Parquet table with a column `caption`, or a caption file as `prepare` reads it.
    ///
    /// # Errors
    /// A table without captions, or without a column that names images.
    pub fn open(path: &Path, options: &PairOptions, reporter: &dyn Reporter) -> Result<Self> {
        if path.is_dir() {
            let files = parts_of(path)?;
            return Self::parquet(&files);
        }
        match path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet")) {
            true => Self::parquet(&[path.to_path_buf()]),
            false => Self::captions(path, options, reporter),
        }
    }

    fn parquet(files: &[PathBuf]) -> Result<Self> {
        let first = files.first().context("no table")?;
        let metadata = metadata_of(first)?;
        let schema = metadata.schema().clone();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        if !names.contains(&"caption") {
            bail!("{}: there is no column caption; it has {}", first.display(), names.join(", "));
        }
        let Some(image) = IMAGE_COLUMNS.iter().find(|name| names.contains(name)) else {
            bail!("{}: no column names images ({}); it has {}", first.display(), IMAGE_COLUMNS.join(", "), names.join(", "));
        };
        let pairs = metadata.metadata().file_metadata().key_value_metadata();
        let format = pairs.into_iter().flatten().find(|pair| pair.key == FORMAT_KEY).and_then(|pair| pair.value.clone());
        let (files, wanted) = (files.to_vec(), schema.clone());
        let batches = files.into_iter().flat_map(move |file| -> Batches {
            let opened = metadata_of(&file).and_then(|metadata| {
                if metadata.schema().fields() != wanted.fields() {
                    bail!("{}: it has other columns than the first part", file.display());
                }
                let handle = crate::files::open_regular(&file).with_context(|| format!("cannot open {}", file.display()))?;
                let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(handle, metadata);
                Ok(builder.with_batch_size(ROWS_AT_ONCE).build()?)
            });
            match opened {
                Ok(reader) => {
                    let name = file.display().to_string();
                    Box::new(reader.map(move |batch| batch.with_context(|| format!("cannot read {name}"))))
                }
                Err(error) => Box::new(std::iter::once(Err(error))),
            }
        });
        Ok(Self { schema, image: (*image).into(), format, batches: Box::new(batches) })
    }

    fn captions(path: &Path, options: &PairOptions, reporter: &dyn Reporter) -> Result<Self> {
        let options = ReadOptions { format: options.format, columns: options.columns.clone(), ..ReadOptions::default() };
        let read = read_captions(&[path.to_path_buf()], &options)?;
        if let Some(bad) = read.bad.first() {
            let count = read.bad.len();
            reporter.warn(&format!("{}: {count} lines hold no pair; line {}: {}", path.display(), bad.line, bad.bad.message));
        }
        let mut rows: Vec<(u64, String, String)> = vec![];
        for (_, batch) in &read.batches {
            for row in &batch.rows {
                let image = row.file.map_or_else(|| batch.get(row.image), |file| batch.get(file));
                rows.push((row.line, image.to_owned(), batch.get(row.caption).to_owned()));
            }
        }
        if rows.is_empty() {
            bail!("{}: it has no row with an image and a caption", path.display());
        }
        rows.sort_by_key(|(line, ..)| *line);
        let text = |name: &str| Field::new(name, DataType::Utf8, false);
        let schema = Arc::new(Schema::new(vec![text("image_path"), text("caption")]));
        let (made, of) = (schema.clone(), rows.len());
        let batches = (0..of).step_by(ROWS_AT_ONCE).map(move |start| {
            let rows = &rows[start..(start + ROWS_AT_ONCE).min(of)];
            let images = StringArray::from_iter_values(rows.iter().map(|(_, image, _)| image));
            let captions = StringArray::from_iter_values(rows.iter().map(|(.., caption)| caption));
            Ok(RecordBatch::try_new(made.clone(), vec![Arc::new(images), Arc::new(captions)])?)
        });
        Ok(Self { schema, image: "image_path".into(), format: None, batches: Box::new(batches) })
    }
}

fn metadata_of(path: &Path) -> Result<ArrowReaderMetadata> {
    let file = crate::files::open_regular(path).with_context(|| format!("cannot open {}", path.display()))?;
    ArrowReaderMetadata::load(&file, Default::default()).with_context(|| format!("{}: not a Parquet table", path.display()))
}

/// A dataset's captions, or a table's numbered parts.
fn parts_of(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(tables_of(folder)?)
}

/// A column as text; other writers keep it as large strings, views or dictionaries, and ids may be numbers.
pub fn text_column(batch: &RecordBatch, name: &str) -> Result<StringArray> {
    let column: &ArrayRef = batch.column_by_name(name).with_context(|| format!("no column {name}"))?;
    let text = cast(column, &DataType::Utf8).with_context(|| format!("the column {name} is not text"))?;
    Ok(text.as_any().downcast_ref::<StringArray>().context("text was asked for")?.clone())
}
