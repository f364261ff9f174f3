//! Captions from Parquet: our caption tables and datasets, and tables of others with columns of the usual names.

use std::path::Path;

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;

use super::captions::Builder;
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
    let paths = batch.column_by_name("image_path").map(|column| text(column, path)).transpose()?;
    let indices = find(&INDEX_COLUMNS).map(|column| typed::<Int64Array>(column, &DataType::Int64, path)).transpose()?;
    let splits = match (split, batch.column_by_name("split")) {
        (Some(_), None) => bail!("{} has no split column, and --split was given", path.display()),
        (Some(wanted), Some(column)) => Some((wanted, text(column, path)?)),
        (None, _) => None,
    };
    let value = |column: &StringArray, row: usize| column.is_valid(row).then(|| column.value(row).to_string());
    for row in 0..batch.num_rows() {
        if splits.as_ref().is_some_and(|(wanted, column)| value(column, row).as_deref() != Some(*wanted)) {
            continue;
        }
        let Some(id) = value(&ids, row) else { bail!("{}: a row has no image id", path.display()) };
        let alias = paths.as_ref().and_then(|paths| value(paths, row));
        let index = indices.as_ref().and_then(|indices| indices.is_valid(row).then(|| indices.value(row)));
        let caption = captions.is_valid(row).then(|| captions.value(row));
        builder.add(&id, alias.as_deref(), index, caption).with_context(|| path.display().to_string())?;
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
