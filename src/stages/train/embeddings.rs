//! The embeddings that `embed` writes, row by row.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Float16Type, Float32Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest, Sha256};

use crate::files;
use crate::table;

const FORMAT: &str = "embeddings/1";

/// Parquet parts with image_id and embedding.
pub struct EmbeddingParts {
    parts: Vec<PathBuf>,
    /// Length of an embedding, D.
    pub embedding_dim: usize,
    /// Whether they are of unit length, as the files say.
    pub normalized: bool,
}

impl EmbeddingParts {
    /// A folder of `part-*.parquet`, or one Parquet file.
    pub fn open(path: &Path) -> Result<Self> {
        let mut parts = vec![];
        if path.is_dir() {
            for entry in std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
                let entry = entry?.path();
                let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if name.starts_with("part-") && name.ends_with(".parquet") {
                    parts.push(entry);
                }
            }
            parts.sort();
        } else if path.is_file() {
            parts.push(path.to_path_buf());
        }
        let Some(first) = parts.first().cloned() else {
            bail!("{}: no part-*.parquet there; `clipcap embed --out FOLDER` makes them", path.display());
        };
        let (embedding_dim, normalized) = facts(&first)?;
        for part in &parts[1..] {
            if facts(part)? != (embedding_dim, normalized) {
                bail!("{}: embeddings of another length or normalization than in {}", part.display(), first.display());
            }
        }
        Ok(Self { parts, embedding_dim, normalized })
    }

    /// A hash of all parts' bytes.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        for part in &self.parts {
            hasher.update(files::sha256_file(part).with_context(|| format!("cannot read {}", part.display()))?);
        }
        Ok(files::hex(&hasher.finalize()))
    }

    /// Every row as (image_id, embedding).
    pub fn rows(&self) -> impl Iterator<Item = Result<(String, Vec<f32>)>> + '_ {
        self.parts.iter().flat_map(|part| {
            let batches: Box<dyn Iterator<Item = Result<Vec<_>>>> = match table::open(part, Some(FORMAT)) {
                Err(error) => Box::new(std::iter::once(Err(error.into()))),
                Ok(reader) => Box::new(reader.map(move |batch| {
                    let rows = batch.map_err(anyhow::Error::from).and_then(|batch| rows_of(&batch, part));
                    rows.with_context(|| format!("cannot read {}", part.display()))
                })),
            };
            batches.flat_map(|rows| match rows {
                Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
                Err(error) => vec![Err(error)],
            })
        })
    }
}

/// Length and normalization of a part's embeddings, from its footer.
fn facts(part: &Path) -> Result<(usize, bool)> {
    let file = File::open(part).with_context(|| format!("cannot open {}", part.display()))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)
        .with_context(|| format!("{}: not a readable Parquet file", part.display()))?;
    let field = builder.schema().field_with_name("embedding");
    let length = match field.map(|field| field.data_type()) {
        Ok(DataType::FixedSizeList(item, length)) if matches!(item.data_type(), DataType::Float32 | DataType::Float16) => *length,
        Ok(other) => bail!("{}: the column embedding is {other}, not a fixed-size list of float32 or float16", part.display()),
        Err(_) => bail!("{}: there is no column embedding", part.display()),
    };
    let pairs = builder.metadata().file_metadata().key_value_metadata();
    let normalized = pairs.into_iter().flatten().find(|pair| pair.key == "normalized").and_then(|pair| pair.value.clone());
    Ok((usize::try_from(length)?, normalized.as_deref() == Some("true")))
}

fn rows_of(batch: &RecordBatch, part: &Path) -> Result<Vec<(String, Vec<f32>)>> {
    let image_ids = table::column::<StringArray>(batch, "image_id", part)?;
    let lists = batch.column_by_name("embedding").and_then(|column| column.as_fixed_size_list_opt());
    let lists = lists.context("the column embedding is not a fixed-size list")?;
    let row = |row: usize| {
        let values = lists.value(row);
        let values = match values.as_primitive_opt::<Float32Type>() {
            Some(values) => values.values().to_vec(),
            None => {
                let halves = values.as_primitive_opt::<Float16Type>().context("the column embedding holds no floats")?;
                halves.values().iter().map(|half| half.to_f32()).collect()
            }
        };
        Ok((image_ids.value(row).to_string(), values))
    };
    (0..batch.num_rows()).map(row).collect()
}
