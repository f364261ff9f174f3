//! `clipcap show`: a look into any Parquet table, without Python. Tables are read a chunk at a time, so that their length costs no memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatchReader;
use polars::prelude::{AnyValue, DataFrame, ParquetReader, PolarsResult, SerReader, SortMultipleOptions};
use serde_json::{Map, Value, json};
use unicode_width::UnicodeWidthStr;

use crate::bookkeeping;
use crate::dataset::captions::tables_of;
use crate::table;

mod filter;

pub use filter::{Filter, Test};

/// What to show of a table.
#[derive(Debug, Default)]
pub struct ShowSettings {
    /// A Parquet file, a dataset, or a folder of numbered parts.
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

/// Rows in memory at a time.
const CHUNK_ROWS: usize = 1 << 16;
/// Wider cells are cut on the terminal, in columns.
const CELL_WIDTH: usize = 56;

pub fn run(settings: &ShowSettings) -> Result<View> {
    let input = bookkeeping::resolved(&settings.input);
    if bookkeeping::is_absent_errors(&input) {
        bail!("{}: nothing failed, so there is no errors table", input.display());
    }
    let files = if input.is_dir() { tables_of(&input)? } else { vec![input] };
    let plan = Plan::new(&files[0], settings)?;
    let (mut total, mut matched) = (0, 0);
    let mut kept = DataFrame::empty();
    let mut counts: BTreeMap<String, (Value, u64)> = BTreeMap::new();
    let only_first_rows = settings.count.is_none() && settings.sort.is_none() && settings.filters.is_empty();
    for path in &files {
        let mut offset = 0;
        loop {
            if only_first_rows && kept.width() > 0 && kept.height() >= settings.rows {
                // What is left to know is how many there are, and the file says so.
                let rest = (num_rows(path)? - offset) as u64;
                total += rest;
                matched += rest;
                break;
            }
            let chunk = plan.read(path, offset)?;
            let height = chunk.height();
            let chunk =
                settings.filters.iter().try_fold(chunk, |chunk, filter| anyhow::Ok(chunk.filter(&filter.mask(&chunk)?)?))?;
            total += height as u64;
            matched += chunk.height() as u64;
            match &settings.count {
                Some(column) => count(&chunk, column, &mut counts)?,
                None if kept.height() < settings.rows || settings.sort.is_some() => kept = settings.best(kept, chunk)?,
                None => {}
            }
            offset += height;
            if height < CHUNK_ROWS {
                break;
            }
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
    fn new(path: &Path, settings: &ShowSettings) -> Result<Self> {
        let schema: SchemaRef = table::open(path, None)?.schema();
        let is_shown = |name: &str| schema.field_with_name(name).is_ok_and(|field| is_plain(field.data_type()));
        let names = schema.fields().iter().map(|field| field.name().clone());
        let (plain, others): (Vec<String>, Vec<String>) = names.partition(|name| is_shown(name));
        let of_settings = settings.filters.iter().map(|filter| &filter.column).chain(&settings.count).chain(&settings.sort);
        let used: Vec<String> = settings.columns.iter().chain(of_settings).cloned().collect();
        for name in &used {
            if !plain.contains(name) {
                let kind = schema.field_with_name(name).map(|field| format!("{}, which is not shown", field.data_type()));
                let fault = kind.unwrap_or_else(|_| "missing".into());
                bail!("{}: the column {name} is {fault}; columns: {}", path.display(), plain.join(", "));
            }
        }
        let shown = if settings.columns.is_empty() { plain } else { settings.columns.clone() };
        let mut read = if settings.count.is_some() { Vec::new() } else { shown.clone() };
        for name in used {
            if !read.contains(&name) {
                read.push(name);
            }
        }
        let left_out = if settings.columns.is_empty() && settings.count.is_none() { others } else { Vec::new() };
        Ok(Self { read, shown, left_out })
    }

    fn read(&self, path: &Path, offset: usize) -> Result<DataFrame> {
        let reader = reader(path)?.with_columns(Some(self.read.clone())).with_slice(Some((offset, CHUNK_ROWS)));
        reader.finish().with_context(|| format!("cannot read {}", path.display()))
    }
}

fn reader(path: &Path) -> Result<ParquetReader<File>> {
    Ok(ParquetReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?))
}

fn num_rows(path: &Path) -> Result<usize> {
    reader(path)?.num_rows().with_context(|| format!("cannot read {}", path.display()))
}

/// Whether a cell is a word, a number or a truth value.
fn is_plain(kind: &DataType) -> bool {
    use DataType::{Boolean, Float32, Float64, Int32, Int64, LargeUtf8, UInt32, UInt64, Utf8, Utf8View};
    matches!(kind, Boolean | Float32 | Float64 | Int32 | Int64 | LargeUtf8 | UInt32 | UInt64 | Utf8 | Utf8View)
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
    /// The rows in columns, and below them how many there are.
    pub fn to_text(&self) -> String {
        let head = self.columns.clone();
        let body = self.rows.iter().map(|row| row.iter().map(text).collect());
        let lines: Vec<Vec<String>> = std::iter::once(head).chain(body).collect();
        let widths: Vec<usize> =
            (0..self.columns.len()).map(|at| lines.iter().map(|line| line[at].width()).max().unwrap_or(0)).collect();
        let is_number: Vec<bool> = (0..self.columns.len())
            .map(|at| self.rows.iter().all(|row| row[at].is_number() || row[at].is_null()) && !self.rows.is_empty())
            .collect();
        let mut out = String::new();
        for line in &lines {
            let cells = line.iter().enumerate().map(|(at, cell)| {
                let space = " ".repeat(widths[at] - cell.width());
                if is_number[at] { format!("{space}{cell}") } else { format!("{cell}{space}") }
            });
            out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            out.push('\n');
        }
        let filtered = if self.matched < self.total { format!(" that match, of {}", self.total) } else { String::new() };
        let rows = format!("{} rows{filtered}", self.matched);
        match self.values {
            Some(values) => out.push_str(&format!("\n{} shown of {values} values in {rows}", self.rows.len())),
            None => out.push_str(&format!("\n{} shown of {rows}", self.rows.len())),
        }
        if !self.left_out.is_empty() {
            out.push_str(&format!("; columns that are neither text nor numbers: {}", self.left_out.join(", ")));
        }
        out
    }

    /// `rows` as objects, `total`, `matched`, `values`, `left_out`.
    pub fn to_json(&self) -> Value {
        let object = |row: &Vec<Value>| self.columns.iter().cloned().zip(row.iter().cloned()).collect::<Map<_, _>>();
        let rows: Vec<_> = self.rows.iter().map(object).collect();
        json!({"rows": rows, "total": self.total, "matched": self.matched, "values": self.values, "left_out": self.left_out})
    }
}

/// A cell as the terminal may have it: nothing that moves its cursor, and not too wide.
fn text(value: &Value) -> String {
    let whole = match value {
        Value::Null => return String::new(),
        Value::String(text) => {
            text.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect()
        }
        other => other.to_string(),
    };
    if whole.width() <= CELL_WIDTH {
        return whole;
    }
    let mut cut = String::new();
    for c in whole.chars() {
        if cut.width() + c.to_string().width() >= CELL_WIDTH {
            break;
        }
        cut.push(c);
    }
    cut + "…"
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int32Array, RecordBatch, StringArray};
    use arrow::datatypes::{Field, Schema};

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
        assert!(first.to_text().starts_with("name  number  score\na          0"), "{}", first.to_text());

        let sorted = ShowSettings { sort: Some("number".into()), descending: true, rows: 2, ..Default::default() };
        let last = shown(ShowSettings { columns: vec!["number".into()], ..sorted });
        assert_eq!(last.rows, [[json!(rows - 1)], [json!(rows - 2)]]);
        let late = filters(&["number>65600", "name=b"]);
        let late = shown(ShowSettings { filters: late, columns: vec!["number".into()], rows: 9, ..Default::default() });
        assert!(late.rows.len() == 9 && late.rows.iter().all(|row| row[0].as_i64().unwrap() % 3 == 1), "{:?}", late.rows);
        let none = shown(ShowSettings { filters: filters(&["name~z"]), rows: 9, ..Default::default() });
        assert!(none.rows.is_empty() && none.matched == 0 && none.to_text().contains("0 shown of 0 rows that match"));
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
    fn a_cell_cannot_steer_the_terminal() {
        assert_eq!(text(&json!("a\u{1b}[2Jb\n")), "a\\u{1b}[2Jb\\n");
        let wide = text(&json!("狗".repeat(100)));
        assert!(wide.ends_with('…') && wide.width() <= CELL_WIDTH, "{wide}");
    }
}
