//! Hugging Face's cache of models, as its own tools lay it out and read it.
//!
//! ```text
//! HUB/models--ORG--NAME/
//!   blobs/HASH                     each content once: SHA-256 of large files, git's id of small ones
//!   snapshots/COMMIT/config.json   a link to ../../blobs/HASH
//!   refs/main                      the commit that the branch was at
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::files::write_atomic;

/// `HF_HOME`, or where Hugging Face's tools have it without: `~/.cache/huggingface`.
pub fn hub_home() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || variable("HOME").unwrap_or_else(|| PathBuf::from("."));
    let cache = || variable("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache"));
    variable("HF_HOME").unwrap_or_else(|| cache().join("huggingface"))
}

/// Where models are cached: `HF_HUB_CACHE`, or `hub` in [`hub_home`].
pub fn hub_cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hub_home().join("hub"))
}

/// A model's folder in the cache.
#[derive(Debug, Clone)]
pub struct CacheFolder {
    root: PathBuf,
}

impl CacheFolder {
    /// Of `ORG/NAME`.
    pub fn new(cache: &Path, name: &str) -> Self {
        Self { root: cache.join(format!("models--{}", name.replace('/', "--"))) }
    }

    /// The folder of the cache.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a content lies, by its hash.
    pub fn blob(&self, hash: &str) -> PathBuf {
        self.root.join("blobs").join(hash)
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// What a branch, tag or commit means in the cache, if it is there.
    pub fn snapshot_of(&self, revision: &str) -> Option<PathBuf> {
        let named = fs::read_to_string(self.root.join("refs").join(revision)).ok();
        let commit = named.as_deref().map_or(revision, str::trim);
        let is_plain = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Some(self.snapshot(commit)).filter(|folder| is_plain && folder.is_dir())
    }

    /// Gives a content a name in a snapshot.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn link(&self, commit: &str, path: &str, hash: &str) -> Result<()> {
        let name = self.snapshot(commit).join(path);
        let context = || format!("cannot write {}", name.display());
        fs::create_dir_all(name.parent().unwrap_or(&self.root)).with_context(context)?;
        let up = "../".repeat(2 + path.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{hash}"));
        match fs::read_link(&name) {
            Ok(there) if there == target => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => fs::remove_file(&name).with_context(context)?,
        }
        // A file system without links has a copy.
        std::os::unix::fs::symlink(&target, &name).or_else(|_| fs::copy(self.blob(hash), &name).map(|_| ())).with_context(context)
    }

    /// Records which commit a branch or tag is at, once the snapshot is complete.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        write_atomic(&path, commit.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}
