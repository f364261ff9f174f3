//! Reading in any order, with the last pieces kept: tables are read by many small requests that lie close together.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::fetch::{read_range, size};

/// Bytes of a request at least, and pieces that are kept.
const PIECE: u64 = 4 << 20;
const LITTLE: u64 = 64 << 10;
const PIECES: usize = 6;

/// An object that is read in any order.
#[derive(Clone)]
pub struct Random {
    url: PathBuf,
    size: u64,
    piece: u64,
    /// Where they begin; the latest last.
    pieces: Arc<Mutex<VecDeque<(u64, Bytes)>>>,
}

impl Random {
    /// # Errors
    /// As [`read`](super::read).
    pub fn open(url: &Path) -> io::Result<Self> {
        Ok(Self { url: url.into(), size: size(url)?, piece: PIECE, pieces: Arc::default() })
    }

    /// To read little here and there.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_for_little(url: &Path) -> io::Result<Self> {
        Ok(Self { piece: LITTLE, ..Self::open(url)? })
    }

    /// Bytes of the object.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// So many bytes from `start` on.
    ///
    /// # Errors
    /// The object ends before; as [`read`](super::read).
    pub fn read(&self, start: u64, length: u64) -> io::Result<Bytes> {
        let end = start.checked_add(length).filter(|end| *end <= self.size);
        let end = end.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends early"))?;
        if length == 0 {
            return Ok(Bytes::new());
        }
        let within = |(from, bytes): &(u64, Bytes)| {
            let inside = *from <= start && end <= from + bytes.len() as u64;
            inside.then(|| bytes.slice((start - from) as usize..(end - from) as usize))
        };
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = pieces.iter().rev().find_map(within) {
            return Ok(found);
        }
        let bytes = read_range(&self.url, start..(start + length.max(self.piece)).min(self.size))?;
        if (bytes.len() as u64) < length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server sent less than was asked for"));
        }
        let found = bytes.slice(..length as usize);
        if pieces.len() == PIECES {
            pieces.pop_front();
        }
        pieces.push_back((start, bytes));
        Ok(found)
    }
}
