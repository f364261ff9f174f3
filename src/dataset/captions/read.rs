//! Reads caption files: blocks of lines are parsed on every core while the next ones are read.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::batch::{Bad, Batch, Take};
use super::detect::{detect, is_tagged};
use super::encoding::{self, Encoding};
use super::json::{self, ObjectLayout};
use super::lines::Blocks;
use super::parquet::{files_of_dataset, read_table, tables_of};
use super::reader::{FileReader, Input};
use super::source::{implied_split, implied_translation, source_names, split_of_folder};
use super::text::{self, TextLayout};
use super::webdataset;
use super::{CaptionError, Columns, Format, Reason, Translation};
use crate::dataset::normalize::FoldWidth;
use crate::dataset::tar::called_a_tar;
use crate::files::ContentHash;

/// Files read side by side: small ones need not wait for each other.
const FILES_AT_ONCE: usize = 8;

/// How caption files are read.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// None: detected, file by file.
    pub format: Option<Format>,
    /// Which columns or fields hold what; of those not named here, the usual names.
    pub columns: Columns,
    /// Which full-width characters become ASCII in captions.
    pub fold: FoldWidth,
    /// Said by the caller for all files; None: as marks and names say.
    pub translation: Option<Translation>,
    /// Of files that are not UTF-8.
    pub encoding: Option<Encoding>,
    /// An empty caption is one, as a model's may be.
    pub empty: bool,
    /// What caption tables say of a caption besides its text is read too.
    pub details: bool,
    /// What is read of a JSON map that has several: `references` unless said.
    pub member: Option<&'static str>,
    /// Of files in whose names of images a folder is left out, that folder.
    pub folders: BTreeMap<PathBuf, String>,
}

/// A line that is no caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// Index of the file in [`Captions::files`].
    pub file: u16,
    pub line: u64,
    pub bad: Bad,
}

/// What one file held. `lines` = good + `bad` + `blank` + `header` + `continued`; in a JSON document elements count as lines.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FileReport {
    pub source: String,
    pub format: Format,
    pub sha256: ContentHash,
    pub lines: u64,
    pub blank: u64,
    pub header: u64,
    /// Further lines of records that span several.
    pub continued: u64,
    pub bad: u64,
    pub captions: u64,
    /// The split the file's name implies.
    pub split: Option<&'static str>,
    /// Its ids are those of a finished dataset: two that differ are two images.
    #[serde(skip)]
    pub exact_ids: bool,
}

impl FileReport {
    fn new(source: &str, format: Format, split: Option<&'static str>) -> Self {
        Self {
            source: source.into(),
            format,
            sha256: ContentHash::of([]),
            lines: 0,
            blank: 0,
            header: 0,
            continued: 0,
            bad: 0,
            captions: 0,
            split,
            exact_ids: false,
        }
    }
}

/// All captions of all files, not yet sorted.
#[derive(Debug, Default)]
pub struct Captions {
    pub files: Vec<FileReport>,
    /// Batches with the index of their file.
    pub batches: Vec<(u16, Batch)>,
    pub bad: Vec<BadLine>,
    /// Of each file, COCO image id to (file name, split).
    pub coco_files: Vec<HashMap<String, (String, String)>>,
}

/// Reads every file, and the tables of every folder. The result does not depend on the order of `paths`: files are taken by name.
///
/// # Errors
/// A file that cannot be read, or of which no layout is known. What is wrong with a line is no error: see [`Captions::bad`].
pub fn read_captions(paths: &[PathBuf], options: &ReadOptions) -> Result<Captions, CaptionError> {
    let mut files: Vec<PathBuf> = Vec::with_capacity(paths.len());
    for path in paths {
        match path.is_dir() {
            true => files.extend(tables_of(path)?),
            false => files.push(path.clone()),
        }
    }
    let mut named: Vec<(String, &PathBuf)> = source_names(&files)?.into_iter().zip(&files).collect();
    named.sort();
    let mut captions = Captions::default();
    for files in named.chunks(FILES_AT_ONCE) {
        let read: Vec<_> = files.par_iter().map(|(source, path)| read_file(source, path, options)).collect();
        for file in read {
            captions.add(file?);
        }
    }
    Ok(captions)
}

impl Captions {
    fn add(&mut self, content: FileContent) {
        let FileContent { mut report, batches, coco_files } = content;
        let file = self.files.len() as u16;
        // Elements of a document know their line; lines of blocks are counted on from block to block.
        let counted = !matches!(report.format, Format::Karpathy | Format::Coco);
        report.lines = report.header;
        for mut batch in batches {
            let before = if counted { report.lines } else { 0 };
            batch.rows.iter_mut().for_each(|row| row.line += before);
            self.bad.extend(batch.bad.drain(..).map(|(line, bad)| {
                report.bad += 1;
                BadLine { file, line: line + before, bad }
            }));
            report.lines += batch.lines;
            report.blank += batch.blank;
            report.continued += batch.continued;
            report.captions += batch.rows.len() as u64;
            self.batches.push((file, batch));
        }
        self.files.push(report);
        self.coco_files.push(coco_files);
    }
}

