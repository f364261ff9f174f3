//! Parquet written on every core: row groups are built and compressed side by side, and appended in order.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use rayon::prelude::*;

use crate::files::AtomicFile;
use crate::table::{FORMAT_KEY, TableError};

/// Row groups built at a time, which bounds the memory of a write.
const GROUPS_IN_FLIGHT: usize = 16;

/// How row groups are written. Columns are named by the path of their leaf.
#[derive(Debug, Clone, Default)]
pub struct GroupOptions<'a> {
    /// Columns whose values rarely repeat: no dictionary is tried for them.
    pub plain: &'a [&'a [&'a str]],
    /// Columns of whole numbers that grow in small steps, which are stored in place of them.
    pub delta: &'a [&'a [&'a str]],
    /// Columns that nobody looks for by their least and greatest value.
    pub without_range: &'a [&'a [&'a str]],
}

/// Writes `groups` row groups that `build` makes, the same bytes on any number of threads. The file is complete, and not committed.
///
/// `build` gives the columns of a group. Text may come as dictionaries; the file has the type of the schema.
pub fn write_groups(
    path: &Path,
    schema: &SchemaRef,
    format: &str,
    options: &GroupOptions,
    groups: usize,
    build: impl Fn(usize) -> Result<Vec<ArrayRef>, ArrowError> + Sync,
) -> Result<AtomicFile, TableError> {
    let parquet = |source| TableError::Write { path: path.into(), source };
    let file = AtomicFile::create(path).map_err(|source| TableError::Io { path: path.into(), source })?;
    let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties(format, options))).map_err(parquet)?;
    let (writer, factory) = writer.into_serialized_writer().map_err(parquet)?;
    let all: Vec<usize> = (0..groups).collect();
    // Appending waits for the disk: a thread of its own does it while the next groups are compressed.
    let (built, built_groups) = sync_channel(GROUPS_IN_FLIGHT);
    std::thread::scope(|scope| {
        let appending = scope.spawn(move || append(writer, built_groups, groups));
        for wave in all.chunks(GROUPS_IN_FLIGHT) {
            let (factory, build) = (&factory, &build);
            rayon::scope_fifo(|scope| {
                for &group in wave {
                    let built = built.clone();
                    // Nobody receives any more where appending has failed, which is what is told then.
                    scope.spawn_fifo(move |_| drop(built.send((group, encode(group, schema, factory, build)))));
                }
            });
        }
        drop(built);
        appending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
    .map_err(parquet)
}

fn properties(format: &str, options: &GroupOptions) -> WriterProperties {
    let column = |path: &&[&str]| ColumnPath::new(path.iter().map(|part| part.to_string()).collect());
    let mut properties = WriterProperties::builder()
        // Level 1: text shrinks by a few percent less than at 3, in half the time.
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("1 is a zstd level")))
        .set_created_by("clipcap".into())
        .set_key_value_metadata(Some(vec![KeyValue::new(FORMAT_KEY.into(), format.to_string())]))
        // Whole groups can be skipped by their ids; no page index is kept.
        .set_statistics_enabled(EnabledStatistics::Chunk);
    for (paths, encoding) in [(options.plain, Encoding::PLAIN), (options.delta, Encoding::DELTA_BINARY_PACKED)] {
        for column in paths.iter().map(column) {
            properties = properties.set_column_dictionary_enabled(column.clone(), false).set_column_encoding(column, encoding);
        }
    }
    for column in options.without_range.iter().map(column) {
        properties = properties.set_column_statistics_enabled(column, EnabledStatistics::None);
    }
    properties.build()
}

type Built = (usize, Result<Vec<ArrowColumnChunk>, ParquetError>);

/// Appends row groups in their order, whatever order they come in.
fn append(
    mut writer: SerializedFileWriter<AtomicFile>,
    built: Receiver<Built>,
    groups: usize,
) -> Result<AtomicFile, ParquetError> {
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    for (group, chunks) in built {
        waiting.insert(group, chunks?);
        while let Some(chunks) = waiting.remove(&next) {
            let mut group = writer.next_row_group()?;
            for chunk in chunks {
                chunk.append_to_row_group(&mut group)?;
            }
            group.close()?;
            next += 1;
            // What follows the last group is waited for when the file is committed.
            if next < groups {
                writer.flush()?;
                writer.inner().sync_written()?;
            }
        }
    }
    writer.into_inner()
}

fn encode(
    group: usize,
    schema: &SchemaRef,
    factory: &ArrowRowGroupWriterFactory,
    build: &(impl Fn(usize) -> Result<Vec<ArrayRef>, ArrowError> + Sync),
) -> Result<Vec<ArrowColumnChunk>, ParquetError> {
    let columns = build(group)?;
    let mut leaves = Vec::new();
    for (field, array) in schema.fields().iter().zip(&columns) {
        leaves.extend(compute_leaves(field, array)?);
    }
    let columns: Vec<_> = factory.create_column_writers(group)?.into_iter().zip(leaves).collect();
    columns
        .into_par_iter()
        .map(|(mut writer, leaf)| {
            writer.write(&leaf)?;
            writer.close()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int32Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    use arrow::record_batch::RecordBatch;

    use super::*;

    #[test]
    fn groups_come_back_in_order_and_the_bytes_do_not_depend_on_threads() {
        let folder = tempfile::tempdir().unwrap();
        let schema: SchemaRef =
            Arc::new(Schema::new(vec![Field::new("n", DataType::Int32, false), Field::new("text", DataType::Utf8, true)]));
        let build = |group: usize| {
            let n: Vec<i32> = (0..100).map(|i| (group * 100 + i) as i32).collect();
            let text: Vec<Option<String>> = n.iter().map(|i| (i % 7 != 0).then(|| format!("文字 {i}"))).collect();
            Ok(vec![Arc::new(Int32Array::from(n)) as ArrayRef, Arc::new(StringArray::from(text))])
        };
        let write = |name: &str, threads: usize| {
            let path = folder.path().join(name);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                write_groups(
                    &path,
                    &schema,
                    "captions/1",
                    &GroupOptions { plain: &[&["text"]], delta: &[&["n"]], ..GroupOptions::default() },
                    40,
                    build,
                )
            })
            .unwrap()
            .commit()
            .unwrap();
            path
        };
        let (one, four) = (write("1", 1), write("4", 4));
        assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&four).unwrap());
        let back: Vec<RecordBatch> = crate::table::open(&one, Some("captions/1")).unwrap().map(|b| b.unwrap()).collect();
        let n: Vec<i32> =
            back.iter().flat_map(|b| b.column(0).as_any().downcast_ref::<Int32Array>().unwrap().values().to_vec()).collect();
        assert_eq!(n, (0..4000).collect::<Vec<i32>>());
    }
}
