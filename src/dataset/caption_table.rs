//! Captions from a dataset folder or from any Parquet table that has them, only the columns that are needed.

use std::fs::File;
use std::path::Path;

use arrow::array::{Array, StringArray, StringBuilder};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use rayon::prelude::*;

use super::tables::CAPTIONS_FORMAT;
use crate::table::{FORMAT_KEY, TableError, check_format};

/// Rows of a row group as text columns. `image`, `split` and `source` are missing where the table has none.
#[derive(Debug, Clone)]
pub struct CaptionRows {
    caption: StringArray,
    image: Option<StringArray>,
    split: Option<StringArray>,
    source: Option<StringArray>,
}

/// One caption and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptionRow<'a> {
    pub caption: &'a str,
    pub image: Option<&'a str>,
    pub split: Option<&'a str>,
    pub source: Option<&'a str>,
}

impl CaptionRows {
    pub fn len(&self) -> usize {
        self.caption.len()
    }

    pub fn is_empty(&self) -> bool {
        self.caption.is_empty()
    }

    /// None where the caption is null.
    pub fn get(&self, at: usize) -> Option<CaptionRow<'_>> {
        fn value(column: &StringArray, at: usize) -> Option<&str> {
            (!column.is_null(at)).then(|| column.value(at))
        }
        Some(CaptionRow {
            caption: value(&self.caption, at)?,
            image: self.image.as_ref().and_then(|column| value(column, at)),
            split: self.split.as_ref().and_then(|column| value(column, at)),
            source: self.source.as_ref().and_then(|column| value(column, at)),
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = CaptionRow<'_>> {
        (0..self.len()).filter_map(|at| self.get(at))
    }
}

impl<'a> FromIterator<(&'a str, &'a str, &'a str)> for CaptionRows {
    /// From image, caption and source.
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str, &'a str)>>(rows: I) -> Self {
        let (mut image, mut caption, mut source) = (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
        for row in rows {
            image.append_value(row.0);
            caption.append_value(row.1);
            source.append_value(row.2);
        }
        Self { caption: caption.finish(), image: Some(image.finish()), split: None, source: Some(source.finish()) }
    }
}

/// Reads a Parquet table's captions, row groups side by side and in order. Columns: `caption` (must be there), `image_path` or else
/// `image_id` (which two files of a folder may share), `split`, `source`.
pub fn read_caption_rows(path: &Path) -> Result<Vec<CaptionRows>, TableError> {
    let io = |source| TableError::Io { path: path.into(), source };
    let parquet = |source| TableError::Parquet { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    let metadata = ArrowReaderMetadata::load(&file, Default::default()).map_err(parquet)?;
    let pairs = metadata.metadata().file_metadata().key_value_metadata();
    let format = pairs.into_iter().flatten().find(|pair| pair.key == FORMAT_KEY).and_then(|pair| pair.value.as_deref());
    // Caption tables have captions too, under their own name.
    if let Some(format) = format.filter(|format| format.starts_with("captions/")) {
        check_format(path, format, CAPTIONS_FORMAT)?;
    }
    let names: Vec<&str> = metadata.schema().fields().iter().map(|field| field.name().as_str()).collect();
    let wanted: Vec<usize> = ["caption", "image_id", "image_path", "split", "source"]
        .iter()
        .filter_map(|name| names.iter().position(|n| n == name))
        .collect();
    let groups: Vec<usize> = (0..metadata.metadata().num_row_groups()).collect();
    let read = |group: usize| -> Result<Vec<CaptionRows>, TableError> {
        let file = File::open(path).map_err(io)?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone());
        let mask = ProjectionMask::roots(metadata.metadata().file_metadata().schema_descr(), wanted.iter().copied());
        let reader = builder.with_row_groups(vec![group]).with_projection(mask).with_batch_size(8192).build().map_err(parquet)?;
        reader.map(|batch| rows(path, &batch.map_err(|source| TableError::Arrow { path: path.into(), source })?)).collect()
    };
    let read: Result<Vec<_>, _> = groups.par_iter().map(|&group| read(group)).collect();
    Ok(read?.into_iter().flatten().collect())
}

fn rows(path: &Path, batch: &RecordBatch) -> Result<CaptionRows, TableError> {
    let text = |name: &str| -> Result<Option<StringArray>, TableError> {
        let Some(column) = batch.column_by_name(name) else { return Ok(None) };
        // Other writers keep text as large strings, views or dictionaries; ids may be numbers.
        let text = cast(column, &DataType::Utf8).map_err(|source| TableError::Arrow { path: path.into(), source })?;
        Ok(text.as_any().downcast_ref::<StringArray>().cloned())
    };
    let caption = text("caption")?.ok_or_else(|| TableError::MissingColumn {
        path: path.into(),
        column: "caption".into(),
        present: batch.schema().fields().iter().map(|f| f.name().clone()).collect(),
    })?;
    let image = match text("image_path")? {
        Some(image) => Some(image),
        None => text("image_id")?,
    };
    Ok(CaptionRows { caption, image, split: text("split")?, source: text("source")? })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, LargeStringArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;
    use crate::table::ParquetSink;

    fn write(path: &Path, format: &str, columns: Vec<(&str, ArrayRef)>) {
        let fields: Vec<Field> = columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, array)| array).collect()).unwrap();
        let mut sink = ParquetSink::create(path, schema, format).unwrap();
        sink.write(&batch).unwrap();
        sink.finish().unwrap();
    }

    #[test]
    fn tables_of_others_are_read_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let captions: ArrayRef = Arc::new(LargeStringArray::from(vec![Some("狗"), None, Some("猫")]));
        write(&path, "caption/1", vec![("caption", captions), ("image_id", Arc::new(Int64Array::from(vec![7, 8, 9])))]);
        let rows = read_caption_rows(&path).unwrap();
        let all: Vec<_> = rows.iter().flat_map(CaptionRows::iter).collect();
        assert_eq!(all[1], CaptionRow { caption: "猫", image: Some("9"), split: None, source: None });
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn what_is_no_caption_table_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        write(&path, "captions/2", vec![("caption", Arc::new(StringArray::from(vec!["狗"])))]);
        assert!(matches!(read_caption_rows(&path), Err(TableError::Version { .. })));
        write(&path, "images/1", vec![("image_id", Arc::new(StringArray::from(vec!["狗"])))]);
        assert!(matches!(read_caption_rows(&path), Err(TableError::MissingColumn { .. })));
        std::fs::write(&path, "no parquet").unwrap();
        assert!(matches!(read_caption_rows(&path), Err(TableError::Parquet { .. })));
    }
}
