//! Caption tables: Parquet (one file or numbered parts), CSV, the original's TSV, and JSON lines.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::scoring::{Scored, ranked};
use super::value::{CaptionText, Captions};
use crate::files::AtomicFile;
use crate::pipeline::{Build, Entry, Record, Sink};

mod parquet;

use parquet::ParquetRows;

/// The manifest's and the footers' format.
pub const FORMAT: &str = "captions/1";

/// Images of a part, where the output is a folder.
const PART_IMAGES: u64 = 50_000;

/// The kind of file that a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// One Parquet file.
    Parquet,
    /// Comma-separated, with a header; the same columns as Parquet's.
    Csv,
    /// `file_name<TAB>caption<TAB>caption...`, a line an image, as the original writes it.
    Tsv,
    /// A JSON object per row.
    JsonLines,
    /// A folder of numbered Parquet parts.
    Parts,
}

impl TableFormat {
    /// By the name the table is to have; `None` where it says nothing that is known.
    pub fn of(out: &Path) -> Option<Self> {
        let ends_with_slash = out.as_os_str().to_string_lossy().ends_with(['/', std::path::MAIN_SEPARATOR]);
        if ends_with_slash || out.is_dir() || out.extension().is_none() {
            return Some(Self::Parts);
        }
        match out.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "parquet" => Some(Self::Parquet),
            "csv" => Some(Self::Csv),
            "tsv" | "txt" => Some(Self::Tsv),
            "jsonl" => Some(Self::JsonLines),
            _ => None,
        }
    }
}

/// A row, as CSV and JSON lines spell it; Parquet has the same columns.
#[derive(Clone, Serialize, Deserialize)]
pub struct Row<'a> {
    pub image_id: Cow<'a, str>,
    pub image_path: Cow<'a, str>,
    pub sha256: Cow<'a, str>,
    pub caption_index: i32,
    pub caption: Cow<'a, str>,
    pub logprob: f64,
    pub num_tokens: i32,
    pub finish_reason: Cow<'a, str>,
    #[serde(default)]
    pub damaged: bool,
    /// Written where the whole table has it; so is the rank.
    #[serde(default, skip_serializing)]
    pub clip_score: Option<f32>,
    /// From 1, the best first.
    #[serde(default, skip_serializing)]
    pub rank: Option<i32>,
}

/// How a table is written, besides its format.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Cells that a spreadsheet would run are quoted.
    pub quotes_formulas: bool,
    /// A byte order mark stands before the first cell, by which Excel knows UTF-8.
    pub bom: bool,
    /// Rows go to stdout too, as soon as they are there.
    pub to_stdout: bool,
    /// Columns of scores.
    pub scored: Scored,
}

/// A caption table under construction.
pub struct TableSink {
    format: TableFormat,
    style: Style,
    folder: PathBuf,
    writer: Writer,
    names: Vec<PathBuf>,
    part_images: u64,
}

enum Writer {
    Parquet(Box<ParquetRows>),
    Csv(Box<csv::Writer<Text>>),
    Plain(Text),
}

/// A file of text, and stdout where it is wanted there too.
struct Text {
    file: AtomicFile,
    to_stdout: bool,
}

impl Text {
    fn create(path: &Path, style: Style) -> Result<Self> {
        let mut text = Self { file: AtomicFile::create(path)?, to_stdout: style.to_stdout };
        if style.bom {
            text.write_all("\u{feff}".as_bytes())?;
        }
        Ok(text)
    }

    fn commit(mut self) -> Result<()> {
        self.flush()?;
        Ok(self.file.commit()?)
    }
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.to_stdout {
            io::stdout().lock().write_all(bytes)?;
        }
        self.file.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.to_stdout {
            io::stdout().lock().flush()?;
        }
        self.file.flush()
    }
}

impl TableSink {
    /// Begins a table in `folder`.
    pub fn create(format: TableFormat, style: Style, folder: &Path) -> Result<Self> {
        let mut sink = Self {
            format,
            style,
            folder: folder.into(),
            writer: open(format, style, &folder.join(name(format, 0)))?,
            names: Vec::new(),
            part_images: 0,
        };
        sink.names.push(name(format, 0));
        Ok(sink)
    }

    fn next_part(&mut self) -> Result<()> {
        let name = name(self.format, self.names.len());
        let next = open(self.format, self.style, &self.folder.join(&name))?;
        std::mem::replace(&mut self.writer, next).finish()?;
        self.names.push(name);
        self.part_images = 0;
        Ok(())
    }
}

fn name(format: TableFormat, part: usize) -> PathBuf {
    match format {
        TableFormat::Parts => format!("part-{part:05}.parquet").into(),
        _ => "table".into(),
    }
}

fn open(format: TableFormat, style: Style, path: &Path) -> Result<Writer> {
    Ok(match format {
        TableFormat::Parquet | TableFormat::Parts => Writer::Parquet(Box::new(ParquetRows::create(style.scored, path)?)),
        TableFormat::Csv => {
            let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Text::create(path, style)?);
            // By hand, so that a table without rows has its header too.
            writer.write_record(COLUMNS.iter().chain(style.scored.columns()))?;
            Writer::Csv(Box::new(writer))
        }
        TableFormat::Tsv | TableFormat::JsonLines => Writer::Plain(Text::create(path, style)?),
    })
}

