//! Captions from Parquet: our caption tables and datasets, and tables of others with columns of the usual names.

use std::path::Path;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;

use super::builder::{Builder, Row};
use super::captions::Details;
use super::delimited::{CAPTION_COLUMNS, ID_COLUMNS, INDEX_COLUMNS, missing_columns};
use crate::table;

pub(super) fn read(path: &Path, split: Option<&str>, builder: &mut Builder) -> Result<()> {
    for batch in table::open(path, None)? {
        let batch = batch.with_context(|| format!("{}: damaged", path.display()))?;
        read_batch(&batch, path, split, builder)?;
    }
    Ok(())
}

fn read_batch(batch: &RecordBatch, path: &Path, split: Option<&str>, builder: &mut Builder) -> Result<()> {
    let find = |names: &[&str]| names.iter().find_map(|name| batch.column_by_name(name));
    let (Some(ids), Some(captions)) = (find(&ID_COLUMNS), find(&CAPTION_COLUMNS)) else {
        let schema = batch.schema();
        return Err(missing_columns(path, &schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>()));
    };
    let (ids, captions) = (text(ids, path)?, text(captions, path)?);
    let optional = |name: &str| batch.column_by_name(name).map(|column| text(column, path)).transpose();
    let (paths, hashes, splits, reasons) =
        (optional("image_path")?, optional("sha256")?, optional("split")?, optional("finish_reason")?);
    let indices = find(&INDEX_COLUMNS).map(|column| typed::<Int64Array>(column, &DataType::Int64, path)).transpose()?;
    let lengths = find(&["num_tokens"]).map(|column| typed::<Int64Array>(column, &DataType::Int64, path)).transpose()?;
    let logprobs = find(&["logprob"]).map(|column| typed::<Float64Array>(column, &DataType::Float64, path)).transpose()?;
    if split.is_some() && splits.is_none() {
        bail!("{} has no split column, and --split was given", path.display());
    }
    for row in 0..batch.num_rows() {
        let value = |column: &Option<StringArray>| column.as_ref().filter(|c| c.is_valid(row)).map(|c| c.value(row).to_string());
        let number = |column: &Option<Int64Array>| column.as_ref().filter(|c| c.is_valid(row)).map(|c| c.value(row));
        let row_split = value(&splits);
        if !builder.wants(row_split.as_deref(), split) {
            continue;
        }
        if ids.is_null(row) {
            bail!("{}: a row has no image id", path.display());
        }
        let added = builder.add(Row {
            id: ids.value(row),
            alias: value(&paths).as_deref(),
            sha256: value(&hashes).as_deref(),
            split: row_split.as_deref(),
            index: number(&indices),
            caption: captions.is_valid(row).then(|| captions.value(row)),
            details: Details {
                logprob: logprobs.as_ref().filter(|c| c.is_valid(row)).map(|c| c.value(row)),
                num_tokens: number(&lengths),
                finish_reason: value(&reasons),
            },
        });
        added.with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Any kind of text or whole number, as text.
fn text(column: &ArrayRef, path: &Path) -> Result<StringArray> {
    typed(column, &DataType::Utf8, path)
}

fn typed<A: Array + Clone + 'static>(column: &ArrayRef, wanted: &DataType, path: &Path) -> Result<A> {
    let found = cast(column, wanted).ok().and_then(|array| array.as_any().downcast_ref::<A>().cloned());
    found.with_context(|| format!("{}: a column of type {} cannot be read as {wanted}", path.display(), column.data_type()))
}
