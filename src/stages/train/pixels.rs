//! The images of a dataset as CLIP's preprocessing cuts them, in bytes: decoded once, on every core.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rayon::prelude::*;

use crate::files::ContentHash;
use crate::image::{self, Limits, Preprocess};
use crate::models::Bundle;
use crate::pipeline::sources::{DatasetFiles, StoredImages};
use crate::pipeline::{Content, Entry, Reporter, Tick};

/// Images decoded at a time: so many are in memory.
const PIECE: usize = 256;

/// A dataset's images and what is done to them.
pub struct Pixels {
    dataset: PathBuf,
    roots: Vec<PathBuf>,
    pub preprocess: Preprocess,
}

impl Pixels {
    /// `roots` are the folders of the images; none where the dataset stores them.
    pub fn open(dataset: &Path, roots: &[PathBuf], bundle: &Bundle) -> Result<Self> {
        let preprocess = Preprocess::from_file(&bundle.preprocessor_path())?;
        Ok(Self { dataset: dataset.into(), roots: roots.to_vec(), preprocess })
    }

    /// Bytes of an image, [S, S, 3].
    pub fn row_bytes(&self) -> usize {
        let (width, height) = self.preprocess.output_size();
        3 * width as usize * height as usize
    }

    /// A hash of the list of images, which holds their hashes, and of what is done to them.
    pub fn fingerprint(&self) -> Result<String> {
        let list = self.dataset.join("images.parquet");
        let hash = ContentHash::of_file(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let settings = serde_json::to_string(self.preprocess.settings())?;
        Ok(ContentHash::of(format!("{hash}{settings}")).to_string())
    }

    /// Calls `use_rows` with every image that can be decoded, as (image_id, bytes), in the dataset's order.
    pub fn with_rows<R>(
        &self,
        reporter: &dyn Reporter,
        use_rows: impl FnOnce(&mut dyn Iterator<Item = Result<(String, Vec<u8>)>>) -> Result<R>,
    ) -> Result<R> {
        if self.roots.is_empty() {
            let images = StoredImages::open(&self.dataset)?;
            return use_rows(&mut Rows::new(self, images.entries(), images.num_rows, reporter));
        }
        let files = DatasetFiles::open(&self.dataset, &self.roots, Limits::default().max_bytes)?;
        use_rows(&mut Rows::new(self, files.entries()?, files.num_rows, reporter))
    }

    fn decode(&self, entry: &Entry) -> Result<Vec<u8>, String> {
        let limits = Limits::default();
        let pixels = match &entry.content {
            Content::File { path, .. } => image::load(path, &limits, true).map(|loaded| loaded.pixels),
            Content::Bytes(bytes) => image::decode(bytes, &limits, true),
            _ => return Err("no image file".into()),
        };
        let pixels = pixels.map_err(|failure| failure.to_string())?;
        Ok(self.preprocess.resize_and_crop(&pixels).into_raw())
    }
}

/// Entries decoded a piece at a time.
struct Rows<'a, I> {
    pixels: &'a Pixels,
    entries: I,
    decoded: std::vec::IntoIter<Result<(String, Vec<u8>)>>,
    done: u64,
    total: u64,
    reporter: &'a dyn Reporter,
}

impl<'a, I: Iterator<Item = Result<Entry>>> Rows<'a, I> {
    fn new(pixels: &'a Pixels, entries: I, total: u64, reporter: &'a dyn Reporter) -> Self {
        Self { pixels, entries, decoded: vec![].into_iter(), done: 0, total, reporter }
    }
}

impl<I: Iterator<Item = Result<Entry>>> Iterator for Rows<'_, I> {
    type Item = Result<(String, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.decoded.next() {
                return Some(row);
            }
            let piece: Vec<Result<Entry>> = self.entries.by_ref().take(PIECE).collect();
            if piece.is_empty() {
                return None;
            }
            self.done += piece.len() as u64;
            let decoded: Vec<_> = piece
                .into_par_iter()
                .map(|entry| {
                    let entry = entry?;
                    Ok((self.pixels.decode(&entry), entry))
                })
                .collect();
            let mut rows = vec![];
            for item in decoded {
                match item {
                    Ok((Ok(bytes), entry)) => rows.push(Ok((entry.image_id, bytes))),
                    Ok((Err(problem), entry)) => self.reporter.warn(&format!("{}: {problem}; left out", entry.image_path)),
                    Err(error) => rows.push(Err(error)),
                }
            }
            self.reporter.tick(&Tick { label: "decoding", done: self.done, total: self.total, ..Tick::default() });
            self.decoded = rows.into_iter();
        }
    }
}
