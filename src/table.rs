//! Parquet tables as every stage writes and reads them: zstd, atomic, and marked with the format and its version.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, StringArray};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use crate::files::AtomicFile;
use crate::remote;

mod file;

pub(crate) use file::TableFile;

/// The key in manifests, ledgers and Parquet footers that says `KIND/MAJOR`.
pub const FORMAT_KEY: &str = "clipcap.format";

/// In a folder that holds several tables: tells Hugging Face's `load_dataset(FOLDER, NAME)` which file is which. Other readers take no
/// notice of it.
pub const CONFIGS: &str = ".huggingface.yaml";

/// The text of [`CONFIGS`]: tables with their names and their files; the first is the one that a reader gets who asks for none.
pub fn configs(tables: &[(&str, &str)]) -> String {
    let mut text = String::from("configs:\n");
    for (at, (name, files)) in tables.iter().enumerate() {
        text += &format!("- config_name: {name}\n  data_files: {files}\n");
        if at == 0 {
            text += "  default: true\n";
        }
    }
    text
}

/// What can be wrong with a table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file cannot be opened, or its finished bytes cannot be put in its place.
    #[error("{}: {source}", remote::shown(path))]
    Io {
        /// The table.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What is there is no Parquet file, or not a whole one.
    #[error("{}: not a readable Parquet file ({source})", remote::shown(path))]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The Parquet reader's reason.
        source: parquet::errors::ParquetError,
    },
    /// A checksum in the file is not that of its bytes.
    #[error("{}: damaged: its bytes are not those that were written (a bad disk or a power cut)", remote::shown(path))]
    Damaged {
        /// The table.
        path: PathBuf,
    },
    /// Rows cannot be written.
    #[error("{}: cannot write it ({source})", remote::shown(path))]
    Write {
        /// The table that was to be.
        path: PathBuf,
        /// The Parquet writer's reason: a full disk, most often.
        source: parquet::errors::ParquetError,
    },
    /// The rows of a file that opens cannot be read.
    #[error("{}: {source}", remote::shown(path))]
    Arrow {
        /// The file.
        path: PathBuf,
        /// Arrow's reason.
        source: arrow::error::ArrowError,
    },
    /// A newer clipcap wrote the file.
    #[error(
        "{}: this file says {found}, and this clipcap reads {wanted}: use the clipcap that wrote it, or a newer one",
        remote::shown(path)
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format, `KIND/MAJOR`.
        found: String,
        /// The newest format that is read here.
        wanted: String,
    },
    /// The file is a table of another kind: a caption table where a dataset is needed.
    #[error("{}: this is {found} (`KIND/VERSION`), and not {wanted}", remote::shown(path))]
    Kind {
        /// The file.
        path: PathBuf,
        /// Its format, `KIND/MAJOR`.
        found: String,
        /// The format that is needed.
        wanted: String,
    },
    /// A column is not there, or has another type.
    #[error("{}: the column {column} is missing; it has: {}", remote::shown(path), present.join(", "))]
    MissingColumn {
        /// The table.
        path: PathBuf,
        /// The column's name.
        column: String,
        /// The columns there are, each as `NAME (TYPE)`.
        present: Vec<String>,
    },
}

/// Writes one Parquet file; the final name appears with [`finish`](Self::finish).
pub struct ParquetSink {
    path: PathBuf,
    writer: ArrowWriter<AtomicFile>,
}

impl ParquetSink {
    /// `format` is `KIND/MAJOR`, such as `captions/1`; it goes into the footer under [`FORMAT_KEY`].
    pub fn create(path: &Path, schema: SchemaRef, format: &str) -> Result<Self, TableError> {
        Self::create_with(path, schema, format, &[])
    }

    /// As [`create`](Self::create), with more pairs for the footer.
    pub fn create_with(path: &Path, schema: SchemaRef, format: &str, extra: &[(&str, String)]) -> Result<Self, TableError> {
        let file = AtomicFile::create(path).map_err(|source| TableError::Io { path: path.into(), source })?;
        let writer = ArrowWriter::try_new(file, schema, Some(properties(format, extra)))
            .map_err(|source| TableError::Write { path: path.into(), source })?;
        Ok(Self { path: path.into(), writer })
    }

