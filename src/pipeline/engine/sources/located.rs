//! Where the images of a table are: image_paths lead to files of folders, or to members of tars.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};

use crate::dataset::listing::{last_part, relative_path};
use crate::dataset::tar::{Extent, Tar, TarIndex, called_a_tar, expanded};
use crate::image::{Failure, Limits, Reason, read};
use crate::remote::Held;

/// Where an image's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    File(PathBuf),
    /// A member of a tar.
    Member {
        tar: PathBuf,
        extent: Extent,
    },
    /// A member, by its path there, of a tar that has to be unpacked: it is gzipped, or elsewhere.
    Packed {
        tar: PathBuf,
        inner: Vec<u8>,
    },
}

impl Place {
    /// Reads the image file's bytes.
    ///
    /// # Errors
    /// As [`read`].
    pub fn read(&self, limits: &Limits) -> Result<Held, Failure> {
        let (index, extent);
        match self {
            Self::File(path) => return read(path, limits),
            Self::Member { tar, extent: at } => (index, extent) = (MemberOf::File(tar), *at),
            Self::Packed { tar, inner } => {
                let unpacked = unpacked(tar).map_err(|error| Failure::from_io(&error))?;
                extent = unpacked.find(inner).ok_or_else(no_such_member)?;
                index = MemberOf::Unpacked(unpacked);
            }
        }
        if extent.bytes > limits.max_bytes {
            return Err(Failure::new(Reason::TooLarge, format!("{} bytes, limit {}", extent.bytes, limits.max_bytes)));
        }
        let bytes = match index {
            MemberOf::File(tar) => extent.read(tar),
            MemberOf::Unpacked(tar) => tar.read(extent),
        };
        bytes.map(Held::of_file).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Failure::new(Reason::Truncated, error.to_string()),
            _ => Failure::from_io(&error),
        })
    }

    /// For messages: the file, or the tar that it is in.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Member { tar: path, .. } | Self::Packed { tar: path, .. } => path,
        }
    }
}

enum MemberOf<'a> {
    File(&'a Path),
    Unpacked(Arc<TarIndex>),
}

fn no_such_member() -> Failure {
    Failure::new(Reason::Vanished, "the tar has no such member any more")
}

/// A tar that is not to be read from the beginning for each member. The latest stay: lists of images name one tar after the other, on
/// each thread.
fn unpacked(tar: &Path) -> io::Result<Arc<TarIndex>> {
    static UNPACKED: Mutex<Vec<Arc<TarIndex>>> = Mutex::new(Vec::new());
    let mut unpacked = UNPACKED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(index) = unpacked.iter().find(|index| index.path() == tar) {
        return Ok(index.clone());
    }
    let most = thread::available_parallelism().map_or(2, |threads| threads.get().max(2));
    let surplus = (unpacked.len() + 1).saturating_sub(most);
    unpacked.drain(..surplus);
    let index = Arc::new(TarIndex::open(tar)?);
    unpacked.push(index.clone());
    Ok(index)
}

/// The roots that images were listed under: folders, files and tars.
pub struct Located {
    roots: Vec<PathBuf>,
    /// Of tars, once one of their members was asked for; None for those that have to be unpacked.
    tars: Mutex<HashMap<PathBuf, Option<Arc<TarIndex>>>>,
}

impl Located {
    /// Roots as every listing takes them, patterns of tars too.
    ///
    /// # Errors
    /// A pattern of too many names.
    pub fn new(roots: &[PathBuf]) -> Result<Self> {
        let mut all = Vec::with_capacity(roots.len());
        for root in roots {
            all.extend(expanded(root).with_context(|| format!("cannot list {}", root.display()))?);
        }
        Ok(Self { roots: all, tars: Mutex::default() })
    }

