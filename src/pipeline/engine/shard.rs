//! Shards: small Parquet files in the work folder, each holding the records of a few images, each there whole or not at all.
//!
//! A checksum over the file tells a shard that a bad disk changed: what it held is computed again.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, FixedSizeBinaryArray, FixedSizeBinaryBuilder, Int64Array, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::record::{Record, Value};
use crate::files::{ContentHash, Stat, write_atomic};
use crate::pipeline::artifact::Failure;
use crate::table::{self, FORMAT_KEY, TableError};

const FORMAT: &str = "shard/2";

/// The format before there were checksums.
const WITHOUT_CHECKSUM: &str = "shard/1";

/// What the index needs of a record.
pub struct Key {
    pub image_path: String,
    pub sha256: Option<ContentHash>,
    pub failed: bool,
}

/// Writes records, in order, as one shard.
pub fn write<V: Value>(path: &Path, records: &[Arc<Record<V>>]) -> Result<(), TableError> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("image_path", DataType::Utf8, false),
        Field::new("size_bytes", DataType::UInt64, true),
        Field::new("mtime_ns", DataType::Int64, true),
        Field::new("ctime_ns", DataType::Int64, true),
        Field::new("inode", DataType::UInt64, true),
        Field::new("sha256", DataType::FixedSizeBinary(32), true),
        Field::new("reason", DataType::Utf8, true),
        Field::new("message", DataType::Utf8, true),
        Field::new(V::COLUMN, V::data_type(), true),
    ]));
    let arrow = |source| TableError::Arrow { path: path.into(), source };
    let stats = || records.iter().map(|r| r.stat);
    let failures = || records.iter().map(|r| r.result.as_ref().err());
    let mut hashes = FixedSizeBinaryBuilder::with_capacity(records.len(), 32);
    for record in records {
        match &record.sha256 {
            Some(hash) => hashes.append_value(hash.bytes()).map_err(arrow)?,
            None => hashes.append_null(),
        }
    }
    let values: Vec<_> = records.iter().map(|r| r.result.as_ref().ok()).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(records.iter().map(|r| &r.image_path))),
        Arc::new(UInt64Array::from_iter(stats().map(|s| s.map(|s| s.size_bytes)))),
        Arc::new(Int64Array::from_iter(stats().map(|s| s.map(|s| s.mtime_ns)))),
        Arc::new(Int64Array::from_iter(stats().map(|s| s.map(|s| s.ctime_ns)))),
        Arc::new(UInt64Array::from_iter(stats().map(|s| s.map(|s| s.inode)))),
        Arc::new(hashes.finish()),
        Arc::new(StringArray::from_iter(failures().map(|f| f.map(|f| f.reason.as_str())))),
        Arc::new(StringArray::from_iter(failures().map(|f| f.map(|f| f.message.as_str())))),
        V::to_column(&values),
    ];
    let batch = RecordBatch::try_new(schema.clone(), columns).map_err(arrow)?;
    let bytes = table::to_checked_bytes(path, &batch, FORMAT)?;
    write_atomic(path, &bytes).map_err(|source| TableError::Io { path: path.into(), source })
}

/// Opens a shard whose bytes are those that were written.
fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<Bytes>, TableError> {
    let (bytes, has_checksum) = table::read_checked(path)?;
    let parquet = |source| TableError::Parquet { path: path.into(), source };
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(parquet)?;
    let pairs = builder.metadata().file_metadata().key_value_metadata();
    let format = pairs.into_iter().flatten().find(|pair| pair.key == FORMAT_KEY).and_then(|pair| pair.value.as_deref());
    table::check_format(path, format.unwrap_or_default(), FORMAT)?;
    if !has_checksum && format != Some(WITHOUT_CHECKSUM) {
        return Err(TableError::Damaged { path: path.into() });
    }
    Ok(builder)
}

/// Reads a shard back.
pub fn read<V: Value>(path: &Path) -> Result<Vec<Record<V>>, TableError> {
    let mut records = Vec::new();
    let reader = open(path)?.build().map_err(|source| TableError::Parquet { path: path.into(), source })?;
    for batch in reader {
        let batch = batch.map_err(|source| TableError::Arrow { path: path.into(), source })?;
        let paths: &StringArray = table::column(&batch, "image_path", path)?;
        let sizes: &UInt64Array = table::column(&batch, "size_bytes", path)?;
        let mtimes: &Int64Array = table::column(&batch, "mtime_ns", path)?;
        let ctimes: &Int64Array = table::column(&batch, "ctime_ns", path)?;
        let inodes: &UInt64Array = table::column(&batch, "inode", path)?;
        let hashes: &FixedSizeBinaryArray = table::column(&batch, "sha256", path)?;
        let reasons: &StringArray = table::column(&batch, "reason", path)?;
        let messages: &StringArray = table::column(&batch, "message", path)?;
        let values =
            batch.column_by_name(V::COLUMN).and_then(|c| V::from_column(c)).ok_or_else(|| missing(&batch, V::COLUMN, path))?;
        for (row, value) in values.into_iter().enumerate() {
            let stat = [sizes.is_valid(row), mtimes.is_valid(row), ctimes.is_valid(row), inodes.is_valid(row)].iter().all(|v| *v);
            let result = match value {
                Some(value) => Ok(value),
                None if reasons.is_valid(row) => {
                    let message = if messages.is_valid(row) { messages.value(row).into() } else { String::new() };
                    Err(Failure { reason: reasons.value(row).into(), message })
                }
                None => return Err(missing(&batch, "reason", path)),
            };
            records.push(Record {
                image_path: paths.value(row).into(),
                stat: stat.then(|| Stat {
                    size_bytes: sizes.value(row),
                    mtime_ns: mtimes.value(row),
                    ctime_ns: ctimes.value(row),
                    inode: inodes.value(row),
                }),
                sha256: hash_at(hashes, row),
                result,
            });
        }
    }
    Ok(records)
}

/// Reads the columns that the index is made of, and no others.
pub fn read_keys(path: &Path) -> Result<Vec<Key>, TableError> {
    let parquet = |source| TableError::Parquet { path: path.into(), source };
    let builder = open(path)?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["image_path", "sha256", "reason"]);
    let mut keys = Vec::new();
    for batch in builder.with_projection(mask).build().map_err(parquet)? {
        let batch = batch.map_err(|source| TableError::Arrow { path: path.into(), source })?;
        let paths: &StringArray = table::column(&batch, "image_path", path)?;
        let hashes: &FixedSizeBinaryArray = table::column(&batch, "sha256", path)?;
        let reasons: &StringArray = table::column(&batch, "reason", path)?;
        keys.extend((0..batch.num_rows()).map(|row| Key {
            image_path: paths.value(row).into(),
            sha256: hash_at(hashes, row),
            failed: reasons.is_valid(row),
        }));
    }
    Ok(keys)
}

fn hash_at(hashes: &FixedSizeBinaryArray, row: usize) -> Option<ContentHash> {
    let bytes: [u8; 32] = hashes.value(row).try_into().ok().filter(|_| hashes.is_valid(row))?;
    Some(bytes.into())
}

fn missing(batch: &RecordBatch, column: &str, path: &Path) -> TableError {
    TableError::MissingColumn {
        path: path.into(),
        column: column.into(),
        present: batch.schema().fields().iter().map(|f| format!("{} ({})", f.name(), f.data_type())).collect(),
    }
}
