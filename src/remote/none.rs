//! What a clipcap says that was built without the feature `remote`.

use std::io::{self, Empty};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{Fetched, Name, Place, Version};

fn absent<T>() -> io::Result<T> {
    let message = "this clipcap was built without remote storage (the feature `remote`)";
    Err(io::Error::new(io::ErrorKind::Unsupported, message))
}

/// # Errors
/// Always, as everything here.
pub fn read(_: &Path, _: u64) -> io::Result<Fetched> {
    absent()
}

/// # Errors
/// Always.
pub fn begins(_: &Path, _: u64) -> io::Result<Bytes> {
    absent()
}

/// # Errors
/// Always.
pub fn size(_: &Path) -> io::Result<u64> {
    absent()
}

/// # Errors
/// Always.
pub fn version(_: &Path) -> io::Result<Version> {
    absent()
}

/// # Errors
/// Always.
pub fn reader(_: &Path) -> io::Result<Empty> {
    absent()
}

/// # Errors
/// Always.
pub fn place(_: &Path) -> io::Result<Place> {
    absent()
}

/// # Errors
/// Always.
pub fn names(_: &Path) -> io::Result<Vec<Name>> {
    absent()
}

/// # Errors
/// Always.
pub fn upload(_: &Path, _: &Path) -> io::Result<()> {
    absent()
}

/// # Errors
/// Always.
pub fn remove(_: &Path) -> io::Result<()> {
    absent()
}

/// Nothing is listed ahead.
#[derive(Default)]
pub struct Ahead(());

impl Ahead {
    /// Does nothing.
    pub fn ask(&mut self, _: impl Iterator<Item = PathBuf>) {}

    /// # Errors
    /// Always.
    pub fn each(&mut self, _: &Path, _: impl FnMut(Name) -> io::Result<()>) -> io::Result<()> {
        absent()
    }
}

/// An object that cannot be read.
#[derive(Clone)]
pub struct Random(());

impl Random {
    /// # Errors
    /// Always.
    pub fn open(_: &Path) -> io::Result<Self> {
        absent()
    }

    /// # Errors
    /// Always.
    pub fn open_for_little(_: &Path) -> io::Result<Self> {
        absent()
    }

    /// Nothing.
    pub fn size(&self) -> u64 {
        0
    }

    /// # Errors
    /// Always.
    pub fn read(&self, _: u64, _: u64) -> io::Result<Bytes> {
        absent()
    }
}
