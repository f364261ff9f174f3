//! Files under some folders.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use anyhow::Result;

use super::dataset::or_error;
use super::rows::TableRows;
use super::tar::Members;
use crate::dataset::listing::{self, Kind, Listing};
use crate::dataset::wanted::{LeftOut, MemberFilter, Wanted};
use crate::files::Stat;
use crate::image::{Reason, called_an_image};
use crate::pipeline::artifact::Failure;
use crate::pipeline::engine::{Content, Counter, Entry, Expected};
use crate::remote;

/// Lists files, one after another, in an order that depends on names alone.
pub struct Folder {
    listing: Listing,
    max_bytes: u64,
    members: MemberFilter,
    /// Listing it again to count is not for nothing.
    is_remote: bool,
}

impl Folder {
    /// `own` are the run's own outputs, which are not found. `max_bytes` is the most an image in a tar may have.
    pub fn new(roots: &[PathBuf], own: &[PathBuf], max_bytes: u64, wanted: &Wanted) -> Result<Self> {
        let is_remote = remote::any(roots);
        Ok(Self { listing: Listing::new(roots, own, wanted)?, max_bytes, members: wanted.of_members()?, is_remote })
    }

    /// What was not wanted, once all entries were listed.
    pub fn left_out(&self) -> LeftOut {
        self.listing.left_out().plus(self.members.left_out())
    }

    /// What is found, in list order.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry>> + Send + '_ {
        self.listing.iter().flat_map(|found| entries(found, self.max_bytes, &self.members))
    }

    /// Counts beside the work what will be listed, where that costs little.
    pub fn counter(&self) -> Option<Counter<'_>> {
        (!self.is_remote).then(|| Box::new(|total: &_, stop: &_| self.count(total, stop)) as Counter)
    }

    /// What can be said of the list before it is worked on.
    pub fn expected(&self) -> Expected<'_> {
        match self.is_remote {
            true => Expected::Number(u64::MAX),
            false => Expected::Names(Box::new(self.names())),
        }
    }

    /// The image_path of everything that [`entries`](Self::entries) will list; `None` for a folder that cannot be listed and for a tar, whose
    /// members are not looked for.
    pub fn names(&self) -> impl Iterator<Item = Option<String>> + '_ {
        self.listing.iter().map(|found| (found.kind.is_found() && found.kind != Kind::Tar).then_some(found.image_path))
    }

    /// Whether at least so many images are to be expected. A tar is taken for as many as it has times 100,000 bytes; of what lies elsewhere no
    /// more than a page is listed for this.
    pub fn has_at_least(&self, least: u64) -> bool {
        const BYTES: u64 = 100_000;
        const PAGE: u64 = 1000;
        if self.is_remote && least > PAGE {
            return false;
        }
        let bytes_of = |found: &listing::Entry| match &found.version {
            Some(version) => version.bytes,
            None => fs::metadata(&found.path).map_or(0, |metadata| metadata.len()),
        };
        let mut number = 0;
        least == 0
            || self.listing.iter().any(|found| {
                number += if found.kind == Kind::Tar { bytes_of(&found) / BYTES } else { u64::from(found.kind.is_found()) };
                number >= least
            })
    }

    /// Counts what [`entries`](Self::entries) will list.
    pub fn count(&self, total: &AtomicU64, stop: &AtomicBool) {
        let mut is_known = true;
        let members = self.members.apart();
        for found in self.listing.iter() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if found.kind == Kind::Tar {
                let count = Members::count(&found.path, false, members.clone());
                is_known &= count.is_some();
                total.fetch_add(count.unwrap_or_default(), Ordering::Relaxed);
            } else if found.kind.is_found() {
                total.fetch_add(1, Ordering::Relaxed);
            }
        }
        if !is_known {
            total.store(0, Ordering::Relaxed);
        }
    }
}

