//! The captions of a run as token ids beside the embeddings of their images: made once, kept in a folder, and read from there.
//!
//! `captions.parquet` holds the captions that have an embedding (split, image row, token ids), `embeddings.f32` the embeddings themselves
//! (float32, [images, D], row-major, little-endian), which are mapped and not loaded; captions of an image share its row. `corpus.json`,
//! written last, says what they were made from.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int32Array, ListBuilder, RecordBatch, StringArray, UInt32Array, UInt32Builder};
use arrow::datatypes::{DataType, Field, Schema, UInt32Type};
use memmap2::Mmap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::files::{self, AtomicFile};
use crate::table::{self, ParquetSink, TableError};
use crate::text::{TextError, Tokenizer};

pub const FORMAT: &str = "training-captions/1";
const CAPTIONS: &str = "captions.parquet";
const EMBEDDINGS: &str = "embeddings.f32";
const RECORD: &str = "corpus.json";

/// Captions tokenized at a time.
const PIECE: usize = 4096;

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
    embedding_dim: usize,
    join: JoinReport,
}

/// What the join found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReport {
    pub captions: u64,
    pub images: u64,
    /// Captions left out because their image has no embedding.
    pub captions_without_embedding: u64,
    /// Some of the images they belong to.
    pub examples: Vec<String>,
    /// Embeddings of an image that had one before; the first is used.
    pub repeated_embeddings: u64,
}

/// Tokenized captions, waiting for their images' embeddings.
pub struct Tokenized {
    images: HashMap<String, u32>,
    names: Vec<String>,
    captions: Vec<TokenizedCaption>,
    splits: Vec<String>,
    offsets: Vec<usize>,
    ids: Vec<u32>,
}

struct TokenizedCaption {
    image: u32,
    split: u32,
    caption_id: i32,
}

impl Tokenized {
    /// Tokenizes captions as they come. Each ends with `[SEP]`; one of more than `max_tokens` ids (`[SEP]` counted) is cut and then has no
    /// `[SEP]`, since it does not end there.
    pub fn new<E: From<CorpusError>>(
        captions: impl Iterator<Item = Result<CaptionRow, E>>,
        tokenizer: &Tokenizer,
        max_tokens: usize,
    ) -> Result<Self, E> {
        let mut made =
            Self { images: HashMap::new(), names: vec![], captions: vec![], splits: vec![], offsets: vec![0], ids: vec![] };
        let mut piece = Vec::with_capacity(PIECE);
        for caption in captions {
            piece.push(caption?);
            if piece.len() == PIECE {
                made.add(&piece, tokenizer, max_tokens)?;
                piece.clear();
            }
        }
        made.add(&piece, tokenizer, max_tokens)?;
        Ok(made)
    }

    fn add(&mut self, rows: &[CaptionRow], tokenizer: &Tokenizer, max_tokens: usize) -> Result<(), CorpusError> {
        let encoded: Vec<Vec<u32>> = rows
            .par_iter()
            .map(|row| {
                let mut ids = tokenizer.encode(&row.caption)?;
                ids.push(tokenizer.sep_id());
                ids.truncate(max_tokens);
                Ok(ids)
            })
            .collect::<Result<_, TextError>>()?;
        for (row, ids) in rows.iter().zip(encoded) {
            let image = match self.images.get(&row.image_id) {
                Some(&image) => image,
                None => {
                    let image = self.names.len() as u32;
                    self.images.insert(row.image_id.clone(), image);
                    self.names.push(row.image_id.clone());
                    image
                }
            };
            let split = match self.splits.iter().position(|split| *split == row.split) {
                Some(split) => split,
                None => {
                    self.splits.push(row.split.clone());
                    self.splits.len() - 1
                }
            };
            self.captions.push(TokenizedCaption { image, split: split as u32, caption_id: row.caption_id });
            self.ids.extend(ids);
            self.offsets.push(self.ids.len());
        }
        Ok(())
    }

