//! Hashes of files and folders for a pipeline's fingerprints, remembered so that unchanged files are not read again.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::files;

/// What a file looked like when it was hashed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Seen {
    bytes: u64,
    modified_ns: i128,
    inode: u64,
    sha256: String,
}

/// File hashes by path, kept in one small file between runs.
pub struct ContentHashes {
    path: PathBuf,
    known: BTreeMap<PathBuf, Seen>,
    /// Read everything again (`--verify`).
    fresh: bool,
}

impl ContentHashes {
    /// Opens the memory at `path`; one that cannot be read is begun anew.
    pub fn open(path: PathBuf, fresh: bool) -> Self {
        let known = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path, known, fresh }
    }

    /// One hash for a file, or for everything under a folder: names and contents, in the order of names. Work folders, locks, temporary
    /// files and a stage's own records are left out.
    pub fn of(&mut self, path: &Path) -> std::io::Result<String> {
        let mut paths = vec![];
        collect(path, &mut paths)?;
        let (known, fresh) = (&self.known, self.fresh);
        let seen: Vec<(PathBuf, Seen)> = paths
            .into_par_iter()
            .map(|file| {
                let metadata = file.metadata()?;
                let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
                let (bytes, inode) = (metadata.len(), metadata.ino());
                let sha256 = match known.get(&file) {
                    Some(k) if !fresh && (k.bytes, k.modified_ns, k.inode) == (bytes, modified_ns, inode) => k.sha256.clone(),
                    _ => files::sha256_file(&file)?,
                };
                Ok((file, Seen { bytes, modified_ns, inode, sha256 }))
            })
            .collect::<std::io::Result<_>>()?;
        let mut text = String::new();
        for (file, seen) in seen {
            let name = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().into_owned();
            text += &format!("{}  {name}\n", seen.sha256);
            self.known.insert(file, seen);
        }
        Ok(files::sha256_hex(text.as_bytes()))
    }

    pub fn save(&self) -> std::io::Result<()> {
        files::write_json(&self.path, &self.known)
    }
}

fn collect(path: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !path.is_dir() {
        found.push(path.into());
        return Ok(());
    }
    let mut entries = std::fs::read_dir(path)?.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    for entry in entries {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ours = name.ends_with(".work") || name.contains(".tmp-") || name.ends_with(".stage.json");
        // A link in a folder may lead anywhere; what is a file or a folder counts.
        if !ours && (entry.is_dir() && !entry.is_symlink() || entry.is_file()) {
            collect(&entry, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_hash_that_follows_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir_all(data.join("sub")).unwrap();
        std::fs::write(data.join("sub/a"), "1").unwrap();
        let memory = folder.path().join("memory.json");
        let mut hashes = ContentHashes::open(memory.clone(), false);
        let first = hashes.of(&data).unwrap();
        hashes.save().unwrap();
        assert_eq!(ContentHashes::open(memory.clone(), false).of(&data).unwrap(), first);
        std::fs::write(data.join("x.stage.json"), "record").unwrap();
        assert_eq!(ContentHashes::open(memory.clone(), true).of(&data).unwrap(), first);
        std::fs::write(data.join("sub/a"), "22").unwrap();
        assert_ne!(ContentHashes::open(memory, false).of(&data).unwrap(), first);
    }
}
