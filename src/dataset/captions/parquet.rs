//! Captions from Parquet tables: ours, and those of others with columns of the usual names. Only the columns that are needed are read, row groups
//! side by side and in order. A list in a cell is several captions.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, LargeListArray, StringArray, StringBuilder, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use rayon::prelude::*;

use super::columns::Chosen;
use super::rows::CaptionRows;
use super::{CaptionError, Columns, cells};
use crate::dataset::tables::CAPTIONS_FORMAT;
use crate::files::paths_in;
use crate::table::{FORMAT_KEY, TableError, check_format};

/// A Parquet table's captions.
#[derive(Debug)]
pub struct Table {
    pub rows: Vec<CaptionRows>,
    /// The table is one of ours.
    pub is_ours: bool,
    /// Its ids are as they are: two that differ are two images.
    pub has_exact_ids: bool,
}

/// Reads a Parquet table's captions. `further`: also what only a caption table's captions have.
///
/// # Errors
/// A file that is no Parquet, that a newer version wrote, or that has no column of captions.
pub fn read_table(path: &Path, columns: &Columns, further: bool) -> Result<Table, CaptionError> {
    let io = |source| CaptionError::Io { path: path.into(), source };
    let parquet = |source| CaptionError::from(TableError::Parquet { path: path.into(), source });
    let file = File::open(path).map_err(io)?;
    let metadata = ArrowReaderMetadata::load(&file, Default::default()).map_err(parquet)?;
    let pairs = metadata.metadata().file_metadata().key_value_metadata();
    let format = pairs.into_iter().flatten().find(|pair| pair.key == FORMAT_KEY).and_then(|pair| pair.value.as_deref());
    let ours = format.filter(|format| format.starts_with("captions/"));
    if let Some(format) = ours {
        check_format(path, format, CAPTIONS_FORMAT)?;
    }
    let fields = metadata.schema().fields();
    let names: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
    let chosen = Chosen::of(&names, columns, further, |at| names_an_image(fields[at].data_type()))
        .map_err(|message| CaptionError::Layout { path: path.into(), message })?;
    let more = |at: Option<usize>| at.filter(|_| further);
    let optional = [
        chosen.image,
        chosen.file,
        chosen.split,
        chosen.source,
        more(chosen.number),
        more(chosen.translation),
        more(chosen.sha256),
        more(chosen.raw),
    ];
    let details = [chosen.logprob, chosen.num_tokens, chosen.finish_reason, chosen.clip_score, chosen.rank].map(more);
    let optional = optional.into_iter().chain(details);
    let wanted: Vec<usize> = chosen.captions.iter().copied().chain(optional.flatten()).collect();
    let groups: Vec<usize> = (0..metadata.metadata().num_row_groups()).collect();
    let read = |group: usize| -> Result<Vec<CaptionRows>, CaptionError> {
        let file = File::open(path).map_err(io)?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone());
        let mask = ProjectionMask::roots(metadata.metadata().file_metadata().schema_descr(), wanted.iter().copied());
        let reader = builder.with_row_groups(vec![group]).with_projection(mask).with_batch_size(8192).build().map_err(parquet)?;
        let arrow = |source| CaptionError::from(TableError::Arrow { path: path.into(), source });
        let rows = |batch: RecordBatch| {
            let name = |at: usize| names[at].as_str();
            let each = chosen.captions.iter().map(|&caption| rows(&batch, name(caption), &chosen, &name, further).map_err(arrow));
            each.collect::<Result<Vec<_>, _>>()
        };
        let batches: Result<Vec<_>, _> = reader.map(|batch| batch.map_err(arrow).and_then(rows)).collect();
        Ok(batches?.into_iter().flatten().collect())
    };
    let read: Result<Vec<_>, _> = groups.par_iter().map(|&group| read(group)).collect();
    // An export's pictures and captions.
    let has_exact_ids = ours.is_some() || format.is_some_and(|format| format.starts_with("images/"));
    Ok(Table { rows: read?.into_iter().flatten().collect(), is_ours: ours.is_some(), has_exact_ids })
}

/// A dataset's `captions.parquet`, or the numbered parts of a caption table.
///
/// # Errors
/// A folder that cannot be listed, or that has neither.
pub fn tables_of(folder: &Path) -> Result<Vec<PathBuf>, CaptionError> {
    let captions = folder.join("captions.parquet");
    if captions.exists() {
        return Ok(vec![captions]);
    }
    let mut parts = paths_in(folder).map_err(|source| CaptionError::Io { path: folder.into(), source })?;
    parts.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".parquet") && !name.ends_with("errors.parquet") && !name.starts_with("images")
    });
    if parts.is_empty() {
        let message = "it holds neither captions.parquet nor parts of a caption table".into();
        return Err(CaptionError::Layout { path: folder.into(), message });
    }
    Ok(parts)
}

