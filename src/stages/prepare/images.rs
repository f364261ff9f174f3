//! What is in the folders: every image file read once, hashed, and its header understood.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};
use rayon::prelude::*;

use crate::dataset::listing::{Entry, Kind, Listing};
use crate::dataset::wanted::Wanted;
use crate::files::sha256_hex;
use crate::image::{self, Content, Failure, Limits, Reason};
use crate::pipeline::{Interrupt, Reporter, Tick};

/// An image file, good or bad.
#[derive(Debug, Clone)]
pub struct Found {
    pub path: PathBuf,
    pub image_path: String,
    /// As every command has it; see [`naming`](crate::dataset::naming).
    pub image_id: String,
    /// None where the file could not be read.
    pub content: Option<Content>,
    /// Width and height as stored, before EXIF's orientation.
    pub size: Option<(u32, u32)>,
    pub failure: Option<Failure>,
}

/// Bytes that tell an image from another file.
const HEAD_BYTES: usize = 64;

/// Lists the folders and reads every image in them, on every core. The list's order is kept. Files that are no images are left out.
pub fn examine(
    roots: &[PathBuf],
    own: &[PathBuf],
    wanted: &Wanted,
    limits: &Limits,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<Vec<Found>> {
    let listing = Listing::new(roots, own, wanted)?;
    let entries: Vec<Entry> = listing.iter().collect();
    if let Some(tar) = entries.iter().find(|entry| entry.kind == Kind::Tar) {
        bail!("{}: prepare reads folders and image files, and this is a tar: unpack it first", tar.path.display());
    }
    listing.left_out().told().iter().for_each(|told| reporter.note(told));
    for entry in entries.iter().filter(|entry| !entry.kind.is_found()) {
        reporter.warn(&format!("{}: this folder cannot be listed, so its images are missing", entry.image_path));
    }
    let total = entries.len() as u64;
    let done = AtomicU64::new(0);
    let found: Vec<Option<Found>> = entries
        .into_par_iter()
        .map(|entry| {
            if interrupt.is_set() {
                return None;
            }
            let found = look_at(entry, limits);
            let count = done.fetch_add(1, Ordering::Relaxed) + 1;
            if count.is_multiple_of(256) || count == total {
                reporter.tick(&Tick { label: "reading images", done: count, total, rates: Vec::new() });
            }
            found
        })
        .collect();
    Ok(found.into_iter().flatten().collect())
}

/// One hash of what was found: names, contents, and why some could not be read.
pub fn fingerprint(found: &[Found]) -> String {
    let mut text = String::new();
    for image in found {
        let content = image.content.as_ref().map_or("", |content| content.sha256.as_str());
        let reason = image.failure.as_ref().map_or("", |failure| failure.reason.as_str());
        text += &format!("{content} {reason} {}\n", image.image_path);
    }
    sha256_hex(text.as_bytes())
}

fn look_at(entry: Entry, limits: &Limits) -> Option<Found> {
    let Entry { path, image_path, image_id, kind } = entry;
    let called = image::called_an_image(&path);
    let failed = |failure: Failure| Found {
        path: path.clone(),
        image_path: image_path.clone(),
        image_id: image_id.clone(),
        content: failure.content.clone(),
        size: None,
        failure: Some(failure),
    };
    match kind {
        Kind::UnreadableFolder(_) | Kind::Tar => return None,
        Kind::Special | Kind::BrokenLink if !called => return None,
        Kind::Special => return Some(failed(Failure::new(Reason::Unreadable, "not a regular file, so it is not opened"))),
        Kind::BrokenLink => return Some(failed(Failure::new(Reason::Vanished, "a symbolic link to nothing"))),
        Kind::File if !called && !begins_like_an_image(&path) => return None,
        Kind::File => {}
    }
    let bytes = match image::read(&path, limits) {
        Ok(bytes) => bytes,
        Err(failure) => return Some(failed(failure)),
    };
    let content = Content { sha256: sha256_hex(&bytes), bytes: bytes.len() as u64 };
    let (size, failure) = match image::header(&bytes, limits) {
        Ok(header) => (Some(header.upright()), None),
        Err(failure) => (None, Some(failure)),
    };
    Some(Found { content: Some(content), size, failure, path, image_path, image_id })
}

/// A regular file under another name that is an image all the same.
fn begins_like_an_image(path: &std::path::Path) -> bool {
    use std::io::Read;
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let read = std::fs::File::open(path).and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head));
    read.is_ok() && image::sniff(&head).is_some()
}
