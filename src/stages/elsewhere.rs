//! Outputs in a bucket: made here, in a folder that stays, and copied there when they are complete.
//!
//! What is there already is fetched first where it is not what is here, so that a run goes on from it, or is refused, as from its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::files::{ContentHash, cache_folder, files_under, if_there, write_atomic};
use crate::pipeline::{Output, Reporter};
use crate::remote::{self, Fetched};

/// An output whose place is a URL.
pub struct RemoteOutput {
    there: Output,
    here: Output,
}

/// File names that an earlier, larger output may have had.
const PARTS: [&str; 4] = ["part-", "images-", "img_emb_", "metadata_"];

impl RemoteOutput {
    /// None where `out` is a path of this machine.
    ///
    /// # Errors
    /// No place for the copy: neither `XDG_CACHE_HOME` nor `HOME` is set.
    pub fn of(out: &Path, is_folder: bool) -> Result<Option<Self>> {
        if !remote::is_url(out) {
            return Ok(None);
        }
        let url = remote::shown(out);
        let url = url.trim_end_matches('/');
        let name = url.rsplit('/').next().unwrap_or("output");
        let cache = cache_folder().context("where is work on an output in a bucket to be kept? Set XDG_CACHE_HOME")?;
        let place = cache.join("outputs").join(format!("{:.16}", ContentHash::of(url))).join(name);
        fs::create_dir_all(place.parent().unwrap_or(&place)).with_context(|| format!("cannot make {}", place.display()))?;
        let (there, here) = match is_folder {
            true => (Output::elsewhere(Path::new(url), true), Output::folder(&place)),
            false => (Output::elsewhere(Path::new(url), false), Output::file(&place)),
        };
        Ok(Some(Self { there, here }))
    }

    /// Where it is made.
    pub fn here(&self) -> &Path {
        self.here.path()
    }

    /// Fetches what is there, if it is something else than what is here.
    ///
    /// # Errors
    /// The server refuses or cannot be reached; a full disk.
    pub fn fetch(&self, reporter: &dyn Reporter) -> Result<()> {
        reporter.note(&format!("work on {} is kept in {}", self.url(), self.here().display()));
        let context = || format!("cannot look at {}", self.url());
        let manifest = found(&self.there.manifest()).with_context(context)?;
        if manifest.is_some() && manifest == fs::read(self.here.manifest()).ok() {
            return Ok(());
        }
        // A run of here was stopped while it copied its output there.
        if manifest.is_none() && self.here.manifest().is_file() {
            return Ok(());
        }
        let names = self.names_there().with_context(context)?;
        if names.is_empty() {
            return Ok(());
        }
        if self.here.is_folder() && self.here().exists() {
            fs::remove_dir_all(self.here()).with_context(|| format!("cannot clear {}", self.here().display()))?;
        }
        reporter.note(&format!("fetching what is at {}", self.url()));
        for (from, to) in names {
            copy_here(&from, &to).with_context(|| format!("cannot fetch {}", remote::shown(&from)))?;
        }
        if let Some(manifest) = manifest {
            write_atomic(&self.here.manifest(), &manifest)
                .with_context(|| format!("cannot write {}", self.here.manifest().display()))?;
        }
        Ok(())
    }

    /// Copies the finished output there: the manifest goes first and comes last, and each file is there as a whole or not at all.
    ///
    /// # Errors
    /// The server refuses or cannot be reached; the same command goes on from here.
    pub fn publish(&self, reporter: &dyn Reporter) -> Result<()> {
        let context = || format!("cannot write {}: what was made is in {}", self.url(), self.here().display());
        remote::remove(&self.there.manifest()).with_context(context)?;
        let files = self.files_here()?;
        for (number, (from, to)) in files.iter().enumerate() {
            reporter.detail(&format!("copying {} of {}: {}", number + 1, files.len(), remote::shown(to)));
            remote::upload(from, to).with_context(context)?;
        }
        for (surplus, _) in self.names_there().with_context(context)? {
            let name = surplus.file_name().unwrap_or_default().to_string_lossy();
            if self.here.is_folder()
                && PARTS.iter().any(|part| name.starts_with(part))
                && !files.iter().any(|(_, to)| *to == surplus)
            {
                remote::remove(&surplus).with_context(context)?;
            }
        }
        remote::upload(&self.here.manifest(), &self.there.manifest()).with_context(context)?;
        reporter.note(&format!("written to {}; the copy in {} makes the next run short", self.url(), self.here().display()));
        Ok(())
    }

    /// For messages.
    pub fn url(&self) -> String {
        remote::shown(self.there.path())
    }

    /// Files of the output but the manifest, here and there. An errors table is there only where something failed.
    fn files_here(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        let mut files = Vec::new();
        if self.here.errors().is_file() {
            files.push((self.here.errors(), self.there.errors()));
        }
        if !self.here.is_folder() {
            files.push((self.here.path().into(), self.there.path().into()));
            return Ok(files);
        }
        for (from, found) in files_under(self.here.path(), &|_, _| true) {
            found.with_context(|| format!("cannot list {}", from.display()))?;
            let to = self.there.path().join(from.strip_prefix(self.here.path()).unwrap_or(&from));
            files.push((from, to));
        }
        files.sort();
        Ok(files)
    }

    /// Files of an output that is there, but the manifest, there and here.
    fn names_there(&self) -> io::Result<Vec<(PathBuf, PathBuf)>> {
        let mut files = Vec::new();
        let mut single = vec![(self.there.errors(), self.here.errors())];
        if !self.here.is_folder() {
            single.push((self.there.path().into(), self.here.path().into()));
        }
        for (there, here) in single {
            if if_there(remote::size(&there))?.is_some() {
                files.push((there, here));
            }
        }
        let mut folders = if self.here.is_folder() { vec![PathBuf::new()] } else { Vec::new() };
        while let Some(folder) = folders.pop() {
            for name in remote::names(&self.there.path().join(&folder))? {
                let within = folder.join(&name.name);
                match name.is_folder {
                    true => folders.push(within),
                    false => files.push((self.there.path().join(&within), self.here.path().join(&within))),
                }
            }
        }
        Ok(files)
    }
}

/// A small object, if it is there.
fn found(url: &Path) -> io::Result<Option<Vec<u8>>> {
    match if_there(remote::read(url, 1 << 30))? {
        None => Ok(None),
        Some(Fetched::Whole(bytes)) => Ok(Some(bytes.into_bytes())),
        Some(Fetched::TooLarge(_)) => Err(io::Error::new(io::ErrorKind::InvalidData, "a manifest of more than a gigabyte")),
    }
}

fn copy_here(from: &Path, to: &Path) -> io::Result<()> {
    let mut file = crate::files::AtomicFile::create(to)?;
    io::copy(&mut remote::reader(from)?, &mut file)?;
    file.commit()
}
