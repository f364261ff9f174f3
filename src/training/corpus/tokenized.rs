//! The writing side: captions become token ids and meet their images.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, Int32Array, ListBuilder, RecordBatch, StringArray, UInt32Array, UInt32Builder};
use arrow::datatypes::{DataType, Field, Schema};
use rayon::prelude::*;

use super::{CAPTIONS, CaptionRow, CorpusError, FORMAT, IMAGES, JoinReport, RECORD, Record};
use crate::files::{self, AtomicFile};
use crate::table::{ParquetSink, TableError};
use crate::text::{TextError, Tokenizer};

/// Captions tokenized at a time.
const PIECE: usize = 4096;

/// What stands around a caption's tokens. `[SEP]` always follows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Framing {
    /// Text that captions go on from; it stands before each and is not learned.
    pub prompt: Option<String>,
    /// Ids of a row at most; what is longer is cut.
    pub max_tokens: usize,
    /// Begin each row with `[CLS]`.
    pub cls: bool,
    /// A row that is cut keeps its `[SEP]`; otherwise it has none, since it does not end there.
    pub always_sep: bool,
    /// Neighbouring captions of an image that share a row, as many as fit.
    pub captions_per_row: usize,
}

impl Framing {
    /// A caption per row.
    #[cfg(test)]
    pub fn caption(max_tokens: usize) -> Self {
        Self { prompt: None, max_tokens, cls: false, always_sep: false, captions_per_row: 1 }
    }
}

/// Tokenized captions, waiting for their images.
pub struct Tokenized {
    images: HashMap<String, u32>,
    names: Vec<String>,
    captions: Vec<TokenizedCaption>,
    splits: Vec<String>,
    offsets: Vec<usize>,
    ids: Vec<u32>,
}

/// A row.
struct TokenizedCaption {
    image: u32,
    split: u32,
    /// Of its first caption.
    caption_id: i32,
    captions: usize,
}

impl Tokenized {
    /// Tokenizes captions as they come.
    pub fn new<E: From<CorpusError>>(
        captions: impl Iterator<Item = Result<CaptionRow, E>>,
        tokenizer: &Tokenizer,
        framing: &Framing,
    ) -> Result<Self, E> {
        let mut made =
            Self { images: HashMap::new(), names: vec![], captions: vec![], splits: vec![], offsets: vec![0], ids: vec![] };
        let mut piece = Vec::with_capacity(PIECE);
        for caption in captions {
            piece.push(caption?);
            if piece.len() == PIECE {
                made.add(&piece, tokenizer, framing)?;
                piece.clear();
            }
        }
        made.add(&piece, tokenizer, framing)?;
        Ok(made)
    }

    fn add(&mut self, rows: &[CaptionRow], tokenizer: &Tokenizer, framing: &Framing) -> Result<(), CorpusError> {
        let prompt = framing.prompt.as_deref();
        let before = prompt.map(|text| tokenizer.encode_prompt(text)).transpose()?.unwrap_or_default();
        let cls = match (framing.cls, tokenizer.begin_id()) {
            (true, None) => {
                return Err(CorpusError::Vocabulary(
                    "the vocabulary has no [CLS] (or beginning-of-text token) for a caption to begin with".into(),
                ));
            }
            (wanted, cls) => cls.filter(|_| wanted),
        };
        let encoded: Vec<Vec<u32>> = rows
            .par_iter()
            .map(|row| {
                let mut ids: Vec<u32> = cls.into_iter().chain(before.iter().copied()).collect();
                ids.extend(tokenizer.with_end(tokenizer.encode_behind(prompt, &row.caption)?));
                ids.truncate(framing.max_tokens);
                if let (true, Some(last)) = (framing.always_sep, ids.last_mut()) {
                    *last = tokenizer.end_id();
                }
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
            let split = split as u32;
            let row_start = self.offsets[self.offsets.len().saturating_sub(2)];
            let room = framing.max_tokens + usize::from(cls.is_some());
            if let (Some(last), Some(end)) = (self.captions.last_mut(), self.offsets.last_mut())
                && (last.image, last.split) == (image, split)
                && last.captions < framing.captions_per_row
                && self.ids.len() - row_start + ids.len() <= room
            {
                self.ids.extend(&ids[usize::from(cls.is_some())..]);
                *end = self.ids.len();
                last.captions += 1;
                continue;
            }
            self.captions.push(TokenizedCaption { image, split, caption_id: row.caption_id, captions: 1 });
            self.ids.extend(ids);
            self.offsets.push(self.ids.len());
        }
        Ok(())
    }

    /// Joins with embeddings as they come and writes the corpus into `folder`. `normalize` scales each embedding to unit length.
    pub fn join_embeddings<E: From<CorpusError>>(
        self,
        embeddings: impl Iterator<Item = Result<(String, Vec<f32>), E>>,
        embedding_dim: usize,
        normalize: bool,
        folder: &Path,
        fingerprint: &str,
    ) -> Result<JoinReport, E> {
        let rows = embeddings.map(|item| {
            let (image_id, values) = item?;
            let bytes = embedding_bytes(&image_id, values, embedding_dim, normalize)?;
            Ok((image_id, bytes))
        });
        self.join(rows, 4 * embedding_dim, folder, fingerprint)
    }

    /// Writes the corpus of captions alone into `folder`.
    pub fn without_images(self, folder: &Path, fingerprint: &str) -> Result<JoinReport, CorpusError> {
        let rows: Vec<_> = self.names.iter().map(|name| Ok((name.clone(), vec![]))).collect();
        self.join(rows.into_iter(), 0, folder, fingerprint)
    }

    /// Joins with images' rows of `row_bytes` bytes as they come and writes the corpus into `folder`.
    pub fn join<E: From<CorpusError>>(
        self,
        rows_of_images: impl Iterator<Item = Result<(String, Vec<u8>), E>>,
        row_bytes: usize,
        folder: &Path,
        fingerprint: &str,
    ) -> Result<JoinReport, E> {
        let path = folder.join(IMAGES);
        let io = |source| CorpusError::Io { path: path.clone(), source };
        let mut file = AtomicFile::create(&path).map_err(io)?;
        let mut rows: Vec<Option<u32>> = vec![None; self.names.len()];
        let mut report = JoinReport::default();
        let mut images = 0u32;
        for item in rows_of_images {
            let (image_id, bytes) = item?;
            let Some(&image) = self.images.get(&image_id) else { continue };
            if rows[image as usize].is_some() {
                report.repeated_images += 1;
                continue;
            }
            file.write_all(&bytes).map_err(io)?;
            rows[image as usize] = Some(images);
            images += 1;
        }
        file.commit().map_err(io)?;
        report.images = u64::from(images);
        self.write_captions(&rows, &mut report, &folder.join(CAPTIONS))?;
        let record = Record { format: FORMAT.into(), fingerprint: fingerprint.into(), row_bytes, join: report };
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
        report.captions_without_image = (self.captions.len() - kept.len()) as u64;
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

/// An embedding as a row of the corpus, checked.
fn embedding_bytes(image_id: &str, mut values: Vec<f32>, embedding_dim: usize, normalize: bool) -> Result<Vec<u8>, CorpusError> {
    if values.len() != embedding_dim {
        return Err(CorpusError::Embeddings(format!(
            "the embedding of {image_id} has {} numbers, and the model's mapper takes {embedding_dim}: use embeddings of this model",
            values.len()
        )));
    }
    if values.iter().any(|value| !value.is_finite()) {
        return Err(CorpusError::Embeddings(format!("the embedding of {image_id} holds a number that is not finite")));
    }
    if normalize {
        let norm = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        values.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    }
    Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}
