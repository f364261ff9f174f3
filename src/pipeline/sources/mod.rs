//! Where images come from: folders of files, a dataset's stored images, embeddings made before.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;

use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::dataset::wanted::MemberFilter;
use crate::pipeline::Counter;
use crate::table::{FORMAT_KEY, TableError, check_format};

mod dataset;
mod embeddings;
mod folder;
mod located;
mod planned;
mod tar;

pub use dataset::{DatasetFiles, StoredImages};
pub(crate) use embeddings::parse_hash;
pub use embeddings::{ENCODER_KEY, Embeddings, SETTINGS_KEY};
pub use folder::Folder;
pub use located::{Located, Place};
pub use planned::PlannedFiles;
pub use tar::Members;

/// How many members of a tar are found and wanted; a gzipped one is unpacked for it.
pub fn count_tar(path: &Path, wanted: MemberFilter) -> u64 {
    tar::Members::count(path, true, wanted).unwrap_or_default()
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
    let file = File::open(path).map_err(|source| TableError::Io { path: path.into(), source })?;
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