    /// Joins with embeddings as they come and writes the corpus into `folder`. `normalize` scales each embedding to unit length.
    pub fn join<E: From<CorpusError>>(
        self,
        embeddings: impl Iterator<Item = Result<(String, Vec<f32>), E>>,
        embedding_dim: usize,
        normalize: bool,
        folder: &Path,
        fingerprint: &str,
    ) -> Result<JoinReport, E> {
        let path = folder.join(EMBEDDINGS);
        let io = |source| CorpusError::Io { path: path.clone(), source };
        let mut file = AtomicFile::create(&path).map_err(io)?;
        let mut rows: Vec<Option<u32>> = vec![None; self.names.len()];
        let mut report = JoinReport::default();
        let mut images = 0u32;
        for item in embeddings {
            let (image_id, mut values) = item?;
            let Some(&image) = self.images.get(&image_id) else { continue };
            if values.len() != embedding_dim {
                let text = format!(
                    "the embedding of {image_id} has {} numbers, and the model's mapper takes {embedding_dim}: use embeddings of this model",
                    values.len()
                );
                return Err(CorpusError::Embeddings(text).into());
            }
            if values.iter().any(|value| !value.is_finite()) {
                return Err(
                    CorpusError::Embeddings(format!("the embedding of {image_id} holds a number that is not finite")).into()
                );
            }
            if rows[image as usize].is_some() {
                report.repeated_embeddings += 1;
                continue;
            }
            if normalize {
                let norm = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
                values.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
            }
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            file.write_all(&bytes).map_err(io)?;
            rows[image as usize] = Some(images);
            images += 1;
        }
        file.commit().map_err(io)?;
        report.images = u64::from(images);
        self.write_captions(&rows, &mut report, &folder.join(CAPTIONS))?;
        let record = Record { format: FORMAT.into(), fingerprint: fingerprint.into(), embedding_dim, join: report };
        let path = folder.join(RECORD);
        files::write_json(&path, &record).map_err(|source| CorpusError::Io { path, source })?;
        Ok(record.join)
    }

    fn write_captions(&self, rows: &[Option<u32>], report: &mut JoinReport, path: &Path) -> Result<(), CorpusError> {
        let item = Arc::new(Field::new("item", DataType::UInt32, true));
        let schema = Arc::new(Schema::new(vec![
            Field::new("image_id", DataType::Utf8, false),
            Field::new("caption_id", DataType::Int32, false),
            Field::new("split", DataType::Utf8, false),
            Field::new("image_row", DataType::UInt32, false),
            Field::new("input_ids", DataType::List(item), false),
        ]));
        let known = |&number: &usize| rows[self.captions[number].image as usize].is_some();
        let kept: Vec<usize> = (0..self.captions.len()).filter(known).collect();
        for (image, _) in rows.iter().enumerate().filter(|(_, row)| row.is_none()).take(5) {
            report.examples.push(self.names[image].clone());
        }
        report.captions = kept.len() as u64;
        report.captions_without_embedding = (self.captions.len() - kept.len()) as u64;
        let mut sink = ParquetSink::create(path, schema.clone(), FORMAT)?;
        for piece in kept.chunks(1 << 16) {
            let mut ids = ListBuilder::new(UInt32Builder::new());
            for &number in piece {
                ids.values().append_slice(&self.ids[self.offsets[number]..self.offsets[number + 1]]);
                ids.append(true);
            }
            let captions = || piece.iter().map(|&number| &self.captions[number]);
            let image_ids: StringArray = captions().map(|c| Some(self.names[c.image as usize].as_str())).collect();
            let caption_ids: Int32Array = captions().map(|c| Some(c.caption_id)).collect();
            let splits: StringArray = captions().map(|c| Some(self.splits[c.split as usize].as_str())).collect();
            let image_rows: UInt32Array = captions().map(|c| rows[c.image as usize]).collect();
            let columns: Vec<Arc<dyn Array>> =
                vec![Arc::new(image_ids), Arc::new(caption_ids), Arc::new(splits), Arc::new(image_rows), Arc::new(ids.finish())];
            let batch = RecordBatch::try_new(schema.clone(), columns)
                .map_err(|source| TableError::Arrow { path: path.into(), source })?;
            sink.write(&batch)?;
        }
        Ok(sink.finish()?)
    }
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

