//! The statistics as Parquet tables and as one JSON document.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use serde_json::{Value, json};

use super::lengths::{Group, Unit};
use super::{FORMAT, Statistics};
use crate::table::{ParquetSink, TableError};

/// The tables, without their extension.
pub const NAMES: [&str; 9] =
    ["lengths", "histogram", "captions_per_image", "vocabulary", "phrases", "cut", "words", "duplicates", "overlap"];

/// Writes the tables of [`NAMES`].
pub fn write(out: &Path, statistics: &Statistics) -> Result<()> {
    type Writer = fn(&Path, &Statistics) -> Result<(), TableError>;
    let tables: [Writer; 9] = [lengths, histogram, per_image, vocabulary, phrases, cut, words, duplicates, overlap];
    std::thread::scope(|scope| {
        let writes: Vec<_> = tables.iter().map(|write| scope.spawn(|| write(out, statistics))).collect();
        writes.into_iter().try_for_each(|write| write.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(())
}

fn put(path: &Path, columns: Vec<(&str, ArrayRef)>) -> Result<(), TableError> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), array.is_nullable())).collect();
    let nullable = |field: Field| match field.name().as_str() {
        "split" | "source" | "known" => field.with_nullable(true),
        _ => field.with_nullable(false),
    };
    let schema: SchemaRef = Arc::new(Schema::new(fields.into_iter().map(nullable).collect::<Vec<_>>()));
    debug_assert!(schema.fields().iter().all(|field| *field.data_type() != DataType::Null));
    let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, array)| array).collect());
    let batch = batch.map_err(|source| TableError::Arrow { path: path.into(), source })?;
    let mut sink = ParquetSink::create(path, schema, FORMAT)?;
    sink.write(&batch)?;
    sink.finish()
}

fn strings<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn counts(values: impl IntoIterator<Item = u64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values.into_iter().map(|count| count as i64)))
}

fn floats(values: impl IntoIterator<Item = f64>) -> ArrayRef {
    Arc::new(Float64Array::from_iter_values(values))
}

fn lengths(out: &Path, statistics: &Statistics) -> Result<(), TableError> {
    let rows: Vec<_> =
        statistics.lengths.by_group.iter().filter_map(|((unit, group), d)| Some((unit, group, d.figures()?))).collect();
    put(
        &out.join("lengths.parquet"),
        vec![
            ("unit", strings(rows.iter().map(|r| r.0.name()))),
            ("split", Arc::new(rows.iter().map(|r| r.1.split.as_deref()).collect::<StringArray>())),
            ("source", Arc::new(rows.iter().map(|r| r.1.source.as_deref()).collect::<StringArray>())),
            ("count", counts(rows.iter().map(|r| r.2.count))),
            ("mean", floats(rows.iter().map(|r| r.2.mean))),
            ("std", floats(rows.iter().map(|r| r.2.std))),
            ("min", counts(rows.iter().map(|r| r.2.min))),
            ("q1", floats(rows.iter().map(|r| r.2.q1))),
            ("median", floats(rows.iter().map(|r| r.2.median))),
            ("q3", floats(rows.iter().map(|r| r.2.q3))),
            ("p95", floats(rows.iter().map(|r| r.2.p95))),
            ("p99", floats(rows.iter().map(|r| r.2.p99))),
            ("max", counts(rows.iter().map(|r| r.2.max))),
        ],
    )
}

/// Captions by exact length: bins of any width can be made of it.
fn histogram(out: &Path, statistics: &Statistics) -> Result<(), TableError> {
    let rows: Vec<(Unit, &Group, u64, u64)> = statistics
        .lengths
        .by_group
        .iter()
        .flat_map(|((unit, group), d)| d.counts().map(move |(length, count)| (*unit, group, length, count)))
        .collect();
    put(
        &out.join("histogram.parquet"),
        vec![
            ("unit", strings(rows.iter().map(|r| r.0.name()))),
            ("split", Arc::new(rows.iter().map(|r| r.1.split.as_deref()).collect::<StringArray>())),
            ("source", Arc::new(rows.iter().map(|r| r.1.source.as_deref()).collect::<StringArray>())),
            ("length", counts(rows.iter().map(|r| r.2))),
            ("count", counts(rows.iter().map(|r| r.3))),
        ],
    )
}

