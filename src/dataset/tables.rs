//! The tables of a dataset: `captions.parquet`, `images.parquet`, `duplicates.parquet`, and the errors table beside it.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, DictionaryArray, Float32Array, Int32Array, Int32Builder, Int64Array, StringArray,
    StringBuilder, StructArray,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use serde_json::json;

use super::assemble::Assembled;
use super::captions::{Row, Span};
use super::lint::{LINT_COLUMNS, Lint};
use super::parallel::{GroupOptions, write_groups};
use crate::files::{AtomicFile, ContentHash};
use crate::table::TableError;

pub const CAPTIONS_FORMAT: &str = "captions/1";
pub const IMAGES_FORMAT: &str = "images/1";
pub const ERRORS_FORMAT: &str = "errors/1";
pub const DUPLICATES_FORMAT: &str = "duplicates/1";
pub const DATASET_FORMAT: &str = "dataset/1";

/// Captions of a row group, and bytes of their text where they are long.
const GROUP_ROWS: usize = 20_000;
const GROUP_BYTES: usize = 64 << 20;

/// One row of `images.parquet`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageRow<'a> {
    pub image_id: &'a str,
    /// None where no file was found (or looked for).
    pub image_path: Option<&'a str>,
    pub sha256: Option<ContentHash>,
    pub width: Option<i32>,
    pub height: Option<i32>,
    pub bytes: Option<i64>,
    /// `ok`, `failed` (see `reason`), `missing` (captions name it and no file is it) or `unchecked` (no folder was given).
    pub status: &'static str,
    pub reason: Option<&'static str>,
    pub split: Option<&'a str>,
    pub num_captions: i32,
    /// What captions call its file, where none was found (or looked for).
    pub file_name: Option<&'a str>,
}

/// One row of the errors table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorRow<'a> {
    pub file: &'a str,
    pub line: i64,
    pub reason: &'static str,
    pub message: &'a str,
}

/// One row of `duplicates.parquet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuplicateRow<'a> {
    /// `exact` (equal bytes) or `near` (perceptual hash).
    pub kind: &'static str,
    pub image_id: &'a str,
    pub other_image_id: &'a str,
    pub split: Option<&'a str>,
    pub other_split: Option<&'a str>,
    pub distance: i32,
}

fn text(name: &str, nullable: bool) -> Field {
    Field::new(name, DataType::Utf8, nullable)
}

fn captions_schema(lint: bool, scored: bool) -> SchemaRef {
    let mut fields = vec![
        text("image_id", false),
        Field::new("caption_id", DataType::Int32, false),
        text("caption", false),
        text("caption_raw", false),
        text("source", false),
        text("translation", false),
        text("split", true),
        Field::new("line", DataType::Int64, false),
    ];
    if lint {
        fields.extend(LINT_COLUMNS.map(|name| Field::new(name, DataType::Boolean, false)));
    }
    if scored {
        fields.push(Field::new("clip_score", DataType::Float32, true));
    }
    Arc::new(Schema::new(fields))
}

/// Writes `captions.parquet`, with the lint columns where there is lint and `clip_score` where there are scores.
pub fn write_captions(
    path: &Path,
    set: &Assembled,
    lint: Option<&[Lint]>,
    scores: Option<&[Option<f32>]>,
) -> Result<AtomicFile, TableError> {
    let schema = captions_schema(lint.is_some(), scores.is_some());
    let groups = groups(set);
    let options = GroupOptions {
        plain: &[&["caption"], &["caption_raw"]],
        delta: &[&["caption_id"], &["line"]],
        without_range: &[&["caption"], &["caption_raw"], &["source"], &["translation"]],
    };
    write_groups(path, &schema, CAPTIONS_FORMAT, &options, groups.len(), |group| {
        let rows = groups[group].clone();
        let mut columns = columns(set, rows.clone(), lint);
        if let Some(scores) = scores {
            columns.push(Arc::new(Float32Array::from(scores[rows].to_vec())));
        }
        Ok(columns)
    })
}

/// Row groups end by rows or bytes, so they are the same on any machine.
fn groups(set: &Assembled) -> Vec<std::ops::Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for at in 0..set.places.len() {
        let (_, row) = set.row(at);
        bytes += row.caption.num_bytes() + row.raw.num_bytes();
        if at + 1 - start == GROUP_ROWS || bytes >= GROUP_BYTES {
            groups.push(start..at + 1);
            (start, bytes) = (at + 1, 0);
        }
    }
    if start < set.places.len() {
        groups.push(start..set.places.len());
    }
    groups
}

