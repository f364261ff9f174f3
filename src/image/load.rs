//! From a path to pixels: each file is read once, and hashed as it was read.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use image::RgbImage;

use super::decode::{Header, Limits, decode, header};
use super::failure::{Content, Failure, Reason};
use super::sniff::{Format, SNIFFED_BYTES, sniff};
use crate::files::{ContentHash, open_without_waiting};
use crate::remote::{self, Fetched, Held};

/// A decoded image and the hash of the file it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Of the whole file, as it was read.
    pub content: Content,
    /// RGB, 8 bits per channel, upright.
    pub pixels: RgbImage,
}

/// Whether a file looks like an image inside, whatever it is called. One that cannot be looked into does not, unless it is elsewhere.
pub fn begins_like_an_image(path: &Path) -> bool {
    if remote::is_url(path) {
        // Somebody listed it: what is not there or cannot be reached may be an image, and reading it will tell.
        return remote::begins(path, SNIFFED_BYTES as u64).map_or(true, |head| sniff(&head).is_some());
    }
    let mut head = Vec::with_capacity(SNIFFED_BYTES);
    let read = open(path).and_then(|(file, _)| Ok(file.take(SNIFFED_BYTES as u64).read_to_end(&mut head)?));
    read.is_ok() && sniff(&head).is_some()
}

/// Reads, hashes and decodes an image file.
///
/// # Errors
/// Any [`Reason`]. Where the file was read, the failure carries its [`Content`].
pub fn load(path: &Path, limits: &Limits, exif: bool) -> Result<Loaded, Failure> {
    load_bytes(&read(path, limits)?, limits, exif)
}

/// Hashes and decodes bytes that are already in memory.
///
/// # Errors
/// As [`load`], always with [`Content`].
pub fn load_bytes(bytes: &[u8], limits: &Limits, exif: bool) -> Result<Loaded, Failure> {
    let content = Content { sha256: ContentHash::of(bytes), bytes: bytes.len() as u64 };
    if content.bytes > limits.max_bytes {
        return Err(too_many_bytes(content.bytes, limits).with_content(&content));
    }
    match decode(bytes, limits, exif) {
        Ok(pixels) => Ok(Loaded { content, pixels }),
        Err(failure) => Err(failure.with_content(&content)),
    }
}

/// Reads a whole image file into memory, without decoding it.
///
/// # Errors
/// [`Reason::Vanished`], [`Reason::PermissionDenied`], [`Reason::Unreachable`] (of a URL), [`Reason::Unreadable`] (a folder or a special file too, which is not opened)
/// or [`Reason::TooLarge`], before anything is read.
pub fn read(path: &Path, limits: &Limits) -> Result<Held, Failure> {
    if remote::is_url(path) {
        return match remote::read(path, limits.max_bytes) {
            Ok(Fetched::Whole(bytes)) => Ok(bytes),
            Ok(Fetched::TooLarge(bytes)) => Err(too_many_bytes(bytes, limits)),
            Err(error) => Err(Failure::from_io(&error)),
        };
    }
    let (file, metadata) = open(path).map_err(OpenError::into_failure)?;
    if metadata.len() > limits.max_bytes {
        return Err(too_many_bytes(metadata.len(), limits));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
    // A file may grow while it is read.
    file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| Failure::from_io(&error))?;
    if bytes.len() as u64 > limits.max_bytes {
        return Err(too_many_bytes(bytes.len() as u64, limits));
    }
    Ok(Held::of_file(bytes))
}

/// Format and size from the beginning of a file; the rest is read only where the header goes on beyond it. (So is the orientation,
/// which a PNG may keep behind its pixels: a whole file's [`header`] knows it.)
///
/// # Errors
/// As [`load`], without damage that only decoding shows, and without [`Content`].
pub fn file_header(path: &Path, limits: &Limits) -> Result<Header, Failure> {
    const BEGINNING: u64 = 256 << 10;
    if remote::is_url(path) {
        return header(&read(path, limits)?, limits);
    }
    let (file, metadata) = open(path).map_err(OpenError::into_failure)?;
    let mut head = Vec::new();
    file.take(BEGINNING).read_to_end(&mut head).map_err(|error| Failure::from_io(&error))?;
    // TIFF and WebP may keep sizes or orientation at their end.
    let beginning_is_enough = !matches!(sniff(&head), Some(Format::Tiff | Format::WebP));
    if metadata.len() <= BEGINNING || beginning_is_enough {
        match header(&head, limits) {
            Err(failure) if failure.reason == Reason::Truncated && metadata.len() > BEGINNING => {}
            result => return result,
        }
    }
    header(&read(path, limits)?, limits)
}

fn too_many_bytes(bytes: u64, limits: &Limits) -> Failure {
    Failure::new(Reason::TooLarge, format!("{bytes} bytes, limit {}", limits.max_bytes))
}

enum OpenError {
    Io(io::Error),
    NotAFile(&'static str),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl OpenError {
    fn into_failure(self) -> Failure {
        match self {
            Self::Io(error) => Failure::from_io(&error),
            Self::NotAFile(kind) => Failure::new(Reason::Unreadable, format!("{kind}, not a file")),
        }
    }
}

/// Opens a regular file and nothing else: opening a pipe or a device can block for ever or set something going.
fn open(path: &Path) -> Result<(File, Metadata), OpenError> {
    regular(&std::fs::metadata(path)?)?;
    // A pipe may have taken the file's place since.
    let file = open_without_waiting(path)?;
    let metadata = file.metadata()?;
    regular(&metadata)?;
    Ok((file, metadata))
}

fn regular(metadata: &Metadata) -> Result<(), OpenError> {
    if metadata.is_file() {
        Ok(())
    } else {
        Err(OpenError::NotAFile(if metadata.is_dir() { "a folder" } else { "a special file" }))
    }
}
