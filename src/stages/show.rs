//! `clipcap show`: a look into any table, without Python. Tables are read a chunk at a time, so that their length costs no memory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use polars::prelude::{AnyValue, DataFrame, PolarsResult, SortMultipleOptions};
use serde_json::{Map, Value, json};

use crate::bookkeeping;
use source::{Columns, OpenTable};

mod filter;
mod layout;
pub mod pictures;
mod plain;
mod source;

pub use filter::Filter;

/// What to show of a table.
#[derive(Debug, Default)]
pub struct ShowSettings {
    /// A table, or a folder of ours that holds one.
    pub input: PathBuf,
    /// Empty: every column that holds text, numbers or truth values.
    pub columns: Vec<String>,
    /// All must hold.
    pub filters: Vec<Filter>,
    /// Count the rows of each of this column's values instead of showing rows.
    pub count: Option<String>,
    /// Smallest first, or largest with `descending`.
    pub sort: Option<String>,
    pub descending: bool,
    /// The most rows shown.
    pub rows: usize,
}

/// What was found.
#[derive(Debug)]
pub struct View {
    /// Column names; with `count`, the column and `rows`.
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
    /// Rows of the table, and those that pass the filters.
    pub total: u64,
    pub matched: u64,
    /// Different values, where they are counted.
    pub values: Option<usize>,
    /// Columns that cannot be shown, with what they hold.
    pub left_out: Vec<String>,
}

/// Looks into a table.
///
/// # Errors
/// Nothing is there that has rows; a column that is asked for is missing or cannot be compared so.
pub fn run(settings: &ShowSettings) -> Result<View> {
    let input = bookkeeping::resolved(&settings.input);
    if bookkeeping::is_absent_errors(&input) {
        bail!("{}: nothing failed, so there is no errors table", input.display());
    }
    let source = OpenTable::open(&input)?;
    let plan = Plan::new(&source, settings)?;
    let (mut total, mut matched) = (0, 0);
    let mut kept = DataFrame::empty();
    let mut counts: BTreeMap<String, (Value, u64)> = BTreeMap::new();
    let only_first_rows = settings.count.is_none() && settings.sort.is_none() && settings.filters.is_empty();
    for frame in source.frames(&plan.read) {
        let frame = frame?;
        total += frame.height() as u64;
        let frame = settings.filters.iter().try_fold(frame, |frame, filter| anyhow::Ok(frame.filter(&filter.mask(&frame)?)?))?;
        matched += frame.height() as u64;
        match &settings.count {
            Some(column) => count(&frame, column, &mut counts)?,
            None if kept.height() < settings.rows || settings.sort.is_some() || kept.width() == 0 => {
                kept = settings.best(kept, frame)?;
            }
            None => {}
        }
        // What is left to know is how many there are.
        if only_first_rows && kept.height() >= settings.rows {
            total = source.num_rows()?;
            matched = total;
            break;
        }
    }
    let values = settings.count.as_ref().map(|_| counts.len());
    let (columns, rows) = match &settings.count {
        Some(column) => {
            let mut counts: Vec<(Value, u64)> = counts.into_values().collect();
            counts.sort_by_key(|(_, rows)| std::cmp::Reverse(*rows));
            counts.truncate(settings.rows);
            (vec![column.clone(), "rows".into()], counts.into_iter().map(|(value, rows)| vec![value, json!(rows)]).collect())
        }
        None => {
            let cells = |row: usize| plan.shown.iter().map(|name| Ok(cell(kept.column(name)?.get(row)?))).collect();
            (plan.shown.clone(), (0..kept.height()).map(cells).collect::<PolarsResult<_>>()?)
        }
    };
    Ok(View { columns, rows, total, matched, values, left_out: plan.left_out })
}

impl ShowSettings {
    /// The rows to show out of those of two frames.
    fn best(&self, kept: DataFrame, chunk: DataFrame) -> PolarsResult<DataFrame> {
        let all = if kept.width() == 0 { chunk } else { kept.vstack(&chunk)? };
        let all = match &self.sort {
            Some(column) => {
                let order = SortMultipleOptions::default().with_order_descending(self.descending).with_nulls_last(true);
                all.sort([column.as_str()], order.with_maintain_order(true))?
            }
            None => all,
        };
        Ok(all.head(Some(self.rows)))
    }
}