fn columns(set: &Assembled, rows: std::ops::Range<usize>, lint: Option<&[Lint]>) -> Vec<ArrayRef> {
    let image = |at: usize| &set.images[set.places[at].image as usize];
    let text_bytes = |span: fn(&Row) -> Span| rows.clone().map(|at| span(set.row(at).1).num_bytes()).sum();
    let mut caption = StringBuilder::with_capacity(rows.len(), text_bytes(|row| row.caption));
    let mut raw = StringBuilder::with_capacity(rows.len(), text_bytes(|row| row.raw));
    for at in rows.clone() {
        let (batch, row) = set.row(at);
        caption.append_value(batch.get(row.caption));
        raw.append_value(batch.get(row.raw));
    }
    let source = |at: usize| Some(set.captions.files[set.places[at].file as usize].source.as_str());
    let mut columns: Vec<ArrayRef> = vec![
        repeating(rows.clone().map(|at| Some(image(at).id.as_str()))),
        Arc::new(Int32Array::from_iter_values(rows.clone().map(|at| set.caption_ids[at]))),
        Arc::new(caption.finish()),
        Arc::new(raw.finish()),
        repeating(rows.clone().map(source)),
        repeating(rows.clone().map(|at| Some(set.row(at).1.translation.name()))),
        repeating(rows.clone().map(|at| image(at).split.as_deref())),
        Arc::new(Int64Array::from_iter_values(rows.clone().map(|at| set.places[at].line as i64))),
    ];
    if let Some(lint) = lint {
        for column in 0..LINT_COLUMNS.len() {
            let values: Vec<bool> = lint[rows.clone()].iter().map(|mark| mark.values()[column]).collect();
            columns.push(Arc::new(BooleanArray::from(values)));
        }
    }
    columns
}

/// Texts of which one often follows its like, each kept once for a run of them.
fn repeating<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    let mut values = StringBuilder::new();
    let mut keys = Int32Builder::with_capacity(texts.size_hint().0);
    let mut previous = None;
    let mut runs = 0;
    for text in texts {
        if text.is_some() && text != previous {
            values.append_option(text);
            runs += 1;
            previous = text;
        }
        keys.append_option(text.map(|_| runs - 1));
    }
    // Each key names one of the values.
    Arc::new(DictionaryArray::new(keys.finish(), Arc::new(values.finish())))
}

/// Writes `images.parquet`; `rows` are sorted by id.
pub fn write_images(path: &Path, rows: &[ImageRow<'_>]) -> Result<AtomicFile, TableError> {
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        text("image_id", false),
        text("image_path", true),
        text("sha256", true),
        Field::new("width", DataType::Int32, true),
        Field::new("height", DataType::Int32, true),
        Field::new("bytes", DataType::Int64, true),
        text("status", false),
        text("reason", true),
        text("split", true),
        Field::new("num_captions", DataType::Int32, false),
        text("file_name", true),
    ]));
    let groups: Vec<&[ImageRow]> = rows.chunks(GROUP_ROWS).collect();
    let plain: &[&[&str]] = &[&["image_id"], &["image_path"], &["sha256"]];
    let options = GroupOptions { plain, without_range: &[&["sha256"]], ..GroupOptions::default() };
    write_groups(path, &schema, IMAGES_FORMAT, &options, groups.len(), |group| {
        let rows = groups[group];
        let strings = |f: for<'r> fn(&ImageRow<'r>) -> Option<&'r str>| -> ArrayRef {
            Arc::new(rows.iter().map(f).collect::<StringArray>())
        };
        let columns: Vec<ArrayRef> = vec![
            strings(|r| Some(r.image_id)),
            strings(|r| r.image_path),
            Arc::new(rows.iter().map(|r| r.sha256.map(|sha256| sha256.to_string())).collect::<StringArray>()),
            Arc::new(rows.iter().map(|r| r.width).collect::<Int32Array>()),
            Arc::new(rows.iter().map(|r| r.height).collect::<Int32Array>()),
            Arc::new(rows.iter().map(|r| r.bytes).collect::<Int64Array>()),
            strings(|r| Some(r.status)),
            strings(|r| r.reason),
            strings(|r| r.split),
            Arc::new(rows.iter().map(|r| Some(r.num_captions)).collect::<Int32Array>()),
            strings(|r| r.file_name),
        ];
        Ok(columns)
    })
}

/// Images of one shard with their bytes, which are asked for as they are written.
pub struct ImageShard<'a> {
    pub rows: &'a [&'a ImageRow<'a>],
    /// The bytes of a row's image.
    pub content: &'a (dyn Fn(usize) -> std::io::Result<Vec<u8>> + Sync),
}

/// Bytes of images in a row group. Several groups are in memory at a time.
const IMAGE_GROUP_BYTES: i64 = 4 << 20;