    fn push(&mut self, image_row: u32, ids: &[u32]) {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        self.ids.extend_from_slice(ids);
        self.offsets.push(self.ids.len() as u64);
        self.image_rows.push(image_row);
    }
}

/// A corpus that is ready: captions in memory, embeddings mapped.
pub struct Corpus {
    pub train: Captions,
    pub dev: Captions,
    pub embedding_dim: usize,
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
        let (embeddings, path) = (folder.join(EMBEDDINGS), folder.join(CAPTIONS));
        let (embedding_dim, images) = (record.embedding_dim, record.join.images as usize);
        let map = map_file(&embeddings)?;
        if images.checked_mul(embedding_dim * 4) != Some(map.as_ref().map_or(0, |map| map.len())) {
            return Err(invalid(&embeddings, "not as long as it should be"));
        }
        let reader = table::open(&path, Some(FORMAT))?;
        let mut corpus = Self {
            train: Captions::default(),
            dev: Captions::default(),
            embedding_dim,
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
        let mut names: HashMap<usize, String> = HashMap::new();
        for batch in table::open(&path, Some(FORMAT))? {
            let batch = batch.map_err(|source| TableError::Arrow { path: path.clone(), source })?;
            let image_ids = table::column::<StringArray>(&batch, "image_id", &path)?;
            let image_rows = table::column::<UInt32Array>(&batch, "image_row", &path)?;
            for row in 0..batch.num_rows() {
                let image_row = image_rows.value(row) as usize;
                if rows.contains(&image_row) && !names.contains_key(&image_row) {
                    names.insert(image_row, image_ids.value(row).into());
                }
            }
        }
        Ok(rows.iter().map(|row| names.get(row).cloned().unwrap_or_default()).collect())
    }

    /// The rows of the first `count` dev images (training images where there are no dev captions).
    pub fn sample_images(&self, count: usize) -> Vec<usize> {
        let captions = if self.dev.is_empty() { &self.train } else { &self.dev };
        let mut rows: Vec<usize> = vec![];
        for number in 0..captions.len() {
            let row = captions.image_row(number);
            if rows.len() < count && !rows.contains(&row) {
                rows.push(row);
            }
        }
        rows
    }

    /// The embedding of an image, [D].
    pub fn embedding(&self, image_row: usize) -> impl Iterator<Item = f32> + '_ {
        let bytes = self.map.as_deref().unwrap_or_default();
        let width = self.embedding_dim * 4;
        bytes[image_row * width..(image_row + 1) * width].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
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
pub(super) mod tests {
    use super::*;

    const VOCABULARY: &str = "[PAD]\n[UNK]\n[SEP]\n一\n二\n三\n四\n五";

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(VOCABULARY.as_bytes(), Path::new("vocab.txt"), true).unwrap()
    }

    fn row(image_id: &str, caption: &str, split: &str) -> Result<CaptionRow, CorpusError> {
        Ok(CaptionRow {
            image_id: image_id.into(),
            caption_id: caption.len() as i32,
            caption: caption.into(),
            split: split.into(),
        })
    }

    /// `count` captions of pseudo-random lengths up to `longest` tokens over `images` images.
    pub fn corpus(folder: &Path, count: usize, images: usize, longest: usize) -> Corpus {
        let mut draws = crate::training::random::Stream::new(9);
        let captions = (0..count).map(|n| {
            let text: String =
                (0..draws.below(longest as u64)).map(|_| "一二三四五".chars().nth(draws.below(5) as usize).unwrap()).collect();
            row(&format!("{}", n * images / count), &text, if n % 10 == 9 { "dev" } else { "train" })
        });
        let captions: Vec<_> = captions.collect();
        let tokenized = Tokenized::new(captions.into_iter(), &tokenizer(), 100).unwrap();
        let embeddings = (0..images).map(|n| Ok::<_, CorpusError>((n.to_string(), vec![n as f32, 1.0])));
        tokenized.join(embeddings, 2, false, folder, "f").unwrap();
        Corpus::open(folder, "f").unwrap().unwrap()
    }