fn per_image(out: &Path, statistics: &Statistics) -> Result<(), TableError> {
    let rows: Vec<(u64, u64)> = statistics.lengths.per_image.counts().collect();
    let columns = vec![("captions", counts(rows.iter().map(|r| r.0))), ("images", counts(rows.iter().map(|r| r.1)))];
    put(&out.join("captions_per_image.parquet"), columns)
}

fn vocabulary(out: &Path, statistics: &Statistics) -> Result<(), TableError> {
    let rows: Vec<_> = [Unit::Char, Unit::Word]
        .into_iter()
        .flat_map(|unit| statistics.vocabulary.entries(unit).iter().map(move |entry| (unit, entry)))
        .collect();
    put(
        &out.join("vocabulary.parquet"),
        vec![
            ("unit", strings(rows.iter().map(|r| r.0.name()))),
            ("text", strings(rows.iter().map(|r| r.1.text.as_str()))),
            ("count", counts(rows.iter().map(|r| r.1.count))),
            ("known", Arc::new(rows.iter().map(|r| r.1.known).collect::<BooleanArray>())),
        ],
    )
}

/// Words with how often they stand: rank, word, count, share of all words.
fn ranked_words(statistics: &Statistics) -> impl Iterator<Item = (u64, &str, u64, f64)> {
    let words = &statistics.vocabulary.words;
    let all = words.iter().map(|word| word.count).sum::<u64>().max(1) as f64;
    words.iter().zip(1..).map(move |(word, rank)| (rank, word.text.as_str(), word.count, word.count as f64 / all))
}

fn words(out: &Path, statistics: &Statistics) -> Result<(), TableError> {
    let rows: Vec<_> = ranked_words(statistics).collect();
    put(
        &out.join("words.parquet"),
        vec![
            ("rank", counts(rows.iter().map(|r| r.0))),
            ("word", strings(rows.iter().map(|r| r.1))),
            ("count", counts(rows.iter().map(|r| r.2))),
            ("share", floats(rows.iter().map(|r| r.3))),
        ],
    )
}

/// The same for spreadsheets: CSV that begins with the mark by which they know UTF-8.
pub fn words_csv(statistics: &Statistics) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer("\u{feff}".as_bytes().to_vec());
    writer.write_record(["rank", "word", "count", "share"])?;
    for (rank, word, count, share) in ranked_words(statistics) {
        writer.write_record([rank.to_string(), word.into(), count.to_string(), share.to_string()])?;
    }
    Ok(writer.into_inner().map_err(|error| error.into_error())?)
}

/// Captions that stand more than once; `splits` are joined by commas.
fn duplicates(out: &Path, statistics: &Statistics) -> Result<(), TableError> {
    let rows = &statistics.repeats.duplicates;
    put(
        &out.join("duplicates.parquet"),
        vec![
            ("caption", strings(rows.iter().map(|r| r.caption.as_str()))),
            ("count", counts(rows.iter().map(|r| r.count))),
            ("images", counts(rows.iter().map(|r| r.images))),
            ("splits", strings(rows.iter().map(|r| r.splits.join(",")))),
        ],
    )
}

/// What of `other_split` is in `split` too.
fn overlap(out: &Path, statistics: &Statistics) -> Result<(), TableError> {
    let rows = &statistics.repeats.overlaps;
    put(
        &out.join("overlap.parquet"),
        vec![
            ("kind", strings(rows.iter().map(|r| r.kind.as_str()))),
            ("split", strings(rows.iter().map(|r| r.split.as_str()))),
            ("other_split", strings(rows.iter().map(|r| r.other_split.as_str()))),
            ("count", counts(rows.iter().map(|r| r.count))),
            ("of", counts(rows.iter().map(|r| r.of))),
            ("share", floats(rows.iter().map(|r| r.share()))),
        ],
    )
}