    /// Where an image_path leads. Several roots begin their image paths with their last part, as in every listing, and so do tars. A table is
    /// anyone's: a path in it that leads out of the folders is not followed.
    ///
    /// # Errors
    /// A path that is not followed, or a member that is not in its tar.
    pub fn find(&self, image_path: &str) -> Result<Place, Failure> {
        let unreadable = |message: &str| Failure::new(Reason::Unreadable, message);
        let relative = relative_path(image_path);
        if relative.as_os_str().is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(unreadable("the path leads out of the folder of images, so it is not followed"));
        }
        let mut parts = relative.components();
        let first = parts.next().map(|part| part.as_os_str());
        let rest = parts.as_path();
        let named = |first: Option<&OsStr>| {
            let first = first.map(OsStr::as_bytes);
            self.roots.iter().find(|root| last_part(root).ok().as_deref() == first)
        };
        match &self.roots[..] {
            [only] if !called_a_tar(only) || only.is_dir() => Ok(Place::File(only.join(&relative))),
            _ => match named(first) {
                Some(tar) if called_a_tar(tar) && !tar.is_dir() => self.member(tar, rest),
                Some(root) => Ok(Place::File(root.join(rest))),
                None => Err(unreadable("none of the folders of images has the name that the path begins with")),
            },
        }
    }

    fn member(&self, tar: &Path, inner: &Path) -> Result<Place, Failure> {
        let mut tars = self.tars.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match tars.get(tar) {
            Some(index) => index.clone(),
            None => {
                let read = || match Tar::open(tar)?.is_plain() {
                    true => Ok(Some(Arc::new(TarIndex::open(tar)?))),
                    false => Ok(None),
                };
                let index = read().map_err(|error| Failure::from_io(&error))?;
                tars.entry(tar.into()).or_insert(index).clone()
            }
        };
        drop(tars);
        let inner = inner.as_os_str().as_bytes();
        match index.map(|index| index.find(inner)) {
            Some(Some(extent)) => Ok(Place::Member { tar: tar.into(), extent }),
            Some(None) => Err(no_such_member()),
            None => Ok(Place::Packed { tar: tar.into(), inner: inner.to_vec() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::tar::TarWriter;

    #[test]
    fn paths_lead_to_files_and_members() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut writer = TarWriter::new(Vec::new());
        writer.add(b"a/1.png", b"one").unwrap();
        std::fs::write(at("set-0.tar"), writer.finish().unwrap()).unwrap();
        std::fs::write(at("set-1.tar.gz"), [0x1F, 0x8B]).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &std::fs::read(at("set-0.tar")).unwrap()).unwrap();
        std::fs::write(at("set-2.tgz"), encoder.finish().unwrap()).unwrap();
        std::fs::create_dir(at("photos")).unwrap();
        let limits = Limits::default();
        let one = Located::new(&[at("photos")]).unwrap();
        assert_eq!(one.find("a/b.png").unwrap(), Place::File(at("photos/a/b.png")));
        let all = Located::new(&[at("set-{0..0}.tar"), at("set-1.tar.gz"), at("set-2.tgz"), at("photos")]).unwrap();
        assert_eq!(all.find("photos/b.png").unwrap(), Place::File(at("photos/b.png")));
        assert_eq!(all.find("set-0.tar/a/1.png").unwrap().read(&limits).unwrap().into_bytes(), b"one");
        let reason = |path: &str| all.find(path).unwrap_err().reason;
        assert_eq!(reason("set-0.tar/a/2.png"), Reason::Vanished);
        assert_eq!(reason("elsewhere/2.png"), Reason::Unreadable);
        assert_eq!(reason("set-0.tar/../../etc/passwd"), Reason::Unreadable);
        assert!(all.find("set-1.tar.gz/1.png").unwrap().read(&limits).is_err());
        assert_eq!(all.find("set-2.tgz/1.png").unwrap().read(&limits).err().unwrap().reason, Reason::Vanished);
        assert_eq!(all.find("set-2.tgz/a/1.png").unwrap().read(&limits).unwrap().into_bytes(), b"one");
        let tar = Located::new(&[at("set-0.tar")]).unwrap();
        let small = Limits { max_bytes: 2, ..limits };
        assert_eq!(tar.find("set-0.tar/a/1.png").unwrap().read(&small).err().unwrap().reason, Reason::TooLarge);
    }
}