    #[test]
    fn captions_meet_the_embeddings_of_their_images() {
        let folder = tempfile::tempdir().unwrap();
        let captions = [
            row("a", "一二", "train"),
            row("b", "三", "train"),
            row("a", "二四五", "train"),
            row("c", "五", "dev"),
            row("x", "一", "dev"),
        ];
        let tokenized = Tokenized::new(captions.into_iter(), &tokenizer(), 3).unwrap();
        let embeddings = [("c", 3.0), ("unused", 9.0), ("a", 1.0), ("b", 2.0), ("a", 7.0)];
        let embeddings = embeddings.map(|(id, value)| Ok::<_, CorpusError>((id.to_string(), vec![value, 4.0])));
        let report = tokenized.join(embeddings.into_iter(), 2, false, folder.path(), "one").unwrap();
        let wanted = JoinReport {
            captions: 4,
            images: 3,
            captions_without_embedding: 1,
            examples: vec!["x".into()],
            repeated_embeddings: 1,
        };
        assert_eq!(report, wanted);
        let corpus = Corpus::open(folder.path(), "one").unwrap().unwrap();
        let ids: Vec<&[u32]> = (0..corpus.train.len()).map(|n| corpus.train.ids(n)).collect();
        // The third caption is cut after three ids and does not end with [SEP].
        assert_eq!(ids, [&[3u32, 4, 2][..], &[5, 2], &[4, 6, 7]]);
        let embedding = |captions: &Captions, n: usize| corpus.embedding(captions.image_row(n)).collect::<Vec<_>>();
        assert_eq!((embedding(&corpus.train, 0), embedding(&corpus.train, 1)), (vec![1.0, 4.0], vec![2.0, 4.0]));
        assert_eq!((corpus.dev.len(), embedding(&corpus.dev, 0)), (1, vec![3.0, 4.0]));
        assert_eq!((corpus.train.num_tokens(), corpus.join.captions_without_embedding), (8, 1));
        assert_eq!(corpus.name_training_captions(&[2, 0]).unwrap(), [("a".to_string(), 9), ("a".to_string(), 6)]);
        assert_eq!((corpus.sample_images(5), corpus.sample_images(0)), (vec![corpus.dev.image_row(0)], vec![]));
        assert!(Corpus::open(folder.path(), "two").unwrap().is_none());
        assert!(Corpus::open(&folder.path().join("nowhere"), "one").unwrap().is_none());
        // A file that was cut short is not believed.
        std::fs::write(folder.path().join(EMBEDDINGS), [0; 20]).unwrap();
        assert!(Corpus::open(folder.path(), "one").is_err());
    }

    #[test]
    fn embeddings_are_scaled_on_request_and_checked() {
        let join = |values: Vec<f32>| {
            let folder = tempfile::tempdir().unwrap();
            let tokenized = Tokenized::new([row("a", "一", "train")].into_iter(), &tokenizer(), 9).unwrap();
            let embeddings = std::iter::once(Ok::<_, CorpusError>(("a".to_string(), values)));
            tokenized.join(embeddings, 2, true, folder.path(), "f")?;
            Ok(Corpus::open(folder.path(), "f")?.unwrap().embedding(0).collect::<Vec<_>>())
        };
        let found: Result<_, CorpusError> = join(vec![3.0, 4.0]);
        assert_eq!(found.unwrap(), [0.6, 0.8]);
        assert_eq!(join(vec![0.0, 0.0]).unwrap(), [0.0, 0.0]);
        assert!(join(vec![1.0]).unwrap_err().to_string().contains("takes 2"));
        assert!(join(vec![1.0, f32::NAN]).unwrap_err().to_string().contains("finite"));
    }
}