/// Adds the rows of each value of a column.
fn count(chunk: &DataFrame, column: &str, counts: &mut BTreeMap<String, (Value, u64)>) -> Result<()> {
    let groups = chunk.group_by([column])?;
    let [keys] = &groups.keys_sliced(None)[..] else { bail!("{column}: one column is counted") };
    for (row, len) in groups.get_groups().iter().map(|group| group.len()).enumerate() {
        let key = cell(keys.get(row)?);
        counts.entry(key.to_string()).or_insert((key, 0)).1 += len as u64;
    }
    Ok(())
}

/// Which columns are read, and which of them shown.
struct Plan {
    read: Vec<String>,
    shown: Vec<String>,
    left_out: Vec<String>,
}

impl Plan {
    fn new(source: &OpenTable, settings: &ShowSettings) -> Result<Self> {
        let Columns { plain, others } = source.columns()?;
        let of_settings = settings.filters.iter().map(|filter| &filter.column).chain(&settings.count).chain(&settings.sort);
        let used: Vec<String> = settings.columns.iter().chain(of_settings).cloned().collect();
        for name in &used {
            if !plain.contains(name) {
                let kind = others.iter().find(|(other, _)| other == name);
                let fault = kind.map_or("missing".into(), |(_, kind)| format!("{kind}, which is not shown"));
                bail!("{}: the column {name} is {fault}; columns: {}", settings.input.display(), plain.join(", "));
            }
        }
        let shown = if settings.columns.is_empty() { captions_first(plain) } else { settings.columns.clone() };
        let mut read = if settings.count.is_some() { Vec::new() } else { shown.clone() };
        for name in used {
            if !read.contains(&name) {
                read.push(name);
            }
        }
        let shows_all = settings.columns.is_empty() && settings.count.is_none();
        let left_out = if shows_all { others.into_iter().map(|(name, _)| name).collect() } else { Vec::new() };
        Ok(Self { read, shown, left_out })
    }
}

/// What people look for comes first: the caption, then its image; a hash comes last.
fn captions_first(mut columns: Vec<String>) -> Vec<String> {
    if columns.iter().any(|name| name == "caption") {
        columns.sort_by_key(|name| match name.as_str() {
            "caption" => 0,
            name if name.starts_with("caption_") && name != "caption_index" && name != "caption_id" => 1,
            "image_path" | "file_name" => 2,
            "sha256" => 4,
            _ => 3,
        });
    }
    columns
}

fn cell(value: AnyValue) -> Value {
    match value {
        AnyValue::String(text) => json!(text),
        AnyValue::StringOwned(text) => json!(text.as_str()),
        AnyValue::Boolean(value) => json!(value),
        AnyValue::Int32(value) => json!(value),
        AnyValue::Int64(value) => json!(value),
        AnyValue::UInt32(value) => json!(value),
        AnyValue::UInt64(value) => json!(value),
        // Through its own digits: 0.1 as float32 is 0.1, not 0.10000000149.
        AnyValue::Float32(value) => json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value))),
        AnyValue::Float64(value) => json!(value),
        _ => Value::Null,
    }
}

