//! A file of URLs, one a line, in the place of folders: entries in its order.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Lines};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Entry, Kind, ListingError, image_path};
use crate::dataset::naming::{image_id, without_extension};
use crate::dataset::tar;
use crate::remote;

/// The URLs of a list that is read as it is walked. Memory holds 8 bytes for each.
pub(super) struct Urls {
    lines: Lines<BufReader<File>>,
    /// Hashes of ids that an image has.
    taken: HashSet<u64>,
}

/// Refuses a list with a line that is no URL. Empty lines and those that begin with `#` are none.
///
/// # Errors
/// The first such line; a file that cannot be read.
pub(super) fn check(file: &Path) -> Result<(), ListingError> {
    let failed = |source| ListingError::Root { path: file.into(), source };
    let (mut has_any, mut number) = (false, 0);
    for line in BufReader::new(File::open(file).map_err(failed)?).lines() {
        let line = line.map_err(failed)?;
        number += 1;
        match url(&line) {
            Some(path) if remote::is_url(&path) => has_any = true,
            Some(_) => return Err(ListingError::NotAUrl { file: file.into(), line: number }),
            None => {}
        }
    }
    if has_any {
        Ok(())
    } else {
        Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it has no URL (one per line is expected)")))
    }
}

fn url(line: &str) -> Option<PathBuf> {
    let line = line.trim();
    (!line.is_empty() && !line.starts_with('#')).then(|| OsString::from_vec(line.as_bytes().to_vec()).into())
}

impl Urls {
    pub fn open(file: &Path) -> io::Result<Self> {
        Ok(Self { lines: BufReader::new(File::open(file)?).lines(), taken: HashSet::new() })
    }
}

impl Iterator for Urls {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            // The list was read to its end when it was checked.
            let line = self.lines.next()?.ok()?;
            let Some(path) = url(&line) else { continue };
            let image_path = image_path(&remote::name_of(&path));
            let is_tar = tar::called_a_tar(Path::new(&image_path));
            let is_named = without_extension(&image_path).len() < image_path.len();
            let stem = image_id(&image_path).into_owned();
            // The first of a stem has it as its id, as in a folder.
            let digest = Sha256::digest(&stem);
            let key = digest[..8].iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
            let image_id = if is_named && self.taken.insert(key) { stem } else { image_path.clone() };
            let kind = if is_tar { Kind::Tar } else { Kind::File };
            return Some(Entry { path, image_path, image_id, kind, version: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_entries_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.txt");
        std::fs::write(
            &list,
            "# photos\nhttps://h/b.jpg\n\n s3://bucket/a/一.png \r\nhttps://h/b.png?token=x\ngs://b/set-0.tar\n",
        )
        .unwrap();
        check(&list).unwrap();
        let found: Vec<_> = Urls::open(&list).unwrap().map(|entry| (entry.image_path, entry.image_id, entry.kind)).collect();
        let entry = |path: &str, id: &str, kind| (path.to_string(), id.to_string(), kind);
        let wanted = [
            entry("h/b.jpg", "h/b", Kind::File),
            entry("bucket/a/一.png", "bucket/a/一", Kind::File),
            entry("h/b.png", "h/b.png", Kind::File),
            entry("b/set-0.tar", "b/set-0.tar", Kind::Tar),
        ];
        assert_eq!(found, wanted);
        std::fs::write(&list, "https://h/b.jpg\nphotos/a.jpg\n").unwrap();
        assert!(check(&list).unwrap_err().to_string().contains("line 2"));
        std::fs::write(&list, "\n").unwrap();
        assert!(check(&list).unwrap_err().to_string().contains("no URL"));
    }
}
