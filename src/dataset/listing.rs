//! The files under some folders, in an order that depends on their names alone, one after another.
//!
//! Memory holds the names of the folders on the way down, never those of the whole tree; of a folder of millions, a part of them. Nothing is
//! opened but folders.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::naming::FolderIds;
use super::tar;
use super::wanted::{Filter, LeftOut, PatternError, Wanted};
use crate::remote;

mod after;
mod ahead;
mod names;
mod urls;
mod walk;

use names::MOST_NAMES;

pub use after::Position;
pub use walk::Walk;

/// Something found under a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is: the root as given, and the way down.
    pub path: PathBuf,
    /// Its name in every table; see [`image_path`].
    pub image_path: String,
    /// Its id in every table; see [`naming`](super::naming).
    pub image_id: String,
    pub kind: Kind,
    /// Of an object elsewhere, as its listing says.
    pub version: Option<remote::Version>,
}

/// What was found at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, or a link to one.
    File,
    /// A pipe, socket or device, or a link to one: never to be opened.
    Special,
    /// A symbolic link to nothing, or in a circle.
    BrokenLink,
    /// A tar given as a root: its members are found, and not it.
    Tar,
    /// A Parquet file of a job, whose rows are found. Its image_id is the name of the column of images.
    Parquet {
        /// Rows are called by their file too: those of all the job's files have names twice.
        by_file: bool,
    },
    /// A folder whose content cannot be listed, with the reason. No file, so it is not found; but what it may hold is
    /// missing, and that must be told. Its image_path ends with `/`.
    UnreadableFolder(io::ErrorKind),
}

impl Kind {
    /// Whether the entry counts as found. Folders never do, nor what holds several images.
    pub fn is_found(self) -> bool {
        !matches!(self, Self::UnreadableFolder(_)) && !self.is_many()
    }

    /// Whether it holds several images.
    pub fn is_many(self) -> bool {
        matches!(self, Self::Tar | Self::Parquet { .. })
    }
}

/// Why nothing can be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// An empty list of folders and files.
    #[error("no file or folder to list was given")]
    NoRoots,
    /// A folder or file that was named cannot be listed.
    #[error("{}", unlisted(path, source))]
    Root {
        /// It, as it was given.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A path without a name of its own (`/`), which the image paths of several inputs would begin with.
    #[error("{} has no name of its own, which image paths of several folders start with", path.display())]
    Nameless {
        /// It, as it was given.
        path: PathBuf,
    },
    /// Two inputs end in the same name, so that images in both would share their paths.
    #[error("{} and {} are both called {name:?}, so that their files could not be told apart: rename one, or list them one at a time", first.display(), second.display())]
    SameName {
        /// The one given first.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// The name that both end in.
        name: String,
    },
    /// A list of URLs has a line of another kind.
    #[error("{}, line {line}: not a URL (s3://, gs://, az:// or https://)", file.display())]
    NotAUrl {
        /// The list.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
    },
    /// `--include` or `--exclude` is no pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

/// A recursive walk over several folders (or single files).
///
/// Order: by the bytes of the relative path, part by part; several roots come in the order of their last parts. A folder is
/// entered once, however many symbolic links lead to it (so loops end), under the first of its names in that order. Folders are told
/// apart by their real paths: network file systems may have one inode number for all.
pub struct Listing {
    roots: Vec<Root>,
    /// Ids of the roots that are single files.
    ids: FolderIds,
    excluded: HashMap<PathBuf, Vec<OsString>>,
    filter: Filter,
    left_out: Mutex<LeftOut>,
    /// Names of a folder that are in memory.
    most_names: usize,
}

#[derive(Clone)]
struct Root {
    path: PathBuf,
    /// Raw parts in front of every relative path: the root's last part where there are several roots, or the file's name.
    prefix: Vec<u8>,
    is_folder: bool,
}

/// What a folder's listing says of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Type {
    File,
    Folder,
    Link,
    Other,
}

impl Type {
    fn of(kind: fs::FileType) -> Self {
        match kind {
            kind if kind.is_file() => Self::File,
            kind if kind.is_dir() => Self::Folder,
            kind if kind.is_symlink() => Self::Link,
            _ => Self::Other,
        }
    }
}

/// Whether a root is a folder, here or elsewhere.
fn is_folder(path: &Path) -> io::Result<bool> {
    // Of a tar elsewhere, opening it says whether it is there.
    if remote::is_url(path) {
        return Ok(!tar::called_a_tar(path) && remote::place(path)? == remote::Place::Folder);
    }
    let metadata = fs::symlink_metadata(path)?;
    Ok(metadata.is_dir() || fs::metadata(path).is_ok_and(|target| target.is_dir()))
}

