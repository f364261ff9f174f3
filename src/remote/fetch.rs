//! Reading: whole objects, parts of them, and long ones from front to back.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use tokio::task::JoinHandle;

use super::store::{Object, io_error, object, runtime, wait};
use super::{Fetched, HELD, Held, Version};

/// Bytes of a part of a long object, and how many parts are on their way at once.
const PART: u64 = 4 << 20;
const PARTS: usize = 4;

/// Reads an object of at most `most` bytes.
///
/// # Errors
/// It is not there, may not be read, or could not be reached after all tries ([`io::ErrorKind::HostUnreachable`]).
pub fn read(url: &Path, most: u64) -> io::Result<Fetched> {
    let Object { store, key, .. } = object(url)?;
    let answer = wait(async { store.get(&key).await })?;
    let bytes = answer.range.end - answer.range.start;
    if bytes > most {
        return Ok(Fetched::TooLarge(answer.meta.size.max(bytes)));
    }
    // What the server has to say is known, and nothing of it is in memory yet.
    let share = Some(HELD.take(bytes));
    Ok(Fetched::Whole(Held { bytes: wait(answer.bytes())?.into(), _share: share }))
}

/// Some bytes of an object, fewer where it ends before.
///
/// # Errors
/// As [`read`].
pub(super) fn read_range(url: &Path, range: Range<u64>) -> io::Result<Bytes> {
    let Object { store, key, .. } = object(url)?;
    wait(async move {
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        store.get_opts(&key, options).await?.bytes().await
    })
}

/// The first bytes of an object; none where it is empty.
///
/// # Errors
/// As [`read`].
pub fn begins(url: &Path, bytes: u64) -> io::Result<Bytes> {
    // Servers answer a range of an empty object with an error.
    if size(url)? == 0 { Ok(Bytes::new()) } else { read_range(url, 0..bytes) }
}

/// Bytes of an object.
///
/// # Errors
/// As [`read`].
pub fn size(url: &Path) -> io::Result<u64> {
    let Object { store, key, .. } = object(url)?;
    wait(async move { Ok(store.head(&key).await?.size) })
}

/// What the server says of an object.
///
/// # Errors
/// As [`read`].
pub fn version(url: &Path) -> io::Result<Version> {
    let Object { store, key, .. } = object(url)?;
    wait(async move { Ok(Version::of(&store.head(&key).await?)) })
}

/// Reads an object from front to back, a few parts ahead, so that none of any size is in memory.
///
/// # Errors
/// As [`read`]; reading on fails where the object was changed meanwhile.
pub fn reader(url: &Path) -> io::Result<impl Read + Send + use<>> {
    let Object { store, key, .. } = object(url)?;
    let meta = wait(async { store.head(&key).await })?;
    Ok(Reader { store, key, tag: meta.e_tag, size: meta.size, next: 0, coming: VecDeque::new(), here: Bytes::new() })
}

struct Reader {
    store: Arc<dyn ObjectStore>,
    key: Key,
    /// The version that is read.
    tag: Option<String>,
    size: u64,
    /// Where the part begins that is asked for next.
    next: u64,
    coming: VecDeque<JoinHandle<object_store::Result<Bytes>>>,
    here: Bytes,
}

impl Reader {
    fn ask(&mut self) -> io::Result<()> {
        while self.coming.len() < PARTS && self.next < self.size {
            let range = self.next..(self.next + PART).min(self.size);
            self.next = range.end;
            let (store, key) = (self.store.clone(), self.key.clone());
            // Weak tags cannot be asked for.
            let if_match = self.tag.clone().filter(|tag| !tag.starts_with("W/"));
            let options = GetOptions { range: Some(GetRange::Bounded(range)), if_match, ..GetOptions::default() };
            self.coming.push_back(runtime()?.spawn(async move { store.get_opts(&key, options).await?.bytes().await }));
        }
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.here.is_empty() {
            self.ask()?;
            let Some(coming) = self.coming.pop_front() else { return Ok(0) };
            let part = runtime()?.block_on(coming).map_err(|_| io::Error::other("a request ended unexpectedly"))?;
            self.here = part.map_err(|error| io_error(&error))?;
        }
        let bytes = out.len().min(self.here.len());
        self.here.copy_to_slice(&mut out[..bytes]);
        Ok(bytes)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.coming.iter().for_each(JoinHandle::abort);
    }
}
