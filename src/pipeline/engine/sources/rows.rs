//! The rows of Parquet files that hold images, and what they are called.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rayon::prelude::*;

use crate::dataset::captions::source_names;
use crate::dataset::listing;
use crate::dataset::naming::image_id;
use crate::files::sort::Sorter;
use crate::image::Reason;
use crate::pipeline::artifact::Failure;
use crate::pipeline::engine::{Content, Entry};
use crate::remote;
use crate::table::TableFile;

/// Rows read at once: each holds a whole image file.
const ROWS_AT_ONCE: usize = 16;

/// Names read at once, and hashes of names in memory.
const NAMES_AT_ONCE: usize = 1 << 13;
const HASHES: usize = 1 << 21;

/// Files whose names are read at once.
const FILES_AT_ONCE: usize = 16;

/// How the rows of one file are called.
#[derive(Debug, Clone)]
pub struct TableRows {
    /// The file.
    pub path: PathBuf,
    /// The file's name in image_paths.
    pub name: String,
    /// Rows of all files together have names twice: each is called by its file, too.
    pub by_file: bool,
}

impl TableRows {
    /// One file, whose rows have names of their own.
    pub fn of(path: &Path) -> Self {
        let name = listing::last_part(path).map(|name| listing::image_path(&name)).unwrap_or_default();
        Self { path: path.into(), name, by_file: false }
    }

    /// Files that are read together. Their rows' names are read once.
    ///
    /// # Errors
    /// A file that is given twice, or that cannot be read.
    pub fn of_all(paths: &[PathBuf], column: &str) -> Result<Vec<Self>> {
        let mut all: Vec<Self> = paths.iter().map(|path| Self::of(path)).collect();
        let different: HashSet<&str> = all.iter().map(|rows| rows.name.as_str()).collect();
        if different.len() < all.len() {
            let names = source_names(paths)?;
            all.iter_mut().zip(names).for_each(|(rows, name)| rows.name = listing::image_path(name.as_bytes()));
        }
        let context = "cannot compare the names of rows";
        let mut sorter = Sorter::new(HASHES);
        for some in all.chunks(FILES_AT_ONCE) {
            let hashes = some.par_iter().map(|rows| rows.hashes(column)).collect::<Result<Vec<_>>>()?;
            hashes.into_iter().flatten().try_for_each(|hash| sorter.add(hash)).context(context)?;
        }
        let (mut last, mut by_file) = (None, false);
        let compare = |hash| by_file |= last.replace(hash) == Some(hash);
        sorter.finish().and_then(|sorted| sorted.each(compare)).context(context)?;
        all.iter_mut().for_each(|rows| rows.by_file = by_file);
        Ok(all)
    }

    /// Hashes of the image_paths and ids that rows bring.
    fn hashes(&self, column: &str) -> Result<Vec<u64>> {
        let context = || format!("cannot read {}", remote::shown(&self.path));
        let file = TableFile::open_for_little(&self.path)?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).with_context(context)?;
        let path_of_image = format!("{column}.path");
        let named = ["image_path", "image_id", path_of_image.as_str()];
        let mask = ProjectionMask::columns(builder.parquet_schema(), named);
        let leaves = 0..builder.parquet_schema().num_columns();
        if !leaves.into_iter().any(|leaf| mask.leaf_included(leaf)) {
            return Ok(Vec::new());
        }
        let mut hashes = Vec::new();
        for batch in builder.with_projection(mask).with_batch_size(NAMES_AT_ONCE).build().with_context(context)? {
            let batch = batch.with_context(context)?;
            let names = Names::of(&batch, column);
            for row in 0..batch.num_rows() {
                let path = names.path(row);
                let id = names.id(row).map(str::to_string).or_else(|| path.map(|path| image_id(path).into_owned()));
                // The last bit tells ids from paths.
                hashes.extend(path.map(|path| hash(path) & !1));
                hashes.extend(id.map(|id| hash(&id) | 1));
            }
        }
        Ok(hashes)
    }

    /// The images.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn entries(self, column: &str) -> Result<impl Iterator<Item = Result<Entry>> + Send + use<>> {
        let context = format!("cannot read {}", remote::shown(&self.path));
        let builder = ParquetRecordBatchReaderBuilder::try_new(TableFile::open(&self.path)?).with_context(|| context.clone())?;
        let batches = builder.with_batch_size(ROWS_AT_ONCE).build().with_context(|| context.clone())?;
        let column = column.to_string();
        let mut caller = Caller { rows: self, taken: HashSet::new(), next_row: 0 };
        Ok(batches.flat_map(move |batch| {
            match batch.map_err(anyhow::Error::from).and_then(|batch| entries_of(&batch, &column, &mut caller)) {
                Ok(entries) => entries.into_iter().map(Ok).collect::<Vec<_>>(),
                Err(error) => vec![Err(error.context(context.clone()))],
            }
        }))
    }
}

/// Calls a file's rows, one after another.
struct Caller {
    rows: TableRows,
    /// Hashes of the names that rows have, where some would have one twice.
    taken: HashSet<u64>,
    next_row: usize,
}