/// A path that does not lead anywhere is the commonest fault, and needs no operating system's words.
fn unlisted(path: &Path, source: &io::Error) -> String {
    let shown = remote::shown(path);
    match source.kind() {
        io::ErrorKind::NotFound => format!("no such file or folder: {shown}"),
        io::ErrorKind::PermissionDenied if !remote::is_url(path) => format!("cannot read {shown}: permission denied"),
        _ => format!("cannot list {shown}: {source}"),
    }
}

impl Listing {
    /// `exclude` names files and folders (which need not exist yet) that are not found, with all they hold: a run's own outputs
    /// and work folder. Their temporary files (`NAME.tmp-...`) are not found either. What is not `wanted` under a root is left out; the
    /// roots themselves were asked for, whatever they are called.
    ///
    /// # Errors
    /// A root that is not there, two roots with the same last part, or a pattern that is none. A single file as root is listed under
    /// its own name. A root that is not there and has braces is a pattern: see [`tar::expanded`].
    pub fn new(roots: &[PathBuf], exclude: &[PathBuf], wanted: &Wanted) -> Result<Self, ListingError> {
        let filter = wanted.filter()?;
        let mut named: Vec<Root> = Vec::new();
        let mut expanded = Vec::new();
        for path in roots {
            let paths = tar::expanded(path).map_err(|source| ListingError::Root { path: path.clone(), source })?;
            expanded.extend(paths);
        }
        let roots = &expanded[..];
        for path in roots {
            if let Some(list) = remote::listed_urls(path) {
                urls::check(list)?;
                named.push(Root { path: path.clone(), prefix: Vec::new(), is_folder: true });
                continue;
            }
            let is_folder = is_folder(path).map_err(|source| ListingError::Root { path: path.clone(), source })?;
            let prefix = if roots.len() > 1 || !is_folder { last_part(path)? } else { Vec::new() };
            named.push(Root { path: path.clone(), prefix, is_folder });
        }
        if named.is_empty() {
            return Err(ListingError::NoRoots);
        }
        named.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        if let Some([a, b]) = named.windows(2).find(|pair| pair[0].prefix == pair[1].prefix) {
            let name = image_path(&a.prefix);
            return Err(ListingError::SameName { first: a.path.clone(), second: b.path.clone(), name });
        }
        let names: Vec<String> = named.iter().map(|root| image_path(&root.prefix)).collect();
        let ids = FolderIds::new(names.iter().map(String::as_str));
        let (excluded, left_out) = (by_folder(exclude), Mutex::default());
        Ok(Self { roots: named, ids, excluded, filter, left_out, most_names: MOST_NAMES })
    }

    /// What the latest walk that came to its end left out.
    pub fn left_out(&self) -> LeftOut {
        *self.left_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Walks the folders from the beginning.
    pub fn iter(&self) -> Walk<'_> {
        Walk::new(self, None)
    }

    /// Walks on behind an entry of an earlier walk; lists of URLs are walked from the beginning.
    pub fn iter_from(&self, position: &Position) -> Walk<'_> {
        Walk::new(self, Some(position).filter(|_| self.is_ordered()))
    }

    /// Whether the order is that of names, so that a walk can go on behind one.
    pub fn is_ordered(&self) -> bool {
        self.roots.iter().all(|root| remote::listed_urls(&root.path).is_none())
    }

    /// How many entries are found: the walk without the rest of the work.
    pub fn count(&self) -> u64 {
        self.iter().filter(|entry| entry.kind.is_found()).count() as u64
    }
}

/// Excluded names by the real path of their folder, which symbolic links cannot hide.
fn by_folder(exclude: &[PathBuf]) -> HashMap<PathBuf, Vec<OsString>> {
    let mut folders: HashMap<PathBuf, Vec<OsString>> = HashMap::new();
    for path in exclude {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // A folder that does not exist holds nothing that could be found.
        if let (Some(name), Ok(parent)) = (path.file_name(), fs::canonicalize(parent)) {
            folders.entry(parent).or_default().push(name.to_owned());
        }
    }
    folders
}

