//! A file of URLs, one a line, in the place of folders: entries in its order.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::{self, BufRead, BufReader, Lines};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::names::MOST_NAMES;
use super::{Entry, Kind, ListingError, image_path};
use crate::dataset::naming::{composed, image_id, without_extension};
use crate::dataset::tar;
use crate::files::sort::Sorter;
use crate::remote;

/// The URLs of a list that is read as it is walked. Of names, memory holds what several lines share.
pub(super) struct Urls {
    lines: Lines<BufReader<File>>,
    /// Hashes of ids that several lines could have, in order, and what they are.
    shared: Vec<u64>,
    uses: Vec<Use>,
    /// Image_paths so far of those that are there more than once.
    seen: HashSet<String>,
}

/// What lines make of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Several could have it as their id: the first does.
    Stem,
    /// One of those has it.
    Taken,
    /// A line's whole name, which is nobody else's.
    Whole,
    /// Of several lines.
    Repeated,
}

/// What a list has next.
pub(super) enum Next {
    Entry(Entry),
    /// A line that names what an earlier one does.
    Repeated,
    End,
}

/// Refuses a list with a line that is no URL. Empty lines and those that begin with `#` are none.
///
/// # Errors
/// The first such line; a file that cannot be read.
pub(super) fn check(file: &Path) -> Result<(), ListingError> {
    let failed = |source| ListingError::Root { path: file.into(), source };
    if !fs::metadata(file).map_err(failed)?.is_file() {
        let message = "a list of URLs is read more than once, so it has to be a file (not a pipe)";
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, message)));
    }
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
        let lines = || Ok::<_, io::Error>(BufReader::new(File::open(file)?).lines());
        let mut hashes = Sorter::new(2 * MOST_NAMES);
        for line in lines()? {
            if let Some(path) = url(&line?) {
                let image_path = called(&path);
                // The last bit tells whole names from stems, behind which they come.
                hashes.add(hash(&composed(&image_path)) | 1)?;
                stem(&image_path).map(|stem| hashes.add(hash(&stem))).transpose()?;
            }
        }
        let (mut shared, mut uses): (Vec<u64>, Vec<Use>) = Default::default();
        let mut last = None;
        hashes.finish()?.each(|hash| {
            if last.is_some_and(|last| last & !1 == hash & !1) {
                if shared.last() != Some(&(hash & !1)) {
                    shared.push(hash & !1);
                    uses.push(Use::Stem);
                }
                let is_repeated = last == Some(hash) && hash & 1 == 1;
                let now = if is_repeated { Use::Repeated } else { Use::Whole };
                uses.last_mut().filter(|_| hash & 1 == 1).into_iter().for_each(|before| *before = now);
            }
            last = Some(hash);
        })?;
        Ok(Self { lines: lines()?, shared, uses, seen: HashSet::new() })
    }

    /// What becomes of a name that several lines share.
    fn shared(&mut self, name: &str) -> Option<&mut Use> {
        self.shared.binary_search(&hash(name)).ok().map(|at| &mut self.uses[at])
    }

    /// The next line.
    ///
    /// # Errors
    /// The list cannot be read on.
    pub fn next(&mut self) -> io::Result<Next> {
        let path = loop {
            let Some(line) = self.lines.next() else { return Ok(Next::End) };
            if let Some(path) = url(&line?) {
                break path;
            }
        };
        let image_path = called(&path);
        let whole = composed(&image_path);
        if self.shared(&whole).is_some_and(|shared| *shared == Use::Repeated) && !self.seen.insert(image_path.clone()) {
            return Ok(Next::Repeated);
        }
        // The first of a stem has it as its id, as in a folder.
        let is_first = |stem: &String| match self.shared(stem) {
            None => true,
            Some(shared) => std::mem::replace(shared, if *shared == Use::Stem { Use::Taken } else { *shared }) == Use::Stem,
        };
        let image_id = stem(&image_path).filter(is_first).unwrap_or_else(|| whole.into_owned());
        let kind = if tar::called_a_tar(Path::new(&image_path)) { Kind::Tar } else { Kind::File };
        Ok(Next::Entry(Entry { path, image_path, image_id, kind, version: None }))
    }
}

/// The image_path of a URL.
fn called(url: &Path) -> String {
    image_path(&remote::name_of(url))
}

/// The id of what is called an image, where no other has it.
fn stem(image_path: &str) -> Option<String> {
    (without_extension(image_path).len() < image_path.len()).then(|| image_id(image_path).into_owned())
}

/// An even number.
fn hash(name: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(name) & !1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(list: &Path) -> (Vec<(String, String, Kind)>, u32) {
        let (mut urls, mut entries, mut repeated) = (Urls::open(list).unwrap(), Vec::new(), 0);
        loop {
            match urls.next().unwrap() {
                Next::Entry(entry) => entries.push((entry.image_path, entry.image_id, entry.kind)),
                Next::Repeated => repeated += 1,
                Next::End => return (entries, repeated),
            }
        }
    }

    #[test]
    fn lines_become_entries_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.txt");
        let lines = "# photos\nhttps://h/b.jpg\n\n s3://bucket/a/一.png \r\nhttps://h/b.png?token=x\ngs://b/set-0.tar\n";
        std::fs::write(&list, lines).unwrap();
        check(&list).unwrap();
        let entry = |path: &str, id: &str, kind| (path.to_string(), id.to_string(), kind);
        let wanted = [
            entry("h/b.jpg", "h/b", Kind::File),
            entry("bucket/a/一.png", "bucket/a/一", Kind::File),
            entry("h/b.png", "h/b.png", Kind::File),
            entry("b/set-0.tar", "b/set-0.tar", Kind::Tar),
        ];
        assert_eq!(listed(&list), (wanted.into(), 0));
        std::fs::write(&list, "https://h/b.jpg\nphotos/a.jpg\n").unwrap();
        assert!(check(&list).unwrap_err().to_string().contains("line 2"));
        std::fs::write(&list, "\n").unwrap();
        assert!(check(&list).unwrap_err().to_string().contains("no URL"));
        assert!(check(Path::new("/dev/null")).unwrap_err().to_string().contains("not a pipe"));
    }

    #[test]
    fn no_two_lines_have_one_id_and_a_line_that_is_there_twice_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.txt");
        let names = [
            "a.jpg",
            "a.jpg?sig=2",
            "a",
            "b.jpg",
            "b.jpg",
            "b.jpg",
            "b.png",
            "c.jpg.png",
            "c.jpg",
            "c.gif",
            "d",
            "d",
            "e.jpg?w=1",
            "e.jpg?w=2",
            "f.JPG",
        ];
        std::fs::write(&list, names.map(|name| format!("https://h/{name}\n")).concat()).unwrap();
        let (entries, repeated) = listed(&list);
        let ids: Vec<_> = entries.iter().map(|(path, id, _)| format!("{path} {id}").replace("h/", "")).collect();
        let wanted = [
            "a.jpg a.jpg",
            "a a",
            "b.jpg b",
            "b.png b.png",
            "c.jpg.png c.jpg.png",
            "c.jpg c",
            "c.gif c.gif",
            "d d",
            "e.jpg?w=1 e.jpg?w=1",
            "e.jpg?w=2 e.jpg?w=2",
            "f.JPG f",
        ];
        assert_eq!((ids, repeated), (wanted.map(String::from).into(), 4));
    }
}