    /// Adds rows.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), TableError> {
        self.writer.write(batch).map_err(|source| TableError::Write { path: self.path.clone(), source })
    }

    /// Ends the current row group, so that memory stays flat while a long table is written.
    pub fn flush(&mut self) -> Result<(), TableError> {
        self.writer.flush().map_err(|source| TableError::Write { path: self.path.clone(), source })
    }

    /// Ends the file.
    pub fn finish(self) -> Result<(), TableError> {
        let Self { path, writer } = self;
        let file = writer.into_inner().map_err(|source| TableError::Write { path: path.clone(), source })?;
        file.commit().map_err(|source| TableError::Io { path, source })
    }
}

fn properties(format: &str, extra: &[(&str, String)]) -> WriterProperties {
    let mut metadata = vec![KeyValue::new(FORMAT_KEY.into(), format.to_string())];
    metadata.extend(extra.iter().map(|(key, value)| KeyValue::new(key.to_string(), value.clone())));
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("3 is a zstd level")))
        .set_created_by("clipcap".into())
        .set_key_value_metadata(Some(metadata))
        .build()
}

/// A small table as the bytes of a Parquet file; `path` is for messages.
pub fn to_bytes(path: &Path, batch: &RecordBatch, format: &str) -> Result<Vec<u8>, TableError> {
    bytes_of(path, batch, properties(format, &[]))
}

fn bytes_of(path: &Path, batch: &RecordBatch, properties: WriterProperties) -> Result<Vec<u8>, TableError> {
    let parquet = |source| TableError::Write { path: path.into(), source };
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).map_err(parquet)?;
    writer.write(batch).map_err(parquet)?;
    writer.into_inner().map_err(parquet)
}

/// A small table as the bytes of a Parquet file with its own checksum; `path` is for messages.
///
/// The footer has 8 digits of CRC-32C over the file, in which they themselves count as zeros: it stays a Parquet file like any other.
pub fn to_checked_bytes(path: &Path, batch: &RecordBatch, format: &str) -> Result<Vec<u8>, TableError> {
    let mut bytes = bytes_of(path, batch, properties(format, &[(CHECKSUM_KEY, NO_CHECKSUM.into())]))?;
    let at = checksum_place(&bytes).ok_or_else(|| TableError::Damaged { path: path.into() })?;
    let digits = format!("{:08x}", crc32c::crc32c(&bytes));
    bytes[at..at + 8].copy_from_slice(digits.as_bytes());
    Ok(bytes)
}

/// Reads such a file, and says whether it holds a checksum: one without is damaged, or older than checksums.
///
/// # Errors
/// It cannot be read, or its checksum is another's.
pub fn read_checked(path: &Path) -> Result<(Bytes, bool), TableError> {
    let mut bytes = std::fs::read(path).map_err(|source| TableError::Io { path: path.into(), source })?;
    let Some(at) = checksum_place(&bytes) else { return Ok((bytes.into(), false)) };
    let mut digits = [0; 8];
    digits.copy_from_slice(&bytes[at..at + 8]);
    bytes[at..at + 8].copy_from_slice(NO_CHECKSUM.as_bytes());
    if format!("{:08x}", crc32c::crc32c(&bytes)).as_bytes() != digits {
        return Err(TableError::Damaged { path: path.into() });
    }
    Ok((bytes.into(), true))
}

const CHECKSUM_KEY: &str = "clipcap.crc32c";
const NO_CHECKSUM: &str = "00000000";

/// Where the digits of the checksum are: behind their key, a type and their length, at the end of the file.
fn checksum_place(bytes: &[u8]) -> Option<usize> {
    let key = [CHECKSUM_KEY.as_bytes(), &[0x18, NO_CHECKSUM.len() as u8]].concat();
    let at = bytes.windows(key.len()).rposition(|window| window == key)? + key.len();
    (at + NO_CHECKSUM.len() <= bytes.len()).then_some(at)
}

/// Opens a Parquet file of ours or of others. `kind` is checked against the footer's [`FORMAT_KEY`] where there is one:
/// a higher major version is refused, and so is another kind.
pub fn open(path: &Path, kind: Option<&str>) -> Result<ParquetRecordBatchReader, TableError> {
    let file = File::open(path).map_err(|source| TableError::Io { path: path.into(), source })?;
    let parquet = |source| TableError::Parquet { path: path.into(), source };
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(parquet)?;
    if let Some(kind) = kind {
        let pairs = builder.metadata().file_metadata().key_value_metadata();
        let found = pairs.into_iter().flatten().find(|pair| pair.key == FORMAT_KEY).and_then(|pair| pair.value.clone());
        if let Some(found) = found {
            check_format(path, &found, kind)?;
        }
    }
    builder.with_batch_size(4096).build().map_err(parquet)
}

