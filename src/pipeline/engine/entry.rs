//! What a stage is given: images in list order, and what becomes of one before the model sees it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::files::{ContentHash, Stat};
use crate::pipeline::artifact::Failure;

/// One listed thing: an image, or something that must be accounted for.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Relative, percent-encoded, `/` between parts.
    pub image_path: String,
    /// The name that captions and datasets know the image by: the file name without its ending, unless the source has one of its own.
    pub image_id: String,
    /// What there is to read, or why there is nothing.
    pub content: Content,
}

/// What there is of a listed thing.
#[derive(Debug, Clone)]
pub enum Content {
    /// A regular file. `stat` is absent where the system would not say; then the file is read whatever was known of it.
    File {
        /// Where it is opened: a path, or a URL in one's place.
        path: PathBuf,
        /// As it was when it was listed.
        stat: Option<Stat>,
    },
    /// An image file's bytes, out of a dataset.
    Bytes(Arc<[u8]>),
    /// An embedding [D] in place of an image, and whether that image was damaged.
    Embedding {
        /// As float32, whatever the file stores.
        values: Vec<f32>,
        /// Of the image, or of the numbers where the image's is not known.
        sha256: ContentHash,
        /// The image had a fault and an embedding all the same.
        damaged: bool,
    },
    /// Known to be no image without being opened (a FIFO that is not called an image): skipped.
    Other,
    /// Known to fail without being opened (a FIFO, a broken symlink).
    Failed(Failure),
    /// A folder whose content cannot be listed: no image, but what it may hold is missing, and that must be told.
    Unlisted(Failure),
    /// What cannot be read this time and has a result from before, which is kept. The failure is told, unless it is the folder's.
    Kept(Option<Failure>),
    /// What was in memory, after it was prepared.
    Used,
}

impl Content {
    /// What the file system says of the file, where it may be trusted.
    pub fn stat(&self) -> Option<Stat> {
        match self {
            Self::File { stat, .. } => *stat,
            _ => None,
        }
    }

    /// Bytes of an image file that are in memory from the listing on.
    pub fn bytes_held(&self) -> Option<u64> {
        if let Self::Bytes(bytes) = self { Some(bytes.len() as u64) } else { None }
    }

    /// Lets go of what is held in memory; a file stays a file.
    pub fn release(&mut self) {
        if let Self::Bytes(_) | Self::Embedding { .. } = self {
            *self = Self::Used;
        }
    }
}

/// What reading and decoding made of an entry.
#[derive(Debug, Clone)]
pub enum Prepared {
    /// Ready for the model: `data` is pixel_values [3, S, S] or an embedding [D].
    Input {
        /// Of the image file, or of what stands in its place.
        sha256: ContentHash,
        /// What the model takes, as above.
        data: Vec<f32>,
        /// The file has a fault and a picture all the same.
        damaged: bool,
    },
    /// Read and hashed, but not decoded: there is a result for this content.
    Known,
    /// Neither called an image nor looking like one.
    Skipped,
    /// No pixels came of it.
    Failed {
        /// Where the whole file was read, so that the failure can be remembered.
        sha256: Option<ContentHash>,
        /// Why it has no result.
        failure: Failure,
    },
}

/// Reads and decodes entries, on several threads at once.
pub trait Prepare: Sync {
    /// `is_known` says whether a content has a result, so that decoding it would be for nothing; where it says yes, the answer is
    /// [`Prepared::Known`].
    fn prepare(&self, entry: &Entry, is_known: &mut dyn FnMut(&ContentHash) -> bool) -> Prepared;
}