/// What one file held, its batches not yet counted in the report.
struct FileContent {
    report: FileReport,
    batches: Vec<Batch>,
    coco_files: HashMap<String, (String, String)>,
}

fn read_file(source: &str, path: &Path, options: &ReadOptions) -> Result<FileContent, CaptionError> {
    let io = |source| CaptionError::Io { path: path.into(), source };
    let layout_error = |message| CaptionError::Layout { path: path.into(), message };
    if options.format.map_or_else(|| called_a_tar(path), |format| format == Format::WebDataset) {
        return read_tar(source, path, options);
    }
    let file = File::open(path).map_err(io)?;
    let (input, trusted) = Input::new(file, options.encoding).map_err(io)?;
    let mut blocks = Blocks::new(input);
    let head = blocks.next_block().map_err(io)?.unwrap_or_default();
    if memchr::memchr(b'\n', &head).is_none() && head.trim_ascii_end().contains(&b'\r') {
        return Err(layout_error("its lines end in CR alone: convert it first (tr '\\r' '\\n' < FILE > NEW)".into()));
    }
    if head.starts_with(&[0x1f, 0x8b]) {
        return Err(layout_error("it is compressed: unpack it first (gunzip FILE)".into()));
    }
    let take = Take { fold: options.fold, empty: options.empty, details: options.details, trusted };
    let columns_named = options.columns.image.is_some() || !options.columns.captions.is_empty();
    let format = match options.format {
        Some(format) => format,
        None => detect(&head, source, columns_named).map_err(layout_error)?,
    };
    let split = implied_split(source, format == Format::FlickrCn).or_else(|| split_of_folder(path));
    let mut report = FileReport::new(source, format, split);
    let translation = options.translation.unwrap_or_else(|| implied_translation(source));
    if format == Format::Parquet {
        let table = read_table(path, &options.columns, true)?;
        report.exact_ids = table.has_exact_ids;
        report.sha256 = ContentHash::of_file(path).map_err(io)?;
        let coco_files = if table.is_ours { files_of_dataset(path)? } else { HashMap::new() };
        let mut batches: Vec<Batch> = table.rows.into_par_iter().map(|rows| rows.into_batch(translation, take)).collect();
        place(&mut batches, options.folders.get(path));
        return Ok(FileContent { report, batches, coco_files });
    }
    let mut reader = FileReader { blocks, next: Some(head), path, batches: Vec::new() };
    let mut coco_files = HashMap::new();
    match format {
        Format::FlickrCn | Format::CocoCn | Format::Tsv => {
            let tagged = format == Format::FlickrCn && is_tagged(reader.head());
            let layout = TextLayout { format, tagged, translation, take };
            reader.parse_blocks(|block| text::parse_block(block, &layout))?;
            if options.translation.is_none() && format == Format::FlickrCn {
                reader.settle_translation(tagged, split);
            }
        }
        Format::Jsonl => {
            let layout = ObjectLayout { columns: &options.columns, translation, take };
            reader.parse_blocks(|block| json::parse_lines(&block, &layout))?;
        }
        Format::Csv => {
            report.header = reader.parse_table(&options.columns, translation, take)?;
        }
        Format::Karpathy | Format::Coco => {
            let layout = ObjectLayout { columns: &options.columns, translation, take };
            reader.parse_document(format, &layout, &mut coco_files)?;
        }
        Format::Map => {
            let layout = ObjectLayout { columns: &options.columns, translation, take };
            reader.parse_map(options.member.unwrap_or("references"), &layout)?;
        }
        Format::Parquet | Format::WebDataset => {}
    }
    let FileReader { blocks, mut batches, .. } = reader;
    if !trusted {
        reject_chance(&mut batches);
    }
    place(&mut batches, options.folders.get(path));
    report.sha256 = blocks.into_inner().sha256();
    Ok(FileContent { report, batches, coco_files })
}

