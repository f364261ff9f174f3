//! Where a run's images come from, remembered so that another folder's run does not take an output's place unasked.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::output::resolved;
use crate::dataset::listing::{image_path, relative_path};
use crate::files::ContentHash;
use crate::remote;

/// The folders (or the dataset, or the embeddings) that a run takes its images from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roots(Vec<Root>);

/// One of them. No absolute path is kept: names from the output's folder stay the same where both are moved together, and the hash of the
/// whole path stays the same where the output is moved alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Root {
    path: String,
    sha256: ContentHash,
}

impl Roots {
    /// `roots` as given on the command line, seen from the folder that `output` is in. Of a single image file its folder counts, so that a
    /// list of files that grows or shrinks still comes from the same place.
    pub fn of_files(roots: &[PathBuf], output: &Path) -> Self {
        let folder = |path: &PathBuf| {
            if remote::any(&[path]) {
                return path.clone();
            }
            let path = resolved(path);
            if path.is_dir() { path } else { path.parent().map_or(PathBuf::new(), Path::to_path_buf) }
        };
        Self::of(roots.iter().map(folder), output)
    }

    /// `roots` as they are, files too.
    pub fn of(roots: impl IntoIterator<Item = PathBuf>, output: &Path) -> Self {
        let here = folder_of(output);
        let root = |path: PathBuf| {
            if remote::is_url(&path) {
                let path = remote::shown(&path);
                return Root { sha256: ContentHash::of(&path), path };
            }
            let path = resolved(remote::listed_urls(&path).unwrap_or(&path));
            let sha256 = ContentHash::of(path.as_os_str().as_bytes());
            Root { path: image_path(between(&here, &path).as_os_str().as_bytes()), sha256 }
        };
        let mut roots: Vec<Root> = roots.into_iter().map(root).collect();
        roots.sort();
        roots.dedup();
        Self(roots)
    }

    /// The roots of these that are none of `new`, nor lie under one of them: what came from there is not looked at any more.
    pub fn missing_in(&self, new: &Self, output: &Path) -> Vec<String> {
        let here = folder_of(output);
        let place = |root: &Root| plain(&here.join(relative_path(&root.path)));
        let new_places: Vec<PathBuf> = new.0.iter().map(place).collect();
        let is_covered = |old: &Root| {
            let old_place = place(old);
            new.0.iter().any(|new| new.sha256 == old.sha256) || new_places.iter().any(|new| old_place.starts_with(new))
        };
        self.0.iter().filter(|old| !is_covered(old)).map(|old| old.path.clone()).collect()
    }
}

/// The folder that a path is in, without links.
fn folder_of(path: &Path) -> PathBuf {
    resolved(path).parent().map_or(PathBuf::new(), Path::to_path_buf)
}

/// The way from a folder to a path: `../photos`.
fn between(from: &Path, to: &Path) -> PathBuf {
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    let way: PathBuf = up.chain(to.components().skip(shared)).collect();
    if way.as_os_str().is_empty() { PathBuf::from(".") } else { way }
}

/// A path whose `.` and `..` are worked out by name.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_known_again_by_their_place_or_by_their_way() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["project/photos/2020", "other", "project/out"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::fs::write(at("project/photos/a.jpg"), "a").unwrap();
        let out = at("project/out/x.parquet");
        let photos = Roots::of_files(&[at("project/photos")], &out);
        assert_eq!(photos.0[0].path, "../photos");
        assert!(photos.missing_in(&photos, &out).is_empty());
        // A file stands for its folder; a folder inside is covered by the whole, and not the other way round.
        assert_eq!(Roots::of_files(&[at("project/photos/a.jpg")], &out), photos);
        let inside = Roots::of_files(&[at("project/photos/2020")], &out);
        assert!(inside.missing_in(&photos, &out).is_empty());
        assert_eq!(photos.missing_in(&inside, &out), ["../photos"]);
        let other = Roots::of_files(&[at("other")], &out);
        assert_eq!(photos.missing_in(&other, &out), ["../photos"]);
        let both = Roots::of_files(&[at("other"), at("project/photos")], &out);
        assert!(photos.missing_in(&both, &out).is_empty());
        assert_eq!(both.missing_in(&photos, &out), ["../../other"]);
        // The output moved alone; output and photos moved together.
        let moved = at("x.parquet");
        assert!(photos.missing_in(&Roots::of_files(&[at("project/photos")], &moved), &moved).is_empty());
        std::fs::rename(at("project"), at("renamed")).unwrap();
        let out = at("renamed/out/x.parquet");
        assert!(photos.missing_in(&Roots::of_files(&[at("renamed/photos")], &out), &out).is_empty());
    }
}
