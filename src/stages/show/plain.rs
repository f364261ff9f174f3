//! Tables as text: CSV, TSV (the original's too, which has no header) and JSON lines.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use polars::prelude::{DataFrame, IntoColumn, NamedFrom, Series};
use serde_json::{Map, Value};

use super::source::{CHUNK_ROWS, Frames};

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Csv,
    Tsv,
    JsonLines,
}

impl Kind {
    /// By a file name's end.
    pub fn of(extension: &str) -> Option<Self> {
        match extension {
            "csv" => Some(Self::Csv),
            "tsv" | "txt" => Some(Self::Tsv),
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            _ => None,
        }
    }
}

/// What a column holds, as its first rows have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cells {
    Text,
    Whole,
    Number,
    Truth,
}

/// A text table whose first rows have been looked at.
pub struct Plain {
    path: PathBuf,
    kind: Kind,
    delimiter: u8,
    has_header: bool,
    names: Vec<String>,
    cells: Vec<Cells>,
}

/// Names by which a header is told from a first row.
const HEADER_NAMES: [&str; 9] =
    ["image_id", "image_path", "file_name", "filename", "image", "caption", "captions", "text", "sha256"];

/// Rows of cells, in the order of the names; what is missing is null.
type Rows = Box<dyn Iterator<Item = Result<Vec<Value>>>>;

impl Plain {
    /// Looks at the first rows: names, and what the columns hold.
    ///
    /// # Errors
    /// The file cannot be read, or a line of it is no row.
    pub fn open(path: &Path, kind: Kind) -> Result<Self> {
        let mut plain = Self { path: path.into(), kind, delimiter: b',', has_header: true, names: Vec::new(), cells: Vec::new() };
        if kind == Kind::JsonLines {
            for object in objects(path)?.take(CHUNK_ROWS) {
                for name in object?.keys().filter(|name| !plain.names.contains(name)).cloned().collect::<Vec<_>>() {
                    plain.names.push(name);
                }
            }
        } else {
            plain.read_header()?;
        }
        let rows = plain.rows()?.take(CHUNK_ROWS).collect::<Result<Vec<_>>>()?;
        plain.cells = (0..plain.names.len()).map(|at| kind_of(rows.iter().map(|row| &row[at]))).collect();
        Ok(plain)
    }