impl View {
    /// `rows` as objects, `total`, `matched`, `values`, `left_out`.
    pub fn to_json(&self) -> Value {
        let object = |row: &Vec<Value>| self.columns.iter().cloned().zip(row.iter().cloned()).collect::<Map<_, _>>();
        let rows: Vec<_> = self.rows.iter().map(object).collect();
        json!({"rows": rows, "total": self.total, "matched": self.matched, "values": self.values, "left_out": self.left_out})
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int32Array, RecordBatch, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::filter::Test;
    use super::source::CHUNK_ROWS;
    use super::*;
    use crate::table::ParquetSink;

    /// Rows i = 0.. with `name` (a, b, c in turn, every seventh null), `number` i, `score` -i/2 and a vector.
    fn table(path: &Path, rows: i32) {
        let name = |i: i32| (i % 7 != 6).then(|| ["a", "b", "c"][i as usize % 3]);
        let item = Arc::new(Field::new("item", DataType::Float32, false));
        let vectors = Float32Array::from(vec![0.0; 2 * rows as usize]);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("name", Arc::new(StringArray::from((0..rows).map(name).collect::<Vec<_>>()))),
            ("number", Arc::new(Int32Array::from((0..rows).collect::<Vec<_>>()))),
            ("score", Arc::new(Float32Array::from((0..rows).map(|i| -0.1 * i as f32).collect::<Vec<_>>()))),
            ("vector", Arc::new(FixedSizeListArray::new(item, 2, Arc::new(vectors), None))),
        ];
        let fields: Vec<Field> = columns.iter().map(|(n, c)| Field::new(*n, c.data_type().clone(), true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, c)| c).collect()).unwrap();
        let mut sink = ParquetSink::create(path, schema, "test/1").unwrap();
        sink.write(&batch).unwrap();
        sink.finish().unwrap();
    }

    fn filters(texts: &[&str]) -> Vec<Filter> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn rows_are_filtered_sorted_and_cut_across_chunks() {
        let folder = tempfile::tempdir().unwrap();
        let rows = CHUNK_ROWS as i32 + 100;
        table(&folder.path().join("part-00000.parquet"), rows);
        table(&folder.path().join("part-00001.parquet"), 10);
        let shown = |settings: ShowSettings| run(&ShowSettings { input: folder.path().into(), ..settings }).unwrap();
        let first = shown(ShowSettings { rows: 2, ..Default::default() });
        assert_eq!((first.total, first.matched), (rows as u64 + 10, rows as u64 + 10));
        assert_eq!(first.rows, [[json!("a"), json!(0), json!(0.0)], [json!("b"), json!(1), json!(-0.1)]]);
        assert_eq!(first.left_out, ["vector"]);
        assert!(first.to_text(None).starts_with("name  number  score\na          0"), "{}", first.to_text(None));

        let sorted = ShowSettings { sort: Some("number".into()), descending: true, rows: 2, ..Default::default() };
        let last = shown(ShowSettings { columns: vec!["number".into()], ..sorted });
        assert_eq!(last.rows, [[json!(rows - 1)], [json!(rows - 2)]]);
        let late = filters(&["number>65600", "name=b"]);
        let late = shown(ShowSettings { filters: late, columns: vec!["number".into()], rows: 9, ..Default::default() });
        assert!(late.rows.len() == 9 && late.rows.iter().all(|row| row[0].as_i64().unwrap() % 3 == 1), "{:?}", late.rows);
        let none = shown(ShowSettings { filters: filters(&["name~z"]), rows: 9, ..Default::default() });
        assert!(none.rows.is_empty() && none.matched == 0 && none.to_text(None).contains("0 shown of 0 rows that match"));
    }

    #[test]
    fn values_are_counted_with_the_missing_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        table(&path, 21);
        let view = run(&ShowSettings { input: path.clone(), count: Some("name".into()), rows: 9, ..Default::default() }).unwrap();
        assert_eq!(view.rows.iter().map(|row| row[1].as_u64().unwrap()).sum::<u64>(), 21);
        assert!(view.rows.contains(&vec![Value::Null, json!(3)]), "{:?}", view.rows);
        let few = ShowSettings {
            input: path,
            count: Some("name".into()),
            filters: filters(&["number<2"]),
            rows: 9,
            ..Default::default()
        };
        assert_eq!(run(&few).unwrap().to_json()["rows"][0]["rows"], 1);
    }

    #[test]
    fn what_cannot_be_asked_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        table(&path, 3);
        let fault = |settings: ShowSettings| format!("{:#}", run(&ShowSettings { input: path.clone(), ..settings }).unwrap_err());
        assert!(fault(ShowSettings { sort: Some("x".into()), ..Default::default() }).contains("columns: name, number, score"));
        assert!(fault(ShowSettings { columns: vec!["vector".into()], ..Default::default() }).contains("not shown"));
        assert!(fault(ShowSettings { filters: filters(&["number=x"]), ..Default::default() }).contains("x is none"));
        assert!(fault(ShowSettings { filters: filters(&["name<1"]), ..Default::default() }).contains("compare numbers"));
        assert!("number".parse::<Filter>().is_err() && "=3".parse::<Filter>().is_err());
        assert_eq!("a!=b=c".parse(), Ok(Filter { column: "a".into(), test: Test::NotEqual, value: "b=c".into() }));
    }

    #[test]
    fn text_tables_have_columns_of_their_kind() {
        let folder = tempfile::tempdir().unwrap();
        let shown = |name: &str, text: &str, settings: ShowSettings| {
            let input = folder.path().join(name);
            std::fs::write(&input, text).unwrap();
            run(&ShowSettings { input, rows: 9, ..settings }).unwrap()
        };
        let csv = "\u{feff}image_id,image_path,sha256,caption,logprob,damaged\r\n007,a/7.jpg,ab,\"狗, 大\",-1.5,false\r\n008,a/8.jpg,cd,,-2,true\r\n";
        let view = shown("t.csv", csv, ShowSettings { sort: Some("logprob".into()), ..Default::default() });
        assert_eq!(view.columns, ["caption", "image_path", "image_id", "logprob", "damaged", "sha256"]);
        assert_eq!(view.rows[1][..5], [json!("狗, 大"), json!("a/7.jpg"), json!("007"), json!(-1.5), json!(false)]);
        let few = shown("t.csv", csv, ShowSettings { filters: filters(&["logprob<-1.8"]), ..Default::default() });
        assert_eq!((few.total, few.matched), (2, 1));
        // The original's table: no header, and lines of any length.
        let view = shown("t.tsv", "a.jpg\t一只\"狗\nb.jpg\t猫\t黑猫\n", ShowSettings::default());
        assert_eq!(view.columns, ["caption", "caption_2", "image_path"]);
        assert_eq!(view.rows, [[json!("一只\"狗"), json!(null), json!("a.jpg")], [json!("猫"), json!("黑猫"), json!("b.jpg")]]);
        let view = shown("t.jsonl", "{\"id\": 1, \"text\": [\"狗\"]}\n\n{\"id\": 2, \"more\": 0.5}\n", ShowSettings::default());
        assert_eq!(view.columns, ["id", "text", "more"]);
        assert_eq!(view.rows[0], [json!(1), json!("[\"狗\"]"), json!(null)]);
        let empty = shown("e.csv", "image_id,caption\n", ShowSettings::default());
        assert_eq!((empty.columns.len(), empty.total), (2, 0));
        // Rows that are not shown are counted all the same.
        let texts = [
            ("q.csv", "image_id,caption\na,\"狗\n大\"\nb,猫\n"),
            ("q.tsv", "a.jpg\t\"狗\nb.jpg\t猫\n"),
            ("q.jsonl", "{\"id\": 1}\n\n{\"id\": 2}"),
        ];
        for (name, text) in texts {
            shown(name, text, ShowSettings::default());
            let head = run(&ShowSettings { input: folder.path().join(name), rows: 1, ..Default::default() }).unwrap();
            assert_eq!((head.rows.len(), head.total, head.matched), (1, 2, 2), "{name}");
        }
    }

    #[test]
    fn what_has_no_rows_names_the_command_that_looks_into_it() {
        let folder = tempfile::tempdir().unwrap();
        let fault = |path: &Path| format!("{:#}", run(&ShowSettings { input: path.into(), ..Default::default() }).unwrap_err());
        assert!(fault(&folder.path().join("gone")).contains("no such file or folder"));
        std::fs::write(folder.path().join("clipcap.json"), "{}").unwrap();
        assert!(fault(folder.path()).contains("clipcap model inspect"));
        let json = folder.path().join("a.json");
        std::fs::write(&json, "{}").unwrap();
        assert!(fault(&json).contains("is not a table"));
    }
}
