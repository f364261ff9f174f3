//! A file from the hub to the disk: in pieces where the network needs it, and checked by its hash.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use sha1::{Digest, Sha1};

use super::hub::{Hub, RemoteFile, TRIES, may_pass};
use crate::files::{ContentHash, hex};
use crate::pipeline::Interrupt;

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Whole,
    Interrupted,
}

/// Files of one model on their way.
pub struct Transfer<'a> {
    pub hub: &'a Hub,
    pub name: &'a str,
    pub commit: &'a str,
    pub interrupt: &'a Interrupt,
    /// Bytes that came over the network.
    pub fetched: u64,
}

/// How a request for the rest of a file ended.
enum Piece {
    /// The server said that this was all.
    End,
    Interrupted,
    /// It may go on from here.
    Cut(anyhow::Error),
}

const PIECE_BYTES: usize = 1 << 18;

impl Transfer<'_> {
    /// Fetches a file to `part`, from where it was left. `progress` learns the bytes that are there.
    ///
    /// # Errors
    /// The network fails again and again without a byte in between, or the content is not what the hub says it is.
    pub fn fetch(&mut self, file: &RemoteFile, part: &Path, progress: &dyn Fn(u64)) -> Result<Ended> {
        let context = || format!("cannot write {}", part.display());
        if let Some(folder) = part.parent() {
            fs::create_dir_all(folder).with_context(context)?;
        }
        let mut target =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(part).with_context(context)?;
        if let Err(TryLockError::WouldBlock) = target.try_lock() {
            bail!("{}: another run is fetching this file: wait for it", part.display());
        }
        let mut is_second = false;
        loop {
            if self.fetch_rest(file, &mut target, part, progress)? == Ended::Interrupted {
                return Ok(Ended::Interrupted);
            }
            target.sync_all().with_context(context)?;
            if is_whole(part, file)? {
                return Ok(Ended::Whole);
            }
            // What was there from before may be another file's beginning.
            target.set_len(0).with_context(context)?;
            if is_second {
                let _ = fs::remove_file(part);
                bail!(
                    "{}: {} is not what the hub says it is (wrong hash or length), twice: a proxy or a mirror changes it; nothing was kept",
                    self.name,
                    file.path
                );
            }
            is_second = true;
        }
    }

    fn fetch_rest(&mut self, file: &RemoteFile, target: &mut File, part: &Path, progress: &dyn Fn(u64)) -> Result<Ended> {
        let (mut failures, mut pause) = (0, self.hub.pause);
        loop {
            let there = target.seek(SeekFrom::End(0)).with_context(|| format!("cannot read {}", part.display()))?;
            if file.size.is_some_and(|size| there == size && size > 0) {
                return Ok(Ended::Whole);
            }
            if file.size.is_some_and(|size| there > size) {
                target.set_len(0)?;
                continue;
            }
            let error = match self.piece(file, target, there, progress)? {
                Piece::End => return Ok(Ended::Whole),
                Piece::Interrupted => return Ok(Ended::Interrupted),
                Piece::Cut(error) => error,
            };
            let has_grown = target.metadata().is_ok_and(|metadata| metadata.len() > there);
            failures = if has_grown { 1 } else { failures + 1 };
            if failures >= TRIES {
                let error = error.context(format!("{}: {} does not come", self.name, file.path));
                return Err(self.hub.unreachable(error));
            }
            pause = if has_grown { self.hub.pause } else { pause * 2 };
            std::thread::sleep(pause);
            if self.interrupt.is_set() {
                return Ok(Ended::Interrupted);
            }
        }
    }

    fn piece(&mut self, file: &RemoteFile, target: &mut File, there: u64, progress: &dyn Fn(u64)) -> Result<Piece> {
        let response = match self.hub.file(self.name, self.commit, &file.path, there) {
            Ok(response) => response,
            Err(error) => return Ok(Piece::Cut(error)),
        };
        let status = response.status().as_u16();
        match status {
            status if may_pass(status) => return Ok(Piece::Cut(anyhow::anyhow!("the hub answers {status}"))),
            // There is nothing behind what is there: all of it, or too much of something else.
            416 if file.size.is_none_or(|size| size == there) => return Ok(Piece::End),
            416 => {
                target.set_len(0)?;
                return Ok(Piece::Cut(anyhow::anyhow!("the hub answers 416")));
            }
            _ => self.hub.check(self.name, &response)?,
        }
        let mut at = there;
        let begins_at = response.headers().get("content-range").and_then(|range| range.to_str().ok()).and_then(beginning);
        if status != 206 || begins_at.is_some_and(|begins| begins != there) {
            // The whole file, although its rest was asked for.
            target.set_len(0)?;
            at = 0;
        }
        target.seek(SeekFrom::Start(at))?;
        let length = response.headers().get("content-length").and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
        let end = length.map(|length| at + length);
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            if self.interrupt.is_set() {
                return Ok(Piece::Interrupted);
            }
            match body.read(&mut buffer) {
                Ok(0) if end.is_some_and(|end| at < end) => return Ok(Piece::Cut(anyhow::anyhow!("the connection was cut"))),
                Ok(0) => return Ok(Piece::End),
                Ok(count) => {
                    target.write_all(&buffer[..count]).context("the disk does not take it")?;
                    at += count as u64;
                    self.fetched += count as u64;
                    progress(at);
                }
                Err(error) => return Ok(Piece::Cut(error.into())),
            }
        }
    }
}

/// The first byte of `bytes 5-9/10`.
fn beginning(range: &str) -> Option<u64> {
    range.trim().strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// Whether a file on the disk is what the hub says it is, as far as the hub says so.
///
/// # Errors
/// It cannot be read.
pub fn is_whole(path: &Path, file: &RemoteFile) -> Result<bool> {
    let context = || format!("cannot read {}", path.display());
    let length = fs::metadata(path).with_context(context)?.len();
    if file.size.is_some_and(|size| size != length) {
        return Ok(false);
    }
    let (hash, wanted) = match (&file.sha256, &file.git_id) {
        (Some(wanted), _) => (ContentHash::of_file(path).with_context(context)?.to_string(), wanted),
        (None, Some(wanted)) => {
            let content = fs::read(path).with_context(context)?;
            (hex(&Sha1::new_with_prefix(format!("blob {length}\0")).chain_update(content).finalize()), wanted)
        }
        (None, None) => return Ok(true),
    };
    Ok(hash.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_gits_and_sha256() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "hello\n").unwrap();
        let file = |size, sha256: Option<&str>, git_id: Option<&str>| RemoteFile {
            path: "a".into(),
            size,
            sha256: sha256.map(str::to_owned),
            git_id: git_id.map(str::to_owned),
        };
        // `git hash-object` says so.
        assert!(is_whole(&path, &file(Some(6), None, Some("ce013625030ba8dba906f756967f9e9ca394464a"))).unwrap());
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert!(is_whole(&path, &file(None, Some(sha256), None)).unwrap());
        assert!(!is_whole(&path, &file(Some(7), Some(sha256), None)).unwrap());
        assert!(!is_whole(&path, &file(Some(6), Some(&sha256.replace('5', "6")), None)).unwrap());
        assert_eq!(beginning("bytes 5-9/10"), Some(5));
    }
}
