//! What is in a folder, in the order of names: of one folder, or of all that are under it. (Images are listed by
//! `dataset/listing`, which goes on where it was stopped and knows what is wanted.)

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The paths in a folder.
///
/// # Errors
/// It cannot be listed.
pub fn paths_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The paths in a folder; none where there is no folder.
///
/// # Errors
/// It is there and cannot be listed.
pub fn paths_if_there(folder: &Path) -> io::Result<Vec<PathBuf>> {
    super::if_there(paths_in(folder)).map(Option::unwrap_or_default)
}

/// A path's last part as text; none where it is no text.
pub fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// What stands between `prefix` and `suffix` in a path's name.
pub fn between<'a>(path: &'a Path, prefix: &str, suffix: &str) -> Option<&'a str> {
    name_of(path).strip_prefix(prefix)?.strip_suffix(suffix)
}

/// The files called `PREFIX<digits>SUFFIX` in a folder, by number.
///
/// # Errors
/// It cannot be listed.
pub fn numbered_in(folder: &Path, prefix: &str, suffix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let number = |path: &PathBuf| {
        let digits = between(path, prefix, suffix)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let mut found: Vec<(u64, PathBuf)> = paths_in(folder)?.into_iter().filter_map(|path| Some((number(&path)?, path))).collect();
    found.sort();
    Ok(found)
}

/// Device and inode: what a file or folder is, by whatever path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity(u64, u64);

impl Identity {
    /// Of what has these metadata.
    pub fn of(metadata: &Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

/// The files under a folder that are wanted, or the file that `root` is, each with what the system says of it; a folder that cannot be listed
/// stands among them with the reason. Links are followed, and no folder is entered twice.
pub fn files_under(root: &Path, wants: &dyn Fn(&Path, &Metadata) -> bool) -> Vec<(PathBuf, io::Result<Metadata>)> {
    let mut walk = Walk { wants, entered: BTreeSet::new(), found: Vec::new() };
    match root.metadata() {
        Ok(metadata) => walk.take(root.into(), metadata),
        Err(error) => walk.found.push((root.into(), Err(error))),
    }
    walk.found
}

struct Walk<'a> {
    wants: &'a dyn Fn(&Path, &Metadata) -> bool,
    entered: BTreeSet<Identity>,
    found: Vec<(PathBuf, io::Result<Metadata>)>,
}

impl Walk<'_> {
    fn take(&mut self, path: PathBuf, metadata: Metadata) {
        if !metadata.is_dir() {
            return self.found.push((path, Ok(metadata)));
        }
        if !self.entered.insert(Identity::of(&metadata)) {
            return;
        }
        match paths_in(&path) {
            Err(error) => self.found.push((path, Err(error))),
            Ok(paths) => {
                for path in paths {
                    // What vanishes, and a link to nothing, is not there.
                    if let Ok(metadata) = path.metadata()
                        && (self.wants)(&path, &metadata)
                    {
                        self.take(path, metadata);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_come_in_the_order_of_names_and_no_folder_twice() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["b/x", "a", "b/y/z", "c.skip"] {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            fs::write(at(name), name).unwrap();
        }
        symlink(".", at("b/loop")).unwrap();
        symlink("nowhere", at("broken")).unwrap();
        let found = files_under(folder.path(), &|path, _| !path.ends_with("c.skip"));
        let sizes: Vec<_> = found.iter().map(|(path, metadata)| (path.clone(), metadata.as_ref().unwrap().len())).collect();
        assert_eq!(sizes, [(at("a"), 1), (at("b/x"), 3), (at("b/y/z"), 5)]);
        assert_eq!(files_under(&at("a"), &|_, _| false).len(), 1, "what is named is wanted");
        assert!(files_under(&at("missing"), &|_, _| true)[0].1.is_err());
        assert_eq!(paths_if_there(&at("missing")).unwrap(), Vec::<PathBuf>::new());
        assert!(paths_if_there(&at("a")).is_err());
    }

    #[test]
    fn numbered_files_come_by_number() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["part-10.parquet", "part-9.parquet", "part-.parquet", "part-+1.parquet", "part-x.parquet", "part-3"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found: Vec<u64> = numbered_in(folder.path(), "part-", ".parquet").unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(found, [9, 10]);
    }
}
