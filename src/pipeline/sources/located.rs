//! Where the images of a table are: image_paths lead to files of folders, or to members of tars.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::dataset::listing::relative_path;
use crate::dataset::tar::{Extent, Tar, TarIndex, called_a_tar, expanded};
use crate::image::{Failure, Limits, Reason, read};

/// Where an image's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    File(PathBuf),
    /// A member of a tar. Of a gzipped one it is not known where it lies.
    Member {
        tar: PathBuf,
        extent: Option<Extent>,
    },
}

impl Place {
    /// Reads the image file's bytes.
    ///
    /// # Errors
    /// As [`read`].
    pub fn read(&self, limits: &Limits) -> Result<Vec<u8>, Failure> {
        match self {
            Self::File(path) => read(path, limits),
            Self::Member { extent: Some(extent), .. } if extent.bytes > limits.max_bytes => {
                Err(Failure::new(Reason::TooLarge, format!("{} bytes, limit {}", extent.bytes, limits.max_bytes)))
            }
            Self::Member { tar, extent: Some(extent) } => extent.read(tar).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Failure::new(Reason::Truncated, error.to_string()),
                _ => Failure::from_io(&error),
            }),
            Self::Member { extent: None, .. } => Err(Failure::new(
                Reason::Unreadable,
                "in a gzipped tar, which is only read from front to back: unpack it (gunzip)",
            )),
        }
    }

    /// For messages: the file, or the tar that it is in.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Member { tar: path, .. } => path,
        }
    }
}

/// The roots that images were listed under: folders, files and tars.
pub struct Located {
    roots: Vec<PathBuf>,
    /// Of tars, once one of their members was asked for.
    tars: Mutex<HashMap<PathBuf, Arc<TarIndex>>>,
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

    /// The roots, with patterns expanded.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Refuses tars that are gzipped, before anything is asked of them.
    ///
    /// # Errors
    /// The first such tar.
    pub fn check(&self) -> Result<()> {
        for root in self.roots.iter().filter(|root| called_a_tar(root) && root.is_file()) {
            let tar = Tar::open(root).with_context(|| format!("cannot read {}", root.display()))?;
            ensure!(
                tar.is_plain(),
                "{}: a gzipped tar is only read from front to back, and these images are asked for one by one: unpack it (gunzip)",
                root.display()
            );
        }
        Ok(())
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
        let named = |first: Option<&OsStr>| self.roots.iter().find(|root| root.file_name() == first);
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
        let known = self.tars.lock().unwrap_or_else(PoisonError::into_inner).get(tar).cloned();
        let index = match known {
            Some(index) => index,
            None => {
                let index = Arc::new(TarIndex::open(tar).map_err(|error| Failure::from_io(&error))?);
                self.tars.lock().unwrap_or_else(PoisonError::into_inner).insert(tar.into(), index.clone());
                index
            }
        };
        match index.find(inner.as_os_str().as_bytes()) {
            Some(extent) => Ok(Place::Member { tar: tar.into(), extent: Some(extent) }),
            None => Err(Failure::new(Reason::Vanished, "the tar has no such member any more")),
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
        std::fs::create_dir(at("photos")).unwrap();
        let limits = Limits::default();
        let one = Located::new(&[at("photos")]).unwrap();
        assert_eq!(one.find("a/b.png").unwrap(), Place::File(at("photos/a/b.png")));
        let all = Located::new(&[at("set-{0..0}.tar"), at("set-1.tar.gz"), at("photos")]).unwrap();
        assert_eq!(all.find("photos/b.png").unwrap(), Place::File(at("photos/b.png")));
        assert_eq!(all.find("set-0.tar/a/1.png").unwrap().read(&limits).unwrap(), b"one");
        let reason = |path: &str| all.find(path).unwrap_err().reason;
        assert_eq!(reason("set-0.tar/a/2.png"), Reason::Vanished);
        assert_eq!(reason("elsewhere/2.png"), Reason::Unreadable);
        assert_eq!(reason("set-0.tar/../../etc/passwd"), Reason::Unreadable);
        assert!(all.find("set-1.tar.gz/1.png").unwrap_err().message.contains("gunzip"));
        let tar = Located::new(&[at("set-0.tar")]).unwrap();
        let small = Limits { max_bytes: 2, ..limits };
        assert_eq!(tar.find("set-0.tar/a/1.png").unwrap().read(&small).unwrap_err().reason, Reason::TooLarge);
    }
}