impl Sink<Captions> for TableSink {
    fn add(&mut self, entry: &Entry, record: &Record<Captions>) -> Result<()> {
        let (Ok(captions), Some(sha256)) = (&record.result, &record.sha256) else {
            return Ok(());
        };
        if self.format == TableFormat::Parts && self.part_images == PART_IMAGES {
            self.next_part()?;
        }
        self.part_images += 1;
        let sha256 = sha256.to_string();
        match (&mut self.writer, self.format) {
            (Writer::Plain(file), TableFormat::Tsv) => {
                file.write_all(cell(&entry.image_path, self.style.quotes_formulas).as_bytes())?;
                let order = match self.style.scored {
                    Scored::Rank => ranked(&captions.texts),
                    _ => (0..captions.texts.len()).collect(),
                };
                for caption in order.into_iter().map(|at| &captions.texts[at]) {
                    // A vocabulary is anyone's: what parts fields and lines stays out of them.
                    let text = caption.text.replace(['\t', '\n', '\r'], " ");
                    write!(file, "\t{}", cell(&text, self.style.quotes_formulas))?;
                }
                file.write_all(b"\n")?;
            }
            (Writer::Plain(file), _) => {
                for row in rows(entry, &sha256, captions) {
                    let mut line = match self.style.scored {
                        Scored::No => serde_json::to_vec(&row)?,
                        scored => serde_json::to_vec(&ScoredRow::new(row, scored))?,
                    };
                    line.push(b'\n');
                    file.write_all(&line)?;
                }
            }
            (Writer::Csv(writer), _) => {
                for row in rows(entry, &sha256, captions) {
                    let [image_id, image_path, caption] =
                        [&row.image_id, &row.image_path, &row.caption].map(|text| cell(text, self.style.quotes_formulas));
                    let (clip_score, rank) = (row.clip_score, row.rank);
                    let row = Row { image_id, image_path, caption, ..row.clone() };
                    match self.style.scored {
                        Scored::No => writer.serialize(row)?,
                        Scored::Score => writer.serialize((row, clip_score))?,
                        Scored::Rank => writer.serialize((row, clip_score, rank))?,
                    }
                }
            }
            (Writer::Parquet(writer), _) => {
                for row in rows(entry, &sha256, captions) {
                    writer.push(row)?;
                }
            }
        }
        if self.style.to_stdout { self.writer.flush() } else { Ok(()) }
    }

    fn weight(&self, captions: &Captions) -> u64 {
        captions.texts.len() as u64
    }
}

/// A text that a spreadsheet shows and does not run, if that is wanted: what begins like a formula is quoted by an apostrophe.
fn cell(text: &str, quotes_formulas: bool) -> Cow<'_, str> {
    if quotes_formulas && begins_a_formula(text) { format!("'{text}").into() } else { text.into() }
}

/// The same text without that apostrophe.
pub fn unquoted(cell: &str) -> &str {
    cell.strip_prefix('\'').filter(|text| begins_a_formula(text)).unwrap_or(cell)
}

fn begins_a_formula(text: &str) -> bool {
    text.starts_with(['=', '+', '-', '@', '\t', '\r'])
}

fn rows<'a>(entry: &'a Entry, sha256: &'a str, captions: &'a Captions) -> impl Iterator<Item = Row<'a>> {
    let mut ranks = vec![0; captions.texts.len()];
    ranked(&captions.texts).into_iter().zip(1..).for_each(|(at, rank)| ranks[at] = rank);
    captions.texts.iter().zip(ranks).map(move |(caption, rank): (&CaptionText, i32)| Row {
        image_id: entry.image_id.as_str().into(),
        image_path: entry.image_path.as_str().into(),
        sha256: sha256.into(),
        caption_index: caption.index,
        caption: caption.text.as_str().into(),
        logprob: caption.logprob,
        num_tokens: caption.num_tokens,
        finish_reason: caption.finish_reason.as_str().into(),
        damaged: captions.damaged,
        clip_score: caption.clip_score,
        rank: Some(rank),
    })
}

/// A row of JSON lines with its score.
#[derive(Serialize)]
struct ScoredRow<'a> {
    #[serde(flatten)]
    row: Row<'a>,
    clip_score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<i32>,
}

impl<'a> ScoredRow<'a> {
    fn new(row: Row<'a>, scored: Scored) -> Self {
        Self { clip_score: row.clip_score, rank: row.rank.filter(|_| scored == Scored::Rank), row }
    }
}

impl Scored {
    /// Names of the columns behind the others.
    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::No => &[],
            Self::Score => &["clip_score"],
            Self::Rank => &["clip_score", "rank"],
        }
    }
}

impl Build<Captions> for TableSink {
    fn finish(self) -> Result<Vec<PathBuf>> {
        self.writer.finish()?;
        Ok(self.names)
    }
}

impl Writer {
    /// Hands on what is written so far: whoever reads stdout waits for it.
    fn flush(&mut self) -> Result<()> {
        match self {
            Self::Parquet(_) => Ok(()),
            Self::Csv(writer) => Ok(writer.flush()?),
            Self::Plain(text) => Ok(text.flush()?),
        }
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Parquet(rows) => rows.finish(),
            Self::Csv(writer) => writer.into_inner().map_err(|e| e.into_error())?.commit(),
            Self::Plain(file) => file.commit(),
        }
    }
}

const COLUMNS: [&str; 9] =
    ["image_id", "image_path", "sha256", "caption_index", "caption", "logprob", "num_tokens", "finish_reason", "damaged"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_like_a_formula_is_quoted_on_request_and_comes_back() {
        for text in ["=1+1", "+1", "-1", "@x", "\tx", "\rx"] {
            let quoted = cell(text, true);
            assert_eq!(quoted, format!("'{text}"));
            assert_eq!((unquoted(&quoted), &*cell(text, false)), (text, text));
        }
        for text in ["", "一只狗", "a=b", "'a"] {
            assert_eq!((&*cell(text, true), unquoted(text)), (text, text));
        }
    }
}
