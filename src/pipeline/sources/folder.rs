//! Files under some folders.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use anyhow::Result;

use crate::dataset::listing::{self, Kind, Listing};
use crate::image::{Reason, called_an_image};
use crate::pipeline::{Content, Entry, Failure, Stat};

/// Lists files, one after another, in an order that depends on names alone.
pub struct Folder {
    listing: Listing,
}

impl Folder {
    /// `own` are the run's own outputs, which are not found.
    pub fn new(roots: &[PathBuf], own: &[PathBuf]) -> Result<Self> {
        Ok(Self { listing: Listing::new(roots, own)? })
    }

    pub fn entries(&self) -> impl Iterator<Item = Result<Entry>> + Send + '_ {
        self.listing.iter().map(|found| Ok(entry(found)))
    }

    /// Counts what [`entries`](Self::entries) will list.
    pub fn count(&self, total: &AtomicU64, stop: &AtomicBool) {
        for found in self.listing.iter() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if found.kind.is_found() {
                total.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// What a stage is given of something that was found.
pub(super) fn entry(found: listing::Entry) -> Entry {
    let image_id = found.image_id;
    let named = called_an_image(&found.path);
    let failed = |reason: Reason, message: &str| Failure { reason: reason.as_str().into(), message: message.into() };
    let content = match found.kind {
        Kind::File => return file_entry(found.path, found.image_path, image_id),
        Kind::Special | Kind::BrokenLink if !named => Content::Other,
        Kind::Special => Content::Failed(failed(Reason::Unreadable, "not a regular file, so it is not opened")),
        Kind::BrokenLink => Content::Failed(failed(Reason::Vanished, "a symbolic link to nothing")),
        Kind::UnreadableFolder(io::ErrorKind::PermissionDenied) => {
            Content::Unlisted(failed(Reason::PermissionDenied, "no permission to list the folder; what it holds is missing"))
        }
        Kind::UnreadableFolder(_) => {
            Content::Unlisted(failed(Reason::Unreadable, "the folder cannot be listed; what it holds is missing"))
        }
    };
    Entry { image_path: found.image_path, image_id, content }
}

/// An entry for a file, with what the file system says of it.
pub(super) fn file_entry(path: PathBuf, image_path: String, image_id: String) -> Entry {
    let now = SystemTime::now();
    let stat = fs::metadata(&path).ok().map(|metadata| Stat::of(&metadata)).filter(|stat| stat.is_settled(now));
    Entry { image_path, image_id, content: Content::File { path, stat } }
}
