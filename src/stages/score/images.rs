//! Where the images of a table are: under folders, or embedded already.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use rayon::prelude::*;

use super::Source;
use super::scorer::{Scorer, ScorerModel};
use crate::dataset::matching::{Listed, Matcher};
use crate::dataset::wanted::Wanted;
use crate::image::Reason;
use crate::pipeline::sources::{Embeddings, Folder};
use crate::pipeline::{Content, Decode, Entry, Failure, ImageReading, Prepare, Prepared};
use crate::stages::loading::scale_to_length_1;

/// Images by what tables call them.
pub struct Images {
    /// image_path and image_id of everything that is known.
    names: Vec<(String, String)>,
    content: Known,
}

enum Known {
    Files {
        entries: Vec<Entry>,
        decode: Box<Decode>,
    },
    /// At length 1.
    Embedded(Vec<Vec<f32>>),
}

/// An image's embedding, or why there is none.
pub type Embedded = Result<Vec<f32>, Failure>;

impl Images {
    /// Where `source` says; of folders, the `wanted` files.
    ///
    /// # Errors
    /// See [`under`](Self::under) and [`embedded`](Self::embedded).
    pub fn open(source: &Source, scorer: &ScorerModel, wanted: &Wanted, reading: ImageReading) -> Result<Self> {
        match source {
            Source::Images(roots) => Self::under(roots, scorer, wanted, reading),
            Source::Embeddings(path) => Self::embedded(path, scorer),
        }
    }

    /// Files under folders.
    ///
    /// # Errors
    /// Folders that cannot be listed at all; a tar.
    pub fn under(roots: &[PathBuf], scorer: &ScorerModel, wanted: &Wanted, reading: ImageReading) -> Result<Self> {
        let folder = Folder::new(roots, &[], reading.limits.max_bytes, wanted)?;
        let mut entries = vec![];
        for entry in folder.entries() {
            let entry = entry?;
            if let Content::Bytes(_) = entry.content {
                bail!(
                    "{}: images in a tar are read from front to back: `clipcap embed` it, and give --embeddings",
                    entry.image_path
                );
            }
            entries.push(entry);
        }
        let names = entries.iter().map(|entry| (entry.image_path.clone(), entry.image_id.clone())).collect();
        let decode = Box::new(Decode::new(scorer.preprocess.clone(), reading));
        Ok(Self { names, content: Known::Files { entries, decode } })
    }

    /// What `embed` made, with the same encoder.
    ///
    /// # Errors
    /// Embeddings of another encoder or length.
    pub fn embedded(path: &Path, scorer: &ScorerModel) -> Result<Self> {
        let embeddings = Embeddings::open(path)?;
        if embeddings.embedding_dim != scorer.embedding_dim {
            bail!(
                "{}: embeddings of {}, and the scorer's have {}",
                path.display(),
                embeddings.embedding_dim,
                scorer.embedding_dim
            );
        }
        if embeddings.encoder.as_ref().is_some_and(|encoder| *encoder != scorer.fingerprint) {
            bail!(
                "{}: these embeddings were made by another image encoder than the scorer's: embed with a bundle of the same CLIP, or give --images",
                path.display()
            );
        }
        let (mut names, mut values) = (vec![], vec![]);
        for entry in embeddings.entries() {
            let entry = entry?;
            if let Content::Embedding { values: mut embedding, .. } = entry.content {
                scale_to_length_1(&mut embedding);
                names.push((entry.image_path, entry.image_id));
                values.push(embedding);
            }
        }
        Ok(Self { names, content: Known::Embedded(values) })
    }

    /// The finder of images by reference; it borrows the list.
    pub fn finder(&self) -> Finder<'_> {
        let listed: Vec<Listed<'_>> = self.names.iter().map(|(path, id)| Listed { path, id }).collect();
        // The matcher keeps a borrow of the list, which lives as long as the images.
        Finder { images: self, listed }
    }
}

/// Looks images up and embeds them.
pub struct Finder<'a> {
    images: &'a Images,
    listed: Vec<Listed<'a>>,
}

impl Finder<'_> {
    /// The matcher over the list.
    pub fn matcher(&self) -> Matcher<'_> {
        Matcher::new(&self.listed)
    }

    /// Embeddings of the images of these numbers, in their order.
    ///
    /// # Errors
    /// The encoder's own; an image that cannot be read is a failure of its own.
    pub fn embed(&self, numbers: &[usize], scorer: &mut Scorer) -> Result<HashMap<usize, Embedded>> {
        let mut found = HashMap::new();
        match &self.images.content {
            Known::Embedded(values) => {
                found.extend(numbers.iter().map(|&number| (number, Ok(values[number].clone()))));
            }
            Known::Files { entries, decode } => {
                for some in numbers.chunks(scorer.max_images()) {
                    let prepared: Vec<Prepared> = some.par_iter().map(|&number| prepare(&entries[number], decode)).collect();
                    let (mut ready, mut pixels) = (vec![], vec![]);
                    for (&number, prepared) in some.iter().zip(prepared) {
                        match prepared {
                            Prepared::Input { data, .. } => {
                                ready.push(number);
                                pixels.extend(data);
                            }
                            Prepared::Failed { failure, .. } => drop(found.insert(number, Err(failure))),
                            Prepared::Known | Prepared::Skipped => {
                                drop(found.insert(number, Err(failure(Reason::UnsupportedFormat, "not an image"))));
                            }
                        }
                    }
                    if !ready.is_empty() {
                        let embeddings = scorer.images(&pixels, ready.len())?;
                        found.extend(ready.into_iter().zip(embeddings.into_iter().map(Ok)));
                    }
                }
            }
        }
        Ok(found)
    }
}

fn prepare(entry: &Entry, decode: &Decode) -> Prepared {
    match &entry.content {
        Content::Failed(failure) => Prepared::Failed { sha256: None, failure: failure.clone() },
        _ => decode.prepare(entry, &mut |_| false),
    }
}

/// A failure in the words of the errors table.
pub fn failure(reason: Reason, message: impl Into<String>) -> Failure {
    Failure { reason: reason.as_str().into(), message: message.into() }
}
