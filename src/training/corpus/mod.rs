//! The captions of a run as token ids beside what is known of their images: made once, kept in a folder, and read from there.
//!
//! `captions.parquet` holds the captions whose image is known (split, image row, token ids), `images.bin` a row of bytes for each image: its
//! embedding (float32 [D], little-endian), its pixels (uint8 [S, S, 3]) or nothing. It is mapped and not loaded; captions of an image share
//! its row. `corpus.json`, written last, says what they were made from.

mod tokenized;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, Int32Array, StringArray, UInt32Array};
use arrow::datatypes::UInt32Type;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

pub use tokenized::{Framing, Tokenized};

use crate::random::{Stream, key};
use crate::table::{self, TableError};
use crate::text::TextError;

pub const FORMAT: &str = "training-captions/1";
const CAPTIONS: &str = "captions.parquet";
const IMAGES: &str = "images.bin";
const RECORD: &str = "corpus.json";

/// Tells the stream of an image's caption from the others.
const CHOICE: u64 = 0x6368_6f69;

#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {problem}", path.display())]
    Invalid { path: PathBuf, problem: String },
    #[error("{0}")]
    Embeddings(String),
    #[error("{0}")]
    Vocabulary(String),
}

/// A caption as the dataset has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionRow {
    pub image_id: String,
    /// Which of the image's captions.
    pub caption_id: i32,
    pub caption: String,
    /// `train`, `dev`; captions of other splits are left out before they get here.
    pub split: String,
}

/// `corpus.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    #[serde(rename = "clipcap.format")]
    format: String,
    fingerprint: String,
    row_bytes: usize,
    join: JoinReport,
}

/// What the join found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReport {
    pub captions: u64,
    pub images: u64,
    /// Captions left out because their image is not known.
    pub captions_without_image: u64,
    /// Some of the images they belong to.
    pub examples: Vec<String>,
    /// Rows of an image that had one before; the first is used.
    pub repeated_images: u64,
}

/// The captions of one split: token ids one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captions {
    ids: Vec<u32>,
    offsets: Vec<u64>,
    image_rows: Vec<u32>,
}

impl Captions {
    pub fn len(&self) -> usize {
        self.image_rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.image_rows.is_empty()
    }

    /// Token ids of a caption, `[SEP]` included; never empty.
    pub fn ids(&self, caption: usize) -> &[u32] {
        &self.ids[self.offsets[caption] as usize..self.offsets[caption + 1] as usize]
    }

    /// Token ids of all captions together.
    pub fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    /// The row of a caption's image in the embeddings.
    pub fn image_row(&self, caption: usize) -> usize {
        self.image_rows[caption] as usize
    }

    /// One caption of each image, ascending by number: which one is drawn anew for each (seed, epoch).
    pub fn one_an_image(&self, seed: u64, epoch: u64) -> Vec<u32> {
        // An image's n-th caption takes the place of the one before with a chance of 1 in n.
        let mut chosen: HashMap<u32, (u64, u32)> = HashMap::new();
        for (number, &row) in self.image_rows.iter().enumerate() {
            let (seen, choice) = chosen.entry(row).or_default();
            *seen += 1;
            if Stream::new(key(&[CHOICE, seed, epoch, number as u64])).below(*seen) == 0 {
                *choice = number as u32;
            }
        }
        let mut numbers: Vec<u32> = chosen.into_values().map(|(_, number)| number).collect();
        numbers.sort_unstable();
        numbers
    }

    fn push(&mut self, image_row: u32, ids: &[u32]) {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        self.ids.extend_from_slice(ids);
        self.offsets.push(self.ids.len() as u64);
        self.image_rows.push(image_row);
    }
}

/// A corpus that is ready: captions in memory, images mapped.
pub struct Corpus {
    pub train: Captions,
    pub dev: Captions,
    row_bytes: usize,
    pub join: JoinReport,
    map: Option<Mmap>,
    folder: PathBuf,
}

