//! The images that a dataset stores: `images-00000.parquet` ... with `image` struct<bytes, path>, as Hugging Face's Image has it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use arrow::array::{Array, RecordBatch, StringArray};

use super::folder::file_entry;
use super::parquet_info;
use super::rows::TableRows;
use super::{Located, Place};
use crate::files::numbered_in;
use crate::image::{self, Limits};
use crate::pipeline::artifact::Failure;
use crate::pipeline::engine::{Content, Entry};
use crate::remote;
use crate::table;

/// A dataset's stored images, in the order of its rows.
pub struct StoredImages {
    shards: Vec<TableRows>,
    column: String,
    /// Over all shards.
    pub num_rows: u64,
}

impl StoredImages {
    /// Any Parquet files with a column of images: bytes, or Hugging Face's struct<bytes, path>. An image without a path of its own is called
    /// by its file and row, and where images of one name are in them, all are called by their file too.
    ///
    /// # Errors
    /// A file that is no Parquet, or has no such column.
    pub fn in_files(files: &[PathBuf], column: &str) -> Result<Self> {
        let mut num_rows = 0;
        for file in files {
            let info = parquet_info(file, None)?;
            if info.schema.field_with_name(column).is_err() {
                let names: Vec<&str> = info.schema.fields().iter().map(|field| field.name().as_str()).collect();
                bail!("{}: no column {column}; it has {} (--image-column names another)", remote::shown(file), names.join(", "));
            }
            num_rows += info.num_rows;
        }
        Ok(Self { shards: TableRows::of_all(files, column)?, column: column.into(), num_rows })
    }

    /// Whether a folder is a dataset (and not a folder of image files).
    pub fn is_dataset(folder: &Path) -> bool {
        folder.join("images.parquet").is_file() || folder.join("images-00000.parquet").is_file()
    }

    /// Opens a dataset; refuses one that stores no images.
    pub fn open(folder: &Path) -> Result<Self> {
        let shards = numbered_in(folder, "images-", ".parquet").with_context(|| format!("cannot list {}", folder.display()))?;
        let shards: Vec<TableRows> = shards.into_iter().map(|(_, path)| TableRows::of(&path)).collect();
        if shards.is_empty() {
            bail!(
                "{}: this dataset stores no images (no images-00000.parquet): prepare it with --with-images, or give the folder of \
                 its images",
                folder.display()
            );
        }
        let mut num_rows = 0;
        for TableRows { path, .. } in &shards {
            let info = parquet_info(path, None)?;
            if info.schema.field_with_name("image").is_err() {
                bail!("{}: no column image", path.display());
            }
            num_rows += info.num_rows;
        }
        Ok(Self { shards, column: "image".into(), num_rows })
    }

    /// The files.
    pub fn shards(&self) -> &[TableRows] {
        &self.shards
    }

    /// The images, in order.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry>> + Send + '_ {
        self.shards.iter().flat_map(|shard| or_error(shard.clone().entries(&self.column)))
    }
}

/// A dataset's list of images, whose files are in the folders and tars that `prepare` was given.
pub struct DatasetFiles {
    table: PathBuf,
    located: Located,
    limits: Limits,
    pub num_rows: u64,
}

impl DatasetFiles {
    /// `max_bytes` is the most an image in a tar may have.
    ///
    /// # Errors
    /// No dataset, or one that names no files.
    pub fn open(dataset: &Path, roots: &[PathBuf], max_bytes: u64) -> Result<Self> {
        let table = dataset.join("images.parquet");
        let info = parquet_info(&table, None).with_context(|| format!("{} is not a dataset", dataset.display()))?;
        let names_files = |batch: RecordBatch| {
            table::column::<StringArray>(&batch, "image_path", &table).map(|paths| paths.null_count() < paths.len())
        };
        let mut batches = table::open(&table, None)?.map(|batch| names_files(batch?).map_err(anyhow::Error::from));
        if info.num_rows > 0 && !batches.any(|names| names.unwrap_or(true)) {
            bail!("{} names no image file: prepare it again with --images", dataset.display());
        }
        let located = Located::new(roots)?;
        let limits = Limits { max_bytes, ..Limits::default() };
        Ok(Self { table, located, limits, num_rows: info.num_rows })
    }

    /// The rows that name a file. Which images of the list have none is told by the dataset itself.
    pub fn entries(&self) -> Result<impl Iterator<Item = Result<Entry>> + Send + '_> {
        let rows = table::texts(&self.table, None, ["image_path", "image_id"])?;
        Ok(rows.filter_map(|row| match row {
            Ok([image_path, image_id]) => Some(Ok(self.entry(image_path?, image_id.unwrap_or_default()))),
            Err(error) => Some(Err(error)),
        }))
    }

    fn entry(&self, image_path: String, image_id: String) -> Entry {
        let content = match self.located.find(&image_path) {
            Ok(Place::File(path)) => return file_entry(path, image_path, image_id),
            // Members come from front to back where the dataset was made of tars.
            Ok(member) => member.read(&self.limits).map(|bytes| Content::Bytes(bytes.into_bytes().into())),
            Err(failure) => Err(failure),
        };
        let failed = |failure: image::Failure| {
            Content::Failed(Failure { reason: failure.reason.as_str().into(), message: failure.message })
        };
        Entry { image_path, image_id, content: content.unwrap_or_else(failed) }
    }
}

pub(super) fn or_error(
    entries: Result<impl Iterator<Item = Result<Entry>> + Send + 'static>,
) -> Box<dyn Iterator<Item = Result<Entry>> + Send> {
    match entries {
        Ok(entries) => Box::new(entries),
        Err(error) => Box::new(std::iter::once(Err(error))),
    }
}
