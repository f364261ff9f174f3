//! Files elsewhere: buckets of S3, Google Cloud Storage and Azure, and web servers. Named by URLs in the place of paths.
//!
//! `s3://BUCKET/KEY`, `gs://BUCKET/KEY` and `az://CONTAINER/KEY` hold the key as it is; `https://` is written as in a browser. Credentials come from
//! the environment's standard variables and are in no message: errors name the URL without its user and query, and say what happened in
//! words of their own.

use std::ffi::OsStr;
#[cfg(feature = "remote")]
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
#[cfg(feature = "remote")]
use std::time::Duration;

#[cfg(feature = "remote")]
use crate::budget::Budget;
use crate::budget::Share;

#[cfg(feature = "remote")]
mod fetch;
#[cfg(feature = "remote")]
mod folder;
#[cfg(feature = "remote")]
mod keys;
#[cfg(not(feature = "remote"))]
mod none;
#[cfg(feature = "remote")]
mod put;
#[cfg(feature = "remote")]
mod random;
#[cfg(feature = "remote")]
mod store;

#[cfg(feature = "remote")]
pub use {
    fetch::{begins, read, reader, size, version},
    folder::{Ahead, names, place},
    put::{remove, upload},
    random::Random,
};

#[cfg(not(feature = "remote"))]
pub use none::{Ahead, Random, begins, names, place, read, reader, remove, size, upload, version};

/// What came of reading a whole object.
pub enum Fetched {
    Whole(Held),
    /// So many bytes, which is more than was wanted; nothing was read.
    TooLarge(u64),
}

/// What a URL names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Object,
    /// Something that other keys begin with.
    Folder,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub name: String,
    pub is_folder: bool,
    /// Of an object.
    pub version: Option<Version>,
}

/// What a server says of an object without handing it out. Two objects of one name and one version have one content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    pub bytes: u64,
    /// When it was written, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// A hash of its entity tag, where it has one that stands for its bytes.
    pub tag: Option<u64>,
}

impl Version {
    /// Bytes of [`to_bytes`](Self::to_bytes).
    pub const BYTES: usize = 25;

    /// For a file of this process.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.modified_ns.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.tag.unwrap_or_default().to_le_bytes());
        bytes[24] = u8::from(self.tag.is_some());
        bytes
    }

    /// What [`to_bytes`](Self::to_bytes) made.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let number = |from: usize| bytes[from..from + 8].iter().rev().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
        Self { bytes: number(0), modified_ns: number(8).cast_signed(), tag: (bytes[24] == 1).then(|| number(16)) }
    }
}

/// What a path in a list of URLs begins with: `urls:FILE`.
const LIST: &str = "urls:";

const SCHEMES: [&str; 8] = ["s3://", "s3a://", "gs://", "az://", "azure://", "abfs://", "https://", "http://"];

/// Readers that wait for a server at once, where a run's files are elsewhere: each has a connection, and there may be few open files.
pub fn readers() -> usize {
    const MOST: usize = 128;
    (open_files().unwrap_or(1024) / 4).clamp(4, MOST)
}

/// How many files this process may have open.
fn open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    if soft == "unlimited" { Some(usize::MAX) } else { soft.parse().ok() }
}

/// Bytes of objects that are in memory as they were read, whatever the number of readers.
#[cfg(feature = "remote")]
static HELD: Budget = Budget::new(256 << 20);

/// A whole object's bytes, and their share of what may be in memory.
pub struct Held {
    bytes: Vec<u8>,
    share: Option<Share<'static>>,
}

impl Held {
    /// Of a file of this machine, of which only a few are read at once.
    pub fn of_file(bytes: Vec<u8>) -> Self {
        Self { bytes, share: None }
    }

    /// The bytes without their share, for those who keep them.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The bytes, and their share until it is dropped.
    pub fn into_parts(self) -> (Vec<u8>, Option<Share<'static>>) {
        (self.bytes, self.share)
    }
}

impl std::ops::Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Whether a path is a URL that can be read.
pub fn is_url(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    SCHEMES.iter().any(|scheme| bytes.starts_with(scheme.as_bytes()) && bytes.len() > scheme.len())
}

/// A file of URLs, one a line, in the place of a path.
pub fn list_of_urls(file: &Path) -> PathBuf {
    let mut path = std::ffi::OsString::from(LIST);
    path.push(file);
    path.into()
}

/// The file of URLs that [`list_of_urls`] made a path of.
pub fn listed_urls(path: &Path) -> Option<&Path> {
    let rest = path.as_os_str().as_bytes().strip_prefix(LIST.as_bytes())?;
    Some(Path::new(OsStr::from_bytes(rest)))
}

/// Whether files of any of these roots are elsewhere.
pub fn any<P: AsRef<Path>>(roots: &[P]) -> bool {
    roots.iter().any(|root| is_url(root.as_ref()) || listed_urls(root.as_ref()).is_some())
}