impl Caller {
    /// The next row's image_path and id, from what it says itself.
    fn call(&mut self, path: Option<&str>, id: Option<&str>) -> (String, String) {
        let (file, row) = (&self.rows.name, self.next_row);
        self.next_row += 1;
        let by_row = || format!("{file}/{row:08}");
        if !self.rows.by_file {
            let image_path = path.map_or_else(by_row, str::to_string);
            let id = id.map_or_else(|| image_id(&image_path).into_owned(), str::to_string);
            return (image_path, id);
        }
        let named = path.map(|path| format!("{file}/{path}")).filter(|path| self.taken.insert(hash(path) & !1));
        let image_path = named.unwrap_or_else(by_row);
        let id = id.map_or_else(|| image_id(&image_path).into_owned(), |id| format!("{file}/{id}"));
        let id = if self.taken.insert(hash(&id) | 1) { id } else { image_path.clone() };
        (image_path, id)
    }
}

fn hash(name: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(name)
}

/// What the rows of a batch say of their names.
struct Names {
    paths: Option<StringArray>,
    ids: Option<StringArray>,
}

impl Names {
    fn of(batch: &RecordBatch, column: &str) -> Self {
        let texts = |name: &str| batch.column_by_name(name).and_then(|array| texts(array));
        let of_images = || texts_of_part(batch.column_by_name(column)?, "path");
        Self { paths: texts("image_path").or_else(of_images), ids: texts("image_id") }
    }

    fn path(&self, row: usize) -> Option<&str> {
        self.paths.as_ref().filter(|paths| paths.is_valid(row)).map(|paths| paths.value(row)).filter(|path| !path.is_empty())
    }

    fn id(&self, row: usize) -> Option<&str> {
        self.ids.as_ref().filter(|ids| ids.is_valid(row)).map(|ids| ids.value(row))
    }
}

fn texts_of_part(array: &dyn Array, part: &str) -> Option<StringArray> {
    texts(array.as_struct_opt()?.column_by_name(part)?)
}

/// A column of text, in whichever of the layouts that writers have for it.
fn texts(array: &dyn Array) -> Option<StringArray> {
    match array.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            cast(array, &DataType::Utf8).ok()?.as_string_opt::<i32>().cloned()
        }
        DataType::Dictionary(_, values) if **values == DataType::Utf8 => {
            cast(array, values).ok()?.as_string_opt::<i32>().cloned()
        }
        _ => None,
    }
}

fn entries_of(batch: &RecordBatch, column: &str, caller: &mut Caller) -> Result<Vec<Entry>> {
    let images = batch.column_by_name(column).with_context(|| format!("no column {column}"))?;
    let bytes = match images.as_struct_opt() {
        Some(parts) => parts.column_by_name("bytes").with_context(|| format!("the column {column} has no bytes"))?,
        None => images,
    };
    let names = Names::of(batch, column);
    let mut entries = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let (image_path, image_id) = caller.call(names.path(row), names.id(row));
        let content: Arc<[u8]> = match (bytes.as_binary_opt::<i32>(), bytes.as_binary_opt::<i64>()) {
            (Some(bytes), _) => bytes.value(row).into(),
            (_, Some(bytes)) => bytes.value(row).into(),
            _ => match bytes.as_binary_view_opt() {
                Some(bytes) => bytes.value(row).into(),
                None => bail!("the column {column} is {}, not bytes of images", images.data_type()),
            },
        };
        let content = if images.is_valid(row) && bytes.is_valid(row) {
            Content::Bytes(content)
        } else {
            let message = "the dataset holds no bytes of this image (a path to a file elsewhere is not followed)";
            Content::Failed(Failure { reason: Reason::Unreadable.as_str().into(), message: message.into() })
        };
        entries.push(Entry { image_path, image_id, content });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_share_a_name_are_called_by_their_file_and_no_two_are_called_the_same() {
        let rows = |by_file| TableRows { path: PathBuf::new(), name: "t.parquet".into(), by_file };
        let all = [
            (Some("1.jpg"), None),
            (Some("1.png"), None),
            (Some("1.jpg"), None),
            (None, None),
            (Some("2.jpg"), Some("a")),
            (Some("3.jpg"), Some("a")),
        ];
        let called = |by_file| {
            let mut caller = Caller { rows: rows(by_file), taken: HashSet::new(), next_row: 0 };
            all.map(|(path, id)| caller.call(path, id)).map(|(path, id)| format!("{path} {id}").replace("t.parquet", "t"))
        };
        assert_eq!(called(false), ["1.jpg 1", "1.png 1", "1.jpg 1", "t/00000003 t/00000003", "2.jpg a", "3.jpg a"]);
        let wanted = [
            "t/1.jpg t/1",
            "t/1.png t/1.png",
            "t/00000002 t/00000002",
            "t/00000003 t/00000003",
            "t/2.jpg t/a",
            "t/3.jpg t/3.jpg",
        ];
        assert_eq!(called(true), wanted);
    }
}