fn phrases(out: &Path, statistics: &Statistics) -> Result<(), TableError> {
    let lists = [("opening", &statistics.phrases.openings), ("ngram", &statistics.phrases.ngrams)];
    let rows: Vec<(&str, usize, &str, u64)> = lists
        .iter()
        .flat_map(|(kind, lists)| {
            lists.iter().flat_map(move |(n, top)| top.iter().map(move |(text, count)| (*kind, *n, text.as_str(), *count)))
        })
        .collect();
    put(
        &out.join("phrases.parquet"),
        vec![
            ("kind", strings(rows.iter().map(|r| r.0))),
            ("n", Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.1 as i32)))),
            ("text", strings(rows.iter().map(|r| r.2))),
            ("count", counts(rows.iter().map(|r| r.3))),
        ],
    )
}

/// (limit, captions that would be cut at it). With [SEP], a caption takes one more than its length.
pub fn cuts(statistics: &Statistics) -> Vec<(u64, u64)> {
    let Some(all) = statistics.lengths.all(statistics.lengths.limiting_unit()) else { return Vec::new() };
    statistics.max_lengths.iter().map(|&limit| (limit, all.above(limit.saturating_sub(1)))).collect()
}

fn cut(out: &Path, statistics: &Statistics) -> Result<(), TableError> {
    let rows = cuts(statistics);
    let unit = statistics.lengths.limiting_unit().name();
    put(
        &out.join("cut.parquet"),
        vec![
            ("unit", strings(rows.iter().map(|_| unit))),
            ("max_len", counts(rows.iter().map(|r| r.0))),
            ("captions", counts(rows.iter().map(|r| r.1))),
            ("share", floats(rows.iter().map(|r| r.1 as f64 / statistics.lengths.captions.max(1) as f64))),
        ],
    )
}

/// Everything but the long lists, which are in the Parquet tables.
pub fn to_json(statistics: &Statistics) -> Value {
    let lengths = &statistics.lengths;
    let groups: Vec<Value> = lengths
        .by_group
        .iter()
        .map(|((unit, group), d)| json!({"unit": unit, "split": group.split, "source": group.source, "figures": d.figures()}))
        .collect();
    let bins = |unit: Unit| -> Value {
        let bins = lengths.all(unit).map(|d| d.histogram(statistics.bins)).unwrap_or_default();
        bins.iter().map(|(low, high, count)| json!({"from": low, "to": high, "count": count})).collect()
    };
    let lists = |lists: &[(usize, Vec<(String, u64)>)]| -> Value {
        lists
            .iter()
            .map(|(n, top)| json!({"n": n, "top": top.iter().map(|(t, c)| json!({"text": t, "count": c})).collect::<Value>()}))
            .collect()
    };
    let histograms: serde_json::Map<String, Value> = lengths.units().map(|unit| (unit.name().to_string(), bins(unit))).collect();
    let vocabulary: serde_json::Map<String, Value> = [Unit::Char, Unit::Word]
        .into_iter()
        .filter(|&unit| !statistics.vocabulary.entries(unit).is_empty())
        .map(|unit| (unit.name().to_string(), json!(statistics.vocabulary.coverage(unit))))
        .collect();
    let tokens = lengths.all(Unit::Token).map(|d| d.counts().map(|(length, count)| length * count).sum::<u64>());
    json!({
        "clipcap.format": FORMAT,
        "captions": lengths.captions,
        "images": lengths.images,
        "lengths": groups,
        "histograms": histograms,
        "captions_per_image": lengths.per_image.figures(),
        "splits": statistics.repeats.splits,
        "duplicate_captions": {"different": statistics.repeats.duplicates.len(), "captions": statistics.repeats.num_repeated()},
        "overlap": statistics.repeats.overlaps,
        "vocabulary": vocabulary,
        "tokens": tokens,
        "unknown_tokens": tokens.map(|_| lengths.unknown_tokens),
        "unknown_token_rate": tokens.map(|tokens| lengths.unknown_tokens as f64 / tokens.max(1) as f64),
        "cut": cuts(statistics).iter().map(|(limit, count)| json!({
            "unit": lengths.limiting_unit(), "max_len": limit, "captions": count,
            "share": *count as f64 / lengths.captions.max(1) as f64,
        })).collect::<Value>(),
        "openings": lists(&statistics.phrases.openings),
        "ngrams": lists(&statistics.phrases.ngrams),
    })
}
