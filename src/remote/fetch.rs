//! Reading: whole objects, parts of them, and long ones from front to back.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_core::Stream;
use object_store::path::Path as Key;
use object_store::{Error, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::task::JoinHandle;

use super::store::{Object, answered, io_error, object, runtime, wait};
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
    Ok(Fetched::Whole(Held { bytes: wait(answer.bytes())?.into(), share }))
}

/// Some bytes of an object, fewer where it ends before.
///
/// # Errors
/// As [`read`].
pub(super) fn read_range(url: &Path, range: Range<u64>) -> io::Result<Bytes> {
    let Object { store, key, .. } = object(url)?;
    wait(async move { part(&store, &key, range, None).await?.bytes().await })
}

/// Asks for a part of an object, of a version where one is named.
async fn part(
    store: &Arc<dyn ObjectStore>,
    key: &Key,
    range: Range<u64>,
    version: Option<String>,
) -> object_store::Result<GetResult> {
    let options = GetOptions { range: Some(GetRange::Bounded(range)), if_match: version, ..GetOptions::default() };
    store.get_opts(key, options).await
}

/// The beginning of an object; the object as a whole where the server hands out no parts, or where it is empty and has none.
async fn beginning(store: &Arc<dyn ObjectStore>, key: &Key, bytes: u64) -> object_store::Result<GetResult> {
    match part(store, key, 0..bytes, None).await {
        Err(error) if matches!(error, Error::NotSupported { .. }) || answered(&error) == Some(416) => store.get(key).await,
        answer => answer,
    }
}

/// What the server says of an object. A signature may be good for reading alone.
pub(super) async fn head(store: &Arc<dyn ObjectStore>, key: &Key) -> object_store::Result<ObjectMeta> {
    match store.head(key).await {
        Err(error) if matches!(error, Error::PermissionDenied { .. }) || matches!(answered(&error), Some(405 | 501)) => {
            Ok(beginning(store, key, 1).await?.meta)
        }
        answer => answer,
    }
}

/// The first bytes of an object; none where it is empty.
///
/// # Errors
/// As [`read`].
pub fn begins(url: &Path, bytes: u64) -> io::Result<Bytes> {
    let Object { store, key, .. } = object(url)?;
    let mut stream = wait(async { Ok(beginning(&store, &key, bytes).await?.into_stream()) })?;
    let mut begins = Vec::new();
    while begins.len() < bytes as usize
        && let Some(next) = next(&mut stream)?
    {
        begins.extend_from_slice(&next);
    }
    begins.truncate(bytes as usize);
    Ok(begins.into())
}

/// An answer as it comes.
type Coming = Pin<Box<dyn Stream<Item = object_store::Result<Bytes>> + Send>>;

fn next(stream: &mut Coming) -> io::Result<Option<Bytes>> {
    wait(async { std::future::poll_fn(|context| stream.as_mut().poll_next(context)).await.transpose() })
}

/// Bytes of an object.
///
/// # Errors
/// As [`read`].
pub fn size(url: &Path) -> io::Result<u64> {
    let Object { store, key, .. } = object(url)?;
    wait(async move { Ok(head(&store, &key).await?.size) })
}

/// What the server says of an object.
///
/// # Errors
/// As [`read`].
pub fn version(url: &Path) -> io::Result<Version> {
    let Object { store, key, .. } = object(url)?;
    wait(async move { Ok(Version::of(&head(&store, &key).await?)) })
}

/// Reads an object from front to back, a few parts ahead, so that none of any size is in memory.
///
/// # Errors
/// As [`read`]; reading on fails where the object was changed meanwhile.
pub fn reader(url: &Path) -> io::Result<impl Read + Send + use<>> {
    let Object { store, key, .. } = object(url)?;
    let first = wait(async { beginning(&store, &key, PART).await })?;
    let (end, size, tag) = (first.range.end, first.meta.size, first.meta.e_tag.clone());
    let here = Bytes::new();
    if end == size {
        return Ok(Reader::Whole { stream: first.into_stream(), here });
    }
    let coming = VecDeque::from([runtime()?.spawn(first.bytes())]);
    Ok(Reader::Parts(Parts { store, key, tag, size, next: end, coming, here }))
}

enum Reader {
    /// In one answer: it is short, or the server hands out no parts.
    Whole {
        stream: Coming,
        here: Bytes,
    },
    Parts(Parts),
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Whole { stream, here } => {
                while here.is_empty() {
                    let Some(more) = next(stream)? else { return Ok(0) };
                    *here = more;
                }
                Ok(take(here, out))
            }
            Self::Parts(parts) => parts.read(out),
        }
    }
}

fn take(here: &mut Bytes, out: &mut [u8]) -> usize {
    let bytes = out.len().min(here.len());
    here.copy_to_slice(&mut out[..bytes]);
    bytes
}

struct Parts {
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

impl Parts {
    fn ask(&mut self) -> io::Result<()> {
        while self.coming.len() < PARTS && self.next < self.size {
            let range = self.next..(self.next + PART).min(self.size);
            self.next = range.end;
            let (store, key) = (self.store.clone(), self.key.clone());
            // Weak tags cannot be asked for.
            let version = self.tag.clone().filter(|tag| !tag.starts_with("W/"));
            self.coming.push_back(runtime()?.spawn(async move { part(&store, &key, range, version).await?.bytes().await }));
        }
        Ok(())
    }
}

impl Read for Parts {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.here.is_empty() {
            self.ask()?;
            let Some(coming) = self.coming.pop_front() else { return Ok(0) };
            let part = runtime()?.block_on(coming).map_err(|_| io::Error::other("a request ended unexpectedly"))?;
            self.here = part.map_err(|error| io_error(&error))?;
        }
        Ok(take(&mut self.here, out))
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.coming.iter().for_each(JoinHandle::abort);
    }
}
