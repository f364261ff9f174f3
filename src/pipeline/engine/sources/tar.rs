//! The members of a tar, as if they were files of a folder of its name: hidden ones and unwanted ones are left out here too.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::dataset::listing::image_path;
use crate::dataset::naming;
use crate::dataset::tar::{Extent, Member, MemberKind, Tar, TarError, inner_path};
use crate::dataset::wanted::MemberFilter;
use crate::image::{Reason, called_an_image, sniff};
use crate::pipeline::artifact::Failure;
use crate::pipeline::engine::{Content, Entry};
use crate::remote;

/// Bytes that tell an image from another file.
const HEAD_BYTES: u64 = 64;

/// Goes through a tar's members, one after another; folders are left out.
pub struct Members {
    tar: Option<Tar>,
    /// The tar's name in every table.
    name: String,
    max_bytes: u64,
    /// Contents are wanted, and not the number of members alone.
    reads: bool,
    /// Ids that a member has.
    taken: HashSet<String>,
    /// What is to be told before the end.
    last: Option<Entry>,
    filter: MemberFilter,
    /// Where the content of the member that came last lies.
    extent: Option<Extent>,
}

impl Members {
    /// `max_bytes` is the most an image may have.
    pub fn open(path: &Path, name: &str, max_bytes: u64, filter: MemberFilter) -> Self {
        let mut members = Self {
            tar: None,
            name: name.into(),
            max_bytes,
            reads: true,
            taken: HashSet::new(),
            last: None,
            filter,
            extent: None,
        };
        match Tar::open(path) {
            Ok(tar) => members.tar = Some(tar),
            Err(error) => {
                let failure = crate::image::Failure::from_io(&error);
                members.end(failure.reason, format!("{}; what follows in this tar is missing", failure.message));
            }
        }
        members
    }

    /// Where the content of the entry that came last lies; None in a gzipped tar.
    pub fn extent(&self) -> Option<Extent> {
        self.extent
    }

    /// How many there are. None where that is not known without unpacking, which `unpacks` allows, or without fetching all of it.
    pub fn count(path: &Path, unpacks: bool, filter: MemberFilter) -> Option<u64> {
        if remote::is_url(path) {
            return None;
        }
        let mut members = Self::open(path, "", 0, filter);
        members.reads = false;
        if !unpacks && members.tar.as_ref().is_some_and(|tar| !tar.is_plain()) {
            return None;
        }
        Some(members.filter(|entry| !matches!(entry.content, Content::Unlisted(_))).count() as u64)
    }

    /// Nothing behind this place can be read: told as a folder is that cannot be listed.
    fn end(&mut self, reason: Reason, message: String) {
        self.tar = None;
        self.last = Some(Entry {
            image_path: format!("{}/", self.name),
            image_id: format!("{}/", self.name),
            content: Content::Unlisted(Failure { reason: reason.as_str().into(), message }),
        });
    }

    fn broken(&mut self, error: &TarError) {
        match error {
            TarError::Truncated | TarError::GzipTruncated | TarError::Unended => self.end(Reason::Truncated, error.consequence()),
            TarError::Corrupt(_) => self.end(Reason::Corrupt, error.consequence()),
            TarError::Io(error) => {
                let failure = crate::image::Failure::from_io(error);
                self.end(failure.reason, format!("{}; what follows in this tar is missing", failure.message));
            }
        }
    }

    fn entry(&mut self, member: &Member) -> Entry {
        let inner = inner_path(&member.name);
        let shown = inner.clone().unwrap_or_else(|| member.name.clone());
        let content = self.content(member, inner.is_some());
        let image_path = format!("{}/{}", self.name, image_path(&shown));
        // The first of a stem has it as its id, as in a folder; the others go by their whole names.
        let is_named = called_an_image(Path::new(OsStr::from_bytes(&shown)));
        let stem = naming::image_id(&image_path).into_owned();
        let image_id = if is_named && self.taken.insert(stem.clone()) { stem } else { image_path.clone() };
        Entry { image_path, image_id, content }
    }

    fn content(&mut self, member: &Member, stays_inside: bool) -> Content {
        let is_named = called_an_image(Path::new(OsStr::from_bytes(&member.name)));
        let failed = |reason: Reason, message: &str| match is_named {
            true => Content::Failed(Failure { reason: reason.as_str().into(), message: message.into() }),
            false => Content::Other,
        };
        match member.kind {
            _ if !stays_inside => return failed(Reason::Unreadable, "its name leads out of the tar, so it is not read"),
            MemberKind::File => {}
            MemberKind::Link => return failed(Reason::Unreadable, "a link, which has no content in the tar"),
            MemberKind::Sparse => return failed(Reason::Unreadable, "a sparse file, which the tar does not hold as it is"),
            MemberKind::Special | MemberKind::Folder => return failed(Reason::Unreadable, "not a regular file"),
        }
        let (reads, max_bytes) = (self.reads, self.max_bytes);
        let Some(tar) = self.tar.as_mut().filter(|_| reads) else { return Content::Other };
        match read(tar, member.bytes, is_named, max_bytes) {
            Ok(content) => content,
            Err(error) => {
                let content = match &error {
                    TarError::Io(error) => {
                        let failure = crate::image::Failure::from_io(error);
                        failed(failure.reason, &failure.message)
                    }
                    _ => failed(Reason::Truncated, "the tar ends in the middle of this file"),
                };
                self.broken(&error);
                content
            }
        }
    }
}

/// A member's bytes, where they are or may be an image's.
fn read(tar: &mut Tar, bytes: u64, is_named: bool, max_bytes: u64) -> Result<Content, TarError> {
    let mut content = tar.read(HEAD_BYTES)?;
    if !is_named && sniff(&content).is_none() {
        return Ok(Content::Other);
    }
    if bytes > max_bytes {
        let message = format!("{bytes} bytes, limit {max_bytes}");
        return Ok(Content::Failed(Failure { reason: Reason::TooLarge.as_str().into(), message }));
    }
    content.extend(tar.read(u64::MAX)?);
    Ok(Content::Bytes(content.into()))
}

impl Iterator for Members {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            let Some(tar) = self.tar.as_mut() else { return self.last.take() };
            match tar.next_member() {
                Ok(None) => self.tar = None,
                Ok(Some(member)) if member.kind == MemberKind::Folder => {}
                Ok(Some(member)) if inner_path(&member.name).is_some_and(|inner| self.filter.leaves(&inner)) => {}
                Ok(Some(member)) => {
                    self.extent = tar.extent();
                    return Some(self.entry(&member));
                }
                Err(error) => self.broken(&error),
            }
        }
    }
}