    fn read_header(&mut self) -> Result<()> {
        let mut line = Vec::new();
        BufReader::new(self.file()?).read_until(b'\n', &mut line).with_context(|| self.unreadable())?;
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_start_matches('\u{feff}').trim_end();
        let count = |c: char| text.matches(c).count();
        if self.kind == Kind::Tsv {
            self.delimiter = b'\t';
            self.has_header = text.split('\t').any(|name| HEADER_NAMES.contains(&name.trim_matches('"')));
        } else if count(';') > count(',') {
            self.delimiter = b';';
        }
        let first = self.records()?.next().transpose()?.unwrap_or_default();
        self.names = match self.has_header {
            true => first,
            false => {
                let caption = |at: usize| if at == 1 { "caption".into() } else { format!("caption_{at}") };
                let widest = self.records()?.take(CHUNK_ROWS).map(|row| row.map_or(0, |row| row.len())).max().unwrap_or(0);
                (0..widest.max(1)).map(|at| if at == 0 { "image_path".into() } else { caption(at) }).collect()
            }
        };
        Ok(())
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    fn unreadable(&self) -> String {
        format!("cannot read {}", self.path.display())
    }

    fn file(&self) -> Result<File> {
        File::open(&self.path).with_context(|| format!("cannot open {}", self.path.display()))
    }

    fn reader(&self) -> Result<csv::Reader<File>> {
        let mut builder = csv::ReaderBuilder::new();
        // Quotes in the original's table are words like any other.
        builder.delimiter(self.delimiter).has_headers(false).flexible(true).quoting(self.has_header);
        Ok(builder.buffer_capacity(1 << 16).from_reader(self.file()?))
    }

    /// How many rows there are. Their cells are not looked at.
    pub fn num_rows(&self) -> Result<u64> {
        if self.kind == Kind::JsonLines {
            let lines = BufReader::with_capacity(1 << 16, self.file()?).split(b'\n');
            let mut filled = lines.map(|line| line.map(|line| u64::from(!String::from_utf8_lossy(&line).trim().is_empty())));
            return filled.try_fold(0, |rows, filled| std::io::Result::Ok(rows + filled?)).with_context(|| self.unreadable());
        }
        let (mut reader, mut record, mut rows) = (self.reader()?, csv::ByteRecord::new(), 0);
        while reader.read_byte_record(&mut record).with_context(|| self.unreadable())? {
            rows += 1;
        }
        Ok(rows - u64::from(self.has_header && rows > 0))
    }

    /// Lines of a CSV or TSV, its header too.
    fn records(&self) -> Result<impl Iterator<Item = Result<Vec<String>>> + use<>> {
        let unreadable = self.unreadable();
        Ok(self.reader()?.into_byte_records().map(move |record| {
            let record = record.with_context(|| unreadable.clone())?;
            Ok(record.iter().map(|cell| String::from_utf8_lossy(cell).trim_start_matches('\u{feff}').to_string()).collect())
        }))
    }

    fn rows(&self) -> Result<Rows> {
        let names = self.names.clone();
        if self.kind == Kind::JsonLines {
            let row =
                move |mut object: Map<String, Value>| names.iter().map(|name| object.remove(name).unwrap_or_default()).collect();
            return Ok(Box::new(objects(&self.path)?.map(move |object| object.map(&row))));
        }
        let row = move |cells: Vec<String>| {
            let mut cells = cells.into_iter();
            names.iter().map(|_| cells.next().map_or(Value::Null, Value::String)).collect()
        };
        Ok(Box::new(self.records()?.skip(usize::from(self.has_header)).map(move |cells| cells.map(&row))))
    }

    /// The rows' cells in these columns.
    pub fn frames<'a>(&'a self, columns: &'a [String]) -> Frames<'a> {
        let mut rows = match self.rows() {
            Ok(rows) => rows,
            Err(error) => return Box::new(std::iter::once(Err(error))),
        };
        let mut has_begun = false;
        Box::new(std::iter::from_fn(move || {
            let chunk = rows.by_ref().take(CHUNK_ROWS).collect::<Result<Vec<_>>>();
            // A table without rows has its columns all the same.
            if has_begun && chunk.as_ref().is_ok_and(Vec::is_empty) {
                return None;
            }
            has_begun = true;
            Some(chunk.and_then(|chunk| self.frame(&chunk, columns)))
        }))
    }

    fn frame(&self, rows: &[Vec<Value>], columns: &[String]) -> Result<DataFrame> {
        let column = |name: &String| {
            let at = self.names.iter().position(|known| known == name)?;
            let cells = rows.iter().map(|row| &row[at]);
            let name = name.as_str().into();
            let series = match self.cells[at] {
                Cells::Whole => Series::new(name, cells.map(whole).collect::<Vec<_>>()),
                Cells::Number => Series::new(name, cells.map(number).collect::<Vec<_>>()),
                Cells::Truth => Series::new(name, cells.map(truth).collect::<Vec<_>>()),
                Cells::Text => Series::new(name, cells.map(text).collect::<Vec<_>>()),
            };
            Some(series.into_column())
        };
        Ok(DataFrame::new(rows.len(), columns.iter().filter_map(column).collect())?)
    }
}

fn objects(path: &Path) -> Result<impl Iterator<Item = Result<Map<String, Value>>> + use<>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let path = path.to_path_buf();
    let lines =
        BufReader::new(file).lines().zip(1u64..).filter(|(line, _)| line.as_ref().map_or(true, |line| !line.trim().is_empty()));
    Ok(lines.map(move |(line, number)| {
        let context = || format!("{}: line {number} is not a JSON object", path.display());
        serde_json::from_str(line.with_context(context)?.trim_start_matches('\u{feff}')).with_context(context)
    }))
}

/// What all cells are that are not empty.
fn kind_of<'a>(cells: impl Iterator<Item = &'a Value> + Clone) -> Cells {
    let filled = || cells.clone().filter(|cell| !matches!(cell, Value::Null) && cell.as_str() != Some(""));
    let all = |is: fn(&Value) -> bool| filled().next().is_some() && filled().all(is);
    if all(|cell| whole(cell).is_some()) {
        Cells::Whole
    } else if all(|cell| number(cell).is_some()) {
        Cells::Number
    } else if all(|cell| truth(cell).is_some()) {
        Cells::Truth
    } else {
        Cells::Text
    }
}

/// Text is a whole number where the number's text is the same: `007` is a name.
fn whole(cell: &Value) -> Option<i64> {
    match cell {
        Value::String(text) => text.parse().ok().filter(|number: &i64| number.to_string() == *text),
        other => other.as_i64(),
    }
}

fn number(cell: &Value) -> Option<f64> {
    match cell {
        Value::String(text) => {
            let digits = text.trim_start_matches('-');
            let is_name = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
            let begins = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
            text.parse().ok().filter(|_| begins && !is_name)
        }
        other => other.as_f64(),
    }
}

fn truth(cell: &Value) -> Option<bool> {
    match cell {
        Value::String(text) => match text.as_str() {
            "true" | "True" => Some(true),
            "false" | "False" => Some(false),
            _ => None,
        },
        other => other.as_bool(),
    }
}

fn text(cell: &Value) -> Option<String> {
    match cell {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}
