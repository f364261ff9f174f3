//! Parquet files here or elsewhere, read where their readers want to.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::TableError;
use crate::remote::{self, Random};

/// A file that is read in any order.
pub enum TableFile {
    Local(File),
    Remote(Random),
}

impl TableFile {
    /// Opens a path or a URL.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn open(path: &Path) -> Result<Self, TableError> {
        Self::with(path, Random::open)
    }

    /// The same for a small part of what is in it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_for_little(path: &Path) -> Result<Self, TableError> {
        Self::with(path, Random::open_for_little)
    }

    fn with(path: &Path, elsewhere: impl FnOnce(&Path) -> io::Result<Random>) -> Result<Self, TableError> {
        let opened = match remote::is_url(path) {
            true => elsewhere(path).map(Self::Remote),
            false => File::open(path).map(Self::Local),
        };
        opened.map_err(|source| TableError::Io { path: remote::shown(path).into(), source })
    }
}

impl Length for TableFile {
    fn len(&self) -> u64 {
        match self {
            Self::Local(file) => file.len(),
            Self::Remote(random) => random.size(),
        }
    }
}

impl ChunkReader for TableFile {
    type T = Box<dyn Read + Send>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        match self {
            Self::Local(file) => Ok(Box::new(file.get_read(start)?)),
            Self::Remote(random) => Ok(Box::new(From { random: random.clone(), at: start })),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        match self {
            Self::Local(file) => file.get_bytes(start, length),
            Self::Remote(random) => random.read(start, length as u64).map_err(|error| ParquetError::External(Box::new(error))),
        }
    }
}

/// Reads on from a place.
struct From {
    random: Random,
    at: u64,
}

impl Read for From {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let wanted = (out.len() as u64).min(self.random.size().saturating_sub(self.at));
        if wanted == 0 {
            return Ok(0);
        }
        let bytes = self.random.read(self.at, wanted.min(1 << 20))?;
        out[..bytes.len()].copy_from_slice(&bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}