/// What a stage is given of something that was found: itself, or what is in it.
pub(super) fn entries(
    found: listing::Entry,
    max_bytes: u64,
    members: &MemberFilter,
) -> Box<dyn Iterator<Item = Result<Entry>> + Send> {
    match found.kind {
        Kind::Tar => Box::new(Members::open(&found.path, &found.image_path, max_bytes, members.clone()).map(Ok)),
        Kind::Parquet { by_file } => {
            or_error(TableRows { path: found.path, name: found.image_path, by_file }.entries(&found.image_id))
        }
        _ => Box::new(std::iter::once(Ok(entry(found)))),
    }
}

fn entry(found: listing::Entry) -> Entry {
    let image_id = found.image_id;
    let named = called_an_image(&found.path);
    let failed = |reason: Reason, message: &str| Failure { reason: reason.as_str().into(), message: message.into() };
    let content = match found.kind {
        Kind::File if remote::is_url(&found.path) => {
            let stat = found.version.and_then(|version| stat_of(version, SystemTime::now()));
            Content::File { path: found.path, stat }
        }
        Kind::File | Kind::Tar | Kind::Parquet { .. } => return file_entry(found.path, found.image_path, image_id),
        Kind::Special | Kind::BrokenLink if !named => Content::Other,
        Kind::Special => Content::Failed(failed(Reason::Unreadable, "not a regular file, so it is not opened")),
        Kind::BrokenLink => Content::Failed(failed(Reason::Vanished, "a symbolic link to nothing")),
        Kind::UnreadableFolder(io::ErrorKind::PermissionDenied) => {
            Content::Unlisted(failed(Reason::PermissionDenied, "no permission to list the folder; what it holds is missing"))
        }
        Kind::UnreadableFolder(io::ErrorKind::HostUnreachable) => {
            Content::Unlisted(failed(Reason::Unreachable, "the server gave no usable answer; what this folder holds is missing"))
        }
        Kind::UnreadableFolder(io::ErrorKind::InvalidInput) => Content::Unlisted(failed(
            Reason::Unreadable,
            "keys with a part that is empty, `.` or `..`, or has a control character, are not read: rename them; what this folder holds is missing",
        )),
        Kind::UnreadableFolder(_) => {
            Content::Unlisted(failed(Reason::Unreadable, "the folder cannot be listed; what it holds is missing"))
        }
    };
    Entry { image_path: found.image_path, image_id, content }
}

/// What a server says of an object, in the place of what a file system says of a file. Without a tag it must have been there for a while.
fn stat_of(version: remote::Version, now: SystemTime) -> Option<Stat> {
    let remote::Version { bytes, modified_ns, tag } = version;
    let stat = Stat { size_bytes: bytes, mtime_ns: modified_ns, ctime_ns: modified_ns, inode: 0 };
    match tag {
        Some(tag) => Some(Stat { ctime_ns: tag.cast_signed(), ..stat }),
        None => Some(stat).filter(|stat| stat.is_settled(now)),
    }
}

/// An entry for a file, with what the file system says of it.
pub(super) fn file_entry(path: PathBuf, image_path: String, image_id: String) -> Entry {
    let now = SystemTime::now();
    let stat = fs::metadata(&path).ok().map(|metadata| Stat::of(&metadata)).filter(|stat| stat.is_settled(now));
    Entry { image_path, image_id, content: Content::File { path, stat } }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn objects_are_known_by_their_tags_and_without_one_after_a_while() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let version = |seconds: i64, tag| remote::Version { bytes: 7, modified_ns: seconds * 1_000_000_000, tag };
        assert!(stat_of(version(99, None), now).is_none());
        assert!(stat_of(version(90, None), now).is_some());
        let stat = stat_of(version(99, Some(u64::MAX)), now);
        assert!(stat.is_some() && stat == stat_of(version(99, Some(u64::MAX)), now));
        assert!(stat != stat_of(version(99, Some(1)), now) && stat != stat_of(version(98, Some(u64::MAX)), now));
    }
}
