//! Writing: an object is there as a whole, or not at all.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};

use super::store::{Object, object, wait};

/// Bytes of a part; the smallest that S3 takes is 5 MiB.
const PART: usize = 8 << 20;

/// Writes an object, over one that is there.
///
/// # Errors
/// The server refuses, or cannot be reached.
fn put(url: &Path, bytes: Vec<u8>) -> io::Result<()> {
    let Object { store, key, .. } = object(url)?;
    wait(async move { store.put(&key, PutPayload::from(bytes)).await.map(drop) })
}

/// Copies a file to an object, in parts where it is large. What fails on the way leaves no object.
///
/// # Errors
/// The file cannot be read; the server refuses, or cannot be reached.
pub fn upload(file: &Path, url: &Path) -> io::Result<()> {
    let mut file = File::open(file)?;
    if file.metadata()?.len() <= PART as u64 {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        return put(url, bytes);
    }
    let Object { store, key, .. } = object(url)?;
    let mut upload = wait(async { store.put_multipart(&key).await })?;
    match parts(&mut file, upload.as_mut()) {
        Ok(()) => wait(async { upload.complete().await.map(drop) }),
        Err(error) => {
            // The error is the one to tell; what is left behind is not an object.
            let _ = wait(async { upload.abort().await });
            Err(error)
        }
    }
}

fn parts(file: &mut File, upload: &mut dyn MultipartUpload) -> io::Result<()> {
    loop {
        let mut part = Vec::with_capacity(PART);
        if file.take(PART as u64).read_to_end(&mut part)? == 0 {
            return Ok(());
        }
        wait(upload.put_part(PutPayload::from(part)))?;
    }
}

/// Removes an object; one that is gone is no error.
///
/// # Errors
/// The server refuses, or cannot be reached.
pub fn remove(url: &Path) -> io::Result<()> {
    let Object { store, key, .. } = object(url)?;
    match wait(async move { store.delete(&key).await }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
