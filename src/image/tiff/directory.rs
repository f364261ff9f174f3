//! TIFF's directories: a file's byte order, and the tags of a picture with their values.

use super::super::failure::Failure;
use super::{corrupt, truncated};

/// A TIFF file: its bytes, byte order and kind.
#[derive(Clone, Copy)]
pub(super) struct File<'a> {
    pub bytes: &'a [u8],
    pub big_endian: bool,
    /// BigTIFF: offsets of 64 bits.
    big: bool,
}

/// The tags of one picture.
pub(super) struct Directory<'a> {
    file: File<'a>,
    entries: Vec<Entry>,
    /// Where the next directory lies; 0 at the end.
    pub next: u64,
}

struct Entry {
    tag: u16,
    kind: u16,
    count: u64,
    at: u64,
}

/// More tags than any writer gives a picture.
const MAX_TAGS: u64 = 4096;

impl<'a> File<'a> {
    /// The file and the place of its first directory.
    pub fn open(bytes: &'a [u8]) -> Result<(Self, u64), Failure> {
        // Two writers have put the 42 in the other byte order; the letters count.
        let (big_endian, big) = match bytes.first_chunk::<4>() {
            None => return Err(truncated()),
            Some(b"II*\0" | b"II\0*") => (false, false),
            Some(b"MM\0*" | b"MM*\0") => (true, false),
            Some(b"II+\0") => (false, true),
            Some(b"MM\0+") => (true, true),
            Some(_) => return Err(corrupt("no TIFF header")),
        };
        let file = Self { bytes, big_endian, big };
        let first = if big { file.number(8, 8) } else { file.number(4, 4) };
        Ok((file, first.ok_or_else(truncated)?))
    }

    /// An unsigned number of 1, 2, 4 or 8 bytes.
    fn number(&self, at: u64, size: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let bytes = self.bytes.get(at..at.checked_add(size as usize)?)?;
        let add = |value: u64, &byte: &u8| value << 8 | u64::from(byte);
        Some(if self.big_endian { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) })
    }

    pub fn directory(self, at: u64) -> Result<Directory<'a>, Failure> {
        let (counted, entry, inline) = if self.big { (8, 20, 8) } else { (2, 12, 4) };
        let count = self.number(at, counted).ok_or_else(truncated)?;
        if count > MAX_TAGS {
            return Err(corrupt(&format!("a directory of {count} tags")));
        }
        let mut entries = Vec::with_capacity(count as usize);
        for n in 0..count {
            let from = at + counted + n * entry;
            let read = |offset, size| self.number(from + offset, size).ok_or_else(truncated);
            let (tag, kind) = (read(0, 2)? as u16, read(2, 2)? as u16);
            let count = read(4, inline)?;
            let place = from + 4 + inline;
            let fits = count.saturating_mul(size_of(kind)) <= inline;
            let at = if fits { place } else { read(4 + inline, inline)? };
            entries.push(Entry { tag, kind, count, at });
        }
        // A file cut behind its last tag has no next directory.
        let next = self.number(at + counted + count * entry, inline).unwrap_or(0);
        Ok(Directory { file: self, entries, next })
    }
}

/// Bytes of a value; 0 for a type that is not known.
fn size_of(kind: u16) -> u64 {
    match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16 | 17 | 18 => 8,
        _ => 0,
    }
}

impl<'a> Directory<'a> {
    fn entry(&self, tag: u16) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.tag == tag && entry.count > 0 && size_of(entry.kind) > 0)
    }

    pub fn has(&self, tag: u16) -> bool {
        self.entry(tag).is_some()
    }

    /// The first `at_most` whole numbers of a tag; none where the tag is not there or holds no such numbers.
    pub fn list(&self, tag: u16, at_most: usize) -> Result<Vec<u64>, Failure> {
        let Some(entry) = self.entry(tag) else { return Ok(Vec::new()) };
        let size = size_of(entry.kind);
        if matches!(entry.kind, 2 | 5 | 10..=12) {
            return Ok(Vec::new());
        }
        let count = entry.count.min(at_most as u64);
        let read = |n| self.file.number(entry.at.checked_add(n * size)?, size);
        (0..count).map(|n| read(n).ok_or_else(truncated)).collect()
    }

    /// The first number of a tag.
    pub fn first(&self, tag: u16) -> Result<Option<u64>, Failure> {
        Ok(self.list(tag, 1)?.first().copied())
    }

    /// The first number of a tag, or its usual value.
    pub fn or(&self, tag: u16, usual: u64) -> Result<u64, Failure> {
        Ok(self.first(tag)?.unwrap_or(usual))
    }

    /// The bytes of a tag.
    pub fn bytes(&self, tag: u16) -> Result<Option<&'a [u8]>, Failure> {
        let Some(entry) = self.entry(tag) else { return Ok(None) };
        let from = usize::try_from(entry.at).map_err(|_| truncated())?;
        let length = usize::try_from(entry.count.saturating_mul(size_of(entry.kind))).map_err(|_| truncated())?;
        let bytes = from.checked_add(length).and_then(|to| self.file.bytes.get(from..to));
        bytes.map(Some).ok_or_else(truncated)
    }
}
