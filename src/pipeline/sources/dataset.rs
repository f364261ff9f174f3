//! The images that a dataset stores: `images-00000.parquet` ... with `image` struct<bytes, path>, as Hugging Face's Image has it.

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::folder::file_entry;
use super::parquet_info;
use crate::dataset::listing::relative_path;
use crate::dataset::naming::image_id;
use crate::image::Reason;
use crate::pipeline::{Content, Entry, Failure};
use crate::table;

/// Rows read at once: each holds a whole image file.
const ROWS_AT_ONCE: usize = 16;

/// A dataset's stored images, in the order of its rows.
pub struct StoredImages {
    shards: Vec<PathBuf>,
    pub num_rows: u64,
}

impl StoredImages {
    /// Whether a folder is a dataset (and not a folder of image files).
    pub fn is_dataset(folder: &Path) -> bool {
        folder.join("images.parquet").is_file() || folder.join("images-00000.parquet").is_file()
    }

    pub fn open(folder: &Path) -> Result<Self> {
        let mut shards = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.strip_prefix("images-").and_then(|rest| rest.strip_suffix(".parquet"));
            if number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())) {
                shards.push(path);
            }
        }
        shards.sort();
        if shards.is_empty() {
            bail!(
                "{}: this dataset stores no images (no images-00000.parquet): prepare it with --with-images, or give the folder of \
                 its images",
                folder.display()
            );
        }
        let mut num_rows = 0;
        for shard in &shards {
            let info = parquet_info(shard, None)?;
            if info.schema.field_with_name("image").is_err() {
                bail!("{}: no column image", shard.display());
            }
            num_rows += info.num_rows;
        }
        Ok(Self { shards, num_rows })
    }

    pub fn shards(&self) -> &[PathBuf] {
        &self.shards
    }

    pub fn entries(&self) -> impl Iterator<Item = Result<Entry>> + Send + '_ {
        self.shards.iter().flat_map(|shard| or_error(read(shard)))
    }
}

/// A dataset's list of images, whose files are in the folders that `prepare` was given.
pub struct DatasetFiles {
    table: PathBuf,
    roots: Vec<PathBuf>,
    pub num_rows: u64,
}

impl DatasetFiles {
    pub fn open(dataset: &Path, roots: &[PathBuf]) -> Result<Self> {
        let table = dataset.join("images.parquet");
        let info = parquet_info(&table, None).with_context(|| format!("{} is no dataset", dataset.display()))?;
        let names_files = |batch: RecordBatch| {
            table::column::<StringArray>(&batch, "image_path", &table).map(|paths| paths.null_count() < paths.len())
        };
        let mut batches = table::open(&table, None)?.map(|batch| names_files(batch?).map_err(anyhow::Error::from));
        if info.num_rows > 0 && !batches.any(|names| names.unwrap_or(true)) {
            bail!("{} names no image file: prepare it again with --images", dataset.display());
        }
        Ok(Self { table, roots: roots.to_vec(), num_rows: info.num_rows })
    }

    /// The rows that name a file. Which images of the list have none is told by the dataset itself.
    pub fn entries(&self) -> Result<impl Iterator<Item = Result<Entry>> + Send + '_> {
        let batches = table::open(&self.table, None)?;
        Ok(batches.flat_map(move |batch| match batch.map_err(anyhow::Error::from).and_then(|batch| self.files_of(&batch)) {
            Ok(entries) => entries.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error.context(format!("cannot read {}", self.table.display())))],
        }))
    }

    fn files_of(&self, batch: &RecordBatch) -> Result<Vec<Entry>> {
        let ids: &StringArray = table::column(batch, "image_id", &self.table)?;
        let paths: &StringArray = table::column(batch, "image_path", &self.table)?;
        let rows = (0..batch.num_rows()).filter(|&row| paths.is_valid(row));
        let entry = |row| {
            let (image_path, image_id) = (paths.value(row).to_string(), ids.value(row).to_string());
            match self.locate(&image_path) {
                Ok(path) => file_entry(path, image_path, image_id),
                Err(message) => {
                    let failure = Failure { reason: Reason::Unreadable.as_str().into(), message: message.into() };
                    Entry { image_path, image_id, content: Content::Failed(failure) }
                }
            }
        };
        Ok(rows.map(entry).collect())
    }

    /// Several roots begin their image paths with their last part, as in every listing. A dataset is anyone's: a path in it that leads
    /// out of the folders is not followed.
    fn locate(&self, image_path: &str) -> Result<PathBuf, &'static str> {
        let relative = relative_path(image_path);
        if relative.as_os_str().is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err("the dataset's path leads out of the folder of images, so it is not followed");
        }
        if let [only] = &self.roots[..] {
            return Ok(only.join(relative));
        }
        let mut parts = relative.components();
        let first = parts.next().map(|part| part.as_os_str());
        let root = self.roots.iter().find(|root| root.file_name() == first);
        root.map(|root| root.join(parts.as_path()))
            .ok_or("none of the folders of images has the name that the dataset's path begins with")
    }
}

fn or_error(
    entries: Result<impl Iterator<Item = Result<Entry>> + Send + 'static>,
) -> Box<dyn Iterator<Item = Result<Entry>> + Send> {
    match entries {
        Ok(entries) => Box::new(entries),
        Err(error) => Box::new(std::iter::once(Err(error))),
    }
}

fn read(path: &Path) -> Result<impl Iterator<Item = Result<Entry>> + Send + use<>> {
    let context = || format!("cannot read {}", path.display());
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).with_context(context)?).with_context(context)?;
    let batches = builder.with_batch_size(ROWS_AT_ONCE).build().with_context(context)?;
    let path = path.to_path_buf();
    Ok(batches.flat_map(move |batch| match batch.map_err(anyhow::Error::from).and_then(|batch| entries_of(&batch, &path)) {
        Ok(entries) => entries.into_iter().map(Ok).collect::<Vec<_>>(),
        Err(error) => vec![Err(error.context(format!("cannot read {}", path.display())))],
    }))
}

fn entries_of(batch: &RecordBatch, path: &Path) -> Result<Vec<Entry>> {
    let images = batch.column_by_name("image").and_then(|c| c.as_struct_opt()).context("the column image is no struct")?;
    let bytes = images.column_by_name("bytes").context("the column image has no bytes")?;
    let names = images.column_by_name("path").and_then(|c| c.as_string_opt::<i32>());
    let paths = table::column::<StringArray>(batch, "image_path", path).ok().or(names);
    let paths = paths.context("neither a column image_path nor image.path")?;
    let ids = table::column::<StringArray>(batch, "image_id", path).ok();
    let mut entries = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let image_path = paths.value(row).to_string();
        let id =
            ids.filter(|ids| ids.is_valid(row)).map_or_else(|| image_id(&image_path).into_owned(), |ids| ids.value(row).into());
        let content: Arc<[u8]> = match (bytes.as_binary_opt::<i32>(), bytes.as_binary_opt::<i64>()) {
            (Some(bytes), _) => bytes.value(row).into(),
            (_, Some(bytes)) => bytes.value(row).into(),
            _ => bail!("image.bytes is {}, not binary", bytes.data_type()),
        };
        let content = if images.is_valid(row) && bytes.is_valid(row) {
            Content::Bytes(content)
        } else {
            let message = "the dataset holds no bytes of this image (a path to a file elsewhere is not followed)";
            Content::Failed(Failure { reason: Reason::Unreadable.as_str().into(), message: message.into() })
        };
        entries.push(Entry { image_path, image_id: id, content });
    }
    Ok(entries)
}