/// What a root is called, in front of the image_paths of what is in it.
///
/// # Errors
/// It has no name.
pub fn last_part(path: &Path) -> Result<Vec<u8>, ListingError> {
    if remote::is_url(path) {
        let name = remote::name_of(path);
        return Ok(name.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec());
    }
    if let Some(name) = path.file_name() {
        return Ok(name.as_bytes().to_vec());
    }
    // `.` and `..` have a name when they are followed.
    let real = fs::canonicalize(path).map_err(|source| ListingError::Root { path: path.to_owned(), source })?;
    real.file_name().map(|name| name.as_bytes().to_vec()).ok_or_else(|| ListingError::Nameless { path: path.to_owned() })
}

/// The text of a relative path: bytes that are not UTF-8, control characters, `\` and `%` are percent-encoded.
pub fn image_path(relative: &[u8]) -> String {
    let mut text = String::with_capacity(relative.len());
    let encode = |text: &mut String, bytes: &[u8]| {
        bytes.iter().for_each(|&byte| text.push_str(percent_encoding::percent_encode_byte(byte)))
    };
    for chunk in relative.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || matches!(character, '\\' | '%') {
                encode(&mut text, character.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(character);
            }
        }
        encode(&mut text, chunk.invalid());
    }
    text
}

/// The relative path that an image_path stands for.
pub fn relative_path(image_path: &str) -> PathBuf {
    PathBuf::from(OsString::from_vec(percent_encoding::percent_decode_str(image_path).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn odd_names_become_plain_text() {
        assert_eq!(image_path("照片/a b.jpg".as_bytes()), "照片/a b.jpg");
        assert_eq!(image_path(b"line\nbreak\t.png"), "line%0Abreak%09.png");
        assert_eq!(image_path(b"\xFF\xFEx\\y%41.gif"), "%FF%FEx%5Cy%2541.gif");
        assert_eq!(image_path("\u{85}\u{7f}".as_bytes()), "%C2%85%7F");
        assert_eq!(relative_path("%FF%FEx%5Cy%2541.gif").as_os_str().as_bytes(), b"\xFF\xFEx\\y%41.gif");
    }

    #[test]
    fn folders_of_more_names_than_memory_is_to_hold_are_listed_the_same() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a.jpg", "a.png", "a.txt", "b/c.jpg", "b.jpg", "b/d.JPG", "b/c.txt", "b/c", "c-d.png", "c.d.png", "一.jpg"]
        {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let wanted = Wanted { exclude: vec!["c-d.png".into()], ..Wanted::default() };
        let mut listing = Listing::new(&[root.path().into()], &[root.path().join("b/d.JPG")], &wanted).unwrap();
        let all: Vec<Entry> = listing.iter().collect();
        let left_out = listing.left_out();
        assert_eq!(all.len(), 9);
        listing.most_names = 2;
        assert_eq!(listing.iter().collect::<Vec<Entry>>(), all);
        assert_eq!(listing.left_out(), left_out);
    }

    #[test]
    fn a_walk_goes_on_behind_any_entry() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a/x.jpg", "a/b/y.jpg", "a!/z.jpg", "a.jpg", "c/.hidden", "c/d/e/f.jpg", "c/d/g.jpg", "z/.hidden", "z/1.jpg"]
        {
            let path = root.path().join("one").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        fs::create_dir(root.path().join("two")).unwrap();
        fs::write(root.path().join("two/c.jpg"), "x").unwrap();
        let both = [root.path().join("two"), root.path().join("one")];
        for roots in [&both[1..], &both] {
            let listing = Listing::new(roots, &[], &Wanted::default()).unwrap();
            let all: Vec<Entry> = listing.iter().collect();
            let left_out = listing.left_out();
            assert_eq!((left_out.hidden, all.len()), (2, 6 + roots.len()));
            let mut walk = listing.iter();
            for (at, entry) in all.iter().enumerate() {
                assert_eq!(walk.next().as_ref(), Some(entry));
                assert!(!walk.has_links());
                let position = Position::behind(entry, walk.left_out());
                assert_eq!(listing.iter_from(&position).collect::<Vec<_>>(), all[at + 1..], "{position:?}");
                assert_eq!(listing.left_out(), left_out, "{position:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_text_of_a_path_leads_back_to_it(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let text = image_path(&bytes);
            let path = relative_path(&text);
            prop_assert_eq!(path.as_os_str().as_bytes(), &bytes[..]);
            prop_assert!(!text.contains(|c: char| c.is_control() || c == '\\'));
        }

        #[test]
        fn names_that_differ_have_texts_that_differ(a in "[%0-9A-F\\\\.é\n]{0,6}", b in "[%0-9A-F\\\\.é\n]{0,6}") {
            prop_assert_eq!(a == b, image_path(a.as_bytes()) == image_path(b.as_bytes()));
        }
    }
}
