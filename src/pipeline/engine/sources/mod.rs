//! Where images come from: folders of files, a dataset's stored images, embeddings made before.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;

use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::dataset::listing::{self, Kind};
use crate::dataset::wanted::MemberFilter;
use crate::pipeline::engine::Counter;
use crate::remote;
use crate::table::{FORMAT_KEY, TableError, TableFile, check_format};

mod dataset;
mod embeddings;
mod folder;
mod located;
mod planned;
mod rows;
mod source;
mod tar;

pub use dataset::{DatasetFiles, StoredImages};
pub use embeddings::{ENCODER_KEY, Embeddings, SETTINGS_KEY};
pub use folder::Folder;
pub use located::{Located, Place};
pub use planned::PlannedFiles;
pub use rows::TableRows;
pub use source::{Entries, Listed, Source};
pub use tar::Members;

/// How many files are found and wanted in what holds several; a gzipped tar is unpacked for it. None for a tar elsewhere, which would have to
/// be fetched.
///
/// # Errors
/// A Parquet file that cannot be read.
pub fn count_in(found: &listing::Entry, wanted: &MemberFilter) -> Result<Option<u64>, TableError> {
    match found.kind {
        Kind::Parquet { .. } => parquet_info(&found.path, None).map(|info| Some(info.num_rows)),
        _ if remote::is_url(&found.path) => Ok(None),
        _ => Ok(Some(tar::Members::count(&found.path, true, wanted.clone()).unwrap_or_default())),
    }
}

/// A counter for sources that know how many they are.
pub fn known_total(rows: u64) -> Option<Counter<'static>> {
    Some(Box::new(move |total, _| total.store(rows, Ordering::Relaxed)))
}

/// What a Parquet file's footer says.
pub(crate) struct ParquetInfo {
    pub schema: SchemaRef,
    pub num_rows: u64,
    pub metadata: HashMap<String, String>,
}

/// Reads a footer and checks its format, where it has one, against `format`.
pub(crate) fn parquet_info(path: &Path, format: Option<&str>) -> Result<ParquetInfo, TableError> {
    let file = TableFile::open(path)?;
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|source| TableError::Parquet { path: path.into(), source })?;
    let footer = builder.metadata().file_metadata();
    let pairs = footer.key_value_metadata().into_iter().flatten();
    let metadata: HashMap<_, _> = pairs.filter_map(|pair| Some((pair.key.clone(), pair.value.clone()?))).collect();
    if let (Some(found), Some(wanted)) = (metadata.get(FORMAT_KEY), format) {
        check_format(path, found, wanted)?;
    }
    Ok(ParquetInfo { schema: builder.schema().clone(), num_rows: footer.num_rows().max(0) as u64, metadata })
}