impl Corpus {
    /// Reads a corpus that was made from what `fingerprint` stands for; None where there is none, or another.
    pub fn open(folder: &Path, fingerprint: &str) -> Result<Option<Self>, CorpusError> {
        let record_path = folder.join(RECORD);
        let Ok(text) = std::fs::read(&record_path) else { return Ok(None) };
        // What cannot be read was made by another version: it is made again.
        let Ok(record) = serde_json::from_slice::<Record>(&text) else { return Ok(None) };
        if record.format != FORMAT || record.fingerprint != fingerprint {
            return Ok(None);
        }
        let invalid = |path: &Path, problem: &str| CorpusError::Invalid {
            path: path.into(),
            problem: format!("{problem}; remove the folder it lies in, and it is made again"),
        };
        let (images_path, path) = (folder.join(IMAGES), folder.join(CAPTIONS));
        let (row_bytes, images) = (record.row_bytes, record.join.images as usize);
        let map = map_file(&images_path)?;
        if images.checked_mul(row_bytes) != Some(map.as_ref().map_or(0, |map| map.len())) {
            return Err(invalid(&images_path, "not as long as it should be"));
        }
        let reader = table::open(&path, Some(FORMAT))?;
        let mut corpus = Self {
            train: Captions::default(),
            dev: Captions::default(),
            row_bytes,
            join: record.join,
            map,
            folder: folder.into(),
        };
        for batch in reader {
            let batch = batch.map_err(|source| TableError::Arrow { path: path.clone(), source })?;
            let splits = table::column::<StringArray>(&batch, "split", &path)?;
            let image_rows = table::column::<UInt32Array>(&batch, "image_row", &path)?;
            let lists = batch.column_by_name("input_ids").and_then(|column| column.as_list_opt::<i32>());
            let lists = lists.ok_or_else(|| invalid(&path, "the column input_ids is missing"))?;
            for row in 0..batch.num_rows() {
                let ids = lists.value(row);
                let ids = ids.as_primitive_opt::<UInt32Type>().ok_or_else(|| invalid(&path, "input_ids are not numbers"))?;
                if image_rows.value(row) as usize >= images || ids.is_empty() {
                    return Err(invalid(&path, "a row names an image that is not there, or has no tokens"));
                }
                let captions = if splits.value(row) == "dev" { &mut corpus.dev } else { &mut corpus.train };
                captions.push(image_rows.value(row), ids.values());
            }
        }
        Ok(Some(corpus))
    }

    /// Names training captions by (image_id, caption_id). The file is read for it: this is for messages.
    pub fn name_training_captions(&self, numbers: &[u32]) -> Result<Vec<(String, i32)>, CorpusError> {
        let path = self.folder.join(CAPTIONS);
        let mut names: HashMap<u32, (String, i32)> = HashMap::new();
        let mut number = 0;
        for batch in table::open(&path, Some(FORMAT))? {
            let batch = batch.map_err(|source| TableError::Arrow { path: path.clone(), source })?;
            let splits = table::column::<StringArray>(&batch, "split", &path)?;
            let image_ids = table::column::<StringArray>(&batch, "image_id", &path)?;
            let caption_ids = table::column::<Int32Array>(&batch, "caption_id", &path)?;
            for row in (0..batch.num_rows()).filter(|&row| splits.value(row) != "dev") {
                if numbers.contains(&number) {
                    names.insert(number, (image_ids.value(row).into(), caption_ids.value(row)));
                }
                number += 1;
            }
        }
        Ok(numbers.iter().filter_map(|number| names.remove(number)).collect())
    }

    /// The image_ids of rows, in their order. The file is read for it.
    pub fn image_ids(&self, rows: &[usize]) -> Result<Vec<String>, CorpusError> {
        let path = self.folder.join(CAPTIONS);
        let wanted: HashSet<usize> = rows.iter().copied().collect();
        let mut names: HashMap<usize, String> = HashMap::new();
        for batch in table::open(&path, Some(FORMAT))? {
            let batch = batch.map_err(|source| TableError::Arrow { path: path.clone(), source })?;
            let image_ids = table::column::<StringArray>(&batch, "image_id", &path)?;
            let image_rows = table::column::<UInt32Array>(&batch, "image_row", &path)?;
            for row in 0..batch.num_rows() {
                let image_row = image_rows.value(row) as usize;
                if wanted.contains(&image_row) && !names.contains_key(&image_row) {
                    names.insert(image_row, image_ids.value(row).into());
                }
            }
        }
        Ok(rows.iter().map(|row| names.get(row).cloned().unwrap_or_default()).collect())
    }

    /// The rows of the first `count` dev images (training images where there are no dev captions).
    pub fn sample_images(&self, count: usize) -> Vec<usize> {
        let captions = if self.dev.is_empty() { &self.train } else { &self.dev };
        let mut seen = HashSet::new();
        let rows = (0..captions.len()).map(|number| captions.image_row(number));
        rows.filter(|row| seen.insert(*row)).take(count).collect()
    }

    /// The row of an image.
    pub fn image_bytes(&self, image_row: usize) -> &[u8] {
        &self.map.as_deref().unwrap_or_default()[image_row * self.row_bytes..(image_row + 1) * self.row_bytes]
    }

    /// The embedding of an image, [D].
    pub fn embedding(&self, image_row: usize) -> impl Iterator<Item = f32> + '_ {
        self.image_bytes(image_row).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
}

/// None where the file is empty, which cannot be mapped.
fn map_file(path: &Path) -> Result<Option<Mmap>, CorpusError> {
    let io = |source| CorpusError::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.len() == 0 {
        return Ok(None);
    }
    // SAFETY: the file is written under a temporary name, renamed, and never edited; replacing it leaves this mapping on the old one.
    unsafe { Mmap::map(&file) }.map(Some).map_err(io)
}

#[cfg(test)]
pub(super) mod tests;