/// A tar, whose samples name their pictures for certain.
fn read_tar(source: &str, path: &Path, options: &ReadOptions) -> Result<FileContent, CaptionError> {
    let take = Take { fold: options.fold, empty: options.empty, details: options.details, trusted: false };
    let columns = Columns { image: None, ..options.columns.clone() };
    let translation = options.translation.unwrap_or_else(|| implied_translation(source));
    let layout = ObjectLayout { columns: &columns, translation, take };
    let read = webdataset::read(path, &layout).map_err(|source| CaptionError::Io { path: path.into(), source })?;
    let report = FileReport::new(source, Format::WebDataset, implied_split(source, false));
    let report = FileReport { sha256: read.sha256, exact_ids: true, ..report };
    Ok(FileContent { report, batches: read.batches, coco_files: HashMap::new() })
}

fn place(batches: &mut [Batch], folder: Option<&String>) {
    if let Some(folder) = folder {
        batches.par_iter_mut().for_each(|batch| batch.place_in(folder));
    }
}

/// Among lines that are not UTF-8, and none that is for certain, what may be UTF-8 by chance is.
fn reject_chance(batches: &mut [Batch]) {
    let is_broken = batches.iter().any(|batch| batch.bad.iter().any(|(_, bad)| bad.reason == Reason::InvalidUtf8));
    let texts = || batches.iter().flat_map(|batch| batch.rows.iter().map(|row| batch.get(row.raw)));
    if is_broken && !texts().any(|text| text.chars().any(|c| c >= '\u{800}')) {
        batches
            .iter_mut()
            .for_each(|batch| batch.reject(|text| encoding::by_chance_among_others(text).map(|text| text::chance(&text))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8], options: &ReadOptions) -> Captions {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read_captions(&[path], options).unwrap()
    }

    #[test]
    fn line_numbers_go_on_over_blocks() {
        let mut text = String::new();
        for i in 0..60_000 {
            text.push_str(&format!("{i}#zhb#0 第 {i} 张 图\n"));
        }
        text.push_str("bad\n");
        let captions = read("x-val.txt", text.as_bytes(), &ReadOptions::default());
        assert!(captions.batches.len() > 1);
        let last = captions.batches.last().unwrap().1.rows.last().unwrap();
        assert_eq!((last.line, captions.bad[0].line), (60_000, 60_001));
        let report = &captions.files[0];
        assert_eq!((report.lines, report.captions, report.bad, report.split), (60_001, 60_000, 1, Some("dev")));
        assert_eq!(report.sha256, ContentHash::of(text));
    }

    #[test]
    fn coco_documents_name_their_files_wherever_they_stand() {
        let text = r#"{"annotations": [{"image_id": 1, "id": 5, "caption": "狗"}, {"image_id": 1, "caption": "\ud800"}],
            "images": [{"id": 1, "file_name": "C_1.jpg"}], "licenses": [{}]}"#;
        let captions = read("c.json", text.as_bytes(), &ReadOptions::default());
        assert_eq!(captions.coco_files[0]["1"].0, "C_1.jpg");
        assert_eq!((captions.files[0].captions, captions.files[0].bad, captions.files[0].lines), (1, 1, 2));
        let cut = read("c.json", &text.as_bytes()[..60], &ReadOptions { format: Some(Format::Coco), ..ReadOptions::default() });
        assert_eq!((cut.files[0].captions, cut.files[0].bad), (1, 1));
    }

    #[test]
    fn tables_read_over_blocks_and_count_their_header() {
        let mut text = String::from("image,caption\r\n");
        for i in 0..80_000 {
            text.push_str(&format!("{i}.jpg,\"第 {i},\n张\"\r\n"));
        }
        let captions = read("t.csv", text.as_bytes(), &ReadOptions::default());
        let report = &captions.files[0];
        assert_eq!((report.lines, report.header, report.continued, report.captions), (160_001, 1, 80_000, 80_000));
        let (_, batch) = &captions.batches[captions.batches.len() - 1];
        let last = batch.rows.last().unwrap();
        assert_eq!((last.line, batch.get(last.caption)), (160_000, "第79999,张"));
    }

    #[test]
    fn marks_tags_and_names_say_who_translated() {
        let one = |name: &str, text: &str| {
            let captions = read(name, text.as_bytes(), &ReadOptions::default());
            captions.batches[0].1.rows[0].translation
        };
        assert_eq!(one("a.txt", "1#zhb#0 狗 在 跑\n"), Translation::Machine);
        assert_eq!(one("a.txt", "1#zh#0 狗:n 在:p\n"), Translation::Human);
        assert_eq!(one("a-train.txt", "1#zh#0 狗 在\n"), Translation::Machine);
        assert_eq!(one("a.txt", "1#zh#0 狗 在\n"), Translation::Unknown);
        let said = ReadOptions { translation: Some(Translation::Human), ..ReadOptions::default() };
        assert_eq!(read("a.txt", "1#zhb#0 狗\n".as_bytes(), &said).batches[0].1.rows[0].translation, Translation::Human);
    }
}
