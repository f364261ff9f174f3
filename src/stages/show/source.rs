//! What may be shown: Parquet tables, text tables, and the folders of ours that hold such.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatchReader;
use polars::prelude::{DataFrame, ParquetReader, SerReader};

use super::plain::{self, Plain};
use crate::dataset::captions::tables_of;
use crate::pipeline::job::JobFolder;
use crate::table;

/// Rows in memory at a time.
pub const CHUNK_ROWS: usize = 1 << 16;

/// An opened table.
pub enum OpenTable {
    /// One file, or several with the same columns.
    Parquet(Vec<PathBuf>),
    Plain(Plain),
}

/// The names of a table's columns.
pub struct Columns {
    /// Text, numbers and truth values.
    pub plain: Vec<String>,
    /// Others, and what they hold.
    pub others: Vec<(String, String)>,
}

/// Frames of at most [`CHUNK_ROWS`] rows.
pub type Frames<'a> = Box<dyn Iterator<Item = Result<DataFrame>> + 'a>;

impl OpenTable {
    /// Opens a table, or what a folder of ours holds.
    ///
    /// # Errors
    /// Nothing is there, or nothing that has rows: the message says which command looks into it.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        if path.is_dir() {
            return Ok(Self::Parquet(tables_in(path)?));
        }
        if !path.exists() {
            bail!("no such file or folder: {shown}");
        }
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if let Some(kind) = plain::Kind::of(&extension) {
            return Ok(Self::Plain(Plain::open(path, kind)?));
        }
        match extension.as_str() {
            "npy" => bail!("{shown} holds vectors and no names: show the folder that it lies in, or its metadata"),
            "json" => bail!("{shown} is not a table: use .parquet, .csv, .tsv, .jsonl or a folder that clipcap wrote"),
            "pt" | "safetensors" | "bin" => {
                bail!("{shown} holds weights: `clipcap model inspect BUNDLE` says what a bundle holds")
            }
            _ => Ok(Self::Parquet(vec![path.into()])),
        }
    }

    /// Columns that can be shown, and others with what they hold.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn columns(&self) -> Result<Columns> {
        let files = match self {
            Self::Plain(plain) => return Ok(Columns { plain: plain.names().to_vec(), others: Vec::new() }),
            Self::Parquet(files) => files,
        };
        let schema = table::open(&files[0], None)?.schema();
        let (plain, others): (Vec<_>, Vec<_>) = schema.fields().iter().partition(|field| is_plain(field.data_type()));
        let others = others.iter().map(|field| (field.name().clone(), field.data_type().to_string())).collect();
        Ok(Columns { plain: plain.iter().map(|field| field.name().clone()).collect(), others })
    }

    /// The rows' cells in these columns.
    pub fn frames<'a>(&'a self, columns: &'a [String]) -> Frames<'a> {
        match self {
            Self::Plain(plain) => plain.frames(columns),
            Self::Parquet(files) => Box::new(files.iter().flat_map(move |path| parquet_frames(path, columns))),
        }
    }

    /// How many rows there are. They are not read for it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn num_rows(&self) -> Result<u64> {
        let files = match self {
            Self::Plain(plain) => return plain.num_rows(),
            Self::Parquet(files) => files,
        };
        let rows = |path: &PathBuf| reader(path)?.num_rows().with_context(|| format!("cannot read {}", path.display()));
        files.iter().map(|path| Ok(rows(path)? as u64)).sum()
    }
}

/// The tables of a folder that a command of ours wrote.
fn tables_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let shown = folder.display();
    if folder.join(crate::models::bundle::MANIFEST).is_file() {
        bail!("{shown} is a model bundle: `clipcap model inspect {shown}` says what it holds");
    }
    let job = JobFolder::new(folder);
    if let Some(plan) = job.find_plan()? {
        let records = (0..plan.num_shards).map(|shard| job.record(&plan, shard)).collect::<Result<Vec<_>>>()?;
        let tables: Vec<PathBuf> = records.iter().flatten().map(|record| job.result(&record.table.name)).collect();
        if tables.is_empty() {
            bail!("{shown}: no shard of this job is finished: `clipcap job status {shown}` says how far it is");
        }
        return Ok(tables);
    }
    // clip-retrieval's layout of embeddings: vectors apart from names.
    let metadata = folder.join("metadata");
    if folder.join("img_emb").is_dir() && metadata.is_dir() {
        return Ok(tables_of(&metadata)?);
    }
    let metrics = folder.join("metrics.parquet");
    if metrics.is_file() {
        return Ok(vec![metrics]);
    }
    Ok(tables_of(folder)?)
}

fn parquet_frames<'a>(path: &'a Path, columns: &'a [String]) -> Frames<'a> {
    let mut offset = Some(0);
    Box::new(std::iter::from_fn(move || {
        let at = offset?;
        let read = || -> Result<DataFrame> {
            let reader = reader(path)?.with_columns(Some(columns.to_vec())).with_slice(Some((at, CHUNK_ROWS)));
            reader.finish().with_context(|| format!("cannot read {}", path.display()))
        };
        let frame = read();
        offset = frame.as_ref().ok().filter(|frame| frame.height() == CHUNK_ROWS).map(|frame| at + frame.height());
        Some(frame)
    }))
}

fn reader(path: &Path) -> Result<ParquetReader<File>> {
    Ok(ParquetReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?))
}

/// Whether a cell is a word, a number or a truth value.
fn is_plain(kind: &DataType) -> bool {
    use DataType::{Boolean, Float32, Float64, Int32, Int64, LargeUtf8, UInt32, UInt64, Utf8, Utf8View};
    matches!(kind, Boolean | Float32 | Float64 | Int32 | Int64 | LargeUtf8 | UInt32 | UInt64 | Utf8 | Utf8View)
}