/// Writes `images-NNNNN.parquet`: the image table's first columns and `image` struct<bytes, path>, marked as Hugging Face's `Image`.
pub fn write_image_shard(path: &Path, shard: &ImageShard) -> Result<AtomicFile, TableError> {
    let image_fields = Fields::from(vec![Field::new("bytes", DataType::Binary, true), text("path", true)]);
    let string = json!({"dtype": "string", "_type": "Value"});
    let int = json!({"dtype": "int32", "_type": "Value"});
    let features = json!({"info": {"features": {
        "image_id": string, "image_path": string, "sha256": string, "width": int, "height": int, "split": string,
        "image": {"_type": "Image"},
    }}});
    let fields = vec![
        text("image_id", false),
        text("image_path", false),
        text("sha256", false),
        Field::new("width", DataType::Int32, false),
        Field::new("height", DataType::Int32, false),
        text("split", true),
        // Nullable, though never null: datasets knows its Image by this very type.
        Field::new("image", DataType::Struct(image_fields.clone()), true),
    ];
    // In Arrow's schema, where datasets looks; a single entry, since more would have no order of their own.
    let marked =
        Schema::new_with_metadata(fields, std::collections::HashMap::from([("huggingface".to_string(), features.to_string())]));
    let schema: SchemaRef = Arc::new(marked);
    let options = GroupOptions {
        plain: &[&["image_id"], &["image_path"], &["sha256"], &["image", "bytes"], &["image", "path"]],
        without_range: &[&["sha256"], &["image", "bytes"]],
        ..GroupOptions::default()
    };
    let mut groups: Vec<std::ops::Range<usize>> = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, row) in shard.rows.iter().enumerate() {
        bytes += row.bytes.unwrap_or(0);
        if bytes >= IMAGE_GROUP_BYTES || at + 1 == shard.rows.len() {
            groups.push(start..at + 1);
            (start, bytes) = (at + 1, 0);
        }
    }
    write_groups(path, &schema, IMAGES_FORMAT, &options, groups.len(), |group| {
        let rows = &shard.rows[groups[group].clone()];
        let contents: Vec<Vec<u8>> =
            groups[group].clone().map(|at| (shard.content)(at)).collect::<Result<_, _>>().map_err(ArrowError::from)?;
        let strings = |f: for<'r> fn(&ImageRow<'r>) -> Option<&'r str>| -> ArrayRef {
            Arc::new(rows.iter().map(|r| f(r)).collect::<StringArray>())
        };
        let image: Vec<ArrayRef> = vec![Arc::new(BinaryArray::from_iter_values(&contents)), strings(|r| r.image_path)];
        let columns: Vec<ArrayRef> = vec![
            strings(|r| Some(r.image_id)),
            strings(|r| r.image_path),
            Arc::new(rows.iter().map(|r| r.sha256.map(|sha256| sha256.to_string())).collect::<StringArray>()),
            Arc::new(rows.iter().map(|r| r.width).collect::<Int32Array>()),
            Arc::new(rows.iter().map(|r| r.height).collect::<Int32Array>()),
            strings(|r| r.split),
            Arc::new(StructArray::try_new(image_fields.clone(), image, None)?),
        ];
        Ok(columns)
    })
}

/// Writes one batch as a whole table.
fn write_one(path: &Path, fields: Vec<Field>, format: &str, columns: Vec<ArrayRef>) -> Result<AtomicFile, TableError> {
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    write_groups(path, &schema, format, &GroupOptions::default(), 1, |_| Ok(columns.clone()))
}

/// Writes the errors table; for who has none there is no table.
pub fn write_errors(path: &Path, rows: &[ErrorRow]) -> Result<AtomicFile, TableError> {
    let fields =
        vec![text("file", false), Field::new("line", DataType::Int64, false), text("reason", false), text("message", false)];
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.file))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.line))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.reason))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.message))),
    ];
    write_one(path, fields, ERRORS_FORMAT, columns)
}

/// Writes `duplicates.parquet`, an empty table where no image is there twice.
pub fn write_duplicates(path: &Path, rows: &[DuplicateRow]) -> Result<AtomicFile, TableError> {
    let fields = vec![
        text("kind", false),
        text("image_id", false),
        text("other_image_id", false),
        text("split", true),
        text("other_split", true),
        Field::new("distance", DataType::Int32, false),
    ];
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.kind))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.image_id))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.other_image_id))),
        Arc::new(rows.iter().map(|r| r.split).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| r.other_split).collect::<StringArray>()),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.distance))),
    ];
    write_one(path, fields, DUPLICATES_FORMAT, columns)
}