/// From the ids of the dataset that a table is of to the files of their images (as captions name them where none was found), with no split; nothing where it is of none.
pub fn files_of_dataset(captions: &Path) -> Result<HashMap<String, (String, String)>, CaptionError> {
    let images = captions.with_file_name("images.parquet");
    if captions.file_name().is_none_or(|name| name != "captions.parquet") || !images.is_file() {
        return Ok(HashMap::new());
    }
    let mut files = HashMap::new();
    for batch in crate::table::open(&images, None)? {
        let batch = batch.map_err(|source| TableError::Arrow { path: images.clone(), source })?;
        let ids: &StringArray = crate::table::column(&batch, "image_id", &images)?;
        let paths: &StringArray = crate::table::column(&batch, "image_path", &images)?;
        // Datasets of older versions have none of these.
        let names = crate::table::column::<StringArray>(&batch, "file_name", &images).ok();
        let name = |at: usize| match (paths.is_valid(at), names) {
            (true, _) => Some(paths.value(at)),
            (false, Some(names)) => names.is_valid(at).then(|| names.value(at)),
            (false, None) => None,
        };
        let named = ids.iter().enumerate().filter_map(|(at, id)| Some((id?.to_string(), (name(at)?.to_string(), String::new()))));
        files.extend(named);
    }
    Ok(files)
}

/// Text, numbers, and Hugging Face's Image, which has a path.
fn names_an_image(kind: &DataType) -> bool {
    match kind {
        DataType::Struct(fields) => fields.iter().any(|field| field.name() == "path"),
        kind => !kind.is_nested() && !matches!(kind, DataType::Null | DataType::Binary | DataType::LargeBinary),
    }
}

fn rows<'n>(
    batch: &RecordBatch,
    caption: &str,
    chosen: &Chosen,
    name: &impl Fn(usize) -> &'n str,
    further: bool,
) -> Result<CaptionRows, arrow::error::ArrowError> {
    let column = |at: usize| batch.column_by_name(name(at));
    let caption = batch.column_by_name(caption).ok_or_else(|| arrow::error::ArrowError::SchemaError(format!("no {caption}")))?;
    let (caption, parents) = captions(caption)?;
    // Each column in step with the captions.
    let spread = |at: Option<usize>, kind: &DataType| -> Result<Option<ArrayRef>, arrow::error::ArrowError> {
        let Some(array) = at.and_then(column) else { return Ok(None) };
        let array = match array.as_struct_opt().and_then(|array| array.column_by_name("path")) {
            Some(path) => path,
            None => array,
        };
        // Other writers keep text as large strings, views or dictionaries; ids may be numbers.
        let array = cast(array, kind)?;
        Ok(Some(match &parents {
            Some(parents) => take(&array, parents, None)?,
            None => array,
        }))
    };
    let texts = |at| Ok::<_, arrow::error::ArrowError>(spread(at, &DataType::Utf8)?.and_then(|a| a.as_string_opt().cloned()));
    let ints = |at| Ok::<_, arrow::error::ArrowError>(spread(at, &DataType::Int64)?.and_then(|a| a.as_primitive_opt().cloned()));
    let floats =
        |at| Ok::<_, arrow::error::ArrowError>(spread(at, &DataType::Float64)?.and_then(|a| a.as_primitive_opt().cloned()));
    let more = |at: Option<usize>| at.filter(|_| further);
    let raw = more(chosen.raw).and_then(column).map(captions).transpose()?.map(|(raw, _)| raw);
    Ok(CaptionRows {
        raw: raw.filter(|raw| raw.len() == caption.len()),
        image: texts(chosen.image.filter(|&image| chosen.file != Some(image)))?,
        file: texts(chosen.file)?,
        split: texts(chosen.split)?,
        source: texts(chosen.source)?,
        translation: texts(more(chosen.translation))?,
        sha256: texts(more(chosen.sha256))?,
        finish_reason: texts(more(chosen.finish_reason))?,
        number: ints(more(chosen.number).filter(|_| parents.is_none()))?,
        num_tokens: ints(more(chosen.num_tokens))?,
        logprob: floats(more(chosen.logprob))?,
        clip_score: floats(more(chosen.clip_score))?,
        rank: ints(more(chosen.rank))?,
        caption,
    })
}