/// A Parquet file's rows, as `read` makes them of a batch, in order.
///
/// # Errors
/// See [`open`]; further ones, of `read` too, are the rows'.
pub fn rows<T, F: Fn(&RecordBatch, &Path) -> anyhow::Result<Vec<T>>>(
    path: &Path,
    kind: Option<&str>,
    read: F,
) -> Result<impl Iterator<Item = anyhow::Result<T>> + use<T, F>, TableError> {
    let batches = open(path, kind)?;
    let path = path.to_path_buf();
    Ok(batches.flat_map(move |batch| match batch.map_err(anyhow::Error::from).and_then(|batch| read(&batch, &path)) {
        Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
        Err(error) => vec![Err(error.context(format!("cannot read {}", remote::shown(&path))))],
    }))
}

/// The cells of some columns of text, row by row.
///
/// # Errors
/// See [`rows`].
pub fn texts<const N: usize>(
    path: &Path,
    kind: Option<&str>,
    names: [&'static str; N],
) -> Result<impl Iterator<Item = anyhow::Result<[Option<String>; N]>> + use<N>, TableError> {
    rows(path, kind, move |batch, path| {
        let columns = names.iter().map(|name| column::<StringArray>(batch, name, path)).collect::<Result<Vec<_>, _>>()?;
        let cell = |at: usize, row| columns[at].is_valid(row).then(|| columns[at].value(row).to_string());
        Ok((0..batch.num_rows()).map(|row| std::array::from_fn(|at| cell(at, row))).collect())
    })
}

/// Refuses `found` (`KIND/MAJOR`) unless it is `wanted` (`KIND/MAJOR`) with the same or a lower major version.
pub fn check_format(path: &Path, found: &str, wanted: &str) -> Result<(), TableError> {
    let split = |text: &str| text.split_once('/').and_then(|(kind, major)| Some((kind.to_string(), major.parse::<u32>().ok()?)));
    match (split(found), split(wanted)) {
        (Some((a, m)), Some((b, n))) if a == b && m <= n => Ok(()),
        (Some((a, _)), Some((b, _))) if a != b => {
            Err(TableError::Kind { path: path.into(), found: found.into(), wanted: wanted.into() })
        }
        _ => Err(TableError::Version { path: path.into(), found: found.into(), wanted: wanted.into() }),
    }
}

/// A named column as a concrete Arrow array type, or an error that lists the columns there are.
pub fn column<'a, A: 'static>(batch: &'a RecordBatch, name: &str, path: &Path) -> Result<&'a A, TableError> {
    batch.column_by_name(name).and_then(|array| array.as_any().downcast_ref::<A>()).ok_or_else(|| TableError::MissingColumn {
        path: path.into(),
        column: name.into(),
        present: batch.schema().fields().iter().map(|f| format!("{} ({})", f.name(), f.data_type())).collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Int32Array;
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    #[test]
    fn a_table_comes_back_and_a_newer_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let schema =
            Arc::new(Schema::new(vec![Field::new("id", DataType::Int32, false), Field::new("text", DataType::Utf8, true)]));
        let batch = RecordBatch::try_new(
            schema.clone(),
            vec![Arc::new(Int32Array::from(vec![1, 2])), Arc::new(StringArray::from(vec![Some("狗"), None]))],
        )
        .unwrap();
        let mut sink = ParquetSink::create(&path, schema, "captions/1").unwrap();
        sink.write(&batch).unwrap();
        sink.finish().unwrap();
        let back: Vec<_> = open(&path, Some("captions/1")).unwrap().map(|b| b.unwrap()).collect();
        assert_eq!(back, std::slice::from_ref(&batch));
        assert!(column::<StringArray>(&back[0], "text", &path).is_ok());
        assert!(column::<StringArray>(&back[0], "id", &path).is_err());
        assert!(matches!(open(&path, Some("embeddings/1")), Err(TableError::Kind { .. })));
        assert!(check_format(&path, "captions/2", "captions/1").is_err());
        let cells: Vec<_> = texts(&path, None, ["text", "text"]).unwrap().map(Result::unwrap).collect();
        assert_eq!(cells, [[Some("狗".to_string()), Some("狗".to_string())], [None, None]]);
        let error = texts(&path, None, ["id"]).unwrap().next().unwrap().unwrap_err();
        assert!(format!("{error:#}").contains("cannot read") && format!("{error:#}").contains("text (Utf8)"), "{error:#}");
    }
}