/// A URL (or path) for messages and records: without user, password and what is behind `?`, which may be credentials.
pub fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    let Some((scheme, rest)) = text.split_once("://").filter(|_| is_url(path)) else { return text.into_owned() };
    let is_web = is_web(path);
    // Of a bucket's object, `?` is a part of the key.
    let rest = if is_web { rest.split(['?', '#']).next().unwrap_or_default() } else { rest };
    let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
    // Azure has a container in front of an account.
    let host = match host.rsplit_once('@').filter(|(user, _)| is_web || user.contains(':')) {
        Some((_, host)) => host,
        None if !is_web => return text.into_owned(),
        None => host,
    };
    if path.is_empty() { format!("{scheme}://{host}/") } else { format!("{scheme}://{host}/{path}") }
}

/// A web server's URL, in which `?` has a meaning.
pub fn is_web(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.starts_with(b"https://") || bytes.starts_with(b"http://")
}

/// Names of parts of a query that are credentials or change with them.
const SECRETS: [&str; 14] = [
    "x-amz-",
    "x-goog-",
    "signature",
    "sig",
    "token",
    "expires",
    "awsaccesskeyid",
    "googleaccessid",
    "key",
    "policy",
    "se",
    "sp",
    "sv",
    "sr",
];

/// The path of a URL as images are called: host (or bucket) and path, and the query where it is not a signature.
pub fn name_of(url: &Path) -> Vec<u8> {
    let plain = shown(url);
    let mut name = plain.split_once("://").map_or(plain.as_str(), |(_, rest)| rest).trim_matches('/').as_bytes().to_vec();
    if is_web(url) {
        name = percent_encoding::percent_decode(&name).collect();
        let text = url.to_string_lossy();
        let query = text.split('#').next().and_then(|text| text.split_once('?')).map_or("", |(_, query)| query);
        let is_secret = |pair: &&str| {
            let key = pair.split('=').next().unwrap_or_default().to_ascii_lowercase();
            SECRETS.iter().any(|secret| if secret.ends_with('-') { key.starts_with(secret) } else { key == *secret })
        };
        let kept: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty() && !is_secret(pair)).collect();
        if !kept.is_empty() {
            name.push(b'?');
            name.extend_from_slice(kept.join("&").as_bytes());
        }
    }
    name
}

/// Tries of a request before it counts as failed. `CLIPCAP_REMOTE_TRIES` is another number.
#[cfg(feature = "remote")]
fn tries() -> usize {
    let tries = std::env::var("CLIPCAP_REMOTE_TRIES").ok().and_then(|text| text.parse().ok());
    tries.filter(|tries| *tries > 0).unwrap_or(8)
}

/// The most that all tries of a request may take together.
#[cfg(feature = "remote")]
const PATIENCE: Duration = Duration::from_secs(120);

/// What no try could mend: told by its kind as `unreachable`.
#[cfg(feature = "remote")]
fn unreachable(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::HostUnreachable, message.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_paths_and_shown_without_secrets() {
        let path = Path::new;
        for url in ["s3://b/k", "gs://b", "az://c/x", "https://h/a.jpg", "http://h:9/a"] {
            assert!(is_url(path(url)), "{url}");
        }
        for other in ["s3:/b", "photos", "/s3://x", "ftp://h/a", "s3://", "urls:list.txt"] {
            assert!(!is_url(path(other)), "{other}");
        }
        assert_eq!(shown(path("https://me:secret@host/a/b.jpg?sig=secret#x")), "https://host/a/b.jpg");
        assert_eq!(
            (shown(path("https://host?sig=1")), shown(path("s3://b/what?.jpg"))),
            ("https://host/".into(), "s3://b/what?.jpg".into())
        );
        assert_eq!(shown(path("s3://me:secret@bucket/a@b")), "s3://bucket/a@b");
        assert_eq!(shown(path("abfs://container@account/a")), "abfs://container@account/a");
        assert_eq!(listed_urls(&list_of_urls(path("a/list.txt"))), Some(path("a/list.txt")));
        assert!(any(&[path("photos"), path("gs://b/x")]) && any(&[list_of_urls(path("x"))]) && !any(&[path("photos")]));
    }

    #[test]
    fn images_of_urls_are_called_by_host_and_path() {
        let name = |url: &str| String::from_utf8(name_of(Path::new(url))).unwrap();
        assert_eq!(name("s3://bucket/a b/一只 猫.png"), "bucket/a b/一只 猫.png");
        assert_eq!(name("https://u:p@host/a%20b/1.jpg?X-Amz-Signature=s&X-Amz-Date=2"), "host/a b/1.jpg");
        assert_eq!(name("https://host/photo?id=7&token=secret&w=2"), "host/photo?id=7&w=2");
        assert_eq!(name("https://host/photo?sig=s"), "host/photo");
    }
}
