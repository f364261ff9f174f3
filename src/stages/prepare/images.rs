//! What is in the folders and tars: every image file read once, hashed, and its header understood.

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use rayon::prelude::*;

use crate::dataset::listing::{Entry, Kind, Listing, relative_path};
use crate::dataset::wanted::{MemberFilter, Wanted};
use crate::files::ContentHash;
use crate::image::{self, Content, Failure, Limits, Reason};
use crate::pipeline::sources::{Members, Place};
use crate::pipeline::{self, Interrupt, Reporter, Tick, Turns};
use crate::remote;

/// An image file, good or bad.
#[derive(Debug, Clone)]
pub struct Found {
    pub place: Place,
    pub image_path: String,
    /// As every command has it; see [`naming`](crate::dataset::naming).
    pub image_id: String,
    /// None where the file could not be read.
    pub content: Option<Content>,
    /// Width and height as stored, before EXIF's orientation.
    pub size: Option<(u32, u32)>,
    pub failure: Option<Failure>,
}

/// Tars that are read from servers at once.
const TARS_ELSEWHERE: usize = 8;

/// Lists the folders and tars and reads every image in them, on every core. The list's order is kept. Files that are no images are left out.
pub fn examine(
    roots: &[PathBuf],
    own: &[PathBuf],
    wanted: &Wanted,
    limits: &Limits,
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<Vec<Found>> {
    let (listing, members) = (Listing::new(roots, own, wanted)?, wanted.of_members()?);
    let entries: Vec<Entry> = listing.iter().collect();
    for entry in entries.iter().filter(|entry| matches!(entry.kind, Kind::UnreadableFolder(_))) {
        reporter.warn(&format!("{}: this folder cannot be listed, so its images are missing", entry.image_path));
    }
    // How many are in tars is not known.
    let is_counted = entries.iter().all(|entry| entry.kind != Kind::Tar);
    let total = if is_counted { entries.len() as u64 } else { 0 };
    let done = AtomicU64::new(0);
    let tick = &|| {
        let count = done.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_multiple_of(256) || count == total {
            reporter.tick(&Tick { label: "reading images", done: count, total, ..Tick::default() });
        }
    };
    // Of each tar elsewhere several parts are in memory.
    let tars = Turns::new(TARS_ELSEWHERE);
    let found = entries.into_par_iter().flat_map_iter(|entry| -> Box<dyn Iterator<Item = Found>> {
        if interrupt.is_set() {
            return Box::new(std::iter::empty());
        }
        if entry.kind == Kind::Tar {
            let turn = remote::is_url(&entry.path).then(|| tars.take());
            let members = in_tar(&entry, members.clone(), limits, reporter, interrupt);
            return Box::new(members.inspect(move |_| {
                let _until_the_end = &turn;
                tick();
            }));
        }
        let found = look_at(entry, limits);
        tick();
        Box::new(found.into_iter())
    });
    let found = found.collect();
    listing.left_out().plus(members.left_out()).note().iter().for_each(|note| reporter.note(note));
    Ok(found)
}

/// The images in a tar.
fn in_tar<'a>(
    entry: &Entry,
    filter: MemberFilter,
    limits: &'a Limits,
    reporter: &'a dyn Reporter,
    interrupt: &'a Interrupt,
) -> impl Iterator<Item = Found> + use<'a> {
    let (tar, name) = (entry.path.clone(), format!("{}/", entry.image_path));
    let mut members = Members::open(&tar, &entry.image_path, limits.max_bytes, filter);
    std::iter::from_fn(move || {
        loop {
            let member = members.next().filter(|_| !interrupt.is_set())?;
            let pipeline::Entry { image_path, image_id, content } = member;
            let place = match members.extent() {
                Some(extent) => Place::Member { tar: tar.clone(), extent },
                None => {
                    let inner = image_path.strip_prefix(&name).unwrap_or(&image_path);
                    Place::Packed { tar: tar.clone(), inner: relative_path(inner).into_os_string().into_vec() }
                }
            };
            let found = Found { place, image_path, image_id, content: None, size: None, failure: None };
            match content {
                pipeline::Content::Bytes(bytes) => return Some(with_bytes(found, &bytes, limits)),
                pipeline::Content::Failed(failure) => {
                    let reason = failure.reason.parse().unwrap_or(Reason::Unreadable);
                    return Some(Found { failure: Some(Failure::new(reason, failure.message)), ..found });
                }
                pipeline::Content::Unlisted(failure) => reporter.warn(&format!("{}: {}", found.image_path, failure.message)),
                _ => {}
            }
        }
    })
}

/// One hash of what was found: names, contents, and why some could not be read.
pub fn fingerprint(found: &[Found]) -> String {
    let mut text = String::new();
    for image in found {
        let content = image.content.as_ref().map_or_else(String::new, |content| content.sha256.to_string());
        let reason = image.failure.as_ref().map_or("", |failure| failure.reason.as_str());
        text += &format!("{content} {reason} {}\n", image.image_path);
    }
    ContentHash::of(text).to_string()
}

fn look_at(entry: Entry, limits: &Limits) -> Option<Found> {
    let Entry { path, image_path, image_id, kind, version: _ } = entry;
    let called = image::called_an_image(&path);
    let found = |content| {
        let place = Place::File(path.clone());
        Found { place, image_path: image_path.clone(), image_id: image_id.clone(), content, size: None, failure: None }
    };
    let failed = |failure: Failure| Found { failure: Some(failure.clone()), ..found(failure.content) };
    match kind {
        Kind::UnreadableFolder(_) | Kind::Tar | Kind::Parquet { .. } => return None,
        Kind::Special | Kind::BrokenLink if !called => return None,
        Kind::Special => return Some(failed(Failure::new(Reason::Unreadable, "not a regular file, so it is not opened"))),
        Kind::BrokenLink => return Some(failed(Failure::new(Reason::Vanished, "a symbolic link to nothing"))),
        Kind::File if !called && !image::begins_like_an_image(&path) => return None,
        Kind::File => {}
    }
    Some(match image::read(&path, limits) {
        Ok(bytes) => with_bytes(found(None), &bytes, limits),
        Err(failure) => failed(failure),
    })
}

/// An image whose file was read.
fn with_bytes(found: Found, bytes: &[u8], limits: &Limits) -> Found {
    let content = Content { sha256: ContentHash::of(bytes), bytes: bytes.len() as u64 };
    let (size, failure) = match image::header(bytes, limits) {
        Ok(header) => (Some(header.upright()), None),
        Err(failure) => (None, Some(failure)),
    };
    Found { content: Some(content), size, failure, ..found }
}