/// The captions of a column, and the row of each where a cell may hold several. A null or an empty list is one null.
fn captions(column: &ArrayRef) -> Result<(StringArray, Option<UInt32Array>), arrow::error::ArrowError> {
    let is_list = matches!(
        column.data_type(),
        DataType::List(_)
            | DataType::LargeList(_)
            | DataType::FixedSizeList(_, _)
            | DataType::ListView(_)
            | DataType::LargeListView(_)
    );
    let texts = |array: &ArrayRef| cast(array, &DataType::Utf8).map(|array| array.as_string::<i32>().clone());
    if !is_list {
        let plain = texts(column)?;
        if !plain.iter().flatten().any(|text| text.trim_start().starts_with(['[', '('])) {
            return Ok((plain, None));
        }
        return Ok(spread(plain.iter().map(|text| match text.map(|text| (text, cells::captions(text))) {
            None => vec![],
            Some((text, None)) => vec![Some(text.to_string())],
            Some((_, Some(list))) => list.into_iter().map(Some).collect(),
        })));
    }
    let item = |kind: &DataType| Arc::new(Field::new("item", kind.clone(), true));
    let inner = match column.data_type() {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => field.data_type().clone(),
        DataType::ListView(field) | DataType::LargeListView(field) => field.data_type().clone(),
        other => other.clone(),
    };
    let lists = cast(column, &DataType::LargeList(item(&inner)))?;
    let lists: &LargeListArray = lists.as_list();
    let values = match lists.values().as_struct_opt() {
        // Karpathy's sentences as a table.
        Some(sentences) => {
            let raw = ["raw", "caption", "text"].iter().find_map(|name| sentences.column_by_name(name));
            texts(raw.ok_or_else(|| arrow::error::ArrowError::SchemaError("a list of structs without raw or caption".into()))?)?
        }
        None => texts(lists.values())?,
    };
    let offsets = lists.offsets();
    Ok(spread((0..lists.len()).map(|row| match lists.is_valid(row) {
        true => {
            let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
            (start..end).map(|at| values.is_valid(at).then(|| values.value(at).to_string())).collect()
        }
        false => vec![],
    })))
}

fn spread(rows: impl Iterator<Item = Vec<Option<String>>>) -> (StringArray, Option<UInt32Array>) {
    let (mut captions, mut parents) = (StringBuilder::new(), Vec::new());
    for (texts, row) in rows.zip(0u32..) {
        let texts = if texts.is_empty() { vec![None] } else { texts };
        for text in texts {
            captions.append_option(text);
            parents.push(row);
        }
    }
    (captions.finish(), Some(parents.into()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, Int64Array, LargeStringArray};
    use arrow::datatypes::{Field, Schema};

    use super::super::Translation;
    use super::super::batch::Take;
    use super::super::rows::CaptionRow;
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
        let table = read_table(&path, &Columns::default(), false).unwrap();
        let all: Vec<_> = table.rows.iter().flat_map(CaptionRows::iter).collect();
        assert_eq!(all[1], CaptionRow { caption: "猫", image: Some("9"), split: None, source: None });
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn a_list_in_a_cell_is_several_captions() {
        use arrow::array::{FixedSizeListBuilder, LargeListBuilder, ListBuilder};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let texts = [["狗", "黑狗"], ["猫", "白猫"]];
        let (mut list, mut large, mut fixed) = (
            ListBuilder::new(StringBuilder::new()),
            LargeListBuilder::new(StringBuilder::new()),
            FixedSizeListBuilder::new(StringBuilder::new(), 2),
        );
        for pair in texts {
            pair.iter().for_each(|text| list.values().append_value(text));
            pair.iter().for_each(|text| large.values().append_value(text));
            pair.iter().for_each(|text| fixed.values().append_value(text));
            list.append(true);
            large.append(true);
            fixed.append(true);
        }
        let text: ArrayRef = Arc::new(StringArray::from(vec!["['狗', '黑狗']", "[\"猫\", \"白猫\"]"]));
        for captions in [Arc::new(list.finish()) as ArrayRef, Arc::new(large.finish()), Arc::new(fixed.finish()), text] {
            for name in ["caption", "sentences"] {
                write(&path, "x/1", vec![(name, captions.clone()), ("img_id", Arc::new(Float64Array::from(vec![7.0, 8.0])))]);
                let table = read_table(&path, &Columns::default(), true).unwrap();
                let batch = table.rows.into_iter().next().unwrap().into_batch(Translation::Unknown, Take::default());
                let rows: Vec<_> = batch.rows.iter().map(|r| (batch.get(r.image), batch.get(r.caption))).collect();
                assert_eq!(rows, [("7.0", "狗"), ("7.0", "黑狗"), ("8.0", "猫"), ("8.0", "白猫")]);
            }
        }
    }

    #[test]
    fn what_is_no_caption_table_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let text: ArrayRef = Arc::new(StringArray::from(vec!["狗"]));
        write(&path, "captions/2", vec![("caption", text.clone()), ("image_id", text)]);
        let read = || read_table(&path, &Columns::default(), false).map(drop);
        assert!(matches!(read(), Err(CaptionError::Table(TableError::Version { .. }))));
        write(&path, "images/1", vec![("image_id", Arc::new(StringArray::from(vec!["狗"])))]);
        assert!(matches!(read(), Err(CaptionError::Layout { .. })));
        std::fs::write(&path, "no parquet").unwrap();
        assert!(matches!(read(), Err(CaptionError::Table(TableError::Parquet { .. }))));
    }
}
